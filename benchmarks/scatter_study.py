"""Scatter and what the images make of it, against the simulator's labels of multiple scatter.

    python -m benchmarks.scatter_study cylinder 0.004
    python -m benchmarks.scatter_study torso 0.006 6

simulates scans (of that share of the counts; so many of them), estimates randoms and scatter of
each from its events alone, and prints the ratio of estimate to labels in total and over five
coordinates; then the mean of each region over the truth, for four images of each scan: its
trues alone, with our scatter, with the mean of the labels in its place, and without scatter.
What trues alone miss is the grid, the noise and the convergence, not scatter: the table's last
two columns are the differences from them, scan by scan, in which half of the noise of a small
region cancels. ``pregnant`` is the third phantom.

The cylinder is 300 mm wide and 600 mm long, and as the torso scatters like a patient. Voxels
are 8 mm, so that each holds some tens of counts as in a patient's scan: where there are only a
few, the cylinder came out 2.5 % high with the labels' mean too (5 mm), most likely by a fit to
the noise that takes random and scattered events for true ones.
The voxels of a region lie wholly 12 mm inside their organ. Few are left of a small one, and the
noise of neighbouring voxels does not cancel within the timing's 30 mm: one scan tells the mean
of a heart to a few per cent only, so errors are those of the mean over scans.
The pool that scatter is drawn from is as large as the scatter in the scan, so that it adds no
noise of its own.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from listmode.simulate.generate import expected_counts, gather
from listmode.simulate.phantom import cylinder_phantom, pregnant_phantom, torso_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG, Dose
from listmode.simulate.shapes import Phantom
from listmode.simulate.simulation import Simulation
from listmode.simulate.truth import RANDOM, SCATTER, TRUE
from recon.corrections.additive import AdditiveModel
from recon.corrections.randoms import estimate_randoms
from recon.corrections.scatter import ScatterModel
from recon.image import Grid, Volume
from recon.osem import OsemSettings
from recon.reconstruct import reconstruct
from recon.scatter_loop import estimate_scatter_iteratively
from recon.sensitivity import compute_sensitivity

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

N_PAIRS = 3_000_000
N_POOL = 600_000  # scattered events followed one by one, at least
N_SWEEPS = 4
N_ITERATIONS = 8  # of 5 updates: after 4 the middle of a small organ still rises by 2 %
THREADS = 2
MARGIN_MM = 12.0
FINE = 4  # points along each edge of a voxel that must all lie inside
FIRST_SEED = 5
TRUES, OURS, LABELS, NO_SCATTER = "trues alone", "our scatter", "labels' mean", "no scatter"
EDGES: dict[str, F64] = {
    "distance from axis, mm": np.array(
        [0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 220, 260, 351.0]
    ),
    "axial middle, mm": np.linspace(-532, 532, 15),
    "axial distance, mm": np.linspace(0, 1064, 11),
    "TOF towards +x, bins": np.arange(-10.5, 11.0),
    "angle, rad": np.linspace(-np.pi / 2, np.pi / 2, 13),
    "distance by side, mm": np.array(
        [-351, -240, -180, -140, -100, -60, -20, 20, 60, 100, 140, 180, 240, 351.0]
    ),
}
TABLES = ((0, 1, 3), (4, 5, 3), (0, 1, 2), (4, 5, 1))  # coordinates that are fitted together


def features(scanner: Scanner, batch: EventBatch) -> list[F64]:
    """Give each event's place in the coordinates of ``EDGES``."""
    p = scanner.crystal_position_mm[batch.crystal_a].astype(np.float64)
    q = scanner.crystal_position_mm[batch.crystal_b].astype(np.float64)
    way = (q - p) * np.where(q[:, :1] >= p[:, :1], 1.0, -1.0)  # towards +x
    across = (p[:, 0] * way[:, 1] - p[:, 1] * way[:, 0]) / np.hypot(*way[:, :2].T)
    tof = batch.tof_bin - (scanner.tof.n_bins - 1) / 2.0
    return [
        np.abs(across),
        (p[:, 2] + q[:, 2]) / 2,
        np.abs(p[:, 2] - q[:, 2]),
        tof * np.where(q[:, 0] >= p[:, 0], 1.0, -1.0),
        np.arctan2(way[:, 1], way[:, 0]),
        across,
    ]


