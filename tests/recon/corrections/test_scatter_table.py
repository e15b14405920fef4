"""The single-scatter simulation against a plain photon Monte Carlo, and its laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.scanner import Scanner, TofModel
from recon.corrections.normalisation import pair_efficiency, stopping_length
from recon.corrections.scatter import ScatterSettings, expected_scatter_table
from recon.corrections.scatter_grid import (
    body_mask,
    lay_nodes,
    lay_tof_samples,
    place_points,
    resample_mean,
)
from recon.corrections.scatter_table import ScatterTable
from recon.image import Grid, Volume
from tests.recon.corrections import scenes
from tests.recon.corrections.photon_oracle import Detected, single_scatter

F64 = NDArray[np.float64]

SINGLE = ScatterSettings(multiple_share=0.0, n_points=500)
COARSE = ScatterSettings(
    n_points=60, transaxial_spacing_mm=130.0, axial_spacing_mm=110.0, image_voxel_mm=20.0
)


def random_pairs(scanner: Scanner, n: int, seed: int = 11) -> tuple[EventBatch, float]:
    """Draw accepted pairs and TOF bins evenly; each stands for the returned number of them."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, scanner.n_crystals, (2, n))
    keep = scanner.accepts(a, b)
    t = rng.integers(0, scanner.tof.n_bins, n)
    batch = EventBatch.from_pairs(a[keep], b[keep], t[keep], scanner.tof.n_bins)
    return batch, scanner.n_crystals**2 / 2 * scanner.tof.n_bins / n


def counts_per_decay(table: ScatterTable, batch: EventBatch, weight: float) -> F64:
    n = pair_efficiency(table.scanner, batch.crystal_a, batch.crystal_b).astype(np.float64)
    return np.asarray(n * table.evaluate(batch) * weight / scenes.cylinder_bq())


def features(scanner: Scanner, batch: EventBatch) -> dict[str, F64]:
    """Distance from the axis, axial middle and obliqueness, and TOF towards larger x."""
    rng = np.random.default_rng(12)  # spread crystals over their cells: bins need no rhythm
    ends = []
    for crystal in (batch.crystal_a, batch.crystal_b):
        p = scanner.crystal_position_mm[crystal].astype(np.float64)
        turn = rng.uniform(-0.5, 0.5, len(p)) * 2 * np.pi / scanner.n_transaxial
        cos, sin = np.cos(turn), np.sin(turn)
        p[:, 0], p[:, 1] = cos * p[:, 0] - sin * p[:, 1], sin * p[:, 0] + cos * p[:, 1]
        p[:, 2] += rng.uniform(-0.5, 0.5, len(p)) * scanner.crystal_pitch_mm[1]
        ends.append(p)
    tof = scanner.tof
    place = tof.bin_centre_mm()[batch.tof_bin]
    return _features(ends[0], ends[1], place)


def _features(p: F64, q: F64, place: F64) -> dict[str, F64]:
    cross = np.abs(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])
    return {
        "radial": cross / np.hypot(*(q - p)[:, :2].T),
        "middle": (p + q)[:, 2] / 2,
        "oblique": np.abs((p - q)[:, 2]),
        "tof": place * np.sign((q - p)[:, 0]),
    }


EDGES: dict[str, list[float]] = {
    "radial": [0, 25, 50, 75, 100, 130],
    "middle": [-150, -80, -40, 0, 40, 80, 150],
    "oblique": [0, 60, 120, 180, 240, 310],
    "tof": [(k - 4.5) * scenes.TOF.bin_width_mm for k in range(10)],
}


def oracle(
    scanner: Scanner, offset_mm: float, n_decays: int
) -> tuple[Detected, NDArray[np.bool_]]:
    """Run the oracle; the mask says which coincidences the field of view accepts."""
    detected = single_scatter(
        radius_mm=scenes.RADIUS_MM,
        length_mm=scenes.LENGTH_MM,
        detector_radius_mm=scenes.FRONT_MM + scenes.DOI_MM,
        detector_length_mm=scenes.N_RINGS * scenes.PITCH_MM,
        stopping=stopping_length(scanner),
        n_decays=n_decays,
        seed=2,
        offset_mm=offset_mm,
    )
    inside = _features(detected.end_1_mm, detected.end_2_mm, detected.tof_mm)["radial"] < 290
    return detected, inside


