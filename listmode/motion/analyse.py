"""From an open scan to the windows worth keeping, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from listmode.histogram import Histogram, accumulate
from listmode.motion.bladder import BladderSearch, BladderSettings, locate_bladder
from listmode.motion.body import follow_body
from listmode.motion.changes import Changes, ChangeSettings, find_changes
from listmode.motion.ct_match import Axes, CtFit, CtMatch, fit_of_windows, match_mu_map
from listmode.motion.select import FEATURE_FWHM_MM, FIT_MM, Selection, select_windows
from listmode.motion.trace import (
    FollowedBladder,
    MotionTrace,
    TraceSettings,
    collect_around,
    follow_bladder,
)
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows

F64 = NDArray[np.float64]
MuMap = tuple[F64, Axes]

MAX_TRACE_ERROR_MM = 2.0  # axial, in the longest windows: the smallest material shift
BODY_WINDOW_MS = 2000  # profiles are poorer than the template: longer windows keep them linear


@dataclass(frozen=True)
class MotionSettings:
    """All settings of the motion analysis.

    Parameters
    ----------
    voxel_mm, slice_ms
        Of the histo-image and its time slices.
    bladder, trace, changes
        Of the search, the trace and the detector.
    max_displacement_mm, feature_fwhm_mm, guard_s
        Of the choice of windows; see :func:`listmode.motion.select.select_windows`.
    """

    voxel_mm: float = 4.0
    slice_ms: int = 500
    bladder: BladderSettings = field(default_factory=BladderSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)
    changes: ChangeSettings = field(default_factory=ChangeSettings)
    max_displacement_mm: float | None = None
    feature_fwhm_mm: float = FEATURE_FWHM_MM
    guard_s: float = 2.0


@dataclass(frozen=True, eq=False)
class MotionResult:
    """Everything that the motion analysis found.

    Parameters
    ----------
    histogram, search
        Where the counts are, and the bladder among them.
    trace
        What was followed: the bladder, or the whole body.
    bodies
        Traces of body slabs, by name.
    changes, selection
        When the patient moved, and which minutes to keep.
    reference
        ``"bladder"`` or ``"whole body"``.
    note
        What a reader must know, in words.
    clock_zero
        What the scan calls zero, in words.
    followed
        The events behind the bladder's trace; ``None`` where the whole body was followed.
    ct_match, ct_offset_mm, ct_warning
        With a mu-map: how far off it the patient lay in the longest stretch without a change,
        the same for each window of the trace, shape (n, 3), NaN along an axis that cannot be
        told, and what a reader must know of the windows chosen; empty if they fit.
    """

    histogram: Histogram
    search: BladderSearch
    trace: MotionTrace
    bodies: Mapping[str, MotionTrace]
    changes: Changes
    selection: Selection
    reference: Literal["bladder", "whole body"]
    note: str
    clock_zero: str
    followed: FollowedBladder | None = None
    ct_match: CtMatch | None = None
    ct_offset_mm: F64 | None = None
    ct_warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON: the main results, without the traces' samples."""
        return {
            "clock_zero": self.clock_zero,
            "reference": self.reference,
            "note": self.note,
            "bladder": self.search.to_dict(),
            **self.changes.to_dict(),
            "selection": self.selection.to_dict(),
            "ct_match": None if self.ct_match is None else self.ct_match.to_dict(),
            "ct_warning": self.ct_warning,
            "n_events": self.histogram.n_events,
            "rejected": self.histogram.rejected,
            "trace_window_s": self.trace.window_ms / 1000.0,
        }


def analyse_motion(
    listmode: Listmode,
    *,
    settings: MotionSettings | None = None,
    mu_map: MuMap | None = None,
    is_mu_fixed: bool = True,
    threads: int = 2,
    progress: Progress = SILENT,
) -> MotionResult:
    """Find out when the patient moved and which minutes are worth keeping.

    Parameters
    ----------
    listmode
        An open scan.
    settings
        See :class:`MotionSettings`.
    mu_map
        Linear attenuation at 511 keV, 1/cm, shape (nx, ny, nz), and the centres of its voxels
        along x, y, z, mm. With it, windows that fit it are preferred.
    is_mu_fixed
        False if the map will be moved to where the patient lay: then no windows are preferred
        and nothing is warned of.
    threads
        Threads; the result has the same bits for any number.
    progress
        Is told of the events read.
    """
    chosen = settings or MotionSettings()
    histogram = accumulate(
        listmode,
        voxel_mm=chosen.voxel_mm,
        slice_ms=chosen.slice_ms,
        threads=threads,
        progress=progress,
    )
    search = locate_bladder(histogram, chosen.bladder)
    followed = None
    reference: Literal["bladder", "whole body"] = "whole body"
    if search.best is not None:
        events = collect_around(listmode, search.best, threads=threads, progress=progress)
        followed = follow_bladder(events, search.best, settings=chosen.trace, threads=threads)
        if is_too_faint(followed.trace, chosen.trace):
            followed = None
    if followed is not None:
        trace = followed.trace
        bodies = dict(
            follow_body(
                histogram,
                search.best,
                followed.events,
                window_ms=max(trace.window_ms, BODY_WINDOW_MS),
            )
        )
        reference = "bladder"
        note = f"{search.note}; {trace.note}"
    else:
        bodies = dict(follow_body(histogram, window_ms=_body_window_ms(histogram, chosen)))
        trace = bodies.pop("whole body")
        faint = "" if search.best is None else ", too faint to follow"
        note = f"{search.note}{faint}; the whole body was followed instead, which is less exact"
    changes = find_changes(trace, followed=followed, bodies=bodies, settings=chosen.changes)
    ct_match, offset_mm = _match(listmode, histogram, trace, changes, mu_map, threads)
    selection = select_windows(
        trace,
        changes,
        max_displacement_mm=chosen.max_displacement_mm,
        feature_fwhm_mm=chosen.feature_fwhm_mm,
        guard_s=chosen.guard_s,
        offset_mm=offset_mm if is_mu_fixed else None,
        histogram=histogram,
    )
    return MotionResult(
        histogram=histogram,
        search=search,
        trace=trace,
        bodies=bodies,
        changes=changes,
        selection=selection,
        reference=reference,
        note=note,
        clock_zero=listmode.clock_zero,
        followed=followed,
        ct_match=ct_match,
        ct_offset_mm=offset_mm,
        ct_warning=_warn(selection, trace, ct_match, offset_mm, mu_map) if is_mu_fixed else "",
    )


