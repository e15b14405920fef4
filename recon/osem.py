"""Listmode ordered-subsets expectation maximisation: the update formula and its run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.progress import SILENT, Progress, Stage
from recon import _kernels
from recon.checkpoint import Checkpoint, State, digest
from recon.events_store import EventsStore
from recon.image import Grid, Volume
from recon.projector import sum_images
from recon.psf import blur

F32 = NDArray[np.float32]

LEAST_SENSITIVITY = 1e-3  # of the largest; voxels below stay 0


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
        ``D``, s; see :func:`recon.reconstruct.calibration_s`.
    settings
        Iterations, subsets, resolution.
    start
        Image to start from; even if ``None``. Shape ``grid.shape``.
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
        """Give the image to start from: zero where nothing is seen, and stays so.

        Evenly filled, it explains as many counts as there are. A start far below the activity
        would spend its first updates on growing out of the additive term, which explains the
        events at first: from 1 Bq/mL in a phantom of 5 kBq/mL a whole iteration.
        """
        start: np.float32 | F32 | None = self.start
        if start is None:
            counts = self.calibration * float(self.sensitivity.sum(dtype=np.float64))
            n_inside = self.store.n_events - self.store.n_outside
            start = np.float32(n_inside / counts) if n_inside and counts > 0 else np.float32(1)
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
        From :func:`recon.reconstruct.prepare`.
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
    padded = rays.pad(image, threads)
    images = [rays.zeros() for _ in range(plan.n_images)]

    def work(start: int, stop: int, k: int) -> int:
        n: int = _kernels.update(
            padded, images[k], rays.shape, rays.ends, rays.voxel_mm, store.crystal_a,
            store.crystal_b, store.tof_bin, store.additive, rays.tof_centre_mm, rays.table,
            rays.per_mm, rays.reach_mm, start, stop,
        )  # fmt: skip
        return n

    counts = plan.run(work, store.task_ranges(subset), threads)
    return rays.crop(sum_images(images), threads), sum(n for n in counts if n)