@pytest.fixture(scope="module")
def table() -> ScatterTable:
    image, mu = scenes.water_cylinder()
    return expected_scatter_table(scenes.small_scanner(), image=image, mu=mu, settings=SINGLE)


@pytest.mark.slow
@pytest.mark.stats
def test_single_scatter_agrees_with_photons_followed_one_by_one(table: ScatterTable) -> None:
    """Absolute, and its shape in four coordinates.

    Seeds 2, 11, 12. The oracle's total has 0.3 % standard error and each bin at most 2 %; the
    limits add 5 standard errors (two-sided 6e-7 a bin) to the grid's own 5 and 8 %.
    """
    detected, inside = oracle(table.scanner, 0.0, 1_000_000)
    batch, weight = random_pairs(table.scanner, 1_500_000)
    ours = counts_per_decay(table, batch, weight)
    total = detected.weight[inside].sum() * scenes.coverage()
    assert ours.sum() / total == pytest.approx(1.0, abs=0.065)
    rng = np.random.default_rng(13)
    blurred = detected.tof_mm + rng.normal(0, scenes.TOF.sigma_mm, detected.tof_mm.size)
    theirs = _features(detected.end_1_mm, detected.end_2_mm, blurred)
    mine = features(table.scanner, batch)
    for name, edges in EDGES.items():
        want = np.histogram(theirs[name][inside], edges, weights=detected.weight[inside])[0]
        square = np.histogram(
            theirs[name][inside], edges, weights=detected.weight[inside] ** 2
        )[0]
        got = np.histogram(mine[name], edges, weights=ours)[0]
        ratio = (got / got.sum()) / (want / want.sum())
        limit = 0.08 + 5 * np.sqrt(square) / want
        assert (np.abs(ratio - 1) < limit).all(), (name, ratio)


@pytest.mark.slow
@pytest.mark.stats
def test_scatter_lies_where_an_object_off_centre_lies() -> None:
    """The mean TOF towards +x of a cylinder 60 mm to the left, within 3 mm of the oracle's.

    Seeds 2 and 11; the oracle's mean has 0.2 mm standard error. A wrong sign errs by 80 mm.
    """
    scanner = scenes.small_scanner()
    image, mu = scenes.water_cylinder(offset_mm=(60.0, 0.0, 0.0))
    table = expected_scatter_table(scanner, image=image, mu=mu, settings=SINGLE)
    detected, inside = oracle(scanner, 60.0, 500_000)
    batch, weight = random_pairs(scanner, 500_000)
    ours = counts_per_decay(table, batch, weight)

    def mean(values: dict[str, F64], weights: F64, level: F64) -> float:
        return float(
            np.average(values["tof"][level.astype(bool)], weights=weights[level.astype(bool)])
        )

    theirs = _features(detected.end_1_mm, detected.end_2_mm, detected.tof_mm)["tof"]
    level = inside & (np.abs((detected.end_2_mm - detected.end_1_mm)[:, 0]) > 500)
    x_mm = scanner.crystal_position_mm[:, 0]
    ours_level = np.abs(x_mm[batch.crystal_a] - x_mm[batch.crystal_b]) > 500
    mine = features(scanner, batch)["tof"]
    want = np.average(theirs[level], weights=detected.weight[level])
    got = np.average(mine[ours_level], weights=ours[ours_level])
    assert want > 35.0
    assert got == pytest.approx(want, abs=3.0)


