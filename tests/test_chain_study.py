"""The chain study: one small patient end to end, and a run that is killed and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chain_patient import (
    ALL_MINUTES,
    CONDITIONS,
    CORRECTED,
    STILL_SCAN,
    STILL_WINDOWS,
    poses_in,
    run_patient,
)
from benchmarks.chain_simulation import (
    ChainPlan,
    draw_motion,
    half_quadra,
    make_patient,
    widen,
)
from benchmarks.chain_study import check_plan, choose_patients, go_on, read_records
from benchmarks.chain_tables import mean_interval, score, tables, train_models
from listmode.errors import InputError
from listmode.simulate.motion import PatientMotion
from listmode.windows import Windows
from recon.hotspots.cohort import generate_cohort
from recon.image import Grid, Volume
from recon.io.cohorts import load_cohort_settings
from recon.pipeline.labels import LabelMap

SLOW_STUDY = """
import sys, time
from pathlib import Path
from benchmarks.chain_study import go_on

def work(key):
    time.sleep(0.3)
    return {"patient": key, "numbers": list(range(2000))}

go_on(Path(sys.argv[1]), ["a", "b", "c", "d"], work)
"""


def _run(path: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parent.parent
    return subprocess.Popen([sys.executable, "-c", SLOW_STUDY, str(path)], cwd=root)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_the_same_file(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert _run(whole).wait(timeout=120) == 0
    process = _run(killed)
    deadline = time.monotonic() + 120.0
    while not (killed.exists() and killed.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    n_done = len(read_records(killed))
    assert 1 <= n_done < 4
    with killed.open("ab") as file:
        file.write(b'{"patient": "b", "numb')  # what a kill within a write leaves behind
    assert _run(killed).wait(timeout=120) == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_records_of_other_patients_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "patients.jsonl"
    go_on(path, ["a"], lambda key: {"patient": key})
    with pytest.raises(InputError, match="begin with the patients of this study"):
        go_on(path, ["b", "c"], lambda key: {"patient": key})


def test_two_runs_do_not_write_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "patients.jsonl"

    def work(key: str) -> dict[str, str]:
        with path.open("ab") as other:
            other.write(b'{"patient": "a"}\n')
        return {"patient": key}

    with pytest.raises(InputError, match=r"one run at a time may write to patients\.jsonl"):
        go_on(path, ["a", "b"], work)
    assert path.read_bytes().count(b"\n") == 1


def test_a_study_does_not_go_on_with_another_plan(tmp_path: Path) -> None:
    check_plan(tmp_path / "plan.json", ChainPlan())
    check_plan(tmp_path / "plan.json", ChainPlan())
    with pytest.raises(InputError, match="goes on with the plan that it began with"):
        check_plan(tmp_path / "plan.json", ChainPlan(voxel_mm=5.0))


def test_the_study_has_its_patients_and_says_whom_it_left_out() -> None:
    patients, left_out = choose_patients(64, ChainPlan())
    assert len({patient.code for patient in patients}) == 64
    assert all("take fewer" in line for line in left_out)
    assert len(left_out) <= 2


def test_shifts_have_the_sizes_of_the_plan_and_stay_away_from_the_ends() -> None:
    plan = ChainPlan()
    for seed in range(50):
        motion = draw_motion(np.random.default_rng(seed), plan)
        sizes = np.linalg.norm(motion.step_mm, axis=1)
        assert ((sizes >= 8.0) & (sizes <= 25.0)).all()
        assert 100.0 <= min(motion.step_time_s) <= max(motion.step_time_s) <= 500.0


def test_the_scanner_is_half_a_quadra() -> None:
    scanner = half_quadra()
    assert scanner.n_crystals == 160 * 760
    assert scanner.axial_length_mm == pytest.approx(161 * 3.29114, abs=0.01)
    assert scanner.crystal_position_mm[:, 2].mean() == pytest.approx(0.0, abs=1e-3)


def test_soft_tissue_near_a_region_takes_its_name_and_organs_and_air_stay() -> None:
    values = np.full((11, 1, 1), 1, np.int32)
    values[0], values[5], values[8] = 0, 2, 3
    grid = Grid.centred((11, 1, 1), 4.0)
    names = {1: "soft_tissue", 2: "rib_left_9", 3: "liver"}
    wide = widen(LabelMap(Volume(values, grid, "label"), names), 8.0)
    assert wide.volume.values.ravel().tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def test_only_poses_that_hold_some_of_the_windows_count() -> None:
    motion = PatientMotion((100.0,), ((0.0, 0.0, 10.0),))
    both = poses_in(motion, Windows([0], [200_000]))
    assert both[:, 2].tolist() == [0.0, 10.0]
    first = poses_in(motion, Windows([0], [101_000]))  # one second of the other pose
    assert first[:, 2].tolist() == [0.0]


def test_the_interval_of_a_mean_widens_when_patients_differ() -> None:
    patient = np.repeat(np.arange(20), 5)
    alike = mean_interval(np.tile([0.0, 1.0, 0.0, 1.0, 0.5], 20), patient)
    apart = mean_interval(np.repeat([0.0, 1.0], 50), patient)
    assert alike.low == alike.high == 0.5
    assert 0.15 < 0.5 - apart.low < 0.3  # 1.96 sqrt(0.25 / 20) = 0.22


@pytest.mark.slow
def test_a_small_patient_goes_from_listmode_to_probabilities() -> None:
    # 15 s: a tenth of the counts and a wider filter; three hot foci make the outcome certain
    plan = ChainPlan(
        count_fraction=0.003, n_sensitivity_pairs=1_000_000, floor_suv=20.0,
        duration_s=300.0, filter_fwhm_mm=9.0, image_fwhm_mm=10.0, min_volume_ml=0.5,
    )  # fmt: skip
    cohort = generate_cohort(load_cohort_settings(), 5)
    suv = np.full(len(cohort), 40.0)
    cohort = cohort.with_numbers(suv_max=suv)
    names, n = np.unique(cohort.patient, return_counts=True)
    patient = make_patient(cohort, str(names[n == 3][0]), 6, plan)
    record = json.loads(json.dumps(run_patient(patient, plan)))
    assert set(record["conditions"]) == set(CONDITIONS)
    assert record["motion"]["is_right"]
    for name in (STILL_SCAN, STILL_WINDOWS, CORRECTED):
        reading = record["conditions"][name]
        assert reading["n_cases"] >= 3
        for truth, focus in zip(record["foci"], reading["foci"], strict=True):
            assert focus["label"] == truth["region"]
            assert focus["case"] >= 0
            assert 25.0 < focus["suv_max"] < 60.0
    blurred = [f["suv_peak"] or 0.0 for f in record["conditions"][ALL_MINUTES]["foci"]]
    sharp = [f["suv_peak"] for f in record["conditions"][STILL_SCAN]["foci"]]
    assert np.mean(blurred) < 0.9 * np.mean(sharp)

    lost = json.loads(json.dumps(record).replace(patient.code, "another"))
    for truth in lost["foci"]:
        truth["malignant"] = 1 - truth["malignant"]
    lost["conditions"][ALL_MINUTES] |= {
        "n_cases": 0,
        "cases": "",
        "foci": [{"case": -1, "suv_max": None, "suv_peak": None, "label": None}] * 3,
    }
    models = train_models([1])
    scores = score([record, lost], models)
    assert scores.probability[ALL_MINUTES, "base"][3:].tolist() == [0.0] * 3
    assert (scores.probability[STILL_SCAN, "context"] > 0.0).all()
    assert "2 patients, 6 hotspots, 3 of them malignant" in tables([record, lost], models)
