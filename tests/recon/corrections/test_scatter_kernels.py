"""Small cases by hand for the scatter kernels, run with and without the compiler."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recon.corrections import _kernels

pytestmark = pytest.mark.kernel


def misses(start: list[float], stop: list[float], mask: np.ndarray) -> bool:
    missed = np.empty(1, np.uint8)
    ends, first, last = (
        np.array([start, stop], np.float32),
        np.zeros(1, np.uint32),
        np.ones(1, np.uint32),
    )
    _kernels.miss_mask(ends, first, last, mask, missed)
    return bool(missed[0])


def test_a_segment_misses_what_it_does_not_cross() -> None:
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[2, 3, 4] = 1
    assert not misses([2, -9, 4], [2, 9, 4], mask)
    assert not misses([2.4, -9, 4.4], [2.4, 9, 4.4], mask)
    assert misses([2.6, -9, 4], [2.6, 9, 4], mask)
    assert misses([2, -9, 7], [2, 9, 7], mask)  # beside the grid, parallel to it
    assert misses([2, -9, 4], [2, 2.4, 4], mask)  # ends before


def test_a_face_seen_edge_on_stops_nothing() -> None:
    assert _kernels.face_gain(0.0, 1.6) == 0.0
    assert _kernels.face_gain(1.0, 1.6) == pytest.approx(1 - math.exp(-1.6))
    assert _kernels.face_gain(0.5, 1.6) == pytest.approx(0.5 * (1 - math.exp(-3.2)))


def test_the_short_exponential_is_close_where_it_is_used() -> None:
    for x in (0.0, 0.1, 0.5, 1.0):
        assert float(_kernels.short_exp(np.float32(x))) == pytest.approx(
            math.exp(-x), rel=2e-3 * x**4 + 1e-6
        )


def test_rays_add_up_what_they_cross() -> None:
    """One point in a block of 5 x 1 x 1 voxels of activity 2 and mu 0.1, seen along x."""
    field = np.zeros((9, 5, 5, 2), np.float32)
    field[2:7, 1:4, 1:4, 0] = 2.0
    field[2:7, 1:4, 1:4, 1] = 0.1
    point = np.array([[4.0, 2.0, 2.0]])
    node = np.array([[24.0, 2.0, 2.0]])
    normal = np.array([[1.0, 0.0, 0.0]])
    direction = np.empty((1, 1, 3), np.float32)
    far, face, mu, left = (np.empty((1, 1), np.float32) for _ in range(4))
    emission, n_steps = np.empty((1, 1, 40), np.float32), np.empty((1, 1), np.int32)
    _kernels.trace_rays(
        point, node, normal, 1.6, field, 0.25, 0, 1,
        direction, far, face, mu, left, emission, n_steps,
    )  # fmt: skip
    distance, gain, mu_integral, survival = (float(v[0, 0]) for v in (far, face, mu, left))
    assert direction[0, 0] == pytest.approx([1.0, 0.0, 0.0])
    assert distance == pytest.approx(20.0)
    assert gain == pytest.approx((1 - math.exp(-1.6)) / 400.0, rel=1e-6)
    # from the middle of the block: 2 voxels and the half that interpolation spreads, 2.5
    assert mu_integral == pytest.approx(0.25, abs=0.01)
    assert survival == pytest.approx(math.exp(-mu_integral), rel=1e-6)
    assert emission[0, 0, : n_steps[0, 0]].sum() == pytest.approx(5.0, abs=0.2)
