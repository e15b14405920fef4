"""What readers of files mapped into memory have in common: the map and the hash."""

from __future__ import annotations

import hashlib
import mmap
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats._coverage import CoveredListmode
from listmode.source import I64, Stream

MAX_TICKS = 12 * 3600 * 1000
"""Longest scan, ms: a longer one comes from a damaged clock and would fill the memory."""


class MappedListmode(CoveredListmode):
    """A listmode file whose bytes are mapped and decoded when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: dict[Stream, I64] = {}

    @cached_property
    def _hash(self) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def file_hash(self) -> str:
        """SHA-256 of the file's bytes."""
        return self._hash

    def tick_offset(self, stream: Stream = "prompts") -> I64:
        """Give the number of the first event of each tick."""
        return self._offset[stream]

    def _set_ticks(self, stream: Stream, tick: I64, n_events: I64) -> None:
        """Make the tick index of a stream from counts at ascending ticks (from start_ms)."""
        per_tick = np.zeros(self.stop_ms - self.start_ms + 1, np.int64)
        np.add.at(per_tick[1:], tick, n_events)
        np.cumsum(per_tick, out=per_tick)
        per_tick.setflags(write=False)
        self._offset[stream] = per_tick

    def _check_length(self) -> None:
        """Refuse a clock that no scan has.

        Raises
        ------
        InputError
            If the scan lasts longer than 12 hours.
        """
        if self.stop_ms - self.start_ms > MAX_TICKS:
            raise InputError(
                f"a scan must last at most 12 h, but {self._path.name!r} counts from "
                f"{self.start_ms} to {self.stop_ms} ms; its clock is damaged: copy it again"
            )


def is_file(path: Path) -> bool:
    """Say whether a path that a file names is a file; a name too long for the disk is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def map_file(path: Path, dtype: str | np.dtype[Any]) -> NDArray[Any]:
    """Map a file as an array of whole items; bytes that do not fill an item stay out.

    Raises
    ------
    InputError
        If the file cannot be read or holds not one item.
    """
    size = np.dtype(dtype).itemsize
    try:
        n = path.stat().st_size // size
        if n == 0:
            raise InputError(
                f"a listmode file must hold data, but {path.name!r} is empty; copy it again"
            )
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), n * size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(
            f"a listmode file must be readable, but {path.name!r} is not: {error.strerror}; "
            "check its path and permissions"
        ) from None
    return np.frombuffer(mapped, dtype, n)
