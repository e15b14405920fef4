"""Write stillpet's own listmode file in pieces, as ``docs/hdf5_format.md`` specifies it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _hdf5_layout as layout
from listmode.formats._atomic import GuardedFile, part_path, publish, write_error
from listmode.scanner import Scanner
from listmode.source import ScanProtocol, Stream
from listmode.windows import Windows

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


class _Column:
    """One growing dataset that is written in whole chunks, so that a chunk never changes."""

    def __init__(self, group: h5py.Group, name: str, dtype: str, chunk: int, unit: str) -> None:
        self._dataset = group.create_dataset(
            name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(chunk,), fletcher32=True
        )
        self._dataset.attrs["unit"] = unit
        self._chunk = chunk
        self._pending: list[NDArray[Any]] = []
        self._n_pending = 0

    def append(self, values: NDArray[Any]) -> bool:
        """Take values; say whether whole chunks were written."""
        self._pending.append(np.array(values, dtype=self._dataset.dtype))
        self._n_pending += len(values)
        if self._n_pending < self._chunk:
            return False
        self.write(self._n_pending - self._n_pending % self._chunk)
        return True

    def write(self, n: int | None = None) -> None:
        """Write the first ``n`` waiting values, or all."""
        values = np.concatenate(self._pending) if self._pending else np.empty(0)
        n = len(values) if n is None else n
        if n:
            start = len(self._dataset)
            self._dataset.resize((start + n,))
            self._dataset[start:] = values[:n]
        self._pending = [values[n:]]
        self._n_pending = len(values) - n


class _StreamWriter:
    """The columns and the tick index of one stream."""

    def __init__(self, group: h5py.Group, has_truth: bool) -> None:
        columns = dict(layout.COLUMNS) | ({"truth": layout.TRUTH_DTYPE} if has_truth else {})
        self._columns = {
            name: _Column(group, name, dtype, layout.CHUNK_EVENTS, "1")
            for name, dtype in columns.items()
        }
        self._ticks = _Column(
            group, "tick_offset", layout.TICK_DTYPE, layout.CHUNK_TICKS, "events"
        )
        self._ticks.append(np.zeros(1, np.int64))
        self.n_events = 0
        self.n_ticks = 0

    def append(self, batch: EventBatch, n_per_tick: I64, truth: U8 | None) -> bool:
        arrays: dict[str, NDArray[Any]] = {
            "crystal_a": batch.crystal_a,
            "crystal_b": batch.crystal_b,
            "tof_bin": batch.tof_bin,
        }
        if truth is not None:
            arrays["truth"] = truth
        wrote = [self._columns[name].append(values) for name, values in arrays.items()]
        offset = self.n_events + np.cumsum(n_per_tick, dtype=np.int64)
        wrote.append(self._ticks.append(offset))
        self.n_events += len(batch)
        self.n_ticks += len(n_per_tick)
        return any(wrote)

    def finish(self, n_ticks: int) -> None:
        self._ticks.append(np.full(n_ticks - self.n_ticks, self.n_events, np.int64))
        for column in (*self._columns.values(), self._ticks):
            column.write()


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
        if crystal_efficiency is not None and crystal_efficiency.shape != (scanner.n_crystals,):
            raise InputError(
                f"crystal efficiencies must be one a crystal ({scanner.n_crystals}), but their "
                f"shape is {crystal_efficiency.shape}; give one number a crystal"
            )
        try:
            self._disk = GuardedFile(self._part)
            self._file = h5py.File(self._disk, "w", libver=("v108", "v108"))
            self._write_head(
                protocol, crystal_efficiency, provenance or {}, clock_zero, notes, defects
            )
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise write_error(self.path, error) from None
            raise

    def _write_head(
        self,
        protocol: ScanProtocol,
        crystal_efficiency: F32 | None,
        provenance: Mapping[str, str],
        clock_zero: str,
        notes: tuple[str, ...],
        defects: tuple[str, ...],
    ) -> None:
        file = self._file
        file.attrs["complete"] = 0
        file.attrs["format"] = layout.FORMAT
        file.attrs["format_version"] = layout.VERSION
        file.attrs["start_ms"] = np.int64(self._start_ms)
        file.attrs["clock_zero"] = clock_zero
        file.attrs["notes"] = list(notes) or h5py.Empty("S1")
        file.attrs["defects"] = list(defects) or h5py.Empty("S1")
        layout.write_scanner(file, self._scanner)
        layout.write_protocol(file, protocol)
        group = file.create_group("provenance")
        for key, text in provenance.items():
            group.attrs[key] = text
        if crystal_efficiency is not None:
            dataset = file.create_dataset(
                "normalisation/crystal_efficiency",
                data=np.asarray(crystal_efficiency, np.float32),
                fletcher32=True,
                chunks=True,
            )
            dataset.attrs["unit"] = "1"
        self._streams = {
            stream: _StreamWriter(
                file.create_group(stream), self._has_truth and stream == "prompts"
            )
            for stream in _STREAMS
        }
        if self._coverage is not None:
            self._write_coverage(self._coverage)
        self._flush()

    def _write_coverage(self, held: Windows) -> None:
        for name, ends in (("start_ms", held.start_ms), ("stop_ms", held.stop_ms)):
            dataset = self._file.create_dataset(f"coverage/{name}", data=ends)
            dataset.attrs["unit"] = "ms"

    def _flush(self) -> None:
        self._file.flush()
        self._disk.check()

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
        self._check(stream, batch, np.asarray(n_per_tick), truth)
        try:
            if self._streams[stream].append(batch, np.asarray(n_per_tick), truth):
                self._flush()
        except OSError as error:
            self._discard()
            raise write_error(self.path, error) from None

    def _check(
        self, stream: Stream, batch: EventBatch, n_per_tick: I64, truth: U8 | None
    ) -> None:
        if n_per_tick.sum() != len(batch) or (n_per_tick < 0).any():
            raise InputError(
                f"the counts of the ticks must add up to the events, but {n_per_tick.sum()} "
                f"are counted and {len(batch)} are given; count the events of each tick"
            )
        has_truth = self._has_truth and stream == "prompts"
        if has_truth != (truth is not None) or (truth is not None and len(truth) != len(batch)):
            raise InputError(
                f"truth must be given for {'every event' if has_truth else 'no event'} of "
                f"{stream}, but it is given for {0 if truth is None else len(truth)} of "
                f"{len(batch)}; open the writer with has_truth to store it for prompts"
            )
        if not len(batch):
            return
        top, n = int(batch.crystal_b.max()), self._scanner.n_crystals
        if top >= n:
            raise InputError(
                f"crystal numbers must be below {n} for scanner {self._scanner.name!r}, but "
                f"one is {top}; write the file with the scanner of its events"
            )
        low, high = int(batch.tof_bin.min()), int(batch.tof_bin.max())
        if low < 0 or high >= self._scanner.tof.n_bins:
            raise InputError(
                f"TOF bins must lie in 0-{self._scanner.tof.n_bins - 1} for scanner "
                f"{self._scanner.name!r}, but they reach from {low} to {high}; "
                "write the file with the scanner of its events"
            )

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
                stream.finish(n_ticks)
            self._file.attrs["stop_ms"] = np.int64(self._start_ms + n_ticks)
            if self._coverage is None:
                stop_ms = self._start_ms + n_ticks
                self._write_coverage(Windows([self._start_ms], [stop_ms]))
            self._flush()
            self._file.attrs["complete"] = 1
            self._file.close()
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
