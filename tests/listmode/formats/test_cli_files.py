"""The commands about listmode files: info, convert, cut, thin, validate, repair."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from listmode.formats import open_listmode
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.info import describe
from listmode.formats.live import LiveListmodeWriter
from listmode.memory import MemoryListmode
from listmode.windows import Windows
from recon.cli import app
from recon.cli.rates import N_COLUMNS, rate_lines
from recon.report.rate_figure import draw_rates
from tests.strategies import joined, random_scan, same_events

COMMANDS = ("info", "convert", "cut", "thin", "validate", "repair")


@pytest.fixture
def scan() -> MemoryListmode:
    return random_scan(1, n_prompts=4000, n_delayeds=600, n_ticks=200, has_truth=True)


@pytest.fixture
def file(tmp_path: Path, scan: MemoryListmode) -> Path:
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    return tmp_path / "scan.h5"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments: object) -> dict[str, Any]:
    """Run a command with --json that succeeds; give its document."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def refused(message: str, *arguments: object) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_that_it_is_for_research(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "For research. Not a medical device." in " ".join(result.stdout.split())
    assert "--json" in result.stdout


def test_converting_there_and_back_is_exact(file: Path, scan: MemoryListmode) -> None:
    there = done("convert", file, file.with_name("a.petsird"))
    assert there["n_prompts"] == 4000
    assert there["n_delayeds"] == 600
    assert there["not_kept"][0].startswith("truth")
    done("convert", file.with_name("a.petsird"), file.with_name("b.cdh"))
    back = done("convert", file.with_name("b.cdh"), file.with_name("c.h5"))
    assert back["files"] == ["c.h5"]
    assert back["not_kept"] == []
    with open_listmode(file.with_name("c.h5")) as read:
        assert read.scanner.digest == scan.scanner.digest
        assert read.protocol == scan.protocol
        for stream in ("prompts", "delayeds"):
            assert np.array_equal(read.tick_offset(stream), scan.tick_offset(stream))
            got = joined(list(read.events(stream=stream)))
            assert same_events(got, joined(list(scan.events(stream=stream))))


def test_convert_names_every_file_it_made(file: Path) -> None:
    before = set(file.parent.iterdir())
    made = done("convert", file, file.with_name("a.cdh"))["files"]
    assert {p.name for p in set(file.parent.iterdir()) - before} == set(made)
    assert len(made) == 7


def test_convert_says_in_words_what_is_lost(file: Path) -> None:
    result = call("convert", file, file.with_name("a.petsird"))
    assert "not kept    truth: where each prompt came from" in result.stdout
    assert "not kept: truth" in result.stderr


def test_unknown_ending_is_refused_before_the_scan_is_opened(file: Path) -> None:
    refused(r"must be one of \.h5, .*'a\.xyz'", "convert", file, file.with_name("a.xyz"))


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("convert", []),
        ("cut", ["--windows", "0-0.1"]),
        ("thin", ["--fraction", "0.5"]),
        ("repair", []),
    ],
)
def test_files_are_replaced_only_with_force(
    file: Path, command: str, options: list[str]
) -> None:
    out = file.with_name("new.h5")
    out.write_bytes(b"precious")
    refused("must not be there yet, but 'new.h5' is", command, file, out, *options)
    assert out.read_bytes() == b"precious"
    result = call(command, file, out, *options, "--force")
    assert result.exit_code == 0, result.output
    with open_listmode(out) as read:
        assert read.n_events() > 0


def test_part_of_a_castor_scan_in_the_way_is_refused(file: Path) -> None:
    file.with_name("a.lut").write_bytes(b"a scanner of mine")
    refused("'a.lut' is", "convert", file, file.with_name("a.cdh"))


@pytest.mark.parametrize("command", ["convert", "repair"])
def test_the_scan_itself_is_never_written_over(file: Path, command: str) -> None:
    before = file.read_bytes()
    refused("must not be the scan itself", command, file, file, "--force")
    assert file.read_bytes() == before


def test_a_folder_in_the_way_is_refused(file: Path) -> None:
    file.with_name("dir.h5").mkdir()
    refused("must be a regular file, but 'dir.h5' is a folder", "convert", file,
            file.with_name("dir.h5"), "--force")  # fmt: skip


@pytest.mark.parametrize("ending", [".h5", ".petsird", ".cdh"])
def test_size_is_told_before_the_work(tmp_path: Path, ending: str) -> None:
    scan = random_scan(1, n_prompts=300_000, n_delayeds=0, n_ticks=2000)
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    result = call("convert", tmp_path / "scan.h5", tmp_path / f"out{ending}")
    told = re.search(r"about ([0-9.]+) MB to write for 0.3 M events", result.stderr)
    assert told
    data = tmp_path / f"out{'.cdf' if ending == '.cdh' else ending}"
    assert float(told[1]) == pytest.approx(data.stat().st_size / 1e6, rel=0.5)


