"""Motion correction from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recon.cli import app
from recon.io.nifti import load_volume
from tests.recon.scans import write_scan

QUICK = "[osem]\nn_iterations = 1\nn_subsets = 2\nn_sensitivity_pairs = 200000\n"


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("motion")
    write_scan(path / "scan.h5", seconds=8, dead_s=None, events_per_s=2000)
    (path / "quick.toml").write_text(QUICK, "utf-8")
    return path


def _recon(folder: Path, name: str, *more: object) -> Any:
    return _call(
        "recon", folder / "scan.h5", "-o", folder, "--name", name, "--voxel-mm", 12,
        "--settings", folder / "quick.toml", "--threads", 1, *more,
    )  # fmt: skip


def test_a_course_of_poses_changes_the_image_and_is_told_beside_it(folder: Path) -> None:
    course = folder / "camera.csv"
    course.write_text("time_s,x_mm,y_mm,z_mm\n0,0,0,0\n4,0,0,12\n", "utf-8")
    assert _recon(folder, "plain").exit_code == 0
    assert _recon(folder, "moved", "--poses", course).exit_code == 0
    plain, moved = (load_volume(folder / f"{n}.nii.gz").values for n in ("plain", "moved"))
    assert np.abs(plain - moved).max() > 0.05 * plain.max()
    text = (folder / "moved.json").read_text("utf-8")
    assert '"scanner_from_reference"' in text
    assert json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s,x_mm\n0,0\n", "poses must have the columns"),
        ("time_s,x_mm,y_mm,z_mm\n5,0,0,0\n", "first pose must not come after the start"),
    ],
)
def test_an_unusable_course_is_refused_without_a_traceback(
    folder: Path, text: str, message: str
) -> None:
    course = folder / "bad.csv"
    course.write_text(text, "utf-8")
    result = _recon(folder, "bad", "--poses", course)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (folder / "bad.nii.gz").exists()


def test_bed_moves_are_refused_where_the_file_cannot_hold_them(folder: Path) -> None:
    result = _recon(folder, "bed", "--poses", "bed")
    assert result.exit_code == 2
    assert "moves of the bed must be in a PETSIRD file" in " ".join(result.output.split())
