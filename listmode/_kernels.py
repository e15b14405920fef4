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
def score_windows(
    point_mm: F32,
    direction: U8,
    weight: F32,
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

    An event at ``m`` is looked up at ``(m - shift) / scale``, the place it has in the
    template's own frame. ``score`` gets the sum of the weighted gradients (n, 3), ``square``
    the sums of products of weighted gradients (n, 3, 3). Windows that are not active are
    left as they are.
    """
    inverse = 1.0 / voxel_mm
    g = np.empty(4, np.float32)
    for w in range(first, last):
        if not active[w]:
            continue
        one_over = 1.0 / scale[w]
        sx, sy, sz = shift_mm[w, 0], shift_mm[w, 1], shift_mm[w, 2]
        for e in range(window_event[w], window_event[w + 1]):
            inside = _look_up(
                table,
                direction[e],
                ((point_mm[e, 0] - sx) * one_over - lower_mm[0]) * inverse,
                ((point_mm[e, 1] - sy) * one_over - lower_mm[1]) * inverse,
                ((point_mm[e, 2] - sz) * one_over - lower_mm[2]) * inverse,
                g,
            )
            if not inside:
                continue
            n_inside[w] += 1
            gx, gy, gz = weight[e] * g[1], weight[e] * g[2], weight[e] * g[3]
            score[w, 0] += gx
            score[w, 1] += gy
            score[w, 2] += gz
            square[w, 0, 0] += gx * gx
            square[w, 0, 1] += gx * gy
            square[w, 0, 2] += gx * gz
            square[w, 1, 1] += gy * gy
            square[w, 1, 2] += gy * gz
            square[w, 2, 2] += gz * gz
        square[w, 1, 0], square[w, 2, 0] = square[w, 0, 1], square[w, 0, 2]
        square[w, 2, 1] = square[w, 1, 2]


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
