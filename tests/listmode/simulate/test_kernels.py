"""Random numbers, photon kinematics and the detector's blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from listmode.formats.scanner_file import load_scanner
from listmode.simulate import _kernels
from listmode.simulate.detector import make_detector, make_state
from listmode.simulate.sources import make_alias


@pytest.mark.stats
def test_uniform_numbers_have_the_moments_of_a_uniform_distribution() -> None:
    """Seed 1; 5 sigma on mean and variance: false alarms 1e-6."""
    state = make_state(1)
    u = np.array([_kernels.uniform(state) for _ in range(20_000)])
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / u.size)
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 5 / math.sqrt(u.size)


def test_states_differ_by_key_and_repeat_by_seed() -> None:
    assert make_state(1, 2).tolist() == make_state(1, 2).tolist()
    assert make_state(1, 2).tolist() != make_state(1, 3).tolist()
    assert make_state(1, 2).tolist() != make_state(2, 2).tolist()


@pytest.mark.stats
def test_alias_tables_draw_in_proportion() -> None:
    """Seed 2; 5 sigma on each of 4 counts: false alarms below 3e-6."""
    weight = np.array([1.0, 0.0, 5.0, 2.0])
    accept, other = make_alias(weight)
    state = make_state(2)
    n = 8000
    drawn = np.bincount(
        [_kernels.draw_alias(state, accept, other) for _ in range(n)], minlength=4
    )
    p = weight / weight.sum()
    assert (np.abs(drawn - n * p) <= 5 * np.sqrt(n * p * (1 - p))).all()


@pytest.mark.stats
def test_directions_are_isotropic_unit_vectors() -> None:
    """Seed 3; 5 sigma on the three means: false alarms 2e-6."""
    state = make_state(3)
    d = np.array([_kernels.isotropic(state) for _ in range(6000)])
    assert np.allclose((d**2).sum(axis=1), 1.0)
    assert (np.abs(d.mean(axis=0)) < 5 / math.sqrt(3 * len(d))).all()
    assert np.allclose((d**2).mean(axis=0), 1 / 3, atol=5 * math.sqrt(4 / 45 / len(d)))


def test_a_deflection_turns_by_the_angle_asked_for() -> None:
    state = make_state(4)
    for d in ((0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.6, 0.0, 0.8), (0.0, -1.0, 0.0)):
        e = _kernels.deflect(state, *d, math.cos(0.4), math.sin(0.4))
        assert np.dot(d, e) == pytest.approx(math.cos(0.4))
        assert np.dot(e, e) == pytest.approx(1.0)


def test_the_total_cross_section_falls_from_thomson_s() -> None:
    # Klein-Nishina 1929; in units of 2 pi r_e^2 Thomson's 8/3 pi r_e^2 is 4/3
    assert _kernels.klein_nishina_total(1e-3) == pytest.approx(4 / 3 * (1 - 2e-3), rel=1e-4)
    exact = 2 * (2 * 2 / 3 - math.log(3)) + math.log(3) / 2 - 4 / 9
    assert _kernels.klein_nishina_total(1.0) == pytest.approx(exact)


@pytest.mark.stats
@pytest.mark.reference
def test_the_energy_window_keeps_the_published_share_of_scattered_photons() -> None:
    """435-585 keV at 10 %: 23.7 % stay, at 22 degrees on average (own Geant4 reference).

    Seed 5; 5 sigma: false alarms 6e-7 each.
    """
    state = make_state(5)
    n = 20_000
    c = np.array([_kernels.draw_compton_cosine(state, 1.0) for _ in range(n)])
    energy = 511.0 / (2.0 - c)
    sigma = 0.10 / 2.3548 * np.sqrt(511.0 * energy)
    seen = energy + sigma * np.random.default_rng(5).normal(size=n)
    kept = (seen > 435.0) & (seen < 585.0)
    assert kept.mean() == pytest.approx(0.237, abs=5 * math.sqrt(0.237 * 0.763 / n))
    assert np.degrees(np.arccos(c[kept])).mean() == pytest.approx(22.0, abs=1.0)


@pytest.mark.parametrize("name", ["quadra", "uexplorer", "pennpet", "mmr"])
def test_every_crystal_is_found_at_its_own_place(name: str) -> None:
    scanner = load_scanner(name)
    detector = make_detector(scanner)
    rng = np.random.default_rng(6)
    for crystal in rng.integers(0, scanner.n_crystals, 40):
        x, y, z = (float(v) for v in scanner.crystal_position_mm[crystal])
        block = _kernels.block_at(detector.blocks, x, y)
        for pad in (False, True):
            found = _kernels.crystal_in_block(
                detector.blocks, detector.block_cos_sin, block, x, y, z, pad
            )
            assert found == crystal


def test_no_crystal_lies_in_a_gap_ring_or_between_crystals() -> None:
    scanner = load_scanner("quadra")
    detector = make_detector(scanner)
    x, y, z = (float(v) for v in scanner.crystal_position_mm[760 * 79])
    at = detector.blocks, detector.block_cos_sin, _kernels.block_at(detector.blocks, x, y)
    assert _kernels.crystal_in_block(*at, x, y, z + 3.29114, False) == -1
    assert _kernels.crystal_in_block(*at, x, y, z + 3.29114, True) == -1
    assert _kernels.crystal_in_block(*at, x, y, z + 2 * 3.29114, False) == 760 * 80
    assert _kernels.crystal_in_block(*at, x, y, z + 3.29114 / 2, False) == -1


def test_an_opaque_crystal_stops_a_photon_at_its_front() -> None:
    scanner = load_scanner("quadra")
    detector = make_detector(scanner)
    state = make_state(7)
    crystal = 760 * 100 + 10
    x, y, z = (float(v) for v in scanner.crystal_position_mm[crystal])
    r = math.hypot(x, y)
    found, way = _kernels.detect(
        state, detector.blocks, detector.block_cos_sin, 1e4, 0.0, 0.0, z, x / r, y / r, 0.0
    )
    assert found == crystal
    assert way == pytest.approx(410.0 * r / 417.0, abs=0.6)


def test_a_photon_along_the_axis_is_lost() -> None:
    detector = make_detector(load_scanner("quadra"))
    at = detector.blocks, detector.block_cos_sin
    assert _kernels.detect(make_state(8), *at, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)[0] == -1
    assert _kernels.detect(make_state(8), *at, 1.0, 0.0, 0.0, 520.0, 0.6, 0.0, 0.8)[0] == -1


def test_events_are_stored_in_canonical_order_with_the_bin_mirrored() -> None:
    tick, a, b, k = (np.zeros(2, t) for t in (np.int32, np.int32, np.int32, np.int16))
    _kernels.store(0, 5, 3, 8, 10, 33, tick, a, b, k)
    _kernels.store(1, 6, 8, 3, 10, 33, tick, a, b, k)
    assert (a.tolist(), b.tolist(), k.tolist()) == ([3, 3], [8, 8], [10, 22])


def test_sorting_by_tick_keeps_every_event_with_its_label() -> None:
    rng = np.random.default_rng(9)
    n = 300
    tick = rng.integers(0, 7, n).astype(np.int32)
    a = np.arange(n, dtype=np.int32)
    k = (a % 33).astype(np.int16)
    label = (a % 3).astype(np.uint8)
    n_per_tick = np.zeros(7, np.int64)
    out = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.int16)
    out_label = np.empty(n, np.uint8)
    _kernels.sort_by_tick(make_state(9), tick, a, a + 1, k, label, n_per_tick, *out, out_label)
    assert n_per_tick.tolist() == np.bincount(tick, minlength=7).tolist()
    assert (np.diff(tick[out[0]]) >= 0).all()
    assert sorted(out[0].tolist()) == a.tolist()
    assert (out[1] == out[0] + 1).all()
    assert (out_label == out[0] % 3).all()
    assert (out[2] == out[0] % 33).all()
