"""What ``stillpet bench`` runs: rates of each stage, alternately with what they compare to."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.plain import most_likely_positions, read_columns
from benchmarks.textbook import Textbook
from benchmarks.updates import measure, time_alternately
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.histogram import accumulate
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.simulate.generate import simulate_scan
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.source import Listmode
from recon.image import Grid
from recon.pipeline.benchmark import BenchmarkRow
from recon.pipeline.images import choose_grid
from recon.projector import back, forward

SECONDS_OF_SCAN = {False: 6.0, True: 1.5}  # of the low-dose scan: 340,000 prompts a second


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
            rows.append(_reading(listmode, path))
            bar.advance(1)
            rows += _motion_pass(listmode, threads)
            bar.advance(1)
            events = next(iter(listmode.events(chunk=1 << 22)))
            grid = choose_grid(scanner)
            rows += _projectors(scanner, grid, events, threads)
            bar.advance(1)
            rows += _updates(500_000 if is_quick else 4_000_000, threads, is_quick=is_quick)
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


def _reading(listmode: Listmode, path: Path) -> BenchmarkRow:
    def run() -> int:
        return sum(len(batch) for batch in listmode.events())

    n = listmode.n_events()
    times = time_alternately({"ours": run, "plain": lambda: read_columns(path)})
    return BenchmarkRow(
        f"reading HDF5 with checksums, {n / 1e6:.1f} M events", n / times["ours"],
        times["plain"] / times["ours"], "plain h5py",
    )  # fmt: skip


def _motion_pass(listmode: Listmode, threads: int) -> list[BenchmarkRow]:
    times = time_alternately(
        {
            "one": lambda: accumulate(listmode, threads=1),
            "all": lambda: accumulate(listmode, threads=threads),
            "plain": lambda: most_likely_positions(listmode),
        }
    )
    n = listmode.n_events()
    return [
        BenchmarkRow(
            f"motion pass from disk, {threads} threads", n / times["all"],
            times[other] / times["all"], name,
        )
        for other, name in (("plain", "plain numpy"), ("one", "1 thread"))
    ]  # fmt: skip


def _projectors(
    scanner: Scanner, grid: Grid, events: EventBatch, threads: int
) -> list[BenchmarkRow]:
    image = np.ones(grid.shape, np.float32)
    weights = np.ones(len(events), np.float32)
    plain = Textbook(scanner, grid, events)
    times = time_alternately(
        {
            "forward": lambda: forward(image, grid, scanner, events, threads=threads),
            "textbook forward": lambda: plain.forward(image, threads),
            "back": lambda: back(weights, grid, scanner, events, threads=threads),
            "textbook back": lambda: plain.back(weights, threads),
        }
    )
    size = "x".join(str(n) for n in grid.shape)
    return [
        BenchmarkRow(
            f"{name} projection, {size}, {threads} threads", len(events) / times[name],
            times[f"textbook {name}"] / times[name], "textbook",
        )
        for name in ("forward", "back")
    ]  # fmt: skip


def _updates(n_events: int, threads: int, *, is_quick: bool) -> list[BenchmarkRow]:
    """Compare one EM update with the textbook's, with the recipe's, and threads with one."""
    rows = []
    cases: list[tuple[float, int, tuple[str, ...]]] = [
        (3.3, n_events, ("textbook", "recipe", "one_thread"))
    ]
    if not is_quick:
        cases.append((1.65, 2 * n_events, ("recipe",)))
    for voxel_mm, n, against in cases:
        rates = measure(voxel_mm, n, threads=threads, against=against)
        what = f"EM update, {n / 1e6:g} M events, {voxel_mm:g} mm, {threads} threads"
        for name, rate in (
            ("textbook", rates.textbook),
            ("recipe", rates.recipe),
            ("parallelproj", rates.parallelproj),
            ("1 thread", rates.one_thread),
        ):
            if rate is not None:
                rows.append(BenchmarkRow(what, rates.stillpet, rates.stillpet / rate, name))
    return rows
