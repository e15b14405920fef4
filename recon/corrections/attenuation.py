"""Attenuation of 511 keV photon pairs, traced through a mu-map."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.scanner import Scanner, TofModel
from recon.corrections import _kernels
from recon.corrections.normalisation import stopping_length
from recon.image import Grid, Volume
from recon.projector import RayModel, Real, project, run_in_threads

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NO_TOF = TofModel(1, 1.0, math.inf)
N_DIRECTIONS = 64
LINES_A_VOXEL = 2  # of the mu-map, along each axis: what lies between is interpolated
SOFT_MM = 60.0  # width of the detector's ends for the mean over directions: no direction jumps
DENSEST_PER_CM = 2.0  # gold has 2.9, titanium 0.37; a larger value is no mu-map in 1/cm


def check_mu(mu: Volume) -> None:
    """Refuse a volume that cannot be a map of attenuation at 511 keV.

    Raises
    ------
    InputError
        If the unit is not 1/cm, a value is impossible, or there is no matter in it.
    """
    low, high = float(mu.values.min()), float(mu.values.max())
    if mu.unit != "1/cm":
        raise InputError(
            f"a mu-map must be in 1/cm at 511 keV, but this volume is in {mu.unit!r}; "
            "convert it"
        )
    if low < 0 or high > DENSEST_PER_CM:
        raise InputError(
            f"a mu-map must lie between 0 and {DENSEST_PER_CM:g} per cm (water: 0.096), but "
            f"this one runs from {low:g} to {high:g}; convert it to 1/cm at 511 keV"
        )
    if high == 0:
        raise InputError(
            "a mu-map must hold some matter, but every voxel of this one is 0; "
            "leave it out to reconstruct without attenuation"
        )


def cut_to_matter(mu: Volume) -> tuple[F32, Grid]:
    """Cut the empty margin off a mu-map; rays through air cost time and change nothing."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mu.values.any(axis=tuple(k for k in range(3) if k != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    values = np.ascontiguousarray(mu.values[tuple(box)], np.float32)
    origin = mu.grid.point_mm([part.start for part in box])
    grid = Grid(values.shape, mu.grid.voxel_mm, (origin[0], origin[1], origin[2]))
    return values, grid


def mu_rays(mu: Volume, scanner: Scanner) -> tuple[RayModel, Real]:
    """Prepare a mu-map for ray kernels: the ray model and the padded map, 1/mm."""
    check_mu(mu)
    values, grid = cut_to_matter(mu)
    rays = RayModel.make(grid, scanner, bins=NO_TOF)
    return rays, rays.pad(values * np.float32(0.1))


def attenuation_factors(
    mu: Volume,
    scanner: Scanner,
    crystal_a: NDArray[np.integer],
    crystal_b: NDArray[np.integer],
    *,
    threads: int = 2,
) -> F32:
    """Give the share of photon pairs that reach both crystals.

    Parameters
    ----------
    mu
        Linear attenuation at 511 keV, 1/cm, on any grid of the scanner frame.
    crystal_a, crystal_b
        Crystal numbers in any order. Shape (n,).

    Returns
    -------
    ndarray
        ``exp(-integral of mu)`` along each LOR. Shape (n,), float32.

    Raises
    ------
    InputError
        If the volume is no mu-map.
    """
    rays, padded = mu_rays(mu, scanner)
    a = np.ascontiguousarray(crystal_a, np.uint32)
    b = np.ascontiguousarray(crystal_b, np.uint32)
    integral = project(rays, padded, a, b, np.zeros(len(a), np.int16), threads)
    return np.exp(-integral, dtype=np.float32)


