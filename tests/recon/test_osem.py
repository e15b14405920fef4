"""Reconstruction: units, decay, windows, likelihood and bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import TofModel
from listmode.source import LiveFraction, ScanProtocol
from listmode.windows import Windows
from recon.cost import estimate_cost, measure_rays_per_s
from recon.events_store import store_events
from recon.image import Grid, Volume
from recon.osem import OsemSettings, Problem, osem
from recon.projector import RayModel, TaskPlan, forward
from recon.psf import blur
from recon.reconstruct import calibration_s, reconstruct
from recon.sensitivity import Sensitivity, compute_sensitivity
from tests.oracles import cylinder_scan, small_scanner, some_events

RADIUS_MM, HALF_MM, MU = 55.0, 45.0, 0.096
GRID = Grid.centred((33, 33, 31), 4.9)
TOF = TofModel(13, 100.0, 200.0)


def _activity(count_fraction: float) -> float:
    """More activity where fewer counts are kept, so that noise is alike."""
    return 4.0e3 / count_fraction


@cache
def _scan(count_fraction: float) -> MemoryListmode:
    return cylinder_scan(
        small_scanner(tof=TOF, n_crystals=8, n_rings_per_unit=16, pitch_mm=4.9),
        activity_bq_ml=_activity(count_fraction),
        radius_mm=RADIUS_MM,
        half_mm=HALF_MM,
        mu_per_cm=MU,
        seconds=6.0,
        protocol=ScanProtocol(half_life_s=4.0, branching=0.9, count_fraction=count_fraction),
    )


@cache
def _mu() -> Volume:
    fine = Grid.centred((66, 66, 62), 2.5)
    x, y, z = np.meshgrid(*[fine.axis_mm(k) for k in range(3)], indexing="ij")
    inside = (np.hypot(x, y) < RADIUS_MM) & (np.abs(z) < HALF_MM)
    return Volume(inside * np.float32(MU), fine, "1/cm")


@cache
def _sensitivity() -> Sensitivity:
    return compute_sensitivity(
        _scan(1.0).scanner, GRID, mu=_mu(), n_pairs=4_000_000, coarse_mm=9.8
    )


def _inner(grid: Grid) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    x, y, z = np.meshgrid(*[grid.axis_mm(k) for k in range(3)], indexing="ij")
    return (np.hypot(x, y) < 0.8 * RADIUS_MM) & (np.abs(z) < 0.8 * HALF_MM)


@pytest.mark.slow
@pytest.mark.parametrize("windows", ["0-6", "0-1,2-2.5,4-6", "3-3.7"])
@pytest.mark.parametrize("count_fraction", [1.0, 0.4])
def test_a_uniform_cylinder_has_its_activity_whatever_the_windows(
    windows: str, count_fraction: float
) -> None:
    settings = OsemSettings(n_iterations=2, n_subsets=5, psf_fwhm_mm=5.0)
    image = reconstruct(
        _scan(count_fraction),
        Windows.parse(windows),
        grid=GRID,
        mu=_mu(),
        settings=settings,
        sensitivity=_sensitivity(),
    )
    inner = image.values[_inner(GRID)]
    assert inner.mean() == pytest.approx(_activity(count_fraction), rel=0.02)


def _small_scan(tof: TofModel = TOF, seed: int = 3) -> tuple[MemoryListmode, Grid]:
    scanner = small_scanner(tof=tof)
    events = some_events(scanner, 12_000, seed)
    offset = np.linspace(0, len(events), 101).astype(np.int64)
    listmode = MemoryListmode(scanner, ScanProtocol(), events, offset, start_ms=50)
    return listmode, Grid.centred((21, 23, 25), 7.0)


def _small_case(tof: TofModel = TOF, seed: int = 3) -> tuple[MemoryListmode, Grid, Sensitivity]:
    listmode, grid = _small_scan(tof, seed)
    return listmode, grid, compute_sensitivity(listmode.scanner, grid, n_pairs=200_000)


@pytest.mark.parametrize("use_tof", [True, False])
@pytest.mark.parametrize("psf_fwhm_mm", [0.0, 9.0])
def test_the_likelihood_never_falls_with_one_subset(use_tof: bool, psf_fwhm_mm: float) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(
        n_iterations=8, n_subsets=1, psf_fwhm_mm=psf_fwhm_mm, use_tof=use_tof
    )
    rays = RayModel.make(grid, listmode.scanner, tof=use_tof)

    def term(batch: EventBatch) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.full(len(batch), 40.0, np.float32)

    likelihood = []
    with store_events(listmode, listmode.extent, TaskPlan(rays), additive=term) as store:
        for image in osem(Problem(store, sensitivity.values, grid, 0.1, settings)):
            seen = blur(np.asarray(image.values, np.float32), grid, psf_fwhm_mm)
            line = forward(seen, grid, listmode.scanner, listmode.prompts, tof=use_tof)
            log = np.log(line.astype(np.float64) + 40.0).sum()
            likelihood.append(log - 0.1 * np.vdot(sensitivity.values.astype(np.float64), seen))
    gains = np.diff(likelihood)
    assert gains[0] > 1
    assert (gains > -1e-6 * abs(likelihood[-1])).all()


def _cut(listmode: MemoryListmode, windows: Windows) -> MemoryListmode:
    """Keep the events in the windows only, on the same clock."""
    keep = np.zeros(len(listmode.prompts), bool)
    for start, stop in listmode.event_slices(windows).tolist():
        keep[start:stop] = True
    columns = [
        getattr(listmode.prompts, c)[keep] for c in ("crystal_a", "crystal_b", "tof_bin")
    ]
    before = np.concatenate(([0], np.cumsum(keep)))
    return MemoryListmode(
        listmode.scanner,
        listmode.protocol,
        EventBatch(*columns),
        before[listmode.prompts_offset].astype(np.int64),
        start_ms=listmode.start_ms,
    )


@pytest.mark.parametrize("windows", [Windows([50, 90], [60, 140]), Windows([70, 80], [80, 81])])
def test_a_union_of_windows_gives_the_bits_of_a_file_cut_to_it(windows: Windows) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=2, n_subsets=3)
    images = [
        reconstruct(scan, windows, grid=grid, settings=settings, sensitivity=sensitivity).values
        for scan in (listmode, _cut(listmode, windows))
    ]
    assert images[0].max() > 0
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize("use_tof", [True, False])
def test_an_image_has_the_same_bits_at_any_number_of_threads(use_tof: bool) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=2, n_subsets=3, use_tof=use_tof)
    images = [
        reconstruct(
            listmode,
            listmode.extent,
            grid=grid,
            settings=settings,
            sensitivity=sensitivity,
            threads=threads,
        ).values
        for threads in (1, 2, 4)
    ]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_an_image_is_zero_where_nothing_is_seen() -> None:
    listmode, _, _ = _small_case()
    wide = Grid.centred((61, 61, 21), 7.0)  # reaches beyond the crystals
    image = reconstruct(
        listmode,
        listmode.extent,
        grid=wide,
        settings=OsemSettings(n_iterations=1, n_sensitivity_pairs=100_000, psf_fwhm_mm=0),
    )
    assert image.values[30, 30, 10] > 0
    assert not image.values[:5].any()


def test_windows_without_events_are_refused() -> None:
    listmode, grid, _ = _small_case()
    empty = MemoryListmode(
        listmode.scanner, listmode.protocol, EventBatch.empty(), np.zeros(101, np.int64)
    )
    with pytest.raises(InputError, match="windows must hold events, but there are none in 0-0"):
        reconstruct(empty, Windows([0], [50]), grid=grid)


def test_windows_outside_the_scan_are_refused() -> None:
    listmode, grid, _ = _small_case()
    with pytest.raises(InputError, match="windows must lie within the scan"):
        reconstruct(listmode, Windows([0], [50]), grid=grid)


def test_a_sensitivity_of_another_grid_is_refused() -> None:
    listmode, _, sensitivity = _small_case()
    with pytest.raises(InputError, match="sensitivity must be on the image's grid"):
        reconstruct(
            listmode,
            listmode.extent,
            grid=Grid.centred((5, 5, 5), 7.0),
            sensitivity=sensitivity,
        )


@pytest.mark.parametrize("start", [np.ones((3, 3, 3)), np.full((21, 23, 25), -1.0)])
def test_an_unusable_start_image_is_refused(start: np.ndarray[Any, np.dtype[Any]]) -> None:
    listmode, grid, sensitivity = _small_case()
    with pytest.raises(InputError, match="image to start from must have the shape"):
        reconstruct(
            listmode,
            listmode.extent,
            grid=grid,
            sensitivity=sensitivity,
            start=start.astype(np.float32),
        )


def test_iterations_go_on_from_a_start_image() -> None:
    listmode, grid, sensitivity = _small_case()

    def run(n: int, start: np.ndarray[Any, np.dtype[np.float32]] | None) -> Volume:
        return reconstruct(
            listmode,
            listmode.extent,
            grid=grid,
            sensitivity=sensitivity,
            settings=OsemSettings(n_iterations=n, n_subsets=2),
            start=start,
        )

    half = np.asarray(run(1, None).values, np.float32)
    np.testing.assert_array_equal(run(2, None).values, run(1, half).values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_iterations": 0}, "at least one iteration and one subset"),
        ({"psf_fwhm_mm": -1.0}, "resolution and filter must be zero or more"),
        ({"n_sigma": 0.5}, "between 1 and 8 sigma"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OsemSettings(**wrong)  # type: ignore[arg-type]


def test_calibration_follows_branching_fraction_and_decay() -> None:
    protocol = ScanProtocol(half_life_s=10.0, branching=0.5, count_fraction=0.2)
    # One half-life from zero: half of the decays of activity 1, which has 10/ln 2 in all.
    got = calibration_s(protocol, Windows([0], [10_000]))
    assert got == pytest.approx(0.5 * 0.2 * 0.5 * 10 / np.log(2))


def test_the_cost_is_told_before_the_run() -> None:
    events_alone = {"has_scatter": False, "has_sensitivity": True}
    small = estimate_cost(1_000_000, GRID, OsemSettings(), **events_alone)
    large = estimate_cost(350_000_000, GRID, OsemSettings(), **events_alone)
    assert small.scratch_bytes == 0
    assert large.scratch_bytes > 4e9
    assert large.memory_bytes < small.memory_bytes + 1e9
    assert large.seconds > 100 * small.seconds / 2


def test_the_cost_follows_the_machine_and_what_is_left_to_do() -> None:
    usual = estimate_cost(20_000_000, GRID, OsemSettings(), rays_per_s=1e7)
    slow = estimate_cost(20_000_000, GRID, OsemSettings(), rays_per_s=5e6)
    assert slow.seconds == pytest.approx(2 * usual.seconds)
    for left_out in ("has_additive", "has_scatter"):
        less = estimate_cost(
            20_000_000, GRID, OsemSettings(), rays_per_s=1e7, **{left_out: False}
        )
        assert less.seconds < usual.seconds
    kept = estimate_cost(20_000_000, GRID, OsemSettings(), rays_per_s=1e7, has_sensitivity=True)
    assert kept.seconds < usual.seconds


def test_the_speed_of_a_machine_is_measured_in_rays() -> None:
    for scanner in (small_scanner(), load_scanner("mmr")):  # with and without TOF
        assert 1e3 < measure_rays_per_s(scanner, threads=1) < 1e9


def test_the_provenance_says_what_was_done() -> None:
    listmode, grid, sensitivity = _small_case()
    image = reconstruct(
        listmode,
        Windows([60], [100]),
        grid=grid,
        sensitivity=sensitivity,
        settings=OsemSettings(n_iterations=1),
    )
    p = image.provenance
    assert image.unit == "Bq/mL"
    assert p["windows_ms"] == [[60, 100]]
    assert p["n_events"] == listmode.count(Windows([60], [100]))
    assert p["source"]["sha256"] == listmode.file_hash
    assert p["osem"]["n_iterations"] == 1
    assert 0 < p["n_events_outside"] < p["n_events"]


def _half_dead(scan: MemoryListmode, from_s: float, share: float) -> MemoryListmode:
    """Lose a share of the later events at random, as dead time does."""
    n_before = int(scan.prompts_offset[round(from_s * 1000)])
    keep = np.random.default_rng(8).random(len(scan.prompts)) < share
    keep[:n_before] = True
    columns = [getattr(scan.prompts, c)[keep] for c in ("crystal_a", "crystal_b", "tof_bin")]
    before = np.concatenate(([0], np.cumsum(keep)))
    offset = before[scan.prompts_offset].astype(np.int64)
    lost = MemoryListmode(scan.scanner, scan.protocol, EventBatch(*columns), offset)
    lost.live = LiveFraction(np.array([0, round(from_s * 1000)]), np.array([1.0, share]))
    return lost


@pytest.mark.slow
def test_dead_time_does_not_change_the_activity_whatever_the_windows() -> None:
    scan = _half_dead(_scan(1.0), 2.5, 0.6)
    settings = OsemSettings(n_iterations=2, n_subsets=5, psf_fwhm_mm=5.0)
    for windows in ("0-6", "0-2", "2-5", "3-6"):
        image = reconstruct(
            scan, Windows.parse(windows), grid=GRID, mu=_mu(), settings=settings,
            sensitivity=_sensitivity(),
        )  # fmt: skip
        assert image.values[_inner(GRID)].mean() == pytest.approx(_activity(1.0), rel=0.02)


def test_the_calibration_counts_live_time() -> None:
    protocol = ScanProtocol(half_life_s=10.0, branching=1.0)
    live = LiveFraction(np.array([0, 4000]), np.array([0.9, 0.5]))
    windows = Windows([1000, 6000], [5000, 7000])
    parts = [(0.9, Windows([1000], [4000])), (0.5, Windows([4000, 6000], [5000, 7000]))]
    expected = sum(share * part.decayed_duration_s(10.0) for share, part in parts)
    assert calibration_s(protocol, windows, live) == pytest.approx(expected, rel=1e-12)
    whole = LiveFraction(np.array([3000]), np.array([1.0]))
    assert calibration_s(protocol, windows, whole) == pytest.approx(
        calibration_s(protocol, windows), rel=1e-12
    )


@pytest.mark.parametrize(
    ("start", "share", "message"),
    [
        ([0, 1], [1.0], "one share a step"),
        ([], [], "one share a step"),
        ([5, 5], [1.0, 0.5], r"ascending times and shares in \(0, 1\]"),
        ([0], [0.0], r"ascending times and shares in \(0, 1\]"),
        ([0], [1.2], r"ascending times and shares in \(0, 1\]"),
    ],
)
def test_impossible_live_time_is_refused(
    start: list[int], share: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        LiveFraction(np.array(start, np.int64), np.array(share))


def test_iterations_stop_once_they_change_little() -> None:
    listmode, grid, sensitivity = _small_case()

    def run(stop: float) -> Volume:
        return reconstruct(
            listmode, listmode.extent, grid=grid, sensitivity=sensitivity,
            settings=OsemSettings(n_iterations=12, n_subsets=2, stop_change=stop),
        )  # fmt: skip

    early, late, never = run(0.3), run(0.1), run(0.0)
    assert 1 < early.provenance["iteration"] < late.provenance["iteration"] < 12
    assert never.provenance["iteration"] == 12
    assert early.provenance["relative_change"] < 0.3
    assert "relative_change" not in never.provenance
    same = reconstruct(
        listmode, listmode.extent, grid=grid, sensitivity=sensitivity,
        settings=OsemSettings(n_iterations=early.provenance["iteration"], n_subsets=2),
    )  # fmt: skip
    np.testing.assert_array_equal(early.values, same.values)
