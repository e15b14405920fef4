"""Compiled loops of the simulator: shapes, directions, the detector and photon transport.

Coordinates are the patient's frame unless a name says scanner; they differ by the displacement
of the patient. A *shape* is a row of 7 numbers: kind (0 ellipsoid, 1 elliptic cylinder along z,
2 box), centre x, y, z in mm and the inverses of the semi-axes in 1/mm.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# The error model is numpy's: a check for division by zero keeps loops from vectorising.
# Sums over shapes may be reordered; the order is fixed by the compiled code, not by threads
_SUM = {"reassoc", "nsz", "contract", "nnan", "ninf"}

_U11, _U17, _U19, _U45 = np.uint64(11), np.uint64(17), np.uint64(19), np.uint64(45)
_MASK = np.uint64((1 << 53) - 1)
_TO_UNIT = 2.0**-53
_C_MM_PS = 0.299792458


@njit(cache=True, nogil=True, error_model="numpy")
def uniform(state):
    """Draw from [0, 1): the engine of xoshiro256+ (Blackman and Vigna 2021).

    The two words are added after the shift, which keeps 53 good bits and never overflows.
    """
    word = ((state[0] >> _U11) + (state[3] >> _U11)) & _MASK
    t = state[1] << _U17
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= t
    state[3] = (state[3] << _U45) | (state[3] >> _U19)
    return float(word) * _TO_UNIT


@njit(cache=True, nogil=True, error_model="numpy")
def exponential(state):
    """Draw from the exponential distribution of mean 1."""
    return -math.log(1.0 - uniform(state))


@njit(cache=True, nogil=True, error_model="numpy")
def normal_pair(state):
    """Draw two standard normal numbers (Marsaglia and Bray 1964)."""
    while True:
        u = 2.0 * uniform(state) - 1.0
        v = 2.0 * uniform(state) - 1.0
        q = u * u + v * v
        if 0.0 < q < 1.0:
            r = math.sqrt(-2.0 * math.log(q) / q)
            return u * r, v * r


@njit(cache=True, nogil=True, error_model="numpy")
def azimuth(state):
    """Draw the cosine and sine of an even angle, without computing either."""
    while True:
        u = 2.0 * uniform(state) - 1.0
        v = 2.0 * uniform(state) - 1.0
        q = u * u + v * v
        if 1e-12 < q < 1.0:
            return (u * u - v * v) / q, 2.0 * u * v / q


@njit(cache=True, nogil=True, error_model="numpy")
def isotropic(state):
    """Draw an even direction (Marsaglia 1972)."""
    while True:
        u = 2.0 * uniform(state) - 1.0
        v = 2.0 * uniform(state) - 1.0
        q = u * u + v * v
        if q < 1.0:
            r = 2.0 * math.sqrt(1.0 - q)
            return u * r, v * r, 1.0 - 2.0 * q


# ---- shapes


@njit(cache=True, nogil=True, error_model="numpy")
def is_inside(shape, x, y, z):
    """Say whether a point lies in a shape."""
    u = (x - shape[1]) * shape[4]
    v = (y - shape[2]) * shape[5]
    w = (z - shape[3]) * shape[6]
    if shape[0] == 0.0:
        return u * u + v * v + w * w < 1.0
    if shape[0] == 1.0:
        return u * u + v * v < 1.0 and abs(w) < 1.0
    return abs(u) < 1.0 and abs(v) < 1.0 and abs(w) < 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def level(shape, x, y, z):
    """Give how far out a point lies: 0 at the shape's centre, 1 on its surface."""
    u = abs(x - shape[1]) * shape[4]
    v = abs(y - shape[2]) * shape[5]
    w = abs(z - shape[3]) * shape[6]
    if shape[0] == 0.0:
        return math.sqrt(u * u + v * v + w * w)
    if shape[0] == 1.0:
        return max(math.sqrt(u * u + v * v), w)
    return max(u, max(v, w))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_SUM)
