"""Compiled loops of the corrections; lengths of the scatter simulation are in coarse voxels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]


@njit(cache=True, nogil=True, error_model="numpy")
def face_gain(cos, stopping):
    """Give a crystal face's cosine times the probability to stop a photon behind it."""
    if cos < 0.02:
        return 0.0
    return cos * (1.0 - math.exp(-stopping / cos))


@njit(cache=True, nogil=True, error_model="numpy")
def short_exp(x):
    """Give exp(-x) for x from 0 to about 1: the [2/2] Padé approximant, 1e-4 at 1."""
    even = np.float32(12.0) + x * x
    odd = np.float32(6.0) * x
    return (even - odd) / (even + odd)


@njit(cache=True, nogil=True, error_model="numpy")
def trace_rays(
    point: F64,
    node: F64,
    normal: F64,
    stopping: float,
    field: F32,
    step: float,
    start: int,
    stop: int,
    direction: F32,
    distance: F32,
    gain: F32,
    mu_integral: F32,
    survival: F32,
    emission: F32,
    n_steps: I32,
) -> None:
    """Follow each ray from points ``start..stop`` to every detector node.

    ``field[x, y, z]`` holds activity and mu, with a border of zeros one voxel wide, in whose
    indices points and nodes are given. ``emission[i, d, k]`` becomes the integral over step
    ``k`` from point ``i``; ``n_steps[i, d]`` says where the last activity lies.
    """
    shape = field.shape
    for i in range(start, stop):
        for d in range(node.shape[0]):
            dx = node[d, 0] - point[i, 0]
            dy = node[d, 1] - point[i, 1]
            dz = node[d, 2] - point[i, 2]
            length = math.sqrt(dx * dx + dy * dy + dz * dz)
            dx /= length
            dy /= length
            dz /= length
            cos = dx * normal[d, 0] + dy * normal[d, 1] + dz * normal[d, 2]
            direction[i, d, 0] = dx
            direction[i, d, 1] = dy
            direction[i, d, 2] = dz
            distance[i, d] = length
            gain[i, d] = face_gain(cos, stopping) / (length * length)
            reach = length
            for axis in range(3):
                u = dx if axis == 0 else (dy if axis == 1 else dz)
                if u > 1e-9:
                    reach = min(reach, (shape[axis] - 1.5 - point[i, axis]) / u)
                elif u < -1e-9:
                    reach = min(reach, (0.5 - point[i, axis]) / u)
            n = max(0, min(int(reach / step + 0.5), emission.shape[2]))
            total = 0.0
            last = 0
            for k in range(n):
                r = (k + 0.5) * step
                x = point[i, 0] + r * dx
                y = point[i, 1] + r * dy
                z = point[i, 2] + r * dz
                # half a step beyond the field's edge at most: the border catches it
                ix = min(max(int(x), 0), shape[0] - 2)
                iy = min(max(int(y), 0), shape[1] - 2)
                iz = min(max(int(z), 0), shape[2] - 2)
                fx = min(max(x - ix, 0.0), 1.0)
                fy = min(max(y - iy, 0.0), 1.0)
                fz = min(max(z - iz, 0.0), 1.0)
                activity = 0.0
                mu = 0.0
                for c in range(4):
                    jx = ix + (c >> 1)
                    jy = iy + (c & 1)
                    w = (fx if c >> 1 else 1.0 - fx) * (fy if c & 1 else 1.0 - fy)
                    low = w * (1.0 - fz)
                    high = w * fz
                    activity += low * field[jx, jy, iz, 0] + high * field[jx, jy, iz + 1, 0]
                    mu += low * field[jx, jy, iz, 1] + high * field[jx, jy, iz + 1, 1]
                total += mu
                emission[i, d, k] = activity * step
                if activity > 0.0:
                    last = k + 1
            mu_integral[i, d] = total * step
            survival[i, d] = math.exp(-total * step)
            n_steps[i, d] = last


