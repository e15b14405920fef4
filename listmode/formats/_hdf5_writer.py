"""Write stillpet's own listmode file in pieces, as ``docs/hdf5_format.md`` specifies it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _hdf5_layout as layout
from listmode.formats._atomic import GuardedFile, part_path, publish, write_error
from listmode.formats._chunks import note_sums
from listmode.formats._hdf5_columns import StreamColumns, check_append, check_efficiency
from listmode.formats._mapped import MAX_TICKS
from listmode.scanner import Scanner
from listmode.source import ScanProtocol, Stream
from listmode.windows import Windows

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


class ListmodeWriter:
    """Write a listmode file in pieces, in order of time; use it as a context manager.

    Events are never held whole. The file is written under a temporary name in the same folder
    and takes its own name when it is finished, so a name never holds half a file.

    Parameters
    ----------
    path
        The file to make; an existing one is replaced at the end.
    scanner, protocol
        Stored completely.
    start_ms
        Scan time of the first tick.
    crystal_efficiency
        Shape (n_crystals,), float32; ``None`` for ones.
    has_truth
        Whether each prompt comes with its origin (0 true, 1 scattered, 2 random).
    provenance
        Free text by key: program, version, seed, hash of the source. Never a path or a name
        of a patient.
    clock_zero
        What the scan calls zero, in words.
    coverage
        The time that the file holds, if that is less than all from its first to its last tick
        (a cut file). All other ticks must stay empty.

    Raises
    ------
    InputError
        If the folder cannot be written to, the disk is full or events do not fit the scanner.
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
        coverage: Windows | None = None,
        notes: tuple[str, ...] = (),
        defects: tuple[str, ...] = (),
    ) -> None:
        self.path = Path(path)
        self._scanner = scanner
        self._start_ms = start_ms
        self._has_truth = has_truth
        self._coverage = coverage
        self._part = part_path(self.path)
        check_efficiency(scanner, crystal_efficiency)
        try:
            self._disk = GuardedFile(self._part)
            self._file = h5py.File(self._disk, "w", libver=("v108", "v108"))
            layout.write_head(
                self._file,
                scanner=scanner,
                protocol=protocol,
                start_ms=start_ms,
                crystal_efficiency=crystal_efficiency,
                provenance=provenance or {},
                clock_zero=clock_zero,
                notes=notes,
                defects=defects,
            )
            self._streams = {
                stream: StreamColumns(
                    self._file.create_group(stream),
                    has_truth=has_truth and stream == "prompts",
                )
                for stream in _STREAMS
            }
            # All that closing changes is there from the start and only takes other values: a
            # header that grows is written in parts, and a kill between them loses the file.
            self._file.attrs["stop_ms"] = np.int64(start_ms)
            self._write_coverage(coverage or Windows([start_ms], [start_ms + MAX_TICKS]))
            self._flush()
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise write_error(self.path, error) from None
            raise

    def _write_coverage(self, held: Windows) -> None:
        for name, ends in (("start_ms", held.start_ms), ("stop_ms", held.stop_ms)):
            dataset = self._file.create_dataset(f"coverage/{name}", data=ends)
            dataset.attrs["unit"] = "ms"

    def _flush(self) -> None:
        self._file.flush()
        self._disk.release()
        self._disk.check()
        self._disk.hold()

    def append(
        self, stream: Stream, batch: EventBatch, n_per_tick: I64, truth: U8 | None = None
    ) -> None:
        """Add the events of the next ticks of a stream.

        Parameters
        ----------
        stream
            ``"prompts"`` or ``"delayeds"``; the two advance on their own.
        batch
            Events in order of time.
        n_per_tick
            Events of each of the next consecutive 1 ms ticks. Shape (n_ticks,), int64.
        truth
            Origin of each event; given for prompts if, and only if, the writer was opened with
            ``has_truth``. Shape (n_events,), uint8.

        Raises
        ------
        InputError
            If counts and events disagree, an event does not fit the scanner, or the disk is
            full.
        """
        counts = np.asarray(n_per_tick, np.int64)
        check_append(self._scanner, stream, batch, counts, truth, has_truth=self._has_truth)
        try:
            self._streams[stream].append(batch, counts, truth)
            if self._streams[stream].write_whole_chunks():
                self._flush()
        except OSError as error:
            self._discard()
            raise write_error(self.path, error) from None

    def close(self) -> None:
        """Pad both streams to the same number of ticks, mark the file complete and name it."""
        n_ticks = max(stream.n_ticks for stream in self._streams.values())
        if n_ticks == 0:
            self._discard()
            raise InputError(
                "a listmode file must last at least one tick (1 ms), but no tick was written; "
                "append events or empty ticks first"
            )
        try:
            for stream in self._streams.values():
                stream.pad(n_ticks)
                for column in stream.all():
                    column.write()
            stop_ms = self._start_ms + n_ticks
            self._file.attrs.modify("stop_ms", np.int64(stop_ms))
            if self._coverage is None:
                self._file["coverage/stop_ms"][0] = stop_ms
            self._flush()
            note_sums(self._file, self._disk.read_at)
            self._flush()
            self._file.attrs.modify("complete", 1)
            self._file.close()
            self._disk.release()
            self._disk.check()
            self._disk.close()
            publish(self._part, self.path)
        except OSError as error:
            self._discard()
            raise write_error(self.path, error) from None

    def _discard(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                file.close()
        if (disk := getattr(self, "_disk", None)) is not None:
            disk.close()
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> ListmodeWriter:
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
            self._discard()
