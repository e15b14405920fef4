"""A writer that is killed leaves a file with all that it had flushed, and nothing twice.

``STILLPET_KILLS=50 pytest tests/listmode/formats/test_kills.py`` kills fifty writers of each
layout; without it, a few.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from listmode.formats import _hdf5_writer, open_listmode
from listmode.formats._atomic import GuardedFile
from listmode.formats._hdf5_layout import CHUNK_EVENTS, CHUNK_TICKS
from listmode.formats._sandbox_child import walk_hdf5
from listmode.formats.convert import repair_listmode
from listmode.formats.hdf5 import Hdf5Listmode, ListmodeWriter
from listmode.formats.validate import validate_listmode
from listmode.source import Listmode, Stream
from tests.strategies import joined, random_scan, same_events

N_KILLS = int(os.environ.get("STILLPET_KILLS", "3"))
STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")
N_TICKS = 50
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX"),
]

WRITER = """
import sys
import numpy as np
from listmode.formats.hdf5 import ListmodeWriter
from listmode.formats.live import LiveListmodeWriter
from tests.strategies import random_scan
path, layout, n_parts = sys.argv[1], sys.argv[2], int(sys.argv[3])
scan = random_scan(1, n_prompts=40_000, n_delayeds=9_000, n_ticks=50, has_truth=True)
kind = LiveListmodeWriter if layout == "live" else ListmodeWriter
with kind(path, scanner=scan.scanner, protocol=scan.protocol, has_truth=True) as writer:
    for k in range(n_parts):
        writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset), scan.truth)
        writer.append("delayeds", scan.delayeds, np.diff(scan.delayeds_offset))
        if layout == "live" and k % 3 == 2:
            writer.flush()
        print(k + 1, getattr(writer, "flushed_ms", 0), flush=True)
print("closed", 50 * n_parts, flush=True)
"""


@dataclass(frozen=True)
class Killed:
    """What a writer had said when it was killed."""

    n_parts: int
    flushed_ms: int
    was_closed: bool


def _write_and_kill(path: Path, layout: str, rng: np.random.Generator) -> Killed:
    """Kill a writer at a random moment from its first flush to a little after its end."""
    n_first = 4 if layout == "live" else 14  # the plain layout's first whole chunks
    total = int(rng.integers(n_first + 1, 120))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), layout, str(total)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(int(rng.integers(n_first, total + 1)))]
    time.sleep(float(rng.uniform(0.0, 0.05)))
    writer.send_signal(signal.SIGKILL)
    lines += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    last = [line.split() for line in lines if line.endswith("\n")][-1]
    if last[0] == "closed":
        return Killed(total, int(last[1]), was_closed=True)
    return Killed(int(last[0]), int(last[1]), was_closed=False)


def _flushed_by_plain_writer(n_parts: int) -> int:
    """Count the ticks whose chunks are all full after a number of parts."""
    scan = random_scan(1, n_prompts=40_000, n_delayeds=9_000, n_ticks=N_TICKS, has_truth=True)
    ticks = [(n_parts * N_TICKS + 1) // CHUNK_TICKS * CHUNK_TICKS - 1]
    for stream in STREAMS:
        per_tick = np.resize(np.diff(scan.tick_offset(stream)), n_parts * N_TICKS)
        full = n_parts * scan.n_events(stream) // CHUNK_EVENTS * CHUNK_EVENTS
        ticks.append(int((np.cumsum(per_tick) <= full).sum()))
    return max(min(ticks), 0)


def _assert_holds_what_was_written(read: Listmode, flushed_ms: int) -> None:
    """Every tick has exactly its events, in order, up to the flushed one at least."""
    scan = random_scan(1, n_prompts=40_000, n_delayeds=9_000, n_ticks=N_TICKS, has_truth=True)
    assert scan.truth is not None
    assert read.start_ms == 0
    assert read.extent.start_ms.tolist() == [0]
    assert read.stop_ms >= flushed_ms
    n_parts = -(-read.stop_ms // N_TICKS)
    for stream in STREAMS:
        per_tick = np.resize(np.diff(scan.tick_offset(stream)), read.stop_ms)
        assert np.array_equal(np.diff(read.tick_offset(stream)), per_tick)
        part = scan.read(stream, 0, scan.n_events(stream))
        n = int(per_tick.sum())
        written = joined([part] * n_parts)
        got = read.read(stream, 0, n)
        for column in ("crystal_a", "crystal_b", "tof_bin"):
            assert np.array_equal(getattr(got, column), getattr(written, column)[:n])
        assert len(got) == n
    truth = read.read_truth(0, read.n_events())
    assert truth is not None
    assert np.array_equal(truth, np.resize(scan.truth, read.n_events()))


def _find_left(folder: Path, layout: str) -> Path:
    """Find what a killed writer left: the name itself, or the plain writer's part."""
    path = folder / "scan.h5"
    if path.exists():
        return path
    assert layout == "plain", "a live file has its name from the start"
    (part,) = folder.glob(".scan.h5.*.part")
    return part


