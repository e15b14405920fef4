from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from listmode import _kernels

pytestmark = pytest.mark.kernel


def test_scores_agree_with_plain_interpolation() -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((2, 6, 7, 8, 4)).astype(np.float32)
    lower, voxel = np.array([-7.5, -9.0, -10.5]), 3.0
    point = rng.uniform(-14.0, 14.0, (40, 3)).astype(np.float32)
    direction = rng.integers(0, 2, 40).astype(np.uint8)
    weight = rng.uniform(0.8, 1.2, 40).astype(np.float32)
    window = np.array([0, 15, 15, 40], np.int64)
    shift, scale = rng.uniform(-2.0, 2.0, (3, 3)), np.array([1.0, 1.0, 1.2])
    active = np.array([True, True, True])
    score, square, inside = np.zeros((3, 3)), np.zeros((3, 3, 3)), np.zeros(3, np.int64)
    _kernels.score_windows(
        point, direction, weight, window, table, lower, voxel, shift, scale, active, 0, 3,
        score, square, inside,
    )  # fmt: skip
    for w in range(3):
        expected, n = np.zeros(3), 0
        for e in range(window[w], window[w + 1]):
            place = ((point[e] - shift[w]) / scale[w] - lower) / voxel
            if (place < 0).any() or (place >= np.array([5, 6, 7])).any():
                continue
            n += 1
            for c in range(3):
                column = table[direction[e], ..., c + 1].astype(np.float64)
                value = map_coordinates(column, place[:, None], order=1)[0]
                expected[c] += weight[e] * value
        assert inside[w] == n
        assert np.abs(score[w] - expected).max() < 1e-4
        assert np.array_equal(square[w], square[w].T)


def test_windows_that_are_not_active_are_left_alone() -> None:
    table = np.ones((1, 3, 3, 3, 4), np.float32)
    score, square, inside = np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros(2, np.int64)
    _kernels.score_windows(
        np.ones((4, 3), np.float32), np.zeros(4, np.uint8), np.ones(4, np.float32),
        np.array([0, 2, 4], np.int64), table, np.zeros(3), 1.0, np.zeros((2, 3)), np.ones(2),
        np.array([False, True]), 0, 2, score, square, inside,
    )  # fmt: skip
    assert inside.tolist() == [0, 2]
    assert score.tolist() == [[0.0] * 3, [2.0] * 3]


def test_an_event_outside_the_table_has_the_density_outside() -> None:
    table = np.full((1, 3, 3, 3, 4), 5.0, np.float32)
    point = np.array([[1.0, 1.0, 1.0], [9.0, 1.0, 1.0]], np.float32)
    found = np.empty(2)
    _kernels.log_densities(
        point, np.zeros(2, np.uint8), table, np.zeros(3), 1.0, np.zeros((2, 3)), np.ones(2),
        np.array([-1.0], np.float32), found,
    )  # fmt: skip
    assert found.tolist() == [5.0, -1.0]


def test_aligned_histograms_conserve_the_weight_inside() -> None:
    rng = np.random.default_rng(2)
    point = rng.uniform(-5.0, 5.0, (30, 3)).astype(np.float32)
    weight = rng.uniform(0.5, 1.5, 30).astype(np.float32)
    image = np.zeros((2, 8, 8, 8))
    _kernels.histogram_aligned(
        point, weight, np.array([0, 10, 20, 30], np.int64), np.full((3, 3), 0.5),
        np.full(3, -8.0), 2.0, np.array([0, -1, 1], np.int64), image,
    )  # fmt: skip
    assert image[0].sum() == pytest.approx(float(weight[:10].sum()), rel=1e-6)
    assert image[1].sum() == pytest.approx(float(weight[20:].sum()), rel=1e-6)
