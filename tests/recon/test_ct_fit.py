"""Whether the kept windows fit the mu-map, as the main job tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from listmode.formats import open_listmode
from listmode.motion import CtFit
from recon.cli import app
from recon.image import Grid, Volume
from recon.io.nifti import save_volume
from recon.pipeline.motion import MuPose, fit_notes
from recon.pipeline.scan import run_scan
from recon.settings import GridSettings, Settings
from tests.recon.scans import write_scan

OFF = CtFit(
    shift_mm=(0.0, 1.0, 20.0), standard_error_mm=(1.0, 1.0, 2.0), suv_error=(0.02, 0.14),
    note="in the kept windows the patient lies off the CT by z +20.0 ± 2.0 mm",
    warning="the chosen windows lie off the CT",
)  # fmt: skip


def test_a_match_speaks_instead_of_a_guess_and_beside_what_was_done() -> None:
    guess = MuPose(None, ("it may lie elsewhere.",), is_guess=True)
    assert fit_notes(guess, None) == guess.notes
    told = fit_notes(guess, OFF)
    assert told[0].startswith("In the kept windows the patient lies off the CT by z +20.0")
    assert told[1] == "The chosen windows lie off the CT."
    half = replace(OFF, standard_error_mm=(float("inf"), 1.0, 2.0))
    assert fit_notes(guess, half)[0] == "it may lie elsewhere."
    done = MuPose(None, ("the map was moved.",))
    assert fit_notes(done, OFF)[0] == "the map was moved."


@pytest.mark.slow
def test_the_report_and_motion_json_say_whether_the_ct_fits(tmp_path: Path) -> None:
    """Too few counts for a match: that is said, and nothing is guessed."""
    path = tmp_path / "scan.h5"
    write_scan(path, seconds=4, dead_s=None, events_per_s=3000)
    grid = Grid.centred((16, 16, 20), 15.0)
    mu = Volume(np.full(grid.shape, 0.096, np.float32), grid, "1/cm")
    settings = Settings()
    settings = replace(
        settings,
        grid=GridSettings(voxel_mm=15.0),
        osem=replace(settings.osem, n_iterations=1, n_subsets=2, n_sensitivity_pairs=100_000),
        corrections=replace(settings.corrections, scatter=False),
    )
    with open_listmode(path) as listmode:
        result = run_scan(listmode, tmp_path, mu=mu, settings=settings, threads=1)
    told = json.loads((tmp_path / "motion.json").read_text("utf-8"))["ct_fit"]
    assert told["shift_mm"] == [None, None, None]
    assert "not determinable" in told["note"]
    assert any("not determinable" in note for note in result.notes)
    assert "Fit to the CT: not determinable" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_the_motion_command_asks_whether_the_ct_fits(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.h5", seconds=4, dead_s=None, events_per_s=3000)
    grid = Grid.centred((16, 16, 20), 15.0)
    mu = Volume(np.full(grid.shape, 0.096, np.float32), grid, "1/cm")
    save_volume(tmp_path / "mu.nii.gz", mu)
    call = ["motion", str(tmp_path / "scan.h5"), "-o", str(tmp_path), "--threads", "1"]
    told = CliRunner().invoke(app, [*call, "--mu", str(tmp_path / "mu.nii.gz")])
    assert told.exit_code == 0, told.output
    assert "Fit to the CT: not determinable with so few counts." in told.output
    saved = json.loads((tmp_path / "motion.json").read_text("utf-8"))
    assert saved["ct_fit"]["standard_error_mm"] == [None, None, None]
    assert CliRunner().invoke(app, call).exit_code == 0
    assert json.loads((tmp_path / "motion.json").read_text("utf-8"))["ct_fit"] is None


def test_a_mu_map_is_refused_for_a_scan_that_is_being_written(tmp_path: Path) -> None:
    call = ["motion", str(tmp_path / "scan.h5"), "--live", "--mu", str(tmp_path / "mu.nii.gz")]
    told = CliRunner().invoke(app, call)
    assert told.exit_code != 0
    assert "--mu needs the whole scan" in told.output
