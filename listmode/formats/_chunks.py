"""Read chunked HDF5 columns through a map of the file, at the speed of a copy.

The HDF5 library checks and copies a chunk several times more slowly; a column that is laid out
as our writer does it is read here, any other one by the library.
"""

from __future__ import annotations

import contextlib
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats import _kernels

U8 = NDArray[np.uint8]
_CHECKSUM_BYTES = 4


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
        self._offset = self._find_chunks()
        self._checked = np.zeros(len(self._offset), bool)

    def _find_chunks(self) -> NDArray[np.int64]:
        """Give where each chunk begins, or nothing if the library must read this column."""
        d = self._dataset
        plain = d.compression is None and not d.shuffle and d.scaleoffset is None
        none = np.empty(0, np.int64)
        if d.chunks is None or not d.fletcher32 or not plain or self._dtype.byteorder == ">":
            return none
        self._chunk = int(d.chunks[0])
        size = self._chunk * self._dtype.itemsize + _CHECKSUM_BYTES
        offset = np.full(-(-self._length // self._chunk), -1, np.int64)

        def note(info: Any) -> None:
            k = info.chunk_offset[0] // self._chunk
            whole = info.size == size and info.byte_offset + size <= len(self._mapped)
            if k < len(offset) and info.filter_mask == 0 and whole:
                offset[k] = info.byte_offset

        with contextlib.suppress(RuntimeError, OSError):
            d.id.chunk_iter(note)
        return offset if (offset >= 0).all() and self._chunk % 2 == 0 else none

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read values ``[start, stop)``.

        Raises
        ------
        InputError
            If a checksum does not fit.
        """
        start, stop = max(start, 0), min(stop, self._length)
        if not len(self._offset):
            return self._by_library(start, stop)
        out = np.empty(max(stop - start, 0), self._dtype)
        n = self._chunk
        for k in range(start // n, -(-stop // n) if stop > start else 0):
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
