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
    point = rng.uniform(-14.0, 14.0, (40, 4)).astype(np.float32)
    point[:, 3] = rng.uniform(0.8, 1.2, 40)
    window = np.array([[0, 8, 8, 20], [20, 27, 27, 40]], np.int64)  # two classes, by window
    shift, scale = rng.uniform(-2.0, 2.0, (3, 3)), np.array([1.0, 1.0, 1.2])
    active = np.array([True, True, True])
    score, square, inside = np.zeros((3, 3)), np.zeros((3, 3, 3)), np.zeros(3, np.int64)
    _kernels.score_windows(
        point, window, table, lower, voxel, shift, scale, active, 0, 3, score, square, inside
    )
    for w in range(3):
        expected, product, n = np.zeros(3), np.zeros((3, 3)), 0
        for d in range(2):
            for e in range(window[d, w], window[d, w + 1]):
                place = ((point[e, :3] - shift[w]) / scale[w] - lower) / voxel
                if (place < 0).any() or (place >= np.array([5, 6, 7])).any():
                    continue
                n += 1
                own = point[e, 3] * np.array(
                    [
                        map_coordinates(
                            table[d, ..., c].astype(np.float64), place[:, None], order=1
                        )[0]
                        for c in (1, 2, 3)
                    ]
                )
                expected += own
                product += np.outer(own, own)
        assert inside[w] == n
        assert np.abs(score[w] - expected).max() < 1e-4
        assert np.abs(square[w] - product).max() < 1e-4
        assert np.array_equal(square[w], square[w].T)


def test_a_window_of_more_events_than_a_batch_counts_every_one() -> None:
    rng = np.random.default_rng(3)
    point = np.full((1300, 4), 0.5, np.float32)
    point[:, 3] = rng.uniform(0.5, 1.5, 1300)
    point[::3, 0] = 9.0  # outside
    table = np.ones((1, 3, 3, 3, 4), np.float32)
    score, square, inside = np.zeros((1, 3)), np.zeros((1, 3, 3)), np.zeros(1, np.int64)
    _kernels.score_windows(
        point, np.array([[0, 1300]], np.int64), table, np.zeros(3), 1.0, np.zeros((1, 3)),
        np.ones(1), np.array([True]), 0, 1, score, square, inside,
    )  # fmt: skip
    kept = np.ones(1300, bool)
    kept[::3] = False
    assert inside[0] == kept.sum()
    assert score[0] == pytest.approx([float(point[kept, 3].sum())] * 3, rel=1e-6)


def test_windows_that_are_not_active_are_left_alone() -> None:
    table = np.ones((1, 3, 3, 3, 4), np.float32)
    score, square, inside = np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros(2, np.int64)
    _kernels.score_windows(
        np.ones((4, 4), np.float32), np.array([[0, 2, 4]], np.int64), table, np.zeros(3), 1.0,
        np.zeros((2, 3)), np.ones(2), np.array([False, True]), 0, 2, score, square, inside,
    )  # fmt: skip
    assert inside.tolist() == [0, 2]
    assert score.tolist() == [[0.0] * 3, [2.0] * 3]


def test_sorting_by_direction_keeps_the_order_within_a_class() -> None:
    rng = np.random.default_rng(5)
    n = 200
    time_ms = np.sort(rng.integers(0, 1000, n)).astype(np.int32)
    point = rng.standard_normal((n, 3)).astype(np.float32)
    weight, direction = rng.random(n, dtype=np.float32), rng.integers(0, 5, n).astype(np.uint8)
    start = np.searchsorted(np.sort(direction), np.arange(5)).astype(np.int64)
    sorted_ms, rows = np.empty(n, np.int32), np.empty((n, 4), np.float32)
    _kernels.sort_by_direction(time_ms, point, weight, direction, start, sorted_ms, rows)
    order = np.argsort(direction, kind="stable")
    assert np.array_equal(sorted_ms, time_ms[order])
    assert np.array_equal(rows, np.column_stack((point, weight))[order])


def test_bands_are_interpolated_and_go_on_beyond_their_ends() -> None:
    table = np.array([[0.0, 1.0, 4.0], [10.0, 10.0, 10.0], [5.0, 6.0, 7.0]])
    place = np.array([-3.0, 1.0, 3.0, 99.0, 3.0], np.float32)
    band = np.array([0, 3, 0, 6, 4], np.uint8)
    value = np.empty(5, np.float32)
    _kernels.interpolate_bands(place, band, 0.0, 2.0, table, value)
    assert value.tolist() == [0.0, 0.5, 2.5, 4.0, 10.0]


def test_levelled_weights_undo_an_exponential_tilt() -> None:
    rng = np.random.default_rng(6)
    point = rng.uniform(-40.0, 40.0, (50, 3)).astype(np.float32)
    tilt, centre = np.array([0.004, -0.002, 0.003]), np.array([1.0, 2.0, 3.0])
    tilted = np.exp((point - centre) @ tilt).astype(np.float32)
    level = np.empty(50, np.float32)
    _kernels.level_weights(point, tilted, centre, tilt, level)
    assert level == pytest.approx(np.ones(50), abs=1e-5)


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