@njit(cache=True, nogil=True, error_model="numpy")
def add_scatter(
    view: int,
    n_phi: int,
    n_z: int,
    phi_stride: int,
    first_delta: int,
    max_dz: int,
    mass: F64,
    direction: F32,
    distance: F32,
    gain: F32,
    mu_integral: F32,
    survival: F32,
    emission: F32,
    n_steps: I32,
    step: float,
    cos_min: float,
    angle_table: F32,
    histogram: F32,
) -> None:
    """Add to one view's pairs of nodes the scatter that a chunk of points sends into them.

    ``histogram[z1, delta, z2, m]`` belongs to the nodes of every ``phi_stride``-th angle, which
    ``view`` counts; ``m`` counts steps of
    the broken path's TOF position from the LOR's midpoint towards the second node.
    ``angle_table[c] = (density times acceptance, attenuation ratio - 1)`` over the cosine from
    ``cos_min`` to 1. The angle between the nodes is the outer loop: what the rays to one
    angle's nodes hold then stays in the cache (1.15 x).
    """
    phi = view * phi_stride
    n_hist = histogram.shape[3]
    middle = n_hist // 2
    one = np.float32(1.0)
    half = np.float32(0.5)
    low_cos = np.float32(cos_min)
    per_cos = np.float32((angle_table.shape[0] - 1) / (1.0 - cos_min))
    per_step = np.float32(1.0 / step)
    backward = np.empty(emission.shape[2], np.float32)
    for delta in range(histogram.shape[1]):
        base = ((phi + first_delta + delta) % n_phi) * n_z
        for z1 in range(n_z):
            node_a = phi * n_z + z1
            z_start = max(0, z1 - max_dz)
            z_stop = min(n_z, z1 + max_dz + 1)
            for i in range(mass.size):
                m_a = mu_integral[i, node_a]
                gain_a = np.float32(gain[i, node_a] * mass[i] * survival[i, node_a])
                if gain_a <= 0.0:
                    continue
                ax = direction[i, node_a, 0]
                ay = direction[i, node_a, 1]
                az = direction[i, node_a, 2]
                far = distance[i, node_a]
                n_a = n_steps[i, node_a]
                for k in range(n_a):
                    backward[k] = emission[i, node_a, n_a - 1 - k]
                for z2 in range(z_start, z_stop):
                    b = base + z2
                    cos = -(
                        ax * direction[i, b, 0]
                        + ay * direction[i, b, 1]
                        + az * direction[i, b, 2]
                    )
                    if cos < low_cos:
                        continue
                    c = min(cos - low_cos, one - low_cos) * per_cos
                    ic = min(int(c), angle_table.shape[0] - 2)
                    fc = c - np.float32(ic)
                    density = angle_table[ic, 0] + fc * (
                        angle_table[ic + 1, 0] - angle_table[ic, 0]
                    )
                    extra = angle_table[ic, 1] + fc * (
                        angle_table[ic + 1, 1] - angle_table[ic, 1]
                    )
                    m_b = mu_integral[i, b]
                    weight = gain_a * gain[i, b] * survival[i, b] * density
                    weight_a = weight * short_exp(extra * m_b)
                    weight_b = weight * short_exp(extra * m_a)
                    n_b = n_steps[i, b]
                    into = histogram[z1, delta, z2]
                    if n_hist == 1:
                        total = np.float32(0.0)
                        for k in range(n_a):
                            total += weight_a * backward[k]
                        for k in range(n_b):
                            total += weight_b * emission[i, b, k]
                        into[0] += total
                        continue
                    shift = half * (far - distance[i, b]) * per_step
                    first = math.floor(shift - half) + middle - n_a + 1
                    start = max(0, -first)
                    add_times(into, first, weight_a, backward, start, min(n_a, n_hist - first))
                    first = math.floor(shift + half) + middle
                    start = max(0, -first)
                    add_times(
                        into, first, weight_b, emission[i, b], start, min(n_b, n_hist - first)
                    )


@njit(cache=True, nogil=True, error_model="numpy")
def add_times(into: F32, first: int, weight: float, source: F32, start: int, stop: int) -> None:
    """Add ``weight`` times ``source[start:stop]`` to what lies from ``first`` + start on."""
    if stop > start:
        to = into[first + start : first + stop]
        what = source[start:stop]
        for k in range(to.size):
            to[k] += weight * what[k]


