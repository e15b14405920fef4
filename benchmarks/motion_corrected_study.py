"""Hold motion-corrected images of all minutes against scans in which nobody moved.

``python -m benchmarks.motion_corrected_study RESULTS.jsonl --pairs 10`` adds one line a pair to
the file and prints the summary; pairs that are in the file are not made again, so it may be
killed at any time. A pair is a patient who shifts by 13 mm at 600 s and one with the same seed
who does not; poses come from the motion analysis alone.

Reduced field and counts: decays in a box around the pelvis only (``BOX``), unscattered, without
randoms, 15 % of the counts of the low-dose protocol. Nothing but the bladder can be followed in
it, so the class of the change tells nothing and every change is taken as one of the whole body.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from recon.image import Grid, Volume
from recon.motion import Poses, poses_from_changes
from recon.pipeline import reconstruct_scan
from recon.pipeline.motion import analyse
from recon.report.measures import axial_profile, measure_profile
from recon.settings import Settings

F64 = NDArray[np.float64]

BOX = ((-120.0, 120.0), (-130.0, 100.0), (-385.0, -150.0))
GRID = Grid((76, 74, 76), (3.3, 3.3, 3.3), (-123.75, -135.45, -391.0))
WIDE = Grid.centred((84, 64, 200), 6.6)  # of the mu-map: all that lines can cross
SHIFT = PatientMotion((600.0,), ((0.0, 0.0, 13.0),))
BLADDER_MM = (0.0, -48.0, -270.0)  # its middle over the scan
FIRST_SEED = 2024
COUNT_FRACTION = 0.15
LESIONS = {"iliac_node": (62.0, -40.0, -262.0), "hip_tumour": (96.0, -52.0, -285.0)}
PEAK_MM = 6.2  # a sphere of 1 mL
LIMITS = {"rms_mm": 0.03, "lower_edge_mm": 0.10, "upper_edge_mm": 0.10}


def pelvis(motion: PatientMotion, seed: int, count_fraction: float) -> MemoryListmode:
    """Simulate unscattered coincidences from the pelvis."""
    listmode, _ = simulate_in_memory(
        scanner=load_scanner("quadra-UHS"), phantom=pregnant_phantom(), dose=LOW_DOSE_FDG,
        motion=motion, seed=seed, count_fraction=count_fraction, scatter="off",
        with_randoms=False, emission_box_mm=BOX, threads=1,
    )  # fmt: skip
    return listmode


def study_settings() -> Settings:
    """Give the settings of all images: three iterations, little else."""
    plain = Settings()
    osem = replace(plain.osem, n_iterations=3, n_subsets=4, n_sensitivity_pairs=16_000_000)
    off = replace(plain.corrections, scatter=False, randoms=False)
    return replace(plain, osem=osem, corrections=off)


def mu_map() -> Volume:
    """Sample the phantom's attenuation as at tick zero."""
    x, y, z = (WIDE.axis_mm(axis) for axis in range(3))
    return Volume(pregnant_phantom().sample_mu(x, y, z), WIDE, "1/cm")


