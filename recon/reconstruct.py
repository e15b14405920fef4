"""From the events of chosen windows to an image: factors, ordered events, updates."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode, LiveFraction, ScanProtocol
from listmode.windows import Windows
from recon.checkpoint import Checkpoint, digest
from recon.corrections.additive import AdditiveModel, ByPose, expected_ratio
from recon.corrections.attenuation import mu_rays
from recon.corrections.normalisation import pair_efficiency
from recon.events_store import EventsStore, store_events
from recon.image import Grid, Volume
from recon.motion import Poses, move_rays, move_scanner
from recon.osem import Algorithm, OsemSettings, Problem, osem, run
from recon.projector import RayModel, TaskPlan, project, run_in_parts
from recon.sensitivity import MU_MM, Sensitivity, average_sensitivity, coarsen

F32 = NDArray[np.float32]


def calibration_s(
    protocol: ScanProtocol, windows: Windows, live: LiveFraction | None = None
) -> float:
    """Give ``D``: counts per (count/s per Bq/mL at tick zero), s.

    Branching times count fraction times the decay factor, times the live share of the time
    where it is known, integrated over the windows.
    """
    if live is None:
        duration_s = windows.decayed_duration_s(protocol.half_life_s)
    else:
        duration_s = live.decayed_live_s(windows, protocol.half_life_s)
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
    seen
        The detector as the patient sees it, for the rays through the map; where it stands if
        ``None``.
    """

    def __init__(
        self,
        listmode: Listmode,
        models: Sequence[AdditiveModel],
        mu: Volume | None,
        calibration: float,
        threads: int,
        seen: Scanner | None = None,
    ) -> None:
        self.scanner = listmode.scanner
        self.crystal_efficiency = listmode.crystal_efficiency
        self.models = models
        self.calibration = np.float32(calibration)
        self.threads = threads
        seen = seen or self.scanner
        self.matter = None if mu is None else mu_rays(coarsen(mu, MU_MM), seen)

    def __call__(self, batch: EventBatch) -> F32:
        """Give ``c_e``. Shape (n_events,), float32, Bq/mL mm."""
        term = np.empty(len(batch), np.float32)

        def work(events: slice) -> None:
            term[events] = self._of_part(
                EventBatch(
                    batch.crystal_a[events], batch.crystal_b[events], batch.tof_bin[events]
                )
            )

        run_in_parts(work, len(batch), self.threads)
        return term

    def _of_part(self, batch: EventBatch) -> F32:
        efficiency = pair_efficiency(
            self.scanner, batch.crystal_a, batch.crystal_b, self.crystal_efficiency
        )
        ratio = np.zeros(len(batch), np.float32)
        for model in self.models:
            ratio += expected_ratio(model, batch, efficiency)
        factor = np.full(len(batch), self.calibration)
        if self.matter is not None:
            rays, padded = self.matter
            no_bin = np.zeros(len(batch), np.int16)
            factor *= np.exp(
                -project(rays, padded, batch.crystal_a, batch.crystal_b, no_bin, 1)
            )
        # A pair that cannot count anything explains its event by the additive term alone.
        term = np.full_like(ratio, 1e30)
        np.divide(ratio, factor, out=term, where=(factor > 0) & (efficiency > 0))
        return term