@njit(cache=True, nogil=True, error_model="numpy")
def finish_row(
    row: int,
    n_phi: int,
    n_z: int,
    phi_stride: int,
    first_delta: int,
    node: F64,
    normal: F64,
    stopping: float,
    scale: float,
    first_hist: I32,
    blur: F32,
    histogram: F32,
    table: F32,
) -> None:
    """Blur one node's histograms by the timing and divide by its pairs' response to trues.

    ``blur[t, j]`` is the share of histogram step ``first_hist[t] + j`` that TOF sample ``t``
    takes.
    """
    phi = row // n_z * phi_stride
    node_a = phi * n_z + row % n_z
    for delta in range(histogram.shape[0]):
        base = ((phi + first_delta + delta) % n_phi) * n_z
        for z2 in range(n_z):
            b = base + z2
            dx = node[b, 0] - node[node_a, 0]
            dy = node[b, 1] - node[node_a, 1]
            dz = node[b, 2] - node[node_a, 2]
            square = dx * dx + dy * dy + dz * dz
            length = math.sqrt(square)
            cos_a = (
                -(dx * normal[node_a, 0] + dy * normal[node_a, 1] + dz * normal[node_a, 2])
                / length
            )
            cos_b = (dx * normal[b, 0] + dy * normal[b, 1] + dz * normal[b, 2]) / length
            response = face_gain(cos_a, stopping) * face_gain(cos_b, stopping) / square
            factor = scale / response if response > 0.0 else 0.0
            for t in range(table.shape[2]):
                total = 0.0
                for j in range(blur.shape[1]):
                    total += blur[t, j] * histogram[delta, z2, first_hist[t] + j]
                table[delta, z2, t] = total * factor


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate(
    crystal_a: U32,
    crystal_b: U32,
    tof_bin: I16,
    crystal_phi: F32,
    crystal_z: F32,
    phi_stride: int,
    first_delta: int,
    n_bins: int,
    samples_per_bin: float,
    log_table: F32,
    out: F32,
) -> None:
    """Interpolate ``exp(log_table[view, z1, delta, z2, t])`` at each event.

    ``crystal_phi`` and ``crystal_z`` are each crystal's place in node spacings. The logarithm
    is linear in either axial place, in the angle between the crystals (fine, because it is the
    LOR's distance from the axis) and in the first one's angle (every ``phi_stride``-th node,
    because at a fixed angle between them it only turns the LOR); a geometric mean follows
    scatter's steep fall beside the body, where an arithmetic one is up to twice too high.
    Events ordered in space find their part of the table in the cache (2 x).
    """
    n_view, n_z, n_delta, _, n_t = log_table.shape
    n_phi = n_view * phi_stride
    per_stride = 1.0 / phi_stride
    for e in range(crystal_a.size):
        a = crystal_a[e]
        b = crystal_b[e]
        t = tof_bin[e] - 0.5 * (n_bins - 1)
        turn = crystal_phi[b] - crystal_phi[a]
        if turn < 0.0:
            turn += n_phi
        if turn > 0.5 * n_phi:
            a, b = b, a
            turn = n_phi - turn
            t = -t
        u = crystal_phi[a] * per_stride
        i = int(u)
        f = u - i
        delta = min(max(int(turn) - first_delta, 0), n_delta - 2)
        q = min(max(turn - first_delta - delta, 0.0), 1.0)
        z1 = crystal_z[a]
        j1 = min(int(z1), n_z - 2)
        g1 = z1 - j1
        z2 = crystal_z[b]
        j2 = min(int(z2), n_z - 2)
        g2 = z2 - j2
        s = t * samples_per_bin + 0.5 * (n_t - 1)
        k = max(0, min(int(s), n_t - 2))
        h = min(max(s - k, 0.0), 1.0) if n_t > 1 else 0.0
        k_next = min(k + 1, n_t - 1)
        k = max(k, 0)
        total = 0.0
        for c in range(4):
            view = (i + (c >> 1)) % n_view
            w = (f if c >> 1 else 1.0 - f) * (q if c & 1 else 1.0 - q)
            for d in range(2):
                v = w * (g1 if d else 1.0 - g1)
                near = log_table[view, j1 + d, delta + (c & 1), j2]
                far = log_table[view, j1 + d, delta + (c & 1), j2 + 1]
                low = (1.0 - g2) * near[k] + g2 * far[k]
                if h > 0.0:
                    high = (1.0 - g2) * near[k_next] + g2 * far[k_next]
                    low += h * (high - low)
                total += v * low
        out[e] = math.exp(total)


