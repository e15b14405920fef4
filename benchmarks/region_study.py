"""What trues alone say of an organ's mean: grid, updates, noise; no scatter, no randoms.

    python -m benchmarks.region_study 0.02 6 8 4

simulates the true coincidences of the torso phantom (that share of the counts, 6 scans) and
prints, for images of 8 mm and of 4 mm voxels, the mean of each organ over the truth after 2, 4,
8 and 12 times 5 updates: of the voxels whose centre lies in the organ with its semi-axes 8, 12
and 16 mm shorter. What is missed here is not scatter's fault. "±" is the standard error over
the scans; "one scan" the deviation of a single one.

    python -m benchmarks.region_study grid

fits each organ, blurred by 5 mm, by EM on such grids without noise and without projections, and
prints the same means after 20 updates: what linear interpolation of voxels does to an edge.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.simulate.generate import gather
from listmode.simulate.phantom import torso_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.simulate.shapes import Phantom, Shape
from listmode.simulate.simulation import Simulation
from recon.image import Grid, Volume
from recon.osem import OsemSettings, osem
from recon.reconstruct import prepare
from recon.sensitivity import compute_sensitivity

SIZE_MM = (400.0, 288.0, 624.0)
DEPTHS_MM = (8.0, 12.0, 16.0)
ITERATIONS = (2, 4, 8, 12)
FIRST_SEED = 101
THREADS = 2
HALF_MM, FINE_MM, BLUR_FWHM_MM = 80.0, 2.0, 5.0  # of the fit on a grid

F64 = NDArray[np.float64]


def is_inside(
    axes_mm: Sequence[F64], centre_mm: Sequence[float], shape: Shape, depth_mm: float
) -> NDArray[np.bool_]:
    """Tell which points of a grid lie in a shape's ellipsoid with shorter semi-axes."""
    at = np.meshgrid(*axes_mm, indexing="ij")
    scaled = [
        ((x - c) / (a - depth_mm)) ** 2
        for x, c, a in zip(at, centre_mm, shape.semi_mm, strict=True)
    ]
    return np.asarray(sum(scaled) <= 1.0)


def shrunk_organs(
    phantom: Phantom, grid: Grid, depth_mm: float
) -> dict[str, NDArray[np.bool_]]:
    """Give the voxels whose centre lies in an organ with shorter semi-axes."""
    axes_mm = [grid.axis_mm(k) for k in range(3)]
    regions: dict[str, NDArray[np.bool_]] = {}
    for shape in phantom.shapes[1:]:  # all but the body
        here = is_inside(axes_mm, shape.centre_mm, shape, depth_mm)
        regions[shape.label] = regions.get(shape.label, np.zeros(grid.shape, bool)) | here
    return regions


def measure(scan: MemoryListmode, phantom: Phantom, voxel_mm: float) -> dict[str, list[float]]:
    """Give each organ's mean over the truth, one number for each of ``ITERATIONS``."""
    nx, ny, nz = (int(np.ceil(n / voxel_mm / 2) * 2) for n in SIZE_MM)
    grid = Grid.centred((nx, ny, nz), voxel_mm)
    axes = [grid.axis_mm(k) for k in range(3)]
    mu = Volume(phantom.sample_mu(*axes, supersample=5), grid, "1/cm")
    truth = phantom.sample_activity(*axes, supersample=5)
    settings = OsemSettings(
        n_iterations=max(ITERATIONS), psf_fwhm_mm=0.0, n_sensitivity_pairs=12_000_000
    )
    sensitivity = compute_sensitivity(
        scan.scanner, grid, mu=mu, crystal_efficiency=scan.crystal_efficiency,
        n_pairs=settings.n_sensitivity_pairs, threads=THREADS,
    )  # fmt: skip
    regions = {
        f"{organ}, {depth_mm:g} mm ({region.sum()})": region
        for depth_mm in DEPTHS_MM
        for organ, region in shrunk_organs(phantom, grid, depth_mm).items()
    }
    means: dict[str, list[float]] = {name: [] for name in regions}
    with prepare(
        scan, scan.extent, grid=grid, mu=mu, settings=settings, sensitivity=sensitivity,
        threads=THREADS,
    ) as problem:  # fmt: skip
        for number, image in enumerate(osem(problem), start=1):
            if number in ITERATIONS:
                for name, region in regions.items():
                    ratio = image.values[region].mean(dtype=np.float64)
                    means[name].append(float(ratio / truth[region].mean(dtype=np.float64)))
    return means


