"""Statistics of classifiers: ranks, errors, calibration, intervals by patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from listmode.errors import InputError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def _checked(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.bool_], F64]:
    truth, score = np.asarray(y) > 0, np.asarray(p, dtype=np.float64)
    if truth.all() or not truth.any():
        raise InputError(
            "a classifier is judged on both classes, but the cases hold only "
            f"{'malignant' if truth.size and truth.all() else 'benign'} hotspots; give both"
        )
    return truth, score


def auc(y: ArrayLike, p: ArrayLike) -> float:
    """Give the area under the ROC curve: how often a malignant case scores above a benign one.

    Hanley & McNeil, 1982, 10.1148/radiology.143.1.7063747; ties count one half.

    Raises
    ------
    InputError
        If only one class is there.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9])
    0.875
    """
    truth, score = _checked(y, p)
    from scipy.stats import rankdata  # here, because every command would wait for it

    rank = rankdata(score)
    n1 = int(truth.sum())
    n0 = truth.size - n1
    return float((rank[truth].sum() - n1 * (n1 + 1) / 2.0) / (n1 * n0))


def roc(y: ArrayLike, p: ArrayLike) -> tuple[F64, F64, F64]:
    """Give the ROC curve.

    Returns
    -------
    tuple
        1 - specificity, sensitivity and threshold of each point, thresholds falling; a case is
        called malignant at or above a threshold. Shape (n_points,) each, float64.

    Raises
    ------
    InputError
        If only one class is there.
    """
    truth, score = _checked(y, p)
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))
    hits = np.cumsum(truth[order])[last] / truth.sum()
    alarms = np.cumsum(~truth[order])[last] / (~truth).sum()
    start = np.zeros(1)
    return (
        np.concatenate((start, alarms)),
        np.concatenate((start, hits)),
        np.concatenate(([np.inf], score[order][last])),
    )


def youden_threshold(y: ArrayLike, p: ArrayLike) -> float:
    """Give the threshold with the largest sensitivity + specificity - 1 (Youden, 1950).

    Raises
    ------
    InputError
        If only one class is there.
    """
    alarms, hits, threshold = roc(y, p)
    return float(threshold[1 + int(np.argmax((hits - alarms)[1:]))])


@dataclass(frozen=True)
class Rates:
    """Sensitivity, specificity and accuracy at a threshold."""

    sensitivity: float
    specificity: float
    accuracy: float


def rates(y: ArrayLike, is_called: ArrayLike) -> Rates:
    """Compare calls with the truth.

    Raises
    ------
    InputError
        If only one class is there.
    """
    truth, called = _checked(y, is_called)
    right = (called > 0) == truth
    return Rates(float(right[truth].mean()), float(right[~truth].mean()), float(right.mean()))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def patient_bootstrap_auc_gain(
    y: ArrayLike,
    p_base: ArrayLike,
    p_other: ArrayLike,
    patient: ArrayLike,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Give the gain in AUC with its interval by drawing whole patients with replacement.

    Hotspots of a patient are no independent cases, so patients are drawn, not hotspots (Field &
    Welsh, 2007, 10.1111/j.1467-9868.2007.00593.x). Percentile interval.

    Parameters
    ----------
    y, p_base, p_other, patient
        Truth, two scores, and whose hotspot it is. Shape (n,) each.

    Raises
    ------
    InputError
        If only one class is there.
    """
    truth, base = _checked(y, p_base)
    _, other = _checked(y, p_other)
    _, owner = np.unique(np.asarray(patient), return_inverse=True)
    n = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    first, second = _Ranked(truth, base), _Ranked(truth, other)
    gains = []
    for _ in range(n_draws):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[owner]
        if weight[truth].any() and weight[~truth].any():
            gains.append(second.auc(weight) - first.auc(weight))
    low, high = np.quantile(gains, (0.025, 0.975))
    return Interval(auc(truth, other) - auc(truth, base), float(low), float(high))


class _Ranked:
    """Scores sorted once, for many weighted AUCs."""

    def __init__(self, truth: NDArray[np.bool_], score: F64) -> None:
        self._order = np.argsort(score, kind="stable")
        ranked = score[self._order]
        self._level = np.concatenate(([0], np.cumsum(ranked[1:] > ranked[:-1])))
        self._truth = truth[self._order]

    def auc(self, weight: I64) -> float:
        w = weight[self._order].astype(np.float64)
        up = np.bincount(self._level, w * self._truth)
        down = np.bincount(self._level, w * ~self._truth)
        below = np.cumsum(down) - down / 2.0
        return float((up * below).sum() / (up.sum() * down.sum()))