@njit(cache=True, nogil=True, error_model="numpy")
def miss_mask(
    ends: F32,
    crystal_a: U32,
    crystal_b: U32,
    mask: NDArray[np.uint8],
    missed: NDArray[np.uint8],
) -> None:
    """Say for each LOR whether it misses the mask.

    ``ends`` are the crystals in voxel coordinates of ``mask``. Sampled every half voxel at the
    nearest voxel, which a mask with a margin allows.
    """
    shape = mask.shape
    for e in range(crystal_a.size):
        start, stop = ends[crystal_a[e]], ends[crystal_b[e]]
        low = 0.0
        high = 1.0
        length = 0.0
        for axis in range(3):
            d = stop[axis] - start[axis]
            length += d * d
            if abs(d) < 1e-6:
                if start[axis] < -0.5 or start[axis] > shape[axis] - 0.5:
                    high = -1.0
                continue
            t1 = (-0.5 - start[axis]) / d
            t2 = (shape[axis] - 0.5 - start[axis]) / d
            low = max(low, min(t1, t2))
            high = min(high, max(t1, t2))
        missed[e] = 1
        if high <= low:
            continue
        n = int(2.0 * math.sqrt(length) * (high - low)) + 1
        step = (high - low) / n
        for k in range(n):
            t = low + (k + 0.5) * step
            x = min(int(start[0] + t * (stop[0] - start[0]) + 0.5), shape[0] - 1)
            y = min(int(start[1] + t * (stop[1] - start[1]) + 0.5), shape[1] - 1)
            z = min(int(start[2] + t * (stop[2] - start[2]) + 0.5), shape[2] - 1)
            if mask[x, y, z]:
                missed[e] = 0
                break


