"""The position of the bladder in each window of time, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode import _kernels
from listmode.errors import InputError
from listmode.histogram import live_time_ms
from listmode.motion.bladder import Bladder
from listmode.motion.filling import Filling, fit_filling
from listmode.motion.region import RegionEvents, aligned_image, collect_region
from listmode.motion.solve import Places, solve_places
from listmode.motion.template import (
    BlurredEllipsoid,
    EllipsoidFit,
    Template,
    build_template,
    fit_ellipsoid,
)
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

TRAVEL_MM = 45.0  # how far the region's box reaches beyond the template: moves and filling
COARSE_EVENTS = 10_000  # of a window of the alignment: they place it to 0.3 mm, which is enough
MIN_TILT_EVENTS = 20_000  # fewer do not tell the tilt of the counts


@dataclass(frozen=True)
class TraceSettings:
    """How a position trace is made.

    Parameters
    ----------
    window_ms
        Length of a window; ``None`` for the shortest whole number of seconds that reaches
        ``standard_error_mm``.
    standard_error_mm
        Axial standard error that a window must reach, mm.
    max_window_ms
        Longest window that is chosen by itself, ms.
    coarse_ms
        Length of the windows of the first alignment, ms.
    """

    window_ms: int | None = None
    standard_error_mm: float = 1.0
    max_window_ms: int = 20_000
    coarse_ms: int = 10_000

    def __post_init__(self) -> None:
        if self.window_ms is not None and self.window_ms < 1:
            raise InputError(
                "a trace's window must last at least 1 ms, but it lasts "
                f"{self.window_ms} ms; give for instance 1000"
            )


@dataclass(frozen=True, eq=False)
class MotionTrace:
    """Position of one thing over time.

    Parameters
    ----------
    edges_ms
        Ends of the windows on the scan clock; windows adjoin. Shape (n + 1,), int64.
    displacement_mm
        Displacement from ``reference_mm``, x, y, z in the scanner frame, mm; NaN where a
        window holds too few events. Shape (n, 3).
    standard_error_mm
        Its standard error, mm; ``inf`` where there is no position. Shape (n, 3).
    counts
        Events that the position rests on. Shape (n,), int64.
    reference_mm
        The place that displacements count from, mm. Shape (3,).
    reference
        What is followed: ``"bladder"``, ``"whole body"`` or a body slab's name.
    scale
        Size of the bladder relative to the template's (V^(1/3)), fitted law. Shape (n,).
    filling
        Volume over time; ``None`` for a body.
    note
        What a reader must know of it, in words.
    """

    edges_ms: I64
    displacement_mm: F64
    standard_error_mm: F64
    counts: I64
    reference_mm: F64
    reference: str
    scale: F64
    filling: Filling | None = None
    note: str = ""

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return len(self.counts)

    @property
    def time_ms(self) -> F64:
        """Middle of each window on the scan clock, ms. Shape (n,)."""
        return np.asarray((self.edges_ms[:-1] + self.edges_ms[1:]) / 2.0)

    @property
    def window_ms(self) -> int:
        """Length of a window, ms (the last one may be shorter)."""
        return int(self.edges_ms[1] - self.edges_ms[0])

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; None where there is no position."""
        return {
            "reference": self.reference,
            "reference_mm": self.reference_mm.tolist(),
            "window_ms": self.window_ms,
            "time_ms": self.time_ms.tolist(),
            "displacement_mm": _plain(self.displacement_mm),
            "standard_error_mm": _plain(self.standard_error_mm),
            "counts": self.counts.tolist(),
            "filling": None if self.filling is None else self.filling.to_dict(),
            "note": self.note,
        }


def _plain(values: F64) -> list[list[float | None]]:
    return [[float(v) if math.isfinite(v) else None for v in row] for row in values]


@dataclass(frozen=True, eq=False)
class FollowedBladder:
    """The bladder's trace with what made it, for refining change times by single events."""

    trace: MotionTrace
    events: RegionEvents
    template: Template
    fit: EllipsoidFit
    centre_mm: F64  # of the template at displacement zero


