"""Where decays and directions are drawn from, and which of them are worth following."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from listmode.simulate import _kernels
from listmode.simulate.detector import Detector, make_state
from listmode.simulate.shapes import F32, F64, Phantom

I32 = NDArray[np.int32]

N_PHI, N_COS, N_SAMPLES, N_TASKS = 16, 12, 4, 16
CELL_MM = 32.0
EVERYWHERE = np.array([-1e9, 1e9, -1e9, 1e9, -1e9, 1e9])


def make_alias(weight: F64) -> tuple[F64, I32]:
    """Make an alias table for indices in proportion to ``weight`` (n,)."""
    accept, other = np.empty(weight.size), np.empty(weight.size, np.int32)
    _kernels.make_alias(np.ascontiguousarray(weight, np.float64), accept, other)
    return accept, other


@dataclass(frozen=True, eq=False)
class Body:
    """A phantom at one time, as arrays for the kernels."""

    sources: F64  # shapes that add activity
    source_bq: F64  # what each adds over its volume, Bq at tick zero
    source_step: F64  # Bq/mL
    holes: F64  # shapes that take activity away
    hole_step: F64
    ellipsoids: F32  # what changes mu, as `_kernels.line_integral` wants it
    cylinders: F32
    boxes: F32
    mu_max: float
    bounds: F64

    @property
    def activity(self) -> tuple[F64, F64, F64, F64]:
        """The arguments of the kernels that draw decays."""
        return self.sources, self.source_step, self.holes, self.hole_step

    @property
    def attenuation(self) -> tuple[F32, F32, F32]:
        """The arguments of the kernels that attenuate."""
        return self.ellipsoids, self.cylinders, self.boxes


def make_body(phantom: Phantom, time_s: float, largest_shift_mm: float = 0.0) -> Body:
    """Turn a phantom at one time into arrays."""
    rows, volume = phantom.geometry(time_s), phantom.volume_ml(time_s)
    activity, mu, fixed = phantom.activity_steps, phantom.mu_steps, phantom.is_fixed
    grow = largest_shift_mm * np.array([-1.0, 1.0] * 3)
    return Body(
        sources=rows[activity > 0],
        source_bq=(activity * volume)[activity > 0],
        source_step=activity[activity > 0],
        holes=rows[activity < 0],
        hole_step=activity[activity < 0],
        ellipsoids=_attenuators(rows, mu, fixed, 0, 8),
        cylinders=_attenuators(rows, mu, fixed, 1, 8),
        boxes=_attenuators(rows, mu, fixed, 2, 1),
        mu_max=max(1e-6, max((shape.mu_per_cm for shape in phantom.shapes), default=0.0) / 10),
        bounds=phantom.bounds_mm(time_s) + grow,
    )


def _attenuators(rows: F64, mu: F64, fixed: NDArray[np.bool_], kind: int, lanes: int) -> F32:
    """Put the shapes of one kind that change mu into columns, filled up to whole vectors."""
    chosen = np.flatnonzero((mu != 0) & (rows[:, 0] == kind))
    table = np.zeros((8, -(-len(chosen) // lanes) * lanes), np.float32)
    table[3:6] = 1.0
    table[:6, : len(chosen)] = rows[chosen, 1:].T
    table[6, : len(chosen)] = mu[chosen]
    table[7, : len(chosen)] = fixed[chosen]
    return table


@dataclass(frozen=True, eq=False)
class Pieces:
    """The positive shapes cut along the cells, to draw decays from.

    Parameters
    ----------
    box_mm
        x0, x1, y0, y1, z0, z1 of each piece. Shape (n_pieces, 6), float64, mm.
    source, cell
        Number of its shape among the sources, and of its cell. Shape (n_pieces,), int32.
    bq
        Activity of the piece if the shape filled its box, Bq. Shape (n_pieces,), float64.
    """

    box_mm: F64
    source: I32
    cell: I32
    bq: F64


def cut_pieces(body: Body, grid: F64, box: F64) -> Pieces:
    """Cut the sources along half the cells of ``grid``: its origin, 1/size and counts.

    Halves follow a curved surface closer, and pieces that miss their shape are left out: less
    is drawn in vain.
    """
    boxes, sources, cells = [], [], []
    counts = grid[6:].astype(int)
    for number, row in enumerate(body.sources):
        low = np.maximum(row[1:4] - 1.0 / row[4:], box[::2])
        high = np.minimum(row[1:4] + 1.0 / row[4:], box[1::2])
        if (high <= low).any():
            continue
        axes = [_cut_axis(low[i], high[i], grid[i], grid[3 + i], counts[i]) for i in range(3)]
        cell = np.meshgrid(*(index for _, index in axes), indexing="ij")
        first = np.meshgrid(*(edges[:-1] for edges, _ in axes), indexing="ij")
        last = np.meshgrid(*(edges[1:] for edges, _ in axes), indexing="ij")
        pieces = np.stack(
            [m.ravel() for pair in zip(first, last, strict=True) for m in pair], 1
        )
        hit = _touches(row, pieces)
        boxes.append(pieces[hit])
        cells.append(((cell[0] * counts[1] + cell[1]) * counts[2] + cell[2]).ravel()[hit])
        sources.append(np.full(int(hit.sum()), number))
    if not boxes:
        none = np.zeros(0, np.int32)
        return Pieces(np.zeros((0, 6)), none, none, np.zeros(0))
    order = np.argsort(np.concatenate(cells), kind="stable")
    box_mm, source = np.concatenate(boxes)[order], np.concatenate(sources)[order]
    volume_ml = np.prod(box_mm[:, 1::2] - box_mm[:, ::2], axis=1) / 1000.0
    return Pieces(
        np.ascontiguousarray(box_mm),
        source.astype(np.int32),
        np.concatenate(cells)[order].astype(np.int32),
        volume_ml * body.source_step[source],
    )


def _cut_axis(
    low: float, high: float, origin: float, per_mm: float, count: int
) -> tuple[F64, NDArray[np.int64]]:
    """Cut [low, high] at half cells; give the edges and each part's cell."""
    at = (np.array([low, high]) - origin) * per_mm * 2.0
    # a shape that grew out of the grid belongs to the outermost cells
    first, last = np.clip(at.astype(int), 0, 2 * count - 1)
    inner = origin + np.arange(first + 1, last + 1) / (2.0 * per_mm)
    return np.concatenate(([low], inner, [high])), np.arange(first, last + 1) // 2