def test_cut_keeps_the_clock(file: Path, scan: MemoryListmode) -> None:
    out = file.with_name("cut.h5")
    result = done("cut", file, out, "--windows", "0.05-0.1,0.15-0.18")
    held = Windows([50, 150], [100, 180])
    assert result["windows_s"] == [[0.05, 0.1], [0.15, 0.18]]
    assert result["n_prompts"] == scan.count(held)
    with open_listmode(out) as cut:
        assert cut.extent == held
        assert same_events(joined(list(cut.events())), joined(list(scan.events(held))))


def test_cut_outside_the_scan_leaves_nothing(file: Path) -> None:
    refused("must lie within the", "cut", file, file.with_name("c.h5"), "--windows", "0-9")
    assert [p.name for p in file.parent.iterdir()] == ["scan.h5"]


def test_commands_that_write_hdf5_refuse_other_endings(file: Path) -> None:
    out = file.with_name("c.petsird")
    refused("must end in .h5 or .hdf5", "cut", file, out, "--windows", "0-0.1")
    refused("must end in .h5 or .hdf5", "thin", file, out, "--fraction", "0.5")
    refused("must end in .h5 or .hdf5", "repair", file, out)


def test_thin_says_that_randoms_and_background_do_not_scale_alike(file: Path) -> None:
    result = done("thin", file, file.with_name("thin.h5"), "--fraction", 0.25, "--seed", 7)
    assert 800 < result["n_prompts"] < 1200  # 1000 +- 27; 200 is more than 7 sigma
    assert result["count_fraction"] == pytest.approx(0.25 * 0.25)
    assert "(seed 7)" in result["note"]
    assert "randoms and the crystals' own background are thinned alike" in result["note"]
    again = done("thin", file, file.with_name("two.h5"), "--fraction", 0.25, "--seed", 7)
    assert again["n_prompts"] == result["n_prompts"]
    text = " ".join(call("thin", "--help").stdout.split())
    assert "randoms fall with the square of the activity" in text


def test_validate_ends_with_0_for_a_sound_file(file: Path) -> None:
    assert done("validate", file) == {
        "format_name": "stillpet HDF5",
        "n_prompts": 4000,
        "n_delayeds": 600,
        "faults": [],
        "inherited_defects": [],
        "is_sound": True,
    }
    assert call("validate", file).stdout.splitlines()[-1] == "sound"


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_validate_ends_with_1_for_a_file_with_faults(file: Path, as_json: list[str]) -> None:
    with h5py.File(file, "r+") as opened:
        opened["prompts/crystal_b"][7] = 100_000
    result = call("validate", file, *as_json)
    assert result.exit_code == 1
    assert re.search(r"fault.*prompts.*crystal|crystal.*prompts", result.stdout, re.DOTALL)
    if as_json:
        assert json.loads(result.stdout)["is_sound"] is False


def test_validate_ends_with_2_for_what_is_no_listmode(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"hello, world" * 99)
    refused("is none of these", "validate", tmp_path / "x.h5")


def test_defects_of_the_source_are_no_fault_of_the_copy(tmp_path: Path) -> None:
    scan = random_scan(1)
    scan.defects = ("3 events had no time",)
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    found = done("validate", tmp_path / "scan.h5")
    assert found["faults"] == []
    assert found["inherited_defects"] == ["3 events had no time"]


def _set(file: Path, what: str, value: Any) -> None:
    with h5py.File(file, "r+") as opened:
        name, _, attribute = what.partition("@")
        if attribute:
            opened[name or "/"].attrs[attribute] = value
        elif value is None:
            del opened[name]
        else:
            opened[name].resize((value,))


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("@stop_ms", 7, "stop_ms must be 200, as the tick index says, but it is 7"),
        (
            "prompts/tof_bin@unit",
            "ps",
            "prompts/tof_bin must have the unit '1', but it has 'ps'",
        ),
        ("delayeds/tick_offset@unit", "ms", "delayeds/tick_offset must have the unit 'events'"),
        ("scanner/crystal_normal@unit", "cm", "scanner/crystal_normal must have the unit '1'"),
        ("coverage/start_ms@unit", "s", "coverage/start_ms must have the unit 'ms'"),
        ("coverage", None, "coverage/start_ms is missing"),
        ("prompts/truth", 3999, "prompts/truth must hold 4000 values, but it holds 3999"),
        ("delayeds/tof_bin", 700, "delayeds/tof_bin must hold 600 values, but it holds 700"),
    ],
)
def test_validate_checks_structure_units_and_counts(
    file: Path, what: str, value: Any, message: str
) -> None:
    _set(file, what, value)
    result = call("validate", file, "--json")
    assert result.exit_code in (1, 2), result.output
    faults = json.loads(result.stdout)["faults"] if result.exit_code == 1 else [result.stderr]
    assert any(message in fault for fault in faults), faults


