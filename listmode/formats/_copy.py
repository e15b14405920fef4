"""Copy the events of one scan, or a choice of them, into a new HDF5 file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.formats._hdf5_writer import ListmodeWriter
from listmode.formats.ticks import tick_runs
from listmode.progress import SILENT, Progress
from listmode.source import Listmode, ScanProtocol, Stream
from listmode.windows import Windows

Keep = Callable[[Stream, int, int], NDArray[np.bool_]]
"""Says which events ``[first, last)`` of a stream are kept. Shape (last - first,), bool."""

STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


def writer_like(
    source: Listmode,
    path: str | Path,
    held: Windows,
    *,
    protocol: ScanProtocol | None = None,
    provenance: dict[str, str] | None = None,
    note: str | None = None,
    defects: tuple[str, ...] | None = None,
) -> ListmodeWriter:
    """Open a writer with all that ``source`` knows of scanner, scan and origin.

    Parameters
    ----------
    source
        Any open scan.
    path
        The file to make.
    held
        The time that the new file holds.
    protocol, note, defects
        What differs from the source; its own where left out.
    provenance
        What to add to it; the source's hash as ``made_from_sha256`` where left out.
    """
    known = {k: v for k, v in source.provenance.items() if k not in ("sha256", "format")}
    added = {"made_from_sha256": source.file_hash} if provenance is None else provenance
    return ListmodeWriter(
        path,
        scanner=source.scanner,
        protocol=source.protocol if protocol is None else protocol,
        start_ms=int(held.start_ms[0]),
        crystal_efficiency=source.crystal_efficiency,
        has_truth=source.read_truth(0, 0) is not None,
        provenance=known | added,
        clock_zero=source.clock_zero,
        coverage=held,
        notes=(*source.notes, *filter(None, [note])),
        defects=source.defects if defects is None else defects,
    )


def copy_events(
    source: Listmode,
    held: Windows,
    writer: ListmodeWriter,
    *,
    keep: Keep | None = None,
    progress: Progress = SILENT,
) -> None:
    """Copy the events of a union of windows; the ticks between them stay empty.

    Parameters
    ----------
    source
        Any open scan.
    held
        The time to copy, merged.
    writer
        Opened at the first window's start.
    keep
        Which events to keep; all if left out.
    """
    total = sum(source.count(held, stream) for stream in STREAMS)
    with progress.stage("copy events", total) as stage:
        for stream in STREAMS:
            has_truth = stream == "prompts" and source.read_truth(0, 0) is not None
            offset = source.tick_offset(stream)
            for gap, start, stop in _with_gaps(held):
                nothing = np.empty(0, np.uint8) if has_truth else None
                writer.append(stream, EventBatch.empty(), np.zeros(gap, np.int64), nothing)
                for first, last in tick_runs(source, start, stop, stream):
                    ticks = offset[first - source.start_ms : last - source.start_ms + 1]
                    a, b = int(ticks[0]), int(ticks[-1])
                    truth = source.read_truth(a, b) if has_truth else None
                    batch, counts = source.read(stream, a, b), np.diff(ticks)
                    if keep is not None:
                        kept = keep(stream, a, b)
                        upto = np.concatenate(([0], np.cumsum(kept)))
                        counts = np.diff(upto[ticks - a])
                        batch = _chosen(batch, kept)
                        truth = None if truth is None else truth[kept]
                    writer.append(stream, batch, counts, truth)
                    stage.advance(b - a)


def _chosen(batch: EventBatch, kept: NDArray[np.bool_]) -> EventBatch:
    return EventBatch(batch.crystal_a[kept], batch.crystal_b[kept], batch.tof_bin[kept])


def _with_gaps(held: Windows) -> Iterator[tuple[int, int, int]]:
    previous = int(held.start_ms[0])
    for start, stop in held:
        yield start - previous, start, stop
        previous = stop
