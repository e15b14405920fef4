"""Simulated scans against analytic, independent and published values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats.opening import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from listmode.simulate.detector import draw_crystal_efficiency, make_detector
from listmode.simulate.generate import expected_counts, simulate_in_memory, simulate_scan
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.phantom import (
    asymmetric_phantom,
    cylinder_phantom,
    line_phantom,
    point_phantom,
    pregnant_phantom,
)
from listmode.simulate.protocols import LOW_DOSE_FDG, Dose
from listmode.simulate.shapes import Phantom, Shape
from listmode.simulate.simulation import Simulation
from listmode.windows import Windows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quadra() -> Scanner:
    return load_scanner("quadra")


def _places_mm(listmode: MemoryListmode) -> np.ndarray:
    """Give the most likely place of each event: the LOR's midpoint plus c/2 tof towards b."""
    position = listmode.scanner.crystal_position_mm.astype(np.float64)
    a, b = position[listmode.prompts.crystal_a], position[listmode.prompts.crystal_b]
    along = (b - a) / np.linalg.norm(b - a, axis=1, keepdims=True)
    tof = listmode.scanner.tof.bin_centre_mm()[listmode.prompts.tof_bin]
    return np.asarray((a + b) / 2 + along * tof[:, None])


@pytest.mark.parametrize("place", [(90.0, -40.0, 120.0), (-60.0, 110.0, -200.0)])
def test_lines_and_tof_lead_back_to_an_off_centre_point(
    quadra: Scanner, place: tuple[float, float, float]
) -> None:
    phantom = point_phantom(place, activity_bq=1e6)
    listmode, truth = simulate_in_memory(
        scanner=quadra, phantom=phantom, dose=Dose.in_phantom(phantom, 0.3), seed=1,
        scatter="off", with_randoms=False,
    )  # fmt: skip
    assert truth.n_trues == len(listmode.prompts) > 20_000
    # TOF spreads by 15.8 mm (bin included), so 40 000 events have a standard error of 0.1 mm
    assert _places_mm(listmode).mean(axis=0) == pytest.approx(place, abs=0.7)


def test_a_displaced_patient_is_seen_where_he_is(quadra: Scanner) -> None:
    phantom = point_phantom((50.0, 0.0, 0.0), activity_bq=1e6)
    motion = PatientMotion((0.2,), ((-10.0, 5.0, 13.0),))
    listmode, _ = simulate_in_memory(
        scanner=quadra, phantom=phantom, dose=Dose.in_phantom(phantom, 0.4), seed=2,
        scatter="off", with_randoms=False, motion=motion,
    )  # fmt: skip
    places = _places_mm(listmode)
    first = listmode.count(Windows([0], [200]))
    move = places[first:].mean(axis=0) - places[:first].mean(axis=0)
    assert move == pytest.approx((-10.0, 5.0, 13.0), abs=0.9)


@pytest.mark.parametrize("scatter", ["table", "direct"])
def test_the_same_seed_gives_the_same_bits_at_any_number_of_threads(
    quadra: Scanner, scatter: str
) -> None:
    def scan(threads: int, seed: int) -> MemoryListmode:
        return simulate_in_memory(
            scanner=quadra, phantom=pregnant_phantom(), dose=LOW_DOSE_FDG, seed=seed,
            count_fraction=0.01, duration_s=10.0, threads=threads,
            scatter=scatter,  # type: ignore[arg-type]
            motion=PatientMotion((4.0,), ((0.0, 0.0, 13.0),)),
        )[0]  # fmt: skip

    one, two = scan(1, 5), scan(2, 5)
    assert one.file_hash == two.file_hash
    assert one.truth is not None
    assert two.truth is not None
    assert (one.truth == two.truth).all()
    if scatter == "table":
        assert scan(2, 6).file_hash != two.file_hash


