"""Compiled loops over events: arrays and scalars in, arrays out, no checks."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

B8 = NDArray[np.bool_]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@njit(cache=True, nogil=True)
def accumulate_positions(
    crystal_a: U32,
    crystal_b: U32,
    tof_bin: I16,
    event_row: I64,
    position_mm: F32,
    bin_half_length_mm: F32,
    lower_mm: F64,
    voxel_mm: float,
    zone_of_z: I64,
    image: U32,
    z_rows: U32,
    x_rows: U32,
    y_rows: U32,
    rejected: I64,
) -> None:
    """Histogram the most likely positions of events.

    ``event_row[r]`` up to ``event_row[r + 1]`` are the events of row ``r`` (a slice of time).
    ``rejected`` counts: unknown crystal, TOF bin out of range, position outside the grid.
    """
    n_crystals = position_mm.shape[0]
    n_bins = bin_half_length_mm.size
    nx, ny, nz = image.shape
    x0, y0, z0 = lower_mm[0], lower_mm[1], lower_mm[2]
    inverse = 1.0 / voxel_mm
    for row in range(event_row.size - 1):
        for e in range(event_row[row], event_row[row + 1]):
            a, b, k = crystal_a[e], crystal_b[e], tof_bin[e]
            if a >= n_crystals or b >= n_crystals:
                rejected[0] += 1
                continue
            if k < 0 or k >= n_bins:
                rejected[1] += 1
                continue
            ax, ay, az = position_mm[a, 0], position_mm[a, 1], position_mm[a, 2]
            dx = position_mm[b, 0] - ax
            dy = position_mm[b, 1] - ay
            dz = position_mm[b, 2] - az
            # Fraction of the way from a to b: half way plus the bin centre over the length.
            f = 0.5 + bin_half_length_mm[k] / math.sqrt(dx * dx + dy * dy + dz * dz)
            i = math.floor((ax + f * dx - x0) * inverse)
            j = math.floor((ay + f * dy - y0) * inverse)
            m = math.floor((az + f * dz - z0) * inverse)
            if i < 0 or j < 0 or m < 0 or i >= nx or j >= ny or m >= nz:
                rejected[2] += 1
                continue
            image[i, j, m] += 1
            z_rows[row, m] += 1
            zone = zone_of_z[m]
            x_rows[row, zone, i] += 1
            y_rows[row, zone, j] += 1


@njit(cache=True, nogil=True)
def collect_in_box(
    crystal_a: U32,
    crystal_b: U32,
    tof_bin: I16,
    tick_event: I64,
    first_tick: int,
    position_mm: F32,
    bin_half_length_mm: F32,
    lower_mm: F64,
    upper_mm: F64,
    n_azimuth: int,
    cos_edge: float,
    time_ms: I32,
    point_mm: F32,
    direction: U8,
) -> int:
    """Keep the events whose most likely position lies in a box; return how many.

    Directions are cut into ``n_azimuth`` equal sectors of [0, pi) and three classes of axial
    cosine (below ``-cos_edge``, between, above ``cos_edge``), the axial cosine taken for the
    sense of the LOR that has its azimuth in [0, pi).
    """
    n_crystals = position_mm.shape[0]
    n_bins = bin_half_length_mm.size
    n = 0
    for tick in range(tick_event.size - 1):
        for e in range(tick_event[tick], tick_event[tick + 1]):
            a, b, k = crystal_a[e], crystal_b[e], tof_bin[e]
            if a >= n_crystals or b >= n_crystals or k < 0 or k >= n_bins:
                continue
            ax, ay, az = position_mm[a, 0], position_mm[a, 1], position_mm[a, 2]
            dx = position_mm[b, 0] - ax
            dy = position_mm[b, 1] - ay
            dz = position_mm[b, 2] - az
            length = math.sqrt(dx * dx + dy * dy + dz * dz)
            f = 0.5 + bin_half_length_mm[k] / length
            z = az + f * dz
            if z < lower_mm[2] or z >= upper_mm[2]:
                continue
            x = ax + f * dx
            y = ay + f * dy
            if x < lower_mm[0] or x >= upper_mm[0] or y < lower_mm[1] or y >= upper_mm[1]:
                continue
            azimuth = math.atan2(dy, dx)
            cos_z = dz / length
            if azimuth < 0.0:
                azimuth += math.pi
                cos_z = -cos_z
            sector = min(int(azimuth / math.pi * n_azimuth), n_azimuth - 1)
            band = 0 if cos_z < -cos_edge else (2 if cos_z > cos_edge else 1)
            time_ms[n] = first_tick + tick
            point_mm[n, 0], point_mm[n, 1], point_mm[n, 2] = x, y, z
            direction[n] = 3 * sector + band
            n += 1
    return n


@njit(cache=True, nogil=True, inline="always")
def _look_up(table, d, u, v, w, out):
    """Interpolate the 4 columns of ``table[d]`` at voxel (u, v, w); False if outside."""
    i, j, k = int(u), int(v), int(w)
    if (
        u < 0.0
        or v < 0.0
        or w < 0.0
        or i >= table.shape[1] - 1
        or j >= table.shape[2] - 1
        or k >= table.shape[3] - 1
    ):
        return False
    fu, fv, fw = np.float32(u - i), np.float32(v - j), np.float32(w - k)
    one = np.float32(1.0)
    for c in range(4):
        out[c] = (one - fu) * (
            (one - fv) * ((one - fw) * table[d, i, j, k, c] + fw * table[d, i, j, k + 1, c])
            + fv * ((one - fw) * table[d, i, j + 1, k, c] + fw * table[d, i, j + 1, k + 1, c])
        ) + fu * (
            (one - fv)
            * ((one - fw) * table[d, i + 1, j, k, c] + fw * table[d, i + 1, j, k + 1, c])
            + fv
            * (
                (one - fw) * table[d, i + 1, j + 1, k, c]
                + fw * table[d, i + 1, j + 1, k + 1, c]
            )
        )
    return True


@njit(cache=True, nogil=True)
def sort_by_direction(
    time_ms: I32,
    point_mm: F32,
    weight: F32,
    direction: U8,
    place_of: I64,
    sorted_ms: I32,
    sorted_points: F32,
) -> None:
    """Order events by class of direction, in each class as they were; x, y, z, weight a row.

    ``place_of`` holds the place of each class's first event; afterwards, of the class's end.
    """
    for e in range(direction.size):
        n = place_of[direction[e]]
        place_of[direction[e]] = n + 1
        sorted_ms[n] = time_ms[e]
        for i in range(3):
            sorted_points[n, i] = point_mm[e, i]
        sorted_points[n, 3] = weight[e]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_scores(n, cell, part, t0, t1, t2, t3, t4, t5, t6, t7, total):
    """Add the scores of events and their products to 9 sums.

    ``t0`` to ``t7`` are one table from the 8 corners of cell 0 on, so that all share an index
    and the compiler gathers in vectors.
    """
    one = np.float32(1.0)
    s0 = s1 = s2 = 0.0
    q00 = q01 = q02 = q11 = q12 = q22 = 0.0
    for r in range(n):
        x = np.uint64(cell[r])
        y, z = x + np.uint64(1), x + np.uint64(2)
        fu, fv, fw, m = part[0, r], part[1, r], part[2, r], part[3, r]
        gu, gv, gw = one - fu, one - fv, one - fw
        e0, e1, e2, e3 = gu * gv, gu * fv, fu * gv, fu * fv
        w0, w1, w2, w3 = e0 * gw, e0 * fw, e1 * gw, e1 * fw
        w4, w5, w6, w7 = e2 * gw, e2 * fw, e3 * gw, e3 * fw
        gx = np.float64(
            m
            * (
                (w0 * t0[x] + w1 * t1[x] + w2 * t2[x] + w3 * t3[x])
                + (w4 * t4[x] + w5 * t5[x] + w6 * t6[x] + w7 * t7[x])
            )
        )
        gy = np.float64(
            m
            * (
                (w0 * t0[y] + w1 * t1[y] + w2 * t2[y] + w3 * t3[y])
                + (w4 * t4[y] + w5 * t5[y] + w6 * t6[y] + w7 * t7[y])
            )
        )
        gz = np.float64(
            m
            * (
                (w0 * t0[z] + w1 * t1[z] + w2 * t2[z] + w3 * t3[z])
                + (w4 * t4[z] + w5 * t5[z] + w6 * t6[z] + w7 * t7[z])
            )
        )
        s0 += gx
        s1 += gy
        s2 += gz
        q00 += gx * gx
        q01 += gx * gy
        q02 += gx * gz
        q11 += gy * gy
        q12 += gy * gz
        q22 += gz * gz
    total[0] += s0
    total[1] += s1
    total[2] += s2
    total[3] += q00
    total[4] += q01
    total[5] += q02
    total[6] += q11
    total[7] += q12
    total[8] += q22


@njit(cache=True, nogil=True)
def score_windows(
    point: F32,
    window_event: I64,
    table: F32,
    lower_mm: F64,
    voxel_mm: float,
    shift_mm: F64,
    scale: F64,
    active: B8,
    first: int,
    last: int,
    score: F64,
    square: F64,
    n_inside: I64,
) -> None:
    """Sum the template's score over the events of each window ``first <= w < last``.

    Rows of ``point`` are x, y, z and weight; ``window_event[d, w]`` up to
    ``window_event[d, w + 1]`` are the events of window ``w`` and class of directions ``d``:
    class after class, so that one class's table stays in the cache. An event at ``m`` is
    looked up at ``(m - shift) / scale``, the place it has in the template's own frame.
    ``score`` gets the sum of the weighted gradients (n, 3), ``square`` the sums of products of
    weighted gradients (n, 3, 3). Windows that are not active are left as they are.
    """
    n_directions, nx, ny, nz, _ = table.shape
    row, plane = 4 * nz, 4 * nz * ny
    end_u, end_v, end_w = nx - 1.0, ny - 1.0, nz - 1.0
    inverse = 1.0 / voxel_mm
    batch = 512
    cell, part = np.empty(batch, np.int64), np.empty((4, batch), np.float32)
    total = np.zeros((last - first, 9))
    for d in range(n_directions):
        flat = table[d].reshape(nx * plane)
        t0, t1, t2, t3 = flat[1:], flat[5:], flat[1 + row :], flat[5 + row :]
        t4, t5 = flat[1 + plane :], flat[5 + plane :]
        t6, t7 = flat[1 + plane + row :], flat[5 + plane + row :]
        for w in range(first, last):
            if not active[w]:
                continue
            f = inverse / scale[w]
            u0 = -shift_mm[w, 0] * f - lower_mm[0] * inverse
            v0 = -shift_mm[w, 1] * f - lower_mm[1] * inverse
            w0 = -shift_mm[w, 2] * f - lower_mm[2] * inverse
            begin, stop = window_event[d, w], window_event[d, w + 1]
            while begin < stop:
                n = 0
                for e in range(begin, min(begin + batch, stop)):
                    u = point[e, 0] * f + u0
                    v = point[e, 1] * f + v0
                    t = point[e, 2] * f + w0
                    i, j, k = np.int32(u), np.int32(v), np.int32(t)
                    cell[n] = i * plane + j * row + 4 * k
                    part[0, n] = u - i
                    part[1, n] = v - j
                    part[2, n] = t - k
                    part[3, n] = point[e, 3]
                    # Written always and counted if inside: a branch would be guessed wrong.
                    n += (
                        (u >= 0.0) & (v >= 0.0) & (t >= 0.0)
                        & (u < end_u) & (v < end_v) & (t < end_w)
                    )  # fmt: skip
                begin += batch
                _add_scores(n, cell, part, t0, t1, t2, t3, t4, t5, t6, t7, total[w - first])
                n_inside[w] += n
    for w in range(first, last):
        if active[w]:
            own = total[w - first]
            c = 3
            for p in range(3):
                score[w, p] += own[p]
                for q in range(p, 3):
                    square[w, p, q] += own[c]
                    if q > p:
                        square[w, q, p] += own[c]
                    c += 1


@njit(cache=True, nogil=True)
def log_densities(
    point_mm: F32,
    direction: U8,
    table: F32,
    lower_mm: F64,
    voxel_mm: float,
    shift_mm: F64,
    scale: F64,
    outside: F32,
    log_density: F64,
) -> None:
    """Give each event's log template density with the template moved by ``shift_mm[e]``."""
    inverse = 1.0 / voxel_mm
    g = np.empty(4, np.float32)
    for e in range(point_mm.shape[0]):
        one_over = 1.0 / scale[e]
        inside = _look_up(
            table,
            direction[e],
            ((point_mm[e, 0] - shift_mm[e, 0]) * one_over - lower_mm[0]) * inverse,
            ((point_mm[e, 1] - shift_mm[e, 1]) * one_over - lower_mm[1]) * inverse,
            ((point_mm[e, 2] - shift_mm[e, 2]) * one_over - lower_mm[2]) * inverse,
            g,
        )
        log_density[e] = g[0] if inside else outside[direction[e]]