def _touches(row: F64, pieces: F64) -> NDArray[np.bool_]:
    """Say which boxes (n, 6) a shape may touch: by their points nearest to its centre."""
    near = np.clip(row[1:4], pieces[:, ::2], pieces[:, 1::2])
    u, v, w = ((near - row[1:4]) * row[4:]).T
    if row[0] == 0.0:
        return np.asarray(u * u + v * v + w * w < 1.0)
    return np.asarray(u * u + v * v < 1.0) if row[0] == 1.0 else np.ones(len(pieces), bool)


@dataclass(frozen=True, eq=False)
class Proposal:
    """Bounds on the survival of lines by cell and direction, for drawing where events are.

    Measured by a few lines a bin. A bound that is too small costs nothing but repeated lines
    (a line of survival w is drawn w/bound times on average), so the events' distribution does
    not depend on the bounds.
    """

    grid: F64
    cos_max: float
    bound: F32
    accept: F32
    other: NDArray[np.uint8]
    cell_bound: F64


def make_proposal(
    detector: Detector, body: Body, box: F64, shifts_mm: Iterable[F64], seed: int, threads: int
) -> Proposal:
    """Measure the bounds for a body at the displacements ``shifts_mm``, each of shape (3,)."""
    rows = body.sources
    low = np.maximum((rows[:, 1:4] - 1.0 / rows[:, 4:]).min(axis=0), box[::2])
    high = np.minimum((rows[:, 1:4] + 1.0 / rows[:, 4:]).max(axis=0), box[1::2])
    high = np.maximum(high, low + 1e-3)
    counts = np.clip(np.ceil((high - low) / CELL_MM), 1, 64)
    grid = np.concatenate((low, counts / (high - low), counts))
    cells = np.unique(cut_pieces(body, grid, box).cell)
    cos_max = _largest_cosine(detector)
    bound = np.zeros((int(counts.prod()), N_PHI * N_COS), np.float32)
    for number, shift in enumerate(shifts_mm):

        def measure(task: int, shift: F64 = shift, number: int = number) -> None:
            _kernels.measure_directions(
                make_state(seed, 1, number, task), cells[task::N_TASKS], N_SAMPLES, grid,
                N_PHI, N_COS, cos_max, body.sources, *body.attenuation, detector.blocks,
                detector.reach_mm, shift, bound,
            )  # fmt: skip

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(measure, range(N_TASKS)))
    bound = _widen(bound, tuple(int(n) for n in counts))
    accept = np.empty(bound.shape, np.float32)
    other = np.empty(bound.shape, np.uint8)
    _kernels.make_alias_rows(bound, accept, other)
    # a line has its direction in a half sphere; the bins cover cos_max of it evenly
    mean = bound.mean(axis=1, dtype=np.float64) * cos_max
    return Proposal(grid, cos_max, bound, accept, other, mean)


def _largest_cosine(detector: Detector) -> float:
    """Give the largest |cos| to the axis that an accepted LOR can have."""
    front, scanner = float(detector.blocks[0]), detector.scanner
    shortest = 2.0 * math.sqrt(max(front**2 - scanner.fov_radius_mm**2, 1.0))
    along = min(float(detector.reach_mm[1]), 2.0 * float(detector.reach_mm[0]))
    return along / math.hypot(along, shortest)


def _widen(bound: NDArray[np.float32], cells: tuple[int, ...]) -> NDArray[np.float32]:
    """Raise bounds that a few lines may have missed, so that no line is drawn many times."""
    table = bound.reshape(*cells, N_PHI, N_COS)
    near = maximum_filter(table, size=(1, 1, 1, 3, 3), mode="nearest")
    around = maximum_filter(near, size=(3, 3, 3, 1, 1), mode="nearest")
    around = np.maximum(around, 0.1 * around.max(axis=(3, 4), keepdims=True))
    wide = np.maximum(table, np.maximum(0.4 * near, 0.1 * around))
    return np.ascontiguousarray(wide.reshape(bound.shape))
