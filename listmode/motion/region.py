"""The events of one region of the body, kept with their times and directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode import _kernels
from listmode.events import EventBatch
from listmode.histogram import (
    axial_sensitivity,
    bin_half_length_mm,
    blur_along_mm,
    map_in_order,
    tick_ranges,
)
from listmode.motion.template import COS_EDGE, N_AZIMUTH, blur_covariance
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode
from listmode.windows import Windows

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

GRID_MM = 4.0  # voxel of aligned histo-images: a third of the blur


@dataclass(frozen=True, eq=False)
class RegionEvents:
    """Events whose most likely positions lie in a box, in order of time.

    Parameters
    ----------
    time_ms
        Scan time, ascending. Shape (n,), int32.
    point_mm
        Most likely positions in the scanner frame. Shape (n, 3), float32.
    direction
        Class of LOR direction. Shape (n,), uint8.
    weight
        Inverse axial sensitivity at the event, about 1. Shape (n,), float32.
    covariance
        Blur of each class of directions, mm^2. Shape (n_directions, 3, 3).
    lower_mm, upper_mm
        The box. Shape (3,).
    windows
        The time that was read.
    """

    time_ms: NDArray[np.int32]
    point_mm: F32
    direction: NDArray[np.uint8]
    weight: F32
    covariance: F64
    lower_mm: F64
    upper_mm: F64
    windows: Windows

    def __len__(self) -> int:
        return int(self.time_ms.size)

    @property
    def direction_share(self) -> F64:
        """Share of the events in each class of directions. Shape (n_directions,)."""
        count = np.bincount(self.direction, minlength=len(self.covariance))
        return np.asarray(count / max(len(self), 1))

    def every(self, n: int) -> RegionEvents:
        """Keep one event of ``n``."""
        if n <= 1:
            return self
        return replace(
            self,
            time_ms=self.time_ms[::n].copy(),
            point_mm=self.point_mm[::n].copy(),
            direction=self.direction[::n].copy(),
            weight=self.weight[::n].copy(),
        )

    def event_edges(self, edge_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the number of the first event at or after each time."""
        # One type for both, or all the times would be copied to compare them.
        edge = np.asarray(edge_ms).astype(np.int32)
        return np.searchsorted(self.time_ms, edge, side="left").astype(np.int64)


def sensitivity_weight(
    scanner: Scanner, z_mm: F32, direction: NDArray[np.uint8], reference_mm: float
) -> F32:
    """Give 1 at the reference and the inverse relative axial sensitivity elsewhere.

    Straight and oblique LORs are taken apart: near the scanner's end the sensitivity of the
    oblique ones falls steeply and that of the straight ones hardly, and one curve for both
    reads a shift short by 0.8 %.

    Parameters
    ----------
    scanner
        Its length, radius and acceptance.
    z_mm, direction
        Axial place of each event and the class of its LOR's direction. Shape (n,).
    reference_mm
        Where the weights are 1, mm.
    """
    grid = np.arange(reference_mm - 400.0, reference_mm + 400.5, 2.0)
    table = np.empty((3, grid.size))
    for band, cosines in enumerate(((COS_EDGE, 1.0), (0.0, COS_EDGE), (COS_EDGE, 1.0))):
        seen = axial_sensitivity(scanner, np.append(grid, reference_mm), cosines=cosines)
        # Beyond a factor of four the oblique LORs are too few to be worth a large weight.
        table[band] = np.clip(seen[-1] / seen[:-1], 0.25, 4.0)
    value: F32 = np.empty(len(z_mm), np.float32)
    _kernels.interpolate_bands(
        np.ascontiguousarray(z_mm), direction, float(grid[0]), 2.0, table, value
    )
    return value


