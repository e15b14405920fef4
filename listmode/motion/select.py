"""Which minutes to keep: counts against blur, guard bands, ranked alternatives."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.histogram import Histogram
from listmode.motion.changes import Changes
from listmode.motion.trace import MotionTrace
from listmode.scanner import FWHM_PER_SIGMA
from listmode.windows import Windows

F64 = NDArray[np.float64]

FEATURE_FWHM_MM = 5.0  # resolution of the image and a small lesion, together
PIECE_S = 60.0  # drifting segments are judged in pieces of this length
FIT_MM = 5.0  # off the mu-map by less than this costs little near lungs and bones
EXHAUSTIVE = 14  # so many states are searched over all their subsets


@dataclass(frozen=True)
class LeftOut:
    """A stretch of time that was not chosen, and why."""

    start_ms: int
    stop_ms: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "start_s": self.start_ms / 1000.0,
            "stop_s": self.stop_ms / 1000.0,
            "reason": self.reason,
        }


@dataclass(frozen=True, eq=False)
class Choice:
    """A union of windows with what it costs and gains.

    Parameters
    ----------
    windows
        The time that is kept.
    score
        J: root of the counts times the peak that blur leaves, relative to the whole scan
        without motion.
    retained
        Share of the scan's counts that is kept.
    noise
        Noise relative to the whole scan: one over the root of the share.
    peak
        Share of a small feature's peak that blur leaves, 0 to 1.
    max_displacement_mm
        Largest distance of a kept piece from their mean, mm.
    """

    windows: Windows
    score: float
    retained: float
    noise: float
    peak: float
    max_displacement_mm: float

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "windows_s": [[a / 1000.0, b / 1000.0] for a, b in self.windows],
            "score": self.score,
            "retained": self.retained,
            "noise": self.noise,
            "peak": self.peak,
            "max_displacement_mm": self.max_displacement_mm,
        }


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen windows; with ``left_out`` they cover the scan exactly.

    Parameters
    ----------
    windows
        What to reconstruct.
    left_out
        The rest of the scan, each stretch with its reason.
    chosen
        Cost and gain of the choice.
    alternatives
        Other choices, best first; the whole scan is among them.
    feature_fwhm_mm, guard_s, max_displacement_mm
        What was asked.
    """

    windows: Windows
    left_out: tuple[LeftOut, ...]
    chosen: Choice
    alternatives: tuple[Choice, ...]
    feature_fwhm_mm: float
    guard_s: float
    max_displacement_mm: float | None

    @property
    def retained(self) -> float:
        """Share of the scan's counts that is kept."""
        return self.chosen.retained

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "windows_s": [[a / 1000.0, b / 1000.0] for a, b in self.windows],
            "left_out": [g.to_dict() for g in self.left_out],
            "chosen": self.chosen.to_dict(),
            "alternatives": [a.to_dict() for a in self.alternatives],
            "feature_fwhm_mm": self.feature_fwhm_mm,
            "guard_s": self.guard_s,
            "max_displacement_mm": self.max_displacement_mm,
        }


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Stretches of time without a change in them, and the guard bands between."""

    start_ms: NDArray[np.int64]
    stop_ms: NDArray[np.int64]
    place_mm: F64  # (n, 3)
    counts: F64
    bands: tuple[LeftOut, ...]
    total: float  # counts of the whole scan


def select_windows(
    trace: MotionTrace,
    changes: Changes,
    *,
    max_displacement_mm: float | None = None,
    feature_fwhm_mm: float = FEATURE_FWHM_MM,
    guard_s: float = 2.0,
    windows: Windows | None = None,
    offset_mm: F64 | None = None,
    histogram: Histogram | None = None,
) -> Selection:
    """Choose the windows that are worth most: many counts, little blur.

    Parameters
    ----------
    trace
        What was followed; its counts weigh the time if no histogram is given.
    changes
        From :func:`listmode.motion.changes.find_changes`. Filling and local events are no
        motion of the body and cost no time.
    max_displacement_mm
        Largest distance of a kept piece from the kept ones' mean; none if left out.
    feature_fwhm_mm
        Full width of the features that matter: resolution and lesion together, mm.
    guard_s
        Time left out on each side of a change, s.
    windows
        Time to choose from; the whole scan if left out.
    offset_mm
        Displacement from the mu-map, x, y, z, mm: of the first state, shape (3,), or of each
        window of the trace, shape (n_windows, 3); NaN along an axis that cannot be told. With
        it, of two choices that are worth nearly the same the one that fits the mu-map is
        taken; and one that fits within 5 mm before one that does not, up to twice the noise.

    Raises
    ------
    InputError
        If a length or time is not positive, or the offsets do not fit the trace.

    Notes
    -----
    Maximises J(S) = sqrt(N_S) mean over S of exp(-|d - d_S|^2 / (4 s^2)), s the feature's
    standard deviation. Up to 14 states all subsets are tried; beyond, all that are
    neighbours in position.
    """
    if not feature_fwhm_mm > 0 or guard_s < 0 or (max_displacement_mm or 0.0) < 0:
        raise InputError(
            "a choice of windows needs a positive feature width, and a guard and a largest "
            f"displacement that are not negative, but they are {feature_fwhm_mm:g} mm, "
            f"{guard_s:g} s and {max_displacement_mm}; correct them"
        )
    pieces = _cut(trace, changes, guard_s, windows, histogram)
    if not len(pieces.start_ms):
        raise InputError(
            "some time between the changes must be left to choose from, but the guard bands "
            f"of {guard_s:g} s cover the scan; give a smaller guard"
        )
    sigma = feature_fwhm_mm / FWHM_PER_SIGMA
    choices = {}
    for subset in _subsets(pieces):
        choice = _value(pieces, subset, sigma)
        if max_displacement_mm is None or choice.max_displacement_mm <= max_displacement_mm:
            choices[subset] = choice
    ranked = sorted(choices, key=lambda s: (-choices[s].score, s))
    if offset_mm is not None:
        ranked = _prefer_fit(ranked, choices, pieces, _off_the_map(pieces, trace, offset_mm))
    best = ranked[0]
    chosen = choices[best]
    everything = _value(pieces, tuple(range(len(pieces.start_ms))), sigma)
    others = [choices[s] for s in _different(ranked[1:], best)][:5]
    if all(everything.windows != c.windows for c in [chosen, *others]):
        others = [*others[:4], everything]
    return Selection(
        windows=chosen.windows,
        left_out=_reasons(trace, pieces, best, max_displacement_mm, feature_fwhm_mm),
        chosen=chosen,
        alternatives=tuple(others),
        feature_fwhm_mm=feature_fwhm_mm,
        guard_s=guard_s,
        max_displacement_mm=max_displacement_mm,
    )


def _cut(
    trace: MotionTrace,
    changes: Changes,
    guard_s: float,
    windows: Windows | None,
    histogram: Histogram | None,
) -> _Pieces:
    """Cut the scan at its changes, with guard bands; drifting stretches into minutes."""
    start, stop = int(trace.edges_ms[0]), int(trace.edges_ms[-1])
    extent = Windows([start], [stop])
    bands, guard = [], Windows.empty()
    for change in changes.items:
        if change.kind == "local event":
            continue
        low = round((min(change.time_interval_s[0], change.time_s) - guard_s) * 1000)
        high = round((max(change.time_interval_s[1], change.time_s) + guard_s) * 1000)
        low, high = max(low, start), min(max(high, low + 1), stop)
        if high > low:
            guard = guard.union(Windows([low], [high]))
    for a, b in guard:
        bands.append(LeftOut(a, b, "guard band around a change"))
    free = guard.complement(start, stop)
    if windows is not None:
        bands += [
            LeftOut(a, b, "outside the windows asked for")
            for a, b in windows.complement(start, stop).intersection(free)
        ]
        free = free.intersection(windows.intersection(extent))
    drifts = trace.reference != "bladder" and len(changes.time_s) > 1
    if drifts:
        free = free.cut(round(PIECE_S * 1000))
    middle_s = (free.start_ms + free.stop_ms) / 2000.0
    place = changes.motion_mm(middle_s)
    if drifts:
        place += np.stack(
            [np.interp(middle_s, changes.time_s, c) for c in changes.trend_mm.T], axis=1
        )
    edges, counts = trace.edges_ms, trace.counts
    if histogram is not None:
        edges = np.append(histogram.slice_start_ms, stop)
        counts = histogram.slice_counts
    if not counts.any():
        counts = np.diff(edges)  # no counts: time itself
    total = np.concatenate(([0.0], np.cumsum(counts)))
    at = np.interp(np.stack((free.start_ms, free.stop_ms)), edges, total)
    return _Pieces(
        free.start_ms, free.stop_ms, place, at[1] - at[0], tuple(bands), float(total[-1])
    )


def _subsets(pieces: _Pieces) -> list[tuple[int, ...]]:
    """Give the subsets of pieces that are tried, each in order of time."""
    n = len(pieces.start_ms)
    states, member = np.unique(np.round(pieces.place_mm, 6), axis=0, return_inverse=True)
    member = member.ravel()
    groups: list[tuple[int, ...]]
    if len(states) <= EXHAUSTIVE:
        groups = [
            g for k in range(1, len(states) + 1) for g in combinations(range(len(states)), k)
        ]
    else:
        # A ball around each state, grown from near to far: what is left of all subsets when
        # only neighbours in position go together.
        distance = np.linalg.norm(states[:, None] - states[None, :], axis=2)
        order = np.argsort(distance, axis=1, kind="stable")
        groups = [tuple(order[i, :k]) for i in range(len(states)) for k in range(1, n + 1)]
    return sorted(
        {tuple(int(i) for i in np.flatnonzero(np.isin(member, group))) for group in groups}
    )


def _value(pieces: _Pieces, subset: tuple[int, ...], sigma: float) -> Choice:
    index = list(subset)
    counts, place = pieces.counts[index], pieces.place_mm[index]
    kept = float(counts.sum())
    weight = counts / kept if kept > 0 else np.full(len(index), 1.0 / len(index))
    distance = np.linalg.norm(place - weight @ place, axis=1)
    peak = float(weight @ np.exp(-(distance**2) / (4.0 * sigma**2)))
    share = kept / pieces.total if pieces.total > 0 else 0.0
    return Choice(
        windows=Windows(pieces.start_ms[index], pieces.stop_ms[index]).merged(),
        score=float(np.sqrt(share)) * peak,
        retained=share,
        noise=float(1.0 / np.sqrt(share)) if share > 0 else float("inf"),
        peak=peak,
        max_displacement_mm=float(distance.max()),
    )


def _off_the_map(pieces: _Pieces, trace: MotionTrace, offset_mm: F64) -> F64:
    """Give each piece's displacement from the mu-map, mm; zero along an axis not known."""
    offset = np.nan_to_num(np.asarray(offset_mm, dtype=np.float64))
    if offset.shape == (3,):
        known = np.isfinite(np.asarray(offset_mm, dtype=np.float64))
        return np.asarray((pieces.place_mm + offset) * known)
    if offset.shape != (trace.n_windows, 3):
        raise InputError(
            "offsets from the mu-map must be three numbers, or three for each of the "
            f"{trace.n_windows} windows of the trace, but their shape is {offset.shape}; "
            "give one of these"
        )
    middle = np.searchsorted(
        trace.edges_ms, (pieces.start_ms + pieces.stop_ms) // 2, side="right"
    )
    return np.asarray(offset[np.clip(middle - 1, 0, trace.n_windows - 1)])


