"""Published ways to find motion in a trace of positions, made anew, and ours, scored alike.

Each gives a score for every second: the larger, the surer of a change there. Alarms are the
score's local maxima above a threshold. All but ours know nothing of filling. Each has eight
settings to be tuned over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import ruptures  # type: ignore[import-untyped]
from numpy.typing import NDArray

from benchmarks._kernels_motion import largest_change
from listmode.motion.changes import (
    ChangeSettings,
    detection_threshold,
    make_series,
)
from listmode.motion.steps import (
    best_fit,
    contrast_mm,
    gain_beside_wander,
    noise_of,
    scan_statistic,
)
from listmode.motion.trace import MotionTrace

F64 = NDArray[np.float64]
APART_S = 10.0  # alarms nearer than this are one
MAD_PER_SIGMA = 0.6745  # median size of a standard normal variable


@dataclass(frozen=True, eq=False)
class Positions:
    """What a detector may look at: a trace by windows of equal length, without gaps."""

    trace: MotionTrace
    time_s: F64  # start of each window
    place_mm: F64  # (n, 3)
    window_s: float


def positions(trace: MotionTrace) -> Positions:
    """Fill windows without a position from the one before."""
    place = trace.displacement_mm.copy()
    good = np.isfinite(place).all(axis=1)
    index = np.maximum.accumulate(np.where(good, np.arange(len(place)), 0))
    place = np.nan_to_num(place[index])
    return Positions(trace, trace.edges_ms[:-1] / 1000.0, place, trace.window_ms / 1000.0)


def point_to_point(p: Positions, *, lag_s: float, is_norm: bool) -> F64:
    """Lu et al. 2020 (J Nucl Med 61:1397): change from one position to a later one.

    Theirs is the next one, on one axis, above a threshold set by the user.
    """
    lag = max(round(lag_s / p.window_s), 1)
    if is_norm:
        return np.asarray(largest_change(p.place_mm, lag))
    each = [
        largest_change(np.ascontiguousarray(p.place_mm[:, k : k + 1]), lag) for k in range(3)
    ]
    return np.asarray(np.max(each, axis=0))


def _means(p: Positions, reach_s: float) -> F64:
    """Mean of the next windows less that of the ones before. Shape (n, 3)."""
    n = max(round(reach_s / p.window_s), 1)
    total = np.concatenate((np.zeros((1, 3)), np.cumsum(p.place_mm, axis=0)))
    at = np.arange(len(p.place_mm))
    low, high = np.maximum(at - n, 0), np.minimum(at + n, len(at))
    before = (total[at] - total[low]) / np.maximum(at - low, 1)[:, None]
    after = (total[high] - total[at]) / np.maximum(high - at, 1)[:, None]
    value = after - before
    value[: n // 2] = 0.0
    value[len(at) - n // 2 :] = 0.0
    return np.asarray(value)


def adaptive(p: Positions, *, reach_s: float, noise_s: float) -> F64:
    """After Revilla et al. 2022 (abstract, PMID 35257856): a threshold that adapts to noise.

    The differences of neighbouring means in units of their own scatter, over the whole scan
    or its surroundings; their abstract does not say how the threshold is made.
    """
    value = _means(p, reach_s)
    size = np.abs(value - np.median(value, axis=0))
    n = max(round(noise_s / p.window_s), 5)
    if noise_s and n < len(size):
        half = n // 2
        padded = np.pad(size, ((half, n - half - 1), (0, 0)), mode="reflect")
        view = np.lib.stride_tricks.sliding_window_view(padded, n, axis=0)
        noise = np.median(view, axis=2) / MAD_PER_SIGMA
    else:
        noise = np.median(size, axis=0)[None, :] / MAD_PER_SIGMA
    return np.asarray(np.linalg.norm(size / np.maximum(noise, 1e-6), axis=1))


def covariance_window(p: Positions, *, length_s: float, is_relative: bool) -> F64:
    """Sun et al. 2019 (PMC6842053): trace of the positions' covariance in a sliding window."""
    n = max(round(length_s / p.window_s), 3)
    if n >= len(p.place_mm):
        return np.zeros(len(p.place_mm))
    view = np.lib.stride_tricks.sliding_window_view(p.place_mm, n, axis=0)
    value = view.var(axis=2).sum(axis=1)
    score = np.zeros(len(p.place_mm))
    score[n // 2 : n // 2 + len(value)] = value
    return score / max(float(np.median(value)), 1e-9) if is_relative else score


def pelt(p: Positions, *, least_s: float, is_level: bool) -> F64:
    """PELT (Killick et al. 2012, 10.1080/01621459.2012.737745), squared error, `ruptures`.

    The score of a change is the largest penalty that leaves it.
    """
    value = p.place_mm
    lag = max(round(60.0 / p.window_s), 1)
    if is_level and lag < len(value):
        # A straight drift is taken out by the median slope, which a step does not enter.
        slope = np.median(value[lag:] - value[:-lag], axis=0) / lag
        value = value - np.arange(len(value))[:, None] * slope
    noise = np.median(np.abs(np.diff(value, axis=0)), axis=0) / MAD_PER_SIGMA / np.sqrt(2.0)
    value = value / np.maximum(noise, 1e-6)
    score = np.zeros(len(value))
    least = max(round(least_s / p.window_s), 2)
    if len(value) < 3 * least:
        return score
    finder = ruptures.KernelCPD(kernel="linear", min_size=least).fit(value)
    for penalty in np.geomspace(6.0, 6e5, 31):
        found = finder.predict(pen=penalty)[:-1]
        for change in found:
            # The place may wander by a window as the penalty grows: it stays one change.
            near = slice(max(change - least, 0), change + least + 1)
            known = score[near].argmax() + near.start
            score[known if score[known] else change] = penalty
        if not found:
            break
    return score


def ours(p: Positions, *, contrast_s: float, min_contrast_mm: float) -> F64:
    """Our rules as one score, above 1 where they hold.

    The noise and the wander are those beside the step that stands out most, as in the analysis.
    """
    trace = p.trace
    series = make_series(trace, np.ones(3))
    score = np.zeros(len(p.place_mm))
    if len(series) < 8:
        return score
    rules = ChangeSettings()
    margin = max(round(rules.min_segment_s / p.window_s), 2)
    hours = float(trace.edges_ms[-1] - trace.edges_ms[0]) / 3.6e6
    threshold = detection_threshold(rules, len(series), margin, hours)
    fit = best_fit(series, [])
    gain = scan_statistic(series, [], fit.misfit, growth=fit.growth)
    first = float(series.time_s[margin + int(np.argmax(gain[margin : len(gain) - margin]))])
    noise = noise_of(series, [first], best_fit(series, [first]).growth)
    gain = gain_beside_wander(series, noise, fit.growth)
    residual = series.value_mm - fit.fitted_mm
    contrast = np.linalg.norm(contrast_mm(series, residual, contrast_s, []), axis=1)
    both = np.minimum(np.sqrt(gain / threshold), contrast / min_contrast_mm)
    both[:margin] = 0.0
    both[len(both) - margin + 1 :] = 0.0
    good = np.isfinite(trace.displacement_mm).all(axis=1)
    good &= np.isfinite(trace.standard_error_mm).all(axis=1)
    score[good] = both
    return score


Detector = Callable[..., F64]
Options = Mapping[str, float]


def _grid(**values: tuple[float, ...]) -> list[Options]:
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


DETECTORS: dict[str, tuple[Detector, list[Options]]] = {
    "ours": (ours, _grid(contrast_s=(30.0, 60.0), min_contrast_mm=(0.5, 1.0, 1.5, 2.0))),
    "point to point (Lu 2020)": (
        point_to_point, _grid(lag_s=(1.0, 2.0, 4.0, 8.0), is_norm=(False, True)),
    ),
    "adaptive (after Revilla 2022)": (
        adaptive, _grid(reach_s=(2.0, 5.0, 10.0, 20.0), noise_s=(0.0, 120.0)),
    ),
    "covariance window (Sun 2019)": (
        covariance_window, _grid(length_s=(5.0, 10.0, 15.0, 25.0), is_relative=(False, True)),
    ),
    "PELT (ruptures)": (
        pelt, _grid(least_s=(5.0, 10.0, 20.0, 30.0), is_level=(False, True)),
    ),
}  # fmt: skip


def alarms(p: Positions, score: F64, threshold: float) -> list[float]:
    """Give the times of the score's local maxima above a threshold, strongest first, s."""
    found: list[float] = []
    for i in np.argsort(-score, kind="stable"):
        if not score[i] > threshold:
            break
        at = float(p.time_s[i])
        if all(abs(at - known) >= APART_S for known in found):
            found.append(at)
    return found


def shift_at(p: Positions, time_s: float, reach_s: float = 30.0) -> F64:
    """Mean position of the 30 s after a time less that of the 30 s before, mm. Shape (3,)."""
    before = (p.time_s >= time_s - reach_s) & (p.time_s + p.window_s <= time_s + 1e-6)
    after = (p.time_s >= time_s) & (p.time_s < time_s + reach_s)
    if not (before.any() and after.any()):
        return np.full(3, np.nan)
    return np.asarray(p.place_mm[after].mean(axis=0) - p.place_mm[before].mean(axis=0))
