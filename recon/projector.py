"""Matched forward and back projection of events, with the TOF kernel that both share."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.scanner import Scanner, TofModel
from recon import _kernels
from recon._kernels_vectors import SLAB
from recon.image import Grid

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Real = NDArray[np.floating[Any]]
Work = Callable[[int, int, int], Any]

ENTRIES_PER_SIGMA = 512  # of the TOF table; its rounding error is 2e-4 of a weight, unbiased
FAR_MM = 1e9
EVENTS_PER_PART = 1 << 17  # of what costs less than a ray
EVENTS_PER_TASK = 1 << 16
PLANES_PER_PART = 8
# Events of one block and alike in direction touch the same cache lines: against blocks of 8 in
# order of the axis alone an update gained 10 % at 3.3 mm and 20 % at 1.65 mm, before slabs.
BLOCK_VOXELS = 16
N_SLOPES = 4
TASK_VOXELS = 16
N_PRIVATE_IMAGES = 4  # without TOF, however many threads there are


def tof_share(
    s_mm: NDArray[np.floating[Any]], width_mm: float, sigma_mm: float, n_sigma: float
) -> NDArray[np.float64]:
    """Give the share of the TOF kernel that falls into a bin.

    Parameters
    ----------
    s_mm
        Distance of the annihilation from the bin's centre along the LOR, mm.
    width_mm
        Width of the bin, mm; that of the whole coincidence window gives ``k_i``.
    sigma_mm, n_sigma
        Timing resolution along the LOR, and where its Gaussian is cut off and renormalised.

    Returns
    -------
    ndarray
        Shape of ``s_mm``, float64. Adjoining bins add up to 1 exactly.

    Notes
    -----
    A Gaussian cut at ``n_sigma`` and renormalised, integrated over the bin. The cut comes
    before the integral: so any run of bins telescopes, and the weight falls to zero without a
    step at ``n_sigma * sigma_mm + width_mm / 2``.
    """

    def cumulative(x: NDArray[np.float64]) -> NDArray[np.float64]:
        low = ndtr(-n_sigma)
        return np.clip((ndtr(x / sigma_mm) - low) / (1.0 - 2.0 * low), 0.0, 1.0)

    s = np.asarray(s_mm, dtype=np.float64)
    return cumulative(s + width_mm / 2) - cumulative(s - width_mm / 2)


@dataclass(frozen=True, eq=False)
class RayModel:
    """All that a ray kernel needs besides an image and events.

    Kernels read images in a padded form, slabs along z, ``[slab, x, y, z]`` laid flat: each one
    holds ``SLAB`` planes and the first of the next slab, so that a voxel and its neighbour
    along z are neighbours in memory. Voxels near each other in x and y are closer than in a
    cube, and a ray touches fewer lines and pages of memory (an update is 1.2 times as fast).

    Parameters
    ----------
    shape
        Voxels along x, y, z, without padding.
    voxel_mm
        Voxel size. Shape (3,).
    ends
        Crystal positions in voxel coordinates: scanner pose, patient motion and grid are one
        4×4 product. Shape (n_crystals, 3).
    tof_centre_mm
        Centre of each TOF bin from the LOR's middle towards crystal b. Shape (n_bins,).
    table, per_mm
        TOF weight by distance from that centre, and entries per mm.
    reach_mm
        Distance at which the weight has fallen to zero.
    """

    shape: tuple[int, int, int]
    voxel_mm: Real
    ends: Real
    tof_centre_mm: Real
    table: Real
    per_mm: float
    reach_mm: float

    @classmethod
    def make(
        cls,
        grid: Grid,
        scanner: Scanner,
        *,
        tof: bool = True,
        n_sigma: float = 3.0,
        dtype: type[np.floating[Any]] = np.float32,
        bins: TofModel | None = None,
    ) -> RayModel:
        """Set up the rays of a scanner through a grid.

        Parameters
        ----------
        tof
            Weigh by TOF bin. Without it a ray has one weight everywhere, except for the share
            of the timing kernel that the coincidence window cuts off.
        n_sigma
            Where the timing Gaussian is cut off.
        bins
            TOF model in place of the scanner's.
        """
        model = bins or scanner.tof
        n_bins = model.n_bins
        centre = model.bin_centre_mm()
        width = model.bin_width_mm
        if not tof:
            centre, width = np.zeros(n_bins), n_bins * width
        if math.isinf(model.fwhm_ps):
            table, per_mm, reach = np.ones(1), 0.0, FAR_MM
        else:
            n_per_bin = math.ceil(width / model.sigma_mm * ENTRIES_PER_SIGMA)
            per_mm = n_per_bin / width
            reach = n_sigma * model.sigma_mm + width / 2
            distance = np.arange(math.ceil(reach * per_mm) + 2) / per_mm
            table = tof_share(distance, width, model.sigma_mm, n_sigma)
        affine = grid.voxel_from_scanner
        ends = scanner.crystal_position_mm.astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]
        return cls(
            grid.shape,
            np.array(grid.voxel_mm, dtype),
            np.ascontiguousarray(ends, dtype),
            np.ascontiguousarray(centre, dtype),
            np.ascontiguousarray(table, dtype),
            dtype(per_mm),  # type: ignore[arg-type]
            dtype(reach),  # type: ignore[arg-type]
        )

    @property
    def _slabs(self) -> tuple[int, int, int, int]:
        """Shape of a padded image: slabs, x, y, and z within a slab."""
        nx, ny, nz = (n + 3 for n in self.shape)
        return -(-nz // SLAB), nx, ny, SLAB + 1

    def zeros(self) -> Real:
        """Return an empty padded image."""
        return np.zeros(math.prod(self._slabs), self.table.dtype)

    def pad(self, values: NDArray[np.generic], threads: int = 1) -> Real:
        """Copy an image into the flat padded form that the kernels read."""
        padded = self.zeros()
        self.fill(padded[:, None], 0, values, threads)
        return padded

    def fill(
        self, padded: Real, lane: int, values: NDArray[np.generic], threads: int = 1
    ) -> None:
        """Copy an image into one lane of padded images side by side, ``[place, lane]``."""
        slabs = padded[:, lane].reshape(self._slabs)
        values = np.ascontiguousarray(values, padded.dtype)

        def copy(x: int) -> None:
            _kernels.fill_slabs(values, slabs, x, min(x + PLANES_PER_PART, self.shape[0]))

        run_in_threads(copy, range(0, self.shape[0], PLANES_PER_PART), threads)

    def crop(self, padded: Real, threads: int = 1) -> Real:
        """Copy an image out of its padded form, adding what lies in a plane's two places."""
        return self.take(padded[:, None], 0, threads)

    def take(self, padded: Real, lane: int, threads: int = 1) -> Real:
        """Copy an image out of one lane of padded images side by side, ``[place, lane]``."""
        slabs = padded[:, lane].reshape(self._slabs)
        values = np.empty(self.shape, padded.dtype)

        def copy(x: int) -> None:
            _kernels.take_slabs(slabs, values, x, min(x + PLANES_PER_PART, self.shape[0]))

        run_in_threads(copy, range(0, self.shape[0], PLANES_PER_PART), threads)
        return values


