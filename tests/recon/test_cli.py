from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from listmode.source import ScanProtocol
from recon.cli import app
from recon.cli.console import format_rate
from recon.image import Grid, Volume
from recon.io.nifti import save_volume
from recon.pipeline import motion as motion_stage
from tests.recon.scans import write_scan

ON_FILES = ("convert", "cut", "thin", "validate", "repair")  # these name their output file
COMMANDS = (
    "info", "motion", "recon", "run", "hotspots", "cases", "cohort", "train", "classify",
    "evaluate", "export", "mu", "simulate", "demo", "bench", *ON_FILES,
)  # fmt: skip
QUICK = "[osem]\nn_iterations = 1\nn_subsets = 2\nn_sensitivity_pairs = 200000\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    path = folder / "tiny.h5"
    write_scan(path)
    return path


@pytest.fixture(scope="module")
def quick(folder: Path) -> Path:
    path = folder / "quick.toml"
    path.write_text(QUICK, "utf-8")
    return path


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _refused(message: str, *arguments: object) -> None:
    """The command ends with 2, says why on standard error, and shows no traceback."""
    result = _call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr


# ---- help and output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_says_that_it_is_for_research(command: str) -> None:
    result = _call(command, "--help")
    assert result.exit_code == 0
    assert "For research. Not a medical device." in " ".join(result.stdout.split())
    assert "--json" in result.stdout
    assert ("--out" in result.stdout) == (command not in ON_FILES)


def test_info_keeps_what_it_printed(tiny: Path, tmp_path: Path) -> None:
    result = _call("info", tiny, "--json", "-o", tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "info.json").read_text("utf-8"))
    assert kept == json.loads(result.stdout)


def test_the_main_help_lists_every_command() -> None:
    result = _call("--help")
    assert result.exit_code == 0
    assert "For research. Not a medical device." in " ".join(result.stdout.split())
    assert all(command in result.stdout for command in COMMANDS)


def test_json_is_one_document_and_nothing_else_on_standard_output(tiny: Path) -> None:
    result = _call("info", tiny, "--json")
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content["n_prompts"] > 100_000
    assert content["clock_zero"] == "start of the test"


def test_info_in_words_states_the_clock_zero_and_the_counts(tiny: Path) -> None:
    result = _call("info", tiny)
    assert "zero is start of the test" in result.stdout
    n = json.loads(_call("info", tiny, "--json").stdout)["n_prompts"]
    assert f"prompts     {n:,}" in result.stdout


def test_rates_are_short() -> None:
    assert format_rate(5.234e6, "events") == "5.23 M events/s"
    assert format_rate(12.0, "slices") == "12 slices/s"
    assert format_rate(3e9, "events") == "3 G events/s"
    assert format_rate(4200.0, "events") == "4.2 k events/s"


# ---- the commands on a small scan