@contextmanager
def prepare(
    listmode: Listmode,
    windows: Windows,
    *,
    grid: Grid,
    mu: Volume | None = None,
    settings: OsemSettings | None = None,
    additive: Sequence[AdditiveModel | ByPose] = (),
    sensitivity: Sensitivity | None = None,
    poses: Poses | None = None,
    start: F32 | None = None,
    threads: int = 2,
    cache_dir: Path | None = None,
    resume_dir: Path | None = None,
    store: EventsStore | None = None,
    progress: Progress = SILENT,
) -> Iterator[Problem]:
    """Compute all factors and order the events; the events are given back at the end.

    Parameters and errors as for :func:`reconstruct`; a ``store`` that the caller has ordered is
    taken as it is, and left to the caller.
    """
    settings = settings or OsemSettings()
    begun = time.perf_counter()
    if not listmode.count(windows):
        raise InputError(
            f"the windows must hold events, but there are none in {windows}; "
            "choose windows in which the scanner was counting"
        )
    poses = Poses.still(windows) if poses is None else poses.within(windows)
    if sensitivity is None:
        sensitivity = average_sensitivity(
            listmode.scanner,
            grid,
            poses,
            half_life_s=listmode.protocol.half_life_s,
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
    calibration = calibration_s(listmode.protocol, windows, listmode.live)
    rays = RayModel.make(grid, listmode.scanner, tof=settings.use_tof, n_sigma=settings.n_sigma)
    rays = move_rays(rays, grid, listmode.scanner, poses)
    sorting = time.perf_counter()
    with ExitStack() as stack:
        if store is None:
            terms = additive_terms(listmode, additive, mu, poses, threads) if additive else None
            store = stack.enter_context(
                store_events(
                    listmode, windows, TaskPlan(rays), n_subsets=settings.n_subsets,
                    additive=terms, timeline=poses.timeline(), threads=threads,
                    progress=progress,
                )
            )  # fmt: skip
        about: dict[str, Any] = {
            "software": f"stillpet {metadata.version('stillpet')}",
            "source": dict(listmode.provenance),
            "scanner": listmode.scanner.name,
            "scanner_mode": listmode.scanner.mode,
            "scanner_sha256": listmode.scanner.digest,
            "windows_ms": [list(window) for window in windows],
            "duration_s": windows.duration_s,
            "decay_corrected_to": "tick zero",
            "calibration_s": calibration,
            "n_events": store.n_events,
            "n_events_outside": store.n_outside,
            "osem": asdict(settings),
            "has_attenuation": mu is not None,
            "motion": poses.to_dict() if poses.is_moving else None,
            "additive": [type(model).__name__ for model in additive],
            "sensitivity_sha256": sensitivity.key,
            "sensitivity_relative_error": sensitivity.relative_error,
            "seconds": {
                "sensitivity": round(sorting - begun, 2),
                "sorting": round(time.perf_counter() - sorting, 2),
            },
        }
        problem = Problem(
            store, sensitivity.values, grid, calibration, settings, start, None, threads,
            progress, about,
        )  # fmt: skip
        if resume_dir is not None:
            key = problem_digest(problem, listmode)
            problem = replace(problem, checkpoint=Checkpoint(resume_dir, key))
        yield problem


def additive_terms(
    listmode: Listmode,
    additive: Sequence[AdditiveModel | ByPose],
    mu: Volume | None,
    poses: Poses,
    threads: int,
) -> list[AdditiveTerm]:
    """Make the additive term of each pose: its own counts, time, and rays through the map.

    Raises
    ------
    InputError
        If a model does not say which counts belong to which of several poses.
    """
    for model in additive:
        n = len(model.models) if isinstance(model, ByPose) else 1
        if n != len(poses):
            raise InputError(
                f"an additive term must be known for each of the {len(poses)} poses, but "
                f"{type(model).__name__} has {n}; estimate it for the windows of each"
            )
    terms = []
    for k, (part, pose) in enumerate(
        zip(poses.windows, poses.reference_from_scanner, strict=True)
    ):
        models = [m.models[k] if isinstance(m, ByPose) else m for m in additive]
        calibration = calibration_s(listmode.protocol, part, listmode.live)
        seen = move_scanner(listmode.scanner, pose)
        terms.append(AdditiveTerm(listmode, models, mu, calibration, threads, seen))
    return terms


def problem_digest(problem: Problem, listmode: Listmode) -> str:
    """Hash all that the updates depend on: file, settings, factors and the ordered events."""
    about = {k: v for k, v in problem.about.items() if k != "seconds"}
    rays = problem.store.plan.rays
    columns = (v for _, v in sorted(vars(problem.store).items()) if isinstance(v, np.ndarray))
    efficiency = listmode.crystal_efficiency
    return digest(
        [json.dumps(about, sort_keys=True), repr(problem.grid), problem.sensitivity,
         problem.start, rays.ends, rays.table, rays.tof_centre_mm, efficiency, *columns]
    )  # fmt: skip


def reconstruct(
    listmode: Listmode,
    windows: Windows,
    *,
    grid: Grid,
    mu: Volume | None = None,
    settings: OsemSettings | None = None,
    additive: Sequence[AdditiveModel | ByPose] = (),
    sensitivity: Sensitivity | None = None,
    poses: Poses | None = None,
    start: F32 | None = None,
    algorithm: Algorithm = osem,
    threads: int = 2,
    cache_dir: Path | None = None,
    resume_dir: Path | None = None,
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
        Randoms and scatter estimated for these windows; with several poses for those of each.
    sensitivity
        From :func:`recon.sensitivity.average_sensitivity` with the same scanner, grid, mu-map,
        efficiencies and poses; computed if ``None``.
    poses
        Where the patient lay in all of the windows; grid and mu-map are in the reference pose.
        The patient did not move if ``None``.
    start
        Image to start from. Shape ``grid.shape``.
    algorithm
        :func:`osem`, or a :class:`recon.penalty.RelativeDifference`.
    cache_dir
        Folder that keeps sensitivity images.
    resume_dir
        Folder that keeps the state after each subset: after a kill the same call goes on from
        there to the same bits. The caller removes it once the image is safe.

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
    with prepare(
        listmode, windows, grid=grid, mu=mu, settings=settings, additive=additive,
        sensitivity=sensitivity, poses=poses, start=start, threads=threads,
        cache_dir=cache_dir,
        resume_dir=resume_dir, progress=progress,
    ) as problem:  # fmt: skip
        return run(problem, algorithm)