def test_the_scanner_accepts_every_event_and_labels_count_them() -> None:
    listmode, truth = simulate_in_memory(
        scanner=load_scanner("quadra", "HS"), phantom=pregnant_phantom(), dose=LOW_DOSE_FDG,
        seed=6, count_fraction=0.02, duration_s=20.0, scatter="direct",
    )  # fmt: skip
    for batch in (listmode.prompts, listmode.delayeds):
        assert listmode.scanner.accepts(batch.crystal_a, batch.crystal_b).all()
        assert (batch.tof_bin >= 0).all()
        assert (batch.tof_bin < 33).all()
    assert listmode.truth is not None
    by_label = np.bincount(listmode.truth, minlength=3).tolist()
    assert by_label == [truth.n_trues, truth.n_scatter, truth.n_randoms]
    assert truth.n_delayeds == len(listmode.delayeds)
    assert truth.scanner == "quadra-HS"


def test_a_file_holds_the_same_events_as_memory(tmp_path: Path, quadra: Scanner) -> None:
    phantom = asymmetric_phantom()
    dose = Dose.in_phantom(phantom, 6.0)
    kwargs = {"scanner": quadra, "phantom": phantom, "dose": dose, "seed": 7}
    memory, _ = simulate_in_memory(**kwargs, count_fraction=0.002)  # type: ignore[arg-type]
    truth = simulate_scan(tmp_path / "scan.h5", **kwargs, count_fraction=0.002)  # type: ignore[arg-type]
    with open_listmode(tmp_path / "scan.h5") as scan:
        assert scan.protocol.count_fraction == 0.002
        assert scan.stop_ms == 6000
        assert scan.crystal_efficiency is not None
        assert (scan.crystal_efficiency == truth.crystal_efficiency).all()
        for stream in ("prompts", "delayeds"):
            assert (scan.tick_offset(stream) == memory.tick_offset(stream)).all()
            n = scan.n_events(stream)
            read, kept = scan.read(stream, 0, n), memory.read(stream, 0, n)
            assert (read.crystal_a == kept.crystal_a).all()
            assert (read.crystal_b == kept.crystal_b).all()
            assert (read.tof_bin == kept.tof_bin).all()
        labels = scan.read_truth(0, scan.n_events())
        assert labels is not None
        assert memory.truth is not None
        assert (labels == memory.truth).all()


@pytest.mark.stats
def test_activity_decays_during_the_scan(quadra: Scanner) -> None:
    """Seed 8, 5 sigma: false alarm 6e-7."""
    phantom = point_phantom(activity_bq=2e3)
    listmode, _ = simulate_in_memory(
        scanner=quadra, phantom=phantom, dose=Dose.in_phantom(phantom, 7200.0), seed=8,
        count_fraction=0.1, scatter="off", with_randoms=False,
    )  # fmt: skip
    halves = [listmode.count(Windows([a], [a + 3_600_000])) for a in (0, 3_600_000)]
    expected = 2.0 ** (-3600.0 / 6586.2)
    error = math.sqrt(expected * (1 + expected) / halves[0])
    assert halves[1] / halves[0] == pytest.approx(expected, abs=5 * error)


@pytest.mark.stats
def test_the_count_fraction_thins_every_kind_of_event(quadra: Scanner) -> None:
    """Seeds 9, 5 sigma on four ratios: false alarms 2e-6."""
    scans = [
        simulate_in_memory(
            scanner=quadra, phantom=pregnant_phantom(), dose=LOW_DOSE_FDG, seed=9,
            count_fraction=fraction, duration_s=10.0, scatter="direct",
        )[1]
        for fraction in (0.02, 0.08)
    ]  # fmt: skip
    for kind in ("n_trues", "n_scatter", "n_randoms", "n_delayeds"):
        few, many = (getattr(scan, kind) for scan in scans)
        assert many / few == pytest.approx(4.0, abs=5 * 4.0 * math.sqrt(1 / few + 1 / many))