def trace_position(
    listmode: Listmode,
    bladder: Bladder,
    *,
    windows: Windows | None = None,
    window_ms: int | None = None,
    settings: TraceSettings | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> MotionTrace:
    """Follow the bladder through the scan.

    See :func:`follow_bladder`, which this calls; ``window_ms`` overrides the settings.
    """
    chosen = settings or TraceSettings()
    if window_ms is not None:
        chosen = replace(chosen, window_ms=window_ms)
    events = collect_around(
        listmode, bladder, windows=windows, threads=threads, progress=progress
    )
    return follow_bladder(events, bladder, settings=chosen, threads=threads).trace


def collect_around(
    listmode: Listmode,
    bladder: Bladder,
    *,
    windows: Windows | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> RegionEvents:
    """Keep the events of the bladder's surroundings, wide enough for it to move and grow."""
    centre, semi = np.array(bladder.centre_mm), np.array(bladder.semi_axis_mm)
    half = semi + np.array([40.0, 40.0, 25.0]) + TRAVEL_MM
    return collect_region(
        listmode, centre - half, centre + half, windows, threads=threads, progress=progress
    )


def window_edges(events: RegionEvents, length_ms: int) -> I64:
    """Cut the scan's extent into adjoining windows; a short rest joins the last one."""
    start, stop = int(events.windows.start_ms[0]), int(events.windows.stop_ms[-1])
    n = max((stop - start) // length_ms, 1)
    edges = start + length_ms * np.arange(n + 1, dtype=np.int64)
    edges[-1] = stop
    return edges


def follow_bladder(
    events: RegionEvents,
    bladder: Bladder,
    *,
    settings: TraceSettings | None = None,
    threads: int = 2,
) -> FollowedBladder:
    """Estimate the bladder's displacement in windows of time with a moving template.

    In each window the template's score, the sum over events of the gradient of its log
    density, is brought to zero by moving the template; the region moves along, so a shift is
    read in full whatever its size. The template is a blurred ellipsoid fitted to the aligned
    events and fitted anew as the alignment improves; its size follows the filling.

    Parameters
    ----------
    events
        From :func:`collect_around`.
    bladder
        Where to start.
    settings
        Window length or the standard error to reach.
    threads
        Threads; the result has the same bits for any number.

    Notes
    -----
    The maximum-likelihood equation of a location parameter (Cox and Hinkley, Theoretical
    Statistics, 1974, ch. 9); its standard error is the sandwich J^-1 V J^-1 / n with J the
    measured slope of the score and V the mean square of the events' scores (White 1982,
    10.2307/1912526).
    """
    chosen = settings or TraceSettings()
    centre = np.array(bladder.centre_mm)
    fit = EllipsoidFit(centre, np.array(bladder.semi_axis_mm), bladder.contrast, 1.0, 1.0)
    coarse = window_edges(events, chosen.coarse_ms)
    shift = np.zeros((len(coarse) - 1, 3))
    scale = np.ones(len(coarse) - 1)
    template = build_template(fit.semi_axis_mm, fit.contrast, events.covariance)
    slope = None
    one_of = max(len(events) // (COARSE_EVENTS * len(shift)), 1)
    for has_error in (False, True):
        solved = solve_places(
            events.every(one_of), template, coarse, centre + _filled(shift), scale, threads,
            slope=slope, has_error=has_error,
        )  # fmt: skip
        slope = solved.slope
        shift = _filled(solved.place - centre)
        fit = _refit(events, coarse, shift, fit, centre)
        events = _level(events, fit)
        centre = centre + (fit.centre_mm - centre)
        template = build_template(fit.semi_axis_mm, fit.contrast, events.covariance)
    filling = fit_filling(events, coarse, _filled(solved.place), fit)
    window_ms = chosen.window_ms or _choose_window(solved, coarse, chosen, one_of)
    edges = window_edges(events, window_ms)
    middle = (edges[:-1] + edges[1:]) / 2.0
    start = _at(middle, (coarse[:-1] + coarse[1:]) / 2.0, _filled(solved.place))
    scale = filling.scale_at(middle / 1000.0)
    solved = solve_places(events, template, edges, start, scale, threads, slope=slope)
    live = live_time_ms(events.windows, int(edges[0]), int(edges[1] - edges[0]), len(middle))
    place = solved.place.copy()
    place[live == 0] = np.nan
    error = solved.error.copy()
    error[live == 0] = np.inf
    reference = _reference(place, error)
    return FollowedBladder(
        trace=MotionTrace(
            edges_ms=edges,
            displacement_mm=place - reference,
            standard_error_mm=error,
            counts=solved.counts,
            reference_mm=reference,
            reference="bladder",
            scale=scale,
            filling=filling,
            note=f"template fit to the bladder in windows of {window_ms / 1000:g} s",
        ),
        events=events,
        template=template,
        fit=fit,
        centre_mm=reference,
    )


def _filled(values: F64) -> F64:
    """Replace NaN rows by the last finite row before, or the first one after."""
    good = np.isfinite(values).all(axis=1)
    if not good.any():
        return np.zeros_like(values)
    index = np.maximum.accumulate(np.where(good, np.arange(len(values)), -1))
    index[index < 0] = int(np.argmax(good))
    return np.asarray(values[index])


def _at(time: F64, knots: F64, values: F64) -> F64:
    return np.stack([np.interp(time, knots, column) for column in values.T], axis=1)


def _reference(place: F64, error: F64) -> F64:
    """Take the mean place of the first tenth of the windows as displacement zero."""
    first = slice(0, max(len(place) // 10, 1))
    weight = 1.0 / error[first] ** 2
    good = np.isfinite(place[first])
    if not good.any():
        good = np.isfinite(place)
        return np.asarray(np.nanmean(place, axis=0) if good.any() else np.zeros(3))
    total = np.where(good, weight, 0.0).sum(axis=0)
    return np.asarray(np.where(good, weight * np.nan_to_num(place[first]), 0.0).sum(0) / total)


def _choose_window(solved: Places, edges: I64, chosen: TraceSettings, one_of: int) -> int:
    """Give the shortest whole number of seconds that reaches the wanted standard error.

    The windows were solved with one event of ``one_of``.
    """
    error = np.median(solved.error[:, 2]) / math.sqrt(one_of)
    if not np.isfinite(error):
        return chosen.max_window_ms
    needed_s = (edges[1] - edges[0]) / 1000.0 * (error / chosen.standard_error_mm) ** 2
    return int(min(max(math.ceil(needed_s), 1) * 1000, chosen.max_window_ms))


def _refit(
    events: RegionEvents, edges: I64, shift: F64, fit: EllipsoidFit, centre: F64
) -> EllipsoidFit:
    """Fit the ellipsoid to the events with the windows' shifts taken out."""
    half = fit.semi_axis_mm + np.array([30.0, 30.0, 15.0])
    axes, image = aligned_image(events, edges, shift, centre, half, np.zeros(len(shift), int))
    model = BlurredEllipsoid(axes, events.covariance, events.direction_share)
    if image.sum() < 200:
        return fit
    return fit_ellipsoid(
        image[0],
        model,
        semi_axis_mm=fit.semi_axis_mm,
        centre_mm=fit.centre_mm,
        has_tilt=bool(image.sum() >= MIN_TILT_EVENTS),
    )


def _level(events: RegionEvents, fit: EllipsoidFit) -> RegionEvents:
    """Weigh the events so that the ellipsoid's counts are level.

    Attenuation and sensitivity tilt them by some per cent. The place of a template without
    that tilt is off by the tilt times the ellipsoid's variance, and drifts as it fills: by
    0.25 mm in 20 min at 5 mL/min. A weight that is exponential in the place commutes with a
    move: it takes no part in a shift.
    """
    tilt = np.asarray(fit.tilt_per_mm, np.float64)
    if not tilt.any():
        return events
    weight = np.empty_like(events.weight)
    _kernels.level_weights(events.point_mm, events.weight, fit.centre_mm, tilt, weight)
    return replace(events, weight=weight)
