"""A whole low-dose scan (350 million prompts), reconstructed with every correction.

    python -m benchmarks.full_scan_study simulate     # once: 3.6 GB in out/full_scan
    python -m benchmarks.full_scan_study reconstruct  # of 2e7, 1e8 and all events

The reconstruction is that of ``stillpet recon``: 3.3 mm, 4 iterations of 5 subsets,
attenuation, randoms, scatter; its sensitivity image is computed anew for each. Seconds of each
stage, the peak of the process's own memory (page cache left out) and what was foretold are
printed and kept in ``out/full_scan/results.jsonl``. A first run of hardly any events gives the
fixed cost of all updates; the cost per event is that of sorting, additive term and iterations
without it.
"""

from __future__ import annotations

import argparse
import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from listmode.formats import open_listmode
from listmode.progress import Stage
from listmode.source import Listmode
from listmode.windows import Windows
from recon.cost import measure_rays_per_s
from recon.events_order import BYTES_PER_EVENT
from recon.events_store import MEMORY_BYTES
from recon.io.nifti import load_volume, save_volume
from recon.pipeline.demo import SimulationPlan, simulate_to_folder
from recon.pipeline.images import choose_grid, estimate_run, reconstruct_scan
from recon.settings import Settings

OUT = Path("out/full_scan")
N_EVENTS = (20_000_000, 100_000_000, 0)  # 0: all
FEW = 100_000  # whose cost beside that of the image does not count


class Seconds:
    """Adds up the seconds of stages by name; a :class:`listmode.progress.Progress`."""

    def __init__(self) -> None:
        self.by_name: dict[str, float] = {}

    def advance(self, n: int) -> None:
        """Ignore it."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "events") -> Iterator[Stage]:
        """Time a stage."""
        del total, unit
        begun = time.perf_counter()
        yield self
        seconds = time.perf_counter() - begun
        self.by_name[name] = round(self.by_name.get(name, 0.0) + seconds, 2)


class MemoryPeak:
    """Watches the process's own memory, page cache of files left out (Linux)."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, own_memory_bytes())

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def own_memory_bytes() -> int:
    """Give the anonymous resident memory of this process, from ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def middle(listmode: Listmode, n_events: int) -> Windows:
    """Choose the middle of a scan that holds about so many events; all of it for 0."""
    if not n_events:
        return listmode.extent
    start, stop = int(listmode.extent.start_ms[0]), int(listmode.extent.stop_ms[-1])
    centre, share = (start + stop) // 2, n_events / listmode.n_events()
    half = round((stop - start) * share / 2)
    return Windows([centre - half], [centre + half])


def reconstruct(n_events: int, threads: int, tell: bool = True) -> dict[str, Any]:
    """Reconstruct the middle of the scan; give what it took."""
    settings, seconds = Settings(), Seconds()
    with open_listmode(OUT / "scan.h5") as listmode:
        windows = middle(listmode, n_events)
        n = listmode.count(windows)
        mu = load_volume(OUT / "mu.nii.gz", "1/cm")
        rays_per_s = measure_rays_per_s(listmode.scanner, threads)
        foretold = estimate_run(listmode, windows, settings, rays_per_s=rays_per_s)
        gc.collect()
        before = own_memory_bytes()
        with MemoryPeak() as memory:
            begun = time.perf_counter()
            made = reconstruct_scan(
                listmode, windows, mu=mu, settings=settings, threads=threads, progress=seconds
            )
            total = time.perf_counter() - begun
        grid = choose_grid(listmode.scanner)
    result = {
        "n_events": n,
        "threads": threads,
        "total_s": round(total, 1),
        "events_per_s": round(n / total),
        "stages_s": seconds.by_name,
        "steps_s": made.volume.provenance["seconds"],
        "image_bytes": 4 * grid.n_voxels,
        "before_bytes": before,
        "peak_bytes": memory.peak_bytes,
        "rays_per_s": round(rays_per_s),
        "foretold_bytes": foretold.memory_bytes,
        "foretold_s": round(foretold.seconds, 1),
        "spilled": n * BYTES_PER_EVENT > MEMORY_BYTES,
        "n_randoms": made.n_randoms,
        "n_scatter": made.n_scatter,
        "sensitivity_relative_error": made.sensitivity.relative_error,
    }
    if tell:
        save_volume(OUT / f"image_{n_events:.0e}.nii.gz", made.volume)
    return result


def growing_s(result: dict[str, Any]) -> float:
    """Add up the seconds that grow with the events: sorting, additive term and updates.

    Those of the coarse images that scatter is estimated from are not among them: they take a
    fixed number of events.
    """
    steps: dict[str, float] = result["steps_s"]
    return steps["sorting"] + steps["updates"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["simulate", "reconstruct"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count-fraction", type=float, default=1.0)
    parser.add_argument("--events", type=float, nargs="*", default=list(N_EVENTS))
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if given.what == "simulate":
        begun = time.perf_counter()
        plan = SimulationPlan(count_fraction=given.count_fraction, filling_ml_min=0.0)
        made = simulate_to_folder(plan, OUT, threads=given.threads, say=print).truth
        seconds = time.perf_counter() - begun
        n = made.n_trues + made.n_scatter + made.n_randoms
        own = made.n_trues + made.n_randoms
        print(f"{n} prompts, {own} of them trues and randoms, in {seconds:.0f} s, files "
              f"included: {own / seconds / 1e6:.2f} M trues + randoms/s")  # fmt: skip
        return
    reconstruct(FEW, given.threads, tell=False)  # compiles
    fixed_s = growing_s(reconstruct(FEW, given.threads, tell=False))
    print(f"fixed cost of all updates: {fixed_s:.1f} s", flush=True)
    for n in given.events:
        result = reconstruct(int(n), given.threads)
        result["fixed_s"] = round(fixed_s, 2)
        result["us_per_event"] = (growing_s(result) - fixed_s) / result["n_events"] * 1e6
        with (OUT / "results.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")
        print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
