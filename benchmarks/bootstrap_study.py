"""Coverage of the bootstrap's interval of SUVmax, on repeated simulations of one object.

    python -m benchmarks.bootstrap_study --scans 100 --resampled 50
    python -m benchmarks.bootstrap_study --scans 100 --table    # print what is there

A warm cylinder of 110 mm radius and 140 mm length with six hot spheres (12 to 24 mm across, 4
to 8 times the background) on a Vision 600, 2 kBq/mL for 9.3 s: about 1.2 M prompts in 5.3 L,
the density of 1.6e7 in a body of 73 L. The field is small so that the study ends in an hour;
``--seconds 77`` gives 1e7 prompts in it. No scatter, no randoms; attenuation is in. 4
iterations of 5 subsets, 3.3 mm, PSF 4 mm, filter 4 mm. Each scan is a line of a file in
out/bootstrap_study; the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from listmode.formats.scanner_file import load_scanner
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.protocols import Dose
from listmode.simulate.shapes import Phantom, Shape
from recon.bootstrap import bootstrap
from recon.hotspots.segment import FractionOfMax, find_hotspots
from recon.image import Grid, Volume
from recon.osem import OsemSettings, run
from recon.reconstruct import prepare
from recon.sensitivity import compute_sensitivity

OUT = Path("out/bootstrap_study")
BACKGROUND = 2000.0  # Bq/mL
SECONDS = 9.3
SPHERES = (  # x, y, z, radius in mm; times the background
    (50, 0, 20, 6, 8), (-50, 10, -20, 8, 6), (0, 55, 0, 10, 5), (0, -55, -25, 7, 8),
    (30, -30, 30, 9, 4), (-35, -30, 25, 12, 6),
)  # fmt: skip
GRID = Grid.centred((68, 68, 44), 3.3)
SETTINGS = OsemSettings(n_iterations=4, n_subsets=5, psf_fwhm_mm=4.0, post_filter_fwhm_mm=4.0)
N_REPLICATES = 24
LEVEL = 0.95


def phantom() -> Phantom:
    shapes = [Shape("body", "body", "cylinder", (0, 0, 0), (110, 110, 70), BACKGROUND, 0.096)]
    shapes += [
        Shape(
            f"s{i}", "sphere", "ellipsoid", (x, y, z), (r, r, r), BACKGROUND * c, 0.096, "body"
        )
        for i, (x, y, z, r, c) in enumerate(SPHERES)
    ]
    return Phantom("six spheres", tuple(shapes), weight_kg=5.3)


def one_scan(seed: int, seconds: float, threads: int, *, is_resampled: bool) -> dict[str, Any]:
    """Simulate, reconstruct, resample; give each sphere's maximum and its replicates'."""
    body = phantom()
    scan, _ = simulate_in_memory(
        scanner=load_scanner("vision600"), phantom=body, dose=Dose.in_phantom(body, seconds),
        seed=1000 + seed, scatter="off", with_randoms=False, threads=threads,
    )  # fmt: skip
    mu = Volume(body.sample_mu(*[GRID.axis_mm(k) for k in range(3)]), GRID, "1/cm")
    sensitivity = compute_sensitivity(
        scan.scanner, GRID, mu=mu, crystal_efficiency=scan.crystal_efficiency,
        n_pairs=8_000_000, threads=threads, cache_dir=OUT,
    )  # fmt: skip
    with prepare(
        scan, scan.extent, grid=GRID, mu=mu, settings=SETTINGS, sensitivity=sensitivity,
        threads=threads,
    ) as problem:  # fmt: skip
        image = run(problem)
        replicates = bootstrap(problem, N_REPLICATES, seed=seed) if is_resampled else None
    found = find_hotspots(
        image, threshold=FractionOfMax(0.41, 2.5 * BACKGROUND), min_volume_ml=0.0
    )
    regions = np.asarray(found.mask.values, np.int32)
    maxima = np.empty((0, found.n_hotspots))
    if replicates is not None:
        maxima = replicates.maxima(regions)
    observed = [float(image.values[regions == k + 1].max()) for k in range(found.n_hotspots)]
    spheres = []
    for x, y, z, r, _ in SPHERES:
        i, j, k = np.rint(GRID.voxel_index([x, y, z])).astype(int)
        number = int(regions[i, j, k])
        near = regions[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2]
        number = number or int(near.max())
        spheres.append(
            None if number == 0 else {"max": observed[number - 1] / BACKGROUND,
                "replicates": [round(v / BACKGROUND, 5) for v in maxima[:, number - 1]]}
        )  # fmt: skip
        del r
    return {"seed": seed, "n_events": len(scan.prompts), "n_hotspots": found.n_hotspots,
            "spheres": spheres}  # fmt: skip


def intervals(observed: float, maxima: np.ndarray) -> dict[str, tuple[float, float]]:
    """Give the interval by each of the types that were compared."""
    low, high = np.quantile(
        maxima, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="median_unbiased"
    )
    reach = t.ppf((1 + LEVEL) / 2, len(maxima) - 1) * maxima.std(ddof=1)
    shift = maxima.mean() - observed
    return {
        "normal": (observed - reach, observed + reach),
        "percentile": (low, high),
        "basic": (2 * observed - high, 2 * observed - low),
        "centred percentile": (low - shift, high - shift),
        "normal, bias taken off": (observed - shift - reach, observed - shift + reach),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{len(rows)} scans of {np.mean([r['n_events'] for r in rows]) / 1e6:.2f} M prompts, "
          f"{N_REPLICATES} replicates, {LEVEL:.0%} intervals\n")  # fmt: skip
    names = list(intervals(1.0, np.array([1.0, 1.1])))
    print("| sphere | found in | mean SUVmax ratio | SD over scans | bootstrap SE "
          f"| {' | '.join(names)} |")  # fmt: skip
    print("|---" * (5 + len(names)) + "|")
    total = dict.fromkeys(names, 0)
    n_total = 0
    for number, (_, _, _, r, c) in enumerate(SPHERES):
        seen = [s["spheres"][number] for s in rows if s["spheres"][number] is not None]
        top = np.array([s["max"] for s in seen])
        se = np.array([np.std(s["replicates"], ddof=1) for s in seen if s["replicates"]])
        hits = dict.fromkeys(names, 0)
        resampled = [(k, s) for k, s in enumerate(seen) if s["replicates"]]
        for k, s in resampled:
            others = (top.sum() - top[k]) / (top.size - 1)  # the scan itself does not judge
            for name, (a, b) in intervals(s["max"], np.array(s["replicates"])).items():
                hits[name] += a <= others <= b
        for name in names:
            total[name] += hits[name]
        n_total += len(resampled)
        cells = " | ".join(f"{hits[name] / len(resampled):.0%}" for name in names)
        print(f"| {2 * r} mm, {c}:1 | {top.size} | {top.mean():.2f} | {top.std(ddof=1):.3f} "
              f"| {np.sqrt((se**2).mean()):.3f} | {cells} |")  # fmt: skip
    cells = " | ".join(f"{total[name] / n_total:.1%}" for name in names)
    print(f"| all | {n_total} | | | | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=100)
    parser.add_argument("--resampled", type=int, default=50, help="scans with replicates")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"scans_{given.seconds:g}s.jsonl"
    rows: list[dict[str, Any]] = []
    if path.exists():
        lines = path.read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines[:-1]]  # a line without its end is not whole
        if lines[-1]:
            path.write_text("".join(line + "\n" for line in lines[:-1]), "utf-8")
    done = {row["seed"] for row in rows}
    for seed in [] if given.table else [s for s in range(given.scans) if s not in done]:
        rows.append(
            one_scan(seed, given.seconds, given.threads, is_resampled=seed < given.resampled)
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"scan {seed}: {rows[-1]['n_hotspots']} hotspots", flush=True)
    if len(rows) > 2:
        print_table(rows)


if __name__ == "__main__":
    main()