@pytest.mark.stats
def test_delayeds_are_drawn_like_randoms(quadra: Scanner) -> None:
    """Seed 10; counts within 5 sigma, ring and TOF histograms by chi-squared below 1e-6."""
    listmode, truth = simulate_in_memory(
        scanner=quadra, phantom=pregnant_phantom(), dose=LOW_DOSE_FDG, seed=10,
        count_fraction=0.1, duration_s=30.0, scatter="off",
    )  # fmt: skip
    assert listmode.truth is not None
    n, late = truth.n_randoms, truth.n_delayeds
    assert abs(n - late) < 5 * math.sqrt(n + late)
    chance = listmode.truth == 2
    ring = listmode.scanner.crystal_ring
    for one, two, bins in (
        (ring[listmode.prompts.crystal_a[chance]], ring[listmode.delayeds.crystal_a], 323),
        (listmode.prompts.tof_bin[chance], listmode.delayeds.tof_bin, 33),
    ):
        p, d = (np.bincount(x, minlength=bins).astype(float) for x in (one, two))
        used = p + d > 20
        chi2 = ((p - d)[used] ** 2 / (p + d)[used]).sum()
        assert chi2 < used.sum() + 5 * math.sqrt(2 * used.sum()) + 15
    tof = np.bincount(listmode.delayeds.tof_bin, minlength=33)
    assert np.abs(tof - late / 33).max() < 5.5 * math.sqrt(late / 33)


@pytest.mark.stats
def test_randoms_come_at_the_rate_of_their_singles(quadra: Scanner) -> None:
    """2 tau sum S_a S_b over accepted pairs, summed on a sample of pairs; 5 sigma, seed 11."""
    simulation = Simulation(
        quadra, pregnant_phantom(), LOW_DOSE_FDG, seed=11, scatter="off", duration_s=10.0
    )
    singles = simulation.crystal_singles_hz(5_000)
    assert singles.sum() == pytest.approx(sum(simulation.singles_hz(5_000)), rel=1e-6)
    rng = np.random.default_rng(11)
    a, b = rng.integers(0, quadra.n_crystals, (2, 400_000))
    product = np.where(quadra.accepts(a, b), singles[a] * singles[b], 0.0)
    pairs = quadra.n_crystals**2 / 2
    rate = quadra.tof.window_ps * 1e-12 * pairs * product.mean()
    error = quadra.tof.window_ps * 1e-12 * pairs * product.std() / math.sqrt(product.size)
    assert simulation.budget.randoms / 10.0 == pytest.approx(rate, abs=5 * error + 0.01 * rate)


def test_attenuation_of_a_cylinder_is_that_of_its_diameter() -> None:
    scanner = load_scanner("quadra").with_mode("direct planes", 5)
    counts = []
    for mu in (0.0, 0.096):
        rod = Shape("rod", "rod", "cylinder", (0, 0, 0), (100, 100, 150), 0.0, mu)
        line = Shape("line", "line", "cylinder", (0, 0, 0), (1, 1, 100), 1e6, mu, "rod")
        phantom = Phantom("rod", (rod, line))
        counts.append(
            simulate_in_memory(
                scanner=scanner, phantom=phantom, dose=Dose.in_phantom(phantom, 100.0),
                seed=12, scatter="off", with_randoms=False,
            )[1].n_trues
        )  # fmt: skip
    error = math.sqrt(1 / counts[1] + 1 / counts[0])
    # lines tilted by up to 5 rings in 820 mm are longer by 0.02 %
    assert counts[1] / counts[0] == pytest.approx(math.exp(-0.096 * 20), rel=5 * error + 1e-3)
    assert error < 0.01


@pytest.mark.stats
def test_trues_by_bounds_agree_with_photons_followed_one_by_one(quadra: Scanner) -> None:
    """Chords and proposals against delta tracking; 5 sigma of both: false alarm 6e-7."""
    simulation = Simulation(
        quadra, pregnant_phantom(), LOW_DOSE_FDG, seed=13, duration_s=10.0,
        with_randoms=False, motion=PatientMotion((0.001,), ((0.0, 0.0, -40.0),)),
        table_events=40_000,
    )  # fmt: skip
    state = simulation.scatter_states[-1]
    share, error = simulation._true_share
    body = simulation._body(5.0)
    fast = share * simulation._lines(body)[1].sum()
    w = quadra.window_efficiency
    slow = state.tracks.n_trues / state.tracks.n_decays * body.source_bq.sum() * w * w
    both = math.hypot(error, 1 / math.sqrt(state.tracks.n_trues))
    assert fast / slow == pytest.approx(1.0, abs=5 * both)