@dataclass
class Comparison:
    """The estimate at a sample of all pairs and bins, and the labelled events."""

    scanner: Scanner
    pairs: EventBatch
    estimate: F64
    labelled: EventBatch

    def ratios(self) -> dict[str, tuple[F64, F64]]:
        """Give for each coordinate the ratio and the labels' share by bin."""
        ours, theirs = features(self.scanner, self.pairs), features(self.scanner, self.labelled)
        result = {}
        for (name, edges), mine, label in zip(EDGES.items(), ours, theirs, strict=True):
            want = np.histogram(label, edges)[0]
            got = np.histogram(mine, edges, weights=self.estimate)[0]
            result[name] = (got / np.maximum(want, 1), want / len(self.labelled))
        return result

    def label_mean(self, model: ScatterModel) -> LabelMean:
        """Bend the estimate to the labels' mean, table by table in turn, until all agree."""
        edges = [EDGES[name] for name in EDGES]
        ours, theirs = (
            cells(features(self.scanner, batch), edges) for batch in (self.pairs, self.labelled)
        )
        factors = [np.ones([edges[k].size - 1 for k in table]) for table in TABLES]
        value = self.estimate.copy()
        for _ in range(N_SWEEPS):
            for table, factor in zip(TABLES, factors, strict=True):
                place = [np.ravel_multi_index([c[k] for k in table], factor.shape)
                         for c in (ours, theirs)]  # fmt: skip
                got = np.bincount(place[0], value, factor.size)
                want = np.bincount(place[1], minlength=factor.size)
                more = np.where(got > 20, want / np.maximum(got, 1), 1.0)
                value *= more[place[0]]
                factor *= more.reshape(factor.shape)
        return LabelMean(self.scanner, model, edges, factors)


def cells(values: list[F64], edges: list[F64]) -> list[NDArray[np.intp]]:
    """Give each event's cell along each coordinate."""
    return [
        np.clip(np.searchsorted(e, v, side="right") - 1, 0, e.size - 2)
        for e, v in zip(edges, values, strict=True)
    ]


@dataclass
class LabelMean:
    """The truth labels' mean as an additive model: our estimate times factors by cell."""

    scanner: Scanner
    model: ScatterModel
    edges: list[F64]
    factors: list[F64]

    def expected(self, batch: EventBatch) -> F32:
        """Give the labels' mean in each event's own LOR and TOF bin."""
        cell = cells(features(self.scanner, batch), self.edges)
        value = self.model.expected(batch).astype(np.float64)
        for table, factor in zip(TABLES, self.factors, strict=True):
            value *= factor[tuple(cell[k] for k in table)]
        return value.astype(np.float32)


def sample_pairs(scanner: Scanner) -> tuple[EventBatch, float]:
    """Draw accepted pairs and TOF bins evenly, and how many stand behind each."""
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, scanner.n_crystals, (2, N_PAIRS))
    keep = scanner.accepts(a, b)
    t = rng.integers(0, scanner.tof.n_bins, N_PAIRS)
    batch = EventBatch.from_pairs(a[keep], b[keep], t[keep], scanner.tof.n_bins)
    return batch, scanner.n_crystals**2 / 2 * scanner.tof.n_bins / N_PAIRS


def labelled_scatter(scan: MemoryListmode) -> EventBatch:
    """Pick the prompts that the simulator scattered."""
    assert scan.truth is not None
    index = np.flatnonzero(scan.truth == SCATTER)
    p = scan.prompts
    return EventBatch(p.crystal_a[index], p.crystal_b[index], p.tof_bin[index])


def show(what: str, values: F64) -> None:
    """Print one row of a table."""
    print(f"  {what:24s}" + " ".join(f"{v:6.3f}" for v in values))


