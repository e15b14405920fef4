"""Image and scatter in turn: the scatter estimate needs an image, and the image needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows
from recon.corrections.additive import AdditiveModel, ByPose, PartModel
from recon.corrections.scatter import ScatterModel, estimate_scatter
from recon.corrections.scatter_grid import DEFAULT, ScatterSettings
from recon.image import Grid, Volume
from recon.motion import Poses, join, move_volume
from recon.osem import OsemSettings
from recon.reconstruct import reconstruct
from recon.sensitivity import average_sensitivity

F32 = NDArray[np.float32]

COARSE_MM = 12.0  # voxels of the images between rounds: scatter is far smoother
COARSE_OSEM = OsemSettings(
    n_iterations=3, n_subsets=6, psf_fwhm_mm=0.0, n_sensitivity_pairs=2_000_000
)
MAX_EVENTS = 2_000_000  # a few hundred in a coarse voxel of a body
N_PIECES = 400  # of time, over which a subset of a long scan is spread
MIN_PIECE_MS = 20


def estimate_scatter_iteratively(
    listmode: Listmode,
    windows: Windows,
    *,
    mu: Volume,
    grid: Grid,
    randoms: AdditiveModel | None,
    n_rounds: int = 2,
    settings: ScatterSettings = DEFAULT,
    max_events: int = MAX_EVENTS,
    threads: int = 2,
    progress: Progress = SILENT,
) -> ScatterModel:
    """Estimate the scatter in a union of windows from its events alone.

    Each round reconstructs a coarse image with the scatter known so far and estimates scatter
    from it. The first scatter is that of a body filled evenly, scaled to the tails: without it
    the first image lies 40 % high in the middle of a body, and two rounds swing about the
    truth. A long scan gives these images a part of its events, short pieces
    spread evenly over the windows; scatter is scaled to all of them.

    Parameters
    ----------
    listmode, windows
        The scan and the time to use.
    mu
        Attenuation at 511 keV, 1/cm, on any grid.
    grid
        Grid of the image to come; the coarse images cover it.
    randoms
        Expected randoms in the windows; ``None`` if the scan has none.
    n_rounds
        How often image and scatter are made in turn.
    settings
        See :class:`ScatterSettings`; all estimates but the last are coarser.
    max_events
        About how many events a coarse image takes.
    threads
        Python threads; the bits do not depend on it.
    progress
        Told each stage.

    Raises
    ------
    InputError
        If there is less than one round, or as for :func:`estimate_scatter` and
        :func:`recon.reconstruct.reconstruct`.
    """
    return estimate_scatter_by_pose(
        listmode, Poses.still(windows), mu=mu, grid=grid,
        randoms=None if randoms is None else [randoms], n_rounds=n_rounds,
        settings=settings, max_events=max_events, threads=threads, progress=progress,
    )[0]  # fmt: skip


def estimate_scatter_by_pose(
    listmode: Listmode,
    poses: Poses,
    *,
    mu: Volume,
    grid: Grid,
    randoms: Sequence[AdditiveModel] | None,
    n_rounds: int = 2,
    settings: ScatterSettings = DEFAULT,
    max_events: int = MAX_EVENTS,
    threads: int = 2,
    progress: Progress = SILENT,
) -> list[ScatterModel]:
    """Estimate the scatter in each pose of a patient who moved; see the function above.

    The coarse images are of all the time, motion-corrected; image and mu-map are then brought
    to where each pose took them, and simulated and scaled to its own windows.

    Parameters
    ----------
    poses
        Where the patient lay, and when: all of the time to use.
    mu, grid
        In the reference pose.
    randoms
        Expected randoms in the windows of each pose.

    Returns
    -------
    list of ScatterModel
        One a pose, of the counts in its windows.

    Raises
    ------
    InputError
        As for one pose.
    """
    if n_rounds < 1:
        raise InputError(
            f"scatter needs at least one round of image and scatter, but {n_rounds} were asked "
            "for; give 1 or more (2 is usual), or switch the scatter correction off"
        )
    coarse = coarse_grid(grid, COARSE_MM)
    n_all = sum(listmode.count(own) for own in poses.windows)
    own_events = [max_events * listmode.count(own) / max(n_all, 1) for own in poses.windows]
    part = replace(
        poses,
        windows=tuple(
            spread_part(listmode, own, n)
            for own, n in zip(poses.windows, own_events, strict=True)
        ),
    )
    share = [
        listmode.count(some) / max(listmode.count(own), 1)
        for some, own in zip(part.windows, poses.windows, strict=True)
    ]
    sensitivity = average_sensitivity(
        listmode.scanner,
        coarse,
        part,
        half_life_s=listmode.protocol.half_life_s,
        mu=mu,
        crystal_efficiency=listmode.crystal_efficiency,
        n_pairs=COARSE_OSEM.n_sensitivity_pairs,
        threads=threads,
        progress=progress,
    )
    quick = replace(
        settings,
        n_points=max(1, settings.n_points // 4),
        n_pairs=max(1, settings.n_pairs // 4),
        max_tail_events=max(1, settings.max_tail_events // 4),
        axial_spacing_mm=1.5 * settings.axial_spacing_mm,
    )

    def estimate(image: Volume, settings: ScatterSettings) -> list[ScatterModel]:
        return [
            estimate_scatter(
                listmode,
                own,
                image=move_volume(image, pose),
                mu=move_volume(mu, pose),
                randoms=None if randoms is None else randoms[k],
                settings=settings,
                threads=threads,
                progress=progress,
            )
            for k, (own, pose) in enumerate(
                zip(poses.windows, poses.scanner_from_reference, strict=True)
            )
        ]

    def of_part(models: Sequence[AdditiveModel]) -> ByPose:
        return ByPose(tuple(PartModel(m, s) for m, s in zip(models, share, strict=True)))

    scatter: list[ScatterModel] = []
    if settings.scale_to_tails:
        scatter = estimate(even_body(mu, settings), replace(quick, segment_spread=0.3))
        if any(model.notes for model in scatter):  # without tails its size is unknown
            scatter = []
    for k in range(n_rounds):
        additive = [of_part(m) for m in (randoms, scatter) if m]
        image = reconstruct(
            listmode,
            join(part.windows),
            grid=coarse,
            mu=mu,
            settings=COARSE_OSEM,
            additive=additive,
            sensitivity=sensitivity,
            poses=part,
            threads=threads,
            progress=progress,
        )
        scatter = estimate(image, settings if k == n_rounds - 1 else quick)
    return scatter


def even_body(mu: Volume, settings: ScatterSettings) -> Volume:
    """Fill what is at least as dense as a body with 1 kBq/mL."""
    values = np.where(mu.values >= settings.body_mu_per_cm, 1000.0, 0.0)
    return Volume(values.astype(np.float32), mu.grid, "Bq/mL")


def coarse_grid(grid: Grid, voxel_mm: float) -> Grid:
    """Cover a grid by voxels of at least ``voxel_mm``, about the same middle."""
    size = [max(voxel_mm, own) for own in grid.voxel_mm]
    shape = [
        math.ceil(n * own / new - 1e-6)
        for n, own, new in zip(grid.shape, grid.voxel_mm, size, strict=True)
    ]
    origin = [
        grid.origin_mm[i]
        + ((grid.shape[i] - 1) * grid.voxel_mm[i] - (shape[i] - 1) * size[i]) / 2
        for i in range(3)
    ]
    return Grid(
        (shape[0], shape[1], shape[2]),
        (size[0], size[1], size[2]),
        (origin[0], origin[1], origin[2]),
    )


def spread_part(listmode: Listmode, windows: Windows, max_events: float) -> Windows:
    """Choose short pieces, spread evenly over the windows, that hold about ``max_events``."""
    n_events = listmode.count(windows)
    if n_events <= max_events:
        return windows
    total_ms = int((windows.stop_ms - windows.start_ms).sum())
    pieces = windows.cut(max(MIN_PIECE_MS, total_ms // N_PIECES))
    turn = np.floor(np.arange(len(pieces) + 1) * (max_events / n_events))
    keep = np.diff(turn) > 0
    if not keep.any():
        return windows
    return Windows(pieces.start_ms[keep], pieces.stop_ms[keep]).merged()