def run_in_threads(work: Callable[..., Any], tasks: Iterable[Any], threads: int) -> list[Any]:
    """Call ``work(task)`` for each task; results come back in the order of the tasks."""
    if threads <= 1:
        return [work(task) for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, tasks))


def run_in_parts(work: Callable[[slice], Any], n: int, threads: int) -> None:
    """Call ``work(part)`` for parts of n events, each some ten ms of work."""
    starts = range(0, n, EVENTS_PER_PART)
    run_in_threads(work, [slice(start, start + EVENTS_PER_PART) for start in starts], threads)


@dataclass(frozen=True, eq=False)
class TaskPlan:
    """How events are grouped so that the same bits come out at any number of threads.

    With TOF a task is a column of the image along x; its events reach a bounded distance
    beyond it. Tasks that could touch the same voxels run one after the other, always in the
    same order; the others run together. Without TOF rays cross the whole image, and each of
    four fixed parts of the crystal pairs has an image of its own, summed in order.

    Parameters
    ----------
    rays
        Of the scanner and grid.
    block_voxels
        Size of the blocks that a task's events are ordered by; a power of two up to the task's.
    n_slopes
        Classes of each of the two slopes that a block's events are ordered by.
    """

    rays: RayModel
    block_voxels: int = BLOCK_VOXELS
    n_slopes: int = N_SLOPES

    @property
    def n_parts(self) -> int:
        """Parts of the crystal pairs, 0 where the TOF kernel bounds a task's reach."""
        widest = max(self.rays.shape[k] * float(self.rays.voxel_mm[k]) for k in (1, 2))
        return N_PRIVATE_IMAGES if float(self.rays.reach_mm) > widest / 3 else 0

    @property
    def n_images(self) -> int:
        """Images that back projection adds to."""
        return max(self.n_parts, 1)

    @property
    def _tasks_yz(self) -> tuple[int, int]:
        return (
            -(-self.rays.shape[1] // TASK_VOXELS),
            -(-self.rays.shape[2] // TASK_VOXELS),
        )

    @property
    def _n_inner(self) -> int:
        n_blocks = -(-self.rays.shape[0] // self.block_voxels)
        n_blocks *= (TASK_VOXELS // self.block_voxels) ** 2
        return n_blocks * 3 * self._n_slopes**2

    @property
    def _n_slopes(self) -> int:
        """Classes of slopes; one where events are spread over the parts' many buckets."""
        return 1 if self.n_parts else self.n_slopes

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        tasks_y, tasks_z = self._tasks_yz
        return self.n_parts or tasks_y * tasks_z

    @property
    def n_buckets(self) -> int:
        """Number of buckets; those of one task are neighbours."""
        tasks_y, tasks_z = self._tasks_yz
        return self.n_images * tasks_y * tasks_z * self._n_inner

    def bucket(self, events: EventBatch, threads: int) -> NDArray[np.int32]:
        """Give each event's bucket, -1 where its ray misses the image.

        Returns
        -------
        ndarray
            Shape (n_events,), int32.
        """
        rays = self.rays
        out = np.empty(len(events), np.int32)

        def work(start: int) -> None:
            part = slice(start, start + EVENTS_PER_TASK)
            _kernels.bucket_events(
                rays.ends, rays.voxel_mm, events.crystal_a[part], events.crystal_b[part],
                events.tof_bin[part], rays.tof_centre_mm, rays.reach_mm, rays.shape,
                TASK_VOXELS.bit_length() - 1, self.block_voxels.bit_length() - 1,
                self._n_slopes, self.n_parts, out[part],
            )  # fmt: skip

        run_in_threads(work, range(0, len(events), EVENTS_PER_TASK), threads)
        return out

    @property
    def task_buckets(self) -> I64:
        """First bucket of each task, and one past the last. Shape (n_tasks + 1,), int64."""
        return np.arange(self.n_tasks + 1) * (self.n_buckets // self.n_tasks)

    @cached_property
    def _later_neighbours(self) -> list[list[int]]:
        """For each task those that touch its voxels and must wait for it."""
        if self.n_parts:
            return [[] for _ in range(self.n_parts)]
        tasks_y, tasks_z = self._tasks_yz
        reach = [
            math.floor(
                (TASK_VOXELS + 3 + 2 * float(self.rays.reach_mm) / float(self.rays.voxel_mm[k]))
                / TASK_VOXELS
            )
            for k in (1, 2)
        ]
        colour = [
            (y % (reach[0] + 1)) * (reach[1] + 1) + z % (reach[1] + 1)
            for y in range(tasks_y)
            for z in range(tasks_z)
        ]
        later: list[list[int]] = []
        for task in range(tasks_y * tasks_z):
            y, z = divmod(task, tasks_z)
            near = (
                v * tasks_z + w
                for v in range(max(y - reach[0], 0), min(y + reach[0] + 1, tasks_y))
                for w in range(max(z - reach[1], 0), min(z + reach[1] + 1, tasks_z))
            )
            later.append([other for other in near if colour[other] > colour[task]])
        return later

    def run(self, work: Work, ranges: I64, threads: int) -> list[Any]:
        """Run ``work(start, stop, image)`` for each task's events, neighbours in fixed order.

        Returns
        -------
        list
            What ``work`` returned, by task; ``None`` for tasks without events.
        """
        size = (ranges[:, 1] - ranges[:, 0]).tolist()
        n_before = [0] * len(size)
        for task, later in enumerate(self._later_neighbours):
            if size[task]:
                for other in later:
                    n_before[other] += 1
        ready = [(-n, task) for task, n in enumerate(size) if n and not n_before[task]]
        heapq.heapify(ready)
        results: list[Any] = [None] * len(size)
        running: dict[Future[Any], int] = {}
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            while ready or running:
                while ready and len(running) < max(threads, 1):
                    _, task = heapq.heappop(ready)
                    start, stop = ranges[task].tolist()
                    image = task if self.n_parts else 0
                    running[pool.submit(work, start, stop, image)] = task
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    results[task] = future.result()
                    for other in self._later_neighbours[task]:
                        n_before[other] -= 1
                        if size[other] and not n_before[other]:
                            heapq.heappush(ready, (-size[other], other))
        return results


def check_events(scanner: Scanner, events: EventBatch) -> None:
    """Refuse events that name crystals or TOF bins which the scanner does not have.

    Raises
    ------
    InputError
        If a crystal or TOF bin number is out of range.
    """
    if not len(events):
        return
    crystal = int(events.crystal_b.max())
    low, high = int(events.tof_bin.min()), int(events.tof_bin.max())
    if crystal >= scanner.n_crystals or low < 0 or high >= scanner.tof.n_bins:
        raise InputError(
            f"events must name crystals below {scanner.n_crystals} and TOF bins below "
            f"{scanner.tof.n_bins} of {scanner.name!r}, but they reach crystal {crystal} and "
            f"TOF bins {low} to {high}; use the scanner that they were recorded with"
        )


def _check_shape(values: NDArray[np.generic], shape: tuple[int, ...], what: str) -> None:
    if values.shape != shape:
        raise InputError(
            f"{what} must have the shape {shape}, but it has {values.shape}; "
            "make both for the same grid and events"
        )


def forward(
    values: NDArray[np.generic],
    grid: Grid,
    scanner: Scanner,
    events: EventBatch,
    *,
    tof: bool = True,
    n_sigma: float = 3.0,
    threads: int = 2,
    dtype: type[np.floating[Any]] = np.float32,
) -> Real:
    """Project an image along events: ``sum_j A_ej k_e(j) x_j``.

    Parameters
    ----------
    values
        Image. Shape ``grid.shape``.
    events
        LORs and TOF bins.
    tof
        Weigh by TOF bin.
    n_sigma
        Where the timing Gaussian is cut off.
    dtype
        Type of the arithmetic.

    Returns
    -------
    ndarray
        The image's unit times mm. Shape (n_events,), ``dtype``.

    Raises
    ------
    InputError
        If the image is not on the grid or an event is not of the scanner.
    """
    _check_shape(values, grid.shape, "an image to project")
    check_events(scanner, events)
    rays = RayModel.make(grid, scanner, tof=tof, n_sigma=n_sigma, dtype=dtype)
    columns = events.crystal_a, events.crystal_b, events.tof_bin
    return project(rays, rays.pad(values), *columns, threads)


def project(
    rays: RayModel,
    padded: Real,
    crystal_a: NDArray[np.uint32],
    crystal_b: NDArray[np.uint32],
    tof_bin: NDArray[np.int16],
    threads: int,
) -> Real:
    """Project a padded image along pairs in any order; see :func:`forward`."""
    n = len(crystal_a)
    out = np.empty(n, rays.table.dtype)

    def work(start: int) -> None:
        _kernels.forward(
            padded, rays.shape, rays.ends, rays.voxel_mm, crystal_a, crystal_b, tof_bin,
            rays.tof_centre_mm, rays.table, rays.per_mm, rays.reach_mm, start,
            min(start + EVENTS_PER_TASK, n), out,
        )  # fmt: skip

    run_in_threads(work, range(0, n, EVENTS_PER_TASK), threads)
    return out


def back(
    weights: NDArray[np.floating[Any]],
    grid: Grid,
    scanner: Scanner,
    events: EventBatch,
    *,
    tof: bool = True,
    n_sigma: float = 3.0,
    threads: int = 2,
    dtype: type[np.floating[Any]] = np.float32,
) -> Real:
    """Project weights of events back: ``sum_e A_ej k_e(j) w_e``, the transpose of forward.

    Parameters
    ----------
    weights
        One weight an event. Shape (n_events,).
    tof, n_sigma, dtype
        As in :func:`forward`.

    Returns
    -------
    ndarray
        Shape ``grid.shape``, ``dtype``; the same bits at any number of threads.

    Raises
    ------
    InputError
        If there is not one weight an event or an event is not of the scanner.
    """
    _check_shape(weights, (len(events),), "the weights of events")
    check_events(scanner, events)
    rays = RayModel.make(grid, scanner, tof=tof, n_sigma=n_sigma, dtype=dtype)
    plan = TaskPlan(rays)
    bucket = plan.bucket(events, threads)
    order = np.argsort(bucket, kind="stable")[np.count_nonzero(bucket < 0) :]
    edges = np.searchsorted(bucket[order], plan.task_buckets)
    crystal_a, crystal_b, tof_bin = (
        column[order] for column in (events.crystal_a, events.crystal_b, events.tof_bin)
    )
    values = np.ascontiguousarray(weights[order], dtype)
    images = [rays.zeros() for _ in range(plan.n_images)]

    def work(start: int, stop: int, image: int) -> None:
        _kernels.back(
            images[image], rays.shape, rays.ends, rays.voxel_mm, crystal_a, crystal_b, tof_bin,
            rays.tof_centre_mm, rays.table, rays.per_mm, rays.reach_mm, start, stop, values,
        )  # fmt: skip

    plan.run(work, np.stack((edges[:-1], edges[1:]), axis=1), threads)
    return rays.crop(sum_images(images))


def sum_images(images: Sequence[Real]) -> Real:
    """Add private images into the first, in order."""
    total = images[0]
    for image in images[1:]:
        total += image
    return total