def trues_of(scan: MemoryListmode) -> MemoryListmode:
    """Keep the true coincidences of a scan alone."""
    assert scan.truth is not None
    is_true = scan.truth == TRUE
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(is_true)))
    p = scan.prompts
    return replace(
        scan,
        prompts=EventBatch(p.crystal_a[is_true], p.crystal_b[is_true], p.tof_bin[is_true]),
        prompts_offset=before[scan.prompts_offset],
        truth=scan.truth[is_true],
    )


def inner_regions(
    phantom: Phantom, grid: Grid, margin_mm: float
) -> dict[str, NDArray[np.bool_]]:
    """Give the voxels that lie wholly ``margin_mm`` or more inside their organ."""
    fine_mm = np.array(grid.voxel_mm) / FINE
    axes = [
        (grid.axis_mm(k)[:, None] + (np.arange(FINE) - (FINE - 1) / 2) * fine_mm[k]).ravel()
        for k in range(3)
    ]
    labels = phantom.sample_labels(*axes)
    nx, ny, nz = grid.shape
    regions = {}
    for label, organ in phantom.labels.items():
        # The surface is half a step before the first point that lies outside.
        depth = distance_transform_edt(np.pad(labels == label, 1), sampling=fine_mm)
        is_deep = depth[1:-1, 1:-1, 1:-1] >= margin_mm + fine_mm.max() / 2
        blocks = is_deep.reshape(nx, FINE, ny, FINE, nz, FINE)
        regions[organ] = np.asarray(blocks.all(axis=(1, 3, 5)))
    return regions


def region_means(
    scan: MemoryListmode,
    phantom: Phantom,
    grid: Grid,
    mu: Volume,
    models: dict[str, list[AdditiveModel]],
    regions: dict[str, NDArray[np.bool_]],
) -> dict[str, F64]:
    """Reconstruct with each choice of additive terms; give the regions' means over truth."""
    settings = OsemSettings(
        n_iterations=N_ITERATIONS, psf_fwhm_mm=0.0, n_sensitivity_pairs=12_000_000
    )
    sensitivity = compute_sensitivity(
        scan.scanner,
        grid,
        mu=mu,
        crystal_efficiency=scan.crystal_efficiency,
        n_pairs=settings.n_sensitivity_pairs,
        threads=THREADS,
    )
    truth = phantom.sample_activity(*(grid.axis_mm(axis) for axis in range(3)))
    means = {}
    for name, additive in models.items():
        events = trues_of(scan) if name == TRUES else scan
        image = reconstruct(
            events,
            events.extent,
            grid=grid,
            mu=mu,
            settings=settings,
            additive=additive,
            sensitivity=sensitivity,
            threads=THREADS,
        )
        means[name] = np.array(
            [
                image.values[r].sum(dtype=np.float64) / truth[r].sum(dtype=np.float64)
                for r in regions.values()
            ]
        )
    return means


def show_regions(regions: dict[str, NDArray[np.bool_]], found: list[dict[str, F64]]) -> None:
    """Print the regions' means over the scans, and the differences from trues alone."""
    scans = {name: np.array([means[name] for means in found]) for name in found[0]}
    for name in (OURS, LABELS):
        scans[f"{name} less trues"] = scans[name] - scans[TRUES]
    n = len(found)
    print(f"| region (voxels) | {' | '.join(scans)} |\n|---|{'---|' * len(scans)}")
    for i, (organ, region) in enumerate(regions.items()):
        row = [
            f"{v[:, i].mean():.3f}"
            + (f" ± {v[:, i].std(ddof=1) / np.sqrt(n):.3f}" if n > 1 else "")
            for v in scans.values()
        ]
        print(f"| {organ} ({region.sum()}) | {' | '.join(row)} |", flush=True)


