"""CASToR list-mode: out and back, and files of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.castor import write_castor
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.source import ScanProtocol
from listmode.windows import Windows
from tests.strategies import joined, random_scan, same_events, small_scanner
from tests.toy_scan import SCANNER_TOML, toy


@pytest.mark.parametrize("n_tof_bins", [5, 1])
def test_scan_comes_back_exactly_with_its_sidecar(tmp_path: Path, n_tof_bins: int) -> None:
    scan = random_scan(
        1, n_prompts=70_000, n_ticks=300, start_ms=20, scanner=small_scanner(n_tof_bins)
    )
    held = Windows([30, 100], [90, 310])
    cut_listmode(scan, held, tmp_path / "cut.h5")
    with open_listmode(tmp_path / "cut.h5") as cut:
        write_castor(cut, tmp_path / "scan é.cdh")
    for name in ("scan é.cdh", "scan é.cdf"):
        with open_listmode(tmp_path / name) as read:
            assert read.scanner.digest == scan.scanner.digest
            assert read.protocol == scan.protocol
            assert read.extent == held
            assert read.is_complete
            for stream in ("prompts", "delayeds"):
                got = joined(list(read.events(held, stream, chunk=999)))
                assert same_events(got, joined(list(scan.events(held, stream))))
                assert read.count(Windows([40], [60]), stream) == scan.count(
                    Windows([40], [60]),
                    stream,
                )


def write_plain(folder: Path) -> None:
    """Write a scan and remove what only stillpet reads."""
    write_castor(random_scan(1), folder / "scan.cdh")
    (folder / "scan.stillpet.json").unlink()


def test_file_of_another_program_is_read_by_its_look_up_table(tmp_path: Path) -> None:
    write_plain(tmp_path)
    scan = random_scan(1)
    read = open_listmode(tmp_path / "scan.cdh")
    assert np.array_equal(read.scanner.crystal_position_mm, scan.scanner.crystal_position_mm)
    assert read.scanner.crystal_ring.tolist() == scan.scanner.crystal_ring.tolist()
    assert read.scanner.tof.n_bins == 5
    assert read.scanner.tof.bin_width_ps == pytest.approx(200.0)
    assert same_events(joined(list(read.events())), scan.prompts)
    assert (read.start_ms, read.stop_ms) == (0, 40)


def test_sign_of_tof_is_first_less_second(tmp_path: Path) -> None:
    """An event of crystal 2, which fired 400 ps after crystal 100, lies nearer to 100."""
    write_plain(tmp_path)
    dtype = [("time", "<u4"), ("tof", "<f4"), ("one", "<u4"), ("other", "<u4")]
    events = np.array([(0, 400.0, 2, 100), (1, -400.0, 100, 2)], dtype)
    (tmp_path / "scan.cdf").write_bytes(events.tobytes())
    (tmp_path / "scan_delayeds.cdf").unlink()
    batch = open_listmode(tmp_path / "scan.cdh").read("prompts", 0, 2)
    assert batch.crystal_a.tolist() == [2, 2]
    assert batch.tof_bin.tolist() == [4, 4]


def test_sign_of_tof_leads_back_to_an_off_centre_source(tmp_path: Path) -> None:
    """A data file made by hand from the toy's photons, read by the scanner's look-up table."""
    made = toy(2, source_mm=(45, -30, 40))
    (tmp_path / "toy.toml").write_text(SCANNER_TOML, "utf-8")
    scanner = load_scanner(tmp_path / "toy.toml")
    n = len(made.crystals)
    empty = MemoryListmode(scanner, ScanProtocol(), EventBatch.empty(), np.zeros(301, np.int64))
    write_castor(empty, tmp_path / "scan.cdh")
    (tmp_path / "scan.stillpet.json").unlink()
    (tmp_path / "scan_delayeds.cdf").unlink()
    header = (tmp_path / "scan.cdh").read_text()
    (tmp_path / "scan.cdh").write_text(header.replace("events: 0", f"events: {n}"))
    dtype = [("time", "<u4"), ("tof", "<f4"), ("one", "<u4"), ("other", "<u4")]
    events = np.empty(n, dtype)
    times_s = [made.columns[f"time{k}"] for k in "12"]
    events["time"] = times_s[0] * 1000
    events["tof"] = (times_s[0] - times_s[1]) * 1e12
    events["one"], events["other"] = made.crystals.T
    (tmp_path / "scan.cdf").write_bytes(events.tobytes())
    with open_listmode(tmp_path / "scan.cdh") as read:
        assert read.n_events() == n
        batch = joined(list(read.events()))
        place = read.scanner.crystal_position_mm.astype(np.float64)
        a, b = place[batch.crystal_a], place[batch.crystal_b]
        towards_b = (b - a) / np.linalg.norm(b - a, axis=1)[:, None]
        tof_mm = read.scanner.tof.bin_centre_mm()[batch.tof_bin]
        likely = (a + b) / 2 + tof_mm[:, None] * towards_b
        assert np.abs(likely.mean(axis=0) - made.source_mm[0]).max() < 1.0


def test_correction_factors_are_skipped_and_noted(tmp_path: Path) -> None:
    write_plain(tmp_path)
    text = (tmp_path / "scan.cdh").read_text()
    text = text.replace("Attenuation correction flag: 0", "Attenuation correction flag: 1")
    (tmp_path / "scan.cdh").write_text(text)
    dtype = [("t", "<u4"), ("acf", "<f4"), ("tof", "<f4"), ("one", "<u4"), ("other", "<u4")]
    (tmp_path / "scan.cdf").write_bytes(np.array([(3, 7.5, 0.0, 9, 80)], dtype).tobytes())
    (tmp_path / "scan_delayeds.cdf").unlink()
    read = open_listmode(tmp_path / "scan.cdh")
    assert read.read("prompts", 0, 1).crystal_b.tolist() == [80]
    assert read.notes[0] == "the attenuation factors of the events are not used"
    assert read.tick_offset()[3:5].tolist() == [0, 1]


def test_events_that_fit_no_crystal_or_bin_are_counted(tmp_path: Path) -> None:
    write_plain(tmp_path)
    dtype = [("t", "<u4"), ("tof", "<f4"), ("one", "<u4"), ("other", "<u4")]
    rows = [(0, 0, 1, 90), (0, 0, 1, 1), (1, 9e9, 1, 90), (1, np.nan, 1, 90), (2, 0, 1, 999)]
    (tmp_path / "scan.cdf").write_bytes(np.array(rows, dtype).tobytes())
    read = open_listmode(tmp_path / "scan.cdh")
    assert read.n_events() == 1
    assert any(d.startswith("4 prompts name no crystal") for d in read.defects)


def test_truncated_file_is_incomplete(tmp_path: Path) -> None:
    write_plain(tmp_path)
    data = (tmp_path / "scan.cdf").read_bytes()
    (tmp_path / "scan.cdf").write_bytes(data[:-5])
    read = open_listmode(tmp_path / "scan.cdh")
    assert not read.is_complete
    said = " ".join(read.defects)
    assert "the last 11 bytes of the events are no whole event" in said
    assert "announces 500 events, 499 are there" in said


def test_events_out_of_order_are_refused(tmp_path: Path) -> None:
    write_plain(tmp_path)
    data = (tmp_path / "scan.cdf").read_bytes()
    (tmp_path / "scan.cdf").write_bytes(data[-160:] + data[:-160])
    with pytest.raises(InputError, match="events must be in order of time"):
        open_listmode(tmp_path / "scan.cdh")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("list-mode", "histogram", "must hold list-mode PET events"),
        ("Start time (s): 0", "Start time (s): x", r"must give 'start time \(s\)' as a number"),
        ("Data filename: scan.cdf", "Data filename: no.cdf", "names 'no.cdf', which is not"),
        ("Scanner name: scan", "Scanner name: mCT", "needs its scanner's look-up table"),
    ],
)
def test_damaged_header_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_plain(tmp_path)
    text = (tmp_path / "scan.cdh").read_text()
    assert old in text
    (tmp_path / "scan.cdh").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        open_listmode(tmp_path / "scan.cdh")


def test_damaged_look_up_table_is_refused(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "scan.lut").write_bytes(np.full(60, np.nan, "<f4").tobytes())
    with pytest.raises(InputError, match="must hold six finite numbers a crystal"):
        open_listmode(tmp_path / "scan.cdh")


def test_damaged_sidecar_is_refused(tmp_path: Path) -> None:
    write_castor(random_scan(1), tmp_path / "scan.cdh")
    (tmp_path / "scan.stillpet.json").write_text("{")
    with pytest.raises(InputError, match="must be JSON, but it is damaged"):
        open_listmode(tmp_path / "scan.cdh")


def test_scan_before_tick_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="CASToR counts time from 0, but the scan starts at -5"
    ):
        write_castor(random_scan(1, start_ms=-5), tmp_path / "scan.cdh")
