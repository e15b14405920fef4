"""Compare the scatter estimate with the simulator's labels, which hold multiple scatter.

``python -m benchmarks.scatter_study cylinder 0.02`` simulates a scan (count fraction 0.02),
estimates scatter from its events alone, and prints the ratio of estimate to labels in total and
over four coordinates, then what the images make of it. ``pregnant`` is the other phantom.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.phantom import cylinder_phantom, pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG, Dose
from listmode.simulate.shapes import Phantom
from recon.corrections.additive import AdditiveModel, PartModel
from recon.corrections.randoms import estimate_randoms
from recon.corrections.scatter import ScatterModel
from recon.image import Grid, Volume
from recon.osem import OsemSettings
from recon.reconstruct import reconstruct
from recon.scatter_loop import estimate_scatter_iteratively, spread_part
from recon.sensitivity import compute_sensitivity

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SCATTER_LABEL = 1
N_PAIRS = 3_000_000
MAX_EVENTS = 3_000_000
EDGES: dict[str, F64] = {
    "distance from axis, mm": np.array(
        [0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 220, 260, 351.0]
    ),
    "axial middle, mm": np.linspace(-532, 532, 15),
    "axial distance, mm": np.linspace(0, 1064, 11),
    "TOF towards +x, bins": np.arange(-10.5, 11.0),
}


def features(scanner: Scanner, batch: EventBatch) -> list[F64]:
    """Give each event's place in the coordinates of ``EDGES``."""
    p = scanner.crystal_position_mm[batch.crystal_a].astype(np.float64)
    q = scanner.crystal_position_mm[batch.crystal_b].astype(np.float64)
    cross = np.abs(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])
    tof = batch.tof_bin - (scanner.tof.n_bins - 1) / 2.0
    return [
        cross / np.hypot(*(q - p)[:, :2].T),
        (p[:, 2] + q[:, 2]) / 2,
        np.abs(p[:, 2] - q[:, 2]),
        tof * np.sign(q[:, 0] - p[:, 0]),
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
        """Bend the estimate to the labels' mean in cells of distance, middle and TOF."""
        ours, theirs = features(self.scanner, self.pairs), features(self.scanner, self.labelled)
        edges = [EDGES[name] for name in list(EDGES)]
        edges = [edges[0], edges[1], edges[3]]
        cell = [np.stack((f[0], f[1], f[3]), axis=1) for f in (ours, theirs)]
        got = np.histogramdd(cell[0], edges, weights=self.estimate)[0]
        want = np.histogramdd(cell[1], edges)[0]
        return LabelMean(
            self.scanner, model, edges, np.where(got > 20, want / np.maximum(got, 1), 1.0)
        )


@dataclass
class LabelMean:
    """The truth labels' mean as an additive model."""

    scanner: Scanner
    model: ScatterModel
    edges: list[F64]
    factor: F64

    def expected(self, batch: EventBatch) -> F32:
        """Give the labels' mean in each event's own LOR and TOF bin."""
        f = features(self.scanner, batch)
        index = tuple(
            np.clip(np.searchsorted(e, v, side="right") - 1, 0, e.size - 2)
            for e, v in zip(self.edges, (f[0], f[1], f[3]), strict=True)
        )
        return (self.model.expected(batch) * self.factor[index]).astype(np.float32)


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
    index = np.flatnonzero(scan.truth == SCATTER_LABEL)
    p = scan.prompts
    return EventBatch(p.crystal_a[index], p.crystal_b[index], p.tof_bin[index])


def show(what: str, values: F64) -> None:
    """Print one row of a table."""
    print(f"  {what:24s}" + " ".join(f"{v:6.3f}" for v in values))


def image_errors(
    scan: MemoryListmode,
    phantom: Phantom,
    grid: Grid,
    mu: Volume,
    models: dict[str, list[AdditiveModel]],
) -> None:
    """Reconstruct with each choice of additive terms and print regions over the truth."""
    windows = scan.extent
    part = spread_part(scan, windows, MAX_EVENTS)
    share = scan.count(part) / scan.count(windows)
    settings = OsemSettings(psf_fwhm_mm=0.0, n_sensitivity_pairs=10_000_000)
    sensitivity = compute_sensitivity(
        scan.scanner,
        grid,
        mu=mu,
        crystal_efficiency=scan.crystal_efficiency,
        n_pairs=settings.n_sensitivity_pairs,
    )
    axes = [grid.axis_mm(axis) for axis in range(3)]
    truth = phantom.sample_activity(axes[0], axes[1], axes[2])
    labels = phantom.sample_labels(axes[0], axes[1], axes[2])
    for name, additive in models.items():
        image = reconstruct(
            scan,
            part,
            grid=grid,
            mu=mu,
            settings=settings,
            additive=[PartModel(m, share) for m in additive],
            sensitivity=sensitivity,
        )
        print(f"image with {name}: mean over truth")
        for label, organ in phantom.labels.items():
            inside = binary_erosion(labels == label, iterations=4)
            if label and inside.sum() > 100 and truth[inside].mean() > 0:
                ratio = float(image.values[inside].mean() / truth[inside].mean())
                print(f"  {organ:24s}{ratio:6.3f}  ({inside.sum()} voxels)")


def main(phantom_name: str, count_fraction: float) -> None:
    """Simulate, estimate and compare."""
    scanner = load_scanner("quadra")
    if phantom_name == "cylinder":
        phantom = cylinder_phantom(radius_mm=100, length_mm=700, activity_bq_ml=1000.0)
        dose, grid = Dose.in_phantom(phantom, 300.0), Grid.centred((60, 60, 180), 5.0)
    else:
        phantom, dose = pregnant_phantom(), LOW_DOSE_FDG
        grid = Grid.centred((120, 100, 214), 5.0)
    scan, _ = simulate_in_memory(
        scanner=scanner, phantom=phantom, dose=dose, seed=5, count_fraction=count_fraction
    )
    axes = [grid.axis_mm(axis) for axis in range(3)]
    mu = Volume(phantom.sample_mu(axes[0], axes[1], axes[2]), grid, "1/cm")
    randoms = estimate_randoms(scan, scan.extent)
    model = estimate_scatter_iteratively(scan, scan.extent, mu=mu, grid=grid, randoms=randoms)
    labelled = labelled_scatter(scan)
    pairs, weight = sample_pairs(scanner)
    estimate = model.expected(pairs).astype(np.float64) * weight
    comparison = Comparison(scanner, pairs, estimate, labelled)
    print(
        f"{phantom_name}: {scan.n_events()} prompts, {len(labelled)} scattered; estimate over "
        f"labels {model.total / len(labelled):.3f}; scatter fraction {model.fraction:.3f}; "
        f"tail scale {model.tail_scale:.3f} +- {model.tail_scale_error:.3f}"
    )
    for name, (ratio, share) in comparison.ratios().items():
        print(name)
        show("estimate over labels", ratio)
        show("labels' share", share)
    image_errors(
        scan,
        phantom,
        grid,
        mu,
        {
            "our scatter": [randoms, model],
            "the labels' mean": [randoms, comparison.label_mean(model)],
            "no scatter": [randoms],
        },
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
