"""The sensitivity image over all valid LORs, by quasi-random sampling of crystal pairs."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import correlate1d

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from recon import _kernels
from recon.corrections.acceptance import RingTable, find_rings
from recon.corrections.attenuation import check_mu, mean_survival, mu_rays
from recon.corrections.normalisation import pair_efficiency
from recon.image import Grid, Volume
from recon.motion import Poses, invert, move_scanner
from recon.projector import RayModel, run_in_threads

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]
Draw = Callable[[int, int, F64], tuple[U32, U32, F64]]

COARSE_MM = 16.0  # sensitivity is smooth: cubic splines on corrected values are good to 0.3 %
MU_MM = 8.0
MIN_PAIRS_A_POSE = 100_000
N_BATCHES = 8  # independent batches: they give the error, and threads work on them
CHUNK = 1 << 16
DEFAULT_N_PAIRS = 48_000_000
CACHE_VERSION = 4
TRIANGLE = np.array([1.0, 16.0, 26.0, 16.0, 1.0]) / 60.0  # of four steps, by its moments


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How many counts per second a voxel gives per Bq/mL.

    Parameters
    ----------
    values
        Counts per second per Bq/mL in each voxel, all LORs and TOF bins together, before
        branching and count fraction. Shape ``grid.shape``, float32.
    grid
        Where the voxels are.
    relative_error
        RMS relative standard error of the sampling, where sensitivity is above a tenth of its
        maximum.
    n_pairs
        Crystal pairs sampled.
    key
        SHA-256 over all that the values depend on.
    """

    values: F32
    grid: Grid
    relative_error: float
    n_pairs: int
    key: str


