"""Where the template fits best in each window of time, and how surely."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode import _kernels
from listmode.motion.region import RegionEvents
from listmode.motion.template import Template

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

MIN_EVENTS = 3  # fewer events in a window give no position
SLOPE_EVENTS = 500_000  # enough to know the score's slope to 0.5 %


@dataclass(frozen=True, eq=False)
class Places:
    """The template's place in each window, its standard error, mm, and the events inside."""

    place: F64  # (n, 3), NaN without events
    error: F64  # (n, 3)
    counts: I64


def _sums(
    events: RegionEvents,
    template: Template,
    edges: I64,
    place: F64,
    scale: F64,
    active: NDArray[np.bool_],
    threads: int,
) -> tuple[F64, F64, I64]:
    """Sum scores over windows; a task owns whole windows, so threads change no bit."""
    n = len(place)
    score, square = np.zeros((n, 3)), np.zeros((n, 3, 3))
    inside = np.zeros(n, np.int64)
    event = events.event_edges(edges)
    cuts = np.linspace(0, n, min(4 * threads, n) + 1).astype(int)

    def run(first: int, last: int) -> None:
        _kernels.score_windows(
            events.point_mm,
            events.direction,
            events.weight,
            event,
            template.table,
            template.lower_mm,
            template.voxel_mm,
            place,
            scale,
            active,
            first,
            last,
            score,
            square,
            inside,
        )

    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        list(pool.map(run, cuts[:-1].tolist(), cuts[1:].tolist()))
    return score, square, inside


def solve_places(
    events: RegionEvents,
    template: Template,
    edges: I64,
    start: F64,
    scale: F64,
    threads: int,
    *,
    max_steps: int = 25,
) -> Places:
    """Bring the score of every window to zero by Fisher scoring.

    Parameters
    ----------
    events, template
        What is followed, and the density that its events should have.
    edges
        Ends of adjoining windows on the scan clock, ms. Shape (n + 1,), int64.
    start, scale
        Where to begin, mm, and the size relative to the template's. Shapes (n, 3) and (n,).
    threads
        Threads; the result has the same bits for any number.
    max_steps
        Rounds at most.
    """
    place = np.ascontiguousarray(start, dtype=np.float64).copy()
    scale = np.ascontiguousarray(scale, dtype=np.float64)
    n = len(place)
    active = np.ones(n, bool)
    score, square, inside = np.zeros((n, 3)), np.zeros((n, 3, 3)), np.zeros(n, np.int64)
    for _ in range(max_steps):
        for total, new in zip(
            (score, square, inside),
            _sums(events, template, edges, place, scale, active, threads),
            strict=True,
        ):
            total[active] = new[active]
        pooled = square.sum(axis=0) / max(int(inside.sum()), 1)  # information of one event
        if not np.linalg.det(pooled) > 1e-12 * np.trace(pooled) ** 3:
            break
        active &= inside >= MIN_EVENTS
        change = (
            np.linalg.solve(pooled, (score[active] / inside[active, None]).T).T
            * scale[active, None]
        )
        length = np.linalg.norm(change, axis=1)
        change *= np.minimum(1.0, 8.0 / np.maximum(length, 1e-12))[:, None]
        place[active] += change
        # A fiftieth of the standard error is near enough.
        enough = 0.02 * np.sqrt(np.linalg.inv(pooled)[2, 2] / inside[active])
        active[active] = length > np.minimum(enough, 0.02)
        if not active.any():
            break
    good = inside >= MIN_EVENTS
    # A window that lost the bladder has no position; its template ran into the box's wall.
    low, high = events.lower_mm + 10.0, events.upper_mm - 10.0
    good &= ((place > low) & (place < high)).all(axis=1)
    error = np.full((len(place), 3), np.inf)
    if good.any():
        variance = _variance_per_event(events, template, edges, place, scale, good, threads)
        error[good] = np.sqrt(variance / inside[good, None]) * scale[good, None]
    good &= np.isfinite(error).all(axis=1)
    place[~good] = np.nan
    return Places(place, error, inside)


def _variance_per_event(
    events: RegionEvents,
    template: Template,
    edges: I64,
    place: F64,
    scale: F64,
    good: NDArray[np.bool_],
    threads: int,
) -> F64:
    """Variance of the position from one event, along x, y, z, mm^2: the sandwich's diagonal.

    The score's slope is measured by moving the template by 1 mm each way, over enough windows
    for 500,000 events: with a template that does not fit, it differs from the information.
    """
    stride = max(int(len(events) / SLOPE_EVENTS), 1)
    chosen = np.zeros(len(place), bool)
    chosen[:: min(stride, max(len(place) // 20, 1))] = True
    chosen &= good
    if not chosen.any():
        chosen = good
    still = np.where(np.isfinite(place), place, 0.0)

    def sums(move: F64) -> tuple[F64, F64, int]:
        score, square, inside = _sums(
            events, template, edges, still + move, scale, chosen, threads
        )
        n = max(int(inside.sum()), 1)
        return score.sum(axis=0) / n, square.sum(axis=0) / n, n

    _, meat, n = sums(np.zeros(3))
    slope = np.empty((3, 3))
    for p, unit in enumerate(np.eye(3)):
        slope[:, p] = (sums(-unit)[0] - sums(unit)[0]) / 2.0
    if n < 200 or not np.linalg.det(slope) > 0:
        slope = meat
    if not np.linalg.det(slope) > 1e-12 * np.trace(slope) ** 3:
        return np.full(3, np.inf)  # too few events to tell a direction
    bread = np.linalg.inv(slope)
    return np.asarray(np.diag(bread @ meat @ bread.T))
