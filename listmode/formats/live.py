"""Write an HDF5 listmode file while the scan runs, so that others read it as it grows.

The live layout uses HDF5's single-writer-multiple-reader mode: the library orders its writes so
that the file can be opened at any moment, also after the writer was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _hdf5_layout as layout
from listmode.formats._atomic import part_path, write_error
from listmode.formats._copy import STREAMS, copy_events, writer_like
from listmode.formats._hdf5_columns import U8, StreamColumns, check_append, check_efficiency
from listmode.formats.hdf5 import Hdf5Listmode
from listmode.scanner import Scanner
from listmode.source import F32, I64, ScanProtocol, Stream

_IS_POSIX = os.name == "posix"
_RESERVE_BYTES = 1 << 23  # room that is kept beyond the file's end, for HDF5's own blocks


class LiveListmodeWriter:
    """Write a growing listmode file; use it as a context manager.

    The file has its own name from the start. After :meth:`flush` returns, all whole ticks
    given so far are in it, whatever becomes of this process: it opens as incomplete, with
    those ticks, and :func:`repair_listmode` makes a finished file of it. Closing replaces it by
    a finished file of the plain layout, with checksums. Leaving the ``with`` block by an error
    keeps the live file as it is.

    Parameters
    ----------
    path
        The file to make; there must be none yet.
    scanner, protocol, start_ms, crystal_efficiency, has_truth, provenance, clock_zero, notes
        As for :class:`listmode.formats.hdf5.ListmodeWriter`.
    flush_every_s
        :meth:`append` flushes by itself when this long has passed since the last flush, s.

    Attributes
    ----------
    flushed_ms
        Scan time up to which every tick of both streams is in the file.

    Raises
    ------
    InputError
        If the file exists, the folder cannot be written to, the disk is full, or the system is
        not POSIX.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scanner: Scanner,
        protocol: ScanProtocol,
        start_ms: int = 0,
        crystal_efficiency: F32 | None = None,
        has_truth: bool = False,
        provenance: Mapping[str, str] | None = None,
        clock_zero: str = "start of the scan",
        notes: tuple[str, ...] = (),
        flush_every_s: float = 1.0,
    ) -> None:
        self.path = Path(path)
        self.flushed_ms = start_ms
        self._start_ms = start_ms
        self._scanner = scanner
        self._has_truth = has_truth
        self._flush_every_s = flush_every_s
        if not _IS_POSIX:
            raise InputError(
                "the live layout needs a POSIX system, where an open file can be renamed, but "
                "this is none; write the plain layout (ListmodeWriter)"
            )
        check_efficiency(scanner, crystal_efficiency)
        part = part_path(self.path)
        try:
            try:
                self._file = h5py.File(part, "w", libver=("v110", "v110"))
                self._disk = os.open(part, os.O_RDWR)
                self._reserve(scanner.n_crystals * 64)
                layout.write_head(
                    self._file,
                    scanner=scanner,
                    protocol=protocol,
                    start_ms=start_ms,
                    crystal_efficiency=crystal_efficiency,
                    provenance=provenance or {},
                    clock_zero=clock_zero,
                    notes=notes,
                    defects=(),
                    is_live=True,
                )
                self._streams = {
                    stream: StreamColumns(
                        self._file.create_group(stream),
                        has_truth=has_truth and stream == "prompts",
                        is_live=True,
                    )
                    for stream in STREAMS
                }
                self._file.swmr_mode = True
                _take_name(part, self.path)
            finally:
                part.unlink(missing_ok=True)
        except BaseException as error:
            self._release()
            if isinstance(error, FileExistsError):
                raise InputError(
                    f"a live file must be a new one, but {self.path.name!r} is there already; "
                    "choose another name, or repair that file if its writer was stopped"
                ) from None
            if isinstance(error, OSError):
                raise write_error(self.path, error) from None
            raise
        self._last_flush_s = time.monotonic()

    def _reserve(self, n_bytes: int) -> None:
        """Make sure that what HDF5 writes next has room on the disk, before it writes.

        The library crashes the process if it cannot write, so it is never let try.
        """
        if hasattr(os, "posix_fallocate"):  # not everywhere: elsewhere a full disk may crash
            os.posix_fallocate(
                self._disk, 0, self._file.id.get_filesize() + n_bytes + _RESERVE_BYTES
            )

    def append(
        self, stream: Stream, batch: EventBatch, n_per_tick: I64, truth: U8 | None = None
    ) -> None:
        """Add the events of the next ticks of a stream.

        Parameters
        ----------
        stream, batch, n_per_tick, truth
            As for :meth:`listmode.formats.hdf5.ListmodeWriter.append`.

        Raises
        ------
        InputError
            If counts and events disagree, an event does not fit the scanner, or the disk is
            full. What was flushed before stays in the file.
        """
        counts = np.asarray(n_per_tick, np.int64)
        check_append(self._scanner, stream, batch, counts, truth, has_truth=self._has_truth)
        self._streams[stream].append(batch, counts, truth)
        if time.monotonic() - self._last_flush_s >= self._flush_every_s:
            self.flush()

    def flush(self) -> int:
        """Bring all events given so far into the file, where readers find them.

        Returns
        -------
        int
            ``flushed_ms``: scan time up to which both streams are in the file.

        Raises
        ------
        InputError
            If the disk is full.
        """
        streams = self._streams.values()
        try:
            self._reserve(
                sum(c.n_pending * c.dataset.dtype.itemsize for s in streams for c in s.all())
                + sum(c.chunk_bytes for s in streams for c in s.all())
            )
            # A tick is valid once the index names it, so the index is written last.
            for column in (c for s in streams for c in s.columns.values()):
                column.write()
                column.dataset.flush()
            for stream in streams:
                stream.ticks.write()
                stream.ticks.dataset.flush()
        except OSError as error:
            self._release()
            reason = str(write_error(self.path, error)).partition(". Nothing was left")[0]
            raise InputError(
                f"{reason}. What was flushed, up to {self.flushed_ms} ms, is in the file: "
                "repair it"
            ) from None
        self._last_flush_s = time.monotonic()
        self.flushed_ms = self._start_ms + min(s.n_ticks for s in streams)
        return self.flushed_ms

    def close(self) -> None:
        """Flush, and put a finished file of the plain layout in the live one's place.

        Raises
        ------
        InputError
            If no tick was written or the disk is full; the live file then stays.
        """
        n_ticks = max(stream.n_ticks for stream in self._streams.values())
        if n_ticks == 0:
            self._release()
            self.path.unlink(missing_ok=True)
            raise InputError(
                "a listmode file must last at least one tick (1 ms), but no tick was written; "
                "append events or empty ticks first"
            )
        for stream in self._streams.values():
            stream.pad(n_ticks)
        self.flush()
        self._release()
        with Hdf5Listmode(self.path) as live:
            held = live.extent
            with writer_like(live, self.path, held, provenance={}, defects=()) as writer:
                copy_events(live, held, writer)

    def _release(self) -> None:
        """Close the file without finishing it."""
        if (file := getattr(self, "_file", None)) is not None:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                file.close()
        if (disk := getattr(self, "_disk", None)) is not None:
            os.close(disk)
            del self._disk

    def __enter__(self) -> LiveListmodeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del error, trace
        if kind is None:
            self.close()
        else:
            self._release()


def _take_name(part: Path, path: Path) -> None:
    """Give a new file its name, unless there is one already.

    Raises
    ------
    FileExistsError
        If the name is taken.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError from None
        part.rename(path)
