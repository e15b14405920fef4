from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon.hotspots.shape import _mesh, measure_shape


def voxels(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.argwhere(mask).astype(np.int64)


def test_one_voxel_is_an_octahedron() -> None:
    shape = measure_shape(np.array([[3, 4, 5]]), (2.0, 2.0, 2.0))
    assert shape.mesh_volume_ml == pytest.approx(8.0 / 6.0 / 1000.0)
    assert shape.surface_mm2 == pytest.approx(8 * math.sqrt(3) / 4 * 2.0)  # edges sqrt(2) mm
    assert shape.max_diameter_mm == pytest.approx(2.0)


@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_mesh_is_closed_and_turns_one_way(seed: int, density: float) -> None:
    """Every edge is walked as often in one direction as in the other, whatever the voxels."""
    mask = np.random.default_rng(seed).random((4, 5, 4)) < density
    mask[2, 2, 2] = True
    edges: Counter[tuple[tuple[float, ...], tuple[float, ...]]] = Counter()
    for triangle in _mesh(voxels(mask)):
        points = [tuple(p) for p in triangle.tolist()]
        for k in range(3):
            edges[points[k], points[(k + 1) % 3]] += 1
    assert all(edges[b, a] == n for (a, b), n in edges.items())


@given(st.integers(0, 10**6), st.tuples(*[st.integers(-5, 5)] * 3))
@settings(max_examples=30, deadline=None)
def test_shape_does_not_depend_on_the_place(seed: int, shift: tuple[int, ...]) -> None:
    mask = np.random.default_rng(seed).random((4, 5, 4)) < 0.5
    mask[2, 2, 2] = True
    here = measure_shape(voxels(mask), (2.0, 3.0, 4.0))
    there = measure_shape(voxels(mask) + np.array(shift), (2.0, 3.0, 4.0))
    assert here.surface_mm2 == pytest.approx(there.surface_mm2)
    assert here.mesh_volume_ml == pytest.approx(there.mesh_volume_ml)


def test_ball_has_the_volume_of_a_ball() -> None:
    """A voxel mesh has stairs: its volume converges, its surface stays about 8 % too large."""
    grid = np.stack(np.meshgrid(*[np.arange(-22, 23)] * 3, indexing="ij"), axis=-1)
    shape = measure_shape(voxels((grid**2).sum(axis=-1) <= 20**2), (1.0, 1.0, 1.0))
    assert shape.mesh_volume_ml == pytest.approx(4 / 3 * math.pi * 20**3 / 1000, rel=0.01)
    assert shape.surface_mm2 == pytest.approx(1.08 * 4 * math.pi * 20**2, rel=0.02)
    assert shape.max_diameter_mm == pytest.approx(41.0)
