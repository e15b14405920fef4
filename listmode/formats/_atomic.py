"""Files appear whole or not at all: write beside the target, then move into place."""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from listmode.errors import InputError
from listmode.formats import _sandbox

_REASONS = {
    errno.ENOSPC: ("the disk must have room for it", "the disk is full", "free some space"),
    errno.EDQUOT: (
        "the quota must have room for it",
        "the quota is used up",
        "free some space",
    ),
    errno.EFBIG: (
        "the file system must allow its size",
        "the largest allowed file size was reached",
        "raise the limit or write elsewhere",
    ),
    errno.EACCES: ("the folder must be writable", "it is not", "choose another folder"),
    errno.EPERM: ("the folder must be writable", "it is not", "choose another folder"),
    errno.EROFS: ("the folder must be writable", "it is read-only", "choose another folder"),
    errno.ENOENT: ("the folder must exist", "it does not", "make the folder first"),
    errno.ENOTDIR: ("the folder must exist", "it does not", "make the folder first"),
}


def part_path(path: Path) -> Path:
    """Name the file that is written before it takes its final name.

    It lies in the same folder, so that the move is atomic, and carries the process number and
    a number of its own, so that two writers of one file do not mix, be they processes or
    threads, on one machine or two: the last to finish wins.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def write_error(path: Path, error: OSError) -> InputError:
    """Say in words why a file could not be written."""
    number = error.errno
    if number is None:  # HDF5 often keeps the number only in its text
        numbers = [n for n in _REASONS if f"errno = {n}," in str(error)]
        number = numbers[0] if numbers else None
    must, found, do = _REASONS.get(
        number if number is not None else -1,
        ("it must be possible to write there", str(error), "choose another place"),
    )
    return InputError(
        f"to write {path.name!r}, {must}, but {found}; {do}. Nothing was left under that name"
    )


def publish(part: Path, path: Path) -> None:
    """Put a finished file under its final name, safe against a power cut."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _sandbox.trust(path)
    with contextlib.suppress(OSError):  # not every system can open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; move it into place if all goes well.

    Raises
    ------
    InputError
        If the disk is full or the folder cannot be written to; nothing is left behind.
    """
    part = part_path(path)
    try:
        yield part
        publish(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise write_error(path, error) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class GuardedFile:
    """A file for HDF5 that never fails towards the library, but remembers that it did.

    The HDF5 library crashes the process if a file cannot be written while it closes it
    (measured with HDF5 1.14: a full disk ends in a segmentation fault). So a failed write is
    kept in memory, where the library can read it back, and :meth:`check` raises it.

    Between :meth:`hold` and :meth:`release` bytes go to the disk at once where nothing was
    written before, and changes to what was there wait. Then the head of the file goes first,
    which says how far the file reaches, and the others follow: so nothing on the disk names
    what is not there yet, or what lies beyond the end that the head gives, whenever the process
    is killed. The library itself writes changes in any order.
    """

    def __init__(self, path: Path) -> None:
        self._raw = path.open("w+b", buffering=0)
        self._lost: list[tuple[int, bytes]] = []
        self._waiting: list[tuple[int, bytes]] = []
        self._is_held = False
        self._written: list[int] = []  # starts and ends of what was written, ascending
        self._error: OSError | None = None
        self._at = 0
        self._end = 0

    def check(self) -> None:
        """Raise the first error that a write met.

        Raises
        ------
        OSError
            If a write failed.
        """
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the file itself."""
        self._raw.close()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset from the start (0), the place (1) or the end (2)."""
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        """Give the place."""
        return self._at

    def write(self, data: bytes | memoryview) -> int:
        """Write all data here, to the disk or, once that failed, to memory."""
        view = memoryview(data).cast("B")
        if self._is_held and self._was_written(self._at, self._at + len(view)):
            self._waiting.append((self._at, bytes(view)))
        else:
            self._put(self._at, view)
        self._note_written(self._at, self._at + len(view))
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def _put(self, at: int, view: memoryview) -> None:
        done = 0
        while done < len(view) and self._error is None:
            try:
                self._raw.seek(at + done)
                done += self._raw.write(view[done:]) or 0
            except OSError as error:
                self._error = error
        if done < len(view):
            self._lost.append((at + done, bytes(view[done:])))

    def _was_written(self, first: int, last: int) -> bool:
        """Say whether any byte of ``[first, last)`` was written before."""
        k = bisect.bisect_right(self._written, first)
        return k % 2 == 1 or (k < len(self._written) and self._written[k] < last)

    def _note_written(self, first: int, last: int) -> None:
        low = bisect.bisect_left(self._written, first)
        high = bisect.bisect_right(self._written, last)
        ends = [first] * (low % 2 == 0) + [last] * (high % 2 == 0)
        self._written[low:high] = ends

    def hold(self) -> None:
        """Let changes to what the file holds now wait."""
        self._is_held = True

    def release(self) -> None:
        """Make the changes that wait: the file's head first."""
        waiting, self._waiting, self._is_held = self._waiting, [], False
        for at, data in sorted(waiting, key=lambda change: change[0] != 0):
            self._put(at, memoryview(data))
        self._cut(self._end)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer from here; what was never written reads as zeros."""
        view = memoryview(buffer).cast("B")
        self._raw.seek(self._at)
        n = self._raw.readinto(view) or 0
        view[n:] = bytes(len(view) - n)
        for offset, data in (*self._waiting, *self._lost):
            first, last = max(offset, self._at), min(offset + len(data), self._at + len(view))
            if first < last:
                view[first - self._at : last - self._at] = data[first - offset : last - offset]
        self._at += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes from here (h5py tells a file by this method)."""
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def read_at(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes from an offset."""
        self.seek(offset)
        return self.read(size)

    def truncate(self, size: int) -> int:
        """Set the file's length."""
        is_shorter, self._end = size < self._end, size
        if not (is_shorter and self._is_held):
            self._cut(size)
        return size

    def _cut(self, size: int) -> None:
        if self._error is None:
            try:
                self._raw.truncate(size)
            except OSError as error:
                self._error = error

    def flush(self) -> None:
        """Do nothing: no byte waits here."""


def limited_inflate(data: bytes, size: int) -> bytes:
    """Inflate to exactly ``size`` bytes; data that grow beyond are refused before they do.

    Raises
    ------
    ValueError
        If the data are damaged or hold another number of bytes.
    """
    machine = zlib.decompressobj()
    try:
        out = machine.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"compressed data are damaged: {error}") from None
    if len(out) != size:
        raise ValueError(f"compressed data hold {len(out)} bytes or more, not {size}")
    return out
