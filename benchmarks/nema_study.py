"""Image quality and resolution after NEMA NU 2-2018, on the simulated Quadra.

    python -m benchmarks.nema_study quality --fraction 0.03   # section 7, image quality
    python -m benchmarks.nema_study point                    # a faint point in a warm body
    python -m benchmarks.nema_study point --sharp             # without range, acollinearity
    python -m benchmarks.nema_study point --centres           # lines between crystal centres

``quality``: the phantom of :func:`image_quality_phantom` (spheres 4:1 in 5.3 kBq/mL) for 4 min
in UHS, 1.65 mm voxels, PSF 4 mm, no filter; attenuation, scatter and randoms are simulated and
corrected, scatter and randoms from the events alone. ``--fraction`` is the share of the counts:
means do not depend on it, the background variability does. The scan and the state of the
reconstruction are kept in ``--out``: the same command goes on after a kill. No activity lies
outside the phantom, where the standard places a line beside it.

``point``: points at radius 10 mm whose maximum is about a tenth of a warm cylinder around
them, in air; MLEM without PSF on 1 mm voxels, with and without the points' events (one subset:
the noise of several would not cancel in the difference). The difference of the two images is
the response to a faint point, where the reconstruction is nearly linear (Gong, Cherry, Qi 2016,
doi 10.1088/0031-9155/61/5/N193). Lines end at random places of the crystals
(:func:`spread_ends`): between centres they make a pattern on voxels of this size. Width:
response along an axis summed over twice the width to either side, maximum by a parabola through
three points, half maximum by linear interpolation (NU 2-2018, section 3).
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.formats.opening import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from listmode.simulate.detector import Detector, make_detector
from listmode.simulate.generate import gather, simulate_scan
from listmode.simulate.phantom import image_quality_phantom
from listmode.simulate.protocols import Dose
from listmode.simulate.shapes import Phantom, Shape
from listmode.simulate.simulation import Simulation
from listmode.source import Listmode
from recon.corrections.additive import AdditiveModel
from recon.corrections.randoms import estimate_randoms
from recon.image import Grid, Volume
from recon.osem import OsemSettings, Problem, osem
from recon.reconstruct import prepare
from recon.scatter_loop import estimate_scatter_iteratively
from recon.sensitivity import compute_sensitivity

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Places = list[tuple[float, float]]

BACKGROUND_BQ_ML, CONTRAST, SECONDS = 5300.0, 4.0, 240.0
DIAMETERS_MM = (10.0, 13.0, 17.0, 22.0, 28.0, 37.0)
QUALITY_VOXEL_MM = 1.65
SLICES_MM = (-20.0, -10.0, 0.0, 10.0, 20.0)
SPHERE_RADIUS_MM, EDGE_MM, AWAY_MM = 57.2, 15.0, 5.0
LUNG_ROI_MM, LUNG_HALF_MM = 30.0, 70.0
SHOWN_ITERATIONS = (2, 4, 6)

POINT_VOXEL_MM = 1.0
POINT_GRID = Grid.centred((43, 43, 35), POINT_VOXEL_MM)
WARM_RADIUS_MM, WARM_HALF_MM = 19.0, 15.0
POINT_RADIUS_MM = 10.0
POINT_CONTRAST, BLURRED_ML = 0.10, 0.075  # volume of the point's image: 1.06^1.5 x 4 mm cubed
N_WARM = 1_200_000
POINT_UPDATES = (10, 20)
HALF_CUBE = 9


# ---- image quality


def background_places() -> Places:
    """Place twelve 37 mm regions of the background: clear of edge, spheres and lung.

    15 mm from the phantom's edge as in the standard, and 5 mm from spheres and lung (15 mm in
    the standard, whose phantom has more room). Greedily as far from each other as possible.
    """
    r = max(DIAMETERS_MM) / 2.0
    x, y = (a.ravel() for a in np.meshgrid(np.arange(-130, 131, 2.0), np.arange(-95, 96, 2.0)))
    clear = (x / (150 - r - EDGE_MM)) ** 2 + (y / (115 - r - EDGE_MM)) ** 2 <= 1
    clear &= np.hypot(x, y) >= r + AWAY_MM + 22
    for k, d in enumerate(DIAMETERS_MM):
        turn = 2 * math.pi * k / len(DIAMETERS_MM)
        cx, cy = SPHERE_RADIUS_MM * math.cos(turn), SPHERE_RADIUS_MM * math.sin(turn)
        clear &= np.hypot(x - cx, y - cy) >= r + AWAY_MM + d / 2
    x, y = x[clear], y[clear]
    chosen = [int(np.argmax(np.hypot(x, y)))]
    while len(chosen) < 12:
        gap = np.min([np.hypot(x - x[i], y - y[i]) for i in chosen], axis=0)
        chosen.append(int(np.argmax(gap)))
    return [(float(x[i]), float(y[i])) for i in chosen]


def disc(grid: Grid, centre: tuple[float, float], diameter_mm: float) -> F64:
    """Share of each pixel of a slice inside a disc, by 5 x 5 samples. Shape (nx, ny)."""
    fine = (np.arange(5) - 2) / 5
    x, y = (
        (np.add.outer(grid.axis_mm(k), fine * grid.voxel_mm[k]).ravel() - centre[k]) ** 2
        for k in range(2)
    )
    inside = x[:, None] + y[None, :] < (diameter_mm / 2.0) ** 2
    nx, ny = grid.shape[:2]
    return np.asarray(inside.reshape(nx, 5, ny, 5).mean(axis=(1, 3)), dtype=np.float64)


@dataclass(frozen=True)
class Quality:
    """Contrast recovery and background variability by sphere, and the lung's error, in %."""

    recovery: dict[float, float]
    variability: dict[float, float]
    lung: float
    background_bq_ml: float


