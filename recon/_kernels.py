"""Compiled ray loops: one ray walker serves forward, back and fused update.

Images are flat and padded: one voxel of zeros below and two above along each axis, so that the
walker may touch the neighbours of any sample without looking where it is. They lie in slabs of
``SLAB`` planes along z, see :class:`recon.projector.RayModel`. Ray ends arrive in voxel
coordinates of the image without padding. Real numbers have the type of the TOF table: float32
ships, float64 serves the tests.

What runs once a ray is inlined by force: a call hands over every field of every array, which
costs as much as the work.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from recon._kernels_vectors import (
    LANES,
    SLAB,
    SLAB_BITS,
    gather_pairs,
    lay_samples,
    spread_pairs,
    weigh,
)

LEAST_EXPECTED = np.float32(1e-20)  # below, one event's ratio would leave float32's range


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def principal_axis(dx, dy, dz):
    """Give the axis of the largest step; of equal steps the first in the order x, y, z."""
    ax, ay, az = abs(dx), abs(dy), abs(dz)
    if ax >= ay and ax >= az:
        return 0
    if ay >= az:
        return 1
    return 2


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def clip_range(low, high, slope, offset, n):
    """Narrow ``[low, high]`` to where ``-1 <= p * slope + offset <= n``."""
    if abs(slope) * (abs(low) + abs(high)) < 1e-6:
        if offset < -1 or offset > n:
            return low, low - 1
        return low, high
    p, q = (-1 - offset) / slope, (n - offset) / slope
    if p > q:
        p, q = q, p
    return max(low, p), min(high, q)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def lay_ray(ends, a, b, voxel_mm, centre_mm, reach_mm, nx, ny, nz):
    """Find the planes that a ray crosses within the image and the TOF kernel's reach.

    Returns
    -------
    tuple
        Number of planes and the first; the principal axis; slopes and offsets of the position
        along the two others, in their order; the TOF centre as a plane number; step between
        planes, mm.
    """
    real = voxel_mm.dtype.type
    ax, ay, az = ends[a, 0], ends[a, 1], ends[a, 2]
    dx, dy, dz = ends[b, 0] - ax, ends[b, 1] - ay, ends[b, 2] - az
    mm_x, mm_y, mm_z = dx * voxel_mm[0], dy * voxel_mm[1], dz * voxel_mm[2]
    length_mm = real(math.sqrt(mm_x * mm_x + mm_y * mm_y + mm_z * mm_z))
    axis = principal_axis(dx, dy, dz)
    if axis == 0:
        p0, dp, u0, du, v0, dv = ax, dx, ay, dy, az, dz
        n_p, n_u, n_v = nx, ny, nz
    elif axis == 1:
        p0, dp, u0, du, v0, dv = ay, dy, ax, dx, az, dz
        n_p, n_u, n_v = ny, nx, nz
    else:
        p0, dp, u0, du, v0, dv = az, dz, ax, dx, ay, dy
        n_p, n_u, n_v = nz, nx, ny
    slope_u, slope_v = du / dp, dv / dp
    offset_u, offset_v = u0 - p0 * slope_u, v0 - p0 * slope_v
    step_mm = length_mm / abs(dp)
    centre = p0 + dp * (real(0.5) + centre_mm / length_mm)
    reach = reach_mm / step_mm
    low = max(min(p0, p0 + dp), centre - reach, real(0))
    high = min(max(p0, p0 + dp), centre + reach, real(n_p - 1))
    low, high = clip_range(low, high, slope_u, offset_u, real(n_u))
    low, high = clip_range(low, high, slope_v, offset_v, real(n_v))
    first, n = np.int32(0), np.int32(0)
    if low <= high:
        first = np.int32(math.ceil(low))
        n = np.int32(math.floor(high)) - first + np.int32(1)
    return n, first, axis, slope_u, slope_v, offset_u, offset_v, centre, step_mm


@njit(cache=True, nogil=True)
def room_for(nx, ny, nz):
    """Give the planes that a walked ray may need room for, whole vectors included."""
    return max(nx, ny, nz) + LANES


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def walk(
    ends, a, b, voxel_mm, centre_mm, table, per_mm, reach_mm, nx, ny, nz, index, entry, share
):
    """Sample one ray: Joseph's method with TOF weights.

    Planes lie at whole numbers along the principal axis; the weight of a plane is its length of
    ray times the TOF kernel there, shared bilinearly by four voxels. Positions are
    ``i * slope + offset``: a running sum drifts by 1e-2 voxel in single precision.

    Fills ``index`` (first of the four voxels) and ``share`` (of each of them, four a plane;
    :mod:`recon._kernels_vectors`); ``entry`` is room for the places in the TOF table. Returns
    the number of planes and the steps from a voxel to its neighbours.
    """
    real = table.dtype.type
    n, first, axis, slope_u, slope_v, offset_u, offset_v, centre, step_mm = lay_ray(
        ends, a, b, voxel_mm, centre_mm, reach_mm, nx, ny, nz
    )
    step_y = SLAB + 1
    step_x = (ny + 3) * step_y
    slab = (nx + 3) * step_x
    if axis == 0:
        step_p, step_u, step_v = step_x, step_y, 1
    elif axis == 1:
        step_p, step_u, step_v = step_y, step_x, 1
    else:
        step_p, step_u, step_v = 1, step_x, step_y
    # Padding puts voxel i at i + 1. Adding 1 before the cut to an integer makes it a floor.
    lay_samples(
        first, n, slope_u, slope_v, offset_u + real(1), offset_v + real(1), centre,
        step_mm * per_mm, table.size - 1, step_mm, slab if axis == 2 else step_p << SLAB_BITS,
        step_p, step_v << SLAB_BITS if axis == 2 else slab, step_v, step_u, index, entry, share,
    )  # fmt: skip
    weigh(table, entry, n, share)
    return n, step_u, step_v


@njit(cache=True, nogil=True)
def fill_slabs(values, slabs, start, stop):
    """Copy planes ``[start, stop)`` along x of an image into slabs, ``[slab, x, y, z]``.

    Planes that two slabs share go to both.
    """
    _, ny, nz = values.shape
    for x in range(start, stop):
        for y in range(ny):
            for k in range(slabs.shape[0]):
                first = k * SLAB - 1  # the image's plane that lies first in the slab
                for z in range(max(first, 0), min(first + SLAB + 1, nz)):
                    slabs[k, x + 1, y + 1, z - first] = values[x, y, z]


@njit(cache=True, nogil=True)
def take_slabs(slabs, values, start, stop):
    """Copy an image out of slabs, adding the two places of planes that are shared."""
    _, ny, nz = values.shape
    for x in range(start, stop):
        for y in range(ny):
            for k in range(slabs.shape[0]):
                first = k * SLAB - 1
                for z in range(max(first, 0), min(first + SLAB, nz)):
                    values[x, y, z] = slabs[k, x + 1, y + 1, z - first]
                if 0 < k and first < nz:
                    values[x, y, first] += slabs[k - 1, x + 1, y + 1, SLAB]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def bucket_events(
    ends, voxel_mm, crystal_a, crystal_b, tof_bin, tof_centre_mm, reach_mm, shape, task_bits,
    block_bits, n_slopes, n_parts, out,
):  # fmt: skip
    """Write each event's bucket: where its TOF centre lies, and its direction.

    Buckets are numbered by task (a column along x of ``2**task_bits`` voxels in y and z), then
    by block of ``2**block_bits`` voxels within it, then by principal axis, then by the slopes
    along the two other axes, ``n_slopes`` classes each. With ``n_parts`` above zero a task is a
    part of the crystal pairs instead, and the block that of the LOR's middle. Events whose ray
    misses the image get -1.
    """
    nx, ny, nz = shape
    task_size, block_size = 1 << task_bits, 1 << block_bits  # shifts: divisions cost a ray
    per_task = 1 << (task_bits - block_bits)
    blocks_x = (nx + block_size - 1) >> block_bits
    tasks_z = (nz + task_size - 1) >> task_bits
    n_directions = 3 * n_slopes * n_slopes
    n_inner = blocks_x * per_task * per_task * n_directions
    half = 0.5 * n_slopes
    n_tasks = tasks_z * ((ny + task_size - 1) >> task_bits)
    for e in range(crystal_a.size):
        a, b = crystal_a[e], crystal_b[e]
        centre_mm = tof_centre_mm[tof_bin[e]]
        ray = lay_ray(ends, a, b, voxel_mm, centre_mm, reach_mm, nx, ny, nz)
        if ray[0] <= 0:
            out[e] = -1
            continue
        ax, ay, az = ends[a, 0], ends[a, 1], ends[a, 2]
        dx, dy, dz = ends[b, 0] - ax, ends[b, 1] - ay, ends[b, 2] - az
        mm_x, mm_y, mm_z = dx * voxel_mm[0], dy * voxel_mm[1], dz * voxel_mm[2]
        share = 0.5 + centre_mm / math.sqrt(mm_x * mm_x + mm_y * mm_y + mm_z * mm_z)
        # Held inside the image: the nearest point of a box moves no voxel of it further away.
        x = int(min(max(ax + share * dx, 0.0), nx - 1.0))
        y = int(min(max(ay + share * dy, 0.0), ny - 1.0))
        z = int(min(max(az + share * dz, 0.0), nz - 1.0))
        task = (y >> task_bits) * tasks_z + (z >> task_bits)
        block = (x >> block_bits) * per_task + ((y & (task_size - 1)) >> block_bits)
        block = block * per_task + ((z & (task_size - 1)) >> block_bits)
        slope_u = min(int((1 + ray[3]) * half), n_slopes - 1)
        slope_v = min(int((1 + ray[4]) * half), n_slopes - 1)
        axis = ray[2]
        inner = block * n_directions + (axis * n_slopes + slope_u) * n_slopes + slope_v
        if n_parts:
            inner += task * n_inner
            out[e] = (a + b) % n_parts * n_tasks * n_inner + inner
        else:
            out[e] = task * n_inner + inner


@njit(cache=True, nogil=True)
def place_column(bucket, cursor, column, out):
    """Copy a column of events behind the cursor of their bucket, in order; skip bucket -1."""
    for e in range(bucket.size):
        k = bucket[e]
        if k >= 0:
            j = cursor[k]
            cursor[k] = j + 1
            out[j] = column[e]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def gather(image, index, share, n, step_u, step_v):
    """Sum the image along a walked ray, interpolating between four voxels a plane."""
    if step_v == 1:
        return gather_pairs(image, index, share, n, step_u)
    total = image.dtype.type(0)
    for k in range(n):  # along the scanner's axis; one ray in twenty, even in a long scanner
        j = index[k]
        low = share[4 * k] * image[j] + share[4 * k + 1] * image[j + step_v]
        j += step_u
        total += low + share[4 * k + 2] * image[j] + share[4 * k + 3] * image[j + step_v]
    return total


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def spread(image, value, index, share, n, step_u, step_v):
    """Add ``value`` to the image along a walked ray: the transpose of ``gather``."""
    if step_v == 1:
        spread_pairs(image, value, index, share, n, step_u)
        return
    for k in range(n):
        j = index[k]
        image[j] += value * share[4 * k]
        image[j + step_v] += value * share[4 * k + 1]
        j += step_u
        image[j] += value * share[4 * k + 2]
        image[j + step_v] += value * share[4 * k + 3]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def forward(
    image, shape, ends, voxel_mm, crystal_a, crystal_b, tof_bin, tof_centre_mm, table, per_mm,
    reach_mm, start, stop, out,
):  # fmt: skip
    """Project the image along events ``[start, stop)`` into ``out``."""
    nx, ny, nz = shape
    n_max = room_for(nx, ny, nz)
    index, entry = np.empty(n_max, np.int32), np.empty(n_max, np.int32)
    share = np.empty(4 * n_max, table.dtype)
    for e in range(start, stop):
        n, step_u, step_v = walk(
            ends, crystal_a[e], crystal_b[e], voxel_mm, tof_centre_mm[tof_bin[e]], table,
            per_mm, reach_mm, nx, ny, nz, index, entry, share,
        )  # fmt: skip
        out[e] = gather(image, index, share, n, step_u, step_v)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def back(
    image, shape, ends, voxel_mm, crystal_a, crystal_b, tof_bin, tof_centre_mm, table, per_mm,
    reach_mm, start, stop, values,
):  # fmt: skip
    """Add the values of events ``[start, stop)`` to the image along their rays."""
    nx, ny, nz = shape
    n_max = room_for(nx, ny, nz)
    index, entry = np.empty(n_max, np.int32), np.empty(n_max, np.int32)
    share = np.empty(4 * n_max, table.dtype)
    for e in range(start, stop):
        n, step_u, step_v = walk(
            ends, crystal_a[e], crystal_b[e], voxel_mm, tof_centre_mm[tof_bin[e]], table,
            per_mm, reach_mm, nx, ny, nz, index, entry, share,
        )  # fmt: skip
        spread(image, values[e], index, share, n, step_u, step_v)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def update(
    image, correction, shape, ends, voxel_mm, crystal_a, crystal_b, tof_bin, additive,
    tof_centre_mm, table, per_mm, reach_mm, start, stop,
):  # fmt: skip
    """Project, take the ratio and project back, event by event.

    Returns
    -------
    int
        Events that neither the image nor the additive term can explain; they are left out.
    """
    nx, ny, nz = shape
    n_max = room_for(nx, ny, nz)
    index, entry = np.empty(n_max, np.int32), np.empty(n_max, np.int32)
    share = np.empty(4 * n_max, table.dtype)
    one = table.dtype.type(1)
    n_unexplained = 0
    for e in range(start, stop):
        n, step_u, step_v = walk(
            ends, crystal_a[e], crystal_b[e], voxel_mm, tof_centre_mm[tof_bin[e]], table,
            per_mm, reach_mm, nx, ny, nz, index, entry, share,
        )  # fmt: skip
        expected = additive[e] + gather(image, index, share, n, step_u, step_v)
        if expected > LEAST_EXPECTED:
            spread(correction, one / expected, index, share, n, step_u, step_v)
        else:
            n_unexplained += 1
    return n_unexplained


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def pair_efficiency(crystal_a, crystal_b, position, normal, crystal_weight, depth, scale, out):
    """Write the efficiency of each pair; see ``recon.corrections.normalisation``."""
    for e in range(crystal_a.size):
        a, b = crystal_a[e], crystal_b[e]
        out[e] = scale * one_efficiency(a, b, position, normal, crystal_weight, depth)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def one_efficiency(a, b, position, normal, crystal_weight, depth):
    """Give étendue over area squared, stopping and crystal weights of one pair."""
    dx = np.float64(position[b, 0]) - position[a, 0]
    dy = np.float64(position[b, 1]) - position[a, 1]
    dz = np.float64(position[b, 2]) - position[a, 2]
    r2 = dx * dx + dy * dy + dz * dz
    r = math.sqrt(r2)
    cos_a = abs(dx * normal[a, 0] + dy * normal[a, 1] + dz * normal[a, 2]) / r
    cos_b = abs(dx * normal[b, 0] + dy * normal[b, 1] + dz * normal[b, 2]) / r
    cos_a, cos_b = max(cos_a, 1e-6), max(cos_b, 1e-6)
    stop_a, stop_b = 1.0 - math.exp(-depth / cos_a), 1.0 - math.exp(-depth / cos_b)
    return crystal_weight[a] * crystal_weight[b] * cos_a * cos_b * stop_a * stop_b / r2


@njit(cache=True, nogil=True)
def draw_pairs(
    first,
    shift,
    step,
    row_low,
    row_count,
    fan_start,
    fan,
    n_around,
    crystal_a,
    crystal_b,
    weight,
):
    """Draw accepted crystal pairs by a Kronecker sequence, with the inverse of their density.

    Crystals are numbered ``row * n_around + place``. Row ``r`` coincides with ``row_count[r]``
    rows from ``row_low[r]`` on; place ``p`` with the places in ``fan[fan_start[p]:
    fan_start[p + 1]]``.
    """
    n_rows = row_low.size
    u = np.empty(4)
    for i in range(crystal_a.size):
        for k in range(4):
            x = shift[k] + (first + i) * step[k]
            u[k] = x - math.floor(x)
        row = min(int(u[0] * n_rows), n_rows - 1)
        n_other = row_count[row]
        other = row_low[row] + min(int(u[1] * n_other), n_other - 1)
        place = min(int(u[2] * n_around), n_around - 1)
        n_fan = fan_start[place + 1] - fan_start[place]
        if n_fan == 0:
            crystal_a[i], crystal_b[i], weight[i] = 0, 1, 0.0
            continue
        across = fan[fan_start[place] + min(int(u[3] * n_fan), n_fan - 1)]
        crystal_a[i] = row * n_around + place
        crystal_b[i] = other * n_around + across
        weight[i] = float(n_rows) * n_other * n_around * n_fan


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def convolve(values, taps, axis, start, stop, out):
    """Convolve a volume along one axis with a symmetric kernel; zero lies outside.

    ``taps[0]`` is the middle. Rows ``[start, stop)`` are written: along x, or along y where
    the axis is x. The inner loop runs along z, where memory is contiguous.
    """
    nx, ny, nz = values.shape
    reach = taps.size - 1
    for row in range(start, stop):
        for other in range(nx if axis == 0 else ny):
            x, y = (other, row) if axis == 0 else (row, other)
            for z in range(nz):
                out[x, y, z] = taps[0] * values[x, y, z]
            for k in range(1, reach + 1):
                t = taps[k]
                if axis == 0:
                    if x >= k:
                        for z in range(nz):
                            out[x, y, z] += t * values[x - k, y, z]
                    if x + k < nx:
                        for z in range(nz):
                            out[x, y, z] += t * values[x + k, y, z]
                elif axis == 1:
                    if y >= k:
                        for z in range(nz):
                            out[x, y, z] += t * values[x, y - k, z]
                    if y + k < ny:
                        for z in range(nz):
                            out[x, y, z] += t * values[x, y + k, z]
                else:
                    for z in range(k, nz):
                        out[x, y, z] += t * values[x, y, z - k]
                    for z in range(nz - k):
                        out[x, y, z] += t * values[x, y, z + k]
