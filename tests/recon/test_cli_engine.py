"""Penalty, bootstrap and resume from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recon.cli import app
from recon.io.nifti import load_volume
from recon.io.tables import load_hotspots
from tests.recon.scans import write_scan

QUICK = """
[osem]
n_iterations = 2
n_subsets = 2
n_sensitivity_pairs = 200000
[hotspots]
rule = "suv"
threshold = 0.004
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    write_scan(folder / "scan.h5", seconds=20, dead_s=None)
    (folder / "quick.toml").write_text(QUICK, "utf-8")
    return folder


def _call(folder: Path, out: str, *more: str) -> Any:
    return CliRunner().invoke(
        app,
        ["recon", str(folder / "scan.h5"), "-o", str(folder / out), "--voxel-mm", "6",
         "--settings", str(folder / "quick.toml"), "--threads", "1", *more],
    )  # fmt: skip


@pytest.mark.slow
def test_the_bootstrap_writes_a_deviation_and_intervals(folder: Path) -> None:
    plain = _call(folder, "plain")
    done = _call(folder, "boot", "--bootstrap", "8")
    assert plain.exit_code == done.exit_code == 0, done.output
    image, deviation = (
        load_volume(folder / "boot" / name) for name in ("image.nii.gz", "image_sd.nii.gz")
    )
    alone = load_volume(folder / "plain" / "image.nii.gz")
    np.testing.assert_array_equal(image.values, alone.values)
    assert deviation.unit == "Bq/mL"
    inside = image.values > 0.2 * image.values.max()
    relative = deviation.values[inside].mean() / image.values[inside].mean()
    assert 0.02 < relative < 1
    assert deviation.provenance["bootstrap"] == {"n_replicates": 8, "seed": 1}
    table = load_hotspots(folder / "boot" / "image_hotspots.csv")
    assert len(table) >= 2
    low, top, high = (table.column(c) for c in ("suv_max_low", "suv_max", "suv_max_high"))
    assert (low < top).all()
    assert (top < high).all()
    assert (table.column("suv_max_se") > 0).all()
    assert not (folder / "plain" / "image_sd.nii.gz").exists()
    assert not (folder / "boot" / ".stillpet-resume").exists()


@pytest.mark.slow
def test_the_penalty_is_in_the_provenance_and_smooths(folder: Path) -> None:
    done = _call(folder, "penalty", "--penalty", "0.05", "--no-resume")
    assert done.exit_code == 0, done.output
    about = json.loads((folder / "penalty" / "image.json").read_text("utf-8"))
    provenance = about["stillpet"]["provenance"]
    assert provenance["algorithm"].startswith("RelativeDifference(strength=0.05")
    assert provenance["settings"]["penalty"]["strength"] == 0.05


def test_a_bootstrap_with_a_penalty_is_refused(folder: Path) -> None:
    result = _call(folder, "both", "--bootstrap", "8", "--penalty", "0.01")
    assert result.exit_code == 2
    assert "leave out the bootstrap or the penalty" in " ".join(result.stderr.split())


def test_impossible_numbers_of_the_engine_are_refused(folder: Path) -> None:
    result = _call(folder, "one", "--bootstrap", "1")
    assert result.exit_code == 2
    assert "a bootstrap needs 2 to 1024 replicates, but 1 were" in " ".join(
        result.stderr.split()
    )
