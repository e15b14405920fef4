"""Motion-corrected reconstruction: bits, places, units, and what must not be left out."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import motion_corrected_study as study
from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.memory import MemoryListmode
from listmode.motion import Change
from listmode.scanner import TofModel
from listmode.simulate.motion import STILL, PatientMotion
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.corrections.additive import ByPose, share_out
from recon.corrections.randoms import estimate_randoms, estimate_randoms_by_pose
from recon.image import Grid, Volume
from recon.motion import Poses, poses_from_changes, rigid
from recon.osem import OsemSettings
from recon.pipeline import reconstruct_scan
from recon.pipeline import scan as scan_stage
from recon.pipeline.motion import analyse, recorded_poses
from recon.pipeline.scan import run_scan
from recon.reconstruct import additive_terms, calibration_s, reconstruct
from recon.report.measures import axial_profile, measure_profile
from recon.sensitivity import average_sensitivity, compute_sensitivity
from recon.settings import Settings
from tests.oracles import cylinder_span, exhaustive_rates, small_scanner, some_events
from tests.recon import scans
from tests.recon.moving_scan import Ellipsoid, coincidences, in_turn, shift, turn

DATA = Path(os.environ.get("STILLPET_DATA", Path(__file__).parents[3] / "shared" / "data"))


def outside(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data or $STILLPET_DATA")
    return path


NO_DECAY = ScanProtocol(half_life_s=1e12)


def two_poses(matrix: np.ndarray[Any, Any], first: Windows, second: Windows) -> Poses:
    return Poses(np.stack((np.eye(4), matrix)), (first, second), np.zeros((2, 6, 6)))


# ---- bits


class Flat:
    """One count in ten thousand a pair and bin."""

    def expected(self, batch: EventBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.full(len(batch), 1e-4, np.float32)


def _small_case() -> tuple[MemoryListmode, Grid]:
    scanner = small_scanner(tof=TofModel(13, 100.0, 200.0))
    events = some_events(scanner, 12_000, 3)
    offset = np.linspace(0, len(events), 101).astype(np.int64)
    listmode = MemoryListmode(scanner, ScanProtocol(half_life_s=0.2), events, offset)
    return listmode, Grid.centred((21, 23, 25), 7.0)


def _image(
    listmode: MemoryListmode, windows: Windows, grid: Grid, poses: Poses | None, **more: Any
) -> np.ndarray[Any, Any]:
    settings = OsemSettings(n_iterations=2, n_subsets=3, n_sensitivity_pairs=200_000)
    return reconstruct(
        listmode, windows, grid=grid, settings=settings, poses=poses, **more
    ).values


def test_a_pose_at_rest_changes_no_bit() -> None:
    listmode, grid = _small_case()
    windows = Windows([0, 30], [30, 100])
    mu = Volume(np.full(grid.shape, 0.01, np.float32), grid, "1/cm")
    still = _image(listmode, windows, grid, None, mu=mu, additive=[Flat()])
    posed = _image(
        listmode, windows, grid, Poses.still(listmode.extent), mu=mu, additive=[Flat()]
    )
    np.testing.assert_array_equal(still, posed)
    assert still.max() > 0


def test_a_second_pose_at_rest_changes_no_bit_of_the_events_or_their_order() -> None:
    listmode, grid = _small_case()
    sensitivity = compute_sensitivity(listmode.scanner, grid, n_pairs=200_000)
    poses = two_poses(np.eye(4), Windows([0, 70], [20, 100]), Windows([20], [70]))
    images = [
        _image(listmode, listmode.extent, grid, p, sensitivity=sensitivity)
        for p in (None, poses)
    ]
    np.testing.assert_array_equal(images[0], images[1])


def _moving() -> Poses:
    matrix = rigid((3, -2, 9), (0.05, 0.02, -0.1))
    return two_poses(matrix, Windows([0, 70], [20, 100]), Windows([20], [70]))


def test_a_corrected_image_has_the_same_bits_at_any_number_of_threads() -> None:
    listmode, grid = _small_case()
    images = [
        _image(listmode, listmode.extent, grid, _moving(), threads=threads)
        for threads in (1, 2, 4)
    ]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_a_corrected_union_of_windows_gives_the_bits_of_a_file_cut_to_it() -> None:
    listmode, grid = _small_case()
    windows = Windows([10, 60], [35, 90])
    keep = np.zeros(len(listmode.prompts), bool)
    for start, stop in listmode.event_slices(windows).tolist():
        keep[start:stop] = True
    columns = [
        getattr(listmode.prompts, c)[keep] for c in ("crystal_a", "crystal_b", "tof_bin")
    ]
    before = np.concatenate(([0], np.cumsum(keep)))
    cut = MemoryListmode(
        listmode.scanner, listmode.protocol, EventBatch(*columns),
        before[listmode.prompts_offset].astype(np.int64),
    )  # fmt: skip
    np.testing.assert_array_equal(
        _image(listmode, windows, grid, _moving()), _image(cut, windows, grid, _moving())
    )


# ---- factors


def test_sensitivity_in_air_follows_the_detector() -> None:
    """A voxel is as sensitive as the place in the scanner to which the pose takes it."""
    scanner = small_scanner(n_units=4)
    matrix = shift(0.0, 0.0, 24.0) @ turn(2, 0.3)
    near, far = Grid.centred((9, 9, 9), 8.0), Grid((9, 9, 15), (8.0,) * 3, (-32, -32, -32))
    poses = two_poses(matrix, Windows([0], [10]), Windows([10], [40]))
    moved = average_sensitivity(
        scanner, near, poses, half_life_s=1e12, n_pairs=16_000_000
    ).values
    still = compute_sensitivity(scanner, far, n_pairs=16_000_000).values
    # about its axis the scanner is alike after the turn: the middle tells z alone
    moved, still = (v[2:7, 2:7].mean(axis=(0, 1)) for v in (moved, still))
    np.testing.assert_allclose(moved, 0.25 * still[:9] + 0.75 * still[3:12], rtol=0.01)
    assert abs(still[3:12] / still[:9] - 1).max() > 0.1


def test_the_additive_term_has_the_patients_attenuation_and_the_detectors_efficiency() -> None:
    """Against chords through the moved cylinder and the formula for pairs."""
    scanner, radius_mm, half_mm, mu_per_cm = small_scanner(n_units=3), 50.0, 40.0, 0.096
    fine = Grid.centred((60, 60, 48), 2.0)
    x, y, z = np.meshgrid(*(fine.axis_mm(a) for a in range(3)), indexing="ij")
    inside = (np.hypot(x, y) < radius_mm) & (np.abs(z) < half_mm)
    mu = Volume(inside * np.float32(mu_per_cm), fine, "1/cm")
    matrix = shift(8.0, -5.0, 15.0) @ turn(0, 0.15)
    first, second = Windows([0], [50]), Windows([50], [100])
    listmode = MemoryListmode(
        scanner, ScanProtocol(half_life_s=0.1), some_events(scanner, 4000, 5),
        np.linspace(0, 4000, 101).astype(np.int64),
    )  # fmt: skip
    batch = listmode.prompts
    terms = additive_terms(
        listmode, [ByPose((Flat(), Flat()))], mu, two_poses(matrix, first, second), 1
    )
    back = np.linalg.inv(matrix)
    for term, seen, part in zip(terms, (np.eye(4), back), (first, second), strict=True):
        ends = [
            scanner.crystal_position_mm[c].astype(np.float64) @ seen[:3, :3].T + seen[:3, 3]
            for c in (batch.crystal_a, batch.crystal_b)
        ]
        with np.errstate(invalid="ignore"):
            a, b = cylinder_span(ends[0], ends[1], radius_mm, half_mm)
        chord_mm = np.nan_to_num(np.clip(b, 0, 1) - np.clip(a, 0, 1))
        chord_mm = chord_mm * np.linalg.norm(ends[1] - ends[0], axis=1)
        rate = exhaustive_rates(
            scanner, batch.crystal_a.astype(np.int64), batch.crystal_b.astype(np.int64)
        )
        rate *= np.exp(-0.1 * mu_per_cm * chord_mm) * calibration_s(listmode.protocol, part)
        ratio = term(batch) * rate / 1e-4
        assert np.median(ratio) == pytest.approx(1.0, abs=0.005)
        # the walls of a cylinder in voxels of 8 mm; a map that stays behind is off by 0.25
        assert np.median(np.abs(ratio - 1.0)[chord_mm > 0]) < 0.03


def test_an_additive_term_of_another_number_of_poses_is_refused() -> None:
    listmode, grid = _small_case()
    with pytest.raises(InputError, match="known for each of the 2 poses, but Flat has 1"):
        _image(listmode, listmode.extent, grid, _moving(), additive=[Flat()])


def _with_delayeds(n: int) -> MemoryListmode:
    scanner = small_scanner()
    offset = np.linspace(0, n, 101).astype(np.int64)
    return MemoryListmode(
        scanner, ScanProtocol(half_life_s=0.2), some_events(scanner, n, 4), offset,
        delayeds=some_events(scanner, n, 6), delayeds_offset=offset,
    )  # fmt: skip


@pytest.mark.parametrize("n", [3000, 300_000])
def test_the_randoms_of_the_poses_are_those_of_all_the_time(n: int) -> None:
    """With few delayed events all poses share a pattern, with many each has its own."""
    listmode = _with_delayeds(n)
    models = estimate_randoms_by_pose(listmode, _moving())
    whole = estimate_randoms(listmode, listmode.extent)
    assert sum(m.total for m in models) == pytest.approx(whole.total, rel=1e-6)
    assert [m.total / whole.total for m in models] == pytest.approx([0.5, 0.5], rel=1e-3)
    batch = listmode.prompts
    total = sum(float(m.expected(batch).sum()) for m in models)
    assert total == pytest.approx(float(whole.expected(batch).sum()), rel=2e-3)
    assert models[0].singles_hz.mean() == pytest.approx(whole.singles_hz.mean(), rel=1e-2)


def test_what_a_group_of_poses_counts_is_shared_out_by_decay() -> None:
    parts = [Windows([k * 1000], [(k + 1) * 1000]) for k in range(3)]
    poses = Poses.from_shifts([(0, 0, 0), (0, 0, 1), (0, 0, 20)], parts)
    groups = poses.merged(5.0)
    batch = _small_case()[0].prompts
    shared = share_out([Flat(), Flat()], groups, poses, half_life_s=1.0)
    got = [float(model.expected(batch)[0]) for model in shared.models]
    assert got == pytest.approx([1e-4 * 2 / 3, 1e-4 / 3, 1e-4], rel=1e-6)


# ---- places and activity


@cache
def _spots() -> tuple[MemoryListmode, np.ndarray[Any, Any]]:
    """Four hot spots in a warm body that turns by 4° about an oblique axis and shifts."""
    scanner = small_scanner(
        n_units=4, n_rings_per_unit=12, n_crystals=8, pitch_mm=4.8, radius_mm=100.0,
        tof=TofModel(13, 100.0, 200.0),
    )  # fmt: skip
    bodies = [
        Ellipsoid((0, 0, 0), (55, 45, 80), 1.0, 0.096),
        *(Ellipsoid(p, (6, 6, 6), 60.0) for p in SPOTS),
    ]
    matrix = shift(4.0, -3.0, 10.0) @ turn(0, 0.07) @ turn(2, -0.07)
    rng = np.random.default_rng(21)
    parts = [
        coincidences(scanner, bodies, pose, 1_500_000, rng) for pose in (np.eye(4), matrix)
    ]
    return in_turn(scanner, parts, [5.0, 5.0], NO_DECAY), matrix


SPOTS = ((30.0, 0.0, 40.0), (-30.0, 10.0, 20.0), (0.0, -25.0, -30.0), (10.0, 20.0, -50.0))


def _found(image: Volume) -> np.ndarray[Any, Any]:
    """Centroid of each spot above half of the hottest, within 12 mm of where it should be."""
    x, y, z = np.meshgrid(*(image.grid.axis_mm(a) for a in range(3)), indexing="ij")
    found = []
    for place in SPOTS:
        near = np.hypot(np.hypot(x - place[0], y - place[1]), z - place[2]) < 12.0
        weight = np.where(near, np.maximum(image.values - image.values.max() * 0.2, 0.0), 0.0)
        found.append([float((a * weight).sum() / weight.sum()) for a in (x, y, z)])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.stats
def test_spots_of_a_turned_and_shifted_body_lie_where_they_were() -> None:
    """Seed 21; centroids of spots of 2000 events scatter by 0.2 mm along an axis."""
    listmode, matrix = _spots()
    grid = Grid.centred((48, 48, 72), 2.8)
    fine = Grid.centred((30, 30, 45), 5.0)
    x, y, z = np.meshgrid(*(fine.axis_mm(a) for a in range(3)), indexing="ij")
    body = (x / 55) ** 2 + (y / 45) ** 2 + (z / 80) ** 2 < 1
    mu = Volume(body * np.float32(0.096), fine, "1/cm")
    poses = two_poses(matrix, Windows([0], [5000]), Windows([5000], [10_000]))
    settings = OsemSettings(n_iterations=3, n_subsets=4, n_sensitivity_pairs=2_000_000)
    images = [
        reconstruct(listmode, listmode.extent, grid=grid, mu=mu, settings=settings, poses=p)
        for p in (poses, None)
    ]
    first = reconstruct(listmode, Windows([0], [5000]), grid=grid, mu=mu, settings=settings)
    errors = [np.linalg.norm(_found(image) - SPOTS, axis=1).max() for image in images]
    assert errors[0] < 0.8
    assert errors[1] > 3.0
    deep = np.hypot(*np.meshgrid(grid.axis_mm(0), grid.axis_mm(1), indexing="ij")) < 15.0
    # the same activity as in the half of the time in which nobody moved
    means = [float(i.values[deep][:, 25:47].mean(dtype=np.float64)) for i in (images[0], first)]
    assert means[0] == pytest.approx(means[1], rel=0.02)


# ---- the seed's case


def _bladder_widths(image: Volume) -> dict[str, float]:
    widths = measure_profile(*axial_profile(image, study.BLADDER_MM))
    assert widths is not None
    return {name: float(getattr(widths, name)) for name in study.LIMITS}


def _within(widths: dict[str, float], reference: dict[str, float]) -> dict[str, bool]:
    return {
        name: abs(widths[name] / reference[name] - 1.0) <= limit
        for name, limit in study.LIMITS.items()
    }


def quick() -> Settings:
    """The study's settings with fewer pairs for the sensitivity: 0.1 % over a bladder."""
    settings = study.study_settings()
    return replace(settings, osem=replace(settings.osem, n_sensitivity_pairs=4_000_000))


