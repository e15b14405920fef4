"""A small scanner without gaps and water cylinders on it, for the tests of scatter."""

from __future__ import annotations

import math

import numpy as np

from listmode.scanner import BlockLayout, Scanner, TofModel, build_scanner
from recon.image import Grid, Volume

RADIUS_MM, LENGTH_MM = 80.0, 200.0
ACTIVITY_BQ_ML = 1000.0
FRONT_MM, DOI_MM, N_BLOCKS, N_ACROSS, N_RINGS = 300.0, 7.0, 120, 4, 80
PITCH_MM = 2 * FRONT_MM * math.tan(math.pi / N_BLOCKS) / N_ACROSS
TOF = TofModel(33, 143.231, 228.0)


def small_scanner(tof: TofModel = TOF, *, max_ring_difference: int = N_RINGS) -> Scanner:
    return build_scanner(
        name="small",
        layout=BlockLayout(N_BLOCKS, N_ACROSS, 0, 1, N_RINGS, 0, FRONT_MM),
        crystal_size_mm=(PITCH_MM, PITCH_MM, 20.0),
        crystal_pitch_mm=(PITCH_MM, PITCH_MM),
        max_ring_difference=max_ring_difference,
        fov_radius_mm=290.0,
        tof=tof,
        doi_mm=DOI_MM,
    )


def coverage() -> float:
    """Share of the cylinder through the interaction points that cells cover, squared."""
    return (N_BLOCKS * N_ACROSS * PITCH_MM / (2 * math.pi * (FRONT_MM + DOI_MM))) ** 2


def water_cylinder(
    voxel_mm: float = 5.0,
    *,
    radius_mm: float = RADIUS_MM,
    length_mm: float = LENGTH_MM,
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[Volume, Volume]:
    """Make activity and mu of a uniform cylinder, edges averaged over 10 x 10 x 10 points."""
    n = int(2 * radius_mm / voxel_mm) + 4
    nz = int(length_mm / voxel_mm) + 4
    centred = Grid.centred((n, n, nz), voxel_mm)
    ox, oy, oz = (o + d for o, d in zip(centred.origin_mm, offset_mm, strict=True))
    fine = (np.arange(10) + 0.5) / 10 - 0.5
    x = (centred.axis_mm(0)[:, None] + fine * voxel_mm).ravel()
    disc = (np.hypot(x[:, None], x[None, :]) < radius_mm).astype(float)
    disc = disc.reshape(n, 10, n, 10).mean(axis=(1, 3))
    z = (centred.axis_mm(2)[:, None] + fine * voxel_mm).ravel()
    part = (np.abs(z) < length_mm / 2).reshape(nz, 10).mean(axis=1)
    inside = disc[:, :, None] * part
    grid = Grid(centred.shape, centred.voxel_mm, (ox, oy, oz))
    return (
        Volume((inside * ACTIVITY_BQ_ML).astype(np.float32), grid, "Bq/mL"),
        Volume((inside * 0.096).astype(np.float32), grid, "1/cm"),
    )


def cylinder_bq() -> float:
    return ACTIVITY_BQ_ML * math.pi * RADIUS_MM**2 * LENGTH_MM / 1000.0
