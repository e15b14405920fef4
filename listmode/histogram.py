"""One streaming pass over a scan: where the events most likely came from, and when."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from listmode import _kernels
from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode
from listmode.windows import Windows

U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
T = TypeVar("T")

ZONE_MM = 48.0  # axial zones of the lateral profiles: short enough to cut a body into slabs
TASK_EVENTS = 1 << 19  # events a task: about 10 ms of work, 5 MB of columns
REJECTIONS = (
    "crystal number unknown to the scanner",
    "TOF bin out of range",
    "most likely position outside the field of view",
)
WATER_PER_MM = 0.0096  # attenuation of water at 511 keV (NIST XCOM)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Most likely positions of a scan's prompts, in space and in slices of time.

    The most likely position (MLP) of an event is its LOR's midpoint moved by its TOF bin's
    centre towards crystal b. Nothing is corrected: these are counts, not activity.

    Parameters
    ----------
    image
        Prompts over the whole of the windows. Shape (nx, ny, nz), uint32.
    lower_mm
        Lower edge of voxel (0, 0, 0) in the scanner frame, mm. Shape (3,).
    voxel_mm
        Edge of a voxel and width of a profile's bin, mm.
    slice_ms, start_ms
        Length of a slice and start of the first one on the scan clock.
    z_profile
        Prompts by slice and z. Shape (n_slices, nz), uint32.
    x_profile, y_profile
        Prompts by slice, axial zone and x or y. Shape (n_slices, n_zones, nx or ny), uint32.
    zone_of_z
        Axial zone of each z bin. Shape (nz,), int64.
    live_ms
        How much of each slice lies in the windows. Shape (n_slices,), int64.
    sensitivity
        Relative axial sensitivity of the scanner in each z bin, 1 at its largest; the
        expected counts of a unit source in the body. Shape (nz,).
    n_events, rejected
        Prompts read, and those left out by reason.
    windows
        The time that was read.
    has_tof
        False: positions are midpoints of LORs and tell little.
    blur_along_mm
        Standard deviation of the positions along the LOR about the annihilation, mm: timing
        and width of a TOF bin; ``inf`` without TOF.
    """

    image: U32
    lower_mm: F64
    voxel_mm: float
    slice_ms: int
    start_ms: int
    z_profile: U32
    x_profile: U32
    y_profile: U32
    zone_of_z: I64
    live_ms: I64
    sensitivity: F64
    n_events: int
    rejected: dict[str, int]
    windows: Windows
    has_tof: bool
    blur_along_mm: float

    def centre_mm(self, axis: int) -> F64:
        """Centres of the voxels along an axis, mm."""
        n = self.image.shape[axis]
        return np.asarray(self.lower_mm[axis] + (np.arange(n) + 0.5) * self.voxel_mm)

    @property
    def n_slices(self) -> int:
        """Number of time slices."""
        return int(self.live_ms.size)

    @property
    def slice_counts(self) -> I64:
        """Prompts in each slice. Shape (n_slices,), int64."""
        return np.asarray(self.z_profile.sum(axis=1, dtype=np.int64))

    @property
    def slice_start_ms(self) -> I64:
        """Start of each slice on the scan clock. Shape (n_slices,), int64."""
        return self.start_ms + self.slice_ms * np.arange(self.n_slices, dtype=np.int64)


