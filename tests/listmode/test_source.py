"""What every open file looks like: windows become slices of events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.source import ScanProtocol
from listmode.windows import Windows
from tests.strategies import PROTOCOL, joined, random_scan, same_events, small_scanner, windows

SCAN = random_scan(3, n_ticks=100)


def _tick_of_event(scan: MemoryListmode) -> np.ndarray:
    return np.repeat(np.arange(100), np.diff(scan.prompts_offset))


@given(windows(0, 100))
def test_windows_give_the_events_of_their_ticks_in_order(made: Windows) -> None:
    inside = made.covers(_tick_of_event(SCAN))
    assert SCAN.count(made) == inside.sum()
    got = joined(list(SCAN.events(made, chunk=7)))
    assert got.crystal_a.tolist() == SCAN.prompts.crystal_a[inside].tolist()
    assert got.tof_bin.tolist() == SCAN.prompts.tof_bin[inside].tolist()


def test_whole_extent_is_read_where_no_window_is_given() -> None:
    assert same_events(joined(list(SCAN.events(chunk=33))), SCAN.prompts)
    assert SCAN.count(SCAN.extent, "delayeds") == len(SCAN.delayeds)


@pytest.mark.parametrize("made", [Windows([-1], [5]), Windows([90], [101])])
def test_windows_outside_the_scan_are_refused(made: Windows) -> None:
    with pytest.raises(InputError, match=r"must lie within the scan, 0-0\.1 s from tick zero"):
        SCAN.count(made)


def test_no_window_is_refused() -> None:
    with pytest.raises(InputError, match="at least one window of time is needed"):
        SCAN.count(Windows.empty())


def test_scan_that_starts_late_keeps_its_clock() -> None:
    late = random_scan(3, n_ticks=100, start_ms=5000)
    assert late.extent == Windows([5000], [5100])
    assert late.count(Windows([5010], [5020])) == SCAN.count(Windows([10], [20]))
    with pytest.raises(InputError, match=r"5-5\.1 s from tick zero"):
        late.count(Windows([0], [20]))


def test_tick_index_must_end_at_the_events() -> None:
    with pytest.raises(
        InputError, match="must ascend from 0 to 0 events, but it runs from 0 to 2"
    ):
        MemoryListmode(small_scanner(), PROTOCOL, EventBatch.empty(), np.array([0, 2]))


def test_hash_follows_the_events() -> None:
    assert SCAN.file_hash == random_scan(3, n_ticks=100).file_hash
    assert SCAN.file_hash != random_scan(4, n_ticks=100).file_hash


def test_truth_goes_along_with_the_events() -> None:
    scan = random_scan(5, has_truth=True)
    part = scan.read_truth(10, 20)
    assert part is not None
    assert scan.truth is not None
    assert part.tolist() == scan.truth[10:20].tolist()
    assert SCAN.read_truth(0, 5) is None


def test_activity_decays_from_injection_to_tick_zero() -> None:
    """exp(-ln2 60/109.77) = 0.6846."""
    protocol = ScanProtocol(injected_activity_bq=100.0, injection_time_s=-3600.0)
    assert protocol.activity_at_zero_bq == pytest.approx(68.46, abs=0.01)


def test_suv_factor_needs_activity_and_weight() -> None:
    assert ScanProtocol(patient_weight_kg=70.0).suv_per_bq_ml is None
    known = ScanProtocol(
        injected_activity_bq=70.0e6, injection_time_s=0.0, patient_weight_kg=70.0
    )
    assert known.suv_per_bq_ml == pytest.approx(1e-3)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_impossible_count_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match=r"count fraction must lie in \(0, 1\]"):
        ScanProtocol(count_fraction=fraction)


def test_impossible_half_life_is_refused() -> None:
    with pytest.raises(InputError, match="half-life must be positive, but it is 0 s"):
        ScanProtocol(half_life_s=0.0)
