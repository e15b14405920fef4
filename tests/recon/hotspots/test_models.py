from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from listmode.errors import InputError
from recon.hotspots.models import DEFAULTS, FEATURE_SETS, Kind, choose_features, encode, fit
from tests.recon.hotspots.tables import simple

KINDS: tuple[Kind, ...] = get_args(Kind)


def data() -> tuple[np.ndarray, np.ndarray]:
    cases = simple()
    return encode(cases, FEATURE_SETS["context"]).values, cases.malignant


def filled(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.nanmedian(values, axis=0), values)


def library(kind: Kind, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The probabilities of scikit-learn's own prediction."""
    p = DEFAULTS[kind]
    scaled = StandardScaler().fit_transform(x)
    model: Any = {
        "random_forest": lambda: RandomForestClassifier(
            p.get("n_trees"), min_samples_leaf=p.get("min_leaf"), random_state=5
        ),
        "decision_tree": lambda: DecisionTreeClassifier(
            min_samples_leaf=p.get("min_leaf"), random_state=5
        ),
        "nearest_neighbours": lambda: KNeighborsClassifier(p.get("k")),
        "logistic_regression": lambda: LogisticRegression(C=p.get("c"), max_iter=1000),
    }[kind]()
    trees = kind in ("random_forest", "decision_tree")
    model.fit(x if trees else scaled, y)
    return np.asarray(model.predict_proba(x if trees else scaled)[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_predicts_what_the_library_predicts(kind: Kind) -> None:
    values, y = data()
    ours = fit(kind, DEFAULTS[kind], values, y, seed=5).predict(values)
    np.testing.assert_allclose(ours, library(kind, filled(values), y), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_at_any_number_of_threads_and_rows_together_or_alone(kind: Kind) -> None:
    values, y = data()
    model = fit(kind, DEFAULTS[kind], values, y, seed=0)
    one = model.predict(values, threads=1)
    assert np.array_equal(one, model.predict(values, threads=3))
    alone = np.array([model.predict(values[k : k + 1])[0] for k in range(len(values))])
    np.testing.assert_allclose(alone, one, rtol=1e-12)
    assert ((one >= 0) & (one <= 1)).all()


def test_missing_values_take_the_training_median() -> None:
    values, y = data()
    model = fit("logistic_regression", {"c": 1.0}, values, y, seed=0)
    row = values[:1].copy()
    row[0, 0] = np.nan
    stand_in = values[:1].copy()
    stand_in[0, 0] = np.nanmedian(values[:, 0])
    assert model.predict(row)[0] == model.predict(stand_in)[0]


def test_encoding_flags_what_is_missing() -> None:
    cases = simple()
    encoded = encode(cases, ("reference_suv_max", "tissue", "n_bone"))
    assert encoded.columns == (
        "reference_suv_max",
        "has_reference_suv_max",
        "is_bone",
        "n_bone",
    )
    missing = np.isnan(cases.numbers["reference_suv_max"])
    assert np.array_equal(encoded.values[:, 1], ~missing)
    assert np.array_equal(np.isnan(encoded.values[:, 0]), missing)
    assert np.array_equal(encoded.values[:, 2], cases.tissue == "bone")
    np.testing.assert_allclose(encoded.values[:, 3], np.log1p(cases.numbers["n_bone"]))


def test_refuses_an_unknown_feature_and_an_empty_one() -> None:
    cases = simple()
    with pytest.raises(InputError, match=r"a feature must be.*'age' is none"):
        encode(cases, ("age",))
    empty = encode(cases, ("suv_max", "hu_mean"))
    values, y, params = empty.values, cases.malignant, {"min_leaf": 3}
    with pytest.raises(InputError, match="column 1 has none among 120"):
        fit("decision_tree", params, values, y, 0)
    with pytest.raises(InputError, match="but hu_mean has none among 120"):
        fit("decision_tree", params, values, y, 0, empty.columns)


@pytest.mark.parametrize(("label", "named"), [(1, "malignant"), (0, "benign")])
def test_refuses_to_train_on_one_class(label: int, named: str) -> None:
    values, y = data()
    with pytest.raises(InputError, match=f"but all are {named}"):
        fit("decision_tree", {"min_leaf": 3}, values, np.full_like(y, label), 0)


def test_refuses_more_neighbours_than_cases_and_unknown_kinds() -> None:
    values, y = data()
    with pytest.raises(InputError, match="15 neighbours need as many training cases"):
        fit("nearest_neighbours", {"k": 15}, values[:8], y[:8], 0)
    with pytest.raises(InputError, match=r"a classifier must be one of.*'svm'"):
        fit("svm", {}, values, y, 0)  # type: ignore[arg-type]


def test_refuses_features_that_are_unknown_or_empty() -> None:
    cases = simple()
    assert choose_features(cases, "context", ["n_bone"]) == tuple(
        name for name in FEATURE_SETS["context"] if name != "n_bone"
    )
    with pytest.raises(InputError, match=r"the table has none for hu_mean, hu_max, hu_sd"):
        choose_features(cases, "context_ct")
    with pytest.raises(InputError, match=r"can be left out, but hu_mean is none"):
        choose_features(cases, "context", ["hu_mean"])
    with pytest.raises(InputError, match=r"the table has none for any"):
        choose_features(cases, "base", FEATURE_SETS["base"])
    empty = cases.with_numbers(primary_suv_max=np.full(len(cases), np.nan))
    with pytest.raises(InputError, match=r"none for primary_suv_max; leave it out"):
        choose_features(empty, "context")