def measure_quality(image: Volume) -> Quality:
    """Measure an image of the phantom after NU 2-2018, sections 7.4.1 and 7.4.2."""
    grid, values = image.grid, np.asarray(image.values, np.float64)
    z_mm = grid.axis_mm(2)
    middle = int(np.argmin(np.abs(z_mm)))
    slices = [int(np.argmin(np.abs(z_mm - z))) for z in SLICES_MM]

    def mean(share: F64, k: int) -> float:
        return float((share * values[:, :, k]).sum() / share.sum())

    recovery, variability, warm = {}, {}, {}
    for i, d in enumerate(DIAMETERS_MM):
        turn = 2 * math.pi * i / len(DIAMETERS_MM)
        place = (SPHERE_RADIUS_MM * math.cos(turn), SPHERE_RADIUS_MM * math.sin(turn))
        discs = [disc(grid, p, d) for p in background_places()]
        means = np.array([mean(share, k) for share in discs for k in slices])
        warm[d] = float(means.mean())
        hot = mean(disc(grid, place, d), middle)
        recovery[d] = 100 * (hot / warm[d] - 1) / (CONTRAST - 1)
        variability[d] = 100 * float(means.std(ddof=1)) / warm[d]
    lung = disc(grid, (0.0, 0.0), LUNG_ROI_MM)
    inside = np.flatnonzero(np.abs(z_mm) <= LUNG_HALF_MM)
    error = 100 * float(np.mean([mean(lung, int(k)) for k in inside])) / warm[37.0]
    return Quality(recovery, variability, error, warm[37.0])


def quality_corrections(
    scan: Listmode, mu: Volume, grid: Grid, threads: int
) -> list[AdditiveModel]:
    """Estimate randoms and scatter from the events alone."""
    randoms = estimate_randoms(scan, scan.extent)
    scatter = estimate_scatter_iteratively(
        scan, scan.extent, mu=mu, grid=grid, randoms=randoms, threads=threads
    )
    print(
        f"randoms {randoms.total / scan.count(scan.extent):.3f} of prompts, scatter "
        f"{scatter.fraction:.3f} of the rest, tail scale {scatter.tail_scale:.3f} ± "
        f"{scatter.tail_scale_error:.3f}"
    )
    return [randoms, scatter]


