"""Compiled loops that draw the events of a moving bladder from pools of simulated ones."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

BLOCK_MS = 16  # for so long a pool is read on from a random place, which the cache likes
MARGIN = 1.25  # events are drawn so much more often than needed, to be accepted or not


@njit(cache=True, nogil=True)
def draw_events(
    rng: np.random.Generator,
    n_bladder: I64,
    n_body: I64,
    n_fixed: I64,
    centre_mm: F32,
    size: F32,
    semi_mm: F64,
    rate: F64,
    geometry: F64,
    node_z_mm: F64,
    blur_mm: F32,
    blur_direction: U8,
    body_mm: F32,
    body_direction: U8,
    shift_mm: F32,
    turn: F64,
    turn_of_ms: U8,
    pivot_mm: F64,
    layering: F32,
    fixed_mm: F32,
    fixed_direction: U8,
    lower_mm: F64,
    upper_mm: F64,
    time_ms: I32,
    point_mm: F32,
    direction: U8,
) -> int:
    """Write the events of each millisecond into the columns; return how many.

    A bladder event starts at a uniform place of the ellipsoid, is accepted with the relative
    sensitivity there, and is displaced by a residual of the pool of the nearest node (drawn
    in proportion to the distances). A body event is one of the pool, moved with the body; a
    fixed one is one of the pool. What falls outside the box is not written. Pools hold events
    in random order, so the next ones are as good as any.
    """
    n_nodes, n_blur = blur_mm.shape[0], blur_mm.shape[1]
    spacing = node_z_mm[1] - node_z_mm[0]
    largest = rate.max()
    n = 0
    p = np.empty(3)
    at = np.zeros(n_nodes + 2, np.int64)  # where each pool is read on
    for t in range(n_bladder.size):
        if t % BLOCK_MS == 0:
            for i in range(n_nodes):
                at[i] = int(rng.random() * n_blur)
            at[n_nodes] = int(rng.random() * body_mm.shape[0])
            at[n_nodes + 1] = int(rng.random() * fixed_mm.shape[0])
        m = turn[turn_of_ms[t]]
        for kind in range(3):
            count = n_bladder[t] if kind == 0 else (n_body[t] if kind == 1 else n_fixed[t])
            for _ in range(count):
                if kind == 0:
                    while True:
                        for i in range(3):
                            p[i] = 2.0 * rng.random() - 1.0
                        if p[0] * p[0] + p[1] * p[1] + p[2] * p[2] <= 1.0:
                            break
                    # A place of the wrong half changes sides: the density is 1 + layering * y.
                    if layering[t] != 0.0 and 2.0 * rng.random() > 1.0 + layering[t] * p[1]:
                        p[1] = -p[1]
                    for i in range(3):
                        p[i] = centre_mm[t, i] + size[t] * semi_mm[i] * p[i]
                    # The attenuation goes with the body; the geometry stays.
                    z, z_body = int(p[2]) + 450, int(p[2] - shift_mm[t, 2]) + 450
                    place = (p[2] - shift_mm[t, 2] - node_z_mm[0]) / spacing
                    place = min(max(place, 0.0), n_nodes - 1.0001)
                    node = int(place)
                    part = place - node
                    here = ((1.0 - part) * rate[node] + part * rate[node + 1]) / largest
                    if rng.random() < part:
                        node += 1
                    k = at[node]
                    at[node] = k + 1 if k + 1 < n_blur else 0
                    d = blur_direction[node, k]
                    here *= geometry[d % 3, z] / geometry[d % 3, z_body]
                    if rng.random() * MARGIN > here:
                        continue
                    for i in range(3):
                        p[i] += blur_mm[node, k, i]
                elif kind == 1:
                    k = at[n_nodes]
                    at[n_nodes] = k + 1 if k + 1 < body_mm.shape[0] else 0
                    for i in range(3):
                        p[i] = pivot_mm[i] + shift_mm[t, i]
                        for j in range(3):
                            p[i] += m[i, j] * (body_mm[k, j] - pivot_mm[j])
                    d = body_direction[k]
                    z, z_body = int(p[2]) + 450, int(body_mm[k, 2]) + 450
                    if z < 0 or z >= geometry.shape[1]:
                        continue
                    here = geometry[d % 3, z] / geometry[d % 3, z_body]
                    if rng.random() * MARGIN > here:
                        continue
                else:
                    k = at[n_nodes + 1]
                    at[n_nodes + 1] = k + 1 if k + 1 < fixed_mm.shape[0] else 0
                    for i in range(3):
                        p[i] = fixed_mm[k, i]
                    d = fixed_direction[k]
                inside = True
                for i in range(3):
                    inside = inside and lower_mm[i] <= p[i] < upper_mm[i]
                if inside:
                    time_ms[n] = t
                    for i in range(3):
                        point_mm[n, i] = p[i]
                    direction[n] = d
                    n += 1
    return n


@njit(cache=True, nogil=True)
def largest_change(trace_mm: F64, n_lag: int) -> F64:
    """Give the length of the difference of rows ``n_lag`` apart; zero before there are two."""
    out = np.zeros(trace_mm.shape[0])
    for i in range(n_lag, trace_mm.shape[0]):
        total = 0.0
        for j in range(trace_mm.shape[1]):
            total += (trace_mm[i, j] - trace_mm[i - n_lag, j]) ** 2
        out[i] = math.sqrt(total)
    return out


@njit(cache=True, nogil=True)
def sum_inside(
    time_ms: I32,
    point_mm: F32,
    centre_mm: F64,
    reach_mm: F64,
    first_ms: int,
    window_ms: int,
    total: F64,
) -> None:
    """Sum x, y, z and 1 over the events inside an ellipsoid, by window. Shape (n, 4)."""
    last = total.shape[0] - 1
    for e in range(time_ms.size):
        far = 0.0
        for i in range(3):
            far += ((point_mm[e, i] - centre_mm[i]) / reach_mm[i]) ** 2
        if far < 1.0:
            w = min(max((time_ms[e] - first_ms) // window_ms, 0), last)
            for i in range(3):
                total[w, i] += point_mm[e, i]
            total[w, 3] += 1.0
