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


def index_faults(dataset: h5py.Dataset, mapped: U8 | None = None) -> str:
    """Say what is wrong with the index of a dataset's chunks; nothing if it is whole.

    Checksums are taken from ``mapped``, all bytes of the file, if it is given. In files that
    older libraries can read, that index carries no checksum, and the library gives zeros,
    without an error, for a chunk that the index has lost: events of crystal 0, a geometry of
    zeros.
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
    shape, chunks = dataset.shape, dataset.chunks  # properties that ask the library each time
    wanted = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    inside = {
        at
        for at in offsets
        if all(0 <= o < n and o % c == 0 for o, n, c in zip(at, shape, chunks, strict=True))
    }
    if not len(inside) == len(set(places)) == len(offsets) == wanted:
        return f"its index names {len(inside)} of {wanted} chunks in {len(set(places))} places"
    if n_unchecked and dataset.fletcher32:
        return f"{n_unchecked} of its chunks are marked as without checksum"
    if dataset.fletcher32 and (noted := _noted_sums(dataset, wanted)) is not None:
        if mapped is None:
            raw = [dataset.id.read_direct_chunk(at)[1] for at, _, _ in _places(dataset)]
        else:
            ends = [at + size for _, at, size in _places(dataset)]
            raw = [mapped[end - _CHECKSUM_BYTES : end].tobytes() for end in ends]
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


def read_whole(dataset: h5py.Dataset, mapped: U8) -> NDArray[Any] | None:
    """Read a dataset whose index is whole; ``None`` if it is not laid out as our writer does.

    Parameters
    ----------
    dataset
        Chunked, of any number of dimensions.
    mapped
        All bytes of the file. Shape (n_bytes,), uint8.

    Raises
    ------
    InputError
        If a checksum does not fit.
    """
    dtype = np.dtype(dataset.dtype)
    if not _is_plain(dataset) or dtype.kind not in "fiu":
        return None
    shape, chunks = dataset.shape, dataset.chunks  # properties that ask the library each time
    n_bytes = math.prod(chunks) * dtype.itemsize
    out = np.empty(shape, dtype)
    for at, place, size in _places(dataset):
        if size != n_bytes + _CHECKSUM_BYTES or place + size > len(mapped) or n_bytes % 2:
            return None
        data = mapped[place : place + n_bytes]
        if _checksum(data) != _stored_checksum(mapped, place + n_bytes):
            raise InputError(
                f"{dataset.name} must be whole, but a checksum does not fit; copy or write the "
                "file again"
            )
        inside = tuple(slice(min(c, n - o)) for o, c, n in zip(at, chunks, shape, strict=True))
        target = tuple(slice(o, o + c) for o, c in zip(at, chunks, strict=True))
        out[target] = data.view(dtype).reshape(chunks)[inside]
    return out


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Say whether chunks are values as they are, with a checksum behind them."""
    plain = dataset.compression is None and not dataset.shuffle and dataset.scaleoffset is None
    return bool(dataset.fletcher32 and plain and dataset.dtype.byteorder != ">")


def _checksum(data: U8) -> int:
    return int(_kernels.fletcher32(data.view("<u2")))  # at any byte, also an odd one


def _stored_checksum(mapped: U8, at: int) -> int:
    return int.from_bytes(mapped[at : at + _CHECKSUM_BYTES].tobytes(), "little")


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
        is_mapped = _is_plain(d)
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
            stored = _stored_checksum(self._mapped, end)
            if _checksum(data) != stored:
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
