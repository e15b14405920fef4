"""The sampled sensitivity against an exhaustive sum, and against published figures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.scanner import Scanner, TofModel
from recon.corrections.attenuation import attenuation_factors
from recon.image import Grid, Volume
from recon.projector import back
from recon.sensitivity import coarsen, compute_sensitivity
from tests import reference_values as known
from tests.oracles import all_pairs, exhaustive_rates, small_scanner

F64 = NDArray[np.float64]

GRID = Grid.centred((17, 17, 19), 8.0)
TOF = TofModel(5, 200.0, 220.0)  # a window so narrow that it cuts counts off


def _scanner() -> Scanner:
    return small_scanner(tof=TOF, n_rings_per_unit=9, max_ring_difference=12)


def _water() -> Volume:
    grid = Grid.centred((40, 40, 40), 4.0)
    x, y, z = np.meshgrid(*[grid.axis_mm(k) for k in range(3)], indexing="ij")
    inside = ((x / 60) ** 2 + ((y - 5) / 40) ** 2 < 1) & (np.abs(z) < 70)
    return Volume(inside * np.float32(0.096), grid, "1/cm")


def _every_pair_once(
    scanner: Scanner, grid: Grid, mu: Volume | None, efficiency: NDArray[np.float32]
) -> NDArray[np.floating]:
    a, b = all_pairs(scanner)
    n = exhaustive_rates(scanner, a, b) * efficiency[a] * efficiency[b]
    if mu is not None:
        n = n * attenuation_factors(coarsen(mu, 8.0), scanner, a, b)
    pairs = EventBatch(a.astype(np.uint32), b.astype(np.uint32), np.zeros(a.size, np.int16))
    return back(n, grid, scanner, pairs, tof=False, dtype=np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("has_water", [False, True])
def test_sampling_agrees_with_every_pair_once(has_water: bool) -> None:
    scanner = _scanner()
    mu = _water() if has_water else None
    rng = np.random.default_rng(3)
    efficiency = rng.normal(1, 0.1, scanner.n_crystals).astype(np.float32)
    got = compute_sensitivity(
        scanner, GRID, mu=mu, crystal_efficiency=efficiency, n_pairs=6_000_000, coarse_mm=8.0
    )
    truth = _every_pair_once(scanner, GRID, mu, efficiency)
    body = (slice(3, 14), slice(5, 13), slice(2, 17))
    error = got.values[body] / truth[body] - 1
    rms = float(np.sqrt(np.mean(error**2)))
    assert rms < 0.005
    assert rms < 3 * got.relative_error + 1e-4  # the stated error is an honest one
    assert abs(error.mean()) < 1e-3


@pytest.mark.slow
def test_sensitivity_follows_the_steep_rise_at_the_skin() -> None:
    """Within 1 % of every pair once in shells out to the skin, from coarse voxels of 16 mm.

    Crystals of 4 mm, so that their pattern averages out in a shell. Without the mean survival
    as a guide the outer shell is 4 % too high.
    """
    scanner = small_scanner(
        tof=TOF, n_crystals=9, n_rings_per_unit=12, pitch_mm=4.1, max_ring_difference=16
    )
    fine = Grid.centred((33, 25, 19), 4.0)
    mu, ones = _water(), np.ones(scanner.n_crystals, np.float32)
    got = compute_sensitivity(scanner, fine, mu=mu, n_pairs=3_000_000, coarse_mm=16.0)
    truth = _every_pair_once(scanner, fine, mu, ones)
    x, y, z = np.meshgrid(*[fine.axis_mm(k) for k in range(3)], indexing="ij")
    level = np.sqrt((x / 60) ** 2 + ((y - 5) / 40) ** 2)
    for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.0)):
        shell = (level >= low) & (level < high) & (np.abs(z) < 30)
        ratio = got.values[shell].sum() / truth[shell].sum()
        assert ratio == pytest.approx(1.0, abs=0.01), f"{low} to {high} of the way out"


@pytest.mark.slow
def test_a_scanner_without_rings_is_sampled_alike() -> None:
    scanner = _scanner()
    order = np.random.default_rng(1).permutation(scanner.n_crystals)
    shuffled = replace(
        scanner,
        layout=None,
        crystal_position_mm=scanner.crystal_position_mm[order],
        crystal_normal=scanner.crystal_normal[order],
        crystal_ring=scanner.crystal_ring[order],
        crystal_transaxial=np.arange(scanner.n_crystals, dtype=np.int32),
        n_transaxial=scanner.n_crystals,
    )
    regular = compute_sensitivity(scanner, GRID, n_pairs=2_000_000)
    free = compute_sensitivity(shuffled, GRID, n_pairs=4_000_000)
    body = (slice(3, 14), slice(3, 14), slice(2, 17))
    error = free.values[body] / regular.values[body] - 1
    assert abs(error.mean()) < 2e-3
    assert np.sqrt(np.mean(error**2)) < 0.02


@cache
def _line_cps_per_kbq(mode: str) -> tuple[F64, F64]:
    """Give the sensitivity along the axis of the Quadra, and where: a line source in air."""
    grid = Grid((5, 5, 28), (26.0, 26.0, 26.0), (-52.0, -52.0, -351.0))
    s = compute_sensitivity(load_scanner("quadra", mode), grid, n_pairs=2_000_000, coarse_mm=26)
    line = s.values[2, 2] / grid.voxel_ml * 1000 * 0.9673  # branching of F-18
    at = np.linspace(-350, 350, 281)
    return at, np.interp(at, grid.axis_mm(2), line)


@pytest.mark.slow
@pytest.mark.reference
def test_a_70_cm_line_in_the_quadra_has_the_published_sensitivity() -> None:
    rate = {mode: float(_line_cps_per_kbq(mode)[1].mean()) for mode in ("HS", "UHS")}
    ratio = rate["UHS"] / rate["HS"]
    assert ratio == pytest.approx(known.UHS_OVER_HS, abs=known.UHS_OVER_HS_LIMIT)
    published = known.LINE_SENSITIVITY_CPS_PER_KBQ
    factor = sum(published.values()) / sum(rate.values())
    for mode in ("HS", "UHS"):
        assert rate[mode] * factor == pytest.approx(published[mode], rel=0.03)
    assert factor == pytest.approx(1, abs=0.1)  # the preset's window efficiency


@pytest.mark.slow
@pytest.mark.reference
def test_the_axial_profile_is_flat_in_hs_and_a_triangle_in_uhs() -> None:
    segments = {}
    for mode in ("HS", "UHS"):
        at, rate = _line_cps_per_kbq(mode)
        both = [
            rate[np.abs(np.abs(at) - centre) <= 25.0].mean()
            for centre in known.SEGMENT_CENTRE_MM
        ]
        # One common factor a mode: the shape is compared, not the scale.
        published = known.LINE_SENSITIVITY_CPS_PER_KBQ[mode]
        segments[mode] = np.array(both) * published / rate.mean()
    low, high = known.HS_SEGMENTS_RANGE_CPS_PER_KBQ
    assert (segments["HS"] > 0.98 * low).all()
    assert (segments["HS"] < 1.02 * high).all()
    np.testing.assert_allclose(segments["UHS"], known.UHS_SEGMENTS_CPS_PER_KBQ, rtol=0.03)


def test_a_pair_outside_the_window_of_time_does_not_count() -> None:
    wide = replace(_scanner(), tof=TofModel(25, 200.0, 220.0))
    far = (slice(14, 16), slice(8, 9), slice(9, 10))
    seen = [compute_sensitivity(s, GRID, n_pairs=200_000).values for s in (_scanner(), wide)]
    assert seen[0][8, 8, 9] == pytest.approx(seen[1][8, 8, 9], rel=0.02)
    assert seen[0][far].mean() < 0.985 * seen[1][far].mean()


def test_the_same_bits_come_out_at_any_number_of_threads() -> None:
    images = [
        compute_sensitivity(_scanner(), GRID, mu=_water(), n_pairs=100_000, threads=t).values
        for t in (1, 2, 4)
    ]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_sensitivity_goes_with_the_voxel_volume() -> None:
    fine = Grid.centred((33, 33, 37), 4.0)
    coarse = compute_sensitivity(_scanner(), GRID, n_pairs=400_000)
    again = compute_sensitivity(_scanner(), fine, n_pairs=400_000)
    ratio = coarse.values[8, 8, 9] / again.values[16, 16, 18]
    assert ratio == pytest.approx(8, rel=0.02)


def test_a_second_run_reads_what_the_first_kept(tmp_path: Path) -> None:
    first = compute_sensitivity(_scanner(), GRID, n_pairs=50_000, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    stamp = kept.stat().st_mtime_ns
    second = compute_sensitivity(_scanner(), GRID, n_pairs=50_000, cache_dir=tmp_path)
    np.testing.assert_array_equal(first.values, second.values)
    assert first.relative_error == second.relative_error
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["mu", "efficiency", "grid", "n_pairs", "scanner"])
def test_whatever_it_depends_on_makes_another_cache_entry(tmp_path: Path, change: str) -> None:
    scanner, grid, n_pairs = _scanner(), GRID, 50_000
    compute_sensitivity(scanner, grid, n_pairs=n_pairs, cache_dir=tmp_path)
    mu = _water() if change == "mu" else None
    efficiency = None
    if change == "efficiency":
        efficiency = np.full(scanner.n_crystals, 0.5, np.float32)
    if change == "grid":
        grid = Grid.centred((17, 17, 19), 7.0)
    if change == "n_pairs":
        n_pairs = 60_000
    if change == "scanner":
        scanner = scanner.with_mode("other", 3)
    compute_sensitivity(
        scanner, grid, mu=mu, crystal_efficiency=efficiency, n_pairs=n_pairs, cache_dir=tmp_path
    )
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"PK\x03\x04half"])
def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, damage: bytes) -> None:
    first = compute_sensitivity(_scanner(), GRID, n_pairs=50_000, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    second = compute_sensitivity(_scanner(), GRID, n_pairs=50_000, cache_dir=tmp_path)
    np.testing.assert_array_equal(first.values, second.values)


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    compute_sensitivity(_scanner(), GRID, n_pairs=50_000, cache_dir=tmp_path / "file" / "sub")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_coarsening_keeps_the_mean_and_the_place() -> None:
    grid = Grid((6, 4, 8), (2.0, 4.0, 4.0), (10.0, 0.0, 0.0))
    values = np.random.default_rng(1).random(grid.shape).astype(np.float32)
    coarse = coarsen(Volume(values, grid, "1/cm"), 8.0)
    assert coarse.grid.shape == (2, 2, 4)
    assert coarse.grid.voxel_mm == (8.0, 8.0, 8.0)
    assert coarse.grid.origin_mm == (13.0, 2.0, 2.0)
    assert coarse.values[0, 0, 0] == pytest.approx(values[:4, :2, :2].mean())


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="at least 8 crystal pairs, but 3 were asked for"):
        compute_sensitivity(_scanner(), GRID, n_pairs=3)
