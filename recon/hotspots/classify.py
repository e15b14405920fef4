"""Train a classifier, keep it as plain JSON, and give each hotspot its probability."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from listmode.errors import InputError
from recon.hotspots import crossval, models
from recon.hotspots.cases import SCHEMA as CASES_SCHEMA
from recon.hotspots.cases import Cases
from recon.hotspots.models import Fitted, Kind

F64 = NDArray[np.float64]

SCHEMA = "stillpet-classifier-1"
MAX_NODES = 10_000_000

_DTYPES = {
    "root": np.int32,
    "feature": np.int32,
    "threshold": np.float64,
    "left": np.int32,
    "right": np.int32,
    "probability": np.float64,
    "points": np.float64,
    "malignant": np.float64,
    "weight": np.float64,
    "offset": np.float64,
}
_PARTS = {
    "random_forest": ("root", "feature", "threshold", "left", "right", "probability"),
    "decision_tree": ("root", "feature", "threshold", "left", "right", "probability"),
    "nearest_neighbours": ("points", "malignant"),
    "logistic_regression": ("weight", "offset"),
}


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier with its schema and where it comes from.

    Parameters
    ----------
    fitted
        The numbers.
    features, columns
        Which features it reads, and the names of the encoded columns.
    about
        Training data hash, counts, version: JSON values.
    """

    fitted: Fitted
    features: tuple[str, ...]
    columns: tuple[str, ...]
    about: Mapping[str, Any]

    def to_json(self) -> str:
        """Write the classifier as JSON text: numbers only, nothing that runs when loaded."""
        body = {
            "schema": SCHEMA,
            "cases_schema": CASES_SCHEMA,
            "purpose": "For research, not a medical device.",
            "kind": self.fitted.kind,
            "params": dict(self.fitted.params),
            "features": list(self.features),
            "columns": list(self.columns),
            "about": dict(self.about),
            "medians": self.fitted.medians.tolist(),
            "centre": self.fitted.centre.tolist(),
            "scale": self.fitted.scale.tolist(),
            "parts": {name: part.tolist() for name, part in self.fitted.parts.items()},
        }
        return json.dumps({**body, "sha256": _digest(body)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, name: str = "model") -> Classifier:
        """Read what :meth:`to_json` wrote and check every number before it is used.

        Raises
        ------
        InputError
            If it is not JSON, of another schema, changed since it was written, or its numbers
            contradict one another.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{name} must be a classifier in JSON, but it is not: {error}; train it again"
            ) from None
        found = body.get("schema") if isinstance(body, dict) else None
        if found != SCHEMA:
            raise InputError(
                f"{name} must be a classifier of schema {SCHEMA!r}, but it says {found!r}; "
                "train it again with this version"
            )
        hash_ = body.pop("sha256", None)
        if hash_ != _digest(body):
            raise InputError(
                f"{name} must be as it was written, but its contents do not match its hash; "
                "take the original file"
            )
        try:
            return _build(body)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{name} must hold a consistent classifier, but it does not: {error}; train it "
                "again"
            ) from None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _build(body: Mapping[str, Any]) -> Classifier:
    kind = body["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}")
    parts = {n: np.array(body["parts"][n], dtype=_DTYPES[n]) for n in _PARTS[kind]}
    medians, centre, scale = (
        np.array(body[name], dtype=np.float64) for name in ("medians", "centre", "scale")
    )
    columns = tuple(str(c) for c in body["columns"])
    n = len(columns)
    if {medians.shape, centre.shape, scale.shape} != {(n,)} or (scale == 0).any():
        raise ValueError("its scales do not fit its columns")
    for part in (*parts.values(), medians, centre, scale):
        if not np.isfinite(part).all():
            raise ValueError("it holds numbers that are not finite")
    _CHECKS[kind](parts, n, body["params"])
    fitted = Fitted(kind, body["params"], medians, centre, scale, parts)
    return Classifier(fitted, tuple(body["features"]), columns, body["about"])


def _check_trees(
    parts: Mapping[str, NDArray[Any]], n_columns: int, params: Mapping[str, Any]
) -> None:
    """Hold the trees to the rules that make walking them safe: inside, downwards, to a leaf."""
    del params
    n = parts["feature"].size
    if not 0 < n <= MAX_NODES or any(
        parts[k].shape != (n,) for k in _PARTS["decision_tree"][1:]
    ):
        raise ValueError("its trees' arrays differ in length")
    node = np.arange(n)
    inner = parts["feature"] >= 0
    left, right = parts["left"][inner], parts["right"][inner]
    children_follow = (left > node[inner]).all() and (right > node[inner]).all()
    if not (children_follow and (left < n).all() and (right < n).all()):
        raise ValueError("its trees point outside of themselves")
    if parts["feature"].max() >= n_columns or parts["root"].size == 0:
        raise ValueError("its trees read columns that it does not have")
    if parts["root"].min() < 0 or parts["root"].max() >= n:
        raise ValueError("its trees have roots outside of themselves")
    if parts["probability"].min() < 0 or parts["probability"].max() > 1:
        raise ValueError("its probabilities leave 0 to 1")


def _check_neighbours(
    parts: Mapping[str, NDArray[Any]], n_columns: int, params: Mapping[str, Any]
) -> None:
    n = len(parts["malignant"])
    if parts["points"].shape != (n, n_columns) or not 1 <= int(params["k"]) <= n:
        raise ValueError("its neighbours do not fit its columns")
    if not np.isin(parts["malignant"], (0.0, 1.0)).all():
        raise ValueError("its neighbours have labels other than 0 and 1")


def _check_logistic(
    parts: Mapping[str, NDArray[Any]], n_columns: int, params: Mapping[str, Any]
) -> None:
    del params
    if parts["weight"].shape != (n_columns,) or parts["offset"].shape != (1,):
        raise ValueError("its weights do not fit its columns")


_CHECKS = {
    "random_forest": _check_trees,
    "decision_tree": _check_trees,
    "nearest_neighbours": _check_neighbours,
    "logistic_regression": _check_logistic,
}


def train(
    cases: Cases,
    *,
    kind: Kind = "random_forest",
    feature_set: str = "context",
    without: Collection[str] = (),
    tune: bool = False,
    seed: int = 0,
    version: str = "",
) -> Classifier:
    """Train a classifier on all cases.

    Parameters
    ----------
    cases
        With the consensus label of every hotspot.
    kind, feature_set
        See :data:`~recon.hotspots.models.DEFAULTS` and
        :data:`~recon.hotspots.models.FEATURE_SETS`.
    without
        Features of the set to leave out, for example those that the table cannot fill.
    tune
        Whether to choose settings by folds over patients; else the defaults.
    seed
        Of folds and forest.
    version
        Of the program, for the record.

    Raises
    ------
    InputError
        If a name is unknown, a feature has no value, labels are missing, only one class is
        there, or only one patient.
    """
    features = models.choose_features(cases, feature_set, without)
    y = crossval.checked_truth(cases)
    encoded = models.encode(cases, features)
    with threadpool_limits(1):
        params = (
            crossval.choose_params(cases, kind, features, seed=seed)
            if tune
            else models.DEFAULTS.get(kind, {})
        )
        fitted = models.fit(kind, params, encoded.values, y, seed, encoded.columns)
    about = {
        "version": version,
        "feature_set": feature_set,
        "without": sorted(without),
        "training_sha256": cases.digest,
        "n_patients": cases.n_patients,
        "n_hotspots": len(cases),
        "n_malignant": int(y.sum()),
        "n_simulated": cases.n_simulated,
        "seed": seed,
        "notes": list(cases.notes),
    }
    return Classifier(fitted, features, encoded.columns, about)


def classify(classifier: Classifier, cases: Cases, *, threads: int = 2) -> F64:
    """Give the probability that each hotspot is malignant.

    Parameters
    ----------
    classifier
        From :func:`train` or a file.
    cases
        Labels are not read.
    threads
        The result does not depend on it.

    Returns
    -------
    ndarray
        Shape (n_cases,), float64.

    Raises
    ------
    InputError
        If the classifier's columns are not those that this version makes.
    """
    encoded = models.encode(cases, classifier.features)
    missing = [c for c in classifier.columns if c not in encoded.columns]
    extra = [c for c in encoded.columns if c not in classifier.columns]
    if missing or extra or encoded.columns != classifier.columns:
        raise InputError(
            "a classifier must read the columns that this version makes, but it wants "
            f"{', '.join(missing) or 'none'} more and does not know "
            f"{', '.join(extra) or 'none'}; train it again"
        )
    return classifier.fitted.predict(encoded.values, threads=threads)
