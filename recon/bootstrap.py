"""How uncertain an image is: reconstructions of resampled events, all in one pass."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import pdtr, stdtrit

from listmode.errors import InputError
from recon import _kernels_bootstrap as _kernels
from recon.image import Grid, Volume
from recon.osem import Problem, n_in_subset, progress_of
from recon.projector import sum_images
from recon.psf import blur

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

LANES = _kernels.LANES
LEVEL = 0.95
MAX_REPLICATES = 1024
MEMORY_BYTES = 100 << 20  # images larger than this, all replicates together, wait in a file


@dataclass(eq=False)
class Replicates:
    """Images of resampled events.

    Parameters
    ----------
    images
        Bq/mL at tick zero, filtered like the image. Shape (n_replicates, *grid.shape), float32.
    grid
        Where the voxels are.
    seed
        Of the draws.
    """

    images: F32
    grid: Grid
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def standard_deviation(self) -> Volume:
        """Give the standard deviation of each voxel over the replicates, Bq/mL."""
        mean = np.zeros(self.grid.shape)
        square = np.zeros(self.grid.shape)
        for n, image in enumerate(self.images, start=1):  # Welford 1962, one image at a time
            change = image - mean
            mean += change / n
            square += change * (image - mean)
        values = np.sqrt(square / (len(self) - 1)).astype(np.float32)
        about = {"bootstrap": {"n_replicates": len(self), "seed": self.seed}}
        return Volume(values, self.grid, "Bq/mL", about)

    def maxima(self, regions: I32) -> F64:
        """Give each replicate's maximum in each region.

        Parameters
        ----------
        regions
            Region number of each voxel, 0 for none. Shape ``grid.shape``.

        Returns
        -------
        ndarray
            Shape (n_replicates, n_regions), float64, Bq/mL.

        Raises
        ------
        InputError
            If the regions lie on another grid.
        """
        if regions.shape != self.grid.shape:
            raise InputError(
                f"regions must have the shape of the replicates {self.grid.shape}, but they "
                f"have {regions.shape}; segment the image that was resampled"
            )
        numbers = np.arange(1, int(regions.max(initial=0)) + 1)
        found = [ndimage.maximum(image, regions, numbers) for image in self.images]
        return np.array(found, dtype=np.float64).reshape(len(self), numbers.size)


@dataclass(frozen=True, eq=False)
class MaxInterval:
    """Uncertainty of the maximum of each region; arrays of shape (n_regions,), float64."""

    se: F64
    low: F64
    high: F64


def max_interval(observed: F64, maxima: F64, level: float = LEVEL) -> MaxInterval:
    """Give the interval of what the maximum would be on average over scans like this one.

    Parameters
    ----------
    observed
        Maximum of each region in the image itself. Shape (n_regions,).
    maxima
        From :meth:`Replicates.maxima`. Shape (n_replicates, n_regions).
    level
        Coverage wanted.

    Returns
    -------
    MaxInterval
        Normal interval about the observed maximum: ``observed ± t * SD(maxima)`` with Student's
        t of ``n_replicates - 1``. It does not reach below 0.

    Raises
    ------
    InputError
        If there are fewer than two replicates, or the level is no share.

    Notes
    -----
    A maximum is a biased statistic: it picks the highest noise. Replicates carry the noise of
    the image and their own once more (Markiewicz, Reader, Matthews, Phys Med Biol
    2015;60:279-299, doi 10.1088/0031-9155/60/1/279): their maxima lie above the observed, and
    percentiles of them (Efron, Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13, doi
    10.1201/9780429246593) miss the mean maximum on the high side; reflected about the observed
    maximum (basic interval, Davison, Hinkley 1997, ch. 5, doi 10.1017/CBO9780511802843) they
    take that bias off a maximum whose mean has it. Only the spread is used here. Coverage of
    all of these: ``python -m benchmarks.bootstrap_study``.
    """
    if len(maxima) < 2 or not 0.0 < level < 1.0:
        raise InputError(
            "an interval needs at least two replicates and a level between 0 and 1, but there "
            f"are {len(maxima)} and the level is {level:g}; 0.95 is usual"
        )
    se = maxima.std(axis=0, ddof=1)
    reach = stdtrit(len(maxima) - 1, 0.5 + level / 2.0) * se
    return MaxInterval(se, np.maximum(observed - reach, 0.0), observed + reach)


def poisson_limits() -> NDArray[np.uint64]:
    """Give the cumulative probabilities of Poisson's law of mean 1 in units of 2**-32."""
    return np.round(pdtr(np.arange(12), 1.0) * 2.0**32).astype(np.uint64)