@pytest.mark.slow
def test_recon_writes_an_image_with_its_sidecar(
    tiny: Path, quick: Path, tmp_path: Path
) -> None:
    result = _call(
        "recon", tiny, "--windows", "0-20,30-50", "-o", tmp_path, "--voxel-mm", 8,
        "--settings", quick, "--name", "part", "--threads", 1, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["windows_s"] == [[0.0, 20.0], [30.0, 50.0]]
    assert "GB of memory" in result.stderr
    sidecar = json.loads((tmp_path / "part.json").read_text("utf-8"))
    assert sidecar["FrameDuration"] == [40.0]
    assert (tmp_path / "part.nii.gz").is_file()
    assert any("no mu-map" in note for note in content["notes"])
    assert str(tmp_path) not in json.dumps(sidecar)


@pytest.mark.slow
def test_run_does_the_main_job_and_the_images_agree_with_the_truth(
    tiny: Path, quick: Path, tmp_path: Path
) -> None:
    result = _call(
        "run", tiny, "--windows", "0-50", "-o", tmp_path, "--voxel-mm", 8, "--settings", quick,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["chosen_by"] == "user"
    assert content["windows_kept_s"] == [[0.0, 50.0]]
    assert set(content["files"]) == {p.name for p in tmp_path.iterdir()} - {
        "full.json", "still.json",
    }  # fmt: skip
    report = (tmp_path / "report.html").read_text("utf-8")
    assert "For research. Not a medical device." in report
    assert "start of the test" in report
    assert str(tmp_path) not in report
    motion = json.loads((tmp_path / "motion.json").read_text("utf-8"))
    assert {"changes", "selection", "clock_zero", "scan"} <= set(motion)
    found = _call("hotspots", tmp_path / "still.nii.gz", "-o", tmp_path, "--json",
                  "--fraction", 0.5)  # fmt: skip
    assert found.exit_code == 0, found.stderr
    places = sorted(
        (row["z_mm"], row["x_mm"], row["y_mm"])
        for row in json.loads(found.stdout)["hotspots"][:2]
    )
    assert places[0] == pytest.approx((-50.0, -30.0, 30.0), abs=4.0)
    assert places[1] == pytest.approx((60.0, 40.0, -20.0), abs=4.0)


@pytest.mark.slow
def test_motion_says_that_there_is_no_bladder_and_follows_the_body(
    tiny: Path, tmp_path: Path
) -> None:
    result = _call("motion", tiny, "-o", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "the whole body was followed instead" in result.stdout
    assert "start of the test" in result.stdout
    header = (tmp_path / "motion.tsv").read_text("utf-8").splitlines()[0]
    assert header.split("\t")[:3] == ["start_s", "stop_s", "x_mm"]


# ---- bad input


def test_a_file_that_is_no_listmode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Only words, and no events at all. " * 20, "utf-8")
    _refused("notes.txt", "info", path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    _refused("none.h5", "info", tmp_path / "none.h5")


def test_a_truncated_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes(tiny.read_bytes()[:200_000])
    _refused("cut.h5", "run", path, "-o", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"cut.h5"}


def test_windows_outside_the_scan_are_refused(tiny: Path, tmp_path: Path) -> None:
    _refused(
        "windows must lie within the", "recon", tiny, "--windows", "50-600", "-o", tmp_path
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["recon", "run"])
@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ("0-30,20-50", "windows must ascend without overlap"),
        ("30-20", "a window must stop after it starts"),
        ("all", "windows must read like"),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    tiny: Path, tmp_path: Path, command: str, windows: str, message: str
) -> None:
    _refused(message, command, tiny, "--windows", windows, "-o", tmp_path)


@pytest.mark.parametrize("command", ["recon", "run"])
def test_a_window_without_events_is_refused(tiny: Path, tmp_path: Path, command: str) -> None:
    _refused(
        "each window must hold events, but 52-58 s holds none",
        command, tiny, "--windows", "0-20,52-58", "-o", tmp_path,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_empty_mu_map_is_refused(tiny: Path, tmp_path: Path) -> None:
    mu = tmp_path / "mu.nii.gz"
    grid = Grid.centred((10, 10, 10), 30.0)
    save_volume(mu, Volume(np.zeros(grid.shape, np.float32), grid, "1/cm"))
    _refused("every voxel is zero", "recon", tiny, "--mu", mu, "-o", tmp_path)


def test_a_mu_map_that_lies_elsewhere_is_refused(tiny: Path, tmp_path: Path) -> None:
    mu = tmp_path / "mu.nii.gz"
    grid = Grid((10, 10, 10), (10.0, 10.0, 10.0), (2000.0, 0.0, 0.0))
    save_volume(mu, Volume(np.full(grid.shape, 0.096, np.float32), grid, "1/cm"))
    _refused("must overlap the grid", "recon", tiny, "--mu", mu, "-o", tmp_path)


def test_an_unknown_scanner_is_refused(tmp_path: Path) -> None:
    _refused("a scanner must be a preset", "simulate", "--scanner", "hexapet", "-o", tmp_path)


def test_an_unknown_phantom_or_dose_is_refused(tmp_path: Path) -> None:
    _refused("a phantom must be", "simulate", "--phantom", "cat", "-o", tmp_path)
    _refused("a dose must be one of", "simulate", "--dose", "huge", "-o", tmp_path)


def test_a_shift_that_does_not_read_is_refused(tmp_path: Path) -> None:
    _refused("a shift must read like '600:0,0,13'", "simulate", "--shift", "13", "-o", tmp_path)


def test_an_output_folder_that_cannot_be_written_is_refused(tiny: Path, folder: Path) -> None:
    blocked = folder / "a_file"
    blocked.write_text("in the way", "utf-8")
    _refused("the output folder must be writable, but", "motion", tiny, "-o", blocked / "out")


def test_settings_with_an_unknown_key_are_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[osem]\niterations = 3\n", "utf-8")
    _refused("'iterations' is none of them", "run", tiny, "--settings", path, "-o", tmp_path)


def test_two_rules_for_hotspots_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    grid = Grid.centred((5, 5, 5), 4.0)
    save_volume(image, Volume(np.ones(grid.shape, np.float32), grid, "SUV"))
    _refused(
        "one rule must say where a hotspot ends",
        "hotspots", image, "--suv", 4, "--fraction", 0.4, "-o", tmp_path,
    )  # fmt: skip


def test_a_label_table_without_its_columns_is_refused(tiny: Path, tmp_path: Path) -> None:
    grid = Grid.centred((5, 5, 5), 4.0)
    labels = Volume(np.ones(grid.shape, np.int32), grid, "label")
    save_volume(tmp_path / "organs.nii.gz", labels)
    (tmp_path / "organs.tsv").write_text("number\torgan\n1\tliver\n", "utf-8")
    _refused(
        "organs.tsv must have the columns label, name, physiological",
        "run", tiny, "--labels", tmp_path / "organs.nii.gz", "-o", tmp_path,
    )  # fmt: skip
    (tmp_path / "organs.tsv").write_text("label\tname\none\tliver\n", "utf-8")
    _refused(
        "label must be a whole number, but it is 'one'",
        "run", tiny, "--labels", tmp_path / "organs.nii.gz", "-o", tmp_path,
    )  # fmt: skip


def test_an_unknown_option_is_refused_without_traceback(tiny: Path) -> None:
    result = _call("info", tiny, "--colour")
    assert result.exit_code == 2
    assert "--colour" in result.stderr
    assert "Traceback" not in result.stderr


# ---- interruption


def test_an_interrupt_ends_with_130_and_leaves_nothing_half_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(motion_stage, "analyse_motion", interrupted)
    result = _call("motion", tiny, "-o", tmp_path)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_installed_command_exits_with_2_and_one_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from recon.cli import main; main()", "info", "none.h5"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("stillpet: ")
    assert "Traceback" not in done.stderr


def test_a_scan_without_dose_gives_no_suv_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "anonymous.h5"
    write_scan(path, seconds=2, dead_s=None, events_per_s=300, protocol=ScanProtocol())
    result = _call("info", path)
    assert "SUV         not known" in result.stdout
