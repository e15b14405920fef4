"""Stillpet's own listmode file: HDF5 with event columns and a 1 ms tick index.

``docs/hdf5_format.md`` is its specification.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _hdf5_layout as layout
from listmode.formats._chunks import Column
from listmode.formats._copy import copy_events, writer_like
from listmode.formats._coverage import CoveredListmode
from listmode.formats._hdf5_check import structure_faults
from listmode.formats._hdf5_writer import ListmodeWriter
from listmode.formats._mapped import MAX_TICKS, map_file
from listmode.formats._sandbox import check_in_child
from listmode.progress import SILENT, Progress
from listmode.source import Listmode, Stream
from listmode.windows import Windows

__all__ = ["Hdf5Listmode", "ListmodeWriter", "cut_listmode"]

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_DAMAGES = (
    KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError,
    MemoryError,
)  # fmt: skip
"""What h5py and the constructors raise over metadata of a wrong kind, size or place."""
_MAX_WINDOWS = 1 << 20
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


class Hdf5Listmode(CoveredListmode):
    """A stillpet HDF5 listmode file, open for reading.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If it is no stillpet file, or is damaged so that not even part of it can be read.
    """

    format_name = "stillpet HDF5"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._open()

    def _open(self) -> None:
        self._mapped = map_file(self._path, "<u1")
        self._inode = self._path.stat().st_ino
        version = _checked_version(self._path, self._mapped)
        try:
            is_growing = version == layout.SUPERBLOCK_LIVE
            self._file = h5py.File(self._path, "r", swmr=is_growing)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self._path.name!r} must be an HDF5 file, but it cannot be opened as one "
                f"({str(error)[:120]}); it may be truncated: copy it again"
            ) from None
        self._columns: dict[tuple[Stream, str], Column] = {}
        try:
            self._read_head()
        except _DAMAGES as error:
            self._file.close()
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self._path.name!r} must follow the stillpet layout, but it is damaged: "
                f"{error}; copy or write it again"
            ) from None

    def _read_head(self) -> None:
        attrs = self._file.attrs
        if attrs.get("format") != layout.FORMAT:
            raise _another_kind(self._path)
        if int(attrs["format_version"]) > layout.VERSION:
            raise InputError(
                f"{self._path.name!r} must have a layout version up to {layout.VERSION}, but "
                f"it has {attrs['format_version']}; use a newer stillpet"
            )
        self.scanner = layout.read_scanner(self._file, self._mapped)
        self.protocol = layout.read_protocol(self._file)
        self.clock_zero = str(attrs["clock_zero"])
        self.notes = _texts(attrs["notes"])
        self.inherited_defects = _texts(attrs["defects"])
        self.defects = self.inherited_defects
        self.is_live = attrs.get("layout") == "live"
        self.is_complete = bool(attrs["complete"])
        self.start_ms = int(attrs["start_ms"])
        self.crystal_efficiency = None
        if "normalisation/crystal_efficiency" in self._file:
            self.crystal_efficiency = self._read_efficiency()
        self._check_columns()
        self._offset = {stream: self._read_ticks(stream) for stream in _STREAMS}
        if not self.is_complete:
            self._salvage()
        self.stop_ms = self.start_ms + len(self._offset["prompts"]) - 1
        self._check_index()
        held = None
        if "coverage" in self._file:
            stored = self._file["coverage"]
            held = Windows(
                *(
                    layout.read_array(stored, name, "iu", _MAX_WINDOWS)
                    for name in ("start_ms", "stop_ms")
                )
            )
        self._hold(held)

    def _read_ticks(self, stream: Stream) -> I64:
        group = self._file[stream]
        if self.is_complete or self.is_live:
            stored = layout.read_array(
                group, "tick_offset", "iu", MAX_TICKS + 1, is_growing=self.is_live,
                mapped=self._mapped,
            )  # fmt: skip
        else:
            n = min(_n_whole(group["tick_offset"], len(self._mapped)), MAX_TICKS + 1)
            stored = _first_readable(group["tick_offset"], n)
        offset: I64 = stored.astype(np.int64, copy=False)
        offset.setflags(write=False)
        return offset

    def _read_efficiency(self) -> F32:
        n = self.scanner.n_crystals
        group = self._file["normalisation"]
        values = layout.read_array(group, "crystal_efficiency", "f", n, mapped=self._mapped)
        values = values.astype(np.float32)
        if values.shape != (n,) or not (np.isfinite(values) & (values >= 0)).all():
            raise InputError(
                f"{self._path.name!r} must hold one efficiency a crystal, from 0 up, but it "
                f"holds {values.shape} values, or one that is none; write it again"
            )
        return values

    def _check_columns(self) -> None:
        for stream in _STREAMS:
            group = self._file[stream]
            if not isinstance(group, h5py.Group):
                raise TypeError(f"{stream} is no group")
            wanted = dict(layout.COLUMNS)
            if stream == "prompts" and "truth" in group:
                wanted["truth"] = layout.TRUTH_DTYPE
            for name, dtype in wanted.items():
                d = group[name]
                if d.ndim != 1 or d.dtype.newbyteorder("<") != np.dtype(dtype):
                    raise InputError(
                        f"{self._path.name!r}: column {name} of {stream} must be one row of "
                        f"{dtype}, but it is {d.ndim} of {d.dtype!s:.40}; write the file again"
                    )

    def _n_stored(self, stream: Stream) -> int:
        columns = [self._file[stream][name] for name in layout.COLUMNS]
        if self.is_live:
            return min(len(column) for column in columns)
        return min(_n_whole(column, len(self._mapped)) for column in columns)

    def _salvage(self) -> None:
        """Keep the ticks whose events all arrived in both streams."""
        n_entries = min(
            int(np.searchsorted(_ascending(self._offset[s]), self._n_stored(s), side="right"))
            for s in _STREAMS
        )
        if n_entries < 2:
            raise InputError(
                f"{self._path.name!r} must hold at least one tick, but its writer has stored "
                "none; open it again once it has, or write it again if it stopped"
            )
        self._offset = {s: self._offset[s][:n_entries] for s in _STREAMS}
        if self.is_live:
            state = "live (complete = 0): its writer still writes or was stopped"
        else:
            state = "incomplete (complete = 0): its writer did not finish"
        self.defects += (
            f"the file is {state}; the first {n_entries - 1} ms of ticks are whole and read",
        )

    def _check_index(self) -> None:
        for stream, offset in self._offset.items():
            if len(offset) != self.stop_ms - self.start_ms + 1 or len(offset) < 2:
                raise InputError(
                    f"{self._path.name!r}: the tick index of {stream} must have one entry a ms "
                    f"and one more, but it has {len(offset)}; repair or copy the file again"
                )
            stored = self._n_stored(stream)
            if offset[0] != 0 or offset[-1] > stored or (offset[1:] < offset[:-1]).any():
                raise InputError(
                    f"{self._path.name!r}: the tick index of {stream} must ascend from 0 to at "
                    f"most {stored} (the events stored), but it does not; copy the file again"
                )

    def check_structure(self) -> tuple[str, ...]:
        """Compare names, types, units, checksums and lengths with the layout's specification.

        Returns
        -------
        tuple of str
            What is wrong, one line each. A live or unfinished file is not looked at: it says
            itself that it is incomplete.
        """
        if not self.is_complete:
            return ()
        return structure_faults(self._file, self.start_ms, self.stop_ms)

    def refresh(self) -> bool:
        """Read again how much a growing file holds; see :meth:`Listmode.refresh`.

        Raises
        ------
        InputError
            If the file was removed or damaged since.
        """
        if self.is_complete:
            return False
        before = self.stop_ms
        is_replaced = not self._path.exists() or self._path.stat().st_ino != self._inode
        self.close()
        self.__dict__.pop("_hash", None)
        self._open()
        return is_replaced or self.stop_ms != before

    @property
    def provenance(self) -> Mapping[str, str]:
        """Format, hash, clock zero and what the writer noted."""
        noted = {k: str(v) for k, v in self._file["provenance"].attrs.items()}
        return noted | dict(super().provenance)

    @cached_property
    def _hash(self) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def file_hash(self) -> str:
        """SHA-256 of the file's bytes."""
        return self._hash

    def tick_offset(self, stream: Stream = "prompts") -> I64:
        """Give the number of the first event of each tick; see :class:`Listmode`."""
        return self._offset[stream]

    def _read_column(self, stream: Stream, name: str, start: int, stop: int) -> NDArray[Any]:
        key = (stream, name)
        if key not in self._columns:
            title = f"{self._path.name!r}: column {name} of {stream}"
            self._columns[key] = Column(self._file[stream][name], self._mapped, title)
        return self._columns[key].read(start, stop)

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream.

        Raises
        ------
        InputError
            If a checksum does not fit, a pair is not in canonical order, or an event names a
            crystal or TOF bin that the scanner has not.
        """
        batch = EventBatch(
            *(
                self._read_column(stream, name, start_event, stop_event)
                for name in layout.COLUMNS
            )
        )
        if len(batch) and (
            batch.crystal_b.max() >= self.scanner.n_crystals
            or batch.tof_bin.min() < 0
            or batch.tof_bin.max() >= self.scanner.tof.n_bins
        ):
            bad = (batch.crystal_b >= self.scanner.n_crystals) | (batch.tof_bin < 0)
            bad |= batch.tof_bin >= self.scanner.tof.n_bins
            raise InputError(
                f"{self._path.name!r}: events must name crystals below "
                f"{self.scanner.n_crystals} and TOF bins below {self.scanner.tof.n_bins}, but "
                f"{bad.sum()} of the {stream} do not; the first is event "
                f"{start_event + int(bad.argmax())}: write the file again or repair it"
            )
        return batch

    def read_truth(self, start_event: int, stop_event: int) -> U8 | None:
        """Read where each prompt came from (0 true, 1 scattered, 2 random), if it is known."""
        if "truth" not in self._file["prompts"]:
            return None
        return self._read_column("prompts", "truth", start_event, stop_event)

    def close(self) -> None:
        """Release the file."""
        self._columns.clear()
        self._file.close()


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, h5py.Empty):
        return ()
    return tuple(str(text) for text in np.atleast_1d(value))


def cut_listmode(
    source: Listmode, windows: Windows, path: str | Path, *, progress: Progress = SILENT
) -> None:
    """Write the events of a union of windows to a new file that keeps the clock.

    The new file runs from the first window's start to the last window's stop; ticks between
    windows stay empty and are marked as not held, so the same windows mean the same in both
    files and give the same events in the same order.

    Parameters
    ----------
    source
        Any open listmode.
    windows
        The time to keep.
    path
        The file to make.

    Raises
    ------
    InputError
        If a window reaches outside the scan or the file cannot be written.
    """
    source.check_windows(windows)
    kept = windows.merged()
    origin = {"cut_from_sha256": source.file_hash, "windows": str(kept)}
    with writer_like(source, path, kept, provenance=origin) as writer:
        copy_events(source, kept, writer, progress=progress)


def _checked_version(path: Path, mapped: NDArray[np.uint8]) -> int:
    """Give the version of a file's superblock, one of those that our writers make.

    The metadata of versions 2 (plain) and 3 (live) carry checksums. In older files they do not,
    and the HDF5 library crashes the process over damaged ones (1 of 200 files with a few
    flipped bits).
    """
    is_hdf5 = mapped.size > 8 and mapped[:8].tobytes() == _SIGNATURE
    version = int(mapped[8]) if is_hdf5 else -1
    if version not in (layout.SUPERBLOCK_PLAIN, layout.SUPERBLOCK_LIVE):
        raise _another_kind(path)
    return version


def _another_kind(path: Path) -> InputError:
    return InputError(
        f"{path.name!r} must be a stillpet listmode file, but it is another kind of HDF5 file; "
        "convert it or choose another file"
    )


def _n_whole(dataset: h5py.Dataset, n_bytes: int) -> int:
    """Count the values of a dataset up to its first chunk that is not in the file.

    A writer that is killed while it flushes may have stored the length before the index of
    chunks, or the index before the chunk.
    """
    if dataset.chunks is None:
        return 0
    there: set[int] = set()

    def note(info: Any) -> None:
        if info.byte_offset + info.size <= n_bytes:
            there.add(int(info.chunk_offset[0]))

    with contextlib.suppress(RuntimeError, OSError):
        dataset.id.chunk_iter(note)
    n, step = 0, int(dataset.chunks[0])  # a property that asks the library each time
    while n in there:
        n += step
    return min(n, len(dataset))


def _first_readable(dataset: h5py.Dataset, n: int) -> NDArray[Any]:
    """Read the first ``n`` values, or as many whole chunks as the library can reach.

    The library refuses what lies past the end that the file's head gives, which a killed
    writer may not have set any more.
    """
    while n > 0:
        with contextlib.suppress(RuntimeError, OSError):
            values: NDArray[Any] = dataset[:n]
            return values
        n = (n - 1) // dataset.chunks[0] * dataset.chunks[0]
    return np.empty(0, dataset.dtype)


def _ascending(offset: I64) -> I64:
    """Give the part of an index up to where it no longer ascends: what was never written."""
    stop = np.flatnonzero((np.diff(offset) < 0) | (offset[1:] < 0))
    return offset[: stop[0] + 1] if stop.size else offset


def recognise(path: Path, head: bytes) -> bool:
    """Say whether a file is HDF5; a user block may push the signature to 512, 1024, ..."""
    del path
    return any(head[at : at + 8] == _SIGNATURE for at in (0, 512, 1024, 2048))


def open_file(path: Path, header: Path | None) -> Hdf5Listmode:
    """Open a stillpet HDF5 file, once a child process has; it needs no header."""
    del header
    _checked_version(path, map_file(path, "<u1"))
    check_in_child(path, "hdf5")
    return Hdf5Listmode(path)
