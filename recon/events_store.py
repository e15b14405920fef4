"""Events of the chosen windows, split into subsets and ordered in space."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows
from recon.events_order import ahead, count_keys, make_keys, order_events
from recon.projector import TaskPlan, check_events

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

CHUNK = 1 << 21
MEMORY_BYTES = 300 << 20  # more events than fit here are spilled to a file


class AdditivePerEvent(Protocol):
    """Gives the additive term ``c_e`` of a batch: counts over ``D n_e a_e``."""

    def __call__(self, batch: EventBatch) -> F32:
        """Return shape (n_events,), float32, Bq/mL mm."""


@dataclass(eq=False)
class EventsStore:
    """Events by subset, task and block, each bucket in order of time.

    The order depends on the events and the plan alone: neither on threads nor on how the file
    was read, nor on whether the windows were cut out of a longer file.

    Parameters
    ----------
    plan
        How events are grouped in space.
    n_subsets
        Event number ``k`` of the union belongs to subset ``k % n_subsets``.
    crystal_a, crystal_b, tof_bin, additive
        Columns of all subsets. Shape (n_stored,).
    task_edges
        First event of each task, subset by subset. Shape (n_subsets, n_tasks + 1), int64.
    n_events
        Events of the union.
    n_outside
        Events whose ray or TOF bin misses the image; they are not stored.
    folder
        Temporary folder of spilled columns.
    """

    plan: TaskPlan
    n_subsets: int
    crystal_a: NDArray[np.uint32]
    crystal_b: NDArray[np.uint32]
    tof_bin: NDArray[np.int16]
    additive: F32
    task_edges: I64
    n_events: int
    n_outside: int
    folder: tempfile.TemporaryDirectory[str] | None = None

    def task_ranges(self, subset: int) -> I64:
        """Give each task's slice of the columns for one subset. Shape (n_tasks, 2)."""
        edges = self.task_edges[subset]
        return np.stack((edges[:-1], edges[1:]), axis=1)

    def close(self) -> None:
        """Give memory and temporary files back."""
        del self.crystal_a, self.crystal_b, self.tof_bin, self.additive
        if self.folder is not None:
            self.folder.cleanup()

    def __enter__(self) -> EventsStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def store_events(
    listmode: Listmode,
    windows: Windows,
    plan: TaskPlan,
    *,
    n_subsets: int = 1,
    additive: AdditivePerEvent | Sequence[AdditivePerEvent] | None = None,
    timeline: Sequence[tuple[Windows, int]] | None = None,
    threads: int = 2,
    memory_bytes: int = MEMORY_BYTES,
    chunk: int = CHUNK,
    progress: Progress = SILENT,
) -> EventsStore:
    """Read the events of a union of windows and order them in space.

    The file is read twice: to count the events of each bucket, and to put them there. So the
    memory needed does not grow with the scan beyond ``memory_bytes``. Reading runs one chunk
    ahead of sorting. The additive term is computed on the ordered events, whose neighbours
    share their parts of its tables (about twice as fast as in order of time).

    Parameters
    ----------
    plan
        How events are grouped in space.
    n_subsets
        Subsets, balanced in time.
    additive
        Gives ``c_e`` of a batch; one for all, or one a pose; zero if ``None``.
    timeline
        The windows in order of time, each with the number of the patient's pose; crystal ``c``
        in pose ``p`` is stored as ``c + p n_crystals``, as the plan's rays number it.
    memory_bytes
        Columns larger than this go to temporary files.
    chunk
        Events read at a time.

    Raises
    ------
    InputError
        If a window reaches outside the scan, an event is not of the scanner, or the disk is
        full.
    """
    n_events = listmode.count(windows)
    n_keys = n_subsets * plan.n_buckets
    parts = [(windows, 0)] if timeline is None else timeline
    counts = np.zeros(n_keys, np.int64)
    n_outside = 0
    with progress.stage("sorting events", 2 * n_events) as stage:
        for _, key in ahead(_keyed(listmode, parts, plan, n_subsets, threads, chunk)):
            inside, n_missed = count_keys(key, n_keys)
            counts += inside
            n_outside += n_missed
            stage.advance(key.size)
        first = np.concatenate(([0], np.cumsum(counts)))
        keyed = _keyed(listmode, parts, plan, n_subsets, threads, chunk)
        folder, columns = order_events(keyed, first, memory_bytes, stage.advance)
    add_term(columns, listmode.scanner.n_crystals, additive, progress=progress)
    edges = np.arange(n_subsets)[:, None] * plan.n_buckets + plan.task_buckets
    for column in columns:
        column.setflags(write=False)
    return EventsStore(
        plan,
        n_subsets,
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        first[edges],
        n_events,
        n_outside,
        folder,
    )


def add_term(
    columns: Sequence[NDArray[Any]],
    n_crystals: int,
    additive: AdditivePerEvent | Sequence[AdditivePerEvent] | None,
    *,
    progress: Progress = SILENT,
) -> None:
    """Fill the last column: the additive term of ordered events.

    Parameters
    ----------
    columns
        Crystals with their pose's numbers, TOF bins, and the term. Each of shape (n_events,).
    n_crystals
        Of the scanner: crystal ``c`` in pose ``p`` is ``c + p n_crystals``.
    additive
        As for :func:`store_events`.
    """
    crystal_a, crystal_b, tof_bin, term = columns
    if additive is None:
        term[:] = 0.0
        return
    with progress.stage("additive term", term.size) as stage:
        for first in range(0, term.size, CHUNK):
            some = slice(first, first + CHUNK)
            a, b, bins = crystal_a[some], crystal_b[some], tof_bin[some]
            if isinstance(additive, Sequence):
                pose = a // np.uint32(n_crystals)
                for p in np.unique(pose).tolist():
                    own, offset = np.flatnonzero(pose == p), np.uint32(p * n_crystals)
                    batch = EventBatch(a[own] - offset, b[own] - offset, bins[own])
                    term[some][own] = additive[p](batch)
            else:
                term[some] = additive(EventBatch(a, b, bins))
            stage.advance(a.size)


def _keyed(
    listmode: Listmode,
    parts: Sequence[tuple[Windows, int]],
    plan: TaskPlan,
    n_subsets: int,
    threads: int,
    chunk: int,
) -> Iterator[tuple[EventBatch, NDArray[np.int32]]]:
    """Yield batches, with their pose's crystals, and the keys.

    A key is the event's subset and bucket as one number, -1 outside.
    """
    number = 0
    for windows, pose in parts:
        for batch in listmode.events(windows, chunk=chunk):
            check_events(listmode.scanner, batch)
            moved = _in_pose(batch, pose * listmode.scanner.n_crystals)
            bucket = plan.bucket(moved, threads)
            key = make_keys(bucket, number, n_subsets, plan.n_buckets)
            number += len(batch)
            yield moved, key


def _in_pose(batch: EventBatch, offset: int) -> EventBatch:
    """Name the crystals of a pose: numbers rise by ``offset``, so their order stays."""
    if not offset:
        return batch
    crystal_a, crystal_b = (c + np.uint32(offset) for c in (batch.crystal_a, batch.crystal_b))
    return EventBatch(crystal_a, crystal_b, batch.tof_bin)
