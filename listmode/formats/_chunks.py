"""Read chunked HDF5 columns through a map of the file, at the speed of a copy.

The HDF5 library checks and copies a chunk several times more slowly; a column that is laid out
as our writer does it is read here, any other one by the library.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats import _kernels

U8 = NDArray[np.uint8]
_CHECKSUM_BYTES = 4
_SUMS = "chunk_sums"


def index_faults(dataset: h5py.Dataset) -> str:
    """Say what is wrong with the index of a dataset's chunks; nothing if it is whole.

    In files that older libraries can read, that index carries no checksum, and the library
    gives zeros, without an error, for a chunk that the index has lost: events of crystal
    0, a geometry of zeros.
    """
    if dataset.chunks is None:
        return ""
    offsets: list[tuple[int, ...]] = []
    places: list[int] = []
    n_unchecked = 0

    def note(info: Any) -> None:
        nonlocal n_unchecked
        offsets.append(info.chunk_offset)
        places.append(info.byte_offset)
        n_unchecked += info.filter_mask != 0

    try:
        dataset.id.chunk_iter(note)
    except (RuntimeError, OSError) as error:
        return f"its index of chunks cannot be read ({str(error)[:80]})"
    wanted = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    inside = {
        at
        for at in offsets
        if all(
            0 <= o < n and o % c == 0
            for o, n, c in zip(at, dataset.shape, dataset.chunks, strict=True)
        )
    }
    if not len(inside) == len(set(places)) == len(offsets) == wanted:
        return f"its index names {len(inside)} of {wanted} chunks in {len(set(places))} places"
    if n_unchecked and dataset.fletcher32:
        return f"{n_unchecked} of its chunks are marked as without checksum"
    if dataset.fletcher32 and (noted := _noted_sums(dataset, wanted)) is not None:
        raw = [dataset.id.read_direct_chunk(at)[1] for at, _, _ in _places(dataset)]
        found = [int.from_bytes(chunk[-_CHECKSUM_BYTES:], "little") for chunk in raw]
        if any(not sum_ and noted[k] for k, sum_ in enumerate(found)):
            return "its index leads to zeros that were not written"
    return ""


def note_sums(file: h5py.File, read_at: Callable[[int, int], bytes]) -> None:
    """Store the checksums of all chunks once more, where a checksum guards them too.

    The index of chunks carries none in files that older libraries can read. If it leads to
    zeros, their checksum of 0 fits; only this note tells that they are not what was written.
    Other values than those written are not refused: a user may edit a file.

    Parameters
    ----------
    file
        A flushed file, open for writing.
    read_at
        Reads n bytes of the file from an offset.
    """

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks and item.fletcher32:
            ends = [offset + size for _, offset, size in _places(item)]
            data = b"".join(read_at(end - _CHECKSUM_BYTES, _CHECKSUM_BYTES) for end in ends)
            item.attrs[_SUMS] = np.frombuffer(data, "<u4")

    file.visititems(note)


def _places(dataset: h5py.Dataset) -> list[tuple[tuple[int, ...], int, int]]:
    """Give offset in the array, place and size of each chunk, in order of the first."""
    found: list[tuple[tuple[int, ...], int, int]] = []

    def note(info: Any) -> None:
        found.append((info.chunk_offset, info.byte_offset, info.size))

    dataset.id.chunk_iter(note)
    return sorted(found)


def _noted_sums(dataset: h5py.Dataset, n_chunks: int) -> NDArray[np.int64] | None:
    """Give the noted checksums, ``None`` if there are none; -1 for each if they do not fit."""
    try:
        if _SUMS not in dataset.attrs:
            return None
        noted = np.asarray(dataset.attrs[_SUMS])
    except (OSError, RuntimeError, TypeError, ValueError):
        return np.full(n_chunks, -1)
    if noted.dtype.kind != "u" or noted.shape != (n_chunks,):
        return np.full(n_chunks, -1)
    return noted.astype(np.int64)


class Column:
    """One column of events.

    Parameters
    ----------
    dataset
        The column.
    mapped
        All bytes of the file. Shape (n_bytes,), uint8.
    name
        What to call it in a message.
    """

    def __init__(self, dataset: h5py.Dataset, mapped: U8, name: str) -> None:
        self._dataset = dataset
        self._mapped = mapped
        self._name = name
        self._length = int(dataset.shape[0])
        self._dtype = np.dtype(dataset.dtype)
        self._offset, self._is_mapped = self._find_chunks()
        self._checked = np.zeros(len(self._offset), bool)
        self._sums = _noted_sums(dataset, len(self._offset)) if self._is_mapped else None

    def _find_chunks(self) -> tuple[NDArray[np.int64], bool]:
        """Give where each chunk begins (-1: not one place), and if it can be read there."""
        d = self._dataset
        self._chunk = int(d.chunks[0]) if d.chunks is not None else max(self._length, 1)
        offset = np.full(-(-self._length // self._chunk), 0, np.int64)
        if d.chunks is None:
            return offset, False
        plain = d.compression is None and not d.shuffle and d.scaleoffset is None
        is_mapped = bool(d.fletcher32 and plain and self._dtype.byteorder != ">")
        is_mapped &= self._chunk % 2 == 0  # the sums are over whole words
        size = self._chunk * self._dtype.itemsize + _CHECKSUM_BYTES
        end = len(self._mapped) if is_mapped else 2**62  # a live file may have grown since
        found: list[tuple[int, int]] = []

        def note(info: Any) -> None:
            k, rest = divmod(info.chunk_offset[0], self._chunk)
            whole = info.size == size and not info.filter_mask
            is_inside = k < len(offset) and info.byte_offset + info.size <= end
            if rest == 0 and is_inside and (whole or not is_mapped):
                found.append((k, info.byte_offset))

        with contextlib.suppress(RuntimeError, OSError):
            d.id.chunk_iter(note)
        number, place = np.array(found, np.int64).reshape(-1, 2).T
        once = np.ones(len(number), bool)
        for values in (number, place):  # of two that claim to be one, none can be trusted
            _, inverse, n = np.unique(values, return_inverse=True, return_counts=True)
            once &= n[inverse] == 1
        offset[:] = -1
        offset[number[once]] = place[once]
        return offset, is_mapped

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read values ``[start, stop)``.

        Raises
        ------
        InputError
            If a checksum does not fit or the file does not say where a chunk lies.
        """
        start, stop = max(start, 0), min(stop, self._length)
        first, last = start // self._chunk, -(-stop // self._chunk) if stop > start else 0
        if (lost := np.flatnonzero(self._offset[first:last] < 0)).size:
            k = first + int(lost[0])
            raise self._damaged(k * self._chunk, (k + 1) * self._chunk, "no place in the index")
        if not self._is_mapped:
            return self._by_library(start, stop)
        out = np.empty(max(stop - start, 0), self._dtype)
        n = self._chunk
        for k in range(first, last):
            chunk = self._values(k)
            low, high = max(start - k * n, 0), min(stop - k * n, n)
            out[k * n + low - start : k * n + high - start] = chunk[low:high]
        return out

    def _values(self, k: int) -> NDArray[Any]:
        """Give a chunk's values, its checksum checked once."""
        at = int(self._offset[k])
        end = at + self._chunk * self._dtype.itemsize
        data = self._mapped[at:end]
        if not self._checked[k]:
            stored = int.from_bytes(
                self._mapped[end : end + _CHECKSUM_BYTES].tobytes(), "little"
            )
            words = data.view("<u2")
            if _kernels.fletcher32(words if words.flags.aligned else words.copy()) != stored:
                first = k * self._chunk
                raise self._damaged(first, first + self._chunk, "checksum error")
            if stored == 0 and self._sums is not None and self._sums[k]:
                first = k * self._chunk
                raise self._damaged(first, first + self._chunk, "zeros that were not written")
            self._checked[k] = True
        return data.view(self._dtype)

    def _by_library(self, start: int, stop: int) -> NDArray[Any]:
        try:
            values: NDArray[Any] = self._dataset[start:stop]
        except (OSError, RuntimeError) as error:
            raise self._damaged(start, stop, str(error)[:80]) from None
        return values

    def _damaged(self, start: int, stop: int, why: str) -> InputError:
        return InputError(
            f"{self._name} must be readable, but its events {start}-{stop} are damaged "
            f"({why}); repair the file or copy it again"
        )