def _match(
    listmode: Listmode,
    histogram: Histogram,
    trace: MotionTrace,
    changes: Changes,
    mu_map: MuMap | None,
    threads: int,
) -> tuple[CtMatch | None, F64 | None]:
    """Match the longest stretch without a change; carry it to all windows by the changes."""
    if mu_map is None:
        return None, None
    start, stop = int(trace.edges_ms[0]), int(trace.edges_ms[-1])
    cuts = [start, *(round(1000 * c.time_s) for c in changes.items), stop]
    first, last = max(pairwise(cuts), key=lambda pair: pair[1] - pair[0])
    if changes.items:
        histogram = accumulate(listmode, Windows([first], [last]), threads=threads)
    match = match_mu_map(histogram, *mu_map)
    here = changes.motion_mm(np.array([(first + last) / 2000.0]))
    moved = changes.motion_mm(trace.time_ms / 1000.0) - here
    offset = moved + np.where(match.is_determinable, match.shift_mm, np.nan)
    return match, np.asarray(offset)


def fit_to_ct(
    motion: MotionResult,
    windows: Windows,
    mu_map: MuMap,
    *,
    moved_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> CtFit | None:
    """Say how chosen windows lie to the mu-map; ``None`` if the analysis was made without one.

    Parameters
    ----------
    motion
        From :func:`analyse_motion`, given the mu-map.
    windows
        Those of the image; they need not be those of the analysis.
    mu_map
        The mu-map as it was given to the analysis.
    moved_mm
        How far it was moved since, to follow the patient, mm.
    """
    if motion.ct_match is None or motion.ct_offset_mm is None:
        return None
    return _fit(motion.ct_match, motion.ct_offset_mm, motion.trace, windows, mu_map, moved_mm)


def _fit(
    match: CtMatch,
    offset_mm: F64,
    trace: MotionTrace,
    windows: Windows,
    mu_map: MuMap,
    moved_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> CtFit:
    chosen = windows.covers(trace.time_ms.astype(np.int64))
    mean = offset_mm[chosen].mean(axis=0) if chosen.any() else offset_mm[0]
    return fit_of_windows(match, mean - np.asarray(moved_mm), *mu_map, fit_mm=FIT_MM)


def _warn(
    selection: Selection,
    trace: MotionTrace,
    match: CtMatch | None,
    offset_mm: F64 | None,
    mu_map: MuMap | None,
) -> str:
    """Say by how much SUVs may be wrong if the chosen windows do not fit the mu-map."""
    if match is None or offset_mm is None or mu_map is None:
        return ""
    fit = _fit(match, offset_mm, trace, selection.windows, mu_map)
    return fit.warning if any(fit.is_determinable) else fit.note


def is_too_faint(trace: MotionTrace, settings: TraceSettings) -> bool:
    """Say whether a bladder is too faint to tell its moves from what surrounds it.

    Below SUV 3 or so at low counts the template takes hold of what lies beside the bladder, and
    its jumps look like moves: three alarms in 20 min at SUV 2 and a tenth of the counts.
    """
    error = float(np.median(trace.standard_error_mm[:, 2]))
    at_longest = error * np.sqrt(trace.window_ms / settings.max_window_ms)
    return not at_longest <= MAX_TRACE_ERROR_MM


def _body_window_ms(histogram: Histogram, chosen: MotionSettings) -> int:
    """Give windows of a second, or longer so that each holds a thousand events."""
    if chosen.trace.window_ms is not None:
        return max(chosen.trace.window_ms, chosen.slice_ms)
    live_s = float(histogram.live_ms.sum()) / 1000.0
    rate = histogram.n_events / max(live_s, 1e-9)
    return int(min(max(1.0, -(-1000.0 // max(rate, 1e-9))), 20.0)) * 1000