@pytest.mark.parametrize("layout", ["plain", "live"])
@pytest.mark.parametrize("kill", range(N_KILLS))
def test_killed_writer_leaves_a_file_with_all_that_was_flushed(
    tmp_path: Path, kill: int, layout: str
) -> None:
    rng = np.random.default_rng([20240501, kill, layout == "live"])
    killed = _write_and_kill(tmp_path / "scan.h5", layout, rng)
    flushed_ms = killed.flushed_ms
    if layout == "plain" and not killed.was_closed:
        flushed_ms = _flushed_by_plain_writer(killed.n_parts)
    left = _find_left(tmp_path, layout)
    assert flushed_ms > 0
    with open_listmode(left) as read:
        assert read.is_complete or any("complete = 0" in d for d in read.defects)
        _assert_holds_what_was_written(read, flushed_ms)
        is_complete = read.is_complete
        held = read.extent
    if not is_complete:
        assert not validate_listmode(left).is_sound
        assert repair_listmode(left, tmp_path / "saved.h5") == held
        left = tmp_path / "saved.h5"
        with open_listmode(left) as saved:
            assert saved.is_complete
            _assert_holds_what_was_written(saved, flushed_ms)
    found = validate_listmode(left)
    assert found.is_sound, found.faults


class _Recorded(GuardedFile):
    """Remembers what reaches the disk, in order: bytes at a place, or a new length."""

    log: ClassVar[list[tuple[int, bytes | None]]] = []

    def _put(self, at: int, view: memoryview) -> None:
        if len(view):
            self.log.append((at, bytes(view)))
        super()._put(at, view)

    def _cut(self, size: int) -> None:
        self.log.append((size, None))
        super()._cut(size)


def _change(image: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del image[at:]
        image.extend(bytes(at - len(image)))
    else:
        image.extend(bytes(max(at + len(data) - len(image), 0)))
        image[at : at + len(data)] = data


def test_plain_file_opens_between_any_two_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state that a kill can leave on the disk, and not only those that chance finds.

    The walk is that of the child process which looks at a file first.
    """
    monkeypatch.setattr(_hdf5_writer, "GuardedFile", _Recorded)
    monkeypatch.setattr(_Recorded, "log", [])
    scan = random_scan(1, n_prompts=40_000, n_delayeds=9_000, n_ticks=N_TICKS, has_truth=True)
    writer = ListmodeWriter(
        tmp_path / "scan.h5", scanner=scan.scanner, protocol=scan.protocol, has_truth=True
    )
    n_writes = []
    for _ in range(18):
        writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset), scan.truth)
        writer.append("delayeds", scan.delayeds, np.diff(scan.tick_offset("delayeds")))
        n_writes.append(len(_Recorded.log))
    writer.close()
    n_first = 15  # some chunks of each column are flushed by then
    image = bytearray()
    was_whole = False
    for k, (at, data) in enumerate(_Recorded.log):
        _change(image, at, data)
        if k + 1 < n_writes[n_first - 1]:
            continue
        n_parts = int(np.searchsorted(n_writes, k + 1, side="right"))
        (tmp_path / "killed.h5").write_bytes(image)
        walk_hdf5(str(tmp_path / "killed.h5"))
        with Hdf5Listmode(tmp_path / "killed.h5") as read:
            _assert_holds_what_was_written(read, _flushed_by_plain_writer(n_parts))
            assert read.is_complete or not was_whole
            was_whole = read.is_complete
    assert was_whole
    assert image == (tmp_path / "scan.h5").read_bytes()


def test_killed_and_finished_files_hold_the_same(tmp_path: Path) -> None:
    """The two layouts end as the same file: same events, same ticks, same structure."""
    for layout in ("plain", "live"):
        subprocess.run(
            [sys.executable, "-c", WRITER, str(tmp_path / f"{layout}.h5"), layout, "5"],
            check=True, cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert validate_listmode(tmp_path / f"{layout}.h5").is_sound
    with (
        open_listmode(tmp_path / "plain.h5") as one,
        open_listmode(tmp_path / "live.h5") as two,
    ):
        assert one.extent == two.extent
        for stream in STREAMS:
            n = one.n_events(stream)
            assert two.n_events(stream) == n
            assert same_events(one.read(stream, 0, n), two.read(stream, 0, n))