def quality(fraction: float, out: Path, threads: int) -> None:
    """Simulate, reconstruct and print the table of the image quality phantom."""
    out.mkdir(parents=True, exist_ok=True)
    phantom = image_quality_phantom(background_bq_ml=BACKGROUND_BQ_ML, contrast=CONTRAST)
    path = out / f"quality-{fraction:g}.h5"
    started = time.perf_counter()
    if not path.exists():
        partial = path.with_suffix(".partial.h5")
        partial.unlink(missing_ok=True)
        simulate_scan(
            partial, scanner=load_scanner("quadra"), phantom=phantom,
            dose=Dose.in_phantom(phantom, SECONDS), seed=11, count_fraction=fraction,
            threads=threads,
        )  # fmt: skip
        partial.replace(path)
    print(f"[{time.perf_counter() - started:.0f} s] simulated")
    scan = open_listmode(path)
    body = Grid.centred((192, 150, 118), QUALITY_VOXEL_MM)
    coarse = Grid.centred((96, 75, 60), 2 * QUALITY_VOXEL_MM)
    mu = Volume(phantom.sample_mu(*(coarse.axis_mm(k) for k in range(3))), coarse, "1/cm")
    additive = quality_corrections(scan, mu, body, threads)
    print(f"[{time.perf_counter() - started:.0f} s] randoms and scatter")
    settings = OsemSettings(n_iterations=max(SHOWN_ITERATIONS), n_subsets=5, psf_fwhm_mm=4.0)
    found: dict[int, Quality] = {}
    with prepare(
        scan, scan.extent, grid=body, mu=mu, settings=settings, additive=additive,
        threads=threads, cache_dir=out, resume_dir=out / "resume",
    ) as problem:  # fmt: skip
        for k, image in enumerate(osem(problem), start=1):
            if k in SHOWN_ITERATIONS:
                found[k] = measure_quality(image)
    print(f"[{time.perf_counter() - started:.0f} s] {scan.count(scan.extent)} prompts, "
          f"{fraction:g} of the counts, {QUALITY_VOXEL_MM} mm voxels")  # fmt: skip
    print_quality(found)


def print_quality(found: dict[int, Quality]) -> None:
    """Print contrast recovery / background variability by iteration and sphere."""
    print("| 5 subsets, iterations | " + " | ".join(f"{d:g} mm" for d in DIAMETERS_MM)
          + " | lung error | background |\n|" + "---|" * (len(DIAMETERS_MM) + 3))  # fmt: skip
    for k, q in found.items():
        cells = [f"{q.recovery[d]:.1f} / {q.variability[d]:.1f}" for d in DIAMETERS_MM]
        print(
            f"| {k} | {' | '.join(cells)} | {q.lung:.1f} % | "
            f"{q.background_bq_ml / BACKGROUND_BQ_ML:.3f} |"
        )


# ---- resolution


class _Sharp(Simulation):
    """A simulation without positron range and acollinearity: the detector alone blurs."""

    @cached_property
    def detector(self) -> Detector:
        return make_detector(self.scanner, has_positron_range=False, has_acollinearity=False)


def point_places() -> list[tuple[float, float, float]]:
    turns = [k * math.pi / 2 for k in range(4)]
    return [
        (round(POINT_RADIUS_MM * math.cos(t)), round(POINT_RADIUS_MM * math.sin(t)), 0.0)
        for t in turns
    ]


def warm_phantom() -> Phantom:
    semi = (WARM_RADIUS_MM, WARM_RADIUS_MM, WARM_HALF_MM)
    shape = Shape("warm", "warm", "cylinder", (0.0, 0.0, 0.0), semi, 1e5, 0.0)
    return Phantom("warm", (shape,), weight_kg=1.0)


def points_phantom() -> Phantom:
    radius = 0.25
    bq = POINT_CONTRAST * BLURRED_ML * 1e5
    activity = bq / (4.0 / 3.0 * math.pi * radius**3 / 1000.0)
    shapes = [
        Shape(f"point {k}", "point", "ellipsoid", place, (radius,) * 3, activity, 0.0)
        for k, place in enumerate(point_places())
    ]
    return Phantom("points", tuple(shapes), weight_kg=1.0)


