from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots import crossval
from recon.hotspots.cases import Cases
from recon.hotspots.crossval import Plan, cross_validate, deal_folds
from recon.hotspots.models import FEATURE_SETS
from tests.recon.hotspots.tables import simple

QUICK = Plan(n_repeats=2, n_folds=3, tune=False)


@pytest.mark.parametrize("seed", range(5))
def test_a_patients_hotspots_stay_together(seed: int) -> None:
    cases = simple()
    for train, test in deal_folds(cases.malignant, cases.patient, 5, seed, by_patient=True):
        assert not set(cases.patient[train]) & set(cases.patient[test])
        assert train.size + test.size == len(cases)


@pytest.mark.parametrize("seed", range(5))
def test_folds_by_patient_are_stratified(seed: int) -> None:
    """Patients with none, half or all malignant: each fold within 5 points of the whole."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(120), 4)
    y = np.repeat(rng.integers(0, 3, 120) / 2.0, 4) > np.tile([0.1, 0.1, 0.6, 0.6], 120)
    for _, test in deal_folds(y.astype(int), patient, 5, seed, by_patient=True):
        assert abs(y[test].mean() - y.mean()) <= 0.05


def test_folds_by_hotspot_part_patients() -> None:
    cases = simple()
    train, test = deal_folds(cases.malignant, cases.patient, 5, 0, by_patient=False)[0]
    assert set(cases.patient[train]) & set(cases.patient[test])


def test_every_case_is_held_out_once_a_repeat_and_never_learnt_from() -> None:
    """A classifier that could see a case's own label would know it: noise labels prove not."""
    cases = simple(40)
    rng = np.random.default_rng(1)
    noise = cases.with_malignant(rng.permutation(cases.malignant))
    run = cross_validate(noise, "nearest_neighbours", ("suv_max",), QUICK)
    assert run.probability.shape == (2, len(cases))
    assert np.isfinite(run.probability).all()
    assert 0.35 < run.fold_auc.mean() < 0.65


def test_same_bits_at_any_number_of_threads() -> None:
    cases = simple()
    plan = Plan(n_repeats=1, n_folds=3)
    one = cross_validate(cases, "decision_tree", FEATURE_SETS["context"], plan, threads=1)
    two = cross_validate(cases, "decision_tree", FEATURE_SETS["context"], plan, threads=2)
    assert np.array_equal(one.probability, two.probability)
    assert np.array_equal(one.called, two.called)
    assert one.params == two.params


def test_tuning_sees_training_folds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the inner search holds a case of the outer fold that is judged."""
    cases = simple()
    seen: list[set[str]] = []
    plain = crossval._tune

    def spy(kind, values, y, patient, *more):  # type: ignore[no-untyped-def]
        seen.append(set(patient))
        assert len(values) == len(y) == len(patient)
        return plain(kind, values, y, patient, *more)

    monkeypatch.setattr(crossval, "_tune", spy)
    plan = Plan(n_repeats=1, n_folds=3, seed=4)
    cross_validate(cases, "decision_tree", ("suv_max", "tissue"), plan)
    seed = int(np.random.default_rng((4, 0)).integers(2**31))
    folds = deal_folds(cases.malignant, cases.patient, 3, seed, by_patient=True)
    for patients, (_, test) in zip(seen, folds, strict=True):
        assert not patients & set(cases.patient[test])


def test_importance_finds_the_feature_that_carries_the_label() -> None:
    run = cross_validate(
        simple(60), "decision_tree", FEATURE_SETS["context"], QUICK, n_permutations=3
    )
    assert max(run.importance, key=lambda name: run.importance[name]) == "suv_max"
    assert abs(run.importance["primary_suv_max"]) < 0.02
    assert "all context" in run.importance


def test_noise_in_training_labels_is_judged_by_the_truth() -> None:
    cases = simple(60)
    rng = np.random.default_rng(3)
    wrong = np.where(rng.random(len(cases)) < 0.4, 1 - cases.malignant, cases.malignant)
    clean = cross_validate(cases, "logistic_regression", ("suv_max",), QUICK)
    noisy = cross_validate(
        cases, "logistic_regression", ("suv_max",), QUICK, training_labels=wrong
    )
    assert noisy.fold_auc.mean() > 0.7
    assert clean.fold_auc.mean() >= noisy.fold_auc.mean() - 0.02


def one_patient() -> Cases:
    cases = simple()
    return cases.take(cases.patient == "P00")


def test_a_feature_that_a_fold_lacks_is_named() -> None:
    cases = simple()
    primary = np.full(len(cases), np.nan)
    primary[cases.patient == "P00"] = 9.0  # the fold that holds out P00 learns without any
    rare = cases.with_numbers(primary_suv_max=primary)
    with pytest.raises(InputError, match=r"but primary_suv_max has none among 80 of them"):
        cross_validate(rare, "decision_tree", FEATURE_SETS["context"], Plan(1, 3, tune=False))


@pytest.mark.parametrize(
    ("cases", "found"),
    [
        (simple().with_malignant(np.full(120, 1)), "but all are malignant"),
        (simple().with_malignant(np.full(120, 0)), "but all are benign"),
        (simple().with_malignant(np.full(120, -1)), "label of every hotspot, but row 0"),
        (one_patient(), "several patients, but there is one"),
        (simple(2), "3 folds need as many patients"),
    ],
)
def test_refuses_what_cannot_be_judged(cases: Cases, found: str) -> None:
    with pytest.raises(InputError, match=found):
        cross_validate(cases, "decision_tree", ("suv_max",), QUICK)
