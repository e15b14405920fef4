"""Generate listmode scans of phantoms, into memory or a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from listmode.events import EventBatch
from listmode.formats.hdf5 import ListmodeWriter
from listmode.memory import MemoryListmode
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.protocols import Dose
from listmode.simulate.shapes import Phantom
from listmode.simulate.simulation import TABLE_EVENTS, Box, ScatterMode, Simulation, Slice
from listmode.simulate.truth import RANDOM, SCATTER, TRUE, CountBudget, SimulationTruth


def expected_counts(
    *,
    scanner: Scanner,
    phantom: Phantom,
    dose: Dose,
    motion: PatientMotion = STILL,
    seed: int = 0,
    count_fraction: float = 1.0,
    scatter: ScatterMode = "table",
    with_randoms: bool = True,
    emission_box_mm: Box | None = None,
    duration_s: float | None = None,
    threads: int = 2,
) -> CountBudget:
    """Predict how many events a scan will hold; parameters as for :class:`Simulation`."""
    return Simulation(
        scanner, phantom, dose, motion, seed, count_fraction, scatter, with_randoms,
        emission_box_mm, duration_s, threads, table_events=20_000,
    ).budget  # fmt: skip


def simulate_in_memory(
    *,
    scanner: Scanner,
    phantom: Phantom,
    dose: Dose,
    motion: PatientMotion = STILL,
    seed: int,
    count_fraction: float = 1.0,
    scatter: ScatterMode = "table",
    with_randoms: bool = True,
    emission_box_mm: Box | None = None,
    duration_s: float | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> tuple[MemoryListmode, SimulationTruth]:
    """Generate a scan and keep it in memory; parameters as for :class:`Simulation`."""
    simulation = Simulation(
        scanner, phantom, dose, motion, seed, count_fraction, scatter, with_randoms,
        emission_box_mm, duration_s, threads,
    )  # fmt: skip
    return gather(simulation, progress)


def gather(
    simulation: Simulation, progress: Progress = SILENT
) -> tuple[MemoryListmode, SimulationTruth]:
    """Generate the slices of a simulation and keep them in memory as one scan."""
    slices = list(_slices(simulation, progress))
    listmode = MemoryListmode(
        scanner=simulation.scanner,
        protocol=simulation.protocol,
        prompts=_joined([s.prompts for s in slices]),
        prompts_offset=_offset(np.concatenate([s.prompts_per_tick for s in slices])),
        delayeds=_joined([s.delayeds for s in slices]),
        delayeds_offset=_offset(np.concatenate([s.delayeds_per_tick for s in slices])),
        truth=np.concatenate([s.truth for s in slices]),
        crystal_efficiency=simulation.efficiency,
        notes=("simulated",),
        clock_zero="start of the simulated scan",
    )
    counts = np.sum([_count(s) for s in slices], axis=0)
    return listmode, _truth(simulation, counts)


def simulate_scan(
    path: str | Path,
    *,
    scanner: Scanner,
    phantom: Phantom,
    dose: Dose,
    motion: PatientMotion = STILL,
    seed: int,
    count_fraction: float = 1.0,
    scatter: ScatterMode = "table",
    with_randoms: bool = True,
    emission_box_mm: Box | None = None,
    duration_s: float | None = None,
    threads: int = 2,
    table_events: int = TABLE_EVENTS,
    tell: Callable[[CountBudget], None] = lambda _budget: None,
    progress: Progress = SILENT,
) -> SimulationTruth:
    """Generate a scan into a file of our own format, slice by slice.

    Parameters as for :class:`Simulation`; the same seed gives the same file at any number of
    threads. Only a few slices are in memory at any time. ``tell`` receives the expected counts
    before the first event is made.
    """
    simulation = Simulation(
        scanner, phantom, dose, motion, seed, count_fraction, scatter, with_randoms,
        emission_box_mm, duration_s, threads, table_events,
    )  # fmt: skip
    tell(simulation.budget)
    counts = np.zeros(4, np.int64)
    with ListmodeWriter(
        path,
        scanner=scanner,
        protocol=simulation.protocol,
        crystal_efficiency=simulation.efficiency,
        has_truth=True,
        provenance=_provenance(simulation),
        clock_zero="start of the simulated scan",
    ) as writer:
        for part in _slices(simulation, progress):
            writer.append("prompts", part.prompts, part.prompts_per_tick, part.truth)
            writer.append("delayeds", part.delayeds, part.delayeds_per_tick)
            counts += _count(part)
    return _truth(simulation, counts)


def _slices(simulation: Simulation, progress: Progress) -> Iterator[Slice]:
    """Make slices on threads and yield them in order, with few of them in memory."""
    simulation.prepare()
    waiting: deque[Future[Slice]] = deque()
    total = round(simulation.budget.prompts)
    with (
        progress.stage("simulating", total) as stage,
        ThreadPoolExecutor(simulation.threads) as pool,
    ):
        for number in range(simulation.n_slices + simulation.threads):
            if number < simulation.n_slices:
                waiting.append(pool.submit(simulation.make_slice, number))
            if waiting and number >= simulation.threads:
                part = waiting.popleft().result()
                stage.advance(len(part.prompts))
                yield part
        while waiting:
            part = waiting.popleft().result()
            stage.advance(len(part.prompts))
            yield part


def _count(part: Slice) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    by_label = [int((part.truth == label).sum()) for label in (TRUE, SCATTER, RANDOM)]
    return np.array([*by_label, len(part.delayeds)], np.int64)


def _truth(
    simulation: Simulation, counts: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> SimulationTruth:
    scanner = simulation.scanner
    n_trues, n_scatter, n_randoms, n_delayeds = (int(n) for n in counts)
    return SimulationTruth(
        scanner=f"{scanner.name}-{scanner.mode}" if scanner.mode else scanner.name,
        seed=simulation.seed,
        phantom=simulation.phantom,
        motion=simulation.motion,
        protocol=simulation.protocol,
        duration_s=simulation.n_ticks / 1000.0,
        n_trues=n_trues,
        n_scatter=n_scatter,
        n_randoms=n_randoms,
        n_delayeds=n_delayeds,
        crystal_efficiency=simulation.efficiency,
    )


def _provenance(simulation: Simulation) -> dict[str, str]:
    return {
        "source": "simulated",
        "phantom": simulation.phantom.name,
        "dose": simulation.dose.name,
        "seed": str(simulation.seed),
        "scatter": simulation.scatter,
    }


def _joined(batches: list[EventBatch]) -> EventBatch:
    return EventBatch(
        np.concatenate([b.crystal_a for b in batches]),
        np.concatenate([b.crystal_b for b in batches]),
        np.concatenate([b.tof_bin for b in batches]),
    )


def _offset(
    n_per_tick: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(n_per_tick)))
