from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.histogram import accumulate
from listmode.memory import MemoryListmode
from listmode.motion.bladder import Bladder, locate_bladder
from listmode.motion.changes import find_changes
from listmode.motion.region import RegionEvents
from listmode.motion.trace import (
    TraceSettings,
    collect_around,
    follow_bladder,
    trace_position,
)
from listmode.scanner import Scanner
from listmode.windows import Windows
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode

BLADDER = Bladder((0.0, 20.0, -330.0), (38.0, 30.0, 31.0), 148.0, 10.0, 1e4, 1480.0)


def doubled(
    bladder: RegionEvents, background: RegionEvents, shift_mm: tuple[float, float, float]
) -> RegionEvents:
    """Play the same events twice, the second time with the bladder's shifted: no noise."""
    length = int(bladder.windows.stop_ms[-1])
    moved = np.asarray(shift_mm, np.float32)

    def join(name: str) -> NDArray[np.generic]:
        first, second = getattr(bladder, name), getattr(background, name)
        again = first
        if name == "point_mm":
            again = first + moved
        if name == "time_ms":
            return np.concatenate((first, second, first + length, second + length))
        return np.concatenate((first, second, again, second))

    order = np.argsort(join("time_ms"), kind="stable")
    columns = {n: join(n)[order] for n in ("time_ms", "point_mm", "direction", "weight")}
    return replace(bladder, windows=Windows([0], [2 * length]), **columns)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def apart(quadra: Scanner) -> tuple[RegionEvents, RegionEvents]:
    """Events of the bladder alone and of its background alone, 60 s each."""
    bladder = MadeUpScan(duration_s=60.0, background_hz=0.0, seed=21)
    background = MadeUpScan(duration_s=60.0, bladder_hz=0.0, seed=22)
    first, second = (
        collect_around(make_listmode(quadra, s), BLADDER) for s in (bladder, background)
    )
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("shift", [(0.0, 0.0, 13.0), (0.0, 0.0, -13.0), (6.0, -8.0, 3.0)])
def test_a_noise_free_shift_of_the_bladder_is_read_in_full(
    apart: tuple[RegionEvents, RegionEvents], shift: tuple[float, float, float]
) -> None:
    """The same events before and after, so that only the estimator can err: 0.07 mm at
    most was seen, 0.1 mm is allowed."""
    events = doubled(*apart, shift)
    trace = follow_bladder(events, BLADDER, settings=TraceSettings(window_ms=2000)).trace
    half = trace.n_windows // 2
    read = trace.displacement_mm[half:].mean(axis=0) - trace.displacement_mm[:half].mean(axis=0)
    assert np.abs(read - shift).max() < 0.1


@pytest.mark.slow
@pytest.mark.stats
def test_positions_are_unbiased_and_their_errors_true(
    moved_listmode: MemoryListmode, moved_scan: MadeUpScan
) -> None:
    """150 windows a seed: SD of the pull within 4.9 of its own errors, false alarms 1e-6."""
    search = locate_bladder(accumulate(moved_listmode))
    assert search.best is not None
    trace = trace_position(moved_listmode, search.best, window_ms=1000)
    time_s = trace.time_ms / 1000.0
    error = trace.displacement_mm + trace.reference_mm - moved_scan.bladder_centre_mm(time_s)
    clean = np.abs(time_s - 71.3) > 1.0
    assert np.abs(error[clean].mean(axis=0)).max() < 0.35
    assert trace.standard_error_mm.max() < 1.0
    pull = (error / trace.standard_error_mm)[clean]
    n = int(clean.sum())
    assert np.abs(pull.std(axis=0) - 1.0).max() < 4.9 / np.sqrt(2 * n)


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bits(moved_listmode: MemoryListmode) -> None:
    cut = Windows([60_000], [80_000])
    traces = []
    for threads in (1, 3):
        events = collect_around(moved_listmode, BLADDER, windows=cut, threads=threads)
        settings = TraceSettings(window_ms=1000)
        traces.append(follow_bladder(events, BLADDER, settings=settings, threads=threads).trace)
    assert np.array_equal(traces[0].displacement_mm, traces[1].displacement_mm)
    assert np.array_equal(traces[0].standard_error_mm, traces[1].standard_error_mm)


def test_windows_lengthen_until_they_reach_the_standard_error(quadra: Scanner) -> None:
    scan = MadeUpScan(duration_s=60.0, bladder_hz=100.0, background_hz=400.0, seed=31)
    events = collect_around(make_listmode(quadra, scan), BLADDER)
    fine = follow_bladder(events, BLADDER, settings=TraceSettings(standard_error_mm=1.0)).trace
    coarse = follow_bladder(
        events, BLADDER, settings=TraceSettings(standard_error_mm=3.0)
    ).trace
    assert fine.window_ms > coarse.window_ms >= 1000
    assert np.median(fine.standard_error_mm[:, 2]) < 1.2


def empty_but(events: RegionEvents, keep: NDArray[np.bool_]) -> RegionEvents:
    return replace(
        events,
        time_ms=events.time_ms[keep],
        point_mm=events.point_mm[keep],
        direction=events.direction[keep],
        weight=events.weight[keep],
    )


def test_a_window_without_events_has_no_position(quadra: Scanner) -> None:
    scan = MadeUpScan(duration_s=40.0, seed=32)
    events = collect_around(make_listmode(quadra, scan), BLADDER)
    events = empty_but(events, (events.time_ms < 10_000) | (events.time_ms >= 12_000))
    trace = follow_bladder(events, BLADDER, settings=TraceSettings(window_ms=1000)).trace
    assert np.isnan(trace.displacement_mm[10:12]).all()
    assert np.isinf(trace.standard_error_mm[10:12]).all()
    assert np.isfinite(trace.displacement_mm[[9, 12]]).all()
    assert trace.to_dict()["displacement_mm"][10] == [None, None, None]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_next_to_no_events_give_no_position_and_no_change(quadra: Scanner, n: int) -> None:
    scan = MadeUpScan(duration_s=20.0, seed=33)
    events = collect_around(make_listmode(quadra, scan), BLADDER)
    keep = np.zeros(len(events), bool)
    keep[:n] = True
    followed = follow_bladder(empty_but(events, keep), BLADDER)
    changes = find_changes(followed.trace, followed=followed)
    assert len(changes) == 0
    assert not np.isfinite(followed.trace.standard_error_mm).all()


def test_a_window_must_last() -> None:
    with pytest.raises(InputError, match="window must last at least 1 ms"):
        TraceSettings(window_ms=0)
