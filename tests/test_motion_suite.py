"""The motion suite: its scans are what they say, its judgement counts what it should."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from benchmarks._kernels_motion import largest_change
from benchmarks.motion_baselines import DETECTORS, alarms, positions
from benchmarks.motion_events import (
    NODE_Z_MM,
    SURROUND_BOX_MM,
    MotionCase,
    Pools,
    draw_scan,
    start_bladder,
)
from benchmarks.motion_figures import STILL, figure_table, figures
from benchmarks.motion_suite import (
    METHODS,
    NUMBERS,
    again,
    area_under_roc,
    draw_case,
    own_trace,
    read_lines,
    run,
    score,
    score_all,
    suite_cases,
    table,
    tune,
    turns,
)
from listmode.errors import InputError
from listmode.motion.trace import TraceSettings, follow_bladder
from recon.cli import app
from tests.listmode.motion.test_changes import made_trace

F64 = NDArray[np.float64]


def made_pools() -> Pools:
    """Pools without a photon simulator: Gaussian residuals, a uniform body."""
    rng = np.random.default_rng(1)
    n = 40_000
    direction = rng.integers(0, 24, (len(NODE_Z_MM), n)).astype(np.uint8)
    azimuth = (direction // 3 + 0.5) * np.pi / 8.0
    cos_z = (direction % 3 - 1.0) * 0.4
    sin_z = np.sqrt(1.0 - cos_z**2)
    u = np.stack((sin_z * np.cos(azimuth), sin_z * np.sin(azimuth), cos_z), axis=-1)
    blur = u * rng.normal(0.0, 14.5, direction.shape)[..., None]
    low, high = np.array(SURROUND_BOX_MM).T
    body = low + rng.random((200_000, 3)) * (high - low)
    return Pools(
        node_z_mm=NODE_Z_MM,
        rate=np.full(len(NODE_Z_MM), 7e-3),
        blur_mm=(blur + rng.normal(0.0, 1.2, blur.shape)).astype(np.float32),
        blur_direction=direction,
        moving_mm=body.astype(np.float32),
        moving_direction=rng.integers(0, 24, len(body)).astype(np.uint8),
        moving_hz=20_000.0,
        fixed_mm=body[:20_000].astype(np.float32),
        fixed_direction=rng.integers(0, 24, 20_000).astype(np.uint8),
        fixed_hz=1000.0,
        bq_ml_per_suv=205.0,
    )


@pytest.fixture(scope="module")
def pools() -> Pools:
    return made_pools()


@pytest.mark.slow
def test_a_drawn_scan_holds_the_bladder_where_the_case_says(pools: Pools) -> None:
    case = MotionCase("step", 5, steps=((50.0, (3.0, 0.0, 8.0)),), counts=0.3, duration_s=100.0)
    events = draw_scan(pools, case)
    again = draw_scan(pools, case)
    assert np.array_equal(events.point_mm, again.point_mm)
    assert (np.diff(events.time_ms) >= 0).all()
    settings = TraceSettings(window_ms=5000)
    trace = follow_bladder(events, start_bladder(case), settings=settings, threads=1).trace
    error = (
        trace.displacement_mm
        + trace.reference_mm
        - case.bladder_place_mm(trace.time_ms / 1000.0)
    )
    left = error - error.mean(axis=0)
    assert np.abs(left).max() < 5.5 * trace.standard_error_mm.max()


def test_the_truth_lists_steps_turns_and_pushes_of_the_bladder() -> None:
    steps = MotionCase("ramp", 1, steps=((100.0, (0.0, 0.0, 4.0)),), ramp_s=10.0)
    assert steps.true_changes()[0][0] == 105.0
    turn = MotionCase("rotation", 1, turn_deg=3.0, turn_axis=(1.0, 0.0, 0.0), turn_s=300.0)
    at, shift = turn.true_changes()[0]
    assert at == 300.0
    # 3 degrees about x, 150 mm caudal of the pivot: 8 mm along y.
    assert abs(shift[0]) < 1e-9
    assert 6.0 < np.linalg.norm(shift) < 10.0
    push = MotionCase("fetal", 1, local_steps=((200.0, (2.0, 0.0, 0.0)),))
    assert np.array_equal(push.true_changes()[0][1], [2.0, 0.0, 0.0])
    assert not push.body_motion().step_mm


def test_tuning_and_test_scans_are_different_and_fixed() -> None:
    seeds = {which: {c.seed for c in suite_cases(which, 1.0)} for which in ("tuning", "test")}
    assert not seeds["tuning"] & seeds["test"]
    assert len(seeds["test"]) == sum(NUMBERS.values())
    still = [c for c in suite_cases("test", 1.0) if c.kind in STILL]
    assert sum(c.duration_s for c in still) / 3600.0 == pytest.approx(126.0)
    steps = [c for c in suite_cases("test", 1.0) if c.kind == "step"]
    assert len(steps) == 628
    assert min(math.dist((0.0, 0.0, 0.0), c.steps[0][1]) for c in steps) >= 3.0
    assert draw_case("step", 900_001) == draw_case("step", 900_001)
    few = [c.seed for c in suite_cases("test", 0.02)]
    assert set(few) < seeds["test"]


@pytest.mark.parametrize("name", list(DETECTORS))
def test_every_detector_sees_a_large_step_and_its_time(name: str) -> None:
    detector, settings = DETECTORS[name]
    assert len(settings) == 8  # equal effort of tuning
    moved = positions(made_trace(seed=1, duration_s=600, steps=((300.0, (0.0, 0.0, 12.0)),)))
    still = positions(made_trace(seed=2, duration_s=600))
    for options in settings:
        high = detector(moved, **options)
        assert high.shape == (600,)
        assert high.max() > 1.5 * detector(still, **options).max()
        (first, *_) = alarms(moved, high, 0.99 * float(high.max()))
        assert abs(first - 300.0) <= 16.0  # half of the longest window


def _line(seed: int, steps: tuple[tuple[float, tuple[float, float, float]], ...]) -> Any:
    trace = made_trace(seed=seed, duration_s=400, steps=steps)
    kept = {
        "window_ms": 1000,
        "stop_ms": 400_000,
        "displacement_mm": trace.displacement_mm.tolist(),
        "standard_error_mm": trace.standard_error_mm.tolist(),
        "counts": trace.counts.tolist(),
        "reference": "bladder",
    }
    return {
        "case": {
            "kind": "step" if steps else "filling",
            "duration_s": 400.0,
            "ramp_s": 0.0,
            "wander_mm": 0.0,
        },
        "truth": [[t, list(d)] for t, d in steps],
        "changes": [],
        "trace": kept,
        "centroid": kept,
    }


def test_the_largest_change_is_the_distance_to_the_row_before() -> None:
    rng = np.random.default_rng(4)
    trace = rng.standard_normal((40, 3))
    for lag in (1, 5):
        slow = [0.0] * lag + [
            float(np.linalg.norm(b - a)) for a, b in zip(trace[:-lag], trace[lag:], strict=True)
        ]
        assert largest_change(trace, lag) == pytest.approx(slow)


def test_the_area_under_the_roc_is_the_share_of_pairs_in_order() -> None:
    lines = [_line(seed, ()) for seed in range(3)]
    lines += [_line(10, ((200.0, (0.0, 0.0, 9.0)),)), _line(11, ((200.0, (0.0, 0.0, 0.0)),))]
    scored = score_all(lines, "ours", {"contrast_s": 30.0, "min_contrast_mm": 2.0})
    still = [s.best for s in scored[:3]]
    pairs = [float(m.best > b) + 0.5 * float(m.best == b) for m in scored[3:] for b in still]
    assert area_under_roc(scored) == pytest.approx(np.mean(pairs))
    assert scored[3].best > max(still)
    options, threshold = tune(lines, "PELT (ruptures)")
    assert options in DETECTORS["PELT (ruptures)"][1]
    quiet = score_all(lines[:3], "PELT (ruptures)", options)
    assert all(not alarms(s.place, s.score, threshold) for s in quiet)


def _answered(seed: int, **change: Any) -> Any:
    line = _line(seed, ((200.0, (0.0, 0.0, 9.0)),))
    line["case"]["filling_ml_min"] = 5.0
    line["filling_ml_min"] = 5.5
    line["changes"] = [
        {
            "time_s": 200.4,
            "time_interval_s": [199.5, 201.0],
            "shift_mm": [0.1, 0.0, 9.2],
            "shift_interval_mm": [[-0.1, 0.3], [-0.2, 0.2], [9.1, 9.3]],
            **change,
        }
    ]
    return line


def test_the_answers_are_held_against_the_truth() -> None:
    still = _line(1, ())
    still["case"]["filling_ml_min"] = 4.0
    still["filling_ml_min"] = 5.0  # a quarter too much
    still["changes"] = [{"time_s": 50.0}]
    late = _answered(3, time_s=203.0, time_interval_s=[202.0, 204.0])
    missed = _answered(4, time_s=290.0)
    lines = [still, _answered(2), late, missed]
    found = figures(lines, own_trace)
    assert found["large_found"] == [2, 3]
    assert found["false_alarms"] == [1, round(400.0 / 3600.0, 2)]
    assert found["clear_in_1_s"] == [1, 3]
    assert found["amplitude_rms_mm"] == pytest.approx(math.hypot(0.1, 0.2))
    assert found["shift_covered"] == [4, 6]
    assert found["time_covered"] == [1, 2]
    assert found["filling_and_5_mm_found"] == [2, 3]
    assert found["filling_and_5_mm_within_1_mm"] == [2, 3]
    assert found["filling_rate_within_20_percent"] == [3, 4]
    assert found["others_found"]["ramp"] == [0, 0]
    assert 0.0 < found["amplitude_bound_mm"] < 1.0
    assert any("2 of 3 (66.7 %)" in row for row in figure_table(found))


def test_a_run_that_stops_early_leaves_the_same_share_of_every_kind() -> None:
    cases = suite_cases("test", 0.1)
    turn = dict(zip((c.seed for c in cases), turns(cases), strict=True))
    first = sorted(cases, key=lambda c: turn[c.seed])[: len(cases) // 2]
    for kind in NUMBERS:
        n, total = (sum(c.kind == kind for c in part) for part in (first, cases))
        assert abs(n - total / 2) <= 1


@pytest.mark.slow
def test_a_killed_run_goes_on_and_is_judged(
    pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(which: str, scale: float) -> list[MotionCase]:
        del scale
        first = 100 if which == "tuning" else 900
        moved = MotionCase(
            "step", first, steps=((60.0, (0.0, 0.0, 9.0)),), counts=0.1, duration_s=120.0
        )
        return [moved, MotionCase("filling", first + 1, counts=0.1, duration_s=120.0)]

    monkeypatch.setattr("benchmarks.motion_suite.suite_cases", small)
    pools.save(tmp_path / "pools.npz")
    said: list[str] = []
    assert run(tmp_path, 1.0, seconds=0.0, say=said.append) == 4
    with pytest.raises(InputError, match="scoring needs scans with and without a step"):
        score(tmp_path)
    assert run(tmp_path, 1.0, say=said.append) == 0
    path = tmp_path / "test.jsonl"
    whole = path.read_text("utf-8")
    path.write_text(whole[: len(whole) - 200], "utf-8")  # killed while writing
    assert len(read_lines(path)) == 1
    path.write_text(whole[: len(whole) - 200] + "\n", "utf-8")
    assert run(tmp_path, 1.0, say=said.append) == 0
    assert len(read_lines(path)) == 2
    before = read_lines(path)
    again(tmp_path)  # from traces rounded to 0.1 um
    for old, new in zip(before, read_lines(path), strict=True):
        assert {k: v for k, v in new.items() if k != "changes"} == {
            k: v for k, v in old.items() if k != "changes"
        }
        for a, b in zip(old["changes"], new["changes"], strict=True):
            assert a["time_s"] == b["time_s"]
            assert np.allclose(a["shift_mm"], b["shift_mm"], atol=2e-3)
            assert np.allclose(a["shift_interval_mm"], b["shift_interval_mm"], atol=5e-3)
    results = score(tmp_path)
    assert [r["method"] for r in results] == METHODS
    assert results[0]["found_3mm"] == [1, 1]
    assert results[0]["false_alarms"] == 0
    assert len(list(table(results))) == len(METHODS) + 2
    assert json.loads((tmp_path / "scores.json").read_text("utf-8")) == results


def test_bench_measures_speed_or_motion_only() -> None:
    result = CliRunner().invoke(app, ["bench", "weight"])
    assert result.exit_code == 2
    assert "must be speed or motion" in result.output
