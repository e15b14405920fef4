"""Analytic spheres off the grid, with noise: errors of volume, mean and peak; test-retest.

    python -m benchmarks.sphere_study

A sphere of SUV 10 in a background of 1 is averaged over voxels of 3.3 mm (8 x 8 x 8 samples a
voxel), blurred by 5 mm FWHM and given correlated noise of 8 % (SD of the blurred noise in the
background and in the sphere, relative to the local value).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from recon.hotspots.features import measure_hotspots
from recon.hotspots.segment import FractionOfMax, Segmentation, UserMask, find_hotspots
from recon.image import Grid, Volume

VOXEL_MM, FWHM_MM, NOISE, CONTRAST = 3.3, 5.0, 0.08, 10.0
DIAMETERS_MM = (6.0, 10.0, 13.0, 17.0, 22.0, 28.0, 40.0)
N_PLACES, N_NOISE = 10, 10
FEATURES = (
    "suv_max",
    "suv_peak",
    "suv_peak_global",
    "suv_mean",
    "suv_sd",
    "skewness",
    "kurtosis",
    "volume_ml",
    "tlg_g",
    "mesh_volume_ml",
    "surface_mm2",
    "sphericity",
    "max_diameter_mm",
    "com_shift_mm",
)


def sphere(diameter_mm: float, shift_mm: np.ndarray, *, blur: bool) -> Volume:
    """Average a sphere over voxels and blur it."""
    n = int(np.ceil((diameter_mm + 40.0) / VOXEL_MM)) | 1
    grid = Grid.centred((n, n, n), VOXEL_MM)
    fine = (np.arange(8) - 3.5) / 8 * VOXEL_MM
    squares = [(grid.axis_mm(axis)[:, None] + fine - shift_mm[axis]) ** 2 for axis in range(3)]
    x, y, z = (s.ravel() for s in squares)
    inside = x[:, None, None] + y[None, :, None] + z[None, None, :] <= (diameter_mm / 2) ** 2
    share = inside.reshape(n, 8, n, 8, n, 8).mean(axis=(1, 3, 5))
    values = 1.0 + (CONTRAST - 1.0) * share
    if blur:
        values = ndimage.gaussian_filter(values, FWHM_MM / 2.3548 / VOXEL_MM)
    return Volume(values.astype(np.float32), grid, "SUV")


def noisy(volume: Volume, rng: np.random.Generator) -> Volume:
    grain = ndimage.gaussian_filter(rng.standard_normal(volume.grid.shape), 0.7)
    values = volume.values * (1.0 + NOISE * grain / grain.std())
    return Volume(values.astype(np.float32), volume.grid, "SUV")


def retest_features(rng: np.random.Generator) -> None:
    """Print the spread of each feature over 25 noise realisations of one sphere."""
    print("\nTest-retest of each feature, 41 % of the maximum: mean, and SD over noise.\n")
    print("| feature | 13 mm | 22 mm | 40 mm |")
    print("|---|---|---|---|")
    cells: dict[str, list[str]] = {name: [] for name in FEATURES}
    for diameter in (13.0, 22.0, 40.0):
        blurred = sphere(diameter, np.array([0.9, -1.1, 0.4]), blur=True)
        rows = []
        for _ in range(25):
            image = noisy(blurred, rng)
            found = find_hotspots(image, threshold=FractionOfMax(0.41, floor=2.5))
            rows.append(measure_hotspots(image, found).rows[0])
        for name in FEATURES:
            x = np.array([getattr(row, name) for row in rows])
            cells[name].append(f"{x.mean():.3g} ± {x.std(ddof=1):.2g}")
    for name, texts in cells.items():
        print(f"| `{name}` | {' | '.join(texts)} |")


def main() -> None:
    rng = np.random.default_rng(20)
    print("Simulated spheres; mean error ± SD in % over places and noise.\n")
    print(
        "| diameter mm | SUVpeak, exact mask | SUVmean, exact mask | volume, 41 % "
        "| SUVmax, 41 % | SUVmean, 41 % | found |"
    )
    print("|---|---|---|---|---|---|---|")
    retest: dict[str, list[float]] = {}
    for diameter in DIAMETERS_MM:
        truth_ml = np.pi / 6 * diameter**3 / 1000
        rows: dict[str, list[float]] = {}
        n_found = 0
        for _ in range(N_PLACES):
            shift = rng.uniform(-0.5, 0.5, 3) * VOXEL_MM
            sharp, blurred = (
                sphere(diameter, shift, blur=False),
                sphere(diameter, shift, blur=True),
            )
            label = (sharp.values > (CONTRAST + 1) / 2).astype(np.int32)
            label[np.unravel_index(int(np.argmax(sharp.values)), label.shape)] = 1
            exact: Segmentation = find_hotspots(
                blurred,
                threshold=UserMask(Volume(label, sharp.grid, "label")),
                min_volume_ml=0.0,
            )
            again: dict[str, list[float]] = {}
            for _ in range(N_NOISE):
                image = noisy(blurred, rng)
                inside = measure_hotspots(image, exact).rows[0]
                found = find_hotspots(image, threshold=FractionOfMax(0.41, floor=2.5))
                n_found += found.n_hotspots == 1
                outside = measure_hotspots(image, found).rows[0]
                errors = {
                    "peak": inside.suv_peak / CONTRAST - 1,
                    "mean": inside.suv_mean / CONTRAST - 1,
                    "volume41": outside.volume_ml / truth_ml - 1,
                    "max41": outside.suv_max / CONTRAST - 1,
                    "mean41": outside.suv_mean / CONTRAST - 1,
                }
                for name, error in errors.items():
                    rows.setdefault(name, []).append(100 * error)
                    again.setdefault(name, []).append(1 + error)
            for name, values in again.items():
                variation = 100 * float(np.std(values, ddof=1) / np.mean(values))
                retest.setdefault(name, []).append(variation)
        cells = [
            f"{np.mean(rows[name]):+.1f} ± {np.std(rows[name]):.1f}"
            for name in ("peak", "mean", "volume41", "max41", "mean41")
        ]
        share = n_found / (N_PLACES * N_NOISE)
        print(f"| {diameter:g} | {' | '.join(cells)} | {share:.0%} |", flush=True)
    print("\nTest-retest (coefficient of variation over noise at one place), all diameters:\n")
    print("| SUVpeak | SUVmean, exact | volume, 41 % | SUVmax | SUVmean, 41 % |")
    print("|---|---|---|---|---|")
    names = ("peak", "mean", "volume41", "max41", "mean41")
    print("| " + " | ".join(f"{np.mean(retest[name]):.1f} %" for name in names) + " |")
    retest_features(rng)


if __name__ == "__main__":
    main()
