"""The Gaussian in image space."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from recon.image import Grid
from recon.psf import blur

GRID = Grid.centred((21, 24, 27), (2.0, 3.0, 2.5))


def test_a_point_becomes_a_gaussian_of_the_stated_width() -> None:
    point = np.zeros(GRID.shape, np.float32)
    point[10, 12, 13] = 1
    spread = blur(point, GRID, 9.0).astype(np.float64)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    for axis in range(3):
        profile = spread.sum(axis=tuple(k for k in range(3) if k != axis))
        x = GRID.axis_mm(axis)
        mean = (profile * x).sum()
        fwhm = 2.3548 * np.sqrt((profile * (x - mean) ** 2).sum())
        assert fwhm == pytest.approx(9.0, rel=0.03)  # cut at 3 sigma


def test_blurring_is_its_own_transpose_and_keeps_its_input() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((2, *GRID.shape)).astype(np.float32)
    before = x.copy()
    left = np.vdot(blur(x, GRID, 7.0).astype(np.float64), y)
    right = np.vdot(x.astype(np.float64), blur(y, GRID, 7.0))
    assert left == pytest.approx(right, rel=1e-6)
    np.testing.assert_array_equal(x, before)


def test_threads_do_not_change_the_bits() -> None:
    x = np.random.default_rng(2).random(GRID.shape).astype(np.float32)
    np.testing.assert_array_equal(blur(x, GRID, 7.0, 1), blur(x, GRID, 7.0, 3))


def test_no_width_changes_nothing() -> None:
    x = np.random.default_rng(2).random(GRID.shape).astype(np.float32)
    assert blur(x, GRID, 0.0) is x


def test_a_negative_width_is_refused() -> None:
    with pytest.raises(InputError, match="resolution must be zero or more, but it is -1 mm"):
        blur(np.zeros(GRID.shape, np.float32), GRID, -1.0)
