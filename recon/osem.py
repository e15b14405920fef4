"""Listmode ordered-subsets expectation maximisation: the update formula and its run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.progress import SILENT, Progress, Stage
from listmode.scanner import Scanner
from listmode.source import Listmode, LiveFraction, ScanProtocol
from listmode.windows import Windows
from recon import _kernels
from recon.checkpoint import Checkpoint, State, digest
from recon.corrections.additive import AdditiveModel, ByPose
from recon.corrections.attenuation import mu_rays
from recon.corrections.normalisation import pair_efficiency
from recon.events_store import BYTES_PER_EVENT, MEMORY_BYTES, EventsStore, store_events
from recon.image import Grid, Volume
from recon.motion import Poses, move_rays, move_scanner
from recon.projector import RayModel, TaskPlan, project, sum_images
from recon.psf import blur
from recon.sensitivity import MU_MM, Sensitivity, average_sensitivity, coarsen

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
    stop_change
        Stop before ``n_iterations`` once an iteration changes the image by less than this:
        the norm of the difference over the norm of the image. 0 never stops early.
    """

    n_iterations: int = 4
    n_subsets: int = 5
    psf_fwhm_mm: float = 4.0
    post_filter_fwhm_mm: float = 0.0
    n_sigma: float = 3.0
    use_tof: bool = True
    n_sensitivity_pairs: int = 48_000_000
    stop_change: float = 0.0

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
        if not 0.0 <= self.stop_change < 1.0:
            raise InputError(
                "the change at which iterations stop must lie in [0, 1), but stop_change is "
                f"{self.stop_change:g}; 0.01 stops early, 0 never does"
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


@dataclass(frozen=True, eq=False)
class Problem:
    """Ordered events and all factors: what an algorithm iterates on.

    Parameters
    ----------
    store
        Events in ``settings.n_subsets`` subsets, with their additive term.
    sensitivity
        Counts per second per Bq/mL of each voxel. Shape ``grid.shape``, float32.
    grid
        Grid of the image.
    calibration
        ``D``, s; see :func:`calibration_s`.
    settings
        Iterations, subsets, resolution.
    start
        Image to start from; ones if ``None``. Shape ``grid.shape``.
    checkpoint
        Keeps the state on disk, if wanted.
    about
        Provenance of all of this, JSON values.
    """

    store: EventsStore
    sensitivity: F32
    grid: Grid
    calibration: float
    settings: OsemSettings
    start: F32 | None = None
    checkpoint: Checkpoint | None = None
    threads: int = 2
    progress: Progress = SILENT
    about: Mapping[str, Any] = field(default_factory=dict)

    def blur(self, image: F32) -> F32:
        """Apply the resolution model, its own transpose."""
        return blur(image, self.grid, self.settings.psf_fwhm_mm, self.threads)

    def expected_per_unit(self) -> F32:
        """Give ``D H' s``: counts per Bq/mL of each voxel, 0 where next to nothing is seen."""
        expected = self.blur(self.sensitivity) * np.float32(self.calibration)
        expected[expected <= LEAST_SENSITIVITY * expected.max()] = 0
        return expected

    def first_image(self, expected: F32) -> F32:
        """Give the image to start from: zero where nothing is seen, and stays so."""
        start = np.float32(1) if self.start is None else self.start
        return np.where(expected > 0, start, np.float32(0))

    def named(self, algorithm: str) -> Problem:
        """Give the same problem with states that belong to one algorithm alone."""
        about = {**self.about, "algorithm": algorithm}
        if self.checkpoint is None:
            return replace(self, about=about)
        key = digest([self.checkpoint.key, algorithm])
        return replace(self, about=about, checkpoint=Checkpoint(self.checkpoint.folder, key))

    def state(self) -> State | None:
        """Read what an earlier run of the same problem has left."""
        return None if self.checkpoint is None else self.checkpoint.load()

    def keep(self, step: int, n_unexplained: int, **arrays: F32 | None) -> None:
        """Put the state after ``step`` updates on disk, if that is wanted."""
        if self.checkpoint is not None:
            n_steps = self.settings.n_iterations * self.settings.n_subsets
            there = {name: a for name, a in arrays.items() if a is not None}
            state = State(step, {"n_unexplained": n_unexplained}, there)
            self.checkpoint.save(state, is_last=step == n_steps)

    def iterate(self, image: F32, step: int, n_unexplained: int) -> Volume:
        """Give the image after whole iterations, with what is known of it."""
        about = {
            "iteration": step // self.settings.n_subsets,
            "n_events_unexplained": n_unexplained,
        }
        return Volume(image, self.grid, "Bq/mL", about)

    def earlier(self, state: State) -> Iterator[Volume]:
        """Give again the iterations that a caller must have seen to decide whether to stop."""
        n, n_unexplained = self.settings.n_subsets, int(state.numbers["n_unexplained"])
        if "before" in state.arrays:
            yield self.iterate(state.arrays["before"], state.step - 1, n_unexplained)
        if state.step % n == 0:
            yield self.iterate(state.arrays["image"], state.step, n_unexplained)


def osem(problem: Problem) -> Iterator[Volume]:
    """Reconstruct; yield the image after each iteration.

    Parameters
    ----------
    problem
        Events and factors.

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
    store, settings = problem.store, problem.settings
    n_subsets = settings.n_subsets
    per_subset = problem.expected_per_unit() / np.float32(n_subsets)
    image, before, step, n_unexplained = problem.first_image(per_subset), None, 0, 0
    inverse = np.divide(1, per_subset, out=per_subset, where=per_subset > 0)
    if (state := problem.state()) is not None:
        yield from problem.earlier(state)
        step, n_unexplained = state.step, int(state.numbers["n_unexplained"])
        image, before = state.arrays["image"], state.arrays.get("before")
        before = image if settings.stop_change and step % n_subsets == 0 else before
    while step < settings.n_iterations * n_subsets:
        n_unexplained = n_unexplained if step % n_subsets else 0
        with progress_of(problem, step) as stage:
            for subset in range(step % n_subsets, n_subsets):
                ratio, n = correct(store, subset, problem.blur(image), problem.threads)
                image = image * problem.blur(ratio) * inverse
                n_unexplained += n
                step += 1
                problem.keep(step, n_unexplained, image=image, before=before)
                stage.advance(n_in_subset(store, subset))
        before = image if settings.stop_change else None
        yield problem.iterate(image, step, n_unexplained)


def progress_of(
    problem: Problem, step: int, name: str = "iteration"
) -> AbstractContextManager[Stage]:
    """Open the stage of the iteration that ``step`` belongs to, from there on."""
    iteration, subset = divmod(step, problem.settings.n_subsets)
    left = range(subset, problem.settings.n_subsets)
    n_events = sum(n_in_subset(problem.store, k) for k in left)
    return problem.progress.stage(f"{name} {iteration + 1}", n_events)


def n_in_subset(store: EventsStore, subset: int) -> int:
    """Count the stored events of one subset."""
    ranges = store.task_ranges(subset)
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def relative_change(image: NDArray[Any], before: NDArray[Any]) -> float:
    """Give ``|image - before| / |image|`` (Euclidean norms, summed in double precision)."""
    pairs = zip(image, before, strict=True)
    change = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in pairs)
    size = sum(float(np.square(a, dtype=np.float64).sum()) for a in image)
    return math.sqrt(change / size) if size else 0.0


Algorithm = Callable[[Problem], Iterator[Volume]]


def run(problem: Problem, algorithm: Algorithm = osem) -> Volume:
    """Iterate to the end, or until an iteration changes too little, and filter.

    Parameters
    ----------
    problem
        From :func:`prepare`.
    algorithm
        :func:`osem`, or a :class:`recon.penalty.RelativeDifference`.

    Returns
    -------
    Volume
        Bq/mL decay-corrected to tick zero, with the problem's provenance.
    """
    begun = time.perf_counter()
    problem = problem.named(getattr(algorithm, "__name__", str(algorithm)))
    settings = problem.settings
    before: Volume | None = None
    about: dict[str, Any] = {}
    for image in algorithm(problem):
        about = {**problem.about, **image.provenance}
        if settings.stop_change and before is not None:
            about["relative_change"] = relative_change(image.values, before.values)
            if about["relative_change"] < settings.stop_change:
                break
        before = image
    about["seconds"] = {
        **about.get("seconds", {}),
        "updates": round(time.perf_counter() - begun, 2),
    }
    values = np.asarray(image.values, np.float32)
    values = blur(values, problem.grid, settings.post_filter_fwhm_mm, problem.threads)
    return Volume(values, problem.grid, "Bq/mL", about)


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