@njit(cache=True, nogil=True)
def histogram_aligned(
    point_mm: F32,
    weight: F32,
    event_window: I64,
    shift_mm: F64,
    lower_mm: F64,
    voxel_mm: float,
    block_of_window: I64,
    image: F64,
) -> None:
    """Histogram events less their window's shift, in ``image[block]``; block -1 is left out."""
    inverse = 1.0 / voxel_mm
    _, nx, ny, nz = image.shape
    for w in range(event_window.size - 1):
        block = block_of_window[w]
        if block < 0:
            continue
        for e in range(event_window[w], event_window[w + 1]):
            i = math.floor((point_mm[e, 0] - shift_mm[w, 0] - lower_mm[0]) * inverse)
            j = math.floor((point_mm[e, 1] - shift_mm[w, 1] - lower_mm[1]) * inverse)
            k = math.floor((point_mm[e, 2] - shift_mm[w, 2] - lower_mm[2]) * inverse)
            if 0 <= i < nx and 0 <= j < ny and 0 <= k < nz:
                image[block, i, j, k] += weight[e]


@njit(cache=True, nogil=True)
def interpolate_bands(
    place_mm: F32, band: U8, first_mm: float, step_mm: float, table: F64, value: F32
) -> None:
    """Interpolate row ``band % 3`` of a table of evenly spaced places; the ends go on."""
    last = table.shape[1] - 1
    for e in range(value.size):
        u = min(max((place_mm[e] - first_mm) / step_mm, 0.0), float(last))
        i = min(int(u), last - 1)
        part = u - i
        row = band[e] % 3
        value[e] = (1.0 - part) * table[row, i] + part * table[row, i + 1]


@njit(cache=True, nogil=True)
def level_weights(point_mm: F32, weight: F32, centre_mm: F64, tilt: F64, new: F32) -> None:
    """Weigh events by exp(-tilt . (place - centre)), the exponent kept within 1."""
    for e in range(weight.size):
        along = 0.0
        for i in range(3):
            along += (point_mm[e, i] - centre_mm[i]) * tilt[i]
        new[e] = weight[e] * math.exp(-min(max(along, -1.0), 1.0))
