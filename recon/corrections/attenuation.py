"""Attenuation of 511 keV photon pairs, traced through a mu-map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.scanner import Scanner, TofModel
from recon.image import Grid, Volume
from recon.projector import RayModel, Real, project

F32 = NDArray[np.float32]

NO_TOF = TofModel(1, 1.0, math.inf)
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
