"""Where the body is: slabs of it, or all of it, followed by their profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from listmode.histogram import Histogram
from listmode.motion.bladder import Bladder
from listmode.motion.region import RegionEvents
from listmode.motion.trace import MotionTrace

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SMOOTH_MM = 6.0  # standard deviation by which a profile's template is smoothed
TAPER_MM = 24.0  # over which a slab's ends fade out
WHOLE_BODY_MM = 500.0
# Shares of the body's length from its cranial end (vertex to mid thigh).
SLABS = {"head": (0.0, 0.17), "thorax": (0.17, 0.42), "abdomen": (0.42, 0.65)}
MIN_COUNTS = 50.0


@dataclass(frozen=True, eq=False)
class ProfileTrack:
    """One-dimensional displacements with errors, shape (n_windows,), mm."""

    displacement_mm: F64
    standard_error_mm: F64


def track_profile(
    rows: F64, centre_mm: F64, weight: F64, inside: F64, *, n_rounds: int = 4
) -> ProfileTrack:
    """Follow a profile through time by the score of its own mean.

    Parameters
    ----------
    rows
        Counts by window and bin. Shape (n_windows, n_bins).
    centre_mm
        Centres of the bins, evenly spaced. Shape (n_bins,).
    weight
        Correction of each bin (inverse sensitivity), about 1. Shape (n_bins,).
    inside
        Taper: how much each place of the moving profile counts, 0 to 1. Shape (n_bins,).
    n_rounds
        Rounds of aligning and making the mean profile anew.
    """
    step = float(centre_mm[1] - centre_mm[0])
    n_windows = len(rows)
    shift = np.zeros(n_windows)
    counts = (rows * inside).sum(axis=1)
    good = counts >= MIN_COUNTS
    if not good.any():
        return ProfileTrack(np.full(n_windows, np.nan), np.full(n_windows, np.inf))
    value = rows * weight
    for _ in range(n_rounds):
        mean = _shift_add(value[good], shift[good], step)
        mean = gaussian_filter1d(mean, SMOOTH_MM / step)
        mean = np.maximum(mean, 1e-3 * mean.max())
        score = -np.gradient(np.log(mean), step)
        level = float((mean * inside * score).sum() / max((mean * inside).sum(), 1e-12))
        table = inside * (score - level)
        slope = float((mean * inside * (score - level) ** 2).sum() / (mean * inside).sum())
        if not slope > 0:
            break
        for _ in range(6):
            got, squares, n = _scores(rows, weight, centre_mm, shift, table, inside)
            change = np.clip(got / np.maximum(n, 1.0) / slope, -8.0, 8.0)
            shift += np.where(good, change, 0.0)
            shift = np.clip(shift, -80.0, 80.0)
    if not slope > 0:
        return ProfileTrack(np.full(n_windows, np.nan), np.full(n_windows, np.inf))
    forth, _, n_forth = _scores(rows, weight, centre_mm, shift + 1.0, table, inside)
    back, _, n_back = _scores(rows, weight, centre_mm, shift - 1.0, table, inside)
    steep = float(
        (back[good].sum() / n_back[good].sum() - forth[good].sum() / n_forth[good].sum()) / 2.0
    )
    steep = steep if steep > 0.1 * slope else slope
    meat = squares[good].sum() / n[good].sum()
    error = np.full(n_windows, np.inf)
    error[good] = np.sqrt(meat / np.maximum(n[good], 1.0)) / steep
    shift[~good] = np.nan
    return ProfileTrack(shift, error)


def _shift_add(value: F64, shift: F64, step: float) -> F64:
    """Add up profiles, each moved back by its shift (linear interpolation)."""
    n = value.shape[1]
    place = np.arange(n)[None, :] + (shift / step)[:, None]
    low = np.floor(place).astype(int)
    part = place - low
    a = np.take_along_axis(value, np.clip(low, 0, n - 1), axis=1)
    b = np.take_along_axis(value, np.clip(low + 1, 0, n - 1), axis=1)
    return np.asarray(((1 - part) * a + part * b).sum(axis=0))


def _scores(
    rows: F64, weight: F64, centre_mm: F64, shift: F64, table: F64, inside: F64
) -> tuple[F64, F64, F64]:
    """Sum scores, their squares and counts of each window at its shift."""
    place = centre_mm[None, :] - shift[:, None]
    g = np.interp(place, centre_mm, table)
    c = np.interp(place, centre_mm, inside)
    return (
        (rows * weight * g).sum(axis=1),
        (rows * (weight * g) ** 2).sum(axis=1),
        (rows * c).sum(axis=1),
    )


def _taper(centre_mm: F64, low_mm: float, high_mm: float) -> F64:
    """One between two ends, fading to zero over ``TAPER_MM`` inside them."""
    rise = np.clip((centre_mm - low_mm) / TAPER_MM, 0.0, 1.0)
    fall = np.clip((high_mm - centre_mm) / TAPER_MM, 0.0, 1.0)
    return np.asarray(rise * fall)


@dataclass(frozen=True, eq=False)
class _Slices:
    """Histogram rows joined into the windows of a body trace."""

    histogram: Histogram
    edges_ms: I64
    row: I64  # first slice of each window, and the end

    @classmethod
    def make(cls, histogram: Histogram, window_ms: int) -> _Slices:
        per_window = max(-(-window_ms // histogram.slice_ms), 1)
        n = max(histogram.n_slices // per_window, 1)
        row = per_window * np.arange(n + 1, dtype=np.int64)
        row[-1] = histogram.n_slices
        return cls(histogram, histogram.start_ms + row * histogram.slice_ms, row)

    def join(self, rows: F64) -> F64:
        return np.asarray(np.add.reduceat(rows, self.row[:-1], axis=0), dtype=np.float64)


def body_extent_mm(histogram: Histogram) -> tuple[float, float]:
    """Give the ends of the body along z, mm: where its profile is well above its outside."""
    profile = histogram.z_profile.sum(axis=0) / np.maximum(histogram.sensitivity, 0.05)
    if not profile.any():
        return float(histogram.lower_mm[2]), float(-histogram.lower_mm[2])
    inside = np.flatnonzero(profile > 0.25 * np.percentile(profile[profile > 0], 90))
    z = histogram.centre_mm(2)
    return float(z[inside[0]]), float(z[inside[-1]])


def follow_body(
    histogram: Histogram,
    bladder: Bladder | None = None,
    events: RegionEvents | None = None,
    *,
    window_ms: int = 1000,
) -> Mapping[str, MotionTrace]:
    """Follow slabs of the body, without the bladder, by their profiles along x, y and z.

    Parameters
    ----------
    histogram
        From :func:`listmode.histogram.accumulate`.
    bladder, events
        What to leave out: the bladder and the events around it.
    window_ms
        Length of the windows; rounded up to whole slices.

    Returns
    -------
    mapping
        Slab name to trace: head, thorax, abdomen and pelvis where the body is long enough,
        else pelvis alone; with no bladder given, also ``"whole body"``.
    """
    slices = _Slices.make(histogram, window_ms)
    low, high = body_extent_mm(histogram)
    traces: dict[str, MotionTrace] = {}
    if bladder is None:
        traces["whole body"] = _slab(slices, "whole body", low - 60.0, high + 60.0, None, None)
    if high - low >= WHOLE_BODY_MM:
        for name, (first, last) in SLABS.items():
            ends = high - last * (high - low), high - first * (high - low)
            top = ends[1] + (60.0 if name == "head" else 0.0)
            if bladder is None or ends[0] > bladder.centre_mm[2] + bladder.semi_axis_mm[2] + 30:
                traces[name] = _slab(slices, name, ends[0], top, None, None)
    if bladder is not None and events is not None:
        traces["pelvis"] = _pelvis(slices, bladder, events)
    return traces


def _slab(
    slices: _Slices,
    name: str,
    low_mm: float,
    high_mm: float,
    hole: Bladder | None,
    z_rows: F64 | None,
) -> MotionTrace:
    """Follow one slab; with a hole, leave its x and y out of the lateral profiles."""
    h = slices.histogram
    z = h.centre_mm(2)
    inside = _taper(z, low_mm, high_mm)
    rows = slices.join(h.z_profile.astype(np.float64)) if z_rows is None else z_rows
    middle = float(np.interp((low_mm + high_mm) / 2, z, h.sensitivity))
    weight = np.clip(middle / np.maximum(h.sensitivity, 0.02), 0.2, 5.0)
    tracks = []
    zones = np.unique(h.zone_of_z[(z >= low_mm) & (z <= high_mm)])
    for axis, profile in ((0, h.x_profile), (1, h.y_profile)):
        centre = h.centre_mm(axis)
        lateral = slices.join(profile[:, zones, :].sum(axis=1, dtype=np.float64))
        part = np.ones(len(centre))
        if hole is not None:
            reach = hole.semi_axis_mm[axis] + 45.0
            away = np.abs(centre - hole.centre_mm[axis]) - reach
            part = np.clip(away / TAPER_MM, 0.0, 1.0)
        tracks.append(track_profile(lateral, centre, np.ones(len(centre)), part))
    tracks.append(track_profile(rows, z, weight, inside))
    n = np.rint((rows * inside).sum(axis=1)).astype(np.int64)
    displacement = np.stack([t.displacement_mm for t in tracks], axis=1)
    error = np.stack([t.standard_error_mm for t in tracks], axis=1)
    first = np.isfinite(displacement[: max(len(n) // 10, 1)])
    start = np.array(
        [
            float(np.mean(displacement[: len(first), i][first[:, i]]))
            if first[:, i].any()
            else 0.0
            for i in range(3)
        ]
    )
    return MotionTrace(
        edges_ms=slices.edges_ms,
        displacement_mm=displacement - start,
        standard_error_mm=error,
        counts=n,
        reference_mm=np.array([0.0, 0.0, (low_mm + high_mm) / 2.0]),
        reference=name,
        scale=np.ones(len(n)),
        note=f"profiles of the {name} between z {low_mm:.0f} and {high_mm:.0f} mm",
    )


def _pelvis(slices: _Slices, bladder: Bladder, events: RegionEvents) -> MotionTrace:
    """Follow the pelvis around the bladder: the column that holds the bladder is left out."""
    h = slices.histogram
    centre, semi = bladder.centre_mm, bladder.semi_axis_mm
    column = np.ones(len(events), bool)
    for axis in (0, 1):
        away = np.abs(events.point_mm[:, axis] - centre[axis])
        column &= away < semi[axis] + 45.0
    time = events.time_ms[column]
    z_bin = ((events.point_mm[column, 2] - h.lower_mm[2]) / h.voxel_mm).astype(np.int64)
    window = np.searchsorted(slices.edges_ms, time, side="right") - 1
    n_windows, n_bins = len(slices.edges_ms) - 1, h.image.shape[2]
    flat = np.clip(window, 0, n_windows - 1) * n_bins + np.clip(z_bin, 0, n_bins - 1)
    held = np.bincount(flat, minlength=n_windows * n_bins).reshape(n_windows, n_bins)
    rows = slices.join(h.z_profile.astype(np.float64)) - held
    # The column is cut off at the box's ends: stay clear of them when the body moves.
    low, high = float(events.lower_mm[2]) + 20.0, float(events.upper_mm[2]) - 20.0
    return _slab(slices, "pelvis", low, high, bladder, np.maximum(rows, 0.0))