def axial_sensitivity(
    scanner: Scanner,
    z_mm: F64,
    *,
    path_mm: float = 250.0,
    cosines: tuple[float, float] = (0.0, 1.0),
) -> F64:
    """Give the relative sensitivity along the axis for a source inside a body.

    Integrates the accepted polar angles of a source on the axis, with the crystals' stopping
    power and the attenuation of a body of water. Only the slope over some centimetres is
    used, so a body of typical width is good enough: it moves a bladder's position by 0.1 mm.

    Parameters
    ----------
    scanner
        Its length, radius, largest ring difference and stopping power.
    z_mm
        Places on the axis, mm. Shape (n,).
    path_mm
        Length of water that a transverse LOR crosses, mm.
    cosines
        Least and largest axial cosine of the LORs that are counted, without their sign.

    Returns
    -------
    ndarray
        Shape (n,), 1 at the largest.

    Notes
    -----
    s(z) = integral over the accepted polar angles of
    sin(t) (1 - exp(-mu_c L / sin t))^2 exp(-mu_w D / sin t) dt
    (Cherry, Sorenson, Phelps, Physics in Nuclear Medicine, 4th ed., ch. 18).
    """
    radius = scanner.crystal_radius_mm
    half = scanner.axial_length_mm / 2.0
    ring_pitch = scanner.axial_length_mm / max(scanner.n_rings, 1)
    slope_limit = (scanner.max_ring_difference + 0.5) * ring_pitch / (2.0 * radius)
    slope = (np.arange(400) + 0.5) / 400.0 * min(slope_limit, half / radius)  # cot of angle
    # With u = cot t: sin t dt = -(1 + u^2)^(-3/2) du; both ends must meet the detector.
    one_over_sin = np.sqrt(1.0 + slope**2)
    stopping = 1.0 - np.exp(
        -scanner.stopping_per_mm * scanner.crystal_size_mm[2] * one_over_sin
    )
    weight = one_over_sin**-3 * stopping**2 * np.exp(-WATER_PER_MM * path_mm * one_over_sin)
    # A slope at the edge of the range counts in part, so that a narrow range has no jumps.
    weight = weight * _share_between(np.asarray(slope), cosines)
    limit = ((half - np.abs(z_mm)) / radius)[:, None]
    cell = slope[1] - slope[0]
    reach = np.clip((limit - slope[None, :]) / cell + 0.5, 0.0, 1.0)
    value = (reach * weight).sum(axis=1)
    # Towards the very end little is left; a floor keeps divisions by it finite.
    return np.asarray(np.maximum(value / value.max(), 1e-3))


def _share_between(slope: F64, cosines: tuple[float, float]) -> F64:
    """Give the share of each slope's cell (cotangents, evenly spaced) between two cosines."""
    half = (slope[1] - slope[0]) / 2.0
    low, high = (c / math.sqrt(1.0 - c * c) if c < 1.0 else math.inf for c in cosines)
    inside = np.minimum(slope + half, high) - np.maximum(slope - half, low)
    return np.asarray(np.clip(inside / (2.0 * half), 0.0, 1.0))


def map_in_order(
    jobs: Iterator[Callable[[], T]], threads: int, take: Callable[[T], None]
) -> None:
    """Run jobs on threads and take their results in order, a few ahead at a time."""
    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        waiting: deque[Future[T]] = deque()
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                take(waiting.popleft().result())
        while waiting:
            take(waiting.popleft().result())


def tick_ranges(
    listmode: Listmode, windows: Windows, slice_ms: int, task_events: int = TASK_EVENTS
) -> Iterator[tuple[int, int]]:
    """Cut windows at slice borders into ranges of ticks of about ``task_events`` events."""
    offset = listmode.tick_offset()
    origin = listmode.start_ms
    for start, stop in windows:
        first = start
        while first < stop:
            goal = offset[first - origin] + task_events
            last = int(np.searchsorted(offset, goal, side="left")) + origin
            last = origin + math.ceil((last - origin) / slice_ms) * slice_ms
            last = min(max(last, first + 1), stop)
            yield first, last
            first = last


def bin_half_length_mm(scanner: Scanner) -> F32:
    """Distance from the midpoint towards crystal b of each TOF bin, mm, float32."""
    return scanner.tof.bin_centre_mm().astype(np.float32)


def blur_along_mm(scanner: Scanner) -> float:
    """Give the standard deviation of positions along the LOR, mm: timing and TOF bin."""
    if not scanner.tof.has_tof:
        return math.inf
    return math.sqrt(scanner.tof.sigma_mm**2 + scanner.tof.bin_width_mm**2 / 12.0)


