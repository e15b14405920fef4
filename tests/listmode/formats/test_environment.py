"""What disks, folders, pipes and other processes do to files, and what a user wants then."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.convert import convert_listmode, files_of, repair_listmode, thin_listmode
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.live import LiveListmodeWriter
from listmode.formats.validate import validate_listmode
from listmode.memory import MemoryListmode
from tests.strategies import joined, random_scan, same_events

ROOT = Path(__file__).parents[3]
ENDINGS = (".h5", ".petsird", ".cdh")
posix = pytest.mark.skipif(sys.platform == "win32", reason="as POSIX has it")


@pytest.fixture
def scan() -> MemoryListmode:
    return random_scan(1)


def write_live(scan: MemoryListmode, path: Path) -> None:
    with LiveListmodeWriter(path, scanner=scan.scanner, protocol=scan.protocol) as writer:
        writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset))
        writer.append("delayeds", scan.delayeds, np.diff(scan.tick_offset("delayeds")))


# ---- names


@pytest.mark.parametrize("ending", ENDINGS)
def test_paths_may_hold_spaces_and_letters_of_all_languages(
    tmp_path: Path, scan: MemoryListmode, ending: str
) -> None:
    folder = tmp_path / "Ünïcode 走査 'folder' (1)"
    folder.mkdir()
    path = folder / f"скан é 1{ending}"
    convert_listmode(scan, path)
    assert {p.name for p in folder.iterdir()} == {p.name for p in files_of(path)}
    with open_listmode(path) as read:
        assert same_events(joined(list(read.events())), scan.prompts)
        thin_listmode(read, folder / "dünn 1.h5", 0.5, seed=1)
    assert validate_listmode(folder / "dünn 1.h5").is_sound


def test_live_file_may_have_such_a_name_too(tmp_path: Path, scan: MemoryListmode) -> None:
    (tmp_path / "走査 1").mkdir()
    write_live(scan, tmp_path / "走査 1" / "é.h5")
    assert [p.name for p in (tmp_path / "走査 1").iterdir()] == ["é.h5"]


# ---- folders that cannot be written to


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take away the right to write; root would have it still, so be somebody else meanwhile."""
    is_root = os.geteuid() == 0
    folder.chmod(0o555)
    if is_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read."""
    folder = Path(tempfile.mkdtemp(prefix="stillpet-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@posix
@pytest.mark.parametrize("ending", ENDINGS)
def test_read_only_folder_is_told_and_its_scan_is_read(
    open_folder: Path, scan: MemoryListmode, ending: str
) -> None:
    path = open_folder / f"scan{ending}"
    convert_listmode(scan, path)  # also compiles what is needed, while it can be cached
    with open_listmode(path) as read:
        joined(list(read.events()))
    before = {p: p.read_bytes() for p in open_folder.iterdir()}
    with read_only(open_folder):
        with pytest.raises(InputError, match="the folder must be writable, but it is not"):
            convert_listmode(scan, path)
        with open_listmode(path) as read:
            assert same_events(joined(list(read.events())), scan.prompts)
    assert {p: p.read_bytes() for p in open_folder.iterdir()} == before


@posix
def test_live_writer_tells_of_a_read_only_folder(
    open_folder: Path, scan: MemoryListmode
) -> None:
    with (
        read_only(open_folder),
        pytest.raises(InputError, match="the folder must be writable, but it is not"),
    ):
        write_live(scan, open_folder / "scan.h5")
    assert list(open_folder.iterdir()) == []


@posix
def test_file_without_the_right_to_read_is_told(
    open_folder: Path, scan: MemoryListmode
) -> None:
    path = open_folder / "scan.h5"
    cut_listmode(scan, scan.extent, path)
    path.chmod(0)
    with (
        read_only(open_folder),
        pytest.raises(InputError, match=r"'scan\.h5' is not: Permission denied"),
    ):
        open_listmode(path)


# ---- full disks

FULL = """
import resource, sys
from pathlib import Path
from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.convert import convert_listmode, repair_listmode, thin_listmode
source, out, what, limit = sys.argv[1:]
with open_listmode(source) as scan:
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        if what == "thin":
            thin_listmode(scan, out, 0.9, seed=1)
        elif what == "repair":
            repair_listmode(source, out)
        else:
            convert_listmode(scan, out)
        print("done")
    except InputError as error:
        print(error)
"""


def _write_with_little_room(source: Path, out: Path, what: str, limit: int) -> str:
    """Write in a process apart, under a limit of file size or, with 0, without one."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(source), str(out), what, str(limit)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big.h5"
    scan = random_scan(2, n_prompts=1_200_000, n_delayeds=200_000, n_ticks=300)
    cut_listmode(scan, scan.extent, path)
    return path


