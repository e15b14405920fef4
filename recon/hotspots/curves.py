"""Curves with bands that come from drawing whole patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recon.hotspots import statistics

F64 = NDArray[np.float64]


def roc_band(
    y: ArrayLike,
    p: ArrayLike,
    patient: ArrayLike,
    *,
    n_points: int = 101,
    n_draws: int = 500,
    seed: int = 0,
) -> dict[str, F64]:
    """Give the pointwise 95 % band of a ROC curve, drawing whole patients with replacement.

    Parameters
    ----------
    y, p, patient
        Truth, score and whose hotspot it is. Shape (n,) each.
    n_points
        Values of 1 - specificity, evenly from 0 to 1.
    n_draws, seed
        Of the bootstrap; draws that lack a class do not count.

    Returns
    -------
    dict
        ``false_positive``, and ``low`` and ``high`` of the sensitivity there (the highest that
        the curve reaches). Shape (n_points,) each, float64.

    Raises
    ------
    InputError
        If only one class is there.

    Notes
    -----
    The bootstrap of whole patients: Field & Welsh, 2007, 10.1111/j.1467-9868.2007.00593.x.
    """
    truth = np.asarray(y) > 0
    statistics.auc(truth, p)  # refuses one class
    _, owner = np.unique(np.asarray(patient), return_inverse=True)
    n = int(owner.max()) + 1
    order = np.argsort(-np.asarray(p, dtype=np.float64), kind="stable")
    ranked = np.asarray(p, dtype=np.float64)[order]
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # ties move together
    grid = np.linspace(0.0, 1.0, n_points)
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(n_draws):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[owner[order]]
        hits = np.cumsum(weight * truth[order])[last]
        alarms = np.cumsum(weight * ~truth[order])[last]
        if hits[-1] and alarms[-1]:
            curves.append(_sensitivity_at(grid, alarms / alarms[-1], hits / hits[-1]))
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return {"false_positive": grid, "low": low, "high": high}


def _sensitivity_at(grid: F64, alarms: F64, hits: F64) -> F64:
    """Read the staircase of a ROC curve: the highest sensitivity at each 1 - specificity."""
    k = np.searchsorted(alarms, grid + 1e-12, side="right")
    return np.concatenate(([0.0], hits))[k]