def simulate_points(
    n_warm: int, sharp: bool, seed: int, threads: int
) -> tuple[MemoryListmode, int]:
    """Simulate warm cylinder and points; give all events, and how many are of the cylinder."""
    scanner = load_scanner("quadra")
    kind = _Sharp if sharp else Simulation
    warm = warm_phantom()
    rate = kind(
        scanner, warm, Dose.in_phantom(warm, 1.0), scatter="off", with_randoms=False
    ).budget.trues  # fmt: skip
    batches = []
    for k, phantom in enumerate((warm, points_phantom())):
        simulation = kind(
            scanner, phantom, Dose.in_phantom(phantom, n_warm / rate), seed=2 * seed + k,
            scatter="off", with_randoms=False, threads=threads,
        )  # fmt: skip
        scan, _ = gather(simulation)
        batches.append(scan.prompts)
    events = EventBatch(
        *(np.concatenate([getattr(b, c) for b in batches])
          for c in ("crystal_a", "crystal_b", "tof_bin"))
    )  # fmt: skip
    offset = np.array([0, len(batches[0]), len(events)], np.int64)  # a tick each
    return replace_events(scan, events, offset), len(batches[0])


def replace_events(
    scan: MemoryListmode, events: EventBatch, offset: NDArray[np.int64]
) -> MemoryListmode:
    protocol = replace(scan.protocol, count_fraction=1.0)
    return MemoryListmode(
        scan.scanner, protocol, events, offset, crystal_efficiency=scan.crystal_efficiency
    )


def spread_ends(scanner: Scanner) -> Scanner:
    """Move each crystal to a place drawn at random in its cell of the block, always the same.

    Lines between centres lie half a pitch apart near the axis. So many crystals see a voxel
    that one place each breaks the pattern. A cell is a pitch wide: the ends of neighbours leave
    no gaps.
    """
    share = np.random.default_rng(1000).random((scanner.n_crystals, 2)) - 0.5
    across_mm, along_mm = (share * scanner.crystal_pitch_mm).T
    normal = scanner.crystal_normal.astype(np.float64)
    position = scanner.crystal_position_mm.astype(np.float64)
    position[:, 0] -= across_mm * normal[:, 1]
    position[:, 1] += across_mm * normal[:, 0]
    position[:, 2] += along_mm
    return replace(scanner, crystal_position_mm=position.astype(np.float32))


def width_mm(profile: F64, pitch_mm: float) -> float:
    """Give the full width at half maximum after NEMA NU 2-2018, section 3.5."""
    top = int(np.argmax(profile))
    low, peak, high = profile[top - 1 : top + 2]
    bend = low - 2.0 * peak + high
    height = peak - (high - low) ** 2 / (8.0 * bend)
    ends = []
    for step in (-1, 1):
        k = top
        while profile[k] > height / 2.0:
            k += step
        share = (height / 2.0 - profile[k]) / (profile[k - step] - profile[k])
        ends.append(k - step * share)
    return float((ends[1] - ends[0]) * pitch_mm)


def mean_point(difference: F64, warm: F64) -> F64:
    """Give the mean of the points over the warm image, turned: radial, tangential, axial.

    Voxel by voxel: what the warm image carries of its own noise, and of the pattern of lines
    between crystal centres, multiplies the response as well.
    """
    half = HALF_CUBE
    relative = difference / np.maximum(warm, 0.02 * warm.mean())
    total = np.zeros((2 * half + 1,) * 3)
    for k, place in enumerate(point_places()):
        at = np.round(POINT_GRID.voxel_index(np.array(place))).astype(int)
        box = tuple(slice(i - half, i + half + 1) for i in at)
        # radially outwards along +x
        total += np.rot90(relative[box], -(k % 4), axes=(0, 1))
    return total / len(point_places())


def point_widths(total: F64) -> list[float]:
    """Give radial, tangential and axial widths of the mean point, mm."""
    half = HALF_CUBE
    middle = slice(half - 8, half + 9)  # twice the width to either side
    widths = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        box = tuple(middle if k in others else slice(None) for k in range(3))
        widths.append(width_mm(total[box].sum(axis=others), POINT_VOXEL_MM))
    return widths


