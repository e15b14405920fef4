"""Batches of events: canonical pairs and the sign of TOF."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.events import EventBatch
from tests.strategies import small_scanner

pairs = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 4)).filter(
        lambda p: p[0] != p[1]
    ),
    max_size=30,
)


def test_exchanged_pair_mirrors_its_tof_bin() -> None:
    batch = EventBatch.from_pairs(np.array([7, 2]), np.array([2, 7]), np.array([4, 4]), 5)
    assert batch.crystal_a.tolist() == [2, 2]
    assert batch.crystal_b.tolist() == [7, 7]
    assert batch.tof_bin.tolist() == [0, 4]


def test_later_arrival_at_a_lies_nearer_to_b() -> None:
    """The largest bin has the largest t_a - t_b, so its centre lies towards b."""
    assert small_scanner().tof.bin_centre_mm()[-1] > 0


def test_pair_in_wrong_order_is_refused() -> None:
    with pytest.raises(InputError, match=r"event 1 of the batch is \(5, 3\)"):
        EventBatch(np.array([1, 5]), np.array([2, 3]), np.zeros(2, np.int16))


def test_crystal_paired_with_itself_is_refused() -> None:
    with pytest.raises(InputError, match=r"is \(4, 4\)"):
        EventBatch(np.array([4]), np.array([4]), np.zeros(1, np.int16))


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="2, 2 and 1 entries"):
        EventBatch(np.array([0, 1]), np.array([2, 3]), np.zeros(1, np.int16))


def test_columns_have_fixed_type_and_are_read_only() -> None:
    batch = EventBatch(np.array([0, 1]), np.array([2, 3]), np.array([0, 1], np.int16))
    assert batch.crystal_a.dtype == np.uint32
    assert batch.tof_bin.dtype == np.int16
    with pytest.raises(ValueError, match="read-only"):
        batch.crystal_a[0] = 1


def test_empty_batch_has_no_events() -> None:
    assert len(EventBatch.empty()) == 0


@given(pairs)
def test_naming_the_crystals_the_other_way_round_gives_the_same_event(
    events: list[tuple[int, int, int]],
) -> None:
    first = np.array([e[0] for e in events], np.int64)
    second = np.array([e[1] for e in events], np.int64)
    tof = np.array([e[2] for e in events], np.int64)
    one = EventBatch.from_pairs(first, second, tof, 5)
    other = EventBatch.from_pairs(second, first, 4 - tof, 5)
    assert np.array_equal(one.crystal_a, other.crystal_a)
    assert np.array_equal(one.tof_bin, other.tof_bin)
