from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from recon.hotspots.crossval import Plan, cross_validate
from recon.hotspots.evaluate import (
    baselines,
    compare,
    describe_cases,
    estimate_seconds,
    evaluate,
    summarise,
    sweep_label_noise,
)
from recon.hotspots.models import FEATURE_SETS, Kind
from tests.recon.hotspots.tables import simple

QUICK = Plan(n_repeats=1, n_folds=3)


@pytest.mark.slow
def test_evaluation_is_json_and_names_what_it_judged() -> None:
    cases = simple()
    out = evaluate(
        cases, kinds=("decision_tree", "logistic_regression"), plan=QUICK, n_permutations=1
    )
    text = json.dumps(out, allow_nan=False)
    assert cases.digest in text
    for kind in ("decision_tree", "logistic_regression"):
        for folds in ("by_patient", "by_hotspot"):
            judged = out["models"][kind][folds]
            assert 0.7 < judged["base"]["auc"] <= 1.0
            assert (
                judged["comparison"]["auc_gain"]["low"]
                <= judged["comparison"]["auc_gain"]["high"]
            )
    assert out["data"]["reader_kappa"] == 1.0
    assert len(out["cases"]["base"]["probability"]) == len(cases)


def test_figures_of_merit_agree_with_the_probabilities() -> None:
    cases = simple()
    run = cross_validate(cases, "logistic_regression", FEATURE_SETS["base"], QUICK)
    out = summarise(cases, run)
    p, y = run.probability[0], cases.malignant
    assert out["at_half"]["accuracy"] == pytest.approx(((p >= 0.5) == y).mean())
    bone = cases.tissue == "bone"
    assert out["accuracy_by_tissue"]["bone"] == pytest.approx(((p >= 0.5) == y)[bone].mean())
    wrong = {cases.patient[k] for k in range(len(y)) if (p[k] >= 0.5) != (y[k] > 0)}
    assert out["patients_with_an_error"] == pytest.approx(len(wrong) / 30)


def test_a_classifier_gains_nothing_over_itself() -> None:
    cases = simple()
    run = cross_validate(cases, "logistic_regression", FEATURE_SETS["base"], QUICK)
    out = compare(cases, run, run, QUICK, n_draws=50)
    assert out["auc_gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert out["nadeau_bengio"]["p"] == 1.0
    assert out["reclassified"]["changed"] == 0.0


def test_baselines_by_hand() -> None:
    cases = simple()
    out = baselines(cases)
    called = cases.numbers["suv_max"] >= 7.2
    y = cases.malignant > 0
    assert out["suv_max_from_7.2"]["sensitivity"] == pytest.approx(called[y].mean())
    assert out["suv_max_from_7.2"]["specificity"] == pytest.approx((~called)[~y].mean())
    assert out["majority_accuracy"] == pytest.approx(0.5)


def test_description_of_a_table_by_hand() -> None:
    cases = simple()
    hu = np.full(len(cases), np.nan)
    hu[:4] = [100.0, 200.0, 300.0, 400.0]
    out = describe_cases(cases.with_numbers(hu_mean=hu))
    assert out["columns"]["hu_mean"] == {"n_known": 4, "quartiles": [175.0, 250.0, 325.0]}
    assert out["columns"]["suv_max_se"] == {"n_known": 0, "quartiles": None}
    assert (out["n_read_twice"], out["n_readers_differ"]) == (120, 0)
    bone = cases.tissue == "bone"
    assert sum(out["n_by_tissue"]["bone"]) == bone.sum()
    assert out["n_by_tissue"]["bone"][1] == cases.malignant[bone].sum()


def test_ct_is_a_feature_and_a_feature_can_be_left_out() -> None:
    rng = np.random.default_rng(0)
    cases = simple()
    hu = {name: rng.normal(300.0, 50.0, len(cases)) for name in ("hu_mean", "hu_max", "hu_sd")}
    out = evaluate(
        cases.with_numbers(**hu),
        kinds=("logistic_regression",),
        plan=Plan(1, 3, tune=False),
        feature_set="context_ct",
        without=("primary_suv_max",),
        both_folds=False,
        n_permutations=1,
    )
    assert "hu_sd" in out["features"]["context"]
    assert "primary_suv_max" not in out["features"]["context"]
    judged = out["models"]["logistic_regression"]["by_patient"]["context"]
    assert set(judged["importance_sd"]) == set(judged["importance"]) >= {"hu_mean"}


def test_estimate_counts_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid search that takes 1 s on all cases takes 0.8 s on four of five folds."""
    clock = SimpleNamespace(perf_counter=itertools.count(100.0).__next__)
    monkeypatch.setattr("recon.hotspots.evaluate.time", clock)
    kinds: tuple[Kind, ...] = ("logistic_regression",)
    whole = estimate_seconds(simple(), kinds, Plan(10, 5), threads=2)
    assert whole == pytest.approx(0.8 * 2 * 10 * 5 * 2 / 2)  # sets, repeats, folds, both kinds
    honest = estimate_seconds(simple(), kinds, Plan(10, 5), both_folds=False)
    assert honest == pytest.approx(whole)


def test_label_noise_costs_and_is_reported_a_rate() -> None:
    rows = sweep_label_noise(
        simple(60), kind="decision_tree", rates=(0.0, 0.45), plan=Plan(1, 3, tune=False)
    )
    assert [row["rate"] for row in rows] == [0.0, 0.45]
    assert rows[0]["auc_base"] > rows[1]["auc_base"] + 0.05


@pytest.mark.stats
@pytest.mark.slow
def test_context_that_is_noise_leaks_by_hotspot_and_not_by_patient() -> None:
    """Patients differ in prevalence; the context is a random number a patient. Seeds 0-7.

    By hotspot the number names the patient; by patient it can say nothing. The mean gains of
    eight tables have standard errors of 0.01 and 0.025: the limits are five and eight of them
    from what is right (0.4 and 0), false-alarm rate below 1e-6.
    """
    gains: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        cases = simple(40, 20, seed)
        risk = np.repeat(rng.random(40) < 0.5, 20)
        y = (rng.random(800) < np.where(risk, 0.9, 0.1)).astype(int)
        name = np.repeat(np.exp(rng.standard_normal(40)), 20)
        table = cases.with_malignant(y).with_numbers(primary_suv_max=name)
        for by_patient, found in gains.items():
            plan = Plan(1, 5, tune=False, by_patient=by_patient, seed=seed)
            auc = [
                summarise(table, cross_validate(table, "decision_tree", f, plan))["auc"]
                for f in (("suv_max",), ("suv_max", "primary_suv_max"))
            ]
            found.append(auc[1] - auc[0])
    assert abs(np.mean(gains[True])) < 0.2
    assert np.mean(gains[False]) > 0.35