def accumulate(
    listmode: Listmode,
    windows: Windows | None = None,
    *,
    voxel_mm: float = 4.0,
    slice_ms: int = 500,
    threads: int = 2,
    progress: Progress = SILENT,
) -> Histogram:
    """Histogram the most likely positions of all prompts in one pass over the file.

    Parameters
    ----------
    listmode
        An open scan.
    windows
        Time to read; the whole scan if left out.
    voxel_mm
        Voxel edge of the histo-image and bin width of the profiles, mm.
    slice_ms
        Length of a time slice, ms.
    threads
        Threads; the result has the same bits for any number.
    progress
        Is told of the events read.

    Raises
    ------
    InputError
        If the windows reach outside the scan or a size is not positive.
    """
    if not voxel_mm > 0 or slice_ms < 1:
        raise InputError(
            "a histogram needs a positive voxel size and slices of at least 1 ms, but they are "
            f"{voxel_mm:g} mm and {slice_ms} ms; give for instance 4 mm and 500 ms"
        )
    windows = (windows or listmode.extent).merged()
    listmode.check_windows(windows)
    scanner = listmode.scanner
    half = np.array([scanner.fov_radius_mm] * 2 + [scanner.axial_length_mm / 2.0])
    shape = np.ceil(2.0 * half / voxel_mm).astype(int)
    lower = -shape * voxel_mm / 2.0
    nx, ny, nz = (int(n) for n in shape)
    zone_of_z = (np.arange(nz) * voxel_mm // ZONE_MM).astype(np.int64)
    n_zones = int(zone_of_z[-1]) + 1
    n_slices = -(-(listmode.stop_ms - listmode.start_ms) // slice_ms)
    z_profile = np.zeros((n_slices, nz), np.uint32)
    x_profile = np.zeros((n_slices, n_zones, nx), np.uint32)
    y_profile = np.zeros((n_slices, n_zones, ny), np.uint32)
    rejected = np.zeros(len(REJECTIONS), np.int64)
    images: SimpleQueue[U32] = SimpleQueue()  # one a thread; integer sums need no order
    for _ in range(max(threads, 1)):
        images.put(np.zeros((nx, ny, nz), np.uint32))

    along = bin_half_length_mm(scanner)
    offset = listmode.tick_offset()
    origin = listmode.start_ms

    def job(batch: EventBatch, first: int, last: int) -> Callable[[], tuple[int, Any]]:
        def run() -> tuple[int, Any]:
            row = (first - origin) // slice_ms
            stop_row = -(-(last - origin) // slice_ms)
            edge = np.clip(
                np.arange(row, stop_row + 1) * slice_ms, first - origin, last - origin
            )
            rows = (
                np.zeros((stop_row - row, nz), np.uint32),
                np.zeros((stop_row - row, n_zones, nx), np.uint32),
                np.zeros((stop_row - row, n_zones, ny), np.uint32),
                np.zeros(len(REJECTIONS), np.int64),
            )
            image = images.get()
            _kernels.accumulate_positions(
                batch.crystal_a,
                batch.crystal_b,
                batch.tof_bin,
                (offset[edge] - offset[first - origin]).astype(np.int64),
                scanner.crystal_position_mm,
                along,
                lower,
                float(voxel_mm),
                zone_of_z,
                image,
                *rows,
            )
            images.put(image)
            return row, rows

        return run

    def jobs() -> Iterator[Callable[[], tuple[int, Any]]]:
        for first, last in tick_ranges(listmode, windows, slice_ms):
            start, stop = int(offset[first - origin]), int(offset[last - origin])
            yield job(listmode.read("prompts", start, stop), first, last)
            stage.advance(stop - start)

    def take(result: tuple[int, Any]) -> None:
        row, (z_rows, x_rows, y_rows, lost) = result
        part = slice(row, row + len(z_rows))
        z_profile[part] += z_rows
        x_profile[part] += x_rows
        y_profile[part] += y_rows
        rejected[:] += lost

    n_events = listmode.count(windows)
    with progress.stage("most likely positions", n_events) as stage:
        map_in_order(jobs(), threads, take)
    image = images.get()
    while not images.empty():
        np.add(image, images.get(), out=image)
    z_mm = lower[2] + (np.arange(nz) + 0.5) * voxel_mm
    return Histogram(
        image=image,
        lower_mm=lower,
        voxel_mm=float(voxel_mm),
        slice_ms=slice_ms,
        start_ms=origin,
        z_profile=z_profile,
        x_profile=x_profile,
        y_profile=y_profile,
        zone_of_z=zone_of_z,
        live_ms=live_time_ms(windows, origin, slice_ms, n_slices),
        sensitivity=axial_sensitivity(scanner, z_mm),
        n_events=n_events,
        rejected=dict(zip(REJECTIONS, rejected.tolist(), strict=True)),
        windows=windows,
        has_tof=scanner.tof.has_tof,
        blur_along_mm=blur_along_mm(scanner),
    )


def live_time_ms(windows: Windows, start_ms: int, slice_ms: int, n_slices: int) -> I64:
    """Give how much of each slice of time lies in the windows, ms. Shape (n_slices,)."""
    edge = start_ms + slice_ms * np.arange(n_slices + 1, dtype=np.int64)
    live = np.zeros(n_slices, np.int64)
    for start, stop in windows:
        live += np.diff(np.clip(edge, start, stop)).astype(np.int64)
    return live
