"""The child process that meets untrusted HDF5 and ROOT files first."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import _sandbox, open_listmode
from listmode.formats._sandbox import check_in_child
from listmode.formats._sandbox_child import Refused, walk_hdf5
from listmode.formats.hdf5 import cut_listmode
from tests.fuzz_mutations import BOMB
from tests.strategies import random_scan

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")


def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a script in the place of the child, and give a file for it."""
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(_sandbox, "_CHILD", tmp_path / "child.py")
    (tmp_path / "file.h5").write_bytes(b"anything")
    return tmp_path / "file.h5"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "a crash: signal 11"),
        ("import os; os.abort()", "a crash: signal 6"),
        ("import ctypes; ctypes.string_at(0)", "a crash: signal 11"),
        ("raise SystemExit(7)", "a crash: exit 7"),
        ("raise OSError('what a library says')", "exit 1 OSError: what a library says"),
        (
            "print('a loop of links', end=''); raise SystemExit(3)",
            "found a loop of links; copy",
        ),
    ],
)
def test_what_ends_the_child_is_a_clean_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    path = play(tmp_path, monkeypatch, script)
    with pytest.raises(InputError, match=f"'file.h5' must be a whole HDF5 file.*{message}"):
        check_in_child(path, "hdf5")


def test_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = play(tmp_path, monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(_sandbox, "MAX_WALL_S", 0.5)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"found no end within 0\.5 s"):
        check_in_child(path, "hdf5")
    assert time.monotonic() - start < 30.0


LIMITS = """import sys
sys.path.insert(0, {folder!r})
import _sandbox_child as child
child.limit(int(sys.argv[3]), int(sys.argv[4]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of Linux")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("block = bytearray(1 << 31); print(len(block))", "a crash: exit 1 MemoryError"),
        ("while True: pass", "a crash: signal (9|24)"),  # the processor time is limited
    ],
)
def test_child_cannot_take_more_memory_or_time_than_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    folder = str(Path(_sandbox.__file__).parent)
    path = play(tmp_path, monkeypatch, LIMITS.format(folder=folder) + script)
    monkeypatch.setattr(_sandbox, "MAX_CPU_S", 1)
    with pytest.raises(InputError, match=message):
        check_in_child(path, "hdf5")


def make(tmp_path: Path, change: Callable[[h5py.File], object]) -> Path:
    """Write a scan, and change it as one who means harm would."""
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        change(file)
    return tmp_path / "scan.h5"


def add_packed_chunk(file: h5py.File) -> None:
    """Store a chunk that inflates to more than its dataset says."""
    bomb = file.create_dataset("b", (64,), "u1", chunks=(64,), compression="gzip")
    bomb.id.write_direct_chunk((0,), BOMB * 10)


def add_virtual(file: h5py.File) -> None:
    """Add a dataset whose values lie in another file."""
    layout = h5py.VirtualLayout(shape=(3,), dtype="<u4")
    layout[...] = h5py.VirtualSource("other.h5", "x", shape=(3,))
    file.create_virtual_dataset("v", layout)


def add_external(file: h5py.File) -> None:
    """Add a dataset whose bytes are those of a file of passwords."""
    file.create_dataset("v", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def add_loop(file: h5py.File) -> None:
    """Hang the root into itself."""
    file["again"] = file


def add_link(file: h5py.File) -> None:
    """Lead to another file."""
    file["v"] = h5py.ExternalLink("other.h5", "/prompts")


def add_chunk(file: h5py.File) -> None:
    """Ask for a chunk of 2 GiB."""
    file.create_dataset("v", (1 << 31,), "u1", chunks=(1 << 31,))


def add_filter(file: h5py.File) -> None:
    """Use a filter that this project never writes."""
    file.create_dataset("v", (100,), "i4", chunks=(100,), compression="lzf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_packed_chunk, "a compressed chunk of 652"),
        (add_virtual, "a dataset that lies in other files"),
        (add_external, "a dataset that lies in other files"),
        (add_loop, "more than 1000 objects, or a loop of links"),
        (add_link, "a link that leads elsewhere"),
        (add_chunk, "in chunks of 2147483648"),
        (add_filter, "a filter that is none of deflate"),
    ],
)
def test_forged_files_are_refused_with_what_was_found(
    tmp_path: Path, change: Callable[[h5py.File], object], message: str
) -> None:
    path = make(tmp_path, change)
    with pytest.raises(Refused, match=message):
        walk_hdf5(str(path))
    with pytest.raises(InputError, match=f"must be a whole HDF5 file.*({message})"):
        open_listmode(path)


def test_bomb_in_place_of_the_tick_index_is_refused_before_it_is_read(tmp_path: Path) -> None:
    def exchange(file: h5py.File) -> None:
        del file["prompts/tick_offset"]
        bomb = file["prompts"].create_dataset(
            "tick_offset", (1 << 29,), "<i8", chunks=(1 << 23,), compression="gzip"
        )
        for k in range(64):  # 4 GiB of zeros in 4 MiB
            bomb.id.write_direct_chunk((k << 23,), BOMB)

    with pytest.raises(
        InputError, match="tick_offset must hold at most 43200001 plain numbers"
    ):
        open_listmode(make(tmp_path, exchange))


def test_compressed_files_of_others_are_walked_through(tmp_path: Path) -> None:
    def repack(file: h5py.File) -> None:
        values = file["prompts/tof_bin"][...]
        del file["prompts/tof_bin"]
        file["prompts"].create_dataset(
            "tof_bin", data=values, chunks=(100,), compression="gzip", shuffle=True
        )

    path = make(tmp_path, repack)
    scan = random_scan(1)
    with open_listmode(path) as read:
        assert np.array_equal(read.read("prompts", 0, 500).tof_bin, scan.prompts.tof_bin)


def test_attributes_of_all_kinds_are_walked_through(tmp_path: Path) -> None:
    """The walk reads them by h5py's lower level, which knows fewer kinds than the upper one."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, value in {
            "text": "ä", "bytes": b"x", "many": ["a", "b"], "none": h5py.Empty("f4"),
            "no text": h5py.Empty("S1"), "flag": True, "table": np.zeros((2, 3), ">i2"),
            "record": np.zeros(2, [("a", "i4"), ("b", "f8", 2)]), "nothing": np.zeros(0),
            "complex": 1j, "half": np.float16(1), "void": np.void(b"abc"),
        }.items():  # fmt: skip
            file.attrs[name] = value
        file.attrs.create("of arrays", np.zeros((2, 4)), dtype=np.dtype((float, 4)))
        rows = np.array([np.arange(3, dtype="i4"), np.arange(2, dtype="i4")], object)
        file.attrs.create("grows", rows, dtype=h5py.vlen_dtype("i4"))
        file.attrs.create("chosen", 1, dtype=h5py.enum_dtype({"one": 1}))
        file.attrs["leads"] = file.create_group("über").ref
    walk_hdf5(str(tmp_path / "x.h5"))