def _prefer_fit(
    ranked: list[tuple[int, ...]],
    choices: dict[tuple[int, ...], Choice],
    pieces: _Pieces,
    off_mm: F64,
) -> list[tuple[int, ...]]:
    """Put first what fits the mu-map best of all that is worth nine tenths of the best.

    If the best is off by more than ``FIT_MM``, what is within and worth half as much comes
    before it: noise can be averaged away, a wrong attenuation cannot.
    """

    def misfit(subset: tuple[int, ...]) -> float:
        counts = pieces.counts[list(subset)]
        mean = counts @ off_mm[list(subset)] / max(float(counts.sum()), 1e-12)
        return float(np.linalg.norm(mean))

    top = choices[ranked[0]].score
    close = [s for s in ranked if choices[s].score >= 0.9 * top]
    if min(misfit(s) for s in close) > FIT_MM:
        fitting = [s for s in ranked if choices[s].score >= 0.5 * top and misfit(s) <= FIT_MM]
        close = fitting[:1] or close
    best = min(close, key=lambda s: (round(misfit(s), 1), -choices[s].score))
    return [best, *(s for s in ranked if s != best)]


def _different(ranked: list[tuple[int, ...]], best: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Drop choices that are a better one with little taken away."""
    kept = [best]
    for subset in ranked:
        if not any(set(subset) < set(k) for k in kept):
            kept.append(subset)
    return kept[1:]


def _reasons(
    trace: MotionTrace,
    pieces: _Pieces,
    best: tuple[int, ...],
    limit_mm: float | None,
    fwhm_mm: float,
) -> tuple[LeftOut, ...]:
    """Say of every stretch that was not chosen why; check that nothing is missing."""
    index = list(best)
    counts = pieces.counts[index]
    mean = counts @ pieces.place_mm[index] / max(float(counts.sum()), 1e-12)
    gaps = list(pieces.bands)
    for k in range(len(pieces.start_ms)):
        if k in best:
            continue
        distance = float(np.linalg.norm(pieces.place_mm[k] - mean))
        why = f"displaced by {distance:.1f} mm from the chosen windows"
        if limit_mm is not None and distance > limit_mm:
            why += f", more than the {limit_mm:g} mm allowed"
        else:
            why += f": its counts are worth less than its blur at {fwhm_mm:g} mm"
        gaps.append(LeftOut(int(pieces.start_ms[k]), int(pieces.stop_ms[k]), why))
    gaps.sort(key=lambda g: g.start_ms)
    joined: list[LeftOut] = []
    for gap in gaps:
        if joined and joined[-1].reason == gap.reason and joined[-1].stop_ms == gap.start_ms:
            joined[-1] = LeftOut(joined[-1].start_ms, gap.stop_ms, gap.reason)
        else:
            joined.append(gap)
    length = sum(g.stop_ms - g.start_ms for g in joined)
    kept = int((pieces.stop_ms[index] - pieces.start_ms[index]).sum())
    assert length + kept == int(trace.edges_ms[-1] - trace.edges_ms[0])
    return tuple(joined)