def point_images(scan: MemoryListmode, centres: bool, threads: int) -> list[list[F32]]:
    """Reconstruct the warm cylinder with and without the points.

    The sensitivity is that of the crystals' centres: on its coarse grid ends a millimetre
    apart make no difference.
    """
    sensitivity = compute_sensitivity(
        scan.scanner, POINT_GRID, crystal_efficiency=scan.crystal_efficiency,
        n_pairs=2_000_000, threads=threads,
    )  # fmt: skip
    settings = OsemSettings(n_iterations=max(POINT_UPDATES), n_subsets=1, psf_fwhm_mm=0.0)
    lines = scan if centres else replace(scan, scanner=spread_ends(scan.scanner))
    first = lines.extent.cut(1)
    found = []
    for windows in (lines.extent, type(first)(first.start_ms[:1], first.stop_ms[:1])):
        images = []
        with prepare(
            lines, windows, grid=POINT_GRID, settings=settings, sensitivity=sensitivity,
            threads=threads,
        ) as problem:  # fmt: skip
            # two ticks stand for one and the same time: the points come on top
            same: Problem = replace(problem, calibration=1.0)
            for k, image in enumerate(osem(same), start=1):
                if k in POINT_UPDATES:
                    images.append(np.asarray(image.values, np.float32))
        found.append(images)
    return found


def point(
    n_warm: int, sharp: bool, centres: bool, n_seeds: int, out: Path, threads: int
) -> None:
    """Simulate, reconstruct and print the widths of a faint point, mean over the seeds.

    Each seed's mean point is kept in ``out``: the same command goes on after a kill.
    """
    out.mkdir(parents=True, exist_ok=True)
    cubes = []
    for seed in range(1, n_seeds + 1):
        ends = "centres" if centres else "spread"
        path = out / f"point-{n_warm}-{'sharp' if sharp else 'real'}-{ends}-{seed}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, one_seed(n_warm, sharp, centres, seed, threads))
            partial.replace(path)
        cubes.append(np.load(path))
        mean = np.mean(cubes, axis=0)
        print(
            "| updates | radial, tangential, axial FWHM (mm) | SD over seeds | peak over warm |"
        )
        print("|---|---|---|---|")
        for i, k in enumerate(POINT_UPDATES):
            widths = point_widths(mean[i])
            each = [point_widths(cube[i]) for cube in cubes]
            spread = np.std(each, axis=0, ddof=1) if len(each) > 1 else [math.nan] * 3
            peak = mean[i][HALF_CUBE, HALF_CUBE, HALF_CUBE]
            print(
                f"| {k} | {', '.join(f'{w:.2f}' for w in widths)} | "
                f"{', '.join(f'{w:.2f}' for w in spread)} | {peak:.3f} |",
                flush=True,
            )


def one_seed(n_warm: int, sharp: bool, centres: bool, seed: int, threads: int) -> F64:
    """Give the mean point of one simulation after each of ``POINT_UPDATES``."""
    started = time.perf_counter()
    scan, n_own = simulate_points(n_warm, sharp, seed, threads)
    print(
        f"[{time.perf_counter() - started:.0f} s] {n_own} events of the cylinder, "
        f"{scan.n_events() - n_own} of {len(point_places())} points; "
        f"{'no range, no acollinearity' if sharp else 'positron range and acollinearity'}"
    )
    both, warm = point_images(scan, centres, threads)
    cubes = [
        mean_point(one.astype(np.float64) - other, other.astype(np.float64))
        for one, other in zip(both, warm, strict=True)
    ]
    print(f"[{time.perf_counter() - started:.0f} s] seed {seed} done", flush=True)
    return np.stack(cubes)


def main() -> None:
    parser = argparse.ArgumentParser(description="NEMA-like checks by simulation.")
    parser.add_argument("what", choices=("quality", "point"))
    parser.add_argument("--fraction", type=float, default=0.03)
    parser.add_argument("--out", type=Path, default=Path("out/nema_study"))
    parser.add_argument("--events", type=int, default=N_WARM)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--sharp", action="store_true")
    parser.add_argument("--centres", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.what == "quality":
        quality(args.fraction, args.out, args.threads)
    else:
        point(args.events, args.sharp, args.centres, args.seeds, args.out, args.threads)


if __name__ == "__main__":
    main()
