"""Analytic spheres off the grid, with noise: errors of volume, mean and peak; test-retest.

    python -m benchmarks.sphere_study

A sphere of SUV 10 in a background of 1 is averaged over voxels of 3.3 mm (8 x 8 x 8 samples a
voxel), blurred by 5 mm FWHM and given correlated noise of 8 % (SD of the blurred noise in the
background and in the sphere, relative to the local value).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from recon.hotspots.context import describe_patient
from recon.hotspots.features import COLUMNS, measure_ct, measure_hotspots
from recon.hotspots.models import CONTEXT_FEATURES, OTHERS_FEATURES
from recon.hotspots.segment import FractionOfMax, Segmentation, UserMask, find_hotspots
from recon.hotspots.symmetry import find_mid_sagittal, reference_uptake
from recon.image import Grid, Volume

VOXEL_MM, FWHM_MM, NOISE, CONTRAST = 3.3, 5.0, 0.08, 10.0
DIAMETERS_MM = (6.0, 10.0, 13.0, 17.0, 22.0, 28.0, 40.0)
N_PLACES, N_NOISE = 10, 10
SAME_VARIATION = {
    "max_bq_ml",
    "peak_bq_ml",
    "mean_bq_ml",
    "threshold_bq_ml",
    "ras_x_mm",
    "ras_y_mm",
}
NO_MEASUREMENT = {
    "id",
    "label",
    "label_fraction",
    "is_physiological",
    "is_at_edge",
    "duration_s",
}
NO_MEASUREMENT |= {"suv_max_se", "suv_max_low", "suv_max_high"}
FEATURES = [name for name in COLUMNS if name not in SAME_VARIATION | NO_MEASUREMENT]
N_RETEST = 25
HU_INSIDE, HU_OUTSIDE, HU_NOISE = 300.0, 40.0, 20.0


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


def twin(diameter_mm: float) -> tuple[Volume, Volume]:
    """Two like spheres along z, blurred, in SUV; and the CT of them in HU."""
    parts = [
        sphere(diameter_mm, np.array([0.9, -1.1, 0.4]), blur=blur) for blur in (True, False)
    ]
    pet, sharp = (np.concatenate((p.values, p.values), axis=2) for p in parts)
    grid = Grid.centred(pet.shape, VOXEL_MM)
    share = (sharp - 1.0) / (CONTRAST - 1.0)
    hu = HU_OUTSIDE + (HU_INSIDE - HU_OUTSIDE) * share
    hu[0] = -1000.0  # a CT has air somewhere
    return Volume(pet.astype(np.float32), grid, "SUV"), Volume(hu.astype(np.float32), grid, "1")


def retest_features(rng: np.random.Generator) -> None:
    """Print the spread of each measured column over noise realisations of one sphere."""
    print("\nTest-retest of each feature, 41 % of the maximum: mean, and SD over noise.\n")
    print("| feature | 13 mm | 22 mm | 40 mm |")
    print("|---|---|---|---|")
    cells: dict[str, list[str]] = {}
    for diameter in (13.0, 22.0, 40.0):
        pet, ct = twin(diameter)
        values: dict[str, list[float]] = {}
        for _ in range(N_RETEST):
            image = noisy(pet, rng)
            found = find_hotspots(image, threshold=FractionOfMax(0.41, floor=2.5))
            rows = measure_hotspots(image, found).rows
            k = int(np.argmin([row.z_mm for row in rows]))  # one sphere, not the hotter one
            grain = (HU_NOISE * rng.standard_normal(ct.grid.shape)).astype(np.float32)
            hu = measure_ct(Volume(ct.values + grain, ct.grid, "1"), found)[k]
            for name in FEATURES:
                values.setdefault(name, []).append(float(getattr(rows[k], name)))
            for name in ("hu_mean", "hu_max", "hu_sd"):
                values.setdefault(name, []).append(float(getattr(hu, name)))
        for name, x in values.items():
            cells.setdefault(name, []).append(f"{np.mean(x):.3g} ± {np.std(x, ddof=1):.2g}")
    for name, texts in cells.items():
        print(f"| `{name}` | {' | '.join(texts)} |")


def retest_reference(rng: np.random.Generator) -> None:
    """Print the spread of the plane and of the context that it gives, in a body with noise."""
    print("\nTest-retest of plane and context in a body with two hotspots: mean, and SD.\n")
    print("| quantity | mean ± SD |\n|---|---|")
    grid = Grid.centred((100, 70, 60), 4.0)
    x, y, z = np.meshgrid(*(grid.axis_mm(axis) for axis in range(3)), indexing="ij")
    suv = 0.7 * ((x / 160) ** 2 + (y / 100) ** 2 <= 1)
    labels = np.zeros(grid.shape, np.int32)
    for side, value in ((85.0, 1), (-85.0, 2)):
        bone = (x - side) ** 2 + (y - 10) ** 2 + (z + 60) ** 2 <= 35**2
        suv[bone], labels[bone] = 1.3, value
    for z_mm, uptake in ((-70.0, CONTRAST), (-40.0, 0.8 * CONTRAST)):
        suv[(x - 85) ** 2 + (y - 10) ** 2 + (z - z_mm) ** 2 <= 9**2] = uptake
    body = Volume(
        ndimage.gaussian_filter(suv, FWHM_MM / 2.3548 / 4.0).astype(np.float32), grid, "SUV"
    )
    names = {1: "hip_left", 2: "hip_right"}
    regions = Volume(labels, grid, "label")
    values: dict[str, list[float]] = {}
    for _ in range(N_RETEST):
        image = noisy(body, rng)
        found = find_hotspots(
            image, threshold=FractionOfMax(0.41, floor=2.5), labels=regions, label_names=names
        )
        plane = find_mid_sagittal(image)
        references = reference_uptake(image, found, plane, labels=regions, label_names=names)
        table = measure_hotspots(image, found)
        cases = describe_patient(table, references, patient="P").cases
        turn = np.degrees(np.arccos(min(abs(plane.normal[0]), 1.0)))
        values.setdefault("turn of the plane from the truth, degrees", []).append(float(turn))
        values.setdefault("offset of the plane from the truth, mm", []).append(plane.offset_mm)
        for name in (*CONTEXT_FEATURES[1:], *OTHERS_FEATURES[-2:]):
            if name == "n_lymph_node":  # there is no node in this body
                continue
            values.setdefault(f"`{name}`", []).append(float(cases.numbers[name][0]))
    for name, found_values in values.items():
        x_ = np.array(found_values)
        print(f"| {name} | {x_.mean():.3g} ± {x_.std(ddof=1):.2g} |")


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
    retest_features(np.random.default_rng(21))
    retest_reference(np.random.default_rng(22))


if __name__ == "__main__":
    main()
