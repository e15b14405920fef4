"""What ``stillpet bench`` runs: rates of each stage, alternately with what they compare to."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.textbook import Textbook, body_events
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.histogram import accumulate
from listmode.memory import MemoryListmode
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.simulate.generate import simulate_scan
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.source import Listmode, ScanProtocol
from recon.events_store import store_events
from recon.image import Grid
from recon.osem import OsemSettings, osem
from recon.pipeline.benchmark import BenchmarkRow
from recon.pipeline.images import choose_grid
from recon.projector import RayModel, TaskPlan, back, forward

ROUNDS = 3
SECONDS_OF_SCAN = {False: 6.0, True: 1.5}  # of the low-dose scan: 340,000 prompts a second


def time_alternately(
    work: dict[str, Callable[[], object]], rounds: int = ROUNDS
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


def run_suite(
    *, threads: int = 2, is_quick: bool = False, progress: Progress = SILENT
) -> list[BenchmarkRow]:
    """Measure all stages on one simulated scan; see :func:`recon.pipeline.run_benchmarks`."""
    scanner = load_scanner("quadra-UHS")
    with (
        tempfile.TemporaryDirectory() as folder,
        progress.stage("benchmarks", 5, "stages") as bar,
    ):
        path = Path(folder) / "scan.h5"
        rows = [_simulation(scanner, path, SECONDS_OF_SCAN[is_quick], threads)]
        bar.advance(1)
        with open_listmode(path) as listmode:
            rows.append(_reading(listmode))
            bar.advance(1)
            rows += _motion_pass(listmode, threads)
            bar.advance(1)
            events = next(iter(listmode.events(chunk=1 << 22)))
            grid = choose_grid(scanner)
            rows += _projectors(scanner, grid, events, threads)
            bar.advance(1)
            rows += _updates(scanner, grid, 500_000 if is_quick else 2_000_000, threads)
            bar.advance(1)
    return rows


def _simulation(scanner: Scanner, path: Path, seconds: float, threads: int) -> BenchmarkRow:
    """Simulate a scan; tables and compilation are done on a first, shorter one."""
    phantom = pregnant_phantom()

    def run(duration_s: float) -> tuple[int, float]:
        start = time.perf_counter()
        truth = simulate_scan(
            path, scanner=scanner, phantom=phantom, dose=LOW_DOSE_FDG, seed=1,
            duration_s=duration_s, threads=threads,
        )  # fmt: skip
        n = truth.n_trues + truth.n_randoms + truth.n_scatter
        return n, time.perf_counter() - start

    n_short, short_s = run(seconds / 8.0)
    n_short, short_s = run(seconds / 8.0)  # compiled now: what is left is fixed cost
    n, long_s = run(seconds)
    rate = (n - n_short) / max(long_s - short_s, 1e-9)
    return BenchmarkRow(f"simulation, {n / 1e6:.1f} M prompts, set-up left out", rate)


def _reading(listmode: Listmode) -> BenchmarkRow:
    def run() -> int:
        return sum(len(batch) for batch in listmode.events())

    n = listmode.n_events()
    seconds = time_alternately({"read": run})["read"]
    return BenchmarkRow(f"reading HDF5 with checksums, {n / 1e6:.1f} M events", n / seconds)


def _motion_pass(listmode: Listmode, threads: int) -> list[BenchmarkRow]:
    times = time_alternately(
        {
            "one": lambda: accumulate(listmode, threads=1),
            "all": lambda: accumulate(listmode, threads=threads),
        }
    )
    n = listmode.n_events()
    return [
        BenchmarkRow(
            f"motion pass from disk, {threads} threads", n / times["all"],
            times["one"] / times["all"], "1 thread",
        )
    ]  # fmt: skip


def _projectors(
    scanner: Scanner, grid: Grid, events: EventBatch, threads: int
) -> list[BenchmarkRow]:
    image = np.ones(grid.shape, np.float32)
    weights = np.ones(len(events), np.float32)
    times = time_alternately(
        {
            "forward": lambda: forward(image, grid, scanner, events, threads=threads),
            "back": lambda: back(weights, grid, scanner, events, threads=threads),
        }
    )
    size = "x".join(str(n) for n in grid.shape)
    return [
        BenchmarkRow(f"{name} projection, {size}, {threads} threads", len(events) / seconds)
        for name, seconds in times.items()
    ]


def _updates(scanner: Scanner, grid: Grid, n_events: int, threads: int) -> list[BenchmarkRow]:
    """Compare one EM update with the textbook's, and all threads with one."""
    events = body_events(scanner, n_events)
    held = MemoryListmode(scanner, ScanProtocol(), events, np.array([0, n_events]))
    ones = np.ones(grid.shape, np.float32)
    settings = OsemSettings(n_iterations=1, n_subsets=1, psf_fwhm_mm=0.0)
    plain = Textbook(scanner, grid, events)
    additive = np.full(n_events, 0.1, np.float32)
    plan = TaskPlan(RayModel.make(grid, scanner, n_sigma=settings.n_sigma))
    with store_events(held, held.extent, plan, threads=threads) as store:

        def update(n_threads: int) -> object:
            return next(
                osem(store, ones, grid, calibration=1.0, settings=settings, threads=n_threads)
            )

        times = time_alternately(
            {
                "textbook": lambda: plain.update(ones, additive, threads),
                "one": lambda: update(1),
                "all": lambda: update(threads),
            }
        )
    size = f"{n_events / 1e6:g} M events"
    ratio = times["textbook"] / times["all"]
    return [
        BenchmarkRow(
            f"textbook update, {size}, {threads} threads", n_events / times["textbook"]
        ),
        BenchmarkRow(
            f"EM update, {size}, {threads} threads", n_events / times["all"], ratio, "textbook"
        ),
        BenchmarkRow(
            f"EM update, {size}, {threads} threads", n_events / times["all"],
            times["one"] / times["all"], "1 thread",
        ),
    ]  # fmt: skip
