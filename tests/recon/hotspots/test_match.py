"""Which found hotspot stands for which true focus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listmode.errors import InputError
from recon.hotspots.match import match_foci

places = st.lists(st.tuples(*[st.integers(-20, 20)] * 3), min_size=0, max_size=6, unique=True)


def test_a_hotspot_within_reach_is_found_and_one_beyond_is_not() -> None:
    true = [[[0.0, 0.0, 0.0]], [[50.0, 0.0, 0.0]]]
    found = [[50.0, 8.0, 0.0], [0.0, 0.0, 8.001]]
    assert match_foci(found, true, [8.0, 8.0]).tolist() == [-1, 0]


def test_the_hotter_of_two_images_of_a_focus_is_taken_and_the_other_is_left_over() -> None:
    true = [[[0.0, 0.0, 0.0], [0.0, 0.0, 20.0]]]  # one focus, seen in two poses
    assert match_foci([[0.0, 1.0, 20.0], [0.0, 0.0, 0.0]], true, [5.0]).tolist() == [0]


def test_a_second_hotspot_goes_to_the_next_focus_within_its_reach() -> None:
    true = [[[0.0, 0.0, 0.0]], [[0.0, 0.0, 6.0]]]
    assert match_foci([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]], true, [9.0, 9.0]).tolist() == [0, 1]


def test_nothing_found_and_nothing_true_are_both_allowed() -> None:
    assert match_foci(np.zeros((0, 3)), np.zeros((2, 1, 3)), [5.0, 5.0]).tolist() == [-1, -1]
    assert match_foci([[0.0, 0.0, 0.0]], np.zeros((0, 1, 3)), []).tolist() == []


@given(places, places)
def test_agrees_with_the_obvious_slow_choice(
    found: list[tuple[int, int, int]], true: list[tuple[int, int, int]]
) -> None:
    taken: dict[int, int] = {}
    for row, point in enumerate(found):
        near = sorted(
            (float(np.linalg.norm(np.subtract(place, point))), k)
            for k, place in enumerate(true)
            if k not in taken
        )
        if near and near[0][0] <= 15.0:
            taken[near[0][1]] = row
    centres = np.array(true, dtype=float).reshape(-1, 1, 3)
    match = match_foci(np.array(found, dtype=float), centres, np.full(len(true), 15.0))
    assert match.tolist() == [taken.get(k, -1) for k in range(len(true))]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(n_true, n_poses, 3\) and a reach each"):
        match_foci([[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [5.0])
