"""From windows of a scan to an image: grid, corrections, sensitivity, reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode, ScanProtocol
from listmode.windows import Windows
from recon.bootstrap import Replicates, bootstrap, bootstrap_bytes, count_lanes
from recon.corrections.additive import ByPose, share_out
from recon.corrections.randoms import RandomsModel, estimate_randoms_by_pose
from recon.corrections.scatter import ScatterModel
from recon.cost import estimate_cost
from recon.image import Grid, Volume
from recon.io.nifti import check_mu, resample_to
from recon.motion import Poses
from recon.osem import Problem, osem, run
from recon.reconstruct import prepare
from recon.scatter_loop import estimate_scatter_by_pose
from recon.sensitivity import Sensitivity, average_sensitivity
from recon.settings import GridSettings, Settings
from recon.suv import SuvBy, suv_factor, suv_factors

ADDITIVE_MM = 5.0  # poses nearer than this share randoms and scatter, which are smooth
BOOTSTRAP_COST = 4.5 / 8  # of a replicate, in reconstructions
BODY_RADIUS_MM = 272.0  # 165 voxels of 3.3 mm hold a patient with the arms at the sides


def choose_grid(scanner: Scanner, settings: GridSettings | None = None) -> Grid:
    """Choose the image grid of a scanner: centred, of cubic voxels.

    Parameters
    ----------
    scanner
        Gives the field of view where the settings leave it open.
    settings
        Voxel size and extent.

    Examples
    --------
    >>> from listmode.formats.scanner_file import load_scanner
    >>> choose_grid(load_scanner("quadra")).shape
    (165, 165, 322)
    """
    wanted = settings or GridSettings()
    radius = wanted.radius_mm or min(scanner.fov_radius_mm, BODY_RADIUS_MM)
    length = wanted.length_mm or scanner.axial_length_mm
    across = max(round(2.0 * radius / wanted.voxel_mm), 1)
    along = max(round(length / wanted.voxel_mm), 1)
    return Grid.centred((across, across, along), wanted.voxel_mm)


def to_suv(volume: Volume, protocol: ScanProtocol, by: SuvBy = "weight") -> Volume | None:
    """Turn Bq/mL at tick zero into SUV; ``None`` if dose, weight or what else is unknown."""
    factor = suv_factor(protocol, by)
    if factor is None:
        return None
    return Volume(volume.values * factor, volume.grid, "SUV", volume.provenance)


def check_events(listmode: Listmode, windows: Windows) -> None:
    """Refuse windows without events: their time would count and their activity would not.

    Raises
    ------
    InputError
        If a window reaches outside the scan or holds no prompt.
    """
    slices = listmode.event_slices(windows)
    for (start, stop), (first, last) in zip(windows, slices.tolist(), strict=True):
        if first == last:
            raise InputError(
                f"each window must hold events, but {start / 1000:g}-{stop / 1000:g} s holds "
                "none (seconds from tick zero); leave that time out"
            )


@dataclass(frozen=True)
class CostEstimate:
    """What a reconstruction will take, told before it starts."""

    memory_bytes: int
    seconds: float
    n_events: int
    n_voxels: int


def estimate_run(
    listmode: Listmode,
    windows: Windows,
    settings: Settings,
    *,
    rays_per_s: float,
    has_mu: bool = True,
) -> CostEstimate:
    """Estimate memory and time of a reconstruction with all that :func:`reconstruct_scan` does.

    Parameters
    ----------
    listmode, windows, settings
        What is to be reconstructed.
    rays_per_s
        From :func:`recon.cost.measure_rays_per_s`, on this machine and as many threads.
    has_mu
        Whether there is a mu-map, and so a scatter estimate.
    """
    grid = choose_grid(listmode.scanner, settings.grid)
    n_events = listmode.count(windows)
    wanted = settings.corrections
    has_scatter = wanted.scatter and has_mu
    has_randoms = wanted.randoms and listmode.n_events("delayeds") > 0
    cost = estimate_cost(
        n_events, grid, settings.osem, rays_per_s=rays_per_s,
        has_additive=has_scatter or has_randoms, has_scatter=has_scatter,
    )  # fmt: skip
    memory, seconds = cost.memory_bytes, cost.seconds
    if settings.penalty is not None and settings.penalty.method == "svrg":
        memory += 4 * grid.n_voxels * (settings.osem.n_subsets + 2)
        seconds *= 1.5
    if n_replicates := settings.bootstrap.n_replicates:
        memory += bootstrap_bytes(grid, n_replicates)
        seconds *= 1.0 + BOOTSTRAP_COST * count_lanes(n_replicates)
    return CostEstimate(memory, seconds, n_events, grid.n_voxels)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An image and what went into it.

    Parameters
    ----------
    volume
        Bq/mL, decay-corrected to tick zero.
    windows
        The time it was made from.
    n_prompts
        Events in the windows.
    n_randoms, n_scatter
        Expected randoms and scatter in the windows; ``None`` where not estimated.
    sensitivity
        To use again for other windows.
    notes
        What was left out, and why.
    replicates
        Images of resampled events, Bq/mL; ``None`` where none were asked for.
    """

    volume: Volume
    windows: Windows
    n_prompts: int
    n_randoms: float | None
    n_scatter: float | None
    sensitivity: Sensitivity
    notes: tuple[str, ...]
    replicates: Replicates | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give what the image was made from as JSON values."""
        return {
            "unit": self.volume.unit,
            "shape": list(self.volume.grid.shape),
            "voxel_mm": list(self.volume.grid.voxel_mm),
            "windows_s": [[a / 1000.0, b / 1000.0] for a, b in self.windows],
            "n_prompts": self.n_prompts,
            "n_randoms": self.n_randoms,
            "n_scatter": self.n_scatter,
            "notes": list(self.notes),
            "provenance": dict(self.volume.provenance),
        }


def reconstruct_scan(
    listmode: Listmode,
    windows: Windows,
    *,
    grid: Grid | None = None,
    mu: Volume | None = None,
    settings: Settings | None = None,
    sensitivity: Sensitivity | None = None,
    poses: Poses | None = None,
    threads: int = 2,
    cache_dir: Path | None = None,
    resume_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Reconstruction:
    """Reconstruct a union of windows with every correction that the data allow.

    Parameters
    ----------
    listmode
        The scan.
    windows
        The time to use; every estimate uses only this time.
    grid
        Where to reconstruct; the scanner's own (:func:`choose_grid`) if not given.
    mu
        Attenuation in 1/cm on any grid; without it nothing is corrected for attenuation or
        scatter.
    settings
        Grid, corrections and OSEM.
    sensitivity
        Of the same scanner, grid, mu-map and poses, from an earlier call.
    poses
        Where the patient lay in all of the windows: their events are then put where they would
        have been in the reference pose, which is that of grid and mu-map. The patient did not
        move if ``None``.
    threads, cache_dir, progress
        As everywhere.
    resume_dir
        Folder that keeps the states of the iterations; as in
        :func:`recon.reconstruct.reconstruct`.

    Raises
    ------
    InputError
        If windows lie outside the scan or hold no events, the mu-map cannot be used, or
        replicates are asked for with a penalty.
    """
    settings = settings or Settings()
    if settings.penalty is not None and settings.bootstrap.n_replicates:
        raise InputError(
            "replicates are reconstructed by OSEM, but a penalty is set too; leave out the "
            "bootstrap or the penalty"
        )
    check_events(listmode, windows)
    grid = grid or choose_grid(listmode.scanner, settings.grid)
    notes: list[str] = []
    if mu is None:
        notes.append("no mu-map was given: not corrected for attenuation or scatter")
    else:
        check_mu(mu)
        resampled = resample_to(mu, grid)
        if _reaches_beyond(mu, grid):  # lines of response cross what the image does not show
            notes.append(
                "the mu-map reaches beyond the image and is used whole, on its own grid"
            )
        else:
            notes += _mu_notes(mu, grid)
            mu = resampled
    poses = Poses.still(windows) if poses is None else poses.within(windows)
    randoms, scatter, more = _additive(
        listmode, poses, mu, grid, settings, threads=threads, progress=progress
    )
    notes += more
    if sensitivity is None:
        sensitivity = average_sensitivity(
            listmode.scanner,
            grid,
            poses,
            half_life_s=listmode.protocol.half_life_s,
            mu=mu,
            crystal_efficiency=listmode.crystal_efficiency,
            n_pairs=settings.osem.n_sensitivity_pairs,
            threads=threads,
            cache_dir=cache_dir,
            progress=progress,
        )
    with prepare(
        listmode,
        windows,
        grid=grid,
        mu=mu,
        settings=settings.osem,
        additive=_by_pose(randoms, scatter, poses, listmode.protocol.half_life_s),
        sensitivity=sensitivity,
        poses=poses,
        threads=threads,
        resume_dir=resume_dir,
        progress=progress,
    ) as problem:
        volume = run(problem, settings.penalty or osem)
        replicates = _replicates(problem, settings)
    about = {**volume.provenance, "notes": notes, "settings": settings.to_dict()}
    if listmode.protocol.suv_per_bq_ml is not None:
        about["suv_per_bq_ml"] = listmode.protocol.suv_per_bq_ml
        about["suv_per_bq_ml_by"] = suv_factors(listmode.protocol)
    return Reconstruction(
        volume=replace(volume, provenance=about),
        windows=windows,
        n_prompts=listmode.count(windows),
        n_randoms=None if randoms is None else sum(float(m.total) for m in randoms),
        n_scatter=None if scatter is None else sum(float(m.total) for m in scatter),
        sensitivity=sensitivity,
        notes=tuple(notes),
        replicates=replicates,
    )


def _replicates(problem: Problem, settings: Settings) -> Replicates | None:
    wanted = settings.bootstrap
    if not wanted.n_replicates:
        return None
    return bootstrap(problem, wanted.n_replicates, wanted.seed)


def _additive(
    listmode: Listmode,
    poses: Poses,
    mu: Volume | None,
    grid: Grid,
    settings: Settings,
    *,
    threads: int,
    progress: Progress,
) -> tuple[list[RandomsModel] | None, list[ScatterModel] | None, list[str]]:
    """Estimate randoms and scatter for groups of like poses; say what was left out."""
    wanted = settings.corrections
    groups = poses.merged(ADDITIVE_MM)
    randoms: list[RandomsModel] | None = None
    scatter: list[ScatterModel] | None = None
    notes = []
    if wanted.randoms and listmode.n_events("delayeds"):
        randoms = estimate_randoms_by_pose(listmode, groups)
    elif wanted.randoms:
        notes.append("the file has no delayed events: not corrected for randoms")
    if wanted.scatter and mu is not None:
        scatter = estimate_scatter_by_pose(
            listmode,
            groups,
            mu=mu,
            grid=grid,
            randoms=randoms,
            n_rounds=wanted.scatter_rounds,
            settings=settings.scatter,
            threads=threads,
            progress=progress,
        )
    return randoms, scatter, notes


def _by_pose(
    randoms: Sequence[RandomsModel] | None,
    scatter: Sequence[ScatterModel] | None,
    poses: Poses,
    half_life_s: float,
) -> list[ByPose]:
    """Give each pose its share of its group's: randoms go with the activity squared."""
    groups = poses.merged(ADDITIVE_MM)
    return [
        share_out(models, groups, poses, half_life)
        for models, half_life in ((randoms, half_life_s / 2), (scatter, half_life_s))
        if models is not None
    ]


