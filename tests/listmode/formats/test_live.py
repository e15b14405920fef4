"""The live layout: a file that grows, is followed, and ends as any other."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import live, open_listmode
from listmode.formats.hdf5 import Hdf5Listmode, cut_listmode
from listmode.formats.live import LiveListmodeWriter
from listmode.formats.validate import validate_listmode
from listmode.memory import MemoryListmode
from listmode.source import Stream
from listmode.windows import Windows
from tests.strategies import PROTOCOL, joined, random_scan, same_events, small_scanner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the live layout is POSIX's")
STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


def live_writer(
    path: Path, scan: MemoryListmode, flush_every_s: float = 1e9
) -> LiveListmodeWriter:
    return LiveListmodeWriter(
        path,
        scanner=scan.scanner,
        protocol=scan.protocol,
        start_ms=scan.start_ms,
        crystal_efficiency=scan.crystal_efficiency,
        has_truth=scan.truth is not None,
        clock_zero=scan.clock_zero,
        flush_every_s=flush_every_s,
    )


def feed(writer: LiveListmodeWriter, scan: MemoryListmode, first: int, last: int) -> None:
    """Give ticks ``[first, last)`` of a scan, numbered from its own start."""
    for stream in STREAMS:
        offset = scan.tick_offset(stream)
        a, b = int(offset[first]), int(offset[last])
        truth = scan.read_truth(a, b) if stream == "prompts" else None
        counts = np.diff(offset[first : last + 1])
        writer.append(stream, scan.read(stream, a, b), counts, truth)


def assert_same_to(read: Hdf5Listmode, scan: MemoryListmode, n_ticks: int) -> None:
    assert read.stop_ms == scan.start_ms + n_ticks
    for stream in STREAMS:
        assert np.array_equal(read.tick_offset(stream), scan.tick_offset(stream)[: n_ticks + 1])
        n = read.n_events(stream)
        assert same_events(read.read(stream, 0, n), scan.read(stream, 0, n))
    if scan.truth is not None:
        truth = read.read_truth(0, read.n_events())
        assert truth is not None
        assert np.array_equal(truth, scan.truth[: read.n_events()])


@pytest.mark.parametrize("has_truth", [False, True])
def test_reader_follows_a_growing_file_to_its_end(tmp_path: Path, has_truth: bool) -> None:
    scan = random_scan(
        3, n_prompts=50_000, n_delayeds=700, n_ticks=90, start_ms=250, has_truth=has_truth
    )
    writer = live_writer(tmp_path / "scan.h5", scan)
    feed(writer, scan, 0, 7)
    assert writer.flush() == 257
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert (read.is_live, read.is_complete) == (True, False)
        assert "live (complete = 0)" in read.defects[-1]
        assert read.scanner.digest == scan.scanner.digest
        assert read.protocol == scan.protocol
        assert_same_to(read, scan, 7)
        assert not read.refresh()
        for first, last in ((7, 8), (8, 40), (40, 90)):
            feed(writer, scan, first, last)
            assert not read.refresh(), "what was not flushed is not there"
            assert writer.flush() == writer.flushed_ms == 250 + last
            assert read.refresh()
            assert_same_to(read, scan, last)
        before = read.file_hash
        writer.close()
        assert read.refresh(), "the file was finished"
        assert (read.is_live, read.is_complete) == (False, True)
        assert read.defects == ()
        assert read.file_hash != before
        assert_same_to(read, scan, 90)
        assert not read.refresh()
    assert validate_listmode(tmp_path / "scan.h5").is_sound
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]


def test_finished_live_file_equals_the_plain_one(tmp_path: Path) -> None:
    scan = random_scan(4, has_truth=True)
    with live_writer(tmp_path / "live.h5", scan) as writer:
        feed(writer, scan, 0, 40)
    cut_listmode(scan, scan.extent, tmp_path / "plain.h5")
    with (
        open_listmode(tmp_path / "live.h5") as one,
        open_listmode(tmp_path / "plain.h5") as two,
    ):
        assert one.extent == two.extent
        for stream in STREAMS:
            assert np.array_equal(one.tick_offset(stream), two.tick_offset(stream))
            got = joined(list(one.events(stream=stream)))
            assert same_events(got, joined(list(two.events(stream=stream))))
        assert one.protocol == two.protocol
        assert one.clock_zero == two.clock_zero


def test_tick_is_there_only_when_both_streams_have_it(tmp_path: Path) -> None:
    scan = random_scan(5)
    writer = live_writer(tmp_path / "scan.h5", scan)
    feed(writer, scan, 0, 5)
    offset = scan.tick_offset("prompts")
    batch = scan.read("prompts", int(offset[5]), int(offset[9]))
    writer.append("prompts", batch, np.diff(offset[5:10]))
    assert writer.flush() == 5
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert_same_to(read, scan, 5)


def test_stream_without_events_does_not_hold_the_other_back(tmp_path: Path) -> None:
    scan = random_scan(6, n_delayeds=0)
    writer = live_writer(tmp_path / "scan.h5", scan)
    feed(writer, scan, 0, 30)
    writer.flush()
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert_same_to(read, scan, 30)


def test_append_flushes_by_itself_after_a_while(tmp_path: Path) -> None:
    scan = random_scan(7)
    writer = live_writer(tmp_path / "scan.h5", scan, flush_every_s=0.0)
    feed(writer, scan, 0, 12)
    assert writer.flushed_ms == 12
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert_same_to(read, scan, 12)


def test_error_while_writing_keeps_the_live_file(tmp_path: Path) -> None:
    scan = random_scan(8)

    def fail() -> None:
        with live_writer(tmp_path / "scan.h5", scan) as writer:
            feed(writer, scan, 0, 20)
            writer.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert_same_to(read, scan, 20)


def test_live_file_of_that_name_is_never_written_over(tmp_path: Path) -> None:
    scan = random_scan(1)
    first = live_writer(tmp_path / "scan.h5", scan)
    feed(first, scan, 0, 40)
    with pytest.raises(InputError, match=r"must be a new one, but 'scan\.h5' is there already"):
        live_writer(tmp_path / "scan.h5", scan)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
    first.close()
    assert validate_listmode(tmp_path / "scan.h5").is_sound


def test_live_file_without_a_tick_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    writer = live_writer(tmp_path / "scan.h5", random_scan(1))
    with pytest.raises(InputError, match="its writer has stored none; open it again once"):
        open_listmode(tmp_path / "scan.h5")
    with pytest.raises(InputError, match="must last at least one tick"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_events_that_do_not_fit_are_refused_by_the_live_writer(tmp_path: Path) -> None:
    writer = live_writer(tmp_path / "scan.h5", random_scan(1))
    bad = EventBatch(np.array([0]), np.array([144]), np.zeros(1, np.int16))
    with pytest.raises(InputError, match="crystal numbers must be below 144"):
        writer.append("prompts", bad, np.array([1]))
    with pytest.raises(InputError, match=r"one a crystal \(144\)"):
        LiveListmodeWriter(
            tmp_path / "other.h5",
            scanner=small_scanner(),
            protocol=PROTOCOL,
            crystal_efficiency=np.ones(3, np.float32),
        )


def test_folder_that_is_missing_is_named_by_the_live_writer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder must exist, but it does not"):
        live_writer(tmp_path / "no" / "scan.h5", random_scan(1))


def test_windows_of_a_live_file_can_be_cut_out(tmp_path: Path) -> None:
    scan = random_scan(9, start_ms=100)
    writer = live_writer(tmp_path / "scan.h5", scan)
    feed(writer, scan, 0, 40)
    writer.flush()
    held = Windows([105, 120], [110, 139])
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        cut_listmode(read, held, tmp_path / "cut.h5")
    with open_listmode(tmp_path / "cut.h5") as cut:
        assert same_events(joined(list(cut.events())), joined(list(scan.events(held))))


def test_live_layout_is_refused_where_it_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_IS_POSIX", False)
    with pytest.raises(InputError, match="the live layout needs a POSIX system"):
        live_writer(tmp_path / "scan.h5", random_scan(1))
    assert list(tmp_path.iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STREAMS), st.integers(1, 40), st.booleans()), max_size=12
    )
)
def test_any_order_of_giving_and_flushing_gives_the_same_file(
    tmp_path: Path, steps: list[tuple[Stream, int, bool]]
) -> None:
    """Law: what a reader sees is always the ticks that both streams had at the last flush."""
    scan = random_scan(11, n_prompts=3000, has_truth=True)
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "scan.h5"
    given_ticks = dict.fromkeys(STREAMS, 0)
    with live_writer(path, scan) as writer:
        for stream, n, is_flushed in [*steps, *((s, 40, True) for s in STREAMS)]:
            first = given_ticks[stream]
            last = given_ticks[stream] = min(first + n, 40)
            offset = scan.tick_offset(stream)
            a, b = int(offset[first]), int(offset[last])
            truth = scan.read_truth(a, b) if stream == "prompts" else None
            counts = np.diff(offset[first : last + 1])
            writer.append(stream, scan.read(stream, a, b), counts, truth)
            if is_flushed and min(given_ticks.values()):
                assert writer.flush() == min(given_ticks.values())
                with Hdf5Listmode(path) as read:
                    assert_same_to(read, scan, min(given_ticks.values()))
    with Hdf5Listmode(path) as read:
        assert_same_to(read, scan, 40)


GROWING = """
import sys, time
import numpy as np
from listmode.formats.live import LiveListmodeWriter
from tests.strategies import random_scan
scan = random_scan(1, n_prompts=9_000, n_delayeds=500, n_ticks=50, has_truth=True)
with LiveListmodeWriter(
    sys.argv[1], scanner=scan.scanner, protocol=scan.protocol, has_truth=True
) as writer:
    for k in range(200):
        writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset), scan.truth)
        writer.append("delayeds", scan.delayeds, np.diff(scan.delayeds_offset))
        writer.flush()
        print(k, flush=True)