def compute_sensitivity(
    scanner: Scanner,
    grid: Grid,
    *,
    mu: Volume | None = None,
    crystal_efficiency: F32 | None = None,
    n_pairs: int = DEFAULT_N_PAIRS,
    coarse_mm: float = COARSE_MM,
    reference_from_scanner: F64 | None = None,
    first_pair: int = 0,
    threads: int = 2,
    cache_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Add up all accepted crystal pairs: ``sum_i n_i a_i A_ij k_i(j)``.

    Parameters
    ----------
    scanner
        Which pairs there are, and how efficient they are.
    grid
        Grid of the image.
    mu
        Attenuation map; none for a scan in air.
    crystal_efficiency
        Relative efficiency of each crystal. Shape (n_crystals,).
    n_pairs
        Pairs to sample.
    coarse_mm
        Voxel size of the grid on which pairs are projected back, mm.
    reference_from_scanner
        The patient's pose, inverted: grid and mu-map stay with the patient, the detector goes
        to where the patient sees it. Shape (4, 4), mm; the identity if ``None``.
    first_pair
        Where in the sequence of pairs to begin, so that several images are independent.
    cache_dir
        Folder that keeps results under a hash of all they depend on.

    Returns
    -------
    Sensitivity
        The same bits at any number of threads.

    Raises
    ------
    InputError
        If the mu-map or the efficiencies are unusable, or there are too few pairs.

    Notes
    -----
    Pairs come from a Kronecker sequence in (ring, ring difference, place, fan) with the
    inverse of the sampling density as weight (Niederreiter, Random Number Generation and
    Quasi-Monte Carlo Methods, 1992, doi 10.1137/1.9781611970081); steps are the powers of the
    root of ``x⁵ = x + 1``. ``k_i`` is the share of the timing kernel inside the coincidence
    window: at 350 mm from the middle of a LOR it halves the counts.
    """
    if n_pairs < N_BATCHES:
        raise InputError(
            f"a sensitivity image needs at least {N_BATCHES} crystal pairs, but {n_pairs} were "
            "asked for; sample some millions"
        )
    if mu is not None:
        check_mu(mu)
        mu = coarsen(mu, MU_MM)
    seen = scanner
    if reference_from_scanner is not None:
        seen = move_scanner(scanner, reference_from_scanner)
    key = _key(seen, grid, mu, crystal_efficiency, n_pairs, coarse_mm, first_pair)
    path = None if cache_dir is None else cache_dir / f"sensitivity-{key[:32]}.npz"
    if path is not None and (kept := _load(path, grid, n_pairs, key)) is not None:
        return kept
    coarse = _coarse_grid(grid, coarse_mm)
    table = find_rings(scanner)
    draw = _free_draw(scanner) if table is None else _ring_draw(table)
    batches = _sample(
        scanner, seen, coarse, mu, crystal_efficiency, n_pairs, draw, first_pair,
        threads=threads, progress=progress,
    )  # fmt: skip
    mean = batches.mean(axis=0)
    strong = mean > 0.1 * mean.max()
    spread = batches.std(axis=0, ddof=1)[strong] / math.sqrt(N_BATCHES) / mean[strong]
    share = _axis_share(seen, coarse, draw)
    guide = None
    if mu is not None and min(coarse.voxel_mm) > 1.5 * max(grid.voxel_mm):
        move = None if reference_from_scanner is None else invert(reference_from_scanner)
        guide = mean_survival(
            mu, scanner, _half_grid(coarse), scanner_from_grid=move, threads=threads
        )
    result = Sensitivity(
        _refine(mean, coarse, grid, share, guide),
        grid,
        float(np.sqrt(np.mean(spread**2))) if strong.any() else 0.0,
        n_pairs,
        key,
    )
    if path is not None:
        _save(path, result)
    return result


def average_sensitivity(
    scanner: Scanner,
    grid: Grid,
    poses: Poses,
    *,
    half_life_s: float,
    mu: Volume | None = None,
    crystal_efficiency: F32 | None = None,
    n_pairs: int = DEFAULT_N_PAIRS,
    threads: int = 2,
    cache_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Average the sensitivity over poses: ``sum_p D_p S_p / sum_p D_p``.

    Leaving it out costs 0.2-0.4 % a mm of axial shift where the sensitivity slopes.

    Parameters
    ----------
    scanner, grid, mu, crystal_efficiency, threads, cache_dir, progress
        See :func:`compute_sensitivity`; grid and mu-map are in the reference pose.
    poses
        Each with the time in which it was taken.
    half_life_s
        Half-life, s: early minutes hold more decays.
    n_pairs
        Pairs of all poses together, shared out by weight: so the error of the average is that
        of one pose with all of them.

    Raises
    ------
    InputError
        As :func:`compute_sensitivity`.

    Notes
    -----
    Rahmim et al., IEEE Trans Nucl Sci 2004;51:2588-2596, doi 10.1109/TNS.2004.835781: events
    corrected one by one need a sensitivity averaged over the motion.
    """
    weights = poses.weights(half_life_s)
    first_pair, parts = 0, []
    for weight, pose in zip(weights.tolist(), poses.reference_from_scanner, strict=True):
        n = max(round(n_pairs * weight), MIN_PAIRS_A_POSE)
        parts.append(
            compute_sensitivity(
                scanner, grid, mu=mu, crystal_efficiency=crystal_efficiency, n_pairs=n,
                reference_from_scanner=pose, first_pair=first_pair, threads=threads,
                cache_dir=cache_dir, progress=progress,
            )
        )  # fmt: skip
        first_pair += n
    if len(parts) == 1:
        return parts[0]
    values = np.zeros(grid.shape)
    for weight, part in zip(weights.tolist(), parts, strict=True):
        values += weight * part.values
    error = float(np.linalg.norm(weights * [part.relative_error for part in parts]))
    key = hashlib.sha256(" ".join(part.key for part in parts).encode() + weights.tobytes())
    return Sensitivity(
        values.astype(np.float32), grid, error, sum(p.n_pairs for p in parts), key.hexdigest()
    )


def coarsen(volume: Volume, voxel_mm: float) -> Volume:
    """Average whole blocks of voxels until they are about ``voxel_mm`` wide."""
    factor = [max(1, int(voxel_mm // v)) for v in volume.grid.voxel_mm]
    shape = [-(-n // f) for n, f in zip(volume.grid.shape, factor, strict=True)]
    wide = np.zeros([n * f for n, f in zip(shape, factor, strict=True)], np.float32)
    nx, ny, nz = volume.grid.shape
    wide[:nx, :ny, :nz] = volume.values
    blocks = wide.reshape([k for n, f in zip(shape, factor, strict=True) for k in (n, f)])
    size = [v * f for v, f in zip(volume.grid.voxel_mm, factor, strict=True)]
    origin = volume.grid.point_mm([(f - 1) / 2 for f in factor])
    grid = Grid(
        (shape[0], shape[1], shape[2]),
        (size[0], size[1], size[2]),
        (origin[0], origin[1], origin[2]),
    )
    return Volume(blocks.mean(axis=(1, 3, 5), dtype=np.float64), grid, volume.unit)


def _key(
    scanner: Scanner,
    grid: Grid,
    mu: Volume | None,
    crystal_efficiency: F32 | None,
    n_pairs: int,
    coarse_mm: float,
    first_pair: int,
) -> str:
    h = hashlib.sha256(
        f"{CACHE_VERSION} {scanner.digest} {grid} {n_pairs} {coarse_mm}".encode()
    )
    if first_pair:
        h.update(f"from {first_pair}".encode())
    if mu is not None:
        h.update(repr(mu.grid).encode() + mu.values.tobytes())
    if crystal_efficiency is not None:
        h.update(b"efficiency" + np.ascontiguousarray(crystal_efficiency, np.float32).tobytes())
    return h.hexdigest()


def _load(path: Path, grid: Grid, n_pairs: int, key: str) -> Sensitivity | None:
    """Read a kept result; a damaged one counts as none and is made again."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            values, error = file["values"], float(file["relative_error"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if values.shape != grid.shape or values.dtype != np.float32:
        return None
    return Sensitivity(values, grid, error, n_pairs, key)


def _save(path: Path, result: Sensitivity) -> None:
    """Keep a result: whole under its name, or not at all. A full disk costs only the cache."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, values=result.values, relative_error=result.relative_error)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


def _coarse_grid(grid: Grid, coarse_mm: float) -> Grid:
    """Lay a coarse grid that reaches at least one voxel beyond the fine one on each side."""
    size = [max(coarse_mm, v) for v in grid.voxel_mm]
    span = [n * v for n, v in zip(grid.shape, grid.voxel_mm, strict=True)]
    shape = [max(math.ceil(a / v - 1e-9) + 2, 5) for a, v in zip(span, size, strict=True)]
    middle = grid.point_mm([(n - 1) / 2 for n in grid.shape])
    origin = [m - (n - 1) / 2 * v for m, n, v in zip(middle, shape, size, strict=True)]
    return Grid(
        (shape[0], shape[1], shape[2]),
        (size[0], size[1], size[2]),
        (origin[0], origin[1], origin[2]),
    )


def _half_grid(coarse: Grid) -> Grid:
    """Give a grid of half the voxels, from the first centre of a coarse one to its last."""
    nx, ny, nz = (2 * n - 1 for n in coarse.shape)
    x, y, z = (v / 2.0 for v in coarse.voxel_mm)
    return Grid((nx, ny, nz), (x, y, z), coarse.origin_mm)


def _refine(
    coarse_values: F64, coarse: Grid, grid: Grid, share: F64, guide: F32 | None = None
) -> F32:
    """Interpolate by cubic splines; a voxel's sensitivity goes with its volume.

    Projection has smoothed the coarse values: across its principal axis a ray is shared
    between two voxels, a triangle of variance h²/6. Half of that times the second difference
    takes the smoothing back to leading order, down to the smoothing of the fine grid's own
    projector, which the image's model has; ``share`` of the rays have each principal axis.

    Near the body's surface attenuation changes within a coarse voxel. Where a ``guide`` is
    given on :func:`_half_grid`, what is interpolated is the ratio to it, smoothed alike, and
    the guide itself from its own finer points.
    """
    values = coarse_values * (grid.voxel_ml / coarse.voxel_ml)
    if guide is not None:
        values = values / _as_projected(guide)[::2, ::2, ::2]
    sharper = values.copy()
    for axis in range(3):
        beyond = 1.0 - (grid.voxel_mm[axis] / coarse.voxel_mm[axis]) ** 2
        sharper -= beyond * (1.0 - share[axis]) / 12.0 * _second_difference(values, axis)
    if guide is None:
        return _interpolate(grid, [(sharper, coarse)])
    half = _half_grid(coarse)
    parts = np.moveaxis(guide.astype(np.float64), 3, 0)
    own = parts.sum(axis=0)
    for axis in range(3):
        smoothed = sum(parts[k] for k in range(3) if k != axis)
        own += (
            (grid.voxel_mm[axis] / half.voxel_mm[axis]) ** 2
            / 12.0
            * _second_difference(smoothed, axis)
        )
    return _interpolate(grid, [(sharper, coarse), (own, half)])


def _second_difference(values: F64, axis: int) -> F64:
    wide = np.pad(values, [(int(k == axis), int(k == axis)) for k in range(3)], "edge")
    return np.diff(wide, 2, axis)


def _as_projected(guide: F32) -> F64:
    """Smooth like rays on voxels twice as wide: a triangle across each principal axis.

    Tangents carry what changes at a surface, so each axis has its own part of the guide. The
    weights are those of five points with the triangle's second and fourth moments.
    """
    out = np.zeros(guide.shape[:3])
    for principal in range(3):
        part = guide[..., principal].astype(np.float64)
        for axis in range(3):
            if axis != principal:
                part = correlate1d(part, TRIANGLE, axis, mode="nearest")
        out += part
    return out


def _interpolate(grid: Grid, factors: list[tuple[F64, Grid]]) -> F32:
    """Multiply cubic splines of volumes on their own grids, at the voxels of another one."""
    matrices = []
    for values, own in factors:
        across = []
        for axis in range(3):
            at = (grid.axis_mm(axis) - own.origin_mm[axis]) / own.voxel_mm[axis]
            knots = np.arange(own.shape[axis], dtype=np.float64)
            across.append(make_interp_spline(knots, np.eye(knots.size), k=3)(at))
        sheets = np.tensordot(across[0], values, axes=(1, 0))
        matrices.append((sheets, across[1], across[2]))
    out = np.empty(grid.shape, np.float32)
    for i in range(grid.shape[0]):  # plane by plane: no volume of doubles
        product: F64 | float = 1.0
        for sheets, along_y, along_z in matrices:
            product = product * (along_y @ sheets[i] @ along_z.T)
        out[i] = np.maximum(product, 0.0)
    return out


def _axis_share(scanner: Scanner, coarse: Grid, draw: Draw) -> F64:
    """Give the share of the rays that has its longest step along each axis. Shape (3,)."""
    a, b, weight = draw(0, CHUNK, np.full(4, 0.5))
    step = scanner.crystal_position_mm[b] - scanner.crystal_position_mm[a]
    axis = np.argmax(np.abs(step / coarse.voxel_mm), axis=1)
    value = weight * pair_efficiency(scanner, a, b) * np.linalg.norm(step, axis=1)
    return np.asarray(np.bincount(axis, value, 3) / value.sum())


def _sample(
    scanner: Scanner,
    seen: Scanner,
    coarse: Grid,
    mu: Volume | None,
    crystal_efficiency: F32 | None,
    n_pairs: int,
    draw: Draw,
    first_pair: int,
    *,
    threads: int,
    progress: Progress,
) -> F64:
    """Project sampled pairs back on the coarse grid, batch by batch.

    The detector's efficiencies are its own wherever the patient ``seen`` by it lies.
    """
    rays = RayModel.make(coarse, seen, tof=False)
    matter = None if mu is None else mu_rays(mu, seen)
    per_batch = n_pairs // N_BATCHES
    rng = np.random.default_rng(20240229)
    shifts = rng.random((N_BATCHES, 4))
    lock = threading.Lock()

    def work(batch: int) -> F64:
        image = np.zeros(rays.zeros().size)
        for first in range(0, per_batch, CHUNK):
            n = min(CHUNK, per_batch - first)
            a, b, weight = draw(first_pair // N_BATCHES + first, n, shifts[batch])
            value = pair_efficiency(scanner, a, b, crystal_efficiency) * weight
            no_bin = np.zeros(n, np.int16)
            if matter is not None:
                m, padded = matter
                integral = np.empty(n, np.float32)
                _kernels.forward(
                    padded, m.shape, m.ends, m.voxel_mm, a, b, no_bin, m.tof_centre_mm,
                    m.table, m.per_mm, m.reach_mm, 0, n, integral,
                )  # fmt: skip
                value *= np.exp(-integral)
            _kernels.back(
                image, rays.shape, rays.ends, rays.voxel_mm, a, b, no_bin, rays.tof_centre_mm,
                rays.table, rays.per_mm, rays.reach_mm, 0, n, value.astype(np.float32),
            )  # fmt: skip
            with lock:
                stage.advance(n)
        return np.asarray(rays.crop(image), np.float64) / (2.0 * per_batch)  # each pair twice

    with progress.stage("sensitivity", per_batch * N_BATCHES, "LORs") as stage:
        return np.stack(run_in_threads(work, range(N_BATCHES), threads))


def _steps(n: int) -> F64:
    """Give the steps of the Kronecker sequence: powers of the root of ``x**(n+1) = x + 1``."""
    root = 1.5
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (n + 1))
    return root ** -np.arange(1.0, n + 1)


def _ring_draw(table: RingTable) -> Draw:
    """Draw pairs of a scanner with equal rings: accepted ones alone."""
    n_around = table.fan.shape[0]
    place, other = (i.astype(np.int64) for i in np.nonzero(table.fan))
    start = np.concatenate(([0], np.cumsum(np.bincount(place, minlength=n_around))))
    crystal = table.crystal.astype(np.uint32).ravel()
    step = _steps(4)

    def draw(number: int, n: int, shift: F64) -> tuple[U32, U32, F64]:
        a, b, weight = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n)
        _kernels.draw_pairs(
            number, shift, step, table.row_low, table.row_count, start, other, n_around, a, b,
            weight,
        )  # fmt: skip
        return crystal[a], crystal[b], weight

    return draw


def _free_draw(scanner: Scanner) -> Draw:
    """Draw pairs of any scanner uniformly; pairs that are not accepted get no weight."""
    step = _steps(2)
    n_crystals = scanner.n_crystals

    def draw(number: int, n: int, shift: F64) -> tuple[U32, U32, F64]:
        u = (shift[:2] + (number + np.arange(n))[:, None] * step) % 1.0
        a, b = np.minimum(u * n_crystals, n_crystals - 1).astype(np.uint32).T
        good = scanner.accepts(a, b) & (a != b)
        b = np.where(a == b, (a + 1) % n_crystals, b).astype(np.uint32)
        return np.ascontiguousarray(a), b, np.where(good, float(n_crystals) ** 2, 0.0)

    return draw