def collect_region(
    listmode: Listmode,
    lower_mm: F64,
    upper_mm: F64,
    windows: Windows | None = None,
    *,
    threads: int = 2,
    progress: Progress = SILENT,
) -> RegionEvents:
    """Keep the prompts whose most likely positions lie in a box.

    Parameters
    ----------
    listmode
        An open scan.
    lower_mm, upper_mm
        Corners of the box in the scanner frame, mm. Shape (3,).
    windows
        Time to read; the whole scan if left out.
    threads, progress
        As elsewhere; the result does not depend on the threads.
    """
    windows = (windows or listmode.extent).merged()
    listmode.check_windows(windows)
    scanner = listmode.scanner
    lower = np.asarray(lower_mm, dtype=np.float64)
    upper = np.asarray(upper_mm, dtype=np.float64)
    along = bin_half_length_mm(scanner)
    offset = listmode.tick_offset()
    origin = listmode.start_ms
    parts: list[tuple[Any, ...]] = []

    def job(batch: EventBatch, first: int, last: int) -> Callable[[], tuple[Any, ...]]:
        def run() -> tuple[Any, ...]:
            ticks = offset[first - origin : last - origin + 1]
            time_ms = np.empty(len(batch), np.int32)
            point_mm = np.empty((len(batch), 3), np.float32)
            direction = np.empty(len(batch), np.uint8)
            n = _kernels.collect_in_box(
                batch.crystal_a,
                batch.crystal_b,
                batch.tof_bin,
                (ticks - ticks[0]).astype(np.int64),
                first,
                scanner.crystal_position_mm,
                along,
                lower,
                upper,
                N_AZIMUTH,
                COS_EDGE,
                time_ms,
                point_mm,
                direction,
            )
            return time_ms[:n].copy(), point_mm[:n].copy(), direction[:n].copy()

        return run

    with progress.stage("events of the region", listmode.count(windows)) as stage:

        def jobs() -> Iterator[Callable[[], tuple[Any, ...]]]:
            for first, last in tick_ranges(listmode, windows, 1):
                start, stop = int(offset[first - origin]), int(offset[last - origin])
                yield job(listmode.read("prompts", start, stop), first, last)
                stage.advance(stop - start)

        map_in_order(jobs(), threads, parts.append)
    time_ms, point_mm, direction = (
        np.concatenate([p[i] for p in parts]) if parts else np.empty(shape, dtype)
        for i, (shape, dtype) in enumerate(
            (((0,), np.int32), ((0, 3), np.float32), ((0,), np.uint8))
        )
    )
    return RegionEvents(
        time_ms=time_ms,
        point_mm=point_mm,
        direction=direction,
        weight=sensitivity_weight(
            scanner, point_mm[:, 2], direction, float((lower[2] + upper[2]) / 2)
        ),
        covariance=blur_covariance(blur_along_mm(scanner)),
        lower_mm=lower,
        upper_mm=upper,
        windows=windows,
    )


def aligned_image(
    events: RegionEvents,
    edges: I64,
    shift: F64,
    centre_mm: F64,
    half_mm: F64,
    block: NDArray[np.int_],
) -> tuple[tuple[F64, F64, F64], F64]:
    """Histogram the events less their windows' shifts around a centre, one image a block.

    Returns
    -------
    axes_mm, image
        Voxel centres along x, y, z in the scanner frame, mm; shape (n_blocks, nx, ny, nz).
    """
    n = np.ceil(half_mm / GRID_MM).astype(int)
    lower = centre_mm - (n + 0.5) * GRID_MM
    image = np.zeros((int(block.max()) + 1, *(2 * n + 1)))
    _kernels.histogram_aligned(
        events.point_mm,
        events.weight,
        events.event_edges(edges),
        np.ascontiguousarray(shift),
        lower,
        GRID_MM,
        block.astype(np.int64),
        image,
    )
    x, y, z = (
        lo + GRID_MM * (np.arange(2 * k + 1) + 0.5) for lo, k in zip(lower, n, strict=True)
    )
    return (x, y, z), image
