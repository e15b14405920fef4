"""Which found hotspot is which true focus, for simulated patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError


def match_foci(
    found_mm: ArrayLike, true_mm: ArrayLike, reach_mm: ArrayLike
) -> NDArray[np.int64]:
    """Give each true focus the found hotspot that stands for it.

    Hotspots choose in their order, hottest first: each takes the nearest focus within that
    focus's reach that no hotter one has taken. A second image of a focus that moved is thus
    left over.

    Parameters
    ----------
    found_mm
        Hottest point of each hotspot, hottest hotspot first. Shape (n_found, 3), mm.
    true_mm
        Centre of each focus, in each pose that the image was made from.
        Shape (n_true, n_poses, 3), mm.
    reach_mm
        How far from its centre a focus may be found. Shape (n_true,), mm.

    Returns
    -------
    ndarray
        Row of the hotspot of each focus, -1 where it was missed. Shape (n_true,), int64.

    Raises
    ------
    InputError
        If the shapes do not fit one another.

    Examples
    --------
    >>> match_foci([[0.0, 0, 1], [0, 0, 9]], [[[0.0, 0, 0]]], [5.0]).tolist()
    [0]
    """
    found = np.asarray(found_mm, dtype=np.float64).reshape(-1, 3)
    true = np.asarray(true_mm, dtype=np.float64)
    reach = np.asarray(reach_mm, dtype=np.float64)
    if true.ndim != 3 or true.shape[2] != 3 or reach.shape != true.shape[:1]:
        raise InputError(
            "true foci must have shape (n_true, n_poses, 3) and a reach each, but they have "
            f"{true.shape} and {reach.shape}; give one centre a pose"
        )
    match = np.full(len(true), -1, dtype=np.int64)
    if not true.size:
        return match
    for row, point in enumerate(found):
        distance = np.linalg.norm(true - point, axis=2).min(axis=1)
        distance[(distance > reach) | (match >= 0)] = np.inf
        nearest = int(np.argmin(distance))
        if np.isfinite(distance[nearest]):
            match[nearest] = row
    return match
