"""One EM update of ordered events, against the textbook's: the claim of speed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.textbook import Textbook, body_events
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.source import ScanProtocol
from recon.events_store import EventsStore, store_events
from recon.image import Grid
from recon.osem import correct
from recon.projector import RayModel, TaskPlan

N_EVENTS = 2_000_000
ADDITIVE = np.float32(0.3)
GRIDS = {
    "3.3 mm": Grid.centred((165, 165, 322), 3.3),
    "1.65 mm": Grid.centred((330, 330, 645), 1.65),
}


@cache
def _scan() -> MemoryListmode:
    scanner = load_scanner("quadra")
    events = body_events(scanner, N_EVENTS)
    return MemoryListmode(scanner, ScanProtocol(), events, np.array([0, N_EVENTS]))


def _constant(batch: EventBatch) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(len(batch), ADDITIVE)


def _store(grid: Grid, use_tof: bool) -> EventsStore:
    scan = _scan()
    plan = TaskPlan(RayModel.make(grid, scan.scanner, tof=use_tof))
    return store_events(scan, scan.extent, plan, additive=_constant)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def bench_update(benchmark: BenchmarkFixture, grid: str, threads: int) -> None:
    image = np.random.default_rng(1).random(GRIDS[grid].shape).astype(np.float32)
    benchmark.extra_info["events"] = N_EVENTS
    with _store(GRIDS[grid], use_tof=True) as store:
        correct(store, 0, image, threads)
        benchmark(correct, store, 0, image, threads)


def bench_update_without_tof(benchmark: BenchmarkFixture) -> None:
    grid = GRIDS["3.3 mm"]
    image = np.random.default_rng(1).random(grid.shape).astype(np.float32)
    benchmark.extra_info["events"] = N_EVENTS
    with _store(grid, use_tof=False) as store:
        correct(store, 0, image, 2)
        benchmark(correct, store, 0, image, 2)


@pytest.mark.parametrize("threads", [1, 2])
def bench_textbook_update(benchmark: BenchmarkFixture, threads: int) -> None:
    grid = GRIDS["3.3 mm"]
    image = np.random.default_rng(1).random(grid.shape).astype(np.float32)
    textbook = Textbook(_scan().scanner, grid, _scan().prompts)
    additive = np.full(N_EVENTS, ADDITIVE)
    theirs = textbook.update(image, additive, threads)
    with _store(grid, use_tof=True) as store:
        ours, _ = correct(store, 0, image, threads)
    assert np.abs(ours - theirs).sum() < 2e-3 * theirs.sum()
    benchmark.extra_info["events"] = N_EVENTS
    benchmark(textbook.update, image, additive, threads)