@njit(cache=True, nogil=True, error_model="numpy")
def edge_factors(
    crystal_a, crystal_b, position, normal, axis, sense, place, across, along, steepest,
    per_slope, out,
):  # fmt: skip
    """Multiply pair efficiencies by what both ends' edges see; see ``block_edges``."""
    for e in range(crystal_a.size):
        factor = 1.0
        for end in range(2):
            to = crystal_a[e] if end == 0 else crystal_b[e]
            other = crystal_b[e] if end == 0 else crystal_a[e]
            rx = position[to, 0] - position[other, 0]
            ry = position[to, 1] - position[other, 1]
            rz = position[to, 2] - position[other, 2]
            nx, ny, nz = normal[to, 0], normal[to, 1], normal[to, 2]
            tx = sense * (axis[1] * nz - axis[2] * ny)
            ty = sense * (axis[2] * nx - axis[0] * nz)
            tz = sense * (axis[0] * ny - axis[1] * nx)
            inwards = max(rx * nx + ry * ny + rz * nz, 1e-6)
            factor *= _at_slope(
                across, place[to, 0], (rx * tx + ry * ty + rz * tz) / inwards, steepest,
                per_slope,
            )  # fmt: skip
            factor *= _at_slope(
                along, place[to, 1], (rx * axis[0] + ry * axis[1] + rz * axis[2]) / inwards,
                steepest, per_slope,
            )  # fmt: skip
        out[e] *= factor


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _at_slope(table, row, slope, steepest, per_slope):
    at = (min(max(slope, -steepest), steepest) + steepest) * per_slope
    i = min(int(at), table.shape[1] - 2)
    return table[row, i] + (at - i) * (table[row, i + 1] - table[row, i])


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def parallel_lines(mu, axis, slope_u, slope_v, low_u, low_v, per_voxel, first, last, out):
    """Sum mu along parallel lines, plane by plane, with bilinear interpolation.

    Line ``(i, j)`` crosses plane 0 of ``axis`` at ``low + (i, j) / per_voxel`` along the two
    other axes; ``out[i, j]`` becomes its sum for ``first <= i < last``. ``mu`` has a border of
    zeros.
    """
    n_p = mu.shape[axis]
    n_u = mu.shape[1 if axis == 0 else 0]
    n_v = mu.shape[1 if axis == 2 else 2]
    for i in range(first, last):
        for j in range(out.shape[1]):
            u0, v0 = low_u + i / per_voxel, low_v + j / per_voxel
            total = 0.0
            for p in range(1, n_p - 1):
                u, v = u0 + p * slope_u, v0 + p * slope_v
                if u <= 0.0 or v <= 0.0 or u >= n_u - 1 or v >= n_v - 1:
                    continue
                iu, iv = int(u), int(v)
                fu, fv = u - iu, v - iv
                if axis == 0:
                    a, b = mu[p, iu, iv], mu[p, iu, iv + 1]
                    c, d = mu[p, iu + 1, iv], mu[p, iu + 1, iv + 1]
                elif axis == 1:
                    a, b = mu[iu, p, iv], mu[iu, p, iv + 1]
                    c, d = mu[iu + 1, p, iv], mu[iu + 1, p, iv + 1]
                else:
                    a, b = mu[iu, iv, p], mu[iu, iv + 1, p]
                    c, d = mu[iu + 1, iv, p], mu[iu + 1, iv + 1, p]
                low = a + fv * (b - a)
                total += low + fu * (c + fv * (d - c) - low)
            out[i, j] = total


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def add_survival(
    table, axis, slope_u, slope_v, low_u, low_v, per_voxel, length, point, point_det, way,
    weight, radius, half_length, reach, soft, first, stop, part, norm,
):  # fmt: skip
    """Add one direction's survival of photon pairs to the points ``first..stop``.

    ``table`` is that of ``parallel_lines``, ``length`` its mm a plane; ``point`` is in its
    voxels, ``point_det`` and ``way`` in mm in the detector's frame. A direction counts by its
    ``weight`` as far as both its ends lie on the cylinder of crystals, and within ``reach`` of
    each other, ``soft`` mm wide; a thousandth of it always counts. Adds to ``part[i]`` and
    ``norm[i]``.
    """
    dx, dy, dz = way[0], way[1], way[2]
    across = max(dx * dx + dy * dy, 1e-6)
    axis_u, axis_v = 1 if axis == 0 else 0, 1 if axis == 2 else 2
    for i in range(first, stop):
        px, py, pz = point_det[i, 0], point_det[i, 1], point_det[i, 2]
        inner = max(radius * radius - px * px - py * py, 0.0)
        along = px * dx + py * dy
        root = math.sqrt(along * along + across * inner)
        one = pz + (-along + root) / across * dz
        other = pz + (-along - root) / across * dz
        w = min(max((half_length - abs(one)) / soft + 0.5, 0.0), 1.0)
        w *= min(max((half_length - abs(other)) / soft + 0.5, 0.0), 1.0)
        w *= min(max((reach - abs(one - other)) / soft + 0.5, 0.0), 1.0)
        w = weight * max(w, 1e-3)
        u = (point[i, axis_u] - point[i, axis] * slope_u - low_u) * per_voxel
        v = (point[i, axis_v] - point[i, axis] * slope_v - low_v) * per_voxel
        total = 0.0
        if u > 0.0 and v > 0.0 and u < table.shape[0] - 1 and v < table.shape[1] - 1:
            iu, iv = int(u), int(v)
            fu, fv = u - iu, v - iv
            low = table[iu, iv] + fv * (table[iu, iv + 1] - table[iu, iv])
            high = table[iu + 1, iv] + fv * (table[iu + 1, iv + 1] - table[iu + 1, iv])
            total = low + fu * (high - low)
        norm[i] += w
        part[i] += w * math.exp(-total * length)