def test_past_half_a_turn_the_ends_exchange_their_places() -> None:
    """A pair of nodes and the same pair named the other way round: TOF mirrored, same value."""
    image, mu = scenes.water_cylinder(20.0, offset_mm=(40.0, -20.0, 10.0))
    single = replace(COARSE, multiple_share=0.0)
    table = expected_scatter_table(scenes.small_scanner(), image=image, mu=mu, settings=single)
    half = table.n_phi // 2 - table.first_delta
    there = table.log_values[:, :, half]
    back = np.roll(there, -(table.n_phi // 2 // table.phi_stride), axis=0)
    back = back.transpose(0, 2, 1, 3)[..., ::-1]
    bright = there > there.max() - 10
    assert np.abs(there - back)[bright].max() < 2e-3


def test_tof_bins_add_up_to_the_scanner_without_tof() -> None:
    image, mu = scenes.water_cylinder(20.0)
    blind = scenes.small_scanner(TofModel(1, 4726.6, np.inf))
    single = replace(COARSE, multiple_share=0.0)
    with_tof = expected_scatter_table(
        scenes.small_scanner(), image=image, mu=mu, settings=single
    )
    without = expected_scatter_table(blind, image=image, mu=mu, settings=single)
    ratio = np.exp(with_tof.log_values).sum(axis=4) / np.exp(without.log_values[..., 0])
    bright = without.log_values[..., 0] > without.log_values.max() - 5
    # the samples' steps differ (10 and 20 mm): 1 % of the integral over a ray
    assert np.abs(ratio[bright] - 1).mean() < 0.02


def test_fine_tof_bins_share_what_a_wide_one_holds() -> None:
    image, mu = scenes.water_cylinder(20.0)
    wide, fine = TofModel(11, 429.693, 228.0), TofModel(165, 28.6462, 228.0)
    totals = []
    for tof in (wide, fine):
        scanner = scenes.small_scanner(tof)
        table = expected_scatter_table(scanner, image=image, mu=mu, settings=COARSE)
        pair = np.full(tof.n_bins, 19_300, np.uint32), np.full(tof.n_bins, 20_010, np.uint32)
        batch = EventBatch(*pair, np.arange(tof.n_bins, dtype=np.int16))
        totals.append(table.evaluate(batch).reshape(11, -1).sum(axis=1))
    assert totals[1][4:7] == pytest.approx(totals[0][4:7], rel=0.04)
    assert totals[1].sum() == pytest.approx(totals[0].sum(), rel=0.02)


def test_the_bits_do_not_depend_on_threads() -> None:
    image, mu = scenes.water_cylinder(20.0)
    scanner = scenes.small_scanner()
    tables = [
        expected_scatter_table(scanner, image=image, mu=mu, settings=COARSE, threads=threads)
        for threads in (1, 3)
    ]
    assert np.array_equal(tables[0].log_values, tables[1].log_values)
    batch, _ = random_pairs(scanner, 20_000)
    one, three = (tables[0].evaluate(batch, threads=threads) for threads in (1, 3))
    assert np.array_equal(one, three)


def test_scatter_is_proportional_to_activity() -> None:
    image, mu = scenes.water_cylinder(20.0)
    scanner = scenes.small_scanner()
    double = Volume(image.values * 2, image.grid, "Bq/mL")
    one, two = (
        expected_scatter_table(scanner, image=i, mu=mu, settings=COARSE)
        for i in (image, double)
    )
    assert np.allclose(two.log_values - one.log_values, np.log(2), atol=1e-4)


def test_multiple_scatter_adds_its_share_and_lies_wider() -> None:
    image, mu = scenes.water_cylinder(10.0)
    scanner = scenes.small_scanner()
    settings = replace(COARSE, image_voxel_mm=10.0, transaxial_spacing_mm=60.0)
    both = expected_scatter_table(scanner, image=image, mu=mu, settings=settings)
    single = expected_scatter_table(
        scanner, image=image, mu=mu, settings=replace(settings, multiple_share=0.0)
    )
    batch, _ = random_pairs(scanner, 200_000)
    n = pair_efficiency(scanner, batch.crystal_a, batch.crystal_b)
    all_counts, single_counts = n * both.evaluate(batch), n * single.evaluate(batch)
    share = all_counts.sum() / single_counts.sum() - 1
    assert 0.05 < both.multiple_ratio < 0.3
    assert share == pytest.approx(both.multiple_ratio, rel=0.2)
    far = features(scanner, batch)["radial"] > 120
    assert all_counts[far].sum() / single_counts[far].sum() - 1 > 2 * share


def test_resampling_conserves_the_integral() -> None:
    rng = np.random.default_rng(3)
    fine = Volume(rng.random((7, 9, 11), np.float32), Grid.centred((7, 9, 11), 3.0), "Bq/mL")
    coarse = Grid((5, 6, 7), (7.0, 7.0, 7.0), (-13.0, -16.0, -21.5))
    total = float(fine.values.astype(np.float64).sum()) * fine.grid.voxel_ml
    assert resample_mean(fine, coarse).sum() * coarse.voxel_ml == pytest.approx(total, rel=1e-9)


def test_points_hold_all_matter_and_lie_in_it() -> None:
    mu = np.zeros((12, 12, 12), np.float32)
    mu[3:9, 4:8, 2:10] = 0.1
    point, mass = place_points(mu, ScatterSettings(n_points=30, seed=4))
    assert mass.sum() == pytest.approx(float(mu.sum()), rel=1e-6)
    assert (mu[tuple(np.round(point).astype(int).T)] > 0).all()


def test_the_body_encloses_its_lungs_and_leaves_the_table_out() -> None:
    mu = np.zeros((30, 30, 10))
    mu[5:25, 5:20, :] = 0.096
    mu[10:14, 8:14, :] = 0.02
    mu[2:28, 24:26, :] = 0.015
    grid = Grid.centred((30, 30, 10), 10.0)
    mask = body_mask(mu, grid, ScatterSettings(body_margin_mm=0.0))
    assert mask[12, 10, 5]
    assert not mask[12, 25, 5]
    assert mask.sum() == 20 * 15 * 10
    wide = body_mask(mu, grid, ScatterSettings(body_margin_mm=10.0))
    assert wide[4, 10, 5]
    assert not wide[3, 10, 5]


def test_tof_samples_count_every_place_inside_the_window_once() -> None:
    for tof in (scenes.TOF, TofModel(165, 28.6462, 228.0), TofModel(12, 400.0, 500.0)):
        samples = lay_tof_samples(tof, 10.0)
        share = np.zeros(samples.n_steps)
        for first, taps in zip(samples.first_step, samples.blur, strict=True):
            share[first : first + taps.size] += taps / samples.samples_per_bin
        middle = slice(samples.n_steps // 2 - 10, samples.n_steps // 2 + 10)
        assert share[middle] == pytest.approx(1.0, abs=2e-4)


def test_pairs_of_nodes_reach_the_edge_of_the_field_and_the_acceptance() -> None:
    scanner = scenes.small_scanner(max_ring_difference=20)
    nodes = lay_nodes(scanner, ScatterSettings())
    spacing_rad = 2 * np.pi / nodes.n_phi
    edge_rad = 2 * np.arccos(scanner.fov_radius_mm / (scenes.FRONT_MM + scenes.DOI_MM))
    assert nodes.first_delta * spacing_rad <= edge_rad
    spacing_mm = np.diff(nodes.position_mm[: nodes.n_z, 2])[0]
    assert nodes.max_dz * spacing_mm >= 20 * scenes.PITCH_MM + spacing_mm * 0.99


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("image unit", "scatter needs the activity image in Bq/mL, but it is in SUV"),
        ("mu unit", "scatter needs the mu-map in 1/cm, but it is in 1;"),
        ("no matter", "scatter needs matter in the mu-map .* its largest value is 0"),
        ("no activity", "scatter needs activity inside the body of the mu-map"),
    ],
)
def test_unusable_volumes_are_refused(what: str, message: str) -> None:
    image, mu = scenes.water_cylinder(20.0)
    nothing = np.zeros(mu.grid.shape, np.float32)
    if what == "image unit":
        image = Volume(image.values, image.grid, "SUV")
    elif what == "mu unit":
        mu = Volume(mu.values, mu.grid, "1")
    elif what == "no matter":
        mu = Volume(nothing, mu.grid, "1/cm")
    else:
        image = Volume(nothing, image.grid, "Bq/mL")
    with pytest.raises(InputError, match=message):
        expected_scatter_table(scenes.small_scanner(), image=image, mu=mu, settings=COARSE)


def test_crystals_that_do_not_surround_the_axis_are_refused() -> None:
    scanner = scenes.small_scanner()
    position = np.array(scanner.crystal_position_mm)
    position[0, :2] *= 0.5
    odd = replace(scanner, crystal_position_mm=position)
    with pytest.raises(InputError, match="crystals that lie about a cylinder"):
        lay_nodes(odd, ScatterSettings())


def test_settings_must_be_positive() -> None:
    with pytest.raises(InputError, match="scatter setting n_points must be positive"):
        ScatterSettings(n_points=0)
