"""Speed of the motion pass, and the statistics of motion detection on simulated scans.

``pytest benchmarks/bench_motion.py -o python_files='bench_*.py' -o python_functions='bench_*'``
times the pass; ``python -m benchmarks.bench_motion acceptance --seeds 10`` simulates moved and
still scans event by event, with photon transport, at the full counts of the low-dose protocol.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

import numpy as np

from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.histogram import accumulate
from listmode.memory import MemoryListmode
from listmode.motion import MotionResult, analyse_motion
from listmode.source import ScanProtocol

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

# The bladder and 45 mm around it, at every volume from 148 to 248 mL and shifted by 13 mm.
PELVIC_BOX_MM = ((-87.0, 87.0), (-125.0, 27.0), (-358.0, -180.0))


def uniform_listmode(n_events: int, *, seed: int = 20240501) -> MemoryListmode:
    """Make a scan of ten seconds with crystals and bins drawn at random: for speed alone."""
    scanner = load_scanner("quadra", "UHS")
    rng = np.random.default_rng(seed)
    first = rng.integers(0, scanner.n_crystals, n_events)
    second = (first + rng.integers(1, scanner.n_crystals, n_events)) % scanner.n_crystals
    bins = rng.integers(0, scanner.tof.n_bins, n_events)
    batch = EventBatch.from_pairs(first, second, bins, scanner.tof.n_bins)
    offset = np.linspace(0, n_events, 10_001).astype(np.int64)
    return MemoryListmode(scanner, ScanProtocol(), batch, offset)


def bench_accumulate(benchmark: BenchmarkFixture) -> None:
    listmode = uniform_listmode(10_000_000)
    histogram = accumulate(listmode)
    assert int(histogram.image.sum()) + sum(histogram.rejected.values()) == 10_000_000
    benchmark.extra_info["events"] = 10_000_000
    benchmark(accumulate, listmode)


def simulate_case(
    seed: int, *, is_moved: bool, scatter: str = "off"
) -> tuple[MotionResult, float]:
    """Simulate and analyse one scan of the seed's case; give the result and the step's time."""
    from listmode.simulate.generate import simulate_in_memory
    from listmode.simulate.motion import STILL, PatientMotion
    from listmode.simulate.phantom import pregnant_phantom
    from listmode.simulate.protocols import LOW_DOSE_FDG

    at_s = float(np.random.default_rng(seed).uniform(300.0, 900.0))
    motion = PatientMotion((at_s,), ((0.0, 0.0, 13.0),)) if is_moved else STILL
    listmode, _ = simulate_in_memory(
        scanner=load_scanner("quadra", "UHS"),
        phantom=pregnant_phantom(bladder_suv=10.0, bladder_ml=148.0, filling_ml_min=5.0),
        dose=LOW_DOSE_FDG,
        motion=motion,
        seed=seed,
        scatter="off" if scatter == "off" else "table",
        with_randoms=False,
        emission_box_mm=PELVIC_BOX_MM,
    )
    return analyse_motion(listmode), at_s


def acceptance(seeds: list[int], kinds: list[bool]) -> None:
    """Print one line of JSON a scan, and the verdict on each."""
    for seed in seeds:
        for is_moved in kinds:
            begin = time.perf_counter()
            result, at_s = simulate_case(seed, is_moved=is_moved)
            changes = result.changes.items
            good = not changes
            if is_moved:
                good = (
                    len(changes) == 1
                    and abs(changes[0].time_s - at_s) <= 1.0
                    and float(np.linalg.norm(np.subtract(changes[0].shift_mm, (0, 0, 13.0))))
                    <= 0.5
                )
            line = {
                "seed": seed,
                "is_moved": is_moved,
                "is_good": good,
                "true_time_s": at_s if is_moved else None,
                "changes": [c.to_dict() for c in changes],
                "filling_ml_min": result.changes.filling_ml_min,
                "n_events": result.histogram.n_events,
                "standard_error_mm": np.median(result.trace.standard_error_mm, axis=0).tolist(),
                "wall_s": round(time.perf_counter() - begin, 1),
            }
            print(json.dumps(line), flush=True)


def main() -> None:
    """Run one of the studies from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["acceptance"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--only", choices=["moved", "still"])
    options = parser.parse_args()
    kinds = {"moved": [True], "still": [False]}.get(options.only, [True, False])
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    acceptance(seeds, kinds)


if __name__ == "__main__":
    main()
