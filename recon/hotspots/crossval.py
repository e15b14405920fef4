"""Cross-validation: nested, grouped by patient, everything learnt from training folds alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from recon.hotspots import statistics
from recon.hotspots.cases import Cases
from recon.hotspots.models import (
    CONTEXT_FEATURES,
    DEFAULTS,
    GRIDS,
    OTHERS_FEATURES,
    Encoded,
    Fitted,
    Kind,
    encode,
    fit,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

INNER_TREES = 50  # enough to rank settings; 3 times faster than full forests


@dataclass(frozen=True)
class Plan:
    """How to cross-validate.

    Parameters
    ----------
    n_repeats, n_folds
        Outer folds; each repeat deals anew.
    n_inner
        Inner folds that choose settings and the Youden threshold.
    by_patient
        Whether a patient's hotspots stay together. Without it a patient's other hotspots leak
        into the training: only to show the leakage.
    tune
        Whether to search the grid; else default settings, and 0.5 is the only threshold.
    seed
        Deals folds and grows forests.
    """

    n_repeats: int = 10
    n_folds: int = 5
    n_inner: int = 3
    by_patient: bool = True
    tune: bool = True
    seed: int = 0


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What a classifier said of each case while that case's fold was held out.

    Parameters
    ----------
    probability
        Shape (n_repeats, n_cases), float64.
    called
        Malignant at the Youden threshold of the inner folds (0.5 without tuning).
        Shape (n_repeats, n_cases), bool.
    fold_auc
        AUC in each outer fold, NaN where a fold has one class. Shape (n_repeats, n_folds).
    fold_prevalence
        Share of malignant cases in each fold. Shape (n_repeats, n_folds).
    params
        Chosen settings of each outer fold.
    importance, importance_sd
        Loss of AUC when a feature's values are dealt anew among held-out cases: mean and
        standard deviation over the folds.
    """

    probability: F64
    called: Bool
    fold_auc: F64
    fold_prevalence: F64
    params: tuple[Mapping[str, Any], ...]
    importance: Mapping[str, float]
    importance_sd: Mapping[str, float]

    @property
    def mean_probability(self) -> F64:
        """Mean over the repeats. Shape (n_cases,), float64."""
        return np.asarray(self.probability.mean(axis=0))


def deal_folds(
    y: NDArray[Any], patient: NDArray[Any], n_folds: int, seed: int, *, by_patient: bool
) -> list[tuple[I64, I64]]:
    """Deal cases into folds of like prevalence, patients together or not.

    Raises
    ------
    InputError
        If there are fewer patients, or fewer cases of a class, than folds.

    Notes
    -----
    ``StratifiedGroupKFold(shuffle=True)`` stratifies correctly from scikit-learn 1.9.1 on
    (pull request 32540).
    """
    n_groups = len(np.unique(patient)) if by_patient else len(y)
    fewest = min(int((y > 0).sum()), int((y <= 0).sum()))
    if min(n_groups, fewest) < n_folds:
        raise InputError(
            f"{n_folds} folds need as many {'patients' if by_patient else 'hotspots'} and "
            f"cases of each class, but there are {n_groups} and {fewest} of the rarer class; "
            "use fewer folds or more data"
        )
    if by_patient:
        from sklearn.model_selection import StratifiedGroupKFold

        grouped = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        return list(grouped.split(np.zeros(len(y)), y, patient))
    from sklearn.model_selection import StratifiedKFold

    plain = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return list(plain.split(np.zeros(len(y)), y))


def cross_validate(
    cases: Cases,
    kind: Kind,
    features: Sequence[str],
    plan: Plan,
    *,
    training_labels: NDArray[Any] | None = None,
    n_permutations: int = 0,
    threads: int = 1,
    progress: Progress = SILENT,
) -> OutOfFold:
    """Cross-validate one classifier on one set of features.

    Everything that learns (stand-ins for missing values, scales, settings, thresholds) learns
    from the training folds alone.

    Parameters
    ----------
    cases
        With the consensus label of every case.
    kind, features
        See :mod:`recon.hotspots.models`.
    plan
        Folds.
    training_labels
        Labels to train on, if others than those to judge by (label noise). Shape (n_cases,).
    n_permutations
        How often each feature is dealt anew for its importance; 0 for none.
    threads
        The result does not depend on it.

    Raises
    ------
    InputError
        If labels are missing, only one class is there, or there are too few patients.
    """
    y = checked_truth(cases)
    learn = y if training_labels is None else np.asarray(training_labels)
    encoded = encode(cases, tuple(features))
    jobs = list(_jobs(cases, y, plan))

    def one(job: tuple[int, int, I64, I64]) -> dict[str, Any]:
        repeat, k, train, test = job
        rng = np.random.default_rng((plan.seed, repeat, k))
        seed = int(rng.integers(2**31))
        params, threshold = dict(DEFAULTS[kind]), 0.5
        if plan.tune:
            owner = cases.patient[train]
            params, threshold = _tune(
                kind, encoded.values[train], learn[train], owner, plan, seed, encoded.columns
            )
        model = fit(kind, params, encoded.values[train], learn[train], seed, encoded.columns)
        p = model.predict(encoded.values[test])
        held_out = encoded.values[test]
        importance = _importance(model, encoded, held_out, y[test], n_permutations, rng)
        stage.advance(1)
        return {"p": p, "called": p >= threshold, "params": params, "loss": importance}

    n = len(cases)
    probability = np.zeros((plan.n_repeats, n))
    called = np.zeros((plan.n_repeats, n), dtype=bool)
    fold_auc = np.full((plan.n_repeats, plan.n_folds), np.nan)
    prevalence = np.zeros((plan.n_repeats, plan.n_folds))
    with (
        threadpool_limits(1),
        progress.stage(f"{kind} on {len(features)} features", len(jobs), "folds") as stage,
        ThreadPoolExecutor(threads) as pool,
    ):
        results = list(pool.map(one, jobs))
    for (repeat, k, _, test), result in zip(jobs, results, strict=True):
        probability[repeat, test] = result["p"]
        called[repeat, test] = result["called"]
        prevalence[repeat, k] = y[test].mean()
        if 0 < y[test].sum() < test.size:
            fold_auc[repeat, k] = statistics.auc(y[test], result["p"])
    losses = [r["loss"] for r in results if r["loss"]]
    names = losses[0] if losses else {}
    importance = {name: float(np.mean([loss[name] for loss in losses])) for name in names}
    spread = {name: float(np.std([loss[name] for loss in losses])) for name in names}
    params = tuple(result["params"] for result in results)
    return OutOfFold(probability, called, fold_auc, prevalence, params, importance, spread)


