"""Our own HDF5 layout: exact, streamed, safe against what disks do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats._hdf5_layout import CHUNK_EVENTS
from listmode.formats.hdf5 import Hdf5Listmode, ListmodeWriter, cut_listmode
from listmode.formats.scanner_file import list_presets, load_scanner
from listmode.memory import MemoryListmode
from listmode.source import ScanProtocol, Stream
from listmode.windows import Windows
from tests.strategies import (
    PROTOCOL,
    joined,
    random_batch,
    random_scan,
    same_events,
    small_scanner,
    windows,
)

STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


def write(scan: MemoryListmode, path: Path, ticks_at_a_time: int = 7) -> None:
    """Write a scan in small pieces."""
    with ListmodeWriter(
        path,
        scanner=scan.scanner,
        protocol=scan.protocol,
        start_ms=scan.start_ms,
        crystal_efficiency=scan.crystal_efficiency,
        has_truth=scan.truth is not None,
        provenance={"seed": "1"},
    ) as writer:
        for stream in STREAMS:
            offset = scan.tick_offset(stream)
            for first in range(0, len(offset) - 1, ticks_at_a_time):
                last = min(first + ticks_at_a_time, len(offset) - 1)
                a, b = int(offset[first]), int(offset[last])
                truth = scan.read_truth(a, b) if stream == "prompts" else None
                counts = np.diff(offset[first : last + 1])
                writer.append(stream, scan.read(stream, a, b), counts, truth)


@pytest.mark.parametrize("has_truth", [False, True])
def test_scan_comes_back_exactly(tmp_path: Path, has_truth: bool) -> None:
    scan = random_scan(1, start_ms=300, has_truth=has_truth)
    write(scan, tmp_path / "scan.h5")
    with open_listmode(tmp_path / "scan.h5") as read:
        assert isinstance(read, Hdf5Listmode)
        assert read.is_complete
        assert (read.start_ms, read.stop_ms) == (300, 340)
        assert read.scanner.digest == scan.scanner.digest
        assert read.protocol == scan.protocol
        assert read.crystal_efficiency is not None
        assert scan.crystal_efficiency is not None
        assert np.array_equal(read.crystal_efficiency, scan.crystal_efficiency)
        for stream in STREAMS:
            assert np.array_equal(read.tick_offset(stream), scan.tick_offset(stream))
            got = joined(list(read.events(stream=stream, chunk=64)))
            assert same_events(got, scan.read(stream, 0, scan.n_events(stream)))
        truth = read.read_truth(3, 50)
        assert (truth is None) == (scan.truth is None)
        if truth is not None and scan.truth is not None:
            assert truth.tolist() == scan.truth[3:50].tolist()
        assert read.provenance["seed"] == "1"
        assert len(read.file_hash) == 64


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_rebuilt_bit_by_bit(tmp_path: Path, name: str) -> None:
    scanner = load_scanner(name)
    with ListmodeWriter(tmp_path / "s.h5", scanner=scanner, protocol=ScanProtocol()) as writer:
        writer.append("prompts", EventBatch.empty(), np.zeros(1, np.int64))
    with Hdf5Listmode(tmp_path / "s.h5") as read:
        assert read.scanner.digest == scanner.digest
        assert read.scanner.layout == scanner.layout
        assert read.protocol == ScanProtocol()
        assert read.crystal_efficiency is None


def test_events_that_span_chunks_come_back_exactly(tmp_path: Path) -> None:
    scan = random_scan(2, n_prompts=2 * CHUNK_EVENTS + 17, n_ticks=9000)
    write(scan, tmp_path / "scan.h5", ticks_at_a_time=1001)
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert same_events(read.read("prompts", 0, read.n_events()), scan.prompts)
        middle = slice(CHUNK_EVENTS - 3, CHUNK_EVENTS + 3)
        got = read.read("prompts", CHUNK_EVENTS - 3, CHUNK_EVENTS + 3)
        assert got.crystal_a.tolist() == scan.prompts.crystal_a[middle].tolist()
        assert np.array_equal(read.tick_offset(), scan.prompts_offset)


def test_shorter_stream_is_padded_to_the_same_ticks(tmp_path: Path) -> None:
    scanner = small_scanner()
    batch = random_batch(np.random.default_rng(1), scanner, 10)
    with ListmodeWriter(tmp_path / "s.h5", scanner=scanner, protocol=PROTOCOL) as writer:
        writer.append("prompts", batch, np.array([4, 6]))
        writer.append("delayeds", batch, np.array([10, 0, 0, 0]))
    with Hdf5Listmode(tmp_path / "s.h5") as read:
        assert read.tick_offset("prompts").tolist() == [0, 4, 10, 10, 10]
        assert read.extent == Windows([0], [4])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(made=windows(300, 340))
def test_cut_file_holds_the_same_events_in_the_same_windows(
    tmp_path: Path, made: Windows
) -> None:
    scan = random_scan(4, start_ms=300, has_truth=True)
    cut_listmode(scan, made, tmp_path / "cut.h5")
    with Hdf5Listmode(tmp_path / "cut.h5") as cut:
        assert cut.extent == made.merged()
        assert cut.provenance["cut_from_sha256"] == scan.file_hash
        for stream in STREAMS:
            assert cut.n_events(stream) == scan.count(made, stream)
            from_cut = joined(list(cut.events(made, stream)))
            assert same_events(from_cut, joined(list(scan.events(made, stream))))
        slices = scan.event_slices(made)
        assert scan.truth is not None
        truth = np.concatenate([scan.truth[a:b] for a, b in slices])
        kept = cut.read_truth(0, cut.n_events())
        assert kept is not None
        assert np.array_equal(kept, truth)


def test_cut_of_a_cut_is_the_cut_of_both(tmp_path: Path) -> None:
    scan = random_scan(4)
    cut_listmode(scan, Windows([2, 20], [15, 38]), tmp_path / "one.h5")
    with Hdf5Listmode(tmp_path / "one.h5") as one:
        cut_listmode(one, Windows([5, 30], [15, 31]), tmp_path / "two.h5")
    with Hdf5Listmode(tmp_path / "two.h5") as two:
        expected = joined(list(scan.events(Windows([5, 30], [15, 31]))))
        assert same_events(joined(list(two.events())), expected)


def test_time_that_was_cut_out_is_refused(tmp_path: Path) -> None:
    scan = random_scan(4)
    cut_listmode(scan, Windows([0, 20], [10, 30]), tmp_path / "cut.h5")
    with (
        Hdf5Listmode(tmp_path / "cut.h5") as cut,
        pytest.raises(
            InputError, match=r"this cut file holds, 0-0\.01,0\.02-0\.03 s, but they"
        ),
    ):
        cut.count(Windows([5], [25]))


def test_windows_outside_the_scan_are_refused_by_the_cutter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must lie within the scan"):
        cut_listmode(random_scan(4), Windows([0], [41]), tmp_path / "cut.h5")
    assert not list(tmp_path.iterdir())


def test_path_may_hold_spaces_and_letters_of_all_languages(tmp_path: Path) -> None:
    folder = tmp_path / "Ünïcode 走査 folder"
    folder.mkdir()
    write(random_scan(1), folder / "scan é 1.h5")
    with open_listmode(folder / "scan é 1.h5") as read:
        assert read.n_events() == 500


def test_name_appears_only_when_the_file_is_whole(tmp_path: Path) -> None:
    scan = random_scan(1)
    path = tmp_path / "scan.h5"
    writer = ListmodeWriter(path, scanner=scan.scanner, protocol=scan.protocol)
    assert not path.exists()
    writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset))
    assert not path.exists()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]


def test_error_while_writing_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    scan = random_scan(1)
    write(scan, tmp_path / "scan.h5")
    before = (tmp_path / "scan.h5").read_bytes()

    def fail() -> None:
        with ListmodeWriter(
            tmp_path / "scan.h5", scanner=scan.scanner, protocol=PROTOCOL
        ) as writer:
            writer.append("prompts", EventBatch.empty(), np.zeros(3, np.int64))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
    assert (tmp_path / "scan.h5").read_bytes() == before


FULL_DISK = """
import resource, signal, sys
import numpy as np
from listmode.errors import InputError
from listmode.formats.hdf5 import ListmodeWriter
from tests.strategies import random_scan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
scan = random_scan(1, n_prompts=300_000, n_ticks=300)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    with ListmodeWriter(sys.argv[1], scanner=scan.scanner, protocol=scan.protocol) as writer:
        for k in range(0, 300, 50):
            a, b = scan.prompts_offset[k], scan.prompts_offset[k + 50]
            writer.append(
                "prompts", scan.read("prompts", a, b), np.diff(scan.prompts_offset[k : k + 51])
            )
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("limit", [0, 5_000, 1_000_000, 2_900_000])
def test_full_disk_is_one_clean_error_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """The limit strikes in the head, in the middle and in the last flush."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "scan.h5"), str(limit)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert "to write 'scan.h5', the file system must allow its size" in done.stdout
    assert not list(tmp_path.iterdir())


def test_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    scan = random_scan(1)
    with pytest.raises(InputError, match="the folder must exist, but it does not"):
        ListmodeWriter(tmp_path / "no" / "scan.h5", scanner=scan.scanner, protocol=PROTOCOL)


def test_two_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    """A second process has another number, so it writes another temporary file."""
    write(random_scan(1), tmp_path / "scan.h5")
    code = (
        "import sys; from pathlib import Path; from tests.strategies import random_scan;"
        "from tests.listmode.formats.test_hdf5 import write;"
        "write(random_scan(2, n_prompts=77), Path(sys.argv[1]))"
    )
    scan = random_scan(1)
    writer = ListmodeWriter(tmp_path / "scan.h5", scanner=scan.scanner, protocol=PROTOCOL)
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "scan.h5")],
        check=True,
        cwd=Path(__file__).parents[3],
    )
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert read.n_events() == 77
    writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset))
    writer.close()
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert read.n_events() == 500


def _writer(tmp_path: Path, **options: object) -> ListmodeWriter:
    return ListmodeWriter(
        tmp_path / "s.h5",
        scanner=small_scanner(),
        protocol=PROTOCOL,
        **options,  # type: ignore[arg-type]
    )


def test_counts_must_add_up(tmp_path: Path) -> None:
    batch = random_batch(np.random.default_rng(1), small_scanner(), 10)
    with (
        pytest.raises(InputError, match="but 9 are counted and 10 are given"),
        _writer(tmp_path) as writer,
    ):
        writer.append("prompts", batch, np.array([4, 5]))


def test_crystals_must_belong_to_the_scanner(tmp_path: Path) -> None:
    batch = EventBatch(np.array([0]), np.array([144]), np.zeros(1, np.int16))
    with (
        pytest.raises(InputError, match=r"crystal numbers must be below 144 .* but one is 144"),
        _writer(tmp_path) as writer,
    ):
        writer.append("prompts", batch, np.array([1]))


def test_tof_bins_must_belong_to_the_scanner(tmp_path: Path) -> None:
    batch = EventBatch(np.array([0]), np.array([9]), np.array([5], np.int16))
    with (
        pytest.raises(InputError, match=r"TOF bins must lie in 0-4 .* reach from 5 to 5"),
        _writer(tmp_path) as writer,
    ):
        writer.append("prompts", batch, np.array([1]))


@pytest.mark.parametrize(("has_truth", "given_truth"), [(True, False), (False, True)])
def test_truth_is_given_for_all_prompts_or_none(
    tmp_path: Path, has_truth: bool, given_truth: bool
) -> None:
    batch = random_batch(np.random.default_rng(1), small_scanner(), 3)
    truth = np.zeros(3, np.uint8) if given_truth else None
    with (
        pytest.raises(InputError, match="truth must be given for"),
        _writer(tmp_path, has_truth=has_truth) as writer,
    ):
        writer.append("prompts", batch, np.array([3]), truth)


def test_efficiencies_must_be_one_a_crystal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one a crystal \(144\), but their shape is \(3,\)"):
        _writer(tmp_path, crystal_efficiency=np.ones(3, np.float32))


def test_scan_without_a_tick_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one tick"), _writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    write(random_scan(1), tmp_path / "scan.h5")
    whole = (tmp_path / "scan.h5").read_bytes()
    (tmp_path / "part.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"'part\.h5' must be a whole HDF5 file.*truncated"):
        open_listmode(tmp_path / "part.h5")


def test_damaged_events_are_found_by_their_checksum(tmp_path: Path) -> None:
    scan = random_scan(2, n_prompts=CHUNK_EVENTS + 5)
    write(scan, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r") as file:
        at = file["prompts/crystal_a"].id.get_chunk_info(0).byte_offset
    with (tmp_path / "scan.h5").open("r+b") as raw:
        raw.seek(at + 100)
        raw.write(b"\xff")
    with (
        Hdf5Listmode(tmp_path / "scan.h5") as read,
        pytest.raises(InputError, match="column crystal_a of prompts must be readable"),
    ):
        read.read("prompts", 0, 10)


def test_incomplete_file_gives_its_whole_ticks_and_says_so(tmp_path: Path) -> None:
    scan = random_scan(2, n_prompts=CHUNK_EVENTS + 5, n_ticks=50)
    write(scan, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file.attrs["complete"] = 0
        file["prompts/crystal_b"].resize((CHUNK_EVENTS,))
    with open_listmode(tmp_path / "scan.h5") as read:
        assert not read.is_complete
        assert "incomplete (complete = 0): its writer did not finish" in read.defects[-1]
        n_ticks = int((scan.prompts_offset[1:] <= CHUNK_EVENTS).sum())
        assert read.stop_ms == n_ticks < 50
        n = int(scan.prompts_offset[n_ticks])
        assert same_events(joined(list(read.events())), scan.read("prompts", 0, n))


def test_incomplete_file_without_a_tick_is_refused(tmp_path: Path) -> None:
    write(random_scan(2), tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file.attrs["complete"] = 0
        file["delayeds/tick_offset"].resize((0,))
    with pytest.raises(InputError, match="at least one tick, but its writer has stored none"):
        open_listmode(tmp_path / "scan.h5")


def _spoil(path: Path, name: str, value: object) -> None:
    write(random_scan(2), path)
    with h5py.File(path, "r+") as file:
        if value is None:
            del file[name]
        elif name in file:
            file[name][5] = value
        else:
            file.attrs[name] = value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "another", "must be a stillpet listmode file, but it is another kind"),
        ("format_version", 99, "must have a layout version up to 1, but it has 99"),
        ("prompts/tick_offset", 10_000, "tick index of prompts must ascend from 0"),
        ("prompts/crystal_a", None, "must follow the stillpet layout, but it is damaged"),
        ("scanner/crystal_ring", None, "must describe its scanner, but its description is"),
        ("protocol", None, "must hold its protocol, but it is damaged"),
        ("scanner/crystal_position_mm", np.nan, "crystal_position_mm must be finite"),
    ],
)
def test_spoilt_file_is_refused(tmp_path: Path, name: str, value: object, message: str) -> None:
    _spoil(tmp_path / "scan.h5", name, value)
    with pytest.raises(InputError, match=message):
        open_listmode(tmp_path / "scan.h5")


def test_tick_index_of_another_length_is_refused(tmp_path: Path) -> None:
    write(random_scan(2), tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["delayeds/tick_offset"].resize((39,))
    with pytest.raises(InputError, match="tick index of delayeds must have one entry a ms"):
        open_listmode(tmp_path / "scan.h5")


def test_protocol_of_a_wrong_kind_is_refused(tmp_path: Path) -> None:
    write(random_scan(2), tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["protocol"].attrs["patient_weight_kg"] = "heavy"
    with pytest.raises(InputError, match="patient_weight_kg is 'heavy'"):
        open_listmode(tmp_path / "scan.h5")
