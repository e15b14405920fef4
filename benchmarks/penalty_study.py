"""Penalised reconstruction of a low-dose scan: speed of convergence, contrast against noise.

    python -m benchmarks.penalty_study --scans 8            # both parts; goes on after a kill
    python -m benchmarks.penalty_study --table              # print what is there
    python -m benchmarks.penalty_study --plot curve.png

The object is an image-quality phantom made small: a water cylinder of 75 mm radius and 110 mm
length with hot spheres of 10, 13, 17 and 22 mm, 4:1, on a circle of 40 mm. The background is
205 Bq/mL, SUV 1 an hour after 0.3 MBq/kg; 4 min on a Vision 600. No scatter, no randoms;
attenuation is in. 3.3 mm voxels, PSF 4 mm, 5 subsets.

Contrast recovery is that of NEMA NU 2-2018, section 7, over spheres instead of discs: the mean
within the sphere's own radius, voxels by their share, less the background, over the true
difference. Noise is NEMA's background variability: the standard deviation over 24 spheres of
10 mm in the background of one image, over their mean; root mean square over scans.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.protocols import Dose
from listmode.simulate.shapes import Phantom, Shape
from recon.image import Grid, Volume
from recon.osem import OsemSettings, Problem, osem, relative_change
from recon.penalty import Method, RelativeDifference
from recon.psf import blur
from recon.reconstruct import prepare
from recon.sensitivity import compute_sensitivity

OUT = Path("out/penalty_study")
BACKGROUND, CONTRAST, SECONDS = 205.0, 4.0, 240.0
DIAMETERS_MM = (10.0, 13.0, 17.0, 22.0)
CIRCLE_MM = 40.0
GRID = Grid.centred((50, 50, 38), 3.3)
SETTINGS = OsemSettings(n_iterations=6, n_subsets=5, psf_fwhm_mm=4.0)
OSEM_ITERATIONS = (2, 4, 6)
FILTERS_MM = (0.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
STRENGTHS = (0.001, 0.003, 0.006, 0.01, 0.02, 0.03, 0.05)
SHOWN_STRENGTH = 0.01  # whose convergence is shown
PENALISED_ITERATIONS = 6
LONG_ITERATIONS = 50


def sphere_places() -> list[tuple[float, float, float]]:
    angles = [math.pi / 4 + k * math.pi / 2 for k in range(len(DIAMETERS_MM))]
    return [(CIRCLE_MM * math.cos(a), CIRCLE_MM * math.sin(a), 0.0) for a in angles]


def background_places() -> list[tuple[float, float, float]]:
    rings = [(z, k) for z in (-40.0, -27.0, 27.0, 40.0) for k in range(6)]
    turn = math.pi / 3
    return [(45 * math.cos(k * turn), 45 * math.sin(k * turn), z) for z, k in rings]


def phantom() -> Phantom:
    shapes = [Shape("body", "body", "cylinder", (0, 0, 0), (75, 75, 55), BACKGROUND, 0.096)]
    shapes += [
        Shape(f"d{d:g}", "sphere", "ellipsoid", place, (d / 2,) * 3, CONTRAST * BACKGROUND,
              0.096, "body")
        for d, place in zip(DIAMETERS_MM, sphere_places(), strict=True)
    ]  # fmt: skip
    return Phantom("small image quality", tuple(shapes), weight_kg=1.9)


def share_inside(place: tuple[float, float, float], diameter_mm: float) -> NDArray[np.float64]:
    """Share of each voxel inside a sphere, by 5 x 5 x 5 samples."""
    offset = (np.arange(5) - 2) / 5
    squares = [
        (np.add.outer(GRID.axis_mm(k), offset * GRID.voxel_mm[k]).ravel() - place[k]) ** 2
        for k in range(3)
    ]
    x, y, z = squares
    inside = x[:, None, None] + y[None, :, None] + z[None, None, :] < (diameter_mm / 2) ** 2
    nx, ny, nz = GRID.shape
    share: NDArray[np.float64] = inside.reshape(nx, 5, ny, 5, nz, 5).mean(axis=(1, 3, 5))
    return share


REGIONS = [share_inside(p, d) for p, d in zip(sphere_places(), DIAMETERS_MM, strict=True)]
REGIONS += [share_inside(p, 10.0) for p in background_places()]


def measure(image: NDArray[Any]) -> list[float]:
    """Give the mean of each region: spheres first, then background."""
    return [round(float((image * r).sum() / r.sum() / BACKGROUND), 5) for r in REGIONS]


def simulate(seed: int, threads: int) -> tuple[MemoryListmode, Volume]:
    body = phantom()
    scan, _ = simulate_in_memory(
        scanner=load_scanner("vision600"), phantom=body, dose=Dose.in_phantom(body, SECONDS),
        seed=500 + seed, scatter="off", with_randoms=False, threads=threads,
    )  # fmt: skip
    mu = Volume(body.sample_mu(*[GRID.axis_mm(k) for k in range(3)]), GRID, "1/cm")
    return scan, mu


def with_iterations(problem: Problem, n: int) -> Problem:
    return replace(problem, settings=replace(problem.settings, n_iterations=n))


def tradeoff(problem: Problem) -> dict[str, list[float]]:
    """Measure every image of one scan: OSEM by iterations and filter, penalised by strength."""
    found: dict[str, list[float]] = {}
    for k, image in enumerate(osem(problem), start=1):
        if k in OSEM_ITERATIONS:
            for fwhm in FILTERS_MM:
                values = blur(np.asarray(image.values, np.float32), GRID, fwhm, problem.threads)
                found[f"osem {k} {fwhm:g}"] = measure(values)
    problem = with_iterations(problem, PENALISED_ITERATIONS)
    for strength in STRENGTHS:
        *_, last = RelativeDifference(strength)(problem)
        found[f"rdp {strength:g}"] = measure(last.values)
    return found


def methods() -> Iterator[tuple[str, RelativeDifference]]:
    kinds: tuple[Method, ...] = ("bsrem", "svrg")
    for method in kinds:
        for relaxation in (0.05, 0.2):
            yield (
                f"{method}, relaxation {relaxation:g}",
                RelativeDifference(SHOWN_STRENGTH, method=method, relaxation=relaxation),
            )


def convergence(problem: Problem) -> dict[str, list[list[float]]]:
    """Distance to the maximum against passes over the events, for each method.

    The reference is SVRG run long; SVRG takes one more pass every second iteration.
    """
    long = with_iterations(problem, LONG_ITERATIONS)
    *_, best = RelativeDifference(SHOWN_STRENGTH, method="svrg", relaxation=0.05)(long)
    curves: dict[str, list[list[float]]] = {}
    for name, settings in methods():
        n_passes = 0
        curves[name] = []
        for k, image in enumerate(settings(with_iterations(problem, 10)), start=1):
            n_passes += 1 + (settings.method == "svrg" and k % 2 == 0)
            curves[name].append([n_passes, relative_change(image.values, best.values)])
    return curves


def noise_and_recovery(rows: list[dict[str, Any]]) -> dict[str, tuple[float, list[float]]]:
    """Noise and recovery of each sphere, by kind of image."""
    n = len(DIAMETERS_MM)
    result = {}
    for name in rows[0]["found"]:
        values = np.array([row["found"][name] for row in rows])
        background = values[:, n:]
        spread = background.std(axis=1, ddof=1) / background.mean(axis=1)
        noise = math.sqrt((spread**2).mean())
        recovery = (values[:, :n].mean(axis=0) - background.mean()) / (CONTRAST - 1.0)
        result[name] = (noise, recovery.tolist())
    return result


def recovery_at(curve: list[tuple[float, float]], noise: float) -> float:
    """Interpolate a curve of (noise, recovery); NaN outside of it."""
    x, y = np.array(sorted(curve)).T
    return float(np.interp(noise, x, y, left=np.nan, right=np.nan))


def shown(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def print_tables(rows: list[dict[str, Any]], curves: dict[str, Any]) -> None:
    if curves:
        print(
            "Relative distance to the maximum after passes over the events,"
            f" strength {SHOWN_STRENGTH:g}:\n"
        )
        for name, curve in curves.items():
            print(f"  {name}: " + ", ".join(f"{n:.0f}: {d:.2g}" for n, d in curve))
    if not rows:
        return
    measured = noise_and_recovery(rows)
    print(
        f"\n{len(rows)} scans of {np.mean([r['n_events'] for r in rows]) / 1e6:.2f} M prompts\n"
    )
    print("| image | noise | " + " | ".join(f"{d:g} mm" for d in DIAMETERS_MM) + " |")
    print("|---" * (2 + len(DIAMETERS_MM)) + "|")
    for name, (noise, recovery) in measured.items():
        print(f"| {name} | {noise:.1%} | " + " | ".join(f"{r:.0%}" for r in recovery) + " |")
    print("\nRecovery of the 10 mm sphere at the noise of the penalised image:\n")
    print("| strength | noise | penalised | " + " | ".join(
        f"OSEM {k} + filter" for k in OSEM_ITERATIONS) + " |")  # fmt: skip
    print("|---" * (3 + len(OSEM_ITERATIONS)) + "|")
    for strength in STRENGTHS:
        noise, recovery = measured[f"rdp {strength:g}"]
        cells = []
        for k in OSEM_ITERATIONS:
            names = [f"osem {k} {f:g}" for f in FILTERS_MM]
            curve = [(measured[m][0], measured[m][1][0]) for m in names]
            cells.append(shown(recovery_at(curve, noise)))
        print(f"| {strength:g} | {noise:.1%} | {recovery[0]:.0%} | {' | '.join(cells)} |")


def plot(rows: list[dict[str, Any]], curves: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    measured = noise_and_recovery(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for k in OSEM_ITERATIONS:
        line = [measured[f"osem {k} {f:g}"] for f in FILTERS_MM]
        left.plot([100 * n for n, _ in line], [100 * r[0] for _, r in line], "o--",
                  label=f"OSEM {k} iterations, filter 0 to 10 mm")  # fmt: skip
    line = [measured[f"rdp {s:g}"] for s in STRENGTHS]
    left.plot([100 * n for n, _ in line], [100 * r[0] for _, r in line], "ks-",
              label="relative difference prior")  # fmt: skip
    left.set(xlabel="noise of 10 mm spheres in the background, %",
             ylabel="contrast recovery of the 10 mm sphere, %",
             title=f"Simulated, {len(rows)} scans, 4:1")  # fmt: skip
    left.legend()
    for name, curve in curves.items():
        right.semilogy([n for n, _ in curve], [d for _, d in curve], label=name)
    right.set(xlabel="passes over the events", ylabel="relative distance to the maximum",
              title=f"Convergence, strength {SHOWN_STRENGTH:g}")  # fmt: skip
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-convergence", action="store_true", help="contrast alone")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--plot", type=Path, help="draw what is there")
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    path, curve_path = OUT / "scans.jsonl", OUT / "convergence.json"
    rows = (
        [json.loads(x) for x in path.read_text("utf-8").splitlines()] if path.exists() else []
    )
    curves = json.loads(curve_path.read_text("utf-8")) if curve_path.exists() else {}
    left = range(len(rows), 0 if given.table or given.plot else given.scans)
    for seed in left:
        scan, mu = simulate(seed, given.threads)
        sensitivity = compute_sensitivity(
            scan.scanner, GRID, mu=mu, crystal_efficiency=scan.crystal_efficiency,
            n_pairs=8_000_000, threads=given.threads, cache_dir=OUT,
        )  # fmt: skip
        with prepare(
            scan, scan.extent, grid=GRID, mu=mu, settings=SETTINGS, sensitivity=sensitivity,
            threads=given.threads,
        ) as problem:  # fmt: skip
            if not curves and not given.no_convergence:
                curves = convergence(problem)
                curve_path.write_text(json.dumps(curves), "utf-8")
            found = tradeoff(problem)
        rows.append({"seed": seed, "n_events": len(scan.prompts), "found": found})
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        partial.replace(path)
        print(f"scan {seed} is done", flush=True)
    print_tables(rows, curves)
    if given.plot:
        plot(rows, curves, given.plot)


if __name__ == "__main__":
    main()
