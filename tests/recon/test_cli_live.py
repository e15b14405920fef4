from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from listmode.events import EventBatch
from listmode.formats.hdf5 import ListmodeWriter
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from recon.cli import app
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode, step


def write(scan: MemoryListmode, path: Path) -> None:
    n = np.diff(scan.prompts_offset)
    with ListmodeWriter(path, scanner=scan.scanner, protocol=scan.protocol) as writer:
        writer.append("prompts", scan.prompts, n)
        writer.append("delayeds", EventBatch.empty(), np.zeros(len(n), np.int64))


def test_a_finished_short_file_is_watched_to_its_end_without_an_alert(tmp_path: Path) -> None:
    scan = MadeUpScan(duration_s=3.0, bladder_hz=100.0, background_hz=100.0, seed=91)
    write(make_listmode(load_scanner("quadra", "UHS"), scan), tmp_path / "scan.h5")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["motion", str(tmp_path / "scan.h5"), "--live", "-o", str(out)]
    )
    assert result.exit_code == 0
    assert "no alert" in result.output
    kept = json.loads((out / "alerts.json").read_text("utf-8"))
    assert kept["alerts"] == []
    assert kept["is_complete"] is True


@pytest.mark.slow
def test_the_alert_is_told_and_kept(tmp_path: Path) -> None:
    scan = MadeUpScan(
        duration_s=85.0,
        bladder_hz=800.0,
        background_hz=1000.0,
        body_move=step(75.0, (0.0, 0.0, 12.0)),
        seed=92,
    )
    write(make_listmode(load_scanner("quadra", "UHS"), scan), tmp_path / "scan.h5")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["motion", str(tmp_path / "scan.h5"), "--live", "-o", str(out), "--json"]
    )
    assert result.exit_code == 0
    (alert,) = json.loads((out / "alerts.json").read_text("utf-8"))["alerts"]
    assert 75.0 < alert["time_s"] <= 80.0
    assert "ALERT at" in result.output