def nadeau_bengio(gains: ArrayLike, n_train: float, n_test: float) -> tuple[float, float]:
    """Test whether gains over repeated folds differ from zero, correcting for shared training.

    Nadeau & Bengio, 2003, 10.1023/A:1024068626366: ``t = mean(d) / sqrt(var(d) (1/n +
    n_test/n_train))`` with n - 1 degrees of freedom.

    Returns
    -------
    tuple
        t and its two-sided p.
    """
    d = np.asarray(gains, dtype=np.float64)
    variance = d.var(ddof=1) * (1.0 / d.size + n_test / n_train)
    if not variance > 0.0:
        return (0.0, 1.0) if d.mean() == 0.0 else (float(np.copysign(np.inf, d.mean())), 0.0)
    t = float(d.mean() / np.sqrt(variance))
    return t, float(2.0 * special.stdtr(d.size - 1, -abs(t)))


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Brier score (mean squared error), and slope and intercept of the logistic regression of the
    truth on the log odds: 1 and 0 when calibrated (Cox, 1958, 10.2307/2333203).
    """

    brier: float
    slope: float
    intercept: float


def calibrate(y: ArrayLike, p: ArrayLike) -> Calibration:
    """Measure calibration; probabilities are clipped to 0.001-0.999 for the log odds.

    Raises
    ------
    InputError
        If only one class is there.
    """
    truth, probability = _checked(y, p)
    x = special.logit(np.clip(probability, 1e-3, 1.0 - 1e-3))
    design = np.stack((np.ones_like(x), x), axis=1)
    beta = np.array([0.0, 1.0])
    for _ in range(50):  # Newton; the tiny ridge keeps a perfect separation finite
        fit = special.expit(design @ beta)
        gradient = design.T @ (truth - fit)
        hessian = (design.T * (fit * (1.0 - fit))) @ design + 1e-9 * np.eye(2)
        step = np.clip(np.linalg.solve(hessian, gradient), -5.0, 5.0)
        beta = np.clip(beta + step, -50.0, 50.0)
        if np.abs(step).max() < 1e-10:
            break
    brier = float(((probability - truth) ** 2).mean())
    return Calibration(brier, float(beta[1]), float(beta[0]))


def reliability(
    y: ArrayLike, p: ArrayLike, patient: ArrayLike, *, n_bins: int = 8, seed: int = 0
) -> dict[str, F64]:
    """Give the reliability curve with intervals by drawing whole patients (500 draws).

    Returns
    -------
    dict
        ``predicted`` and ``observed`` mean of each bin of equal size, ``low`` and ``high`` of
        the observed share, ``n`` cases. Shape (n_bins,) each, float64.
    """
    truth, probability = _checked(y, p)
    _, owner = np.unique(np.asarray(patient), return_inverse=True)
    n_bins = min(n_bins, truth.size)
    rank = np.argsort(np.argsort(probability, kind="stable"), kind="stable")
    bin_ = (rank * n_bins // truth.size).astype(np.int64)
    n = np.bincount(bin_, minlength=n_bins).astype(np.float64)
    rng = np.random.default_rng(seed)
    draws = np.full((500, n_bins), np.nan)
    for k in range(500):
        weight = np.bincount(
            rng.integers(0, owner.max() + 1, owner.max() + 1), minlength=owner.max() + 1
        )[owner]
        total = np.bincount(bin_, weight, n_bins)
        hit = np.bincount(bin_, weight * truth, n_bins)
        draws[k] = np.divide(hit, total, out=np.full(n_bins, np.nan), where=total > 0)
    low, high = np.nanquantile(draws, (0.025, 0.975), axis=0)
    return {
        "predicted": np.bincount(bin_, probability, n_bins) / n,
        "observed": np.bincount(bin_, truth, n_bins) / n,
        "low": low,
        "high": high,
        "n": n,
    }


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Give the agreement of two readers beyond chance (Cohen, 1960).

    10.1177/001316446002000104. Cases that either left open (-1) do not count.

    Raises
    ------
    InputError
        If no case has both labels.

    Examples
    --------
    >>> cohen_kappa([1, 1, 0, 0], [1, 0, 0, 0])
    0.5
    """
    a, b = np.asarray(first), np.asarray(second)
    both = (a >= 0) & (b >= 0)
    if not both.any():
        raise InputError(
            "agreement needs cases that both readers labelled, but there is none; fill in "
            "reader_1 and reader_2"
        )
    a, b = a[both] > 0, b[both] > 0
    agreed = float((a == b).mean())
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return 1.0 if chance == 1.0 else (agreed - chance) / (1.0 - chance)


def reclassify(
    y: ArrayLike, base: ArrayLike, other: ArrayLike, tissue: ArrayLike
) -> dict[str, Any]:
    """Count the calls that change from one classifier to another, by class and tissue.

    Returns
    -------
    dict
        ``changed`` (share of all), ``nri`` (net reclassification improvement: Pencina et al.,
        2008, 10.1002/sim.2929) and ``table``: rows of tissue, truth, from, to, n.
    """
    truth, a, b = np.asarray(y) > 0, np.asarray(base) > 0, np.asarray(other) > 0
    what = np.asarray(tissue)
    names = {True: "malignant", False: "benign"}
    table = [
        {
            "tissue": str(t),
            "truth": names[is_malignant],
            "from": names[was],
            "to": names[not was],
            "n": int(((what == t) & (truth == is_malignant) & (a == was) & (b != was)).sum()),
        }
        for t in np.unique(what)
        for is_malignant in (True, False)
        for was in (True, False)
    ]
    up, down = b & ~a, a & ~b
    nri = up[truth].mean() - down[truth].mean() + down[~truth].mean() - up[~truth].mean()
    return {"changed": float((a != b).mean()), "nri": float(nri), "table": table}
