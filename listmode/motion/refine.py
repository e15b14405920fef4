"""The time of a change, to the event, with its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from listmode import _kernels
from listmode.motion.steps import Series, StepFit, fit_steps
from listmode.motion.trace import FollowedBladder

F64 = NDArray[np.float64]

REACH_S = 20.0  # how far from the windows' answer single events are asked


def _interval(time_s: F64, log_likelihood: F64, width_s: F64) -> tuple[float, float, float]:
    """Median and central 95 % of the posterior of a time with a uniform prior.

    The likelihood is constant over each of the intervals that start at ``time_s`` and last
    ``width_s``.
    """
    mass = np.exp(log_likelihood - log_likelihood.max()) * width_s
    total = np.concatenate(([0.0], np.cumsum(mass))) / mass.sum()
    edges = np.append(time_s, time_s[-1] + width_s[-1])
    # Within an interval the mass is spread evenly, so straight lines invert it.
    keep = np.concatenate(([True], np.diff(total) > 0))
    low, middle, high = np.interp((0.025, 0.5, 0.975), total[keep], edges[keep])
    return float(middle), float(low), float(high)


def refine_by_events(
    followed: FollowedBladder,
    series: Series,
    fit: StepFit,
    index: int,
    time_s: float,
    low_s: float,
    high_s: float,
    window_s: float,
) -> tuple[float, float, float]:
    """Give the time of one step and its 95 % interval from single events, s.

    Each event near the step tells by the template's log density whether it fits the place
    before or the place after; the sums over both sides of every possible time are its
    log-likelihood.

    Parameters
    ----------
    followed
        Events and template.
    series, fit
        The trace's windows and the joint fit of all steps.
    index
        Which step of the fit.
    time_s, low_s, high_s
        Its time by windows, and the neighbouring steps or the scan's ends, s.
    window_s
        Length of a window, s.
    """
    reach = max(REACH_S, 3.0 * window_s)
    first = max(time_s - reach, (low_s + time_s) / 2.0)
    last = min(time_s + reach, (high_s + time_s) / 2.0)
    events = followed.events
    a, b = events.event_edges(np.array([first * 1000.0, last * 1000.0]).astype(np.int64))
    if b - a < 2:
        return time_s, first, last
    when = events.time_ms[a:b] / 1000.0 + 0.0005
    before = followed.centre_mm + _place_before(series, fit, index, when)
    shift = fit.shift_mm[index]
    scale = np.interp(when, followed.trace.time_ms / 1000.0, followed.trace.scale)
    part = np.ascontiguousarray(events.point_mm[a:b])
    direction = np.ascontiguousarray(events.direction[a:b])
    log_density = np.empty((2, b - a))
    for k, place in enumerate((before, before + shift)):
        _kernels.log_densities(
            part,
            direction,
            followed.template.table,
            followed.template.lower_mm,
            followed.template.voxel_mm,
            np.ascontiguousarray(place),
            scale,
            followed.template.outside,
            log_density[k],
        )
    # Weighed as in the trace: unweighed, a background that slopes drew the time to one side.
    gain = events.weight[a:b] * (log_density[0] - log_density[1])
    # A change between events i - 1 and i leaves the first i to the place before.
    total = np.concatenate(([0.0], np.cumsum(gain)))
    edges = np.concatenate(([first], when, [last]))
    width = np.maximum(np.diff(edges), 1e-6)
    return _interval(edges[:-1], total, width)


def _place_before(series: Series, fit: StepFit, index: int, when: F64) -> F64:
    """Give the fitted place before a step, carried on along the trend. Shape (n, 3)."""
    trend = [np.interp(when, series.time_s, column) for column in fit.trend_mm.T]
    return np.asarray(np.stack(trend, axis=1) + fit.shift_mm[:index].sum(axis=0))


def refine_by_windows(
    series: Series, times_s: list[float], index: int, low_s: float, high_s: float, growth: float
) -> tuple[float, float, float]:
    """Give the time of one step and its 95 % interval from the windows alone, s.

    ``growth`` is the growth rate of the trend, from the fit of all steps.
    """
    time = times_s[index]
    length = float(np.median(np.diff(series.time_s)))
    edge = series.time_s - length / 2.0
    reach = max(40.0, 4.0 * length)
    near = (edge >= max(time - reach, low_s + length)) & (
        edge <= min(time + reach, high_s - length)
    )
    if near.sum() < 2:
        return time, time - length, time + length
    candidates = edge[near]
    others = [t for k, t in enumerate(times_s) if k != index]
    misfit = np.array(
        [fit_steps(series, sorted([*others, float(c)]), growth).misfit for c in candidates]
    )
    # A step at a window's start may have come anywhere within half a window of it.
    return _interval(candidates - length / 2.0, -misfit / 2.0, np.full(len(candidates), length))