def mean_survival(
    mu: Volume,
    scanner: Scanner,
    grid: Grid,
    *,
    scanner_from_grid: F64 | None = None,
    n_directions: int = N_DIRECTIONS,
    threads: int = 2,
) -> F32:
    """Give the share of photon pairs from each voxel's centre that get out, by principal axis.

    A mean over directions, weighted by what crystals stop of each and by whether the detector
    has crystals there. A pair's survival is that of its line, so the lines of a direction are
    traced once and read at each point. The mean changes within a centimetre of a surface,
    where a sensitivity image sampled on a coarse grid cannot follow.

    Parameters
    ----------
    mu
        Linear attenuation at 511 keV, 1/cm.
    scanner
        Where it stands itself: rings along z.
    grid
        Where to compute it, in the frame of the mu-map.
    scanner_from_grid
        From that frame to the scanner's. Shape (4, 4), mm; the identity if ``None``.
    n_directions
        Directions, spread evenly by a golden spiral (Swinbank, Purser 2006, doi
        10.1256/qj.05.227).

    Returns
    -------
    ndarray
        The shares of the directions whose largest component lies along x, y and z; their sum
        is the mean survival. Shape (nx, ny, nz, 3), float32. The same bits at any number of
        threads.
    """
    check_mu(mu)
    values, own = cut_to_matter(mu)
    nx, ny, nz = own.shape
    x, y, z = own.point_mm([-1] * 3).tolist()
    own = Grid((nx + 2, ny + 2, nz + 2), own.voxel_mm, (x, y, z))
    move = np.eye(4) if scanner_from_grid is None else scanner_from_grid
    number = np.arange(n_directions) + 0.5
    cos = number / n_directions  # a pair leaves both ways: half of the sphere
    phi = number * math.pi * (1.0 + math.sqrt(5.0))
    sin = np.sqrt(1.0 - cos**2)
    way_det = np.stack((sin * np.cos(phi), sin * np.sin(phi), cos), axis=1)
    way = way_det @ move[:3, :3]  # the transpose of a turn is its inverse
    stop = -np.expm1(-stopping_length(scanner) / np.maximum(sin, 1e-3))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    point = grid.point_mm(index.reshape(-1, 3))
    xyz = scanner.crystal_position_mm.astype(np.float64)
    pitch_mm = scanner.crystal_pitch_mm[1]
    matter = np.pad(values * np.float32(0.1), 1)
    place = np.ascontiguousarray(own.voxel_index(point))
    place_det = np.ascontiguousarray(point @ move[:3, :3].T + move[:3, 3])
    detector = (
        float(np.hypot(xyz[:, 0], xyz[:, 1]).mean()),
        float(np.ptp(xyz[:, 2]) + pitch_mm) / 2.0,
        (scanner.max_ring_difference + 0.5) * pitch_mm,
        SOFT_MM,
    )
    principal = np.argmax(np.abs(way / grid.voxel_mm), axis=1)
    part, norm = np.zeros((3, len(point))), np.zeros(len(point))
    edges = np.linspace(0, len(point), 8 * max(threads, 1) + 1).astype(np.int64).tolist()
    for m in range(n_directions):
        lines, table = _parallel_lines(matter, way[m] / own.voxel_mm, threads)
        direction = (way_det[m], stop[m] ** 2, *detector)
        sums = (part[principal[m]], norm)
        before = (table, *lines, place, place_det, *direction)

        def add(ends: tuple[int, int], before: Any = before, sums: Any = sums) -> None:
            given: Any = (*before, *ends, *sums)
            _kernels.add_survival(*given)

        run_in_threads(add, list(pairwise(edges)), threads)
    out = np.ascontiguousarray((part / norm).T, np.float32)
    return out.reshape(*grid.shape, 3)


def _parallel_lines(
    matter: F32, way: F64, threads: int
) -> tuple[tuple[int, float, float, float, float, float, float], F64]:
    """Integrate mu along all lines of one direction: a pair's survival is that of its line.

    Parameters
    ----------
    matter
        mu, 1/mm, with a border of zeros.
    way
        Direction, voxels per mm. Shape (3,).

    Returns
    -------
    lines
        Principal axis, slopes along the two others, where the first line crosses plane 0,
        lines a voxel, and mm from plane to plane.
    table
        Sums of mu over the planes of each line.
    """
    axis = int(np.argmax(np.abs(way)))
    slope = np.delete(way, axis) / way[axis]
    drift = -slope * (matter.shape[axis] - 1)
    size = np.delete(np.array(matter.shape), axis) - 1.0
    low = np.minimum(drift, 0.0) - 1.0
    shape = np.ceil((size + np.maximum(drift, 0.0) + 1.0 - low) * LINES_A_VOXEL).astype(int) + 1
    table = np.empty(tuple(shape.tolist()))
    lines = (*slope.tolist(), *low.tolist(), float(LINES_A_VOXEL))
    edges = np.linspace(0, len(table), 4 * max(threads, 1) + 1).astype(int).tolist()

    def work(rows: tuple[int, int]) -> None:
        given = (matter, axis, *lines, *rows, table)
        _kernels.parallel_lines(*given)

    run_in_threads(work, list(pairwise(edges)), threads)
    return (axis, *lines, float(1.0 / abs(way[axis]))), table