def reconstruct_windows(
    listmode: Listmode,
    windows: Windows,
    *,
    mu: Volume | None = None,
    settings: Settings | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> Volume:
    """Reconstruct a union of windows to Bq/mL at tick zero; see :func:`reconstruct_scan`."""
    return reconstruct_scan(
        listmode, windows, mu=mu, settings=settings, threads=threads, progress=progress
    ).volume


def _reaches_beyond(mu: Volume, grid: Grid) -> bool:
    """Say whether a map holds matter more than a voxel outside of the image."""
    inside = []
    for axis in range(3):
        at = (mu.grid.axis_mm(axis) - grid.origin_mm[axis]) / grid.voxel_mm[axis]
        inside.append((at >= -1.5) & (at <= grid.shape[axis] + 0.5))
    return bool(mu.values.any() and mu.values[np.ix_(*inside)].sum() < mu.values.sum() * 0.999)


def _mu_notes(mu: Volume, grid: Grid) -> list[str]:
    # NIfTI holds single-precision affines: a grid comes back equal to 1e-6 or so
    if mu.grid.shape == grid.shape and np.allclose(
        mu.grid.scanner_from_voxel, grid.scanner_from_voxel, rtol=0.0, atol=1e-3
    ):
        return []
    return [
        f"the mu-map was brought from {mu.grid.shape} voxels of "
        f"{', '.join(f'{v:g}' for v in mu.grid.voxel_mm)} mm onto the image grid"
    ]