CASES = [("convert", e) for e in ENDINGS] + [("thin", ".h5"), ("repair", ".h5")]


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits and their signal")
@pytest.mark.parametrize(("what", "ending"), CASES)
def test_file_that_may_not_grow_is_one_clean_error_and_leaves_nothing(
    tmp_path: Path, big: Path, what: str, ending: str
) -> None:
    said = _write_with_little_room(big, tmp_path / f"out{ending}", what, 1_500_000)
    assert "the file system must allow its size" in said
    assert "Nothing was left under that name" in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@posix
@pytest.mark.parametrize(("what", "ending"), CASES)
def test_full_disk_is_one_clean_error_and_leaves_nothing(
    small_disk: Path, big: Path, what: str, ending: str
) -> None:
    said = _write_with_little_room(big, small_disk / f"out{ending}", what, 0)
    assert "the disk must have room for it, but the disk is full" in said
    assert list(small_disk.iterdir()) == []


# ---- pipes


@posix
def test_pipe_in_place_of_a_scan_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.petsird")
    with pytest.raises(InputError, match=r"a regular file, but 'pipe\.petsird' is a pipe"):
        open_listmode(tmp_path / "pipe.petsird")


@pytest.mark.slow
@posix
def test_standard_input_is_read_if_it_is_a_file_and_refused_if_a_pipe(
    tmp_path: Path, scan: MemoryListmode
) -> None:
    convert_listmode(scan, tmp_path / "scan.petsird")
    code = "from recon.cli import main; main()"
    command = [sys.executable, "-c", code, "info", "/dev/stdin"]
    with (tmp_path / "scan.petsird").open("rb") as file:
        done = subprocess.run(
            command, stdin=file, capture_output=True, text=True, check=False, cwd=ROOT
        )
    assert done.returncode == 0, done.stderr
    assert "prompts     500" in done.stdout
    done = subprocess.run(
        command, input="x" * 9999, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert "'stdin' is a pipe or device; give the file itself, stored on disk" in done.stderr


@pytest.mark.slow
@posix
def test_pipe_in_place_of_the_new_file_is_left_alone(tmp_path: Path, big: Path) -> None:
    out = tmp_path / "out.h5"
    os.mkfifo(out)
    done = subprocess.run(
        [sys.executable, "-c", "from recon.cli import main; main()", "cut", str(big), str(out),
         "--windows", "0-0.1", "--force"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "must be a regular file, but 'out.h5' is a folder, a pipe or a device" in done.stderr
    assert stat.S_ISFIFO(out.stat().st_mode)


# ---- two writers


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_two_processes_that_write_one_file_leave_one_whole_file(
    tmp_path: Path, big: Path, ending: str
) -> None:
    out = tmp_path / f"out{ending}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FULL, str(big), str(out), "convert", "0"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [process.communicate()[0] for process in both] == ["done\n"] * 2
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in files_of(out)}
    found = validate_listmode(out)
    assert (found.n_prompts, found.n_delayeds) == (1_200_000, 200_000)
    assert found.is_sound, found.faults


def test_two_threads_that_write_one_file_leave_one_whole_file(
    tmp_path: Path, big: Path
) -> None:
    def write() -> None:
        with open_listmode(big) as scan:
            convert_listmode(scan, tmp_path / "out.petsird")

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["out.petsird"]
    assert validate_listmode(tmp_path / "out.petsird").is_sound


def test_file_that_is_replaced_while_it_is_read_goes_on_as_it_was(
    tmp_path: Path, scan: MemoryListmode
) -> None:
    path = tmp_path / "scan.h5"
    cut_listmode(scan, scan.extent, path)
    with open_listmode(path) as read:
        other = random_scan(2, n_prompts=77)
        cut_listmode(other, other.extent, path)
        assert same_events(joined(list(read.events())), scan.prompts)
    with open_listmode(path) as read:
        assert read.n_events() == 77


def test_unfinished_part_of_another_writer_is_repaired_beside_it(
    tmp_path: Path, scan: MemoryListmode
) -> None:
    writer = LiveListmodeWriter(
        tmp_path / "live.h5", scanner=scan.scanner, protocol=scan.protocol
    )
    writer.append("prompts", scan.prompts, np.diff(scan.prompts_offset))
    writer.append("delayeds", scan.delayeds, np.diff(scan.tick_offset("delayeds")))
    writer.flush()
    repair_listmode(tmp_path / "live.h5", tmp_path / "now.h5")
    assert validate_listmode(tmp_path / "now.h5").is_sound
    writer.close()
    assert validate_listmode(tmp_path / "live.h5").is_sound
