"""When the patient moved, how far, and what kind of change it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chdtrc

from listmode.motion.classify import ChangeClass, classify
from listmode.motion.refine import refine_by_events, refine_by_windows
from listmode.motion.steps import (
    Series,
    StepFit,
    best_fit,
    contrast_mm,
    noise_of,
    scan_statistic,
)
from listmode.motion.trace import FollowedBladder, MotionTrace

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ChangeSettings:
    """What counts as a change.

    Parameters
    ----------
    false_alarms_per_20h
        The rate of false alarms that the statistical threshold stands for, in scans whose
        position wanders by white noise and filling alone.
    min_contrast_mm
        Materiality: the smallest difference of the mean positions before and after, mm. It
        keeps slow wander from alarming, which no statistical threshold does.
    contrast_s
        How far the two means reach from the change, s.
    min_segment_s
        Shortest time between changes, and to the scan's ends, s.
    max_changes
        Largest number of changes looked for.
    """

    false_alarms_per_20h: float = 1.0
    min_contrast_mm: float = 2.0
    contrast_s: float = 30.0
    min_segment_s: float = 10.0
    max_changes: int = 12


@dataclass(frozen=True)
class Change:
    """One change of position.

    Parameters
    ----------
    time_s, time_interval_s
        When, on the scan clock, and the 95 % interval of it, s.
    shift_mm, shift_interval_mm
        How far, x, y, z in the scanner frame, and the 95 % interval of each, mm.
    kind
        Its class.
    reason
        What the class rests on.
    statistic
        Drop of the misfit by this change beside the wander (chi-squared, three degrees of
        freedom); it exceeds ``Changes.threshold``.
    """

    time_s: float
    time_interval_s: tuple[float, float]
    shift_mm: tuple[float, float, float]
    shift_interval_mm: tuple[tuple[float, float], ...]
    kind: ChangeClass
    reason: str
    statistic: float

    @property
    def length_mm(self) -> float:
        """Length of the shift, mm."""
        return math.dist((0.0, 0.0, 0.0), self.shift_mm)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "time_s": self.time_s,
            "time_interval_s": list(self.time_interval_s),
            "shift_mm": list(self.shift_mm),
            "shift_interval_mm": [list(i) for i in self.shift_interval_mm],
            "class": self.kind,
            "reason": self.reason,
            "statistic": self.statistic,
        }


@dataclass(frozen=True, eq=False)
class Changes:
    """All changes of a scan, in order of time, and the drift between them.

    Parameters
    ----------
    items
        The changes.
    threshold
        What ``Change.statistic`` had to exceed.
    false_alarms_per_20h
        The false-alarm rate that the threshold stands for.
    noise_inflation
        Factor by which the trace's noise exceeds its standard errors at 15 s, by axis.
    time_s, trend_mm, fitted_mm
        The fitted drift (filling) and the fit with steps, at the trace's windows.
        Shapes (n,), (n, 3), (n, 3).
    filling_ml_min, filling_error_ml_min
        Filling rate and its standard error; ``None`` where no bladder was followed.
    note
        What a reader must know, in words.
    """

    items: tuple[Change, ...]
    threshold: float
    false_alarms_per_20h: float
    noise_inflation: tuple[float, float, float]
    time_s: F64
    trend_mm: F64
    fitted_mm: F64
    filling_ml_min: float | None = None
    filling_error_ml_min: float | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def motion_mm(self, time_s: F64) -> F64:
        """Displacement by whole-body shifts up to each time, mm. Shape (n, 3)."""
        moved = np.zeros((len(time_s), 3))
        for change in self.items:
            if change.kind != "local event":
                moved += (time_s >= change.time_s)[:, None] * np.asarray(change.shift_mm)
        return moved

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        error = self.filling_error_ml_min
        return {
            "changes": [c.to_dict() for c in self.items],
            "threshold": self.threshold,
            "false_alarms_per_20h": self.false_alarms_per_20h,
            "noise_inflation": list(self.noise_inflation),
            "filling_ml_min": self.filling_ml_min,
            "filling_error_ml_min": error
            if error is not None and math.isfinite(error)
            else None,
            "note": self.note,
        }


def false_alarm_probability(threshold: float, n_windows: int, n_margin: int) -> float:
    """Give the probability that noise alone exceeds a threshold somewhere in a scan.

    Notes
    -----
    The form, rate of upcrossings times the log-odds range of the change's time, is that of
    James, James and Siegmund (1987, 10.1093/biomet/74.1.71). The factor 0.62 was fitted to
    3000 simulated scans each of 100, 300 and 1200 windows of white noise on three axes, with
    this module's trend; it is 0.46 and 0.49 for the shorter two, so it errs on the safe side.
    """
    spread = 2.0 * math.log(max(n_windows / max(n_margin, 1) - 1.0, 1.5))
    return float(0.62 * spread * threshold * chdtrc(3, threshold))


def detection_threshold(
    settings: ChangeSettings, n_windows: int, n_margin: int, hours: float
) -> float:
    """Give the statistic that a change must exceed for the stated false-alarm rate."""
    wanted = min(max(settings.false_alarms_per_20h * hours / 20.0, 1e-9), 0.5)

    def excess(u: float) -> float:
        return math.log(false_alarm_probability(u, n_windows, n_margin)) - math.log(wanted)

    return float(brentq(excess, 3.0, 200.0))


def noise_inflation(trace: MotionTrace, block_s: float = 15.0) -> F64:
    """Give the factor by which block means scatter more than the standard errors say.

    Adjacent blocks are compared, and the median of their differences' sizes is taken: neither
    a slow trend nor a few steps enter. Breathing and wander do. Shape (3,), at least 1.
    """
    per_block = max(round(block_s * 1000 / trace.window_ms), 1)
    n = trace.n_windows // per_block
    if n < 8:
        return np.ones(3)
    part = slice(0, n * per_block)
    with np.errstate(divide="ignore"):
        weight = 1.0 / trace.standard_error_mm[part] ** 2
    value = np.nan_to_num(trace.displacement_mm[part])
    weight = weight.reshape(n, per_block, 3)
    total = weight.sum(axis=1)
    good = (total > 0).all(axis=1)
    if good.sum() < 8:
        return np.ones(3)
    mean = (weight * value.reshape(n, per_block, 3)).sum(axis=1)[good] / total[good]
    step = np.diff(mean, axis=0)
    step = (step - np.median(step, axis=0)) / np.sqrt(
        1 / total[good][1:] + 1 / total[good][:-1]
    )
    # 0.6745: the median of the size of a standard normal variable.
    return np.asarray(np.maximum(np.median(np.abs(step), axis=0) / 0.6745, 1.0))


def find_changes(
    trace: MotionTrace,
    *,
    followed: FollowedBladder | None = None,
    bodies: Mapping[str, MotionTrace] | None = None,
    settings: ChangeSettings | None = None,
) -> Changes:
    """Find the steps in a trace that are neither noise nor filling nor wander.

    A step must pass three rules. The likelihood ratio against a trend that follows the filling
    law must exceed a threshold with a stated false-alarm rate; and the mean positions of the
    30 s before and after, less that trend, must differ by a material distance. Steps are
    added one at a time, and fitted jointly with the trend after each. In the end the
    likelihood ratio beside a wander, whose strength is read from the trace, must exceed the
    threshold too.

    Parameters
    ----------
    trace
        From :func:`listmode.motion.trace.trace_position`.
    followed
        The events behind the trace: with them the time is refined event by event.
    bodies
        Traces of body slabs: with them each change is classed.
    settings
        What counts as a change.
    """
    rules = settings or ChangeSettings()
    inflation = noise_inflation(trace)
    series = make_series(trace, inflation)
    hours = float(trace.edges_ms[-1] - trace.edges_ms[0]) / 3.6e6
    margin = max(round(rules.min_segment_s * 1000 / trace.window_ms), 2)
    threshold = detection_threshold(rules, max(len(series), 4), margin, hours)
    times, fit = _search(series, rules, threshold, margin)
    items = _describe(trace, series, times, fit, followed)
    while items and min(c.statistic for c in items) <= threshold:
        # The wander may have come to the same place by itself. One at a time: of two that share
        # a move each seems to add nothing to the other.
        del times[int(np.argmin([c.statistic for c in items]))]
        fit = best_fit(series, times)
        items = _describe(trace, series, times, fit, followed)
    items = [
        replace(c, kind=kind, reason=reason)
        for c, (kind, reason) in zip(
            items, classify([c.time_s for c in items], _vectors(items), bodies), strict=True
        )
    ]
    filling = trace.filling
    return Changes(
        items=tuple(items),
        threshold=threshold,
        false_alarms_per_20h=rules.false_alarms_per_20h,
        noise_inflation=tuple(inflation.tolist()),
        time_s=series.time_s,
        trend_mm=fit.trend_mm,
        fitted_mm=fit.fitted_mm,
        filling_ml_min=None if filling is None else filling.rate_ml_min,
        filling_error_ml_min=None if filling is None else filling.rate_error_ml_min,
        note=_note(items, trace, len(series)),
    )


def make_series(trace: MotionTrace, inflation: F64) -> Series:
    """Take the windows that have a position, with weights for the inflated noise."""
    good = np.isfinite(trace.displacement_mm).all(axis=1)
    good &= np.isfinite(trace.standard_error_mm).all(axis=1)
    return Series(
        time_s=trace.time_ms[good] / 1000.0,
        value_mm=np.ascontiguousarray(trace.displacement_mm[good]),
        weight=1.0 / (trace.standard_error_mm[good] * inflation) ** 2,
    )


def _search(
    series: Series, rules: ChangeSettings, threshold: float, margin: int
) -> tuple[list[float], StepFit]:
    """Add the strongest material step until none passes; then let each find its best place."""
    times: list[float] = []
    if len(series) < 4:
        empty = np.zeros_like(series.value_mm)
        return times, StepFit(0.0, np.zeros((0, 3)), np.zeros((0, 3)), empty, empty, 0.0)
    fit = best_fit(series, times)
    known: set[tuple[float, ...]] = set()
    while len(times) < rules.max_changes:
        place = _strongest(series, times, fit, rules, threshold, margin)
        if place is None:
            break
        times = sorted([*times, place])
        for _ in range(2):
            times = _settle(series, times, rules, threshold, margin)
        fit = best_fit(series, times)
        if tuple(times) in known:
            break  # settling undoes what is added: it would go round for ever
        known.add(tuple(times))
    return times, fit


def _strongest(
    series: Series,
    times: list[float],
    fit: StepFit,
    rules: ChangeSettings,
    threshold: float,
    margin: int,
) -> float | None:
    """Give the time of the strongest step that passes both rules."""
    gain = scan_statistic(series, times, fit.misfit, growth=fit.growth)
    residual = series.value_mm - fit.fitted_mm
    contrast = np.linalg.norm(contrast_mm(series, residual, rules.contrast_s, times), axis=1)
    edge = _edges(series)
    allowed = (gain > threshold) & (contrast >= rules.min_contrast_mm)
    allowed[:margin] = False
    allowed[len(series) - margin + 1 :] = False
    for known in times:
        allowed &= np.abs(edge - known) >= rules.min_segment_s
    if not allowed.any():
        return None
    return float(edge[int(np.argmax(np.where(allowed, gain, -1.0)))])


def _edges(series: Series) -> F64:
    """Give the starts of the windows, s."""
    length = float(np.median(np.diff(series.time_s)))
    return np.asarray(series.time_s - length / 2.0)


def _settle(
    series: Series, times: list[float], rules: ChangeSettings, threshold: float, margin: int
) -> list[float]:
    """Take each step out and put it back where it is strongest; drop what no longer passes."""
    for known in list(times):
        others = [t for t in times if t != known]
        fit = best_fit(series, others)
        place = _strongest(series, others, fit, rules, threshold, margin)
        times = sorted([*others, place]) if place is not None else others
    return times


def _vectors(items: list[Change]) -> F64:
    return np.array([c.shift_mm for c in items]).reshape(-1, 3)


def _describe(
    trace: MotionTrace,
    series: Series,
    times: list[float],
    fit: StepFit,
    followed: FollowedBladder | None,
) -> list[Change]:
    """Refine the times from the places on both sides of each step, then measure the steps."""
    if not times:
        return []
    window_s = trace.window_ms / 1000.0
    plain = make_series(trace, np.ones(3))  # the wander's part of the noise is fitted below
    clean = _without(plain, times, window_s)
    local = best_fit(clean, times, noise_of(clean, times, fit.growth))
    refined = []
    for k, time in enumerate(times):
        low = times[k - 1] if k else float(trace.edges_ms[0]) / 1000.0
        high = times[k + 1] if k + 1 < len(times) else float(trace.edges_ms[-1]) / 1000.0
        if followed is not None:
            refined.append(
                refine_by_events(followed, clean, local, k, time, low, high, window_s)
            )
        else:
            refined.append(refine_by_windows(series, times, k, low, high, fit.growth))
    return measure_steps(trace, refined)


def measure_steps(
    trace: MotionTrace, times_s: list[tuple[float, float, float]]
) -> list[Change]:
    """Fit the sizes of changes whose times are known, the windows around them left out.

    Sizes are fitted beside a wander of the place, whose strength the trace itself tells: where
    it wanders, the windows near a step tell its size, and where it does not, all do.

    Parameters
    ----------
    trace
        The trace that they were found in.
    times_s
        Time and ends of its interval, s, of each change.
    """
    exact = [t for t, _, _ in times_s]
    plain = make_series(trace, np.ones(3))  # the wander's part of the noise is fitted below
    clean = _without(plain, exact, trace.window_ms / 1000.0)
    noise = noise_of(clean, exact, best_fit(clean, exact).growth)
    final = best_fit(clean, exact, noise)
    items = []
    for k, (time, low, high) in enumerate(times_s):
        others = [t for j, t in enumerate(exact) if j != k]
        gain = best_fit(clean, others, noise).misfit - final.misfit
        shift, reach = final.shift_mm[k], 1.96 * final.error_mm[k]
        items.append(
            Change(
                time_s=time,
                time_interval_s=(low, high),
                shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
                shift_interval_mm=tuple(
                    (float(s - r), float(s + r)) for s, r in zip(shift, reach, strict=True)
                ),
                kind="unclassified",
                reason="",
                statistic=gain,
            )
        )
    return items


def _without(series: Series, times: list[float], window_s: float) -> Series:
    """Leave out the windows that a change, or the two seconds around it, falls into."""
    keep = np.ones(len(series), bool)
    for time in times:
        keep &= np.abs(series.time_s - time) > max(2.0, window_s / 2.0)
    if keep.sum() < 2 * len(times) + 4:
        return series
    return Series(series.time_s[keep], series.value_mm[keep], series.weight[keep])


def _note(items: list[Change], trace: MotionTrace, n_used: int) -> str:
    if n_used < 4:
        return (
            f"only {n_used} windows of {trace.window_ms / 1000:g} s have a position: "
            "too few to look for changes"
        )
    hours = float(trace.edges_ms[-1] - trace.edges_ms[0]) / 3.6e6
    found = "no change" if not items else f"{len(items)} change(s)"
    return f"{found} in {60 * hours:.1f} min, followed by the {trace.reference}"


__all__ = [
    "Change",
    "ChangeClass",
    "ChangeSettings",
    "Changes",
    "find_changes",
]