def _replace_truth(file: Path, dtype: str, *, fletcher32: bool) -> None:
    with h5py.File(file, "r+") as opened:
        truth = opened["prompts/truth"][...]
        del opened["prompts/truth"]
        new = opened.create_dataset(
            "prompts/truth", data=truth.astype(dtype), chunks=(512,), fletcher32=fletcher32
        )
        new.attrs["unit"] = "1"


def test_column_without_checksums_is_a_fault(file: Path) -> None:
    _replace_truth(file, "<u1", fletcher32=False)
    result = call("validate", file, "--json")
    assert result.exit_code == 1, result.output
    (fault,) = json.loads(result.stdout)["faults"]
    assert "prompts/truth must carry checksums, but it has none" in fault


def test_column_of_another_type_is_told(file: Path) -> None:
    _replace_truth(file, "<u2", fletcher32=True)
    result = call("validate", file)
    assert result.exit_code in (1, 2), result.output
    assert re.search(r"truth.*must be.*<u1, but it is", result.stdout + result.stderr)


def test_repair_finishes_what_a_writer_left(tmp_path: Path, scan: MemoryListmode) -> None:
    writer = LiveListmodeWriter(
        tmp_path / "live.h5", scanner=scan.scanner, protocol=scan.protocol
    )
    writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset))
    writer.append("delayeds", scan.delayeds, np.diff(scan.tick_offset("delayeds")))
    writer.flush()
    assert call("validate", tmp_path / "live.h5").exit_code == 1
    result = done("repair", tmp_path / "live.h5", tmp_path / "new.h5")
    assert result["n_prompts"] == 4000
    assert "the writer of the original did not finish it" in result["note"]
    assert call("validate", tmp_path / "new.h5").exit_code == 0


def test_repair_of_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"hello, world" * 99)
    refused("another kind of HDF5 file", "repair", tmp_path / "x.h5", tmp_path / "y.h5")


def test_info_draws_the_rates_and_keeps_them_as_png(file: Path, tmp_path: Path) -> None:
    result = call("info", file, "-o", tmp_path / "kept")
    assert result.exit_code == 0, result.output
    assert "prompts over time, counts per second" in result.stdout
    assert "delayeds over time, counts per second" in result.stdout
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"info.json", "rates.png"}
    assert (tmp_path / "kept" / "rates.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def _steps(n_low: int, n_high: int, cut: Windows | None, folder: Path) -> list[str]:
    """Draw a scan of 10 s at a low and 10 s at a high rate."""
    per_tick = np.repeat([n_low, n_high], 10_000)
    one = random_scan(1, n_prompts=int(per_tick.sum()), n_delayeds=0)
    scan = MemoryListmode(
        scanner=one.scanner,
        protocol=one.protocol,
        prompts=one.prompts,
        prompts_offset=np.concatenate(([0], np.cumsum(per_tick))),
    )
    cut_listmode(scan, cut or scan.extent, folder / "steps.h5")
    with open_listmode(folder / "steps.h5") as read:
        return rate_lines(describe(read))


def test_plot_shows_half_the_rate_at_half_the_height(tmp_path: Path) -> None:
    lines = _steps(1, 2, None, tmp_path)
    assert lines[0] == "prompts over time, counts per second; from 0 to 2 k"
    bars = [line.partition("|")[2] for line in lines[1:7]]
    n = len(lines[7].partition("+")[2])
    assert n <= N_COLUMNS
    assert bars[:3] == [" " * (n // 2) + "█" * (n - n // 2)] * 3
    assert bars[3:] == ["█" * n] * 3
    assert lines[8].split() == ["0", "20", "s"]


def test_plot_leaves_time_that_is_not_held_open(tmp_path: Path) -> None:
    lines = _steps(1, 1, Windows([0, 15_000], [5000, 20_000]), tmp_path)
    ground = lines[-2].partition("+")[2]
    assert re.fullmatch(r"-+\.+-+", ground)
    assert ground.count(".") == pytest.approx(len(ground) / 2, abs=1)
    bars = lines[-3].partition("|")[2]
    assert {bars[i] for i in range(len(ground)) if ground[i] == "."} == {" "}


def test_plot_of_a_scan_without_events_is_empty(tmp_path: Path) -> None:
    lines = _steps(0, 0, None, tmp_path)
    assert all(line.partition("|")[2].strip() == "" for line in lines[1:7])
    with open_listmode(tmp_path / "steps.h5") as read:
        assert draw_rates(describe(read))[:4] == b"\x89PNG"
