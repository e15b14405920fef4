from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.motion import Change, Changes, MotionResult
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.source import Listmode, ScanProtocol
from listmode.windows import Windows
from recon.hotspots.features import HotspotTable
from recon.image import Grid, Volume
from recon.pipeline import (
    LabelMap,
    choose_grid,
    load_labels,
    reconstruct_scan,
    reconstruct_windows,
    save_labels,
    to_suv,
)
from recon.pipeline.benchmark import load_suite
from recon.pipeline.demo import SimulationPlan, parse_shifts, truth_images
from recon.pipeline.measure import choose_rule, measure_image
from recon.pipeline.motion import analyse, fit_mu
from recon.pipeline.scan import run_scan
from recon.report.build import match_hotspots
from recon.report.measures import ProfileWidths, axial_profile, measure_profile
from recon.report.words import direction
from recon.settings import GridSettings, HotspotSettings, Settings
from tests.recon.scans import small_scanner, write_scan

DATA = Path(os.environ.get("STILLPET_DATA", Path(__file__).parents[3] / "shared" / "data"))


def outside(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data or $STILLPET_DATA")
    return path


def quick(voxel_mm: float, *, n_iterations: int = 2, n_pairs: int = 400_000) -> Settings:
    settings = Settings()
    return replace(
        settings,
        grid=GridSettings(voxel_mm=voxel_mm),
        osem=replace(
            settings.osem,
            n_iterations=n_iterations,
            n_subsets=4,
            n_sensitivity_pairs=n_pairs,
        ),
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "tiny.h5"
    write_scan(path, dead_s=None)
    return path


# ---- grids, SUV, labels, rules


@pytest.mark.parametrize(
    ("scanner", "shape"),
    [("quadra", (165, 165, 322)), ("vision600", (165, 165, 80)), ("mmr", (165, 165, 79))],
)
def test_the_grid_covers_the_patient_and_the_axial_field(
    scanner: str, shape: tuple[int, int, int]
) -> None:
    grid = choose_grid(load_scanner(scanner))
    assert grid.shape == shape
    assert grid.point_mm(np.array(grid.shape) - 1).tolist() == pytest.approx(
        [-v for v in grid.origin_mm]
    )


def test_a_small_bore_limits_the_grid() -> None:
    assert choose_grid(small_scanner(), GridSettings(voxel_mm=10.0)).shape == (24, 24, 29)
    own = GridSettings(voxel_mm=5.0, radius_mm=50.0, length_mm=40.0)
    assert choose_grid(small_scanner(), own).shape == (20, 20, 8)


def test_suv_divides_by_the_activity_at_tick_zero_per_gram() -> None:
    grid = Grid.centred((2, 2, 2), 1.0)
    volume = Volume(np.full(grid.shape, 1000.0, np.float32), grid, "Bq/mL")
    protocol = ScanProtocol(
        half_life_s=3600.0, injected_activity_bq=20e6, injection_time_s=-3600.0,
        patient_weight_kg=50.0,
    )  # fmt: skip
    suv = to_suv(volume, protocol)
    assert suv is not None
    assert suv.unit == "SUV"
    assert suv.values[0, 0, 0] == pytest.approx(1000.0 * 50_000.0 / 10e6)
    assert to_suv(volume, ScanProtocol()) is None


def test_labels_come_back_with_their_names(tmp_path: Path) -> None:
    grid = Grid.centred((4, 5, 6), 5.0)
    numbers = np.zeros(grid.shape, np.int32)
    numbers[1:3, 2, 3] = 7
    labels = LabelMap(
        Volume(numbers, grid, "label"), {7: "liver", 9: "node"}, frozenset({"liver"})
    )
    save_labels(tmp_path / "organs.nii.gz", labels)
    back = load_labels(tmp_path / "organs.nii.gz")
    assert back.names == {7: "liver", 9: "node"}
    assert back.physiological == {"liver"}
    region = back.region("liver")
    assert region is not None
    assert region.sum() == 2
    assert back.region("spleen") is None


def test_a_label_map_without_a_table_has_no_names(tmp_path: Path) -> None:
    grid = Grid.centred((4, 5, 6), 5.0)
    labels = LabelMap(Volume(np.ones(grid.shape, np.int32), grid, "label"), {1: "a"})
    save_labels(tmp_path / "organs.nii.gz", labels)
    (tmp_path / "organs.tsv").unlink()
    assert load_labels(tmp_path / "organs.nii.gz").names == {}


def test_a_rule_given_wins_over_the_settings() -> None:
    rule = choose_rule(HotspotSettings(), suv=4.0)
    assert (rule.rule, rule.threshold) == ("suv", 4.0)
    assert choose_rule(HotspotSettings()) == HotspotSettings()
    with pytest.raises(InputError, match="one rule must say where a hotspot ends"):
        choose_rule(HotspotSettings(), suv=4.0, absolute=100.0)


def _table(*places: tuple[float, float, float]) -> HotspotTable:
    grid = Grid.centred((60, 60, 60), 4.0)
    values = np.zeros(grid.shape, np.float32)
    for k, place in enumerate(places):
        i, j, m = np.rint(grid.voxel_index(place)).astype(int)
        values[i - 1 : i + 2, j - 1 : j + 2, m - 1 : m + 2] = 9.0 - k
    return measure_image(Volume(values, grid, "SUV"))


def test_hotspots_of_both_images_are_matched_by_place_and_only_once() -> None:
    still = _table((40, 0, 0), (-40, 0, 0), (0, 60, 0))
    full = _table((-42, 0, 6), (42, 0, -6))
    pairs = match_hotspots(still, full)
    found = [None if other is None else round(other.x_mm) for _, other in pairs]
    assert found == [42, -42, None]


def test_directions_have_the_names_of_the_scanner_frame() -> None:
    assert direction((5.0, 1.0, -2.0)) == "to the patient's left"
    assert direction((0.0, -3.0, 0.0)) == "to the front"
    assert direction((0.0, 0.0, -3.0)) == "towards the feet"


def test_shifts_are_read_in_any_number() -> None:
    assert parse_shifts(["1:2,3,4", "5:-6,0,0.5"]) == (
        (1.0, (2.0, 3.0, 4.0)),
        (5.0, (-6.0, 0.0, 0.5)),
    )
    with pytest.raises(InputError, match="a shift must read like"):
        parse_shifts(["1:2,3"])


def test_shifts_of_a_plan_are_put_in_order_of_time() -> None:
    plan = SimulationPlan(shifts=((700.0, (0, 0, 1)), (100.0, (0, 0, 5))))
    assert plan.make_motion().displacement_mm([200.0, 800.0])[:, 2].tolist() == [5.0, 6.0]


def test_truth_images_lie_where_the_phantom_is() -> None:
    grid = Grid.centred((60, 60, 120), 9.0)
    activity, mu, labels = truth_images(pregnant_phantom(), grid)
    assert 0 not in labels.names
    bladder = labels.region("bladder")
    assert bladder is not None
    z = grid.axis_mm(2)[np.nonzero(bladder)[2]].mean()
    assert z == pytest.approx(-280.0, abs=9.0)
    assert float(mu.values[bladder].mean()) == pytest.approx(0.096, rel=0.02)
    assert activity.unit == "Bq/mL"


def test_benchmarks_need_a_source_checkout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchmarks run from a source checkout"):
        load_suite(tmp_path)


# ---- the mu-map's pose


class _Trace:
    edges_ms = np.array([0, 1000])


def _moved(shift_mm: tuple[float, float, float]) -> MotionResult:
    """A result with one shift at 600 s; what the pose needs of it, and no more."""
    change = Change(
        time_s=600.0, time_interval_s=(599.0, 601.0), shift_mm=shift_mm,
        shift_interval_mm=((0.0, 0.0),) * 3, kind="whole-body shift", reason="", statistic=99.0,
    )  # fmt: skip
    empty = np.empty((0, 3))
    changes = Changes((change,), 20.0, 1.0, (1.0, 1.0, 1.0), np.empty(0), empty, empty)

    class Result:
        def __init__(self) -> None:
            self.changes, self.trace = changes, _Trace()

    return cast("MotionResult", Result())


def _mu() -> Volume:
    grid = Grid.centred((10, 10, 10), 10.0)
    return Volume(np.full(grid.shape, 0.096, np.float32), grid, "1/cm")


def test_the_mu_map_follows_the_patient_into_the_kept_windows() -> None:
    pose = fit_mu(_moved((0.0, 2.0, 14.0)), Windows.parse("602-1200"), _mu(), 0.0)
    assert pose.mu is not None
    assert pose.mu.grid.origin_mm == pytest.approx((-45.0, -43.0, -31.0))
    assert "was moved by 14.1 mm" in pose.notes[0]


def test_without_its_time_the_mu_map_stays_and_the_report_warns() -> None:
    mu = _mu()
    pose = fit_mu(_moved((0.0, 0.0, 14.0)), Windows.parse("602-1200"), mu, None)
    assert pose.mu is mu
    assert "The kept windows lie 14.0 mm" in pose.notes[0]


def test_windows_in_the_mu_maps_own_pose_change_nothing() -> None:
    mu = _mu()
    for time_s in (0.0, None):
        pose = fit_mu(_moved((0.0, 0.0, 14.0)), Windows.parse("0-590"), mu, time_s)
        assert pose.mu is mu
        assert pose.notes == ()
    assert fit_mu(_moved((0.0, 0.0, 14.0)), Windows.parse("602-1200"), None, 0.0).mu is None


# ---- reconstruction through the pipeline


@pytest.mark.slow
def test_windows_without_events_are_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "gap.h5"
    write_scan(path, seconds=20, dead_s=(10, 15), events_per_s=300)
    with (
        open_listmode(path) as listmode,
        pytest.raises(InputError, match="each window must hold events, but 11-14 s holds none"),
    ):
        reconstruct_scan(listmode, Windows.parse("0-10,11-14"))


@pytest.mark.slow
def test_suv_does_not_depend_on_the_union_of_windows(tiny: Path) -> None:
    settings = quick(10.0)
    with open_listmode(tiny) as listmode:
        means = []
        for windows in ("0-60", "0-20,40-60", "10-40"):
            volume = reconstruct_windows(listmode, Windows.parse(windows), settings=settings)
            x, y, z = np.meshgrid(
                *(volume.grid.axis_mm(a) for a in range(3)), indexing="ij", sparse=True
            )
            inside = (x**2 + y**2 < 60**2) & (np.abs(z) < 60)
            means.append(float(volume.values[inside].mean()))
    # about 60,000 events a window: 0.4 % each
    assert means[1] == pytest.approx(means[0], rel=0.03)
    assert means[2] == pytest.approx(means[0], rel=0.03)


@pytest.mark.slow
def test_a_still_scan_is_kept_whole_and_the_report_says_so(tiny: Path, tmp_path: Path) -> None:
    with open_listmode(tiny) as listmode:
        result = run_scan(listmode, tmp_path, settings=quick(10.0))
        assert result.windows.merged() == listmode.extent
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The whole scan is used" in page
    assert "No change of position was found" in page
    assert "not corrected for attenuation or scatter" in page
    assert "not corrected for randoms" in page
    assert page.count("data:image/png;base64,") >= 4


# ---- data from outside


@pytest.mark.slow
@pytest.mark.outside
def test_six_points_of_another_programs_photons_lie_where_they_were(tmp_path: Path) -> None:
    """y and z within 1 mm of the known place, and of the right sign (x is 0 in all)."""
    known = [(y, z) for y in (10.0, 100.0, 200.0) for z in (0.0, 398.6)]
    with open_listmode(outside("petsird/geant4_lafov_points.petsird")) as listmode:
        result = run_scan(listmode, tmp_path, settings=quick(3.3, n_pairs=4_000_000))
        assert listmode.protocol.suv_per_bq_ml is None
    table = result.hotspots_still
    found = [(row.y_mm, row.z_mm) for row in table.rows[:6]]
    found.sort(key=lambda place: (round(place[0], -1), place[1]))
    assert len(found) == 6
    for (y, z), (true_y, true_z) in zip(found, sorted(known), strict=True):
        assert y == pytest.approx(true_y, abs=1.0)
        assert z == pytest.approx(true_z, abs=1.0)
    assert all(abs(row.x_mm) < 1.0 for row in table.rows[:6])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "values are in Bq/mL, not SUV" in page
    assert "whole body" in page


@pytest.mark.slow
@pytest.mark.outside
def test_the_real_mmr_scan_is_counted_and_lies_off_centre_along_one_axis() -> None:
    """Transaxial centroid 17.5-20 mm off centre, mainly along one axis, to the front (-y).

    It is the centroid of what was counted, activity times sensitivity, as that of the raw lines
    is: the object is tilted, from -21 mm in the middle to -7 mm at +60 mm, so a centroid that
    weighs the noisy ends of the field like its middle is another quantity.
    """
    with open_listmode(outside("stir/PET_ACQ_small.l.hdr.STIR")) as listmode:
        assert listmode.count(listmode.extent) + 187 >= 218_881 - 1
        result = reconstruct_scan(
            listmode, listmode.extent, settings=quick(6.6, n_pairs=4_000_000)
        )
    volume = result.volume
    x, y = (volume.grid.axis_mm(axis) for axis in range(2))
    counted = volume.values * result.sensitivity.values
    weight = counted.sum(axis=2, dtype=np.float64)
    centre = (
        float((weight.sum(axis=1) * x).sum() / weight.sum()),
        float((weight.sum(axis=0) * y).sum() / weight.sum()),
    )
    assert 17.5 <= float(np.hypot(*centre)) <= 20.0, centre
    assert max(abs(c) for c in centre) > 3.0 * min(abs(c) for c in centre), centre


# ---- the seed's case


BOX = ((-80.0, 80.0), (-125.0, 30.0), (-370.0, -160.0))


def _pelvis(motion: PatientMotion, seed: int) -> Listmode:
    """Events of the bladder's neighbourhood alone: unscattered, without randoms."""
    listmode, _ = simulate_in_memory(
        scanner=load_scanner("quadra-UHS"), phantom=pregnant_phantom(), dose=LOW_DOSE_FDG,
        motion=motion, seed=seed, count_fraction=0.125, scatter="off", with_randoms=False,
        emission_box_mm=BOX,
    )  # fmt: skip
    return listmode


def _bladder(
    listmode: Listmode, windows: Windows, pose_mm: float, folder: Path
) -> ProfileWidths:
    """Widths of the bladder in an image of its neighbourhood, the mu-map in the given pose."""
    grid = Grid((56, 56, 72), (3.3, 3.3, 3.3), (-90.75, -138.0, -378.0))
    wide = Grid.centred((84, 64, 162), 6.6)
    axes = [wide.axis_mm(axis) for axis in range(3)]
    mu = pregnant_phantom().sample_mu(*axes, shift_mm=(0.0, 0.0, pose_mm))
    settings = quick(3.3, n_iterations=3, n_pairs=2_500_000)
    done = reconstruct_scan(
        listmode, windows, grid=grid, mu=Volume(mu, wide, "1/cm"), cache_dir=folder,
        settings=replace(settings, corrections=replace(settings.corrections, scatter=False)),
    )  # fmt: skip
    widths = measure_profile(*axial_profile(done.volume, (0.0, -48.0, -270.0 + pose_mm)))
    assert widths is not None
    return widths


def _fails(widths: ProfileWidths, reference: ProfileWidths) -> tuple[bool, bool]:
    """Say whether the RMS width is off by more than 3 %, and a wall by more than 10 %."""
    rms = abs(widths.rms_mm / reference.rms_mm - 1.0) > 0.03
    walls = any(
        abs(here / there - 1.0) > 0.10
        for here, there in (
            (widths.lower_edge_mm, reference.lower_edge_mm),
            (widths.upper_edge_mm, reference.upper_edge_mm),
        )
    )
    return rms, walls


@pytest.mark.slow
@pytest.mark.stats
def test_the_still_image_shows_the_bladder_as_a_never_moving_scan_does(
    tmp_path: Path,
) -> None:
    """Seeds 11 and 12, a shift of 13 mm at 600 s, low-dose protocol at an eighth of its counts.

    Each image is held against that of a never-moving scan with the same windows.
    """
    moving = _pelvis(PatientMotion((600.0,), ((0.0, 0.0, 13.0),)), seed=11)
    still = _pelvis(STILL, seed=12)
    windows = analyse(moving).selection.windows
    pose_mm = 13.0 if windows.start_ms[0] > 590_000 else 0.0
    selected = _bladder(moving, windows, pose_mm, tmp_path)
    assert _fails(selected, _bladder(still, windows, 0.0, tmp_path)) == (False, False)
    uncorrected = _bladder(moving, moving.extent, 0.0, tmp_path)
    assert _fails(uncorrected, _bladder(still, still.extent, 0.0, tmp_path)) == (True, True)