def test_a_file_is_walked_through_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    calls: list[Path] = []

    def walk(path: Path, kind: str) -> str:
        assert kind == "hdf5"
        calls.append(path)
        return ""

    monkeypatch.setattr(_sandbox, "_walk", walk)
    open_listmode(tmp_path / "scan.h5").close()
    assert calls == []  # this process wrote it
    shutil.copy(tmp_path / "scan.h5", tmp_path / "copy.h5")
    open_listmode(tmp_path / "copy.h5").close()
    open_listmode(tmp_path / "copy.h5").close()
    assert calls == [tmp_path / "copy.h5"]
    os.utime(tmp_path / "copy.h5", ns=(1, 1))
    open_listmode(tmp_path / "copy.h5").close()
    assert len(calls) == 2


def test_a_missing_file_is_left_to_the_reader(tmp_path: Path) -> None:
    check_in_child(tmp_path / "none.h5", "hdf5")
    with pytest.raises(InputError, match=r"'none\.h5' is not: No such file"):
        open_listmode(tmp_path / "none.h5")


def test_root_file_is_walked_through_in_a_child(tmp_path: Path) -> None:
    uproot = pytest.importorskip("uproot")
    path = tmp_path / "scan.root"
    with uproot.recreate(path) as file:
        file["Coincidences"] = {"time1": np.arange(100.0), "rsectorID1": np.arange(100)}
    check_in_child(path, "root")
    data = path.read_bytes()
    (tmp_path / "cut.root").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="must be a whole ROOT file"):
        check_in_child(tmp_path / "cut.root", "root")


def test_bomb_is_what_it_says() -> None:
    assert len(BOMB) < 1 << 17
    with h5py.File(BytesIO(), "w") as file:
        add_packed_chunk(file)
        assert file["b"].id.get_chunk_info(0).size > 1 << 19
