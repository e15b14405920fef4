from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from listmode.errors import InputError
from recon.hotspots import statistics as s

seeds = st.integers(0, 10**6)


def drawn(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both classes and scores with ties."""
    rng = np.random.default_rng(seed)
    y = np.concatenate(([0, 1], rng.integers(0, 2, n - 2)))
    return y, np.round(rng.random(n) + 0.3 * y, 1)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_auc_counts_pairs(seed: int) -> None:
    y, p = drawn(seed)
    up, down = p[y == 1][:, None], p[y == 0][None, :]
    assert s.auc(y, p) == pytest.approx(((up > down) + 0.5 * (up == down)).mean())
    assert s.auc(y, -p) == pytest.approx(1.0 - s.auc(y, p))


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_area_under_the_roc_points_is_the_auc(seed: int) -> None:
    y, p = drawn(seed)
    x, t, threshold = s.roc(y, p)
    assert np.trapezoid(t, x) == pytest.approx(s.auc(y, p))
    for k in range(1, threshold.size):
        called = p >= threshold[k]
        assert t[k] == pytest.approx(called[y == 1].mean())
        assert x[k] == pytest.approx(called[y == 0].mean())


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_no_threshold_beats_youdens(seed: int) -> None:
    y, p = drawn(seed)

    def index(cut: float) -> float:
        r = s.rates(y, p >= cut)
        return r.sensitivity + r.specificity

    assert index(s.youden_threshold(y, p)) >= max(index(c) for c in np.unique(p)) - 1e-12


def test_rates_by_hand() -> None:
    r = s.rates([1, 1, 1, 0, 0], [1, 1, 0, 0, 1])
    assert (r.sensitivity, r.specificity, r.accuracy) == pytest.approx((2 / 3, 0.5, 0.6))


def test_bootstrap_interval_holds_the_gain_and_widens_with_fewer_patients() -> None:
    y, p = drawn(4, 400)
    q = p + 0.3 * y
    many = s.patient_bootstrap_auc_gain(y, p, q, np.arange(400), n_draws=400)
    few = s.patient_bootstrap_auc_gain(y, p, q, np.arange(400) // 40, n_draws=400)
    assert many.low <= many.value <= many.high
    assert many.value == pytest.approx(s.auc(y, q) - s.auc(y, p))
    assert few.low <= few.value <= few.high


def test_bootstrap_with_equal_weights_is_the_plain_auc() -> None:
    y, p = drawn(9)
    ranked = s._Ranked(y > 0, p)
    assert ranked.auc(np.ones(y.size, np.int64)) == pytest.approx(s.auc(y, p))
    double = np.where(np.arange(y.size) % 3 == 0, 2, 1)
    assert ranked.auc(double) == pytest.approx(
        s.auc(np.repeat(y, double), np.repeat(p, double))
    )


@pytest.mark.stats
@pytest.mark.slow
def test_bootstrap_covers_no_gain() -> None:
    """Two scores of equal worth, 60 patients of 3: the interval excludes 0 in about 5 %.

    Seed 21, 100 tables. Small samples may reach a rate of 0.06; more than 20 wrong then has
    probability below 1e-6.
    """
    rng = np.random.default_rng(21)
    n_wrong = 0
    for _ in range(100):
        patient = np.repeat(np.arange(60), 3)
        y = rng.integers(0, 2, 180)
        shared = rng.standard_normal(60)[patient] + y
        a, b = (shared + rng.standard_normal(180) for _ in range(2))
        gain = s.patient_bootstrap_auc_gain(y, a, b, patient, n_draws=200, seed=1)
        n_wrong += not gain.low <= 0.0 <= gain.high
    assert n_wrong <= 20


def test_nadeau_bengio_by_hand() -> None:
    d = np.array([0.02, 0.04, 0.03, 0.05, 0.01])
    t, p = s.nadeau_bengio(d, n_train=4, n_test=1)
    by_hand = 0.03 / np.sqrt(d.var(ddof=1) * (1 / 5 + 1 / 4))
    assert t == pytest.approx(by_hand)
    assert p == pytest.approx(2 * stats.t.sf(by_hand, 4))
    plain, _ = stats.ttest_1samp(d, 0.0)
    assert t < plain  # a plain t is too sure
    assert s.nadeau_bengio(np.zeros(5), 4, 1) == (0.0, 1.0)


@pytest.mark.stats
def test_calibration_finds_slope_and_intercept() -> None:
    """20,000 cases whose log odds are half of what is said, plus 0.3; seed 2.

    Standard errors are about 0.02; 0.1 is five of them.
    """
    rng = np.random.default_rng(2)
    x = rng.normal(0, 2, 20_000)
    y = rng.random(x.size) < 1 / (1 + np.exp(-(0.5 * x + 0.3)))
    found = s.calibrate(y, 1 / (1 + np.exp(-x)))
    assert (found.slope, found.intercept) == pytest.approx((0.5, 0.3), abs=0.1)
    assert found.brier == pytest.approx(metrics.brier_score_loss(y, 1 / (1 + np.exp(-x))))


def test_calibration_survives_perfect_separation() -> None:
    found = s.calibrate([0, 0, 1, 1], [0.0, 0.1, 0.9, 1.0])
    assert np.isfinite(found.slope)


def test_reliability_bins_hold_all_cases() -> None:
    y, p = drawn(5, 80)
    curve = s.reliability(y, p, np.arange(80) // 2, n_bins=4)
    assert curve["n"].tolist() == [20, 20, 20, 20]
    assert (curve["observed"] * curve["n"]).sum() == pytest.approx(y.sum())
    assert (curve["low"] <= curve["observed"]).all()
    assert (curve["observed"] <= curve["high"]).all()


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_kappa_is_cohens(seed: int) -> None:
    a, _ = drawn(seed)
    b = np.where(np.random.default_rng(seed).random(a.size) < 0.3, 1 - a, a)
    assert s.cohen_kappa(a, b) == pytest.approx(metrics.cohen_kappa_score(a, b))


def test_kappa_leaves_open_cases_out() -> None:
    assert s.cohen_kappa([1, 0, -1, 1], [1, 0, 1, -1]) == 1.0
    with pytest.raises(InputError, match="both readers labelled, but there is none"):
        s.cohen_kappa([1, -1], [-1, 1])


def test_reclassification_by_hand() -> None:
    y = [1, 1, 0, 0, 0]
    base = [0, 1, 1, 1, 0]
    other = [1, 1, 0, 1, 1]
    tissue = ["bone", "bone", "bone", "lymph_node", "lymph_node"]
    out = s.reclassify(y, base, other, tissue)
    assert out["changed"] == pytest.approx(3 / 5)
    assert out["nri"] == pytest.approx(1 / 2 + 1 / 3 - 1 / 3)
    n = {(r["tissue"], r["truth"], r["from"]): r["n"] for r in out["table"]}
    assert n["bone", "malignant", "benign"] == 1
    assert n["bone", "benign", "malignant"] == 1
    assert n["lymph_node", "benign", "benign"] == 1
    assert sum(n.values()) == 3


@pytest.mark.parametrize("call", [s.auc, s.roc, s.youden_threshold, s.rates, s.calibrate])
@pytest.mark.parametrize(("y", "named"), [([1, 1], "malignant"), ([0, 0], "benign")])
def test_refuses_one_class(call: object, y: list[int], named: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=f"cases hold only {named} hotspots"):
        call(y, [0.1, 0.9])