def checked_truth(cases: Cases) -> NDArray[np.int8]:
    """Give the labels if one can learn from them and judge by them.

    Raises
    ------
    InputError
        If a label is missing, only one class is there, or only one patient.
    """
    y = cases.malignant
    if (y < 0).any():
        raise InputError(
            "learning and judging need the label of every hotspot, but row "
            f"{int(np.argmax(y < 0))} has none; fill in column malignant or leave it out"
        )
    if y.all() or not y.any():
        raise InputError(
            "learning and judging need malignant and benign hotspots, but all are "
            f"{'malignant' if y.all() else 'benign'}; add the other class"
        )
    if cases.n_patients < 2:
        raise InputError(
            "learning and judging need several patients, but there is one; a classifier "
            "tested on the patient it was trained on tells nothing: add patients"
        )
    return y


def _jobs(cases: Cases, y: NDArray[np.int8], plan: Plan) -> Iterator[tuple[int, int, I64, I64]]:
    for repeat in range(plan.n_repeats):
        seed = int(np.random.default_rng((plan.seed, repeat)).integers(2**31))
        folds = deal_folds(y, cases.patient, plan.n_folds, seed, by_patient=plan.by_patient)
        for k, (train, test) in enumerate(folds):
            yield repeat, k, train, test


def choose_params(
    cases: Cases, kind: Kind, features: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Choose settings from the grid by folds over patients.

    Raises
    ------
    InputError
        As :func:`cross_validate`.
    """
    y = checked_truth(cases)
    encoded = encode(cases, tuple(features))
    return _tune(kind, encoded.values, y, cases.patient, Plan(), seed, encoded.columns)[0]


def _tune(
    kind: Kind,
    values: F64,
    y: NDArray[Any],
    patient: NDArray[Any],
    plan: Plan,
    seed: int,
    columns: Sequence[str],
) -> tuple[dict[str, Any], float]:
    """Choose settings by the AUC over inner folds, and the Youden threshold of the chosen."""
    folds = deal_folds(y, patient, plan.n_inner, seed, by_patient=plan.by_patient)
    best: tuple[float, dict[str, Any], F64] = (-1.0, {}, np.zeros(0))
    for params in GRIDS[kind]:
        cheap = {**params, "n_trees": INNER_TREES} if "n_trees" in params else params
        p = np.zeros(len(y))
        for train, test in folds:
            model = fit(kind, cheap, values[train], y[train], seed, columns)
            p[test] = model.predict(values[test])
        score = statistics.auc(y, p)
        if score > best[0]:
            best = (score, dict(params), p)
    return best[1], statistics.youden_threshold(y, best[2])


def _importance(
    model: Fitted,
    encoded: Encoded,
    values: F64,
    y: NDArray[np.int8],
    n_permutations: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Deal one feature's values anew among held-out cases, then all of the context at once."""
    if not n_permutations or y.all() or not y.any():
        return {}
    source = np.array(encoded.source)
    blocks = {name: source == name for name in dict.fromkeys(encoded.source)}
    context = np.isin(source, CONTEXT_FEATURES + OTHERS_FEATURES)
    if context.any():
        blocks["all context"] = context
    whole = statistics.auc(y, model.predict(values))
    loss = {}
    for name, columns in blocks.items():
        scores = []
        for _ in range(n_permutations):
            dealt = values.copy()
            dealt[:, columns] = values[rng.permutation(len(values))][:, columns]
            scores.append(statistics.auc(y, model.predict(dealt)))
        loss[name] = whole - float(np.mean(scores))
    return loss
