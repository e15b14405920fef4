"""Compiled loops of the relative difference prior over the 26 neighbours of a voxel.

Neighbours outside of the image do not count. ``weight[0, 0, 0]`` is not used;
``weight[a, b, c]`` belongs to the neighbours ``±a, ±b, ±c`` voxels away. Inner loops run along
z, where memory is contiguous.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def prior_slopes(image, kappa, weight, gamma, epsilon, start, stop, slope, curvature):
    """Write gradient and diagonal of the Hessian for the planes ``[start, stop)`` along x."""
    nx, ny, nz = image.shape
    two, three = image.dtype.type(2), image.dtype.type(3)
    for x in range(start, stop):
        for y in range(ny):
            slope[x, y] = 0
            curvature[x, y] = 0
            for dx in range(-1, 2):
                for dy in range(-1, 2):
                    i, j = x + dx, y + dy
                    if i < 0 or i >= nx or j < 0 or j >= ny:
                        continue
                    for dz in range(-1, 2):
                        if dx == 0 and dy == 0 and dz == 0:
                            continue
                        w = weight[abs(dx), abs(dy), abs(dz)]
                        for z in range(max(0, -dz), nz - max(0, dz)):
                            a, b = image[x, y, z], image[i, j, z + dz]
                            change = a - b
                            reach = gamma * abs(change)
                            share = image.dtype.type(1) / (a + b + reach + epsilon)
                            both = w * kappa[i, j, z + dz] * share * share
                            slope[x, y, z] += (
                                both * change * (reach + a + three * b + two * epsilon)
                            )
                            near = two * b + epsilon
                            curvature[x, y, z] += two * both * share * near * near
            for z in range(nz):
                slope[x, y, z] *= kappa[x, y, z]
                curvature[x, y, z] *= kappa[x, y, z]


@njit(cache=True, nogil=True, error_model="numpy")
def prior_value(image, kappa, weight, gamma, epsilon, start, stop):
    """Give the sum over pairs whose voxel of lower number lies in planes ``[start, stop)``."""
    nx, ny, nz = image.shape
    total = 0.0
    for x in range(start, stop):
        for y in range(ny):
            for dx in range(2):
                for dy in range(-1 if dx else 0, 2):
                    i, j = x + dx, y + dy
                    if i >= nx or j < 0 or j >= ny:
                        continue
                    for dz in range(-1 if dx or dy else 1, 2):
                        w = weight[abs(dx), abs(dy), abs(dz)]
                        for z in range(max(0, -dz), nz - max(0, dz)):
                            a, b = np.float64(image[x, y, z]), np.float64(image[i, j, z + dz])
                            pair = kappa[x, y, z] * kappa[i, j, z + dz] * w
                            change = a - b
                            total += (
                                pair * change * change / (a + b + gamma * abs(change) + epsilon)
                            )
    return total
