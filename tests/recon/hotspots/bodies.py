"""Bodies for tests: smooth, symmetric about a tilted plane, with organs that are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon.image import Grid, Volume

F64 = NDArray[np.float64]

GRID = Grid.centred((100, 70, 120), 4.0)


BLOCK_GRID = Grid.centred((40, 20, 40), 5.0)
BLOCK_NAMES = {
    1: "hip_left",
    2: "hip_right",
    3: "prostate",
    4: "urinary_bladder",
    5: "lymph_node_common_iliac_left",
    6: "muscle",
}
_BLOCKS = {1: (26, 8), 2: (10, 8), 3: (18, 4), 4: (18, 12), 5: (26, 24), 6: (10, 24)}
_UPTAKE = {1: 8.0, 2: 1.1, 3: 14.0, 4: 30.0, 5: 6.0, 6: 5.0}


def blocks() -> tuple[Volume, Volume]:
    """A patient of blocks of 20 mm in SUV, and the label map of them."""
    labels = np.zeros(BLOCK_GRID.shape, np.int32)
    suv = np.full(BLOCK_GRID.shape, 0.5, np.float32)
    for value, (x, z) in _BLOCKS.items():
        block = (slice(x, x + 4), slice(8, 12), slice(z, z + 4))
        labels[block] = value
        suv[block] = _UPTAKE[value]
    return Volume(suv, BLOCK_GRID, "SUV"), Volume(labels, BLOCK_GRID, "label")


def plane_coordinates(grid: Grid, about_z: float, about_y: float, offset_mm: float) -> F64:
    """Coordinates (u, v, w) of each voxel: u from the plane, in a body turned about z and y."""
    points = np.stack(np.meshgrid(*(grid.axis_mm(k) for k in range(3)), indexing="ij"), axis=-1)
    cz, sz, cy, sy = np.cos(about_z), np.sin(about_z), np.cos(about_y), np.sin(about_y)
    u = np.array([cz * cy, sz * cy, sy])
    v = np.array([-sz, cz, 0.0])
    w = np.cross(u, v)
    axes = np.stack((u, v, w), axis=1)
    return np.asarray(points @ axes - [offset_mm, 0.0, 0.0])


def ball(at: F64, centre: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    return np.asarray(((at - np.array(centre)) ** 2).sum(axis=-1) <= radius**2)


def body(
    about_z: float = 0.0,
    about_y: float = 0.0,
    offset_mm: float = 0.0,
    *,
    seed: int | None = None,
) -> tuple[Volume, F64]:
    """A torso with kidneys, hips and a liver on one side, SUV; and its own coordinates."""
    at = plane_coordinates(GRID, about_z, about_y, offset_mm)
    u, v, w = at[..., 0], at[..., 1], at[..., 2]
    inside = (u / 160) ** 2 + (v / 100) ** 2 + (w / 220) ** 2 <= 1
    suv = 0.7 * inside
    for side in (-1, 1):
        suv[ball(at, (side * 60, 30, 40), 30)] = 2.5  # kidneys
        suv[ball(at, (side * 90, 10, -120), 35)] = 1.3  # hips
    suv[ball(at, (-80, -10, 90), 55)] = 2.0  # liver: on the right only
    suv[ball(at, (0, -30, -140), 30)] = 20.0  # bladder
    if seed is not None:
        suv = suv * (1 + 0.15 * np.random.default_rng(seed).standard_normal(suv.shape))
    return Volume(suv.astype(np.float32), GRID, "SUV"), at
