"""Judge classifiers so that nobody is fooled: by patient, with baselines and leakage beside."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.progress import SILENT, Progress
from recon.hotspots import statistics
from recon.hotspots.cases import TISSUES, Cases
from recon.hotspots.crossval import (
    OutOfFold,
    Plan,
    checked_truth,
    choose_params,
    cross_validate,
)
from recon.hotspots.curves import roc_band
from recon.hotspots.models import FEATURE_SETS, GRIDS, Kind, choose_features

F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

SUV_MAX_CUT = 7.2  # Youden cut, unspecific bone lesions: 10.1007/s00259-021-05456-3


def summarise(cases: Cases, result: OutOfFold) -> dict[str, Any]:
    """Reduce out-of-fold probabilities to figures of merit (JSON values).

    AUC, rates at 0.5 and at the inner Youden threshold are means over repeats of pooled
    out-of-fold values; calibration is of the mean probability.
    """
    y = checked_truth(cases)
    out: dict[str, Any] = {
        "auc": _mean_auc(y, result.probability),
        "auc_by_tissue": {},
        "at_half": _mean_rates(y, result.probability >= 0.5),
        "at_youden": _mean_rates(y, result.called),
        "accuracy_by_tissue": {},
        "calibration": asdict(statistics.calibrate(y, result.mean_probability)),
        "patients_with_an_error": _patients_with_an_error(cases, result),
        "fold_prevalence": [
            float(result.fold_prevalence.min()),
            float(result.fold_prevalence.max()),
        ],
    }
    for tissue in TISSUES:
        mine = cases.tissue == tissue
        if mine.any() and 0 < y[mine].sum() < mine.sum():
            out["auc_by_tissue"][tissue] = _mean_auc(y[mine], result.probability[:, mine])
            right = (result.probability[:, mine] >= 0.5) == (y[mine] > 0)
            out["accuracy_by_tissue"][tissue] = float(right.mean())
    if result.importance:
        out["importance"] = dict(result.importance)
        out["importance_sd"] = dict(result.importance_sd)
    return out


def _mean_auc(y: NDArray[Any], probability: F64) -> float:
    return float(np.mean([statistics.auc(y, p) for p in probability]))


def _mean_rates(y: NDArray[Any], called: Bool) -> dict[str, float]:
    each = [asdict(statistics.rates(y, c)) for c in called]
    return {name: float(np.mean([r[name] for r in each])) for name in each[0]}


def _patients_with_an_error(cases: Cases, result: OutOfFold) -> float:
    wrong = (result.mean_probability >= 0.5) != (cases.malignant > 0)
    return len(np.unique(cases.patient[wrong])) / cases.n_patients


def compare(
    cases: Cases, base: OutOfFold, other: OutOfFold, plan: Plan, *, n_draws: int = 2000
) -> dict[str, Any]:
    """Compare two classifiers judged on the same folds (JSON values).

    The patient bootstrap is the primary test; Nadeau-Bengio's corrected t over the folds stands
    beside it. A plain t over repeated folds would be far too sure and is not offered.
    """
    y = checked_truth(cases)
    gain = statistics.patient_bootstrap_auc_gain(
        y,
        base.mean_probability,
        other.mean_probability,
        cases.patient,
        n_draws=n_draws,
        seed=plan.seed,
    )
    d = (other.fold_auc - base.fold_auc).ravel()
    d = d[np.isfinite(d)]
    test: dict[str, Any] = {"mean_gain": None, "t": None, "p": None, "n_folds": int(d.size)}
    if d.size > 1:  # folds of one class have no AUC
        t, p = statistics.nadeau_bengio(d, plan.n_folds - 1, 1.0)
        test |= {"mean_gain": float(d.mean()), "t": t if np.isfinite(t) else None, "p": p}
    changes = statistics.reclassify(
        y, base.mean_probability >= 0.5, other.mean_probability >= 0.5, cases.tissue
    )
    return {
        "auc_gain": asdict(gain),
        "nadeau_bengio": test,
        "reclassified": changes,
    }


def baselines(cases: Cases) -> dict[str, Any]:
    """Judge what needs no training: always the commoner class, SUVmax alone (JSON values)."""
    y = checked_truth(cases)
    suv = cases.numbers["suv_max"]
    out: dict[str, Any] = {
        "suv_max_auc": statistics.auc(y, suv),
        f"suv_max_from_{SUV_MAX_CUT}": asdict(statistics.rates(y, suv >= SUV_MAX_CUT)),
        "tissue_alone_auc": statistics.auc(y, cases.tissue == "lymph_node"),
        "majority_accuracy": float(max(y.mean(), 1 - y.mean())),
        "majority_accuracy_by_tissue": {},
    }
    for tissue in TISSUES:
        mine = cases.tissue == tissue
        if mine.any():
            share = float(y[mine].mean())
            out["majority_accuracy_by_tissue"][tissue] = max(share, 1.0 - share)
    return out


def describe_cases(cases: Cases) -> dict[str, Any]:
    """Say what a table holds: counts, agreement of the readers, what is known (JSON values)."""
    y, first, second = (cases.labels[n] for n in ("malignant", "reader_1", "reader_2"))
    out: dict[str, Any] = {
        "n_patients": cases.n_patients,
        "n_hotspots": len(cases),
        "n_malignant": int((y > 0).sum()),
        "n_simulated": cases.n_simulated,
        "n_by_tissue": {
            tissue: [int((y[cases.tissue == tissue] == k).sum()) for k in (0, 1)]
            for tissue in TISSUES
        },
        "sha256": cases.digest,
        "notes": list(cases.notes),
        "columns": {},
    }
    if ((first >= 0) & (second >= 0)).any():
        out["reader_kappa"] = statistics.cohen_kappa(first, second)
        out["n_read_twice"] = int(((first >= 0) & (second >= 0)).sum())
        out["n_readers_differ"] = int(((first >= 0) & (second >= 0) & (first != second)).sum())
    for name, column in cases.numbers.items():
        known = column[np.isfinite(column)]
        quartiles = np.quantile(known, (0.25, 0.5, 0.75)).tolist() if known.size else None
        out["columns"][name] = {"n_known": int(known.size), "quartiles": quartiles}
    return out


def estimate_seconds(
    cases: Cases,
    kinds: Sequence[Kind],
    plan: Plan,
    *,
    both_folds: bool = True,
    threads: int = 1,
) -> float:
    """Estimate how long :func:`evaluate` takes, s, from one grid search of each kind."""
    one = 0.0
    for kind in kinds:
        taken = []
        for _ in range(2):  # the first may load and compile
            start = time.perf_counter()
            choose_params(cases, kind, FEATURE_SETS["base"], seed=plan.seed)
            taken.append(time.perf_counter() - start)
        one += min(taken) * (1.0 - 1.0 / plan.n_folds)
    n_rounds = 2 * plan.n_repeats * plan.n_folds * (2 if both_folds else 1)
    return n_rounds * one / (1.0 if plan.tune else 8.0) / threads


def evaluate(
    cases: Cases,
    *,
    kinds: Sequence[Kind] = tuple(GRIDS),
    plan: Plan | None = None,
    feature_set: str = "context",
    without: Collection[str] = (),
    both_folds: bool = True,
    n_permutations: int = 5,
    kept: MutableMapping[str, Any] | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Judge every classifier with and without context, by patient and by hotspot.

    Parameters
    ----------
    cases
        With the consensus label of every hotspot.
    kinds
        Classifiers to judge.
    plan
        Folds; the default is 10 times 5, nested.
    feature_set, without
        What is compared with the hotspot alone, see
        :func:`~recon.hotspots.models.choose_features`.
    both_folds
        Whether to show the leakage of hotspot-level folds beside the honest figure.
    n_permutations
        For importances, by patient only.
    kept
        Parts (a classifier under one kind of fold) that an interrupted call with the same
        arguments finished; new ones are put in as they finish.
    threads
        The result does not depend on it.

    Returns
    -------
    dict
        JSON values: ``data``, ``baselines``, ``models`` (kind, then ``by_patient`` or
        ``by_hotspot``, then ``base``, ``context`` and ``comparison``), and ``cases``: for the
        first kind the mean out-of-fold probabilities with and without context.

    Raises
    ------
    InputError
        If labels are missing, only one class is there, there are too few patients, or a
        feature has no value.
    """
    plan = plan or Plan()
    checked_truth(cases)
    features = {
        "base": FEATURE_SETS["base"],
        "context": choose_features(cases, feature_set, without),
    }
    out: dict[str, Any] = {
        "plan": asdict(plan),
        "features": {name: list(each) for name, each in features.items()},
        "data": describe_cases(cases),
        "baselines": baselines(cases),
        "models": {},
    }
    kept = {} if kept is None else kept
    for kind in kinds:
        out["models"][kind] = {}
        for by_patient in (True, False) if both_folds else (True,):
            folds = "by_patient" if by_patient else "by_hotspot"
            if f"{kind} {folds}" not in kept:
                one = Plan(**{**asdict(plan), "by_patient": by_patient})
                kept[f"{kind} {folds}"] = _judge_part(
                    cases, kind, features, one, n_permutations, threads, progress
                )
            part = kept[f"{kind} {folds}"]
            out["models"][kind][folds] = part["judged"]
            if by_patient:
                out.setdefault("cases", part["cases"])
    return out