def simulate(
    scanner: Scanner, phantom: Phantom, dose: Dose, fraction: float, seed: int
) -> MemoryListmode:
    """Simulate a scan whose scatter comes from a pool as large as itself."""
    expected = expected_counts(
        scanner=scanner, phantom=phantom, dose=dose, seed=seed, count_fraction=fraction,
        with_randoms=False, threads=THREADS,
    )  # fmt: skip
    simulation = Simulation(
        scanner, phantom, dose, seed=seed, count_fraction=fraction, threads=THREADS,
        table_events=max(N_POOL, round(expected.scatter)),
    )  # fmt: skip
    return gather(simulation)[0]


def choose(phantom_name: str) -> tuple[Phantom, Dose, Grid]:
    """Give a phantom, its dose and the grid of its images."""
    if phantom_name == "cylinder":
        phantom = cylinder_phantom(radius_mm=150, length_mm=600, activity_bq_ml=1000.0)
        return phantom, Dose.in_phantom(phantom, 300.0), Grid.centred((44, 44, 86), 8.0)
    if phantom_name == "torso":
        return torso_phantom(), LOW_DOSE_FDG, Grid.centred((50, 36, 78), 8.0)
    return pregnant_phantom(), LOW_DOSE_FDG, Grid.centred((76, 62, 134), 8.0)


def main(phantom_name: str, count_fraction: float, n_scans: int = 1) -> None:
    """Simulate, estimate and compare."""
    started = time.perf_counter()

    def log(what: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {what}", flush=True)

    scanner = load_scanner("quadra")
    phantom, dose, grid = choose(phantom_name)
    scale = dose.scan_protocol(phantom.weight_kg, count_fraction).suv_per_bq_ml
    phantom = phantom.with_suv_scale(1.0 / (scale or 1.0))
    axes = [grid.axis_mm(axis) for axis in range(3)]
    mu = Volume(phantom.sample_mu(axes[0], axes[1], axes[2]), grid, "1/cm")
    truth = phantom.sample_activity(axes[0], axes[1], axes[2])
    regions = {
        organ: region
        for organ, region in inner_regions(phantom, grid, MARGIN_MM).items()
        if region.sum() > 30 and truth[region].mean() > 0
    }
    found: list[dict[str, F64]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + n_scans):
        scan = simulate(scanner, phantom, dose, count_fraction, seed)
        randoms = estimate_randoms(scan, scan.extent)
        assert scan.truth is not None
        n_randoms = int((scan.truth == RANDOM).sum())
        log(f"{scan.n_events()} prompts; randoms {n_randoms}, estimate over them "
            f"{randoms.total / n_randoms:.4f} +- {np.sqrt(2.0 / n_randoms):.4f}")  # fmt: skip
        model = estimate_scatter_iteratively(
            scan, scan.extent, mu=mu, grid=grid, randoms=randoms, threads=THREADS
        )
        labelled = labelled_scatter(scan)
        pairs, weight = sample_pairs(scanner)
        estimate = model.expected(pairs).astype(np.float64) * weight
        comparison = Comparison(scanner, pairs, estimate, labelled)
        share = len(labelled) / (scan.n_events() - n_randoms)
        log(
            f"{phantom_name}: {len(labelled)} scattered, {share:.3f} of trues and scatter; "
            f"estimate over labels {model.total / len(labelled):.3f}; tail scale "
            f"{model.tail_scale:.3f} +- {model.tail_scale_error:.3f}; multiple over single "
            f"{model.table.multiple_ratio:.3f}; by segment "
            f"{np.round(model.segment_scale, 3).tolist()}"
        )
        if seed == FIRST_SEED:
            for name, (ratio, part) in comparison.ratios().items():
                print(name)
                show("estimate over labels", ratio)
                show("labels' share", part)
        models: dict[str, list[AdditiveModel]] = {
            TRUES: [],
            OURS: [randoms, model],
            LABELS: [randoms, comparison.label_mean(model)],
            NO_SCATTER: [randoms],
        }
        found.append(region_means(scan, phantom, grid, mu, models, regions))
        show_regions(regions, found)
    log("done")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:]))
