"""Rates of one EM update, by voxel size, threads, events and TOF, beside two baselines.

``python -m benchmarks.updates --events 2e7`` prints the table of the claim; ``stillpet bench``
measures fewer events. All of a row's contenders run alternately in one process, on events
of one body (:func:`benchmarks.textbook.body_events`); rates are of the median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import recipe
from benchmarks.parallelproj_beside import find_parallelproj, make_update
from benchmarks.textbook import Textbook, body_events
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from listmode.source import ScanProtocol
from recon.events_store import EventsStore, store_events
from recon.image import Grid
from recon.osem import correct
from recon.projector import RayModel, TaskPlan

F32 = NDArray[np.float32]
GRIDS = {
    3.3: Grid.centred((165, 165, 322), 3.3),
    1.65: Grid.centred((330, 330, 645), 1.65),
}
ADDITIVE = np.float32(0.1)  # randoms, scatter and attenuation enter an update as this one term
FEW = 1000  # events of an update that shows its fixed cost


@dataclass(frozen=True)
class UpdateRates:
    """Events per second of one EM update; ``None`` where a contender was left out.

    Parameters
    ----------
    voxel_mm, n_events, threads, use_tof
        The case.
    stillpet, one_thread, textbook, recipe, parallelproj
        Rates of stillpet, of stillpet on one thread, of the two baselines, and of parallelproj
        where it is installed.
    fixed_s
        Seconds of an update of a handful of events: the cost of the image alone. The rates
        include it.
    """

    voxel_mm: float
    n_events: int
    threads: int
    use_tof: bool
    stillpet: float
    one_thread: float | None
    textbook: float | None
    recipe: float | None
    parallelproj: float | None
    fixed_s: float


def time_alternately(
    work: dict[str, Callable[[], object]], rounds: int = 3
) -> dict[str, float]:
    """Give the median seconds of each piece of work; one run before timing compiles it."""
    for run in work.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _store(scanner: Scanner, events: EventBatch, plan: TaskPlan, threads: int) -> EventsStore:
    held = MemoryListmode(scanner, ScanProtocol(), events, np.array([0, len(events)]))

    def constant(batch: EventBatch) -> F32:
        return np.full(len(batch), ADDITIVE)

    return store_events(held, held.extent, plan, additive=constant, threads=threads)


def measure(
    voxel_mm: float,
    n_events: int,
    *,
    threads: int = 2,
    use_tof: bool = True,
    against: tuple[str, ...] = ("one_thread", "textbook", "recipe"),
    rounds: int = 3,
) -> UpdateRates:
    """Time one EM update of ``n_events`` LAFOV events (Quadra UHS, 228 ps, 3 sigma).

    Parameters
    ----------
    voxel_mm
        3.3 or 1.65.
    against
        Contenders to run beside it.
    """
    scanner, grid = load_scanner("quadra-UHS"), GRIDS[voxel_mm]
    events = body_events(scanner, n_events)
    some = EventBatch(events.crystal_a[:FEW], events.crystal_b[:FEW], events.tof_bin[:FEW])
    rays = RayModel.make(grid, scanner, tof=use_tof)
    ones = np.ones(grid.shape, np.float32)
    work: dict[str, Callable[[], object]] = {}
    with (
        _store(scanner, events, TaskPlan(rays), threads) as ours,
        _store(scanner, some, TaskPlan(rays), threads) as few,
        _store(scanner, some, recipe.plan_of(rays), threads) as short,
    ):
        theirs = short
        if "recipe" in against:
            theirs = _store(scanner, events, recipe.plan_of(rays), threads)
            work["recipe"] = lambda: recipe.update(theirs, ones, threads)
        if "textbook" in against:
            plain = Textbook(scanner, grid, events)
            additive = np.full(n_events, ADDITIVE)
            work["textbook"] = lambda: plain.update(ones, additive, threads)
        library = find_parallelproj() if "textbook" in against else None
        if library is not None:
            other = make_update(library, scanner, grid, events)
            same = np.full(n_events, ADDITIVE)
            work["parallelproj"] = lambda: other(ones, same)
        if "one_thread" in against:
            work["one_thread"] = lambda: correct(ours, 0, ones, 1)
        work["stillpet"] = lambda: correct(ours, 0, ones, threads)
        work["fixed"] = lambda: correct(few, 0, ones, threads)
        seconds = time_alternately(work, rounds)
        if theirs is not short:
            theirs.close()
    fixed_s = seconds.pop("fixed")
    rate = {name: n_events / s for name, s in seconds.items()}
    return UpdateRates(
        voxel_mm, n_events, threads, use_tof, rate["stillpet"], rate.get("one_thread"),
        rate.get("textbook"), rate.get("recipe"), rate.get("parallelproj"), fixed_s,
    )  # fmt: skip


HEAD = """| voxels mm | events | threads | TOF | M events/s | x one thread | x textbook | x recipe | x parallelproj | fixed s |
|---|---|---|---|---|---|---|---|---|---|"""  # noqa: E501


def line(rates: UpdateRates) -> str:
    """Give a row of the table."""

    def ratio(other: float | None) -> str:
        return "" if other is None else f"{rates.stillpet / other:.2f}"

    return (
        f"| {rates.voxel_mm:g} | {rates.n_events:.3g} | {rates.threads} | "
        f"{'yes' if rates.use_tof else 'no'} | {rates.stillpet / 1e6:.2f} | "
        f"{ratio(rates.one_thread)} | {ratio(rates.textbook)} | {ratio(rates.recipe)} | "
        f"{ratio(rates.parallelproj)} | {rates.fixed_s:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=float, default=2e7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    n, threads = int(args.events), args.threads
    print(HEAD, flush=True)
    for voxel_mm, n_events, use_tof, against in (
        (3.3, n, True, ("one_thread", "textbook", "recipe")),
        (3.3, n // 10, True, ("one_thread", "textbook", "recipe")),
        (3.3, n // 10, False, ("one_thread",)),
        (1.65, n, True, ("one_thread", "recipe")),
        (1.65, n // 10, True, ("one_thread", "recipe")),
    ):
        rates = measure(
            voxel_mm, n_events, threads=threads, use_tof=use_tof, against=against,
            rounds=args.rounds,
        )  # fmt: skip
        print(line(rates), flush=True)


if __name__ == "__main__":
    main()