def line_integral(ellipsoids, cylinders, boxes, sx, sy, sz, x, y, z, dx, dy, dz):
    """Integrate additive values over a whole line: chord lengths times values.

    Each table has the rows centre x, y, z (mm), inverse semi-axes (1/mm), value, and whether
    the shape stays in the scanner's frame, into which (sx, sy, sz) moves the patient. Single
    precision and no branches: the loops run in vector registers, 5 times faster than shape by
    shape.
    """
    one = np.float32(1.0)
    zero = np.float32(0.0)
    tiny = np.float32(1e-6)
    px, py, pz = np.float32(x), np.float32(y), np.float32(z)
    mx, my, mz = np.float32(sx), np.float32(sy), np.float32(sz)
    ex = np.float32(dx) if abs(dx) > 1e-6 else tiny
    ey = np.float32(dy) if abs(dy) > 1e-6 else tiny
    ez = np.float32(dz) if abs(dz) > 1e-6 else tiny
    total = zero
    for k in range(ellipsoids.shape[1]):
        f = ellipsoids[7, k]
        u = (px + f * mx - ellipsoids[0, k]) * ellipsoids[3, k]
        v = (py + f * my - ellipsoids[1, k]) * ellipsoids[4, k]
        w = (pz + f * mz - ellipsoids[2, k]) * ellipsoids[5, k]
        du = ex * ellipsoids[3, k]
        dv = ey * ellipsoids[4, k]
        dw = ez * ellipsoids[5, k]
        a = du * du + dv * dv + dw * dw
        b = u * du + v * dv + w * dw
        c = u * u + v * v + w * w - one
        root = b * b - a * c
        root = root if root > zero else zero
        total += ellipsoids[6, k] * (math.sqrt(root) + math.sqrt(root)) / a
    for k in range(cylinders.shape[1]):
        f = cylinders[7, k]
        u = (px + f * mx - cylinders[0, k]) * cylinders[3, k]
        v = (py + f * my - cylinders[1, k]) * cylinders[4, k]
        w = (pz + f * mz - cylinders[2, k]) * cylinders[5, k]
        du = ex * cylinders[3, k]
        dv = ey * cylinders[4, k]
        dw = ez * cylinders[5, k]
        a = du * du + dv * dv
        b = u * du + v * dv
        c = u * u + v * v - one
        root = b * b - a * c
        half = math.sqrt(root if root > zero else zero) / a
        middle = -b / a
        slab = one / abs(dw)
        at = -w / dw
        far = middle + half if middle + half < at + slab else at + slab
        near = middle - half if middle - half > at - slab else at - slab
        length = far - near
        total += cylinders[6, k] * (length if length > zero else zero)
    for k in range(boxes.shape[1]):
        f = boxes[7, k]
        u = (px + f * mx - boxes[0, k]) / ex
        v = (py + f * my - boxes[1, k]) / ey
        w = (pz + f * mz - boxes[2, k]) / ez
        hu = one / (boxes[3, k] * abs(ex))
        hv = one / (boxes[4, k] * abs(ey))
        hw = one / (boxes[5, k] * abs(ez))
        near = max(-u - hu, max(-v - hv, -w - hw))
        far = min(-u + hu, min(-v + hv, -w + hw))
        length = far - near
        total += boxes[6, k] * (length if length > zero else zero)
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_SUM)
def value_at(ellipsoids, cylinders, boxes, sx, sy, sz, x, y, z):
    """Sum the additive values of the shapes around a point; tables as in ``line_integral``."""
    one = np.float32(1.0)
    zero = np.float32(0.0)
    px, py, pz = np.float32(x), np.float32(y), np.float32(z)
    mx, my, mz = np.float32(sx), np.float32(sy), np.float32(sz)
    total = zero
    for k in range(ellipsoids.shape[1]):
        f = ellipsoids[7, k]
        u = (px + f * mx - ellipsoids[0, k]) * ellipsoids[3, k]
        v = (py + f * my - ellipsoids[1, k]) * ellipsoids[4, k]
        w = (pz + f * mz - ellipsoids[2, k]) * ellipsoids[5, k]
        total += ellipsoids[6, k] if u * u + v * v + w * w < one else zero
    for k in range(cylinders.shape[1]):
        f = cylinders[7, k]
        u = (px + f * mx - cylinders[0, k]) * cylinders[3, k]
        v = (py + f * my - cylinders[1, k]) * cylinders[4, k]
        w = (pz + f * mz - cylinders[2, k]) * cylinders[5, k]
        total += cylinders[6, k] if (u * u + v * v < one) & (w * w < one) else zero
    for k in range(boxes.shape[1]):
        f = boxes[7, k]
        u = (px + f * mx - boxes[0, k]) * boxes[3, k]
        v = (py + f * my - boxes[1, k]) * boxes[4, k]
        w = (pz + f * mz - boxes[2, k]) * boxes[5, k]
        inside = (u * u < one) & (v * v < one) & (w * w < one)
        total += boxes[6, k] if inside else zero
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def add_shape(shape, value, x_mm, y_mm, z_mm, reach_mm, n_sub, out):
    """Add a shape to voxels, supersampling those that its surface may cut.

    ``reach_mm`` is half a voxel's diagonal: no surface lies within a voxel whose centre is
    further away than that, measured by the shortest semi-axis.
    """
    margin = reach_mm * max(shape[4], max(shape[5], shape[6]))
    hx = 0.5 * (x_mm[1] - x_mm[0]) if x_mm.size > 1 else 0.0
    hy = 0.5 * (y_mm[1] - y_mm[0]) if y_mm.size > 1 else 0.0
    hz = 0.5 * (z_mm[1] - z_mm[0]) if z_mm.size > 1 else 0.0
    for i in range(x_mm.size):
        if (abs(x_mm[i] - shape[1]) - abs(hx)) * shape[4] > 1.0:
            continue
        for j in range(y_mm.size):
            if (abs(y_mm[j] - shape[2]) - abs(hy)) * shape[5] > 1.0:
                continue
            for k in range(z_mm.size):
                q = level(shape, x_mm[i], y_mm[j], z_mm[k])
                if q > 1.0 + margin:
                    continue
                if q < 1.0 - margin:
                    out[i, j, k] += value
                    continue
                n_in = 0
                for a in range(n_sub):
                    x = x_mm[i] + hx * ((2 * a + 1) / n_sub - 1.0)
                    for b in range(n_sub):
                        y = y_mm[j] + hy * ((2 * b + 1) / n_sub - 1.0)
                        for c in range(n_sub):
                            z = z_mm[k] + hz * ((2 * c + 1) / n_sub - 1.0)
                            if is_inside(shape, x, y, z):
                                n_in += 1
                out[i, j, k] += value * (n_in / n_sub**3)


