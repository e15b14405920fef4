from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots.classify import Classifier, _digest, classify, train
from recon.hotspots.models import Kind
from recon.io.cohorts import load_classifier, save_classifier
from tests.recon.hotspots.tables import simple


@pytest.mark.parametrize("kind", get_args(Kind))
def test_model_comes_back_from_its_file_and_predicts_the_same_bits(
    kind: Kind, tmp_path: Path
) -> None:
    cases = simple()
    model = train(cases, kind=kind, version="0.1")
    save_classifier(tmp_path / "model.json", model)
    again = load_classifier(tmp_path / "model.json")
    assert np.array_equal(classify(model, cases), classify(again, cases))
    assert again.about["training_sha256"] == cases.digest
    assert again.about["version"] == "0.1"
    assert again.to_json() == model.to_json()


def test_labels_are_not_read() -> None:
    cases = simple()
    model = train(cases)
    unlabelled = cases.with_malignant(np.full(len(cases), -1))
    assert np.array_equal(classify(model, cases), classify(model, unlabelled))


def test_training_chooses_from_the_grid_when_asked() -> None:
    model = train(simple(), kind="decision_tree", tune=True)
    assert model.fitted.params["min_leaf"] in (3, 10, 20, 40)


def changed(change: Callable[[dict[str, Any]], object], kind: Kind = "decision_tree") -> str:
    """A model with a change and a hash that fits it: the checks stand alone."""
    body = json.loads(train(simple(), kind=kind).to_json())
    del body["sha256"]
    change(body)
    return json.dumps({**body, "sha256": _digest(body)})


def loop(body: dict[str, Any]) -> None:
    body["parts"]["left"][0] = 0  # a tree that never ends


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (loop, "point outside of themselves"),
        (lambda b: b["parts"]["right"].__setitem__(0, 10**6), "point outside"),
        (lambda b: b["parts"]["feature"].__setitem__(0, 99), "read columns that it does not"),
        (lambda b: b["parts"]["root"].__setitem__(0, -1), "roots outside"),
        (lambda b: b["parts"]["probability"].__setitem__(0, 1.5), "leave 0 to 1"),
        (lambda b: b["parts"]["threshold"].pop(), "differ in length"),
        (lambda b: b["parts"].pop("left"), "consistent classifier"),
        (lambda b: b["scale"].__setitem__(0, 0.0), "scales do not fit"),
        (lambda b: b["medians"].pop(), "scales do not fit"),
        (lambda b: b.__setitem__("kind", "pickle"), "unknown kind 'pickle'"),
        (lambda b: b["parts"].__setitem__("feature", "os.system"), "consistent classifier"),
    ],
)
def test_refuses_a_forged_tree(change: Callable[[dict[str, Any]], object], found: str) -> None:
    with pytest.raises(InputError, match=found):
        Classifier.from_json(changed(change))


@pytest.mark.parametrize(
    ("kind", "change", "found"),
    [
        ("nearest_neighbours", lambda b: b["params"].__setitem__("k", 10**9), "neighbours do"),
        (
            "nearest_neighbours",
            lambda b: b["parts"]["malignant"].__setitem__(0, 3.0),
            "labels other than 0 and 1",
        ),
        ("logistic_regression", lambda b: b["parts"]["weight"].pop(), "weights do not fit"),
        (
            "logistic_regression",
            lambda b: b["parts"]["weight"].__setitem__(0, 1e999),
            "not finite|Out of range",
        ),
    ],
)
def test_refuses_forged_numbers(
    kind: Kind, change: Callable[[dict[str, Any]], object], found: str
) -> None:
    with pytest.raises(InputError, match=found):
        Classifier.from_json(changed(change, kind))


def test_refuses_a_file_that_changed_since() -> None:
    text = train(simple(), kind="decision_tree").to_json().replace("0.1", "0.2", 1)
    text = text.replace('"n_patients": 30', '"n_patients": 31')
    with pytest.raises(InputError, match="do not match its hash"):
        Classifier.from_json(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "must be a classifier in JSON"),
        ("[1]", "schema 'stillpet-classifier-1', but it says None"),
        ('{"schema": "other"}', "but it says 'other'"),
        ("[" * 100_000, "must be a classifier in JSON"),
    ],
)
def test_refuses_what_is_no_classifier(text: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        Classifier.from_json(text)


def test_refuses_a_huge_file_before_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.io.cohorts.MAX_MODEL_BYTES", 100)
    save_classifier(tmp_path / "model.json", train(simple(), kind="decision_tree"))
    with pytest.raises(InputError, match="must be a classifier of at most"):
        load_classifier(tmp_path / "model.json")


def test_refuses_a_model_of_other_columns() -> None:
    def rename(body: dict[str, Any]) -> None:
        body["columns"][0] = "suv_min"

    model = Classifier.from_json(changed(rename))
    with pytest.raises(InputError, match="wants suv_min more and does not know suv_max"):
        classify(model, simple())


def test_refuses_an_unknown_feature_set() -> None:
    with pytest.raises(InputError, match=r"feature set must be one of.*'all'"):
        train(simple(), feature_set="all")


def test_refuses_to_train_without_labels_or_on_one_patient() -> None:
    cases = simple()
    with pytest.raises(InputError, match="label of every hotspot"):
        train(cases.with_malignant(np.full(len(cases), -1)))
    with pytest.raises(InputError, match="several patients"):
        train(cases.take(cases.patient == "P00"))