def fit_on_grid(shape: Shape, background: float, voxel_mm: float) -> list[float]:
    """Fit a blurred ellipsoid by EM on linearly interpolated voxels; give means over truth."""
    n_fine, n = round(2 * HALF_MM / FINE_MM), round(2 * HALF_MM / voxel_mm)
    fine_mm = (np.arange(n_fine, dtype=np.float64) + 0.5) * FINE_MM - HALF_MM
    axis_mm = (np.arange(n, dtype=np.float64) - n / 2) * voxel_mm
    # The organ lies to the voxels as it does on a centred grid with an even number of them.
    centre_mm = [c - (np.floor(c / voxel_mm) + 0.5) * voxel_mm for c in shape.centre_mm]
    is_hot = is_inside([fine_mm] * 3, centre_mm, shape, 0.0)
    truth = np.where(is_hot, shape.activity, background)
    seen = gaussian_filter(truth, BLUR_FWHM_MM / 2.355 / FINE_MM, mode="nearest")
    hat = np.clip(1.0 - np.abs(fine_mm[:, None] - axis_mm) / voxel_mm, 0.0, None)

    def along_axes(values: F64, matrix: F64) -> F64:
        for _ in range(3):
            values = np.tensordot(values, matrix, axes=(0, 1))  # turns the axes: three restore
        return values

    sensitivity = along_axes(np.ones_like(seen), hat.T)
    image = np.full((n, n, n), seen.mean())
    for _ in range(20):
        image *= along_axes(seen / along_axes(image, hat), hat.T) / sensitivity
    deep = (is_inside([axis_mm] * 3, centre_mm, shape, d) for d in DEPTHS_MM)
    return [float(image[region].mean() / shape.activity) for region in deep]


def show_grid() -> None:
    """Print what grids alone do to the organs' means."""
    phantom = torso_phantom()
    print(f"| organ, voxels | {' | '.join(f'{d:g} mm deep' for d in DEPTHS_MM)} |")
    print("|---|" + "---|" * len(DEPTHS_MM))
    for name in ("heart", "kidney_1", "bladder", "spleen"):
        for voxel_mm in (8.0, 4.0):
            means = fit_on_grid(phantom[name], phantom["torso"].activity, voxel_mm)
            print(f"| {name}, {voxel_mm:g} mm | {' | '.join(f'{m:.3f}' for m in means)} |")


def main(count_fraction: float, voxel_mm: list[float], n_scans: int) -> None:
    """Simulate, reconstruct, and print a table after each scan."""
    scanner, phantom = load_scanner("quadra"), torso_phantom()
    found: dict[float, list[dict[str, list[float]]]] = {size: [] for size in voxel_mm}
    for seed in range(FIRST_SEED, FIRST_SEED + n_scans):
        simulation = Simulation(
            scanner, phantom, LOW_DOSE_FDG, seed=seed, count_fraction=count_fraction,
            scatter="off", with_randoms=False, threads=THREADS,
        )  # fmt: skip
        scan = gather(simulation)[0]
        print(f"seed {seed}: {scan.n_events()} trues", flush=True)
        for size in voxel_mm:
            found[size].append(measure(scan, simulation.phantom, size))
            print(f"| {size:g} mm voxels | {' | '.join(f'{n} x 5' for n in ITERATIONS)} |")
            print("|---|" + "---|" * len(ITERATIONS))
            for name in found[size][0]:
                values = np.array([means[name] for means in found[size]])
                row = [f"{v:.3f}" for v in values.mean(axis=0)]
                if len(values) > 1:
                    one = values.std(axis=0, ddof=1)
                    row = [
                        f"{m} ± {s / np.sqrt(len(values)):.3f} (one scan {s:.3f})"
                        for m, s in zip(row, one, strict=True)
                    ]
                print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["grid"]:
        show_grid()
    else:
        _, fraction, scans, *sizes = sys.argv
        main(float(fraction), [float(size) for size in sizes], int(scans))