def regions() -> dict[str, NDArray[np.bool_]]:
    """Mark the inner parts of organs, away from their walls and from the box's."""
    phantom = pregnant_phantom()
    x, y, z = (GRID.axis_mm(axis) for axis in range(3))
    labels = phantom.sample_labels(x, y, z)
    in_box = np.ones(GRID.shape, bool)
    for axis, (low, high) in enumerate(BOX):
        at = GRID.axis_mm(axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        in_box &= ((at > low + 15) & (at < high - 15)).reshape(shape)
    marked = {}
    for name, margin_mm in (("bladder", 9.0), ("hip_tumour", 6.0), ("soft_tissue", 12.0)):
        number = next(k for k, v in phantom.labels.items() if v == name)
        deep = ndimage.distance_transform_edt(labels == number, sampling=GRID.voxel_mm)
        marked[name] = (np.asarray(deep) > margin_mm) & in_box
    return marked


def peak(volume: Volume, centre_mm: tuple[float, float, float]) -> float:
    """Give the highest mean over a sphere of 1 mL within 8 mm of a lesion's centre."""
    fine = np.arange(-1, 1.01, 0.1) * PEAK_MM
    ball = np.stack(np.meshgrid(fine, fine, fine, indexing="ij"), -1).reshape(-1, 3)
    ball = ball[(ball**2).sum(axis=1) <= PEAK_MM**2]
    step = np.arange(-6.6, 6.7, 3.3)
    centres = np.stack(np.meshgrid(step, step, step, indexing="ij"), -1).reshape(-1, 3)
    best = 0.0
    for centre in centres[(centres**2).sum(axis=1) <= 64.0] + centre_mm:
        at = volume.grid.voxel_index(centre + ball).T
        best = max(best, float(ndimage.map_coordinates(volume.values, at, order=1).mean()))
    return best


def measure(volume: Volume, marked: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Measure widths of the bladder, organs, lesions and noise in one image."""
    widths = measure_profile(*axial_profile(volume, BLADDER_MM))
    assert widths is not None
    row = {name: float(getattr(widths, name)) for name in LIMITS}
    for name, inside in marked.items():
        row[f"mean {name}"] = float(volume.values[inside].mean(dtype=np.float64))
    soft = volume.values[marked["soft_tissue"]].astype(np.float64)
    row["noise"] = float(soft.std() / soft.mean())
    for name, centre in LESIONS.items():
        row[f"peak {name}"] = peak(volume, centre)
        near = np.linalg.norm(
            np.stack(np.meshgrid(*(GRID.axis_mm(a) for a in range(3)), indexing="ij"), -1)
            - centre,
            axis=-1,
        )
        row[f"max {name}"] = float(volume.values[near <= 15.0].max())
    return row


def make_pair(seed: int, count_fraction: float, cache_dir: Path) -> dict[str, Any]:
    """Simulate, analyse, reconstruct and measure one pair."""
    moving, still = (pelvis(m, seed, count_fraction) for m in (SHIFT, STILL))
    changes = analyse(moving, threads=1).changes
    poses = poses_from_changes(
        changes, moving.extent, kinds=("whole-body shift", "unclassified", "local event")
    )
    marked = regions()
    row: dict[str, Any] = {
        "seed": seed,
        "count_fraction": count_fraction,
        "n_events": [moving.n_events(), still.n_events()],
        "shifts": [[c.time_s, *c.shift_mm] for c in changes.items],
    }
    cases: list[tuple[str, MemoryListmode, Poses | None]] = [
        ("never moved", still, None),
        ("uncorrected", moving, None),
        ("corrected", moving, poses),
    ]
    for name, scan, where in cases:
        done = reconstruct_scan(
            scan, scan.extent, grid=GRID, mu=mu_map(), settings=study_settings(), poses=where,
            threads=1, cache_dir=cache_dir,
        )  # fmt: skip
        row[name] = measure(done.volume, marked)
    return row


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Say for each measure how the two images of the moving scan compare with the still one."""
    lines = [f"{len(rows)} pairs, {rows[0]['count_fraction']:g} of the counts"]
    for case in ("corrected", "uncorrected"):
        lines.append(f"{case} over never moved: mean ratio, its standard error, extremes")
        for name in rows[0][case]:
            ratio = np.array([row[case][name] / row["never moved"][name] for row in rows])
            error = ratio.std(ddof=1) / np.sqrt(ratio.size) if ratio.size > 1 else np.nan
            lines.append(
                f"  {name:18} {ratio.mean():.4f} +- {error:.4f}  "
                f"{ratio.min():.3f}..{ratio.max():.3f}"
            )
        passes = [
            all(abs(r[case][k] / r["never moved"][k] - 1) <= v for k, v in LIMITS.items())
            for r in rows
        ]
        lines.append(f"  widths within 3 % and 10 %: {sum(passes)} of {len(passes)} pairs")
    return lines


def main() -> None:
    """Run the pairs that are missing, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--count-fraction", type=float, default=COUNT_FRACTION)
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.touch()
    lines = given.results.read_text("utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may cut one
    done = {row["seed"] for row in rows}
    for seed in range(FIRST_SEED, FIRST_SEED + given.pairs):
        if seed in done:
            continue
        row = make_pair(seed, given.count_fraction, given.results.parent / "sensitivity")
        rows.append(row)
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"pair {seed} done", flush=True)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
