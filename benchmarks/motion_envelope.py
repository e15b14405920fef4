"""Where following the bladder stops working, and whether the drawn scans are true to photons.

``python -m benchmarks.motion_envelope map POOLS.npz`` draws scans of ten minutes with one shift
of 5 mm at the edges of the envelope and beyond, and prints one row of Markdown a condition.
``... photons POOLS.npz`` simulates the same scan by photon transport and by drawing, and prints
counts, standard errors and errors of both. The pools are made by the motion suite.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.motion_events import MotionCase, Pools, draw_scan, scanner, start_bladder
from listmode.motion.changes import find_changes
from listmode.motion.region import RegionEvents, collect_region
from listmode.motion.trace import follow_bladder
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG

F64 = NDArray[np.float64]

BASE = MotionCase(
    "step", 0, suv=10.0, steps=((300.0, (0.0, 3.0, 4.0)),), counts=0.1, duration_s=600.0
)
CONDITIONS: dict[str, MotionCase] = {
    "as a base: SUV 10, 148 mL, 5 mL/min, a tenth of the counts": BASE,
    "SUV 4": replace(BASE, suv=4.0),
    "SUV 2": replace(BASE, suv=2.0),
    "SUV 1.2": replace(BASE, suv=1.2),
    "voided: 20 mL, filling 1 mL/min": replace(BASE, volume_ml=20.0, filling_ml_min=1.0),
    "voids 100 mL at 450 s": replace(BASE, void_ml=100.0, void_s=450.0),
    "filling 15 mL/min from 50 mL": replace(BASE, volume_ml=50.0, filling_ml_min=15.0),
    "filling 40 mL/min from 50 mL": replace(BASE, volume_ml=50.0, filling_ml_min=40.0),
    "layering: mean place 2 mm dorsal at the end": replace(BASE, layering=1.0 / 3.0),
    "layering: mean place 6 mm dorsal at the end": replace(BASE, layering=1.0),
    "a fiftieth of the counts": replace(BASE, counts=0.02),
    "a two-hundredth of the counts": replace(BASE, counts=0.005),
    "the shift takes 60 s": replace(BASE, ramp_s=60.0, steps=((270.0, (0.0, 3.0, 4.0)),)),
    "breathing 4 mm, wander 3 mm in 5 min": replace(BASE, breathing_mm=4.0, wander_mm=3.0),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one scan."""

    window_s: float
    error_mm: float  # of the trace's z about the truth, root mean square
    stated_mm: float
    n_found: int
    time_error_s: float
    shift_error_mm: float
    n_false: int


def judge(events: RegionEvents, case: MotionCase) -> Outcome:
    """Follow one scan and compare with its truth."""
    followed = follow_bladder(events, start_bladder(case), threads=1)
    trace = followed.trace
    at, shift = case.true_changes()[0]
    found = find_changes(trace, followed=followed).items
    near = [c for c in found if abs(c.time_s - at) <= 10.0 + case.ramp_s]
    true_z = case.bladder_place_mm(trace.time_ms / 1e3)[:, 2]
    error = trace.displacement_mm[:, 2] + trace.reference_mm[2] - true_z
    clean = np.isfinite(error)
    clean &= np.abs(trace.time_ms / 1e3 - at) > 2.0 + case.ramp_s + trace.window_ms / 2e3
    left = error[clean] - error[clean].mean() if clean.any() else np.array([math.nan])
    return Outcome(
        window_s=trace.window_ms / 1e3,
        error_mm=float(np.sqrt((left**2).mean())),
        stated_mm=float(np.median(trace.standard_error_mm[:, 2])),
        n_found=len(near),
        time_error_s=abs(near[0].time_s - at) if near else math.nan,
        shift_error_mm=math.dist(near[0].shift_mm, shift) if near else math.nan,
        n_false=len(found) - min(len(near), 1),
    )


def failure_map(pools: Pools, n_seeds: int) -> Iterator[str]:
    """Give one row of Markdown a condition."""
    yield (
        "| condition | window | SE stated, z | RMS error, z | 5 mm found | off in time | "
        "off in size | false alarms |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for k, (name, case) in enumerate(CONDITIONS.items()):
        rows = []
        for seed in range(n_seeds):
            scan = replace(case, seed=500_000 + 100 * k + seed)
            rows.append(judge(draw_scan(pools, scan), scan))
        hits = [r for r in rows if r.n_found]
        time_s = f"{np.median([r.time_error_s for r in hits]):.2f} s" if hits else "-"
        size = f"{np.median([r.shift_error_mm for r in hits]):.2f} mm" if hits else "-"
        yield (
            f"| {name} | {np.median([r.window_s for r in rows]):g} s | "
            f"{np.median([r.stated_mm for r in rows]):.2f} mm | "
            f"{np.median([r.error_mm for r in rows]):.2f} mm | {len(hits)} of {n_seeds} | "
            f"{time_s} | {size} | {sum(r.n_false for r in rows)} |"
        )


def check_against_photons(pools: Pools, seed: int) -> Iterator[str]:
    """Simulate one scan both ways; give counts, errors stated and errors made of both."""
    case = replace(
        BASE, seed=seed, counts=0.05, duration_s=200.0, steps=((100.0, (0, 3.0, 4.0)),)
    )
    drawn = draw_scan(pools, case)
    listmode, _ = simulate_in_memory(
        scanner=scanner(),
        phantom=pregnant_phantom(
            bladder_suv=case.suv, bladder_ml=case.volume_ml, filling_ml_min=case.filling_ml_min
        ),
        dose=LOW_DOSE_FDG,
        motion=case.body_motion(),
        seed=seed,
        count_fraction=case.counts,
        duration_s=case.duration_s,
        threads=1,
    )
    followed = collect_region(listmode, drawn.lower_mm, drawn.upper_mm, threads=1)
    yield "| scan | events in the region | window | SE stated, z | RMS error, z |"
    yield "|---|---|---|---|---|"
    for name, events in (("drawn", drawn), ("photon transport", followed)):
        r = judge(events, case)
        yield (
            f"| {name} | {len(events)} | {r.window_s:g} s | {r.stated_mm:.3f} mm | "
            f"{r.error_mm:.3f} mm |"
        )


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["map", "photons"])
    parser.add_argument("pools", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    pools = Pools.load(options.pools)
    if options.what == "map":
        rows = failure_map(pools, options.seeds)
    else:
        rows = check_against_photons(pools, seed=17)
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
