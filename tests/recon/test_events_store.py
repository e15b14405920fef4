"""Events ordered in space."""

from __future__ import annotations

import errno
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.progress import Stage
from listmode.scanner import TofModel
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.events_store import AdditivePerEvent, EventsStore, store_events
from recon.image import Grid
from recon.projector import RayModel, TaskPlan
from tests.oracles import small_scanner, some_events

F32 = NDArray[np.float32]
GRID = Grid.centred((40, 40, 40), 3.0)


class Counting:
    """A progress bar that adds up."""

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self._name = ""

    def advance(self, n: int) -> None:
        self.done[self._name] += n

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "events") -> Iterator[Stage]:
        del unit
        self._name = name
        self.total[name], self.done[name] = total, 0
        yield self


def _scan() -> MemoryListmode:
    scanner = small_scanner(tof=TofModel(33, 40.0, 60.0))
    events = some_events(scanner, 5000, 4)
    return MemoryListmode(
        scanner, ScanProtocol(), events, np.linspace(0, len(events), 51).astype(np.int64)
    )


def _plan(scan: MemoryListmode, tof: bool = True) -> TaskPlan:
    return TaskPlan(RayModel.make(GRID, scan.scanner, tof=tof))


def _columns(store: EventsStore) -> list[np.ndarray[tuple[int], np.dtype[np.generic]]]:
    return [store.crystal_a, store.crystal_b, store.tof_bin, store.additive, store.task_edges]


def _mark(batch: EventBatch) -> F32:
    """Give what tells most events from each other."""
    mark = 3 * batch.crystal_a.astype(np.int64) + 2 * batch.crystal_b + batch.tof_bin
    return mark.astype(np.float32)


@pytest.mark.kernel
@pytest.mark.parametrize("tof", [True, False])
def test_every_event_is_stored_once_in_its_subset_and_bucket(tof: bool) -> None:
    scan = _scan()
    plan = _plan(scan, tof)

    bucket = plan.bucket(scan.prompts, 1)
    subset = np.arange(5000) % 3
    number = np.lexsort((np.arange(5000), bucket, subset))
    number = number[bucket[number] >= 0]
    with store_events(scan, scan.extent, plan, n_subsets=3, additive=_mark) as store:
        assert store.n_events == 5000
        assert (bucket < 0).sum() == store.n_outside == 5000 - number.size
        for k in range(3):
            ranges = store.task_ranges(k)
            for task, (start, stop) in enumerate(ranges.tolist()):
                part = number[start:stop]
                assert (subset[part] == k).all()
                size = plan.n_buckets // plan.n_tasks
                assert (bucket[part] // size == task).all()
        np.testing.assert_array_equal(store.crystal_a, scan.prompts.crystal_a[number])
        np.testing.assert_array_equal(store.crystal_b, scan.prompts.crystal_b[number])
        np.testing.assert_array_equal(store.tof_bin, scan.prompts.tof_bin[number])
        np.testing.assert_array_equal(store.additive, _mark(scan.prompts)[number])


def test_each_pose_gives_its_own_events_their_additive_term() -> None:
    scan = _scan()
    n = scan.scanner.n_crystals
    rays = _plan(scan).rays
    plan = TaskPlan(replace(rays, ends=np.concatenate((rays.ends, rays.ends))))
    timeline = [(Windows([0], [20]), 0), (Windows([20], [50]), 1)]

    def of(pose: int) -> AdditivePerEvent:
        def term(batch: EventBatch) -> F32:
            assert batch.crystal_b.max() < n  # as recorded
            return _mark(batch) + np.float32(10_000 * pose)

        return term

    with store_events(
        scan, scan.extent, plan, additive=[of(0), of(1)], timeline=timeline
    ) as store:
        pose = store.crystal_a // n
        assert set(pose.tolist()) == {0, 1}
        events = EventBatch(store.crystal_a % n, store.crystal_b % n, store.tof_bin)
        np.testing.assert_array_equal(store.additive, _mark(events) + 10_000 * pose)


@pytest.mark.parametrize("chunk", [7, 1000, 100_000])
def test_the_order_does_not_depend_on_chunks_or_threads(chunk: int) -> None:
    scan = _scan()
    windows = Windows([0, 20], [15, 50])
    with (
        store_events(scan, windows, _plan(scan), n_subsets=4, threads=1) as one,
        store_events(scan, windows, _plan(scan), n_subsets=4, threads=3, chunk=chunk) as two,
    ):
        for column, other in zip(_columns(one), _columns(two), strict=True):
            np.testing.assert_array_equal(column, other)


def test_events_that_do_not_fit_in_memory_go_to_a_file_that_is_removed() -> None:
    scan = _scan()
    with store_events(scan, scan.extent, _plan(scan)) as kept:
        assert kept.folder is None
        with store_events(scan, scan.extent, _plan(scan), memory_bytes=1000) as spilled:
            assert spilled.folder is not None
            folder = Path(spilled.folder.name)
            assert len(list(folder.iterdir())) == 4
            for column, other in zip(_columns(kept), _columns(spilled), strict=True):
                np.testing.assert_array_equal(column, other)
    assert not folder.exists()


@pytest.mark.parametrize("memory_bytes", [56, 5000, 30_000])
def test_groups_of_any_size_leave_the_order_as_it_is(memory_bytes: int) -> None:
    """Few groups of many events, and groups of one bucket that is larger than wanted."""
    scan = _scan()
    bar = Counting()
    with (
        store_events(scan, scan.extent, _plan(scan), n_subsets=3, additive=_mark) as kept,
        store_events(
            scan, scan.extent, _plan(scan), n_subsets=3, additive=_mark, chunk=700,
            memory_bytes=memory_bytes, progress=bar,
        ) as spilled,
    ):  # fmt: skip
        assert spilled.folder is not None
        for column, other in zip(_columns(kept), _columns(spilled), strict=True):
            np.testing.assert_array_equal(column, other)
    assert bar.done["sorting events"] == bar.total["sorting events"]


def test_a_full_disk_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, folders = _scan(), []

    class Noted(tempfile.TemporaryDirectory[str]):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            folders.append(Path(self.name))

    class Full(io.FileIO):
        def write(self, _: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.events_order.tempfile.TemporaryDirectory", Noted)
    monkeypatch.setattr(Path, "open", lambda path, mode, **_: Full(path, mode))
    with pytest.raises(InputError, match=r"must have room for 0\.0 GB of ordered events"):
        store_events(scan, scan.extent, _plan(scan), memory_bytes=1000)
    assert len(folders) == 1
    assert not folders[0].exists()


def test_no_event_in_the_image_leaves_an_empty_store() -> None:
    scan = _scan()
    far = Grid((4, 4, 4), (2.0, 2.0, 2.0), (0.0, 0.0, 5000.0))
    with store_events(scan, scan.extent, TaskPlan(RayModel.make(far, scan.scanner))) as store:
        assert store.n_outside == store.n_events == 5000
        assert store.crystal_a.size == 0
