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
from recon.corrections.additive import AdditiveModel
from recon.corrections.randoms import estimate_randoms
from recon.image import Grid, Volume
from recon.io.nifti import check_mu, resample_to
from recon.osem import estimate_cost, reconstruct
from recon.scatter_loop import estimate_scatter_iteratively
from recon.sensitivity import Sensitivity, compute_sensitivity
from recon.settings import GridSettings, Settings

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


def to_suv(volume: Volume, protocol: ScanProtocol) -> Volume | None:
    """Turn Bq/mL at tick zero into body-weight SUV; ``None`` if dose or weight is unknown."""
    factor = protocol.suv_per_bq_ml
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
    listmode: Listmode, windows: Windows, settings: Settings, threads: int
) -> CostEstimate:
    """Estimate memory and time of the iterations; sensitivity and scatter come on top."""
    grid = choose_grid(listmode.scanner, settings.grid)
    n_events = listmode.count(windows)
    cost = estimate_cost(n_events, grid, settings.osem, threads)
    return CostEstimate(cost.memory_bytes, cost.seconds, n_events, grid.n_voxels)


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
    """

    volume: Volume
    windows: Windows
    n_prompts: int
    n_randoms: float | None
    n_scatter: float | None
    sensitivity: Sensitivity
    notes: tuple[str, ...]

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
    threads: int = 2,
    cache_dir: Path | None = None,
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
        Of the same scanner, grid and mu-map, from an earlier call.
    threads, cache_dir, progress
        As everywhere.

    Raises
    ------
    InputError
        If windows lie outside the scan or hold no events, or the mu-map cannot be used.
    """
    settings = settings or Settings()
    check_events(listmode, windows)
    grid = grid or choose_grid(listmode.scanner, settings.grid)
    notes: list[str] = []
    if mu is None:
        notes.append("no mu-map was given: not corrected for attenuation or scatter")
    else:
        check_mu(mu)
        notes += _mu_notes(mu, grid)
        mu = resample_to(mu, grid)
    randoms = scatter = None
    if settings.corrections.randoms and listmode.n_events("delayeds"):
        randoms = estimate_randoms(listmode, windows)
    elif settings.corrections.randoms:
        notes.append("the file has no delayed events: not corrected for randoms")
    if settings.corrections.scatter and mu is not None:
        scatter = estimate_scatter_iteratively(
            listmode,
            windows,
            mu=mu,
            grid=grid,
            randoms=randoms,
            n_rounds=settings.corrections.scatter_rounds,
            settings=settings.scatter,
            threads=threads,
            progress=progress,
        )
    if sensitivity is None:
        sensitivity = compute_sensitivity(
            listmode.scanner,
            grid,
            mu=mu,
            crystal_efficiency=listmode.crystal_efficiency,
            n_pairs=settings.osem.n_sensitivity_pairs,
            threads=threads,
            cache_dir=cache_dir,
            progress=progress,
        )
    additive: Sequence[AdditiveModel] = [m for m in (randoms, scatter) if m is not None]
    volume = reconstruct(
        listmode,
        windows,
        grid=grid,
        mu=mu,
        settings=settings.osem,
        additive=additive,
        sensitivity=sensitivity,
        threads=threads,
        progress=progress,
    )
    about = {**volume.provenance, "notes": notes, "settings": settings.to_dict()}
    if listmode.protocol.suv_per_bq_ml is not None:
        about["suv_per_bq_ml"] = listmode.protocol.suv_per_bq_ml
    return Reconstruction(
        volume=replace(volume, provenance=about),
        windows=windows,
        n_prompts=listmode.count(windows),
        n_randoms=None if randoms is None else float(randoms.total),
        n_scatter=None if scatter is None else float(scatter.total),
        sensitivity=sensitivity,
        notes=tuple(notes),
    )


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
