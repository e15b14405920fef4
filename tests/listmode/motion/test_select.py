from __future__ import annotations

import json

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.motion.changes import Change, Changes
from listmode.motion.select import Selection, select_windows
from listmode.motion.trace import MotionTrace
from listmode.windows import Windows
from tests.listmode.motion.test_changes import made_trace


def changes_at(
    trace: MotionTrace, *steps: tuple[float, float], kind: str = "whole-body shift"
) -> Changes:
    items = tuple(
        Change(t, (t, t), (0.0, 0.0, mm), ((0.0, 0.0),) * 3, kind, "", 99.0)  # type: ignore[arg-type]
        for t, mm in steps
    )
    zero = np.zeros_like(trace.displacement_mm)
    return Changes(items, 20.0, 1.0, (1.0, 1.0, 1.0), trace.time_ms / 1000.0, zero, zero)


def covers_exactly(selection: Selection, trace: MotionTrace) -> bool:
    pieces = sorted(
        [*selection.windows, *((g.start_ms, g.stop_ms) for g in selection.left_out)]
    )
    ends = [trace.edges_ms[0], *(stop for _, stop in pieces)]
    return [start for start, _ in pieces] == ends[:-1] and ends[-1] == trace.edges_ms[-1]


def test_without_a_change_the_whole_scan_is_kept() -> None:
    trace = made_trace(seed=1)
    selection = select_windows(trace, changes_at(trace))
    assert str(selection.windows) == "0-1200 s"
    assert selection.left_out == ()
    assert selection.retained == 1.0
    assert selection.chosen.peak == 1.0


def test_a_large_shift_costs_the_shorter_side_and_a_guard_band() -> None:
    trace = made_trace(seed=1)
    selection = select_windows(trace, changes_at(trace, (500.0, 13.0)))
    assert str(selection.windows) == "502-1200 s"
    assert covers_exactly(selection, trace)
    assert [g.reason for g in selection.left_out] == [
        "displaced by 13.0 mm from the chosen windows: its counts are worth less than its blur "
        "at 5 mm",
        "guard band around a change",
    ]
    assert selection.chosen.noise == pytest.approx(np.sqrt(1200 / 698), rel=1e-3)
    assert any(a.retained > 0.99 for a in selection.alternatives)
    json.dumps(selection.to_dict())


def test_a_shift_much_smaller_than_the_resolution_costs_the_guard_band_only() -> None:
    trace = made_trace(seed=1)
    selection = select_windows(trace, changes_at(trace, (500.0, 2.0)), feature_fwhm_mm=8.0)
    assert str(selection.windows) == "0-498,502-1200 s"
    assert covers_exactly(selection, trace)


def test_coming_back_joins_the_first_and_the_third_state() -> None:
    trace = made_trace(seed=1)
    moved = changes_at(trace, (300.0, 10.0), (700.0, -10.0))
    selection = select_windows(trace, moved)
    assert str(selection.windows) == "0-298,702-1200 s"
    assert covers_exactly(selection, trace)


def test_a_largest_displacement_is_kept_to() -> None:
    trace = made_trace(seed=1)
    selection = select_windows(
        trace, changes_at(trace, (600.0, 2.0)), feature_fwhm_mm=20.0, max_displacement_mm=0.5
    )
    assert selection.chosen.max_displacement_mm <= 0.5
    assert "more than the 0.5 mm allowed" in selection.left_out[0].reason + "".join(
        g.reason for g in selection.left_out
    )


def test_a_local_event_costs_no_time() -> None:
    trace = made_trace(seed=1)
    selection = select_windows(trace, changes_at(trace, (500.0, 9.0), kind="local event"))
    assert str(selection.windows) == "0-1200 s"


def test_the_fit_to_the_mu_map_decides_between_equals() -> None:
    trace = made_trace(seed=1)
    moved = changes_at(trace, (590.0, 20.0))
    assert str(select_windows(trace, moved).windows) == "592-1200 s"
    fitting = select_windows(trace, moved, offset_mm=np.zeros(3))
    assert str(fitting.windows) == "0-588 s"


def test_a_drifting_body_is_cut_into_minutes() -> None:
    trace = made_trace(seed=1, reference="whole body")
    still = changes_at(trace)
    drift = np.zeros_like(still.trend_mm)
    drift[:, 2] = 20.0 * still.time_s / 1200.0
    drifting = Changes(still.items, 20.0, 1.0, (1.0, 1.0, 1.0), still.time_s, drift, drift)
    selection = select_windows(trace, drifting)
    assert covers_exactly(selection, trace)
    assert 0.15 < selection.retained < 0.8
    assert selection.chosen.max_displacement_mm < 8.0


def test_only_the_time_asked_for_is_chosen_from() -> None:
    trace = made_trace(seed=1)
    selection = select_windows(
        trace, changes_at(trace, (500.0, 13.0)), windows=Windows([0], [600_000])
    )
    assert str(selection.windows) == "0-498 s"
    assert covers_exactly(selection, trace)
    assert selection.left_out[-1].reason == "outside the windows asked for"


def test_settings_that_make_no_sense_are_refused() -> None:
    trace = made_trace(seed=1, duration_s=60)
    with pytest.raises(InputError, match="needs a positive feature width"):
        select_windows(trace, changes_at(trace), feature_fwhm_mm=0.0)
    with pytest.raises(InputError, match="some time between the changes must be left"):
        select_windows(trace, changes_at(trace, (30.0, 5.0)), guard_s=40.0)