@pytest.mark.stats
def test_the_table_of_scatter_keeps_rate_place_and_time_of_direct_scatter(
    quadra: Scanner,
) -> None:
    """Seed 14; rate within 5 sigma, profiles within 5 sigma and 4 % (the table's own noise)."""
    profiles, counts = [], []
    for scatter in ("table", "direct"):
        listmode, truth = simulate_in_memory(
            scanner=quadra, phantom=pregnant_phantom(), dose=LOW_DOSE_FDG, seed=14,
            count_fraction=0.05, duration_s=10.0, with_randoms=False,
            scatter=scatter,
        )  # fmt: skip
        assert listmode.truth is not None
        chosen = listmode.truth == 1
        ring = quadra.crystal_ring[listmode.prompts.crystal_a[chosen]]
        tof = listmode.prompts.tof_bin[chosen]
        profiles.append((np.bincount(ring // 33, minlength=10), np.bincount(tof, minlength=33)))
        counts.append(truth.n_scatter)
    table, direct = counts
    assert abs(table - direct) < 5 * math.sqrt(3 * direct)
    for one, two in zip(*profiles, strict=True):
        limit = 5 * np.sqrt(one + 2 * two + 1) + 0.04 * two
        assert (np.abs(one - two) < limit).all()


@pytest.mark.stats
def test_a_box_of_emission_gives_the_events_of_that_box(quadra: Scanner) -> None:
    """Seed 15; two boxes share a cylinder; 5 sigma: false alarm 6e-7."""
    phantom = cylinder_phantom(radius_mm=60, length_mm=200, activity_bq_ml=2000.0)
    dose = Dose.in_phantom(phantom, 2.0)

    def count(low_mm: float, high_mm: float) -> int:
        return simulate_in_memory(
            scanner=quadra, phantom=phantom, dose=dose, seed=15, with_randoms=False,
            scatter="off", emission_box_mm=((-100, 100), (-100, 100), (low_mm, high_mm)),
        )[1].n_trues  # fmt: skip

    parts, whole = [count(-100, 10), count(10, 100)], count(-200, 200)
    assert min(parts) > 1000
    assert abs(sum(parts) - whole) < 5 * math.sqrt(2 * whole)


def test_efficiencies_show_in_the_counts_of_crystals(quadra: Scanner) -> None:
    efficiency = draw_crystal_efficiency(quadra, 16)
    assert efficiency.mean() == pytest.approx(1.0, abs=1e-5)
    assert np.log(efficiency).std() == pytest.approx(0.05, rel=0.03)
    phantom = line_phantom(activity_bq=1e7)
    listmode, truth = simulate_in_memory(
        scanner=quadra, phantom=phantom, dose=Dose.in_phantom(phantom, 2.0), seed=16,
        scatter="off", with_randoms=False,
    )  # fmt: skip
    assert (truth.crystal_efficiency == efficiency).all()
    a, b = listmode.prompts.crystal_a, listmode.prompts.crystal_b
    n = np.bincount(a, minlength=efficiency.size) + np.bincount(b, minlength=efficiency.size)
    middle = np.abs(quadra.crystal_position_mm[:, 2]) < 300
    slope = np.polyfit(efficiency[middle], n[middle] / n[middle].mean(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


@pytest.mark.reference
def test_the_body_model_gives_the_published_rates() -> None:
    """Water ellipse 30 x 20 x 156 cm, 1 MBq; own Geant4 reference of the science notes.

    Trues 12.8 (UHS) and 7.8 (HS) kcps within 3 %, scatter 6.8 and 3.9 within 10 %, singles in
    the window 0.294 Mcps within 3 %, scatter fraction 0.32-0.38, single scatter 83 % of all;
    randoms f = 0.618 and 0.287 of 2.363 ns S^2 within 4 %.
    """
    phantom = cylinder_phantom(
        radius_mm=150, radius_y_mm=100, length_mm=1560, activity_bq_ml=1e6 / 73513.0
    )
    for mode, trues, scatter, share in (
        ("UHS", 12.8e3, 6.8e3, 0.618),
        ("HS", 7.8e3, 3.9e3, 0.287),
    ):
        simulation = Simulation(
            load_scanner("quadra", mode), phantom, Dose("1 MBq", 0.0, 1e6, 0.0, 1.0), seed=17,
            table_events=30_000,
        )  # fmt: skip
        budget = simulation.budget
        assert budget.trues == pytest.approx(trues, rel=0.03)
        assert budget.scatter == pytest.approx(scatter, rel=0.10)
        assert 0.31 < budget.scatter_fraction < 0.38
        assert simulation.singles_hz(0)[0] == pytest.approx(0.294e6, rel=0.03)
        f = budget.randoms / (2.363e-9 * budget.singles_hz**2)
        assert f == pytest.approx(share, rel=0.04)
        n = simulation.scatter_states[0].tracks.n_by_scatters
        assert (n[0, 1] + n[1, 0]) / (n.sum() - n[0, 0]) == pytest.approx(0.83, abs=0.02)


def test_the_budget_foretells_the_scan(quadra: Scanner) -> None:
    kwargs = {
        "scanner": quadra, "phantom": pregnant_phantom(), "dose": LOW_DOSE_FDG,
        "count_fraction": 0.02, "duration_s": 20.0,
    }  # fmt: skip
    budget = expected_counts(**kwargs, seed=18)  # type: ignore[arg-type]
    truth = simulate_in_memory(**kwargs, seed=18)[1]  # type: ignore[arg-type]
    for expected, found, error in zip(
        (budget.trues, budget.scatter, budget.randoms),
        (truth.n_trues, truth.n_scatter, truth.n_randoms),
        budget.standard_error,
        strict=True,
    ):
        assert found == pytest.approx(expected, abs=5 * math.hypot(found**0.5, error * found))
    assert budget.prompts_hz == pytest.approx(len_prompts := budget.prompts / 20.0)
    assert len_prompts > 0
    assert 0 < budget.nec_hz < budget.trues / 20.0


def test_the_phantom_s_suv_follows_the_dose(quadra: Scanner) -> None:
    dose = Dose("double", 0.6e6, 0.0, 3600.0, 1200.0)
    simulation = Simulation(quadra, pregnant_phantom(), dose)
    factor = simulation.protocol.suv_per_bq_ml
    assert factor is not None
    x, y, z = simulation.phantom["bladder"].centre_mm
    activity = simulation.phantom.sample_activity([x], [y], [z])[0, 0, 0]
    assert activity * factor == pytest.approx(10.0, rel=1e-5)


def test_a_scan_without_tof_has_one_bin() -> None:
    phantom = cylinder_phantom(radius_mm=80, length_mm=100, activity_bq_ml=3000.0)
    listmode, truth = simulate_in_memory(
        scanner=load_scanner("mmr"),
        phantom=phantom,
        dose=Dose.in_phantom(phantom, 2.0),
        seed=19,
    )
    assert truth.n_trues > 1000
    assert truth.n_scatter > 100
    assert not listmode.prompts.tof_bin.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phantom": cylinder_phantom(activity_bq_ml=0.0)}, "a phantom must hold activity"),
        ({"duration_s": 1e-5}, "a scan must last at least 1 ms"),
        ({"scatter": "some"}, "scatter must be 'table', 'direct' or 'off', but it is 'some'"),
        ({"phantom": cylinder_phantom(radius_mm=420.0)}, "must stay inside the scanner's bore"),
        (
            {"motion": PatientMotion((1.0,), ((330.0, 0.0, 0.0),))},
            "'cylinder' reaches 100 mm and moves by up to 331 mm",
        ),
    ],
)
def test_impossible_scans_are_refused(
    quadra: Scanner, change: dict[str, object], message: str
) -> None:
    start = Simulation(
        quadra, cylinder_phantom(), Dose("d", 0.0, 1e6, 0.0, 10.0), motion=STILL, seed=1
    )
    with pytest.raises(InputError, match=message):
        replace(start, **change)  # type: ignore[arg-type]


def test_a_scanner_without_blocks_is_refused(quadra: Scanner) -> None:
    with pytest.raises(InputError, match="has no block layout"):
        make_detector(replace(quadra, layout=None))