"""


@pytest.mark.slow
def test_reader_beside_a_writer_never_sees_anything_half(tmp_path: Path) -> None:
    """Two processes, no pauses: at every look each tick has exactly its events."""
    scan = random_scan(1, n_prompts=9_000, n_delayeds=500, n_ticks=50, has_truth=True)
    writer = subprocess.Popen(
        [sys.executable, "-c", GROWING, str(tmp_path / "scan.h5")],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert writer.stdout is not None
    writer.stdout.readline()
    n_looks, seen = 0, 0
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        while not read.is_complete:
            read.refresh()
            assert read.stop_ms >= seen
            n_looks, seen = n_looks + 1, read.stop_ms
            for stream in STREAMS:
                per_tick = np.resize(np.diff(scan.tick_offset(stream)), read.stop_ms)
                assert np.array_equal(np.diff(read.tick_offset(stream)), per_tick)
                n = int(per_tick.sum())
                part = scan.read(stream, 0, scan.n_events(stream))
                first = max(n - 30_000, 0)
                got = read.read(stream, first, n)
                for column in ("crystal_a", "crystal_b", "tof_bin"):
                    whole = np.resize(getattr(part, column), n)[first:]
                    assert np.array_equal(getattr(got, column), whole)
    writer.stdout.close()
    assert writer.wait() == 0
    assert seen == 200 * 50
    assert n_looks > 5


FULL_DISK = """
import resource, sys
import numpy as np
from listmode.errors import InputError
from listmode.formats.live import LiveListmodeWriter
from tests.strategies import random_scan
scan = random_scan(1, n_prompts=300_000, n_ticks=300)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
flushed = 0
try:
    with LiveListmodeWriter(
        sys.argv[1], scanner=scan.scanner, protocol=scan.protocol, flush_every_s=0.0
    ) as writer:
        for k in range(0, 300, 50):
            for stream in ("prompts", "delayeds"):
                offset = scan.tick_offset(stream)
                a, b = int(offset[k]), int(offset[k + 50])
                writer.append(stream, scan.read(stream, a, b), np.diff(offset[k : k + 51]))
            flushed = writer.flushed_ms
except InputError as error:
    print(flushed, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits and their signal")
@pytest.mark.parametrize("limit", [0, 1_000_000, 10_000_000])
def test_full_disk_keeps_what_was_flushed(tmp_path: Path, limit: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "scan.h5"), str(limit)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    flushed, _, message = done.stdout.partition(" ")
    assert "to write 'scan.h5', the file system must allow its size" in message
    if limit < 10_000_000:
        assert list(tmp_path.iterdir()) == [], "nothing was flushed, so nothing is left"
        return
    assert int(flushed) > 0
    assert f"What was flushed, up to {flushed} ms, is in the file: repair it" in message
    scan = random_scan(1, n_prompts=300_000, n_ticks=300)
    with Hdf5Listmode(tmp_path / "scan.h5") as read:
        assert_same_to(read, scan, int(flushed))
