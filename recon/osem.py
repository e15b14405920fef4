"""Listmode ordered-subsets expectation maximisation: the update formula and its run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.source import Listmode, ScanProtocol
from listmode.windows import Windows
from recon import _kernels
from recon.corrections.additive import AdditiveModel
from recon.corrections.attenuation import mu_rays
from recon.corrections.normalisation import pair_efficiency
from recon.events_store import BYTES_PER_EVENT, MEMORY_BYTES, EventsStore, store_events
from recon.image import Grid, Volume
from recon.projector import RayModel, TaskPlan, project, sum_images
from recon.psf import blur
from recon.sensitivity import MU_MM, Sensitivity, coarsen, compute_sensitivity

F32 = NDArray[np.float32]

LEAST_SENSITIVITY = 1e-3  # of the largest; voxels below stay 0
N_IMAGES = 6  # padded image and correction, image, sensitivity, blurred image, one to spare
EVENTS_PER_S_AND_THREAD = 2.5e6  # of an update at 3.3 mm on the cores it was written on


@dataclass(frozen=True)
class OsemSettings:
    """How to reconstruct.

    Parameters
    ----------
    n_iterations, n_subsets
        Passes over the events, and updates in each. One subset is MLEM.
    psf_fwhm_mm
        Resolution modelled in image space, FWHM; 0 for none.
    post_filter_fwhm_mm
        Gaussian filter after the last iteration, FWHM; 0 for none.
    n_sigma
        Where the timing Gaussian is cut off.
    use_tof
        Weigh by TOF bin.
    n_sensitivity_pairs
        Crystal pairs sampled for the sensitivity image.
    """

    n_iterations: int = 4
    n_subsets: int = 5
    psf_fwhm_mm: float = 4.0
    post_filter_fwhm_mm: float = 0.0
    n_sigma: float = 3.0
    use_tof: bool = True
    n_sensitivity_pairs: int = 48_000_000

    def __post_init__(self) -> None:
        if self.n_iterations < 1 or self.n_subsets < 1:
            raise InputError(
                "a reconstruction needs at least one iteration and one subset, but it has "
                f"{self.n_iterations} and {self.n_subsets}; correct the settings"
            )
        if not (self.psf_fwhm_mm >= 0 and self.post_filter_fwhm_mm >= 0):
            raise InputError(
                "resolution and filter must be zero or more, but they are "
                f"{self.psf_fwhm_mm:g} and {self.post_filter_fwhm_mm:g} mm; correct them"
            )
        if not 1.0 <= self.n_sigma <= 8.0:
            raise InputError(
                "the timing Gaussian must be cut off between 1 and 8 sigma, but n_sigma is "
                f"{self.n_sigma:g}; 3 is usual"
            )


@dataclass(frozen=True)
class Cost:
    """What a reconstruction will take, told before it runs."""

    memory_bytes: int
    scratch_bytes: int
    seconds: float


def estimate_cost(n_events: int, grid: Grid, settings: OsemSettings, threads: int = 2) -> Cost:
    """Estimate memory, scratch space on disk and time of a reconstruction.

    Parameters
    ----------
    n_events
        Prompts in the windows.

    Returns
    -------
    Cost
        Bytes and seconds; without the sensitivity image, which is kept between runs.
    """
    columns = n_events * BYTES_PER_EVENT
    spilled = columns > MEMORY_BYTES
    image_bytes = 4 * grid.n_voxels
    rate = EVENTS_PER_S_AND_THREAD * max(threads, 1) * min(1.0, grid.voxel_mm[0] / 3.3)
    n_updates = settings.n_iterations * settings.n_subsets
    per_update_s = 8e-8 * grid.n_voxels / max(threads, 1)
    seconds = n_events * (settings.n_iterations / rate + 1.5e-7) + n_updates * per_update_s
    memory = N_IMAGES * image_bytes + (0 if spilled else columns) + (400 << 20)
    return Cost(memory, columns if spilled else 0, seconds)


def calibration_s(protocol: ScanProtocol, windows: Windows) -> float:
    """Give ``D``: counts per (count/s per Bq/mL at tick zero), s.

    Branching times count fraction times the decay factor integrated over the windows.
    """
    duration_s = windows.decayed_duration_s(protocol.half_life_s)
    return protocol.branching * protocol.count_fraction * duration_s


class AdditiveTerm:
    """Turns expected counts of additive models into ``c_e = (r + s) / (D n a)``.

    Parameters
    ----------
    listmode
        Scanner and crystal efficiencies.
    models
        Randoms, scatter.
    mu
        Attenuation map.
    calibration
        ``D``, s.
    """

    def __init__(
        self,
        listmode: Listmode,
        models: Sequence[AdditiveModel],
        mu: Volume | None,
        calibration: float,
        threads: int,
    ) -> None:
        self.scanner = listmode.scanner
        self.crystal_efficiency = listmode.crystal_efficiency
        self.models = models
        self.calibration = np.float32(calibration)
        self.threads = threads
        self.matter = None if mu is None else mu_rays(coarsen(mu, MU_MM), self.scanner)

    def __call__(self, batch: EventBatch) -> F32:
        """Give ``c_e``. Shape (n_events,), float32, Bq/mL mm."""
        counts = np.zeros(len(batch), np.float32)
        for model in self.models:
            counts += model.expected(batch)
        factor = self.calibration * pair_efficiency(
            self.scanner, batch.crystal_a, batch.crystal_b, self.crystal_efficiency
        )
        if self.matter is not None:
            rays, padded = self.matter
            no_bin = np.zeros(len(batch), np.int16)
            factor *= np.exp(
                -project(rays, padded, batch.crystal_a, batch.crystal_b, no_bin, self.threads)
            )
        # A pair that cannot count anything explains its event by the additive term alone.
        term = np.full_like(counts, 1e30)
        np.divide(counts, factor, out=term, where=factor > 0)
        return term


def osem(
    store: EventsStore,
    sensitivity: F32,
    grid: Grid,
    *,
    calibration: float,
    settings: OsemSettings,
    start: F32 | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> Iterator[Volume]:
    """Reconstruct; yield the image after each iteration.

    Parameters
    ----------
    store
        Events in ``settings.n_subsets`` subsets, with their additive term.
    sensitivity
        Counts per second per Bq/mL of each voxel. Shape ``grid.shape``, float32.
    calibration
        ``D``, s; see :func:`calibration_s`.
    start
        Image to start from; ones if ``None``. Shape ``grid.shape``.

    Yields
    ------
    Volume
        Bq/mL at tick zero; its provenance counts the events that neither the image nor the
        additive term could explain.

    Notes
    -----
    ``x <- x / (D s) * sum_e A_e / (A_e x + c_e)`` with each subset's share of ``s`` (Barrett,
    White, Parra, J Opt Soc Am A 1997;14:2914-2923, doi 10.1364/JOSAA.14.002914; Hudson,
    Larkin, IEEE Trans Med Imaging 1994;13:601-609, doi 10.1109/42.363108). Resolution is a
    Gaussian ``H``: ``A`` stands for ``A H`` and ``s`` for ``H' s``.
    """
    per_subset = blur(sensitivity, grid, settings.psf_fwhm_mm, threads)
    per_subset = per_subset * np.float32(calibration / settings.n_subsets)
    is_seen = per_subset > LEAST_SENSITIVITY * per_subset.max()
    inverse = np.divide(1, per_subset, out=np.zeros_like(per_subset), where=is_seen)
    image = np.where(is_seen, np.float32(1) if start is None else start, np.float32(0))
    del per_subset, is_seen
    for iteration in range(settings.n_iterations):
        n_unexplained = 0
        with progress.stage(f"iteration {iteration + 1}", store.n_events) as stage:
            for subset in range(settings.n_subsets):
                blurred = blur(image, grid, settings.psf_fwhm_mm, threads)
                ratio, n = correct(store, subset, blurred, threads)
                image = image * blur(ratio, grid, settings.psf_fwhm_mm, threads) * inverse
                n_unexplained += n
                ranges = store.task_ranges(subset)
                stage.advance(int((ranges[:, 1] - ranges[:, 0]).sum()))
        yield Volume(
            image,
            grid,
            "Bq/mL",
            {"iteration": iteration + 1, "n_events_unexplained": n_unexplained},
        )


def correct(store: EventsStore, subset: int, image: F32, threads: int) -> tuple[F32, int]:
    """Project one subset's ratios back; also count the events that nothing explains."""
    plan, rays = store.plan, store.plan.rays
    padded = rays.pad(image)
    images = [rays.zeros() for _ in range(plan.n_images)]

    def work(start: int, stop: int, k: int) -> int:
        n: int = _kernels.update(
            padded, images[k], rays.shape, rays.ends, rays.voxel_mm, store.crystal_a,
            store.crystal_b, store.tof_bin, store.additive, rays.tof_centre_mm, rays.table,
            rays.per_mm, rays.reach_mm, start, stop,
        )  # fmt: skip
        return n

    counts = plan.run(work, store.task_ranges(subset), threads)
    return rays.crop(sum_images(images)), sum(n for n in counts if n)