def _judge_part(
    cases: Cases,
    kind: Kind,
    features: Mapping[str, tuple[str, ...]],
    plan: Plan,
    n_permutations: int,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Judge one classifier with and without context under one kind of fold."""
    runs = {
        name: cross_validate(
            cases,
            kind,
            each,
            plan,
            n_permutations=n_permutations if plan.by_patient else 0,
            threads=threads,
            progress=progress,
        )
        for name, each in features.items()
    }
    judged = {
        **{name: summarise(cases, run) for name, run in runs.items()},
        "comparison": compare(cases, runs["base"], runs["context"], plan),
    }
    return {"judged": judged, "cases": _case_table(cases, runs) if plan.by_patient else None}


def _case_table(cases: Cases, runs: Mapping[str, OutOfFold]) -> dict[str, Any]:
    """Give what the report draws: ROC curves, reliability and one probability a hotspot."""
    y = cases.malignant
    out: dict[str, Any] = {
        "malignant": y.tolist(),
        "patient": cases.patient.tolist(),
        "tissue": cases.tissue.tolist(),
        "location": cases.location.tolist(),
        "suv_max": cases.numbers["suv_max"].tolist(),
    }
    for name, run in runs.items():
        p = run.mean_probability
        false_positive, true_positive, _ = statistics.roc(y, p)
        band = roc_band(y, p, cases.patient)
        curve = statistics.reliability(y, p, cases.patient)
        out[name] = {
            "probability": p.tolist(),
            "roc": [false_positive.tolist(), true_positive.tolist()],
            "roc_band": {key: value.tolist() for key, value in band.items()},
            "reliability": {key: value.tolist() for key, value in curve.items()},
        }
    return out


def sweep_label_noise(
    cases: Cases,
    *,
    kind: Kind = "random_forest",
    rates: Sequence[float] = (0.0, 0.05, 0.10),
    plan: Plan | None = None,
    feature_set: str = "context",
    without: Collection[str] = (),
    threads: int = 1,
    progress: Progress = SILENT,
) -> list[dict[str, float]]:
    """Flip a share of the training labels and judge by the true ones (JSON values).

    Raises
    ------
    InputError
        As :func:`evaluate`.
    """
    plan = plan or Plan(n_repeats=1, tune=False)
    features = {
        "base": FEATURE_SETS["base"],
        "context": choose_features(cases, feature_set, without),
    }
    y = checked_truth(cases)
    rng = np.random.default_rng(plan.seed)
    order = rng.random(len(y))
    rows = []
    for rate in rates:
        noisy = np.where(order < rate, 1 - y, y)
        row = {"rate": float(rate)}
        for name, own in features.items():
            run = cross_validate(
                cases,
                kind,
                own,
                plan,
                training_labels=noisy,
                threads=threads,
                progress=progress,
            )
            row[f"auc_{name}"] = _mean_auc(y, run.probability)
        rows.append(row)
    return rows