@njit(cache=True, nogil=True, error_model="numpy")
def set_label(shape, label, x_mm, y_mm, z_mm, out):
    """Give a label to the voxels whose centre lies in a shape."""
    for i in range(x_mm.size):
        if abs(x_mm[i] - shape[1]) * shape[4] >= 1.0:
            continue
        for j in range(y_mm.size):
            if abs(y_mm[j] - shape[2]) * shape[5] >= 1.0:
                continue
            for k in range(z_mm.size):
                if is_inside(shape, x_mm[i], y_mm[j], z_mm[k]):
                    out[i, j, k] = label


# ---- where decays happen


@njit(cache=True, nogil=True, error_model="numpy")
def make_alias(weight, accept, other):
    """Fill an alias table (Vose 1991) for drawing ``i`` in proportion to ``weight[i]``."""
    n = weight.size
    total = 0.0
    for i in range(n):
        total += weight[i]
    if total <= 0.0:
        for i in range(n):
            accept[i] = 1.0
            other[i] = i
        return
    scaled = np.empty(n, np.float64)
    small = np.empty(n, np.int64)
    large = np.empty(n, np.int64)
    n_small = 0
    n_large = 0
    for i in range(n):
        scaled[i] = weight[i] * n / total
        if scaled[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        i = small[n_small]
        j = large[n_large - 1]
        accept[i] = scaled[i]
        other[i] = j
        scaled[j] -= 1.0 - scaled[i]
        if scaled[j] < 1.0:
            n_large -= 1
            small[n_small] = j
            n_small += 1
    while n_large > 0:
        n_large -= 1
        accept[large[n_large]] = 1.0
        other[large[n_large]] = large[n_large]
    while n_small > 0:
        n_small -= 1
        accept[small[n_small]] = 1.0
        other[small[n_small]] = small[n_small]


@njit(cache=True, nogil=True, error_model="numpy")
def draw_alias(state, accept, other):
    """Draw an index from an alias table."""
    u = uniform(state) * accept.size
    i = int(u)
    return i if u - i < accept[i] else int(other[i])


@njit(cache=True, nogil=True, error_model="numpy")
def draw_point(state, shape):
    """Draw a point uniformly from a shape."""
    u = 2.0 * uniform(state) - 1.0
    v = 2.0 * uniform(state) - 1.0
    w = 2.0 * uniform(state) - 1.0
    if shape[0] == 0.0:
        while u * u + v * v + w * w >= 1.0:
            u = 2.0 * uniform(state) - 1.0
            v = 2.0 * uniform(state) - 1.0
            w = 2.0 * uniform(state) - 1.0
    elif shape[0] == 1.0:
        while u * u + v * v >= 1.0:
            u = 2.0 * uniform(state) - 1.0
            v = 2.0 * uniform(state) - 1.0
    return shape[1] + u / shape[4], shape[2] + v / shape[5], shape[3] + w / shape[6]


@njit(cache=True, nogil=True, error_model="numpy")
def share_left(state, sources, activity, holes, hole_activity, x, y, z):
    """Decide whether a decay drawn from the positive shapes survives the negative ones."""
    removed = 0.0
    for k in range(holes.shape[0]):
        if is_inside(holes[k], x, y, z):
            removed -= hole_activity[k]
    if removed == 0.0:
        return True
    present = 0.0
    for k in range(sources.shape[0]):
        if is_inside(sources[k], x, y, z):
            present += activity[k]
    return uniform(state) * present < present - removed


@njit(cache=True, nogil=True, error_model="numpy")
def is_in_box(box, x, y, z):
    """Say whether a point lies in ``box`` = (x0, x1, y0, y1, z0, z1)."""
    return box[0] <= x < box[1] and box[2] <= y < box[3] and box[4] <= z < box[5]


# ---- the detector: flat blocks on a polygon


@njit(cache=True, nogil=True, error_model="numpy")
def distance_to_ring(radius, x, y, dx, dy):
    """Give the way from a point inside a cylinder around z to its wall, mm; inf along z."""
    a = dx * dx + dy * dy
    if a < 1e-12:
        return math.inf
    b = x * dx + y * dy
    return (-b + math.sqrt(max(0.0, b * b - a * (x * x + y * y - radius * radius)))) / a


@njit(cache=True, nogil=True, error_model="numpy")
def block_at(det, x, y):
    """Give the block in whose sector of the ring a point lies."""
    n_blocks = int(det[6])
    turn = (math.atan2(y, x) - det[11]) * det[12] * n_blocks / (2.0 * math.pi)
    return math.floor(turn + 0.5) % n_blocks


@njit(cache=True, nogil=True, error_model="numpy")
def crystal_in_block(det, block_cos_sin, block, x, y, z, pad):
    """Give the crystal of a block that holds a point in the scanner's frame, or -1.

    ``det`` holds, in this order: front radius, crystal length, transaxial pitch, axial pitch,
    transaxial size, axial size, blocks, crystals a block, units, rings a unit, gap rings,
    angle of block 0, sense, 1/mm, outer radius, tan of half a sector. With ``pad`` a point
    between two crystals belongs to the nearest and the depth is not asked.
    """
    c = block_cos_sin[block, 0]
    s = block_cos_sin[block, 1]
    across = det[12] * (y * c - x * s) / det[2] + 0.5 * det[7]
    if across < 0.0 or across >= det[7]:
        return -1
    k = int(across)
    if not pad:
        if abs(across - k - 0.5) * det[2] >= 0.5 * det[4]:
            return -1
        depth = x * c + y * s - det[0]
        if depth < 0.0 or depth >= det[1]:
            return -1
    n_rows = int(det[9])
    rows_per_unit = n_rows + int(det[10])
    n_slots = int(det[8]) * rows_per_unit - int(det[10])
    ring = z / det[3] + 0.5 * n_slots
    if ring < 0.0 or ring >= n_slots:
        return -1
    slot = int(ring)
    if not pad and abs(ring - slot - 0.5) * det[3] >= 0.5 * det[5]:
        return -1
    unit = slot // rows_per_unit
    row = slot - unit * rows_per_unit
    if row >= n_rows:
        return -1
    return ((unit * n_rows + row) * int(det[6]) + block) * int(det[7]) + k


@njit(cache=True, nogil=True, error_model="numpy")
def detect(state, det, block_cos_sin, stopping, x, y, z, dx, dy, dz):
    """Follow a photon into the blocks until it interacts in a crystal.

    Delta tracking (Woodcock 1965): steps as if all were crystal, and no interaction where the
    point lies in a gap. ``stopping`` is relative to that at 511 keV. Returns the crystal (-1
    if the photon leaves) and the way, mm.
    """
    t = distance_to_ring(det[0], x, y, dx, dy)
    half_length = 0.5 * det[3] * (det[8] * (det[9] + det[10]) - det[10])
    if not abs(z + t * dz) < half_length:
        return -1, 0.0
    free = 1.0 / (det[13] * stopping)
    block = -1
    while True:
        t += exponential(state) * free
        px = x + t * dx
        py = y + t * dy
        if px * px + py * py >= det[14] * det[14]:
            return -1, 0.0
        if block >= 0:
            c = block_cos_sin[block, 0]
            s = block_cos_sin[block, 1]
            if abs(py * c - px * s) > det[15] * (px * c + py * s):
                block = -1  # it has gone into a neighbour's sector
        if block < 0:
            block = block_at(det, px, py)
        crystal = crystal_in_block(det, block_cos_sin, block, px, py, z + t * dz, False)
        if crystal >= 0:
            return crystal, t


@njit(cache=True, nogil=True, error_model="numpy")
def is_accepted(ring_xy, ring_slot, max_ring_difference, fov_radius, a, b):
    """Say whether the scanner records a pair; the rule of ``Scanner.accepts``."""
    n = ring_xy.shape[0]
    if abs(ring_slot[a // n] - ring_slot[b // n]) > max_ring_difference:
        return False
    ax, ay = ring_xy[a % n, 0], ring_xy[a % n, 1]
    bx, by = ring_xy[b % n, 0], ring_xy[b % n, 1]
    length = math.sqrt((bx - ax) ** 2 + (by - ay) ** 2)
    return length > 0.0 and abs(ax * by - ay * bx) <= fov_radius * length


@njit(cache=True, nogil=True, error_model="numpy")
def tof_bin(tof, tof_ps):
    """Give the TOF bin of a difference of arrival times, or -1; ``tof``: bins, width, sigma."""
    t = tof_ps / tof[1] + 0.5 * tof[0]
    return int(t) if 0.0 <= t < tof[0] else -1


@njit(cache=True, nogil=True, error_model="numpy")
def store(i, tick, a, b, k, n_bins, out_tick, out_a, out_b, out_bin):
    """Write an event in canonical order: ``k`` rises with t_a - t_b."""
    out_tick[i] = tick
    if a < b:
        out_a[i], out_b[i], out_bin[i] = a, b, k
    else:
        out_a[i], out_b[i], out_bin[i] = b, a, n_bins - 1 - k


# ---- trues


@njit(cache=True, nogil=True, error_model="numpy")
def survival(
    ellipsoids, cylinders, boxes, det, reach, sx, sy, sz, x, y, z, dx, dy, dz
):  # fmt: skip
    """Give the probability that both photons of a line leave the body towards the detector.

    ``reach`` holds the detector's half length and the largest accepted difference of z, mm.
    """
    t1 = distance_to_ring(det[0], x + sx, y + sy, dx, dy)
    t2 = distance_to_ring(det[0], x + sx, y + sy, -dx, -dy)
    z1 = z + sz + t1 * dz
    z2 = z + sz - t2 * dz
    if not (abs(z1) < reach[0] and abs(z2) < reach[0] and abs(z1 - z2) < reach[1]):
        return 0.0
    depth = line_integral(ellipsoids, cylinders, boxes, sx, sy, sz, x, y, z, dx, dy, dz)
    return math.exp(-depth)


@njit(cache=True, nogil=True, error_model="numpy")
def measure_directions(
    state, cells, n_samples, grid, n_phi, n_cos, cos_max, sources, ellipsoids, cylinders, boxes,
    det, reach, shift, out,
):  # fmt: skip
    """Find for each of ``cells`` the largest sampled survival of each bin of directions.

    Points are taken from the activity where a few tries find some, else from the whole cell.
    """
    for cell in cells:
        k = cell % int(grid[8])
        j = cell // int(grid[8]) % int(grid[7])
        i = cell // (int(grid[8]) * int(grid[7]))
        for direction in range(n_phi * n_cos):
            best = 0.0
            for _ in range(n_samples):
                x = y = z = 0.0
                for _ in range(6):
                    x = grid[0] + (i + uniform(state)) / grid[3]
                    y = grid[1] + (j + uniform(state)) / grid[4]
                    z = grid[2] + (k + uniform(state)) / grid[5]
                    found = False
                    for s in range(sources.shape[0]):
                        if is_inside(sources[s], x, y, z):
                            found = True
                            break
                    if found:
                        break
                phi = math.pi * (direction // n_cos + uniform(state)) / n_phi
                dz = cos_max * (2.0 * (direction % n_cos + uniform(state)) / n_cos - 1.0)
                across = math.sqrt(1.0 - dz * dz)
                w = survival(
                    ellipsoids, cylinders, boxes, det, reach, shift[0], shift[1], shift[2],
                    x, y, z, across * math.cos(phi), across * math.sin(phi), dz,
                )  # fmt: skip
                best = max(best, w)
            out[cell, direction] = max(out[cell, direction], best)


@njit(cache=True, nogil=True, error_model="numpy")
def make_alias_rows(weight, accept, other):
    """Fill an alias table for each row of ``weight``."""
    one_accept = np.empty(weight.shape[1], np.float64)
    one_other = np.empty(weight.shape[1], np.int32)
    one_weight = np.empty(weight.shape[1], np.float64)
    for i in range(weight.shape[0]):
        for k in range(weight.shape[1]):  # assigning whole rows takes 5 s to compile
            one_weight[k] = weight[i, k]
        make_alias(one_weight, one_accept, one_other)
        for k in range(weight.shape[1]):
            accept[i, k] = one_accept[k]
            other[i, k] = one_other[k]


@njit(cache=True, nogil=True, error_model="numpy")
def positron_offset(state, positron):
    """Draw how far an annihilation lies from its decay, mm (3 numbers).

    ``positron`` = share of the short component and the two inverse ranges, 1/mm, of the
    projected distribution sum C exp(-k |x|) of Levin and Hoffman 1999; a projection
    exp(-k |x|) belongs to the radial density k^2 r exp(-k r).
    """
    k = positron[1] if uniform(state) < positron[0] else positron[2]
    if not k > 0.0:
        return 0.0, 0.0, 0.0
    r = -math.log((1.0 - uniform(state)) * (1.0 - uniform(state))) / k
    x, y, z = isotropic(state)
    return r * x, r * y, r * z


@njit(cache=True, nogil=True, error_model="numpy")
def deflect(state, dx, dy, dz, cos_t, sin_t):
    """Turn a unit vector by the angle t, to an even side."""
    cos_p, sin_p = azimuth(state)
    across = math.sqrt(dx * dx + dy * dy)
    if across < 1e-9:
        sign = 1.0 if dz > 0.0 else -1.0
        return sin_t * cos_p, sin_t * sin_p, sign * cos_t
    u = sin_t * cos_p / across
    v = sin_t * sin_p / across
    x = dx * cos_t + dx * dz * u - dy * v
    y = dy * cos_t + dy * dz * u + dx * v
    z = dz * cos_t - across * across * u
    norm = 1.0 / math.sqrt(x * x + y * y + z * z)
    return x * norm, y * norm, z * norm


@njit(cache=True, nogil=True, error_model="numpy")
def generate_trues(
    state, n_proposals, shift_mm, piece_box, piece_source, piece_cell, sources, activity,
    holes, hole_activity, n_phi, n_cos, cos_max, bound, bound_accept, bound_other, ellipsoids,
    cylinders, boxes, det, block_cos_sin, reach, ring_xy, ring_slot, max_ring_difference,
    fov_radius, tof, efficiency, efficiency_max, positron, acollinearity_rad, out_tick, out_a,
    out_b, out_bin,
):  # fmt: skip
    """Make unscattered coincidences out of proposals, ``n_proposals`` a piece; return how many.

    A proposal is a decay in a piece of a shape (its box in one cell) and a direction, drawn in
    proportion to its ``bound``. A line of survival w then stands for w/bound events on
    average, so the bounds change the speed and never the outcome. Ticks are even over the rows
    of ``shift_mm``. Going piece by piece keeps the tables of a cell in the cache (3 times as
    fast as pieces in random order). Returns -1 if the output is too short.
    """
    n_out = 0
    n_ticks = shift_mm.shape[0]
    i = 0
    left = 0
    while True:
        while left == 0:
            if i == n_proposals.size:
                return n_out
            left = n_proposals[i]
            i += 1
        left -= 1
        x = piece_box[i - 1, 0] + uniform(state) * (piece_box[i - 1, 1] - piece_box[i - 1, 0])
        y = piece_box[i - 1, 2] + uniform(state) * (piece_box[i - 1, 3] - piece_box[i - 1, 2])
        z = piece_box[i - 1, 4] + uniform(state) * (piece_box[i - 1, 5] - piece_box[i - 1, 4])
        if not is_inside(sources[piece_source[i - 1]], x, y, z):
            continue
        if not share_left(state, sources, activity, holes, hole_activity, x, y, z):
            continue
        cell = piece_cell[i - 1]
        u = uniform(state) * bound.shape[1]
        direction = int(u)
        if u - direction >= bound_accept[cell, direction]:
            direction = int(bound_other[cell, direction])
        phi = math.pi * (direction // n_cos + uniform(state)) / n_phi
        dz = cos_max * (2.0 * (direction % n_cos + uniform(state)) / n_cos - 1.0)
        across = math.sqrt(1.0 - dz * dz)
        dx = across * math.cos(phi)
        dy = across * math.sin(phi)
        tick = int(uniform(state) * n_ticks)
        sx, sy, sz = shift_mm[tick, 0], shift_mm[tick, 1], shift_mm[tick, 2]
        w = survival(ellipsoids, cylinders, boxes, det, reach, sx, sy, sz, x, y, z, dx, dy, dz)
        n_copies = int(w / bound[cell, direction] + uniform(state))
        for _ in range(n_copies):
            rx, ry, rz = positron_offset(state, positron)
            px, py, pz = x + sx + rx, y + sy + ry, z + sz + rz
            c1, t1 = detect(state, det, block_cos_sin, 1.0, px, py, pz, dx, dy, dz)
            if c1 < 0 or uniform(state) * efficiency_max >= efficiency[c1]:
                continue
            ex, ey, ez = -dx, -dy, -dz
            if acollinearity_rad > 0.0:
                turn = acollinearity_rad * math.sqrt(2.0 * exponential(state))
                # small angles: sine and cosine to 1e-9
                ex, ey, ez = deflect(state, ex, ey, ez, 1.0 - 0.5 * turn * turn, turn)
            c2, t2 = detect(state, det, block_cos_sin, 1.0, px, py, pz, ex, ey, ez)
            if c2 < 0 or uniform(state) * efficiency_max >= efficiency[c2]:
                continue
            if not is_accepted(ring_xy, ring_slot, max_ring_difference, fov_radius, c1, c2):
                continue
            blur, _ = normal_pair(state)
            b = tof_bin(tof, (t1 - t2) / _C_MM_PS + tof[2] * blur)
            if b < 0:
                continue
            if n_out == out_tick.size:
                return -1
            store(n_out, tick, c1, c2, b, int(tof[0]), out_tick, out_a, out_b, out_bin)
            n_out += 1


# ---- randoms


@njit(cache=True, nogil=True, error_model="numpy")
def generate_randoms(
    state, n, n_ticks, body_share, body_accept, body_other, crystal_accept, crystal_other,
    ring_xy, ring_slot, max_ring_difference, fov_radius, n_bins,
    out_tick, out_a, out_b, out_bin,
):  # fmt: skip
    """Make random coincidences out of ``n`` pairs of independent singles; return how many.

    A single comes from the body with probability ``body_share``, else from the crystals' own
    radioactivity.
    """
    n_out = 0
    for _ in range(n):
        if uniform(state) < body_share:
            a = draw_alias(state, body_accept, body_other)
        else:
            a = draw_alias(state, crystal_accept, crystal_other)
        if uniform(state) < body_share:
            b = draw_alias(state, body_accept, body_other)
        else:
            b = draw_alias(state, crystal_accept, crystal_other)
        if not is_accepted(ring_xy, ring_slot, max_ring_difference, fov_radius, a, b):
            continue
        if n_out == out_tick.size:
            return -1
        tick = int(uniform(state) * n_ticks)
        k = int(uniform(state) * n_bins)
        store(n_out, tick, a, b, k, n_bins, out_tick, out_a, out_b, out_bin)
        n_out += 1
    return n_out


# ---- photons with scatter


@njit(cache=True, nogil=True, error_model="numpy")
def klein_nishina_total(a):
    """Give the Klein-Nishina cross-section in units of 2 pi r_e^2; ``a`` = E / 511 keV."""
    log = math.log(1.0 + 2.0 * a)
    return (
        (1.0 + a) / (a * a) * (2.0 * (1.0 + a) / (1.0 + 2.0 * a) - log / a)
        + log / (2.0 * a)
        - (1.0 + 3.0 * a) / (1.0 + 2.0 * a) ** 2
    )


@njit(cache=True, nogil=True, error_model="numpy")
def draw_compton_cosine(state, a):
    """Draw the cosine of a Compton scatter from the Klein-Nishina formula (by rejection)."""
    while True:
        c = 2.0 * uniform(state) - 1.0
        p = 1.0 / (1.0 + a * (1.0 - c))
        if uniform(state) < 0.5 * p * p * (p + 1.0 / p - 1.0 + c * c):
            return c


@njit(cache=True, nogil=True, error_model="numpy")
def follow_photon(
    state, ellipsoids, cylinders, boxes, mu_max, body_bounds, det, block_cos_sin, energy,
    sx, sy, sz, x, y, z, dx, dy, dz,
):  # fmt: skip
    """Follow a 511 keV photon through the body into a crystal.

    ``energy`` = lower and upper edge of the window, smallest energy worth following, sigma at
    511 keV (all in units of 511 keV) and the largest number of scatters. Water-like matter:
    every interaction is a Compton scatter, and mu follows the Klein-Nishina cross-section.
    Returns crystal (-1 if lost), way in mm, and the number of scatters.
    """
    a = 1.0
    way = 0.0
    n_scatters = 0
    full = klein_nishina_total(1.0)
    ratio = 1.0
    while True:
        step = exponential(state) / (mu_max * ratio)
        nx, ny, nz = x + step * dx, y + step * dy, z + step * dz
        if not is_in_box(body_bounds, nx, ny, nz) or (nx + sx) ** 2 + (ny + sy) ** 2 >= (
            det[0] * det[0]
        ):
            break  # the body ends before: no interaction up to here, nor beyond
        x, y, z = nx, ny, nz
        way += step
        here = value_at(ellipsoids, cylinders, boxes, sx, sy, sz, x, y, z)
        if uniform(state) * mu_max >= here:
            continue
        c = draw_compton_cosine(state, a)
        a = a / (1.0 + a * (1.0 - c))
        n_scatters += 1
        if a < energy[2] or n_scatters > energy[4]:
            return -1, 0.0, n_scatters
        ratio = klein_nishina_total(a) / full
        dx, dy, dz = deflect(state, dx, dy, dz, c, math.sqrt(max(0.0, 1.0 - c * c)))
    px, py, pz = x + sx, y + sy, z + sz
    stopping = 1.0
    if n_scatters > 0:
        # the photoelectric part, 34 % in LSO (Melcher 2000, J Nucl Med 41:1051), goes as E^-2.8
        stopping = 0.34 * a**-2.8 + 0.66 * ratio
    crystal, t = detect(state, det, block_cos_sin, stopping, px, py, pz, dx, dy, dz)
    if crystal < 0:
        return -1, 0.0, n_scatters
    if n_scatters > 0:
        blur, _ = normal_pair(state)
        seen = a + energy[3] * math.sqrt(a) * blur
        if seen < energy[0] or seen > energy[1]:
            return -1, 0.0, n_scatters
    return crystal, way + t, n_scatters


@njit(cache=True, nogil=True, error_model="numpy")
def track_decays(
    state, n, shift_mm, box, source_accept, source_other, sources, activity,
    holes, hole_activity, ellipsoids, cylinders, boxes, mu_max, body_bounds, det,
    block_cos_sin, energy, ring_xy, ring_slot, max_ring_difference, fov_radius, positron,
    acollinearity_rad,
    singles, n_by_scatters, out_tick, out_a, out_b, out_ps,
):  # fmt: skip
    """Follow both photons of ``n`` decays, event by event; keep the scattered coincidences.

    Adds to ``singles`` (per crystal of one photon a decay) and to ``n_by_scatters[i, j]``, the
    accepted coincidences whose photons scattered i and j times. Events come out with the
    difference of arrival times before timing blur, ps, and with ``a < b``. Returns their
    number, or -1 if the output is too short.
    """
    n_out = 0
    n_ticks = shift_mm.shape[0]
    for _ in range(n):
        k = draw_alias(state, source_accept, source_other)
        x, y, z = draw_point(state, sources[k])
        if not is_in_box(box, x, y, z):
            continue
        if not share_left(state, sources, activity, holes, hole_activity, x, y, z):
            continue
        tick = int(uniform(state) * n_ticks)
        sx, sy, sz = shift_mm[tick, 0], shift_mm[tick, 1], shift_mm[tick, 2]
        rx, ry, rz = positron_offset(state, positron)
        x, y, z = x + rx, y + ry, z + rz
        dx, dy, dz = isotropic(state)
        a, way_a, n_a = follow_photon(
            state, ellipsoids, cylinders, boxes, mu_max, body_bounds, det, block_cos_sin,
            energy, sx, sy, sz, x, y, z, dx, dy, dz,
        )  # fmt: skip
        if a < 0:
            continue
        singles[a] += 1
        turn = acollinearity_rad * math.sqrt(2.0 * exponential(state))
        dx, dy, dz = deflect(state, -dx, -dy, -dz, 1.0 - 0.5 * turn * turn, turn)
        b, way_b, n_b = follow_photon(
            state, ellipsoids, cylinders, boxes, mu_max, body_bounds, det, block_cos_sin,
            energy, sx, sy, sz, x, y, z, dx, dy, dz,
        )  # fmt: skip
        if b < 0 or not is_accepted(ring_xy, ring_slot, max_ring_difference, fov_radius, a, b):
            continue
        n_by_scatters[n_a, n_b] += 1
        if n_a + n_b == 0:
            continue
        if n_out == out_tick.size:
            return -1
        out_tick[n_out] = tick
        out_a[n_out], out_b[n_out] = min(a, b), max(a, b)
        way = way_a - way_b if a < b else way_b - way_a
        out_ps[n_out] = way / _C_MM_PS
        n_out += 1
    return n_out


@njit(cache=True, nogil=True, error_model="numpy")
def blur_scatter(
    state, n_ticks, tick, a, b, ps, tof, efficiency, efficiency_max,
    out_tick, out_a, out_b, out_bin,
):  # fmt: skip
    """Apply timing blur and crystal efficiencies to scattered events; return how many stay."""
    n_out = 0
    for i in range(a.size):
        both = efficiency[a[i]] * efficiency[b[i]]
        if uniform(state) * efficiency_max * efficiency_max >= both:
            continue
        blur, _ = normal_pair(state)
        k = tof_bin(tof, ps[i] + tof[2] * blur)
        if k < 0:
            continue
        out_tick[n_out] = tick[i] % n_ticks
        out_a[n_out], out_b[n_out], out_bin[n_out] = a[i], b[i], k
        n_out += 1
    return n_out


@njit(cache=True, nogil=True, error_model="numpy")
def resample_scatter(
    state, n, n_ticks, pool_a, pool_b, pool_ps, jitter_mm, jitter_ps, ring_xy, ring_slot,
    ring_z, max_ring_difference, fov_radius, det, block_cos_sin, tof, efficiency,
    efficiency_max, out_tick, out_a, out_b, out_bin,
):  # fmt: skip
    """Draw ``n`` scattered events from a pool with jitter, a kernel density; return how many.

    Both ends move by a Gaussian along the ring and the axis; a draw that falls into a gap or
    outside the acceptance is repeated, so that the pool's rate is kept.
    """
    n_out = 0
    n_ring = ring_xy.shape[0]
    n_bins = int(tof[0])
    for _ in range(n):
        i = int(uniform(state) * pool_a.size)
        a0, b0 = pool_a[i], pool_b[i]
        a = b = -1
        for _ in range(50):
            a = moved(state, det, block_cos_sin, ring_xy, ring_z, n_ring, a0, jitter_mm)
            b = moved(state, det, block_cos_sin, ring_xy, ring_z, n_ring, b0, jitter_mm)
            if (
                a >= 0
                and b >= 0
                and is_accepted(ring_xy, ring_slot, max_ring_difference, fov_radius, a, b)
            ):
                break
            a = -1
        if a < 0:
            a, b = a0, b0
        if uniform(state) * efficiency_max * efficiency_max >= efficiency[a] * efficiency[b]:
            continue
        blur, move = normal_pair(state)
        k = tof_bin(tof, pool_ps[i] + tof[2] * blur + jitter_ps * move)
        if k < 0:
            continue
        if n_out == out_tick.size:
            return -1
        tick = int(uniform(state) * n_ticks)
        store(n_out, tick, a, b, k, n_bins, out_tick, out_a, out_b, out_bin)
        n_out += 1
    return n_out


@njit(cache=True, nogil=True, error_model="numpy")
def moved(state, det, block_cos_sin, ring_xy, ring_z, n_ring, crystal, jitter_mm):
    """Give a crystal near ``crystal``, or -1 where the jitter ends in a gap."""
    across, along = normal_pair(state)
    x, y = ring_xy[crystal % n_ring, 0], ring_xy[crystal % n_ring, 1]
    turn = jitter_mm * across / math.sqrt(x * x + y * y)
    c, s = math.cos(turn), math.sin(turn)
    half = 0.5 * det[3] * (det[8] * (det[9] + det[10]) - det[10])
    z = ring_z[crystal // n_ring] + jitter_mm * along + (uniform(state) - 0.5) * det[3]
    if z > half:
        z = 2.0 * half - z
    elif z < -half:
        z = -2.0 * half - z
    x, y = c * x - s * y, s * x + c * y
    return crystal_in_block(det, block_cos_sin, block_at(det, x, y), x, y, z, True)


# ---- order of time


@njit(cache=True, nogil=True, error_model="numpy")
def sort_by_tick(state, tick, a, b, k, label, n_per_tick, out_a, out_b, out_bin, out_label):
    """Sort events by tick (counting sort) and shuffle the events of each tick."""
    n_ticks = n_per_tick.size
    for i in range(tick.size):
        n_per_tick[tick[i]] += 1
    start = np.zeros(n_ticks + 1, np.int64)
    for t in range(n_ticks):
        start[t + 1] = start[t] + n_per_tick[t]
    place = start[:-1].copy()
    order = np.empty(tick.size, np.int64)
    for i in range(tick.size):
        order[place[tick[i]]] = i
        place[tick[i]] += 1
    for t in range(n_ticks):
        for i in range(start[t + 1] - 1, start[t], -1):
            j = start[t] + int(uniform(state) * (i - start[t] + 1))
            order[i], order[j] = order[j], order[i]
    for i in range(tick.size):
        j = order[i]
        out_a[i], out_b[i], out_bin[i], out_label[i] = a[j], b[j], k[j], label[j]
