"""The tables of docs/chain.md, from the records of the chain study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain_patient import ALL_MINUTES, CONDITIONS, STILL_SCAN
from listmode.errors import InputError
from recon.hotspots.cases import Cases
from recon.hotspots.classify import Classifier, classify, train
from recon.hotspots.cohort import generate_cohort
from recon.hotspots.context import join_patients
from recon.hotspots.crossval import Plan, cross_validate
from recon.hotspots.models import FEATURE_SETS
from recon.hotspots.statistics import Interval, auc, patient_bootstrap_auc_gain
from recon.io.cohorts import load_cohort_settings

F64 = NDArray[np.float64]

TRAINING_SEEDS = range(1000, 1010)  # of the cohorts that the classifier learns from
N_DRAWS = 2000
MODELS = ("base", "context")
TABLE = "the cohort's own table"


@dataclass(frozen=True, eq=False)
class Scores:
    """What the classifiers said of every true focus, missed ones with probability 0."""

    malignant: NDArray[np.int8]
    patient: NDArray[np.str_]
    probability: dict[tuple[str, str], F64]  # by condition and model
    is_listed: NDArray[np.bool_]  # in bone or node, in every condition

    def auc(self, condition: str, model: str, *, listed: bool = False) -> Interval:
        """Give the AUC over all foci, or over those that every condition lists."""
        rows = self.is_listed if listed else np.ones(len(self.malignant), bool)
        y, p = self.malignant[rows], self.probability[condition, model][rows]
        if len(np.unique(y)) < 2:  # a study of a few patients
            return Interval(np.nan, np.nan, np.nan)
        return auc_interval(y, p, self.patient[rows])


def train_models(seeds: Iterable[int] = TRAINING_SEEDS) -> dict[str, Classifier]:
    """Train both classifiers on cohorts that the patients do not come from."""
    settings = load_cohort_settings()
    cohorts = []
    for seed in seeds:
        cohort = generate_cohort(settings, seed)
        cohorts.append(replace(cohort, patient=np.char.add(f"{seed}-", cohort.patient)))
    cases = join_patients(cohorts)
    return {name: train(cases, feature_set=name, seed=0) for name in MODELS}


def score(records: list[dict[str, Any]], models: dict[str, Classifier]) -> Scores:
    """Classify the cases of every condition and give each true focus its probability."""
    foci = [(r["patient"], f["malignant"]) for r in records for f in r["foci"]]
    probability = {}
    for model, classifier in models.items():
        for name in CONDITIONS:
            parts = [_of_foci(r["conditions"][name], classifier) for r in records]
            probability[name, model] = np.concatenate(parts)
        tables = [Cases.from_csv(r["truth_cases"]) for r in records]
        probability[TABLE, model] = np.concatenate(
            [classify(classifier, cases, threads=1) for cases in tables]
        )
    rows = [
        [f["case"] for r in records for f in r["conditions"][n]["foci"]] for n in CONDITIONS
    ]
    return Scores(
        np.array([m for _, m in foci], np.int8),
        np.array([p for p, _ in foci]),
        probability,
        np.min(rows, axis=0) >= 0,
    )


def _of_foci(reading: dict[str, Any], classifier: Classifier) -> F64:
    rows = np.array([f["case"] for f in reading["foci"]])
    if not reading["cases"]:
        return np.zeros(len(rows))
    p = classify(classifier, Cases.from_csv(reading["cases"]), threads=1)
    return np.where(rows >= 0, p[rows], 0.0)


def auc_interval(y: NDArray[Any], p: F64, patient: NDArray[Any]) -> Interval:
    """Give the AUC and its interval by drawing whole patients."""
    gain = patient_bootstrap_auc_gain(y, np.zeros(len(p)), p, patient, n_draws=N_DRAWS)
    return Interval(gain.value + 0.5, gain.low + 0.5, gain.high + 0.5)


def mean_interval(x: F64, patient: NDArray[Any]) -> Interval:
    """Give the mean over foci and its interval by drawing whole patients."""
    names, owner = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng(0)
    n = len(names)
    weight = rng.multinomial(n, np.full(n, 1.0 / n), N_DRAWS)[:, owner]
    draws = (weight * x).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(x.mean()), float(low), float(high))


def tables(records: list[dict[str, Any]], models: dict[str, Classifier]) -> str:
    """The tables of docs/chain.md."""
    scores = score(records, models)
    parts = (
        _about(records, scores),
        _aucs(scores),
        _differences(scores),
        _calls(scores),
        _aucs(scores, listed=True),
        _found(records),
        _uptake(records),
        _windows(records),
        _as_listed(records, models),
        _cross_validated(records),
    )
    return "\n\n".join("\n".join(part) for part in parts)


def _cell(x: Interval, digits: int = 3, sign: str = "") -> str:
    value, low, high = (f"{v:{sign}.{digits}f}" for v in (x.value, x.low, x.high))
    return f"{value} ({low} to {high})"


def _about(records: list[dict[str, Any]], scores: Scores) -> list[str]:
    n, m = len(scores.malignant), int(scores.malignant.sum())
    prompts = np.array([r["n_prompts"] for r in records]) / 1e6
    return [
        f"Simulated. {len(records)} patients, {n} hotspots, {m} of them malignant; "
        f"{prompts.min():.1f}-{prompts.max():.1f} M prompts a scan. Intervals: 95 %, "
        f"{N_DRAWS} draws of whole patients."
    ]


def _aucs(scores: Scores, *, listed: bool = False) -> list[str]:
    which = f"the {scores.is_listed.sum()} listed in every image" if listed else "all true ones"
    lines = [f"| simulated; AUC over hotspots, {which} | base | context |", "|---|---|---|"]
    for name in (TABLE, *CONDITIONS):
        cells = [_cell(scores.auc(name, m, listed=listed)) for m in MODELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _calls(scores: Scores) -> list[str]:
    lines = [
        "| simulated; calls from 0.5 up, context | sensitivity | specificity |",
        "|---|---|---|",
    ]
    for name in (TABLE, *CONDITIONS):
        is_right = (scores.probability[name, "context"] >= 0.5) == (scores.malignant > 0)
        cells = [
            _cell(mean_interval(is_right[mine].astype(float), scores.patient[mine]))
            for mine in (scores.malignant > 0, scores.malignant == 0)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _differences(scores: Scores) -> list[str]:
    lines = ["| simulated; difference in AUC | base | context |", "|---|---|---|"]
    pairs = [(STILL_SCAN, name) for name in CONDITIONS[1:]]
    pairs += [(ALL_MINUTES, name) for name in CONDITIONS[2:]]
    for first, second in pairs:
        cells = [
            _cell(
                patient_bootstrap_auc_gain(
                    scores.malignant,
                    scores.probability[first, m],
                    scores.probability[second, m],
                    scores.patient,
                    n_draws=N_DRAWS,
                ),
                sign="+",
            )
            for m in MODELS
        ]
        lines.append(f"| {second}, less {first} | {' | '.join(cells)} |")
    return lines


def _found(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| simulated; hotspots | missed: malignant | missed: benign | found, no bone or node |"
        " found, wrong place | false, a patient |",
        "|---|---|---|---|---|---|",
    ]
    for name in CONDITIONS:
        missed, lost, wrong, false = [0, 0], 0, 0, 0
        for r in records:
            reading = r["conditions"][name]
            places = _places(reading)
            for truth, focus in zip(r["foci"], reading["foci"], strict=True):
                is_found = focus["suv_max"] is not None
                missed[truth["malignant"]] += not is_found
                lost += is_found and focus["case"] < 0
                place = (truth["tissue"], truth["location"])
                wrong += focus["case"] >= 0 and places[focus["case"]] != place
            false += reading["n_cases"] - sum(f["case"] >= 0 for f in reading["foci"])
        lines.append(
            f"| {name} | {missed[1]} | {missed[0]} | {lost} | {wrong} | "
            f"{false / len(records):.2f} |"
        )
    return lines


def _places(reading: dict[str, Any]) -> list[tuple[str, str]]:
    if not reading["cases"]:
        return []
    cases = Cases.from_csv(reading["cases"])
    return list(zip(cases.tissue.tolist(), cases.location.tolist(), strict=True))


def _uptake(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| simulated; found in both images | n | SUVmax / never moved | SUVpeak / never moved |"
        " SUVmax / cohort's |",
        "|---|---|---|---|---|",
    ]
    for name in CONDITIONS:
        rows = [
            (r["patient"], here, still, truth["suv_max"])
            for r in records
            for truth, still, here in zip(
                r["foci"],
                r["conditions"][STILL_SCAN]["foci"],
                r["conditions"][name]["foci"],
                strict=True,
            )
            if here["suv_max"] and still["suv_max"]
        ]
        who = np.array([row[0] for row in rows])
        ratios = [
            np.array([here[key] / still[key] for _, here, still, _ in rows])
            for key in ("suv_max", "suv_peak")
        ]
        ratios.append(np.array([here["suv_max"] / true for _, here, _, true in rows]))
        cells = [_cell(mean_interval(ratio, who), 2) for ratio in ratios]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    return lines


def _windows(records: list[dict[str, Any]]) -> list[str]:
    motion = [r["motion"] for r in records]
    right = sum(m["is_right"] for m in motion)
    number = sum(
        len(m["found"]) == len(r["shifts"]) for m, r in zip(motion, records, strict=True)
    )
    kept = np.array([m["retained"] for m in motion])
    return [
        "| simulated; motion stage | |",
        "|---|---|",
        f"| windows right (one pose, 90 % of the longest state) | {right} of {len(motion)} |",
        f"| number of shifts right | {number} of {len(motion)} |",
        f"| bladder followed | {sum(m['reference'] == 'bladder' for m in motion)} |",
        f"| share of the counts kept, mean (least) | {kept.mean():.2f} ({kept.min():.2f}) |",
    ]


def _labelled(records: list[dict[str, Any]], name: str) -> Cases:
    """Join the cases of a condition; a hotspot that no focus explains counts as benign."""
    parts = []
    for r in records:
        reading = r["conditions"][name]
        if reading["cases"]:
            cases = Cases.from_csv(reading["cases"])
            label = np.zeros(len(cases), np.int8)
            for truth, focus in zip(r["foci"], reading["foci"], strict=True):
                if focus["case"] >= 0:
                    label[focus["case"]] = truth["malignant"]
            parts.append(cases.with_malignant(label))
    return join_patients(parts)


def _as_listed(records: list[dict[str, Any]], models: dict[str, Classifier]) -> list[str]:
    lines = [
        "| simulated; AUC over all listed hotspots | n (malignant) | base | context |",
        "|---|---|---|---|",
    ]
    for name in CONDITIONS:
        cases = _labelled(records, name)
        cells = [
            _cell(
                auc_interval(
                    cases.malignant, classify(models[m], cases, threads=1), cases.patient
                )
            )
            for m in MODELS
        ]
        n = f"{len(cases)} ({int(cases.malignant.sum())})"
        lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    return lines


def _cross_validated(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| simulated; AUC, learnt from these patients' own images, 3 x 5 folds by patient |"
        " base | context |",
        "|---|---|---|",
    ]
    plan = Plan(n_repeats=3, tune=False)
    for name in CONDITIONS:
        cases = _labelled(records, name)
        cells = []
        for m in MODELS:
            try:
                done = cross_validate(cases, "random_forest", FEATURE_SETS[m], plan)
            except InputError as error:
                cells.append(f"not possible: {error}")
                continue
            cells.append(f"{np.mean([auc(cases.malignant, p) for p in done.probability]):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
