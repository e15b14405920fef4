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
LONGEST_MM = 8.0  # largest move of a round
NEAR_MM = 3.0  # moves over which the score is nearly a straight line
SLOPE_EVENTS = 500_000  # enough to know the score's slope to 0.5 %


@dataclass(frozen=True, eq=False)
class Places:
    """The template's place in each window, its standard error, mm, and the events inside."""

    place: F64  # (n, 3), NaN without events
    error: F64  # (n, 3)
    counts: I64
    slope: F64 | None = None  # of the mean score of an event, (3, 3), if it was measured


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Events by class of direction, in each class by time: a class's table stays in cache."""

    time_ms: NDArray[np.int32]
    point: NDArray[np.float32]  # x, y, z, mm, and weight
    start: I64  # of each class, and the end of the last one

    def event_edges(self, edge_ms: I64) -> I64:
        """Give the first event at or after each time, by class. Shape (n_directions, n)."""
        edge = edge_ms.astype(np.int32)
        parts = [
            a + np.searchsorted(self.time_ms[a:b], edge, side="left")
            for a, b in zip(self.start[:-1], self.start[1:], strict=True)
        ]
        return np.stack(parts).astype(np.int64)


def _sort(events: RegionEvents) -> _Sorted:
    count = np.bincount(events.direction, minlength=len(events.covariance))
    start = np.concatenate(([0], np.cumsum(count))).astype(np.int64)
    time_ms = np.empty(len(events), np.int32)
    point = np.empty((len(events), 4), np.float32)
    _kernels.sort_by_direction(
        events.time_ms, events.point_mm, events.weight, events.direction,
        start[:-1].copy(), time_ms, point,
    )  # fmt: skip
    return _Sorted(time_ms, point, start)