def reconstruct(
    listmode: Listmode,
    windows: Windows,
    *,
    grid: Grid,
    mu: Volume | None = None,
    settings: OsemSettings | None = None,
    additive: Sequence[AdditiveModel] = (),
    sensitivity: Sensitivity | None = None,
    start: F32 | None = None,
    threads: int = 2,
    cache_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Volume:
    """Reconstruct the events of a union of windows.

    Parameters
    ----------
    listmode
        The scan.
    windows
        Which time; every term of the model follows it.
    grid
        Grid of the image.
    mu
        Attenuation at 511 keV, 1/cm, on any grid; none for a scan in air.
    settings
        Iterations, resolution, filter; defaults if ``None``.
    additive
        Randoms and scatter estimated for these windows.
    sensitivity
        From :func:`recon.sensitivity.compute_sensitivity` with the same scanner, grid, mu-map
        and efficiencies; computed if ``None``.
    start
        Image to start from. Shape ``grid.shape``.
    cache_dir
        Folder that keeps sensitivity images.

    Returns
    -------
    Volume
        Bq/mL decay-corrected to tick zero, with its provenance. The same bits at any number of
        threads, and from a file cut to the windows.

    Raises
    ------
    InputError
        If a window is outside the scan or holds no events, or an argument is unusable.
    """
    settings = settings or OsemSettings()
    begun = time.perf_counter()
    if not listmode.count(windows):
        raise InputError(
            f"the windows must hold events, but there are none in {windows}; "
            "choose windows in which the scanner was counting"
        )
    if sensitivity is None:
        sensitivity = compute_sensitivity(
            listmode.scanner,
            grid,
            mu=mu,
            crystal_efficiency=listmode.crystal_efficiency,
            n_pairs=settings.n_sensitivity_pairs,
            threads=threads,
            cache_dir=cache_dir,
            progress=progress,
        )
    if sensitivity.grid != grid:
        raise InputError(
            f"the sensitivity must be on the image's grid {grid}, but it is on "
            f"{sensitivity.grid}; compute it for this grid"
        )
    if start is not None and (start.shape != grid.shape or not (start >= 0).all()):
        raise InputError(
            f"an image to start from must have the shape {grid.shape} and no negative value, "
            f"but its shape is {start.shape} and its least value {start.min():g}; use an "
            "image of this grid"
        )
    calibration = calibration_s(listmode.protocol, windows)
    rays = RayModel.make(grid, listmode.scanner, tof=settings.use_tof, n_sigma=settings.n_sigma)
    term = AdditiveTerm(listmode, additive, mu, calibration, threads) if additive else None
    sorting = time.perf_counter()
    with store_events(
        listmode, windows, TaskPlan(rays), n_subsets=settings.n_subsets, additive=term,
        threads=threads, progress=progress,
    ) as store:  # fmt: skip
        updating = time.perf_counter()
        for image in osem(
            store, sensitivity.values, grid, calibration=calibration, settings=settings,
            start=start, threads=threads, progress=progress,
        ):  # fmt: skip
            last = image
        n_events, n_outside = store.n_events, store.n_outside
    values = blur(
        np.asarray(last.values, np.float32), grid, settings.post_filter_fwhm_mm, threads
    )
    provenance: dict[str, Any] = {
        "software": f"stillpet {metadata.version('stillpet')}",
        "source": dict(listmode.provenance),
        "scanner": listmode.scanner.name,
        "scanner_mode": listmode.scanner.mode,
        "scanner_sha256": listmode.scanner.digest,
        "windows_ms": [list(window) for window in windows],
        "duration_s": windows.duration_s,
        "decay_corrected_to": "tick zero",
        "calibration_s": calibration,
        "n_events": n_events,
        "n_events_outside": n_outside,
        "n_events_unexplained": last.provenance["n_events_unexplained"],
        "osem": asdict(settings),
        "has_attenuation": mu is not None,
        "additive": [type(model).__name__ for model in additive],
        "sensitivity_sha256": sensitivity.key,
        "sensitivity_relative_error": sensitivity.relative_error,
        "seconds": {
            "sensitivity": round(sorting - begun, 2),
            "sorting": round(updating - sorting, 2),
            "updates": round(time.perf_counter() - updating, 2),
        },
    }
    return Volume(values, grid, "Bq/mL", provenance)