def count_lanes(n_replicates: int) -> int:
    """Give the number of replicates that are made: whole groups of eight.

    Raises
    ------
    InputError
        If there are too few or too many.
    """
    if not 2 <= n_replicates <= MAX_REPLICATES:
        raise InputError(
            f"a bootstrap needs 2 to {MAX_REPLICATES} replicates, but {n_replicates} were "
            "asked for; 24 give a standard error to about 15 %"
        )
    return -(-n_replicates // LANES) * LANES


def bootstrap_bytes(grid: Grid, n_replicates: int) -> int:
    """Tell the memory that a bootstrap takes beside the reconstruction: two images each."""
    return 8 * grid.n_voxels * count_lanes(n_replicates) + MEMORY_BYTES


def bootstrap(problem: Problem, n_replicates: int = 24, seed: int = 1) -> Replicates:
    """Reconstruct replicates in which each event counts 0, 1, 2, ... times: Poisson of mean 1.

    Parameters
    ----------
    problem
        From :func:`recon.reconstruct.prepare`; the same iterations, subsets, resolution and
        filter as for the image. Sensitivity and additive term are shared: their own
        uncertainty is not in the replicates.
    n_replicates
        Rounded up to a multiple of eight.
    seed
        Another seed gives other replicates.

    Returns
    -------
    Replicates
        The same bits at any number of threads. A draw depends on the seed, the replicate and
        the event's number in the order of the store, which follows from the events of the
        windows and the grid: a file cut to the windows gives the same bits.

    Raises
    ------
    InputError
        If there are too few or too many replicates.

    Notes
    -----
    Counts are Poisson, so their total is drawn too (Dahlbom, IEEE Trans Nucl Sci
    2002;49:2062-2066, doi 10.1109/TNS.2002.803688, draws listmode events with replacement;
    Poisson weights: Hanley, MacGibbon, Comput Methods Programs Biomed 2006;83:57-62, doi
    10.1016/j.cmpb.2006.04.006). Each ray is walked once for all replicates.
    """
    n_lanes = count_lanes(n_replicates)
    problem = problem.named(f"bootstrap {n_lanes} {seed}")
    settings, grid = problem.settings, problem.grid
    n_subsets = settings.n_subsets
    per_subset = problem.expected_per_unit() / np.float32(n_subsets)
    images = _room((n_lanes, *grid.shape))
    step = 0
    if (state := problem.state()) is not None:
        images[:], step = state.arrays["images"], state.step
        del state
    else:
        images[:] = problem.first_image(per_subset)
    inverse = np.divide(1, per_subset, out=per_subset, where=per_subset > 0)
    lanes = _Lanes(problem, n_lanes, seed)
    while step < settings.n_iterations * n_subsets:
        with progress_of(problem, step, f"{n_lanes} replicates, iteration") as stage:
            for subset in range(step % n_subsets, n_subsets):
                lanes.update(images, subset, inverse)
                step += 1
                problem.keep(step, 0, images=images)
                stage.advance(n_in_subset(problem.store, subset))
    del lanes
    for image in images:
        image[:] = blur(image, grid, settings.post_filter_fwhm_mm, problem.threads)
    return Replicates(images, grid, seed)


class _Lanes:
    """Padded images and corrections of all replicates, eight side by side."""

    def __init__(self, problem: Problem, n_lanes: int, seed: int) -> None:
        plan = problem.store.plan
        self.problem = problem
        shape = (n_lanes // LANES, plan.rays.zeros().size, LANES)
        self.images = np.zeros(shape, np.float32)
        self.corrections = [np.zeros(shape, np.float32) for _ in range(plan.n_images)]
        self.key = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        self.limits = poisson_limits()

    def update(self, images: F32, subset: int, inverse: F32) -> None:
        """Update all replicates by one subset."""
        store, rays = self.problem.store, self.problem.store.plan.rays
        for k, image in enumerate(images):
            group, lane = divmod(k, LANES)
            rays.fill(self.images[group], lane, self.problem.blur(image), self.problem.threads)
        for correction in self.corrections:
            correction[:] = 0

        def work(start: int, stop: int, k: int) -> None:
            _kernels.update_replicates(
                self.images, self.corrections[k], rays.shape, rays.ends, rays.voxel_mm,
                store.crystal_a, store.crystal_b, store.tof_bin, store.additive,
                rays.tof_centre_mm, rays.table, rays.per_mm, rays.reach_mm, self.key,
                self.limits, start, stop,
            )  # fmt: skip

        store.plan.run(work, store.task_ranges(subset), self.problem.threads)
        total: Any = sum_images(self.corrections)
        for k, image in enumerate(images):
            group, lane = divmod(k, LANES)
            ratio = rays.take(total[group], lane, self.problem.threads)
            image *= self.problem.blur(ratio)
            image *= inverse


def _room(shape: tuple[int, ...]) -> F32:
    """Make room for images, in memory or in a file that is gone with its last user."""
    if 4 * math.prod(shape) <= MEMORY_BYTES:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(prefix="stillpet-") as file:  # the mapping outlives its name
        return np.memmap(file, np.float32, "w+", shape=shape).view(np.ndarray)