def _sums(
    point: NDArray[np.float32],
    event: I64,
    template: Template,
    place: F64,
    scale: F64,
    active: NDArray[np.bool_],
    threads: int,
) -> tuple[F64, F64, I64]:
    """Sum scores over windows; a task owns whole windows, so threads change no bit."""
    n = len(place)
    score, square = np.zeros((n, 3)), np.zeros((n, 3, 3))
    inside = np.zeros(n, np.int64)

    def run(first: int, last: int) -> None:
        _kernels.score_windows(
            point,
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

    if threads <= 1:
        run(0, n)
    else:
        # Tasks of about as many active windows each: the others cost nothing.
        share = np.concatenate(([0], np.cumsum(active)))
        goal = np.linspace(0, share[-1], min(2 * threads, n) + 1)[1:-1]
        cuts = [0, *np.searchsorted(share, goal).tolist(), n]
        with ThreadPoolExecutor(max_workers=threads) as pool:
            list(pool.map(run, cuts[:-1], cuts[1:]))
    return score, square, inside


def solve_places(
    events: RegionEvents,
    template: Template,
    edges: I64,
    start: F64,
    scale: F64,
    threads: int,
    *,
    slope: F64 | None = None,
    has_error: bool = True,
    max_steps: int = 25,
) -> Places:
    """Bring the score of every window to zero.

    Fisher scoring, whose slope is replaced by the secant's as soon as all windows together
    have shown how the mean score of an event goes with the place: with a template that does
    not fit yet, the information is not the slope, and the rounds would be twice as many.

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
    slope
        Of the mean score of an event, from an earlier call; it saves a round. Shape (3, 3).
    has_error
        False leaves the standard errors out, which cost as much as some rounds.
    max_steps
        Rounds at most.
    """
    place = np.ascontiguousarray(start, dtype=np.float64).copy()
    scale = np.ascontiguousarray(scale, dtype=np.float64)
    n = len(place)
    ordered = _sort(events)
    event = ordered.event_edges(edges)
    active = np.ones(n, bool)
    score, square, inside = np.zeros((n, 3)), np.zeros((n, 3, 3)), np.zeros(n, np.int64)
    mean, change, pace = np.full((n, 3), np.nan), np.full((n, 3), np.nan), np.ones(n)
    for _ in range(max_steps):
        for total, new in zip(
            (score, square, inside),
            _sums(ordered.point, event, template, place, scale, active, threads),
            strict=True,
        ):
            total[active] = new[active]
        pooled = square.sum(axis=0) / max(int(inside.sum()), 1)  # information of one event
        if not np.linalg.det(pooled) > 1e-12 * np.trace(pooled) ** 3:
            break
        active &= inside >= MIN_EVENTS
        before = mean.copy()
        mean[active] = score[active] / inside[active, None]
        seen = active & np.isfinite(before).all(axis=1)
        measured = _secant(
            (mean - before)[seen], (change / scale[:, None])[seen], inside[seen], pooled
        )
        slope = slope if measured is None else measured
        move = np.linalg.solve(pooled if slope is None else slope, mean[active].T).T
        move *= (pace * scale)[active, None]
        length = np.linalg.norm(move, axis=1)
        # A window that swings to and fro takes shorter moves.
        last = np.linalg.norm(change[active], axis=1)
        swings = ((move * change[active]).sum(axis=1) < 0) & (length > 0.9 * last)
        pace[np.flatnonzero(active)[swings]] *= 0.5
        move *= np.minimum(1.0, LONGEST_MM / np.maximum(length, 1e-12))[:, None]
        place[active] += move
        change[active] = move
        # A fiftieth of the standard error is near enough; the moves shrink like a series.
        enough = np.minimum(0.02 * np.sqrt(np.linalg.inv(pooled)[2, 2] / inside[active]), 0.02)
        length /= pace[active]
        shrink = np.where(last > 0, length / np.maximum(last, 1e-12), 1.0)
        rate = np.clip(shrink, 0.3, 0.5)
        is_near = (shrink < 0.5) & (length * rate / (1.0 - rate) < enough)
        active[active] = (length > enough) & ~is_near
        if not active.any():
            break
    good = inside >= MIN_EVENTS
    # A window that lost the bladder has no position; its template ran into the box's wall.
    low, high = events.lower_mm + 10.0, events.upper_mm - 10.0
    good &= ((place > low) & (place < high)).all(axis=1)
    error = np.full((len(place), 3), np.inf)
    if good.any() and has_error:
        variance = _variance_per_event(
            ordered.point, event, template, place, scale, good, threads
        )
        error[good] = np.sqrt(variance / inside[good, None]) * scale[good, None]
    if has_error:
        good &= np.isfinite(error).all(axis=1)
    place[~good] = np.nan
    return Places(place, error, inside, slope)


def _secant(difference: F64, change: F64, n_events: I64, pooled: F64) -> F64 | None:
    """Measure the slope of the mean score over windows that were moved; None if unsure.

    Least squares over the windows, weighted by their events and drawn a little towards the
    information where the moves leave a direction open. Long moves, for which the score is no
    straight line, are left out.
    """
    near = np.linalg.norm(change, axis=1) < NEAR_MM
    if near.sum() < 10:
        return None
    weight = (n_events[near] / n_events[near].mean())[:, None]
    moves = (weight * change[near]).T @ change[near]
    cross = -(weight * difference[near]).T @ change[near]
    ridge = 1e-3 * np.trace(moves) / 3.0
    slope = np.linalg.solve((moves + ridge * np.eye(3)).T, (cross + ridge * pooled).T).T
    ratio = np.linalg.eigvals(np.linalg.solve(pooled, slope))
    is_sure = bool((np.abs(ratio.imag) < 0.3).all() and (ratio.real > 0.3).all())
    return slope if is_sure and bool((ratio.real < 3.0).all()) else None


def _variance_per_event(
    point: NDArray[np.float32],
    event: I64,
    template: Template,
    place: F64,
    scale: F64,
    good: NDArray[np.bool_],
    threads: int,
) -> F64:
    """Variance of the position from one event, along x, y, z, mm^2: the sandwich's diagonal.

    The score's slope is measured by moving the template by 1 mm each way, over enough windows
    for 500,000 events: with a template that does not fit, it differs from the information.
    """
    stride = max(int(len(point) / SLOPE_EVENTS), 1)
    chosen = np.zeros(len(place), bool)
    chosen[:: min(stride, max(len(place) // 20, 1))] = True
    chosen &= good
    if not chosen.any():
        chosen = good
    still = np.where(np.isfinite(place), place, 0.0)

    def sums(move: F64) -> tuple[F64, F64, int]:
        score, square, inside = _sums(
            point, event, template, still + move, scale, chosen, threads
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
