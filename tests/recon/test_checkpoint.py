"""States on disk: whole or not at all, and the same bits after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.progress import SILENT
from recon.checkpoint import Checkpoint, State, digest
from recon.osem import Algorithm, OsemSettings, Problem, osem, run
from recon.penalty import RelativeDifference
from recon.reconstruct import prepare, reconstruct
from tests.recon.scans import write_scan
from tests.recon.test_osem import _small_case

IMAGE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def test_a_state_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "new" / "folder", "key")
    kept.save(State(7, {"n": 3}, {"image": IMAGE, "before": IMAGE[::-1]}))
    found = Checkpoint(tmp_path / "new" / "folder", "key").load()
    assert found is not None
    assert (found.step, found.numbers) == (7, {"n": 3})
    np.testing.assert_array_equal(found.arrays["image"], IMAGE)
    np.testing.assert_array_equal(found.arrays["before"], IMAGE[::-1])


def test_no_state_and_a_state_of_another_key_are_none(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "one")
    assert kept.load() is None
    kept.save(State(1, {}, {"image": IMAGE}))
    other = Checkpoint(tmp_path, "two")
    assert other.load() is None
    kept.path.rename(other.path)  # also under its name: the digest knows the key
    assert other.load() is None


@pytest.mark.parametrize("n_bytes", [0, 10, 40, 100])
def test_a_cut_state_counts_as_none(tmp_path: Path, n_bytes: int) -> None:
    kept = Checkpoint(tmp_path, "key")
    kept.save(State(1, {}, {"image": IMAGE}))
    content = kept.path.read_bytes()
    assert len(content) > 100
    kept.path.write_bytes(content[:n_bytes])
    assert kept.load() is None


def test_a_state_with_a_changed_bit_counts_as_none(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "key")
    kept.save(State(1, {}, {"image": IMAGE}))
    content = bytearray(kept.path.read_bytes())
    for at in range(0, len(content), 17):
        damaged = bytearray(content)
        damaged[at] ^= 1
        kept.path.write_bytes(bytes(damaged))
        assert kept.load() is None


def test_a_state_that_cannot_be_written_costs_the_resume_alone(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    kept = Checkpoint(blocked, "key")
    kept.save(State(1, {}, {"image": IMAGE}))
    assert kept.load() is None


def test_fast_updates_leave_fewer_states_and_the_last_always(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "key", max_share=0.01)
    kept.save(State(1, {}, {"image": IMAGE}))
    kept.write_s = 1e6  # as if that had taken days
    kept.save(State(2, {}, {"image": IMAGE}))
    found = kept.load()
    assert found is not None
    assert found.step == 1
    kept.save(State(3, {}, {"image": IMAGE}), is_last=True)
    found = kept.load()
    assert found is not None
    assert found.step == 3


def test_the_digest_knows_values_shapes_types_and_order() -> None:
    a = np.arange(6, dtype=np.float32)
    different: list[list[Any]] = [
        [a], [a.reshape(2, 3)], [a.astype(np.float64)], [a + 1], [a, None], [None, a],
        ["x", a], [a, "x"], [],
    ]  # fmt: skip
    assert len({digest(parts) for parts in different}) == len(different)
    assert digest([a[::2]]) == digest([a[::2].copy()])


class _KilledError(Exception):
    pass


class _KillAfter:
    """Progress that ends the run after some updates, as a kill would."""

    def __init__(self, n_updates: int) -> None:
        self.left = n_updates

    def advance(self, n: int) -> None:
        del n
        self.left -= 1
        if self.left < 0:
            raise _KilledError


@pytest.mark.parametrize("stop_change", [0.0, 0.2])
@pytest.mark.parametrize(
    "algorithm",
    [osem, RelativeDifference(0.1, method="svrg"), RelativeDifference(0.1)],
    ids=["osem", "svrg", "bsrem"],
)
def test_a_run_killed_after_any_update_ends_with_the_same_bits(
    tmp_path: Path, algorithm: Algorithm, stop_change: float
) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=4, n_subsets=3, stop_change=stop_change)
    with prepare(
        listmode, listmode.extent, grid=grid, settings=settings, sensitivity=sensitivity,
        resume_dir=tmp_path,
    ) as problem:  # fmt: skip
        assert problem.checkpoint is not None
        problem.checkpoint.max_share = 1.0
        never = Problem(problem.store, problem.sensitivity, grid, problem.calibration, settings)
        whole = run(never, algorithm)
        for n_updates in range(1, 14, 2):
            for path in tmp_path.iterdir():
                path.unlink()
            fresh = _with_progress(problem, _KillAfter(n_updates))
            try:
                run(fresh, algorithm)
            except _KilledError:
                assert list(tmp_path.iterdir())
            again = run(problem, algorithm)
            np.testing.assert_array_equal(again.values, whole.values)
            for key in ("iteration", "n_events_unexplained"):
                assert again.provenance[key] == whole.provenance[key]


def _with_progress(problem: Problem, stage: _KillAfter) -> Problem:
    from contextlib import contextmanager
    from dataclasses import replace

    class Ends:
        @contextmanager
        def stage(self, name: str, total: int, unit: str = "events"):  # type: ignore[no-untyped-def]
            del name, total, unit
            yield stage

    assert problem.checkpoint is not None
    fresh = Checkpoint(problem.checkpoint.folder, problem.checkpoint.key, max_share=1.0)
    return replace(problem, progress=Ends(), checkpoint=fresh)


def test_a_state_is_found_by_the_same_problem_alone(tmp_path: Path) -> None:
    listmode, grid, sensitivity = _small_case()
    keys = set()
    for settings, share in (
        (OsemSettings(n_iterations=1, n_subsets=2), 1.0),
        (OsemSettings(n_iterations=1, n_subsets=3), 1.0),
        (OsemSettings(n_iterations=1, n_subsets=2, psf_fwhm_mm=5.0), 1.0),
        (OsemSettings(n_iterations=1, n_subsets=2), 0.5),
    ):
        start = np.full(grid.shape, share, np.float32)
        with prepare(
            listmode, listmode.extent, grid=grid, settings=settings, sensitivity=sensitivity,
            start=start, resume_dir=tmp_path,
        ) as problem:  # fmt: skip
            assert problem.checkpoint is not None
            keys |= {problem.checkpoint.key, problem.named("other").checkpoint.key}  # type: ignore[union-attr]
    assert len(keys) == 8


def test_a_finished_run_is_not_computed_again(tmp_path: Path) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=2, n_subsets=2)
    stages: list[str] = []

    class Listening:
        def stage(self, name: str, total: int, unit: str = "events"):  # type: ignore[no-untyped-def]
            stages.append(name)
            return SILENT.stage(name, total, unit)

    images = [
        reconstruct(
            listmode, listmode.extent, grid=grid, settings=settings, sensitivity=sensitivity,
            resume_dir=tmp_path, progress=Listening(),
        ).values
        for _ in range(2)
    ]  # fmt: skip
    np.testing.assert_array_equal(images[0], images[1])
    assert [name for name in stages if name.startswith("iteration")] == [
        "iteration 1",
        "iteration 2",
    ]


@pytest.mark.slow
def test_a_command_killed_at_any_moment_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Two kills; thirty by ``python -m benchmarks.resume_study --kills 30``."""
    scan = tmp_path / "scan.h5"
    write_scan(scan, seconds=20, dead_s=None)
    settings = tmp_path / "quick.toml"
    settings.write_text(
        "[osem]\nn_iterations = 6\nn_subsets = 4\nn_sensitivity_pairs = 200000\n", "utf-8"
    )

    def command(out: Path) -> list[str]:
        start = "from recon.cli import main; main()"
        return [sys.executable, "-c", start, "recon", str(scan), "-o", str(out),
                "--settings", str(settings), "--voxel-mm", "5", "--threads", "1"]  # fmt: skip

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    whole = (tmp_path / "whole" / "image.nii.gz").read_bytes()
    assert not (tmp_path / "whole" / ".stillpet-resume").exists()
    out = tmp_path / "killed"
    kept = out / ".stillpet-resume"

    def files() -> dict[str, int]:
        with contextlib.suppress(FileNotFoundError):  # a file that was renamed meanwhile
            return {p.name: p.stat().st_mtime_ns for p in kept.glob("*")}
        return {}

    # Killed when it has kept something, and again when it has kept something more: by the
    # clock, a run that compiles or meets a busy machine would end unharmed.
    n_killed, seen = 0, dict[str, int]()
    for _ in range(2):
        process = subprocess.Popen(
            command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and files() == seen:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            n_killed += 1
        process.wait()
        seen = files()
    assert n_killed >= 1
    subprocess.run(command(out), check=True, capture_output=True)
    assert (out / "image.nii.gz").read_bytes() == whole
    assert not (out / ".stillpet-resume").exists()
    json.loads((out / "image.json").read_text("utf-8"))


def test_the_change_that_stops_must_be_a_share() -> None:
    with pytest.raises(
        InputError, match=r"change at which iterations stop must lie in \[0, 1\)"
    ):
        OsemSettings(stop_change=1.0)
