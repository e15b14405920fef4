"""Windows of time: half-open, ascending, disjoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.windows import Windows
from tests.strategies import windows

TIMES = np.arange(-5, 106)


def test_start_belongs_to_the_window_and_stop_does_not() -> None:
    assert Windows([10], [20]).covers([9, 10, 19, 20]).tolist() == [False, True, True, False]


def test_arrays_are_read_only_copies() -> None:
    start = np.array([0, 10])
    made = Windows(start, [5, 20])
    start[0] = 3
    assert made.start_ms[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        made.start_ms[0] = 1


def test_empty_window_is_refused() -> None:
    with pytest.raises(InputError, match="must stop after it starts, but window 1 runs from 7"):
        Windows([0, 7], [5, 7])


def test_reversed_window_is_refused() -> None:
    with pytest.raises(InputError, match="window 0 runs from 9 ms to 3 ms"):
        Windows([9], [3])


def test_overlapping_windows_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"window 0 \(0-10 ms\) and window 1 \(9-20 ms\) do not"
    ):
        Windows([0, 9], [10, 20])


def test_unpaired_ends_are_refused() -> None:
    with pytest.raises(InputError, match="2 starts and 1 stops"):
        Windows([0, 5], [3])


def test_text_is_read_in_seconds() -> None:
    assert Windows.parse("0-0.12, 600-1200") == Windows([0, 600_000], [120, 1_200_000])


@pytest.mark.parametrize("text", ["", "5", "a-b", "0-inf", "1-2-3", "0-1;2-3", "-5-3"])
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="windows must read like '0-120,600-1200'"):
        Windows.parse(text)


def test_reversed_text_names_its_window() -> None:
    with pytest.raises(InputError, match="window 0 runs from 9000 ms to 3000 ms"):
        Windows.parse("9-3")


def test_adjoining_windows_merge() -> None:
    assert Windows([0, 5, 20], [5, 9, 30]).merged() == Windows([0, 20], [9, 30])


def test_empty_union_has_no_duration_and_covers_nothing() -> None:
    empty = Windows.empty()
    assert empty.duration_s == 0.0
    assert not empty.covers(TIMES).any()
    assert len(empty.merged()) == 0


def test_mask_joins_neighbours() -> None:
    made = Windows.from_mask([True, True, False, True], [0, 10, 20, 30, 40])
    assert made == Windows([0, 30], [20, 40])


@given(windows())
def test_text_form_reads_back(made: Windows) -> None:
    assert Windows.parse(str(made).removesuffix(" s")) == made


@given(windows(), windows())
def test_union_and_intersection_agree_with_sets_of_times(one: Windows, other: Windows) -> None:
    a, b = one.covers(TIMES), other.covers(TIMES)
    assert np.array_equal(one.union(other).covers(TIMES), a | b)
    assert np.array_equal(one.intersection(other).covers(TIMES), a & b)


@given(windows())
def test_window_and_complement_cover_the_scan_once(made: Windows) -> None:
    rest = made.complement(0, 100)
    assert made.duration_s + rest.duration_s == pytest.approx(0.1)
    assert not (made.covers(TIMES) & rest.covers(TIMES)).any()


@given(windows(), st.integers(1, 30))
def test_cutting_keeps_the_time_and_bounds_the_length(made: Windows, length_ms: int) -> None:
    pieces = made.cut(length_ms)
    assert np.array_equal(pieces.covers(TIMES), made.covers(TIMES))
    assert (pieces.stop_ms - pieces.start_ms).max() <= length_ms


@given(windows(), windows())
def test_equal_windows_have_equal_hashes(one: Windows, other: Windows) -> None:
    assert (one == other) == (str(one) == str(other))
    if one == other:
        assert hash(one) == hash(other)
