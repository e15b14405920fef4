"""Interpolation along one axis, from which volumes are brought onto other grids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def resample_axis(
    values: NDArray[Any],
    axis: int,
    at: NDArray[np.float64],
    inside: NDArray[np.bool_],
    *,
    is_label: bool,
) -> NDArray[Any]:
    """Interpolate along one axis.

    Parameters
    ----------
    values
        Three-dimensional.
    axis
        Along which.
    at
        Fractional indices. Shape (n,), float64.
    inside
        Where the result is not zero. Shape (n,), bool.
    is_label
        Take the nearest voxel and mix none.

    Returns
    -------
    ndarray
        As ``values``, with n voxels along the axis.
    """
    last = values.shape[axis] - 1
    at = np.clip(at, 0, last)
    shape = [1, 1, 1]
    shape[axis] = at.size
    if is_label:
        nearest = np.minimum(np.floor(at + 0.5).astype(np.intp), last)
        return np.where(inside.reshape(shape), values.take(nearest, axis), 0)
    left = np.floor(at).astype(np.intp)
    weight = (at - left).astype(np.float32).reshape(shape)
    right = np.minimum(left + 1, last)
    mixed = values.take(left, axis) * (1 - weight) + values.take(right, axis) * weight
    return np.where(inside.reshape(shape), mixed, np.float32(0))
