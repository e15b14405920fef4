"""Edge crystals by incidence: photons followed one by one, and the mean over directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.formats.scanner_file import load_scanner
from listmode.scanner import TofModel
from recon.corrections.block_edges import edge_response, side_gain
from recon.corrections.normalisation import pair_efficiency
from tests.oracles import small_scanner

F64 = NDArray[np.float64]
PITCH_MM, DEPTH_MM, MU, N = 3.3, 20.0, 0.08, 12


def _followed(slope: float, gap_mm: float, n_rays: int = 150_000) -> F64:
    """Shoot even rays of one slope at two blocks in line; count what crystals of one stop.

    Over the count of the same crystal in an endless slab. Seed 9: some 3000 photons a crystal,
    2 % noise.
    """
    rng = np.random.default_rng(9)
    width = N * PITCH_MM
    reach = width + gap_mm + DEPTH_MM * slope
    start = rng.uniform(-reach, width, n_rays)  # where a ray meets the plane of the fronts
    way = rng.exponential(1.0, n_rays) / MU  # through crystal, still to go
    step = 0.05  # along the depth, mm
    cos = 1.0 / math.hypot(1.0, slope)
    left, stopped = way, np.full(n_rays, np.nan)
    for y in np.arange(step / 2, DEPTH_MM, step):
        t = start + slope * y
        crystal = ((t >= 0) & (t < width)) | ((t >= -gap_mm - width) & (t < -gap_mm))
        left = left - np.where(crystal, step / cos, 0.0)
        new = crystal & (left <= 0) & np.isnan(stopped)
        stopped[new] = t[new]
    counts = np.histogram(stopped[~np.isnan(stopped)], np.arange(N + 1) * PITCH_MM)[0]
    slab = n_rays / (reach + width) * PITCH_MM * -math.expm1(-MU * DEPTH_MM / cos)
    return np.asarray(counts / slab)


@pytest.mark.stats
@pytest.mark.parametrize(("slope", "gap_mm"), [(0.3, 2.0), (1.0, 4.0), (2.0, 60.0)])
def test_the_gain_at_a_side_is_that_of_photons_followed_one_by_one(
    slope: float, gap_mm: float
) -> None:
    counted = _followed(slope, gap_mm)
    gain = side_gain(N, PITCH_MM, DEPTH_MM, MU, np.array([slope]), gap_mm=gap_mm)[:, 0]
    np.testing.assert_allclose(1 + gain[:4], counted[:4], rtol=0.08)
    assert gain[0] > 0.2
    assert gain[-1] < 0.02


def test_neighbours_turned_by_nothing_are_neighbours_in_line() -> None:
    slope = np.array([0.2, 0.7])
    turned = side_gain(
        N, PITCH_MM, DEPTH_MM, MU, slope, turn_rad=1e-4, front_mm=(N * PITCH_MM + 1.0) / 1e-4
    )
    straight = side_gain(N, PITCH_MM, DEPTH_MM, MU, slope, gap_mm=1.0)
    np.testing.assert_allclose(turned, straight, atol=2e-3)


def test_photons_along_the_block_s_depth_gain_nothing() -> None:
    assert np.abs(side_gain(N, PITCH_MM, DEPTH_MM, MU, np.array([0.0]))).max() < 1e-9


def test_an_edge_gains_only_what_comes_in_by_its_own_side() -> None:
    scanner = load_scanner("quadra")
    edges = edge_response(scanner)
    assert edges is not None
    zero = edges.across.shape[1] // 2
    first, last = edges.across[0], edges.across[-1]
    assert first[zero + 6] > 1.2 * first[zero]
    np.testing.assert_allclose(first[:zero], first[zero], rtol=1e-5)
    np.testing.assert_allclose(first, last[::-1], rtol=1e-5)


def test_the_mean_over_directions_is_the_stated_profile_of_the_preset() -> None:
    """What geometry alone expects of the edges is what the simulator's photons measured."""
    scanner = load_scanner("quadra")
    edges = edge_response(scanner)
    assert edges is not None
    zero = edges.across.shape[1] // 2
    across = 1.0 / edges.across[:, zero]  # nothing is gained at slope 0
    along = 1.0 / edges.along[:, zero]
    profile = scanner.crystal_profile
    np.testing.assert_allclose(across, profile[:20] / profile[10], atol=0.01)
    ring = profile[10 :: 38 * 20]
    np.testing.assert_allclose(along[:80], ring[:80] / ring[40], atol=0.01)


def test_a_pair_s_efficiency_follows_the_incidence_at_both_ends() -> None:
    """A LOR through the axis meets edges without gain; one past the axis gains at one side."""
    scanner = load_scanner("quadra")
    n_around = 38 * 20
    ring = 40 * n_around  # the middle of a unit: no axial edge near
    for step in (0, 3):  # blocks across: opposite, and three blocks off
        other = ring + ((19 + step) * 20 + np.arange(20)) % n_around
        mine = np.full(20, ring)  # the first crystal of block 0
        got = pair_efficiency(scanner, mine, other)
        slab = _slab(scanner.crystal_position_mm, scanner.crystal_normal, mine, other)
        ratio = got / slab
        inner = ratio[8:12].mean()
        if step == 0:
            opposite_edges = ratio[[0, 19]]
            assert opposite_edges.max() / inner < 1.12
        else:
            assert max(ratio[0], ratio[19]) / inner > 1.2


def _slab(position: NDArray[np.float32], normal: NDArray[np.float32],
          a: NDArray[np.int64], b: NDArray[np.int64]) -> F64:  # fmt: skip
    r = (position[b] - position[a]).astype(np.float64)
    length = np.linalg.norm(r, axis=1)
    out = np.ones(len(a)) / length**2
    for crystal in (a, b):
        cos = np.abs((r * normal[crystal]).sum(axis=1)) / length
        out *= cos * -np.expm1(-0.083 * 20 * (3.2 / 3.29114) ** 2 / cos)
    return np.asarray(out, np.float64)


def test_scanners_without_a_stated_profile_are_left_as_they_are() -> None:
    assert edge_response(small_scanner(tof=TofModel(5, 200.0, 220.0))) is None