NEIGHBOURHOOD = ((-80.0, 80.0), (-125.0, 30.0), (-370.0, -160.0))


@pytest.mark.slow
@pytest.mark.stats
def test_the_corrected_image_of_all_minutes_shows_the_bladder_as_if_nobody_had_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds 11 and 12, 13 mm at 600 s, low-dose protocol at a quarter of its counts.

    Poses come from the motion analysis; the mu-map shows the first pose.
    """
    monkeypatch.setattr(study, "BOX", NEIGHBOURHOOD)
    moving = study.pelvis(study.SHIFT, 11, 0.25)
    still = study.pelvis(STILL, 12, 0.25)
    poses = poses_from_changes(
        analyse(moving).changes, moving.extent, kinds=("whole-body shift", "unclassified")
    )
    assert poses.scanner_from_reference[1, :3, 3] == pytest.approx([0, 0, 13], abs=0.5)
    grid = Grid((56, 56, 72), (3.3, 3.3, 3.3), (-90.75, -138.0, -378.0))
    reference, corrected, uncorrected = (
        _bladder_widths(
            reconstruct_scan(
                scan, scan.extent, grid=grid, mu=study.mu_map(), poses=p, cache_dir=tmp_path,
                settings=quick(),
            ).volume
        )
        for scan, p in ((still, None), (moving, poses), (moving, None))
    )  # fmt: skip
    assert all(_within(corrected, reference).values()), (corrected, reference)
    assert not any(_within(uncorrected, reference).values()), (uncorrected, reference)


@pytest.mark.slow
@pytest.mark.stats
def test_without_the_average_over_poses_activity_comes_out_wrong(tmp_path: Path) -> None:
    """A shift of 20 mm at 480 s: the mutation that forgets to average must be caught.

    Seeds 31 and 32, a twentieth of the counts: 1e5 events of the bladder, 0.5 % a mean.
    """
    motion = PatientMotion((480.0,), ((0.0, 0.0, 20.0),))
    moving, still = study.pelvis(motion, 31, 0.05), study.pelvis(STILL, 32, 0.05)
    parts = (Windows([0], [480_000]), Windows([480_000], [1_200_000]))
    poses = two_poses(shift(0.0, 0.0, 20.0), *parts)
    inside = study.regions()["bladder"]
    settings = quick()

    def mean(scan: MemoryListmode, where: Poses | None, **more: Any) -> float:
        done = reconstruct_scan(
            scan, scan.extent, grid=study.GRID, mu=study.mu_map(), settings=settings,
            poses=where, cache_dir=tmp_path, **more,
        )  # fmt: skip
        return float(done.volume.values[inside].mean(dtype=np.float64))

    reference = mean(still, None)
    of_first_pose = compute_sensitivity(
        moving.scanner, study.GRID, mu=study.mu_map(), crystal_efficiency=None,
        n_pairs=settings.osem.n_sensitivity_pairs,
    )  # fmt: skip
    assert mean(moving, poses) == pytest.approx(reference, rel=0.02)
    mutated = mean(moving, poses, sensitivity=of_first_pose)
    assert abs(mutated / reference - 1.0) > 0.02


# ---- recorded moves


@pytest.mark.outside
def test_the_bed_moves_of_a_petsird_file_are_poses() -> None:
    path = outside("petsird/petsird_rich_two_types_v0.12.0.petsird")
    with open_listmode(path) as listmode:
        poses = recorded_poses(listmode, listmode.extent)
        z_mm = {k: float(m[2, 3]) for k, m in enumerate(poses.scanner_from_reference)}
        last, pose = poses.timeline()[-1]
    assert last.stop_ms[-1] == listmode.stop_ms
    assert z_mm[pose] == pytest.approx(6.0)


def test_a_file_that_cannot_hold_bed_moves_is_refused() -> None:
    listmode, _ = _small_case()
    with pytest.raises(InputError, match="moves of the bed must be in a PETSIRD file"):
        recorded_poses(listmode, listmode.extent)


# ---- the main job


@pytest.mark.slow
@pytest.mark.stats
def test_a_run_writes_the_corrected_image_and_shows_it_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 8: a shift of 15 mm after half a minute.

    The change is given: two hot spots in a scanner as long as a hand are not what the analysis
    is made for.
    """
    scanner, rng = scans.small_scanner(), np.random.default_rng(8)
    bodies = [
        Ellipsoid((0, 0, 0), (70, 60, 70), 1.0),
        *(Ellipsoid(p, (8, 8, 8), 40.0) for p in ((40.0, -20.0, 40.0), (-30.0, 30.0, -40.0))),
    ]
    parts = [
        coincidences(scanner, bodies, pose, 500_000, rng)
        for pose in (np.eye(4), shift(0.0, 0.0, 15.0))
    ]
    listmode = in_turn(scanner, parts, [30.0, 30.0], NO_DECAY)
    plain = Settings()
    settings = replace(
        plain,
        grid=replace(plain.grid, voxel_mm=8.0),
        osem=replace(plain.osem, n_iterations=2, n_subsets=4, n_sensitivity_pairs=400_000),
    )
    moved = Change(
        30.0, (29.9, 30.1), (0.0, 0.0, 15.0), ((-0.2, 0.2), (-0.2, 0.2), (14.8, 15.2)),
        "whole-body shift", "", 99.0,
    )  # fmt: skip
    found = analyse(listmode)
    found = replace(found, changes=replace(found.changes, items=(moved,)))
    monkeypatch.setattr(scan_stage, "analyse", lambda *_, **__: found)
    result = run_scan(listmode, tmp_path, settings=settings)
    assert result.poses.scanner_from_reference[:, 2, 3] == pytest.approx([0, 15], abs=1.0)
    assert result.corrected is not None
    assert {"corrected.nii.gz", "poses.csv", "hotspots_corrected.csv"} <= set(result.files)
    assert all((tmp_path / name).exists() for name in result.files)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The motion-corrected image shows the patient in the pose of the mu-map" in page
    z = result.full.volume.grid.axis_mm(2)
    spread = {}
    for name, done in (("full", result.full), ("corrected", result.corrected)):
        near = done.volume.values[17:20, 8:11].sum(axis=(0, 1), dtype=np.float64)
        near[np.abs(z - 45.0) > 40.0] = 0.0
        middle = (near * z).sum() / near.sum()
        spread[name] = float(np.sqrt((near * (z - middle) ** 2).sum() / near.sum()))
    assert spread["corrected"] < 0.9 * spread["full"]
    plain_run = tmp_path / "plain"
    plain_run.mkdir()
    again = run_scan(listmode, plain_run, settings=settings, correct_motion=False)
    assert again.corrected is None
    assert not (plain_run / "corrected.nii.gz").exists()
    assert "The motion-corrected image" not in (plain_run / "report.html").read_text("utf-8")
