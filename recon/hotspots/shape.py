"""The shape of a hotspot: a mesh about its voxels, its surface, volume and extent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

F64 = NDArray[np.float64]

_CORNERS = tuple(product((0, 1), repeat=3))


@dataclass(frozen=True)
class Shape:
    """Shape of a region, from a mesh half-way between its voxels and those outside.

    Parameters
    ----------
    surface_mm2, mesh_volume_ml
        Of the mesh.
    sphericity
        ``(36 pi V^2)^(1/3) / A``: 1 for a ball, less for anything else.
    max_diameter_mm
        Largest distance between two points of the mesh.
    """

    surface_mm2: float
    mesh_volume_ml: float
    sphericity: float
    max_diameter_mm: float


def measure_shape(index: NDArray[np.int64], voxel_mm: tuple[float, float, float]) -> Shape:
    """Measure the shape of a set of voxels.

    Parameters
    ----------
    index
        Voxels of the region, at least one. Shape (n, 3), int64.
    voxel_mm
        Voxel size, mm.

    Notes
    -----
    Definitions: IBSI reference manual (Zwanenburg et al., 10.48550/arXiv.1612.07003), section
    "Morphological features". The mesh is that of marching cubes (Lorensen & Cline, 1987,
    10.1145/37401.37422) at one half; on a cube's face with two opposite corners inside, those
    two stay apart.
    """
    triangles = _mesh(index) * np.asarray(voxel_mm)
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    surface = float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2.0)
    volume = abs(float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0))
    vertices = np.unique(triangles.reshape(-1, 3), axis=0)
    hull = vertices[ConvexHull(vertices).vertices]
    return Shape(
        surface_mm2=surface,
        mesh_volume_ml=volume / 1000.0,
        sphericity=(36.0 * np.pi * volume**2) ** (1.0 / 3.0) / surface,
        max_diameter_mm=float(pdist(hull).max()),
    )


def _mesh(index: NDArray[np.int64]) -> F64:
    """Give the triangles about a region, in voxels. Shape (n_triangles, 3, 3), float64."""
    low = index.min(axis=0)
    inside = np.zeros(index.max(axis=0) - low + 3, np.uint8)
    inside[tuple((index - low + 1).T)] = 1
    n = np.array(inside.shape) - 1
    kind = np.zeros(tuple(n), np.int64)
    for bit, (i, j, k) in enumerate(_CORNERS):
        kind |= inside[i : i + n[0], j : j + n[1], k : k + n[2]].astype(np.int64) << bit
    parts = []
    for value in np.unique(kind):
        if 0 < value < 255:
            cubes = np.argwhere(kind == value).astype(np.float64)
            local = _triangles(int(value))
            parts.append((cubes[:, None, None, :] + local[None]).reshape(-1, 3, 3))
    mesh: F64 = np.concatenate(parts) + (low - 1)
    return mesh


@cache
def _triangles(kind: int) -> F64:
    """Mesh one cube whose corner ``bit`` of ``_CORNERS`` is inside where ``kind`` has the bit.

    The boundary of the inside on the cube's faces is a set of closed polygons through the
    middles of its crossed edges; each polygon is cut into a fan of triangles.
    """
    inside = {corner for bit, corner in enumerate(_CORNERS) if kind >> bit & 1}
    faces = product(range(3), (0, 1))
    follows = dict(step for axis, side in faces for step in _steps(axis, side, inside))
    triangles = []
    while follows:
        start, point = follows.popitem()
        polygon = [start]
        while point != start:
            polygon.append(point)
            point = follows.pop(point)
        triangles += [(polygon[0], p, q) for p, q in pairwise(polygon[1:])]
    return np.array(triangles, dtype=np.float64)


_Point = tuple[float, ...]


def _steps(axis: int, side: int, inside: set[tuple[int, ...]]) -> list[tuple[_Point, _Point]]:
    """Walk round one face and join the edges where the inside begins and ends.

    Seen from outside of the cube the corners run counter-clockwise, so every step has the
    inside on the same hand and steps of neighbouring faces follow one another.
    """
    u, v = (axis + 1) % 3, (axis + 2) % 3
    turn = [(0, 0), (1, 0), (1, 1), (0, 1)]
    ring = []
    for a, b in turn if side else turn[::-1]:
        corner = [0, 0, 0]
        corner[axis], corner[u], corner[v] = side, a, b
        ring.append(tuple(corner))
    steps = []
    for k in range(4):
        if ring[k] in inside and ring[k - 1] not in inside:  # the inside begins: find its end
            last = k
            while ring[(last + 1) % 4] in inside:
                last += 1
            begin = _middle(ring[k - 1], ring[k])
            end = _middle(ring[last % 4], ring[(last + 1) % 4])
            steps.append((end, begin))
    return steps


def _middle(a: tuple[int, ...], b: tuple[int, ...]) -> _Point:
    return tuple((p + q) / 2.0 for p, q in zip(a, b, strict=True))
