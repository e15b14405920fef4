"""Classifiers of hotspots: encoded features in, plain numbers out, no code inside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import expit

from listmode.errors import InputError
from recon.hotspots import _kernels
from recon.hotspots.cases import LOCATIONS, NUMBERS, Cases

F64 = NDArray[np.float64]

Kind = Literal["random_forest", "decision_tree", "nearest_neighbours", "logistic_regression"]

HOTSPOT_FEATURES = ("suv_max", "tissue", "location")
CONTEXT_FEATURES = (
    "primary_suv_max",
    "reference_suv_max",
    "n_lymph_node",
    "n_bone",
    "scan_suv_max",
    "region_suv_mean",
)
OTHERS_FEATURES = (
    *CONTEXT_FEATURES[:4],
    "scan_suv_max_others",
    "region_suv_mean_others",
)
CT_FEATURES = ("hu_mean", "hu_max", "hu_sd")
FEATURE_SETS = {
    "base": HOTSPOT_FEATURES,
    "context": HOTSPOT_FEATURES + CONTEXT_FEATURES,
    "context_others": HOTSPOT_FEATURES + OTHERS_FEATURES,
    "context_ct": HOTSPOT_FEATURES + CONTEXT_FEATURES + CT_FEATURES,
}
"""Feature sets. ``context_others`` leaves the hotspot itself out of the scan's maximum and the
mean; ``context_ct`` adds the CT."""

MAY_BE_MISSING = frozenset(
    {
        "primary_suv_max",
        "reference_suv_max",
        *OTHERS_FEATURES[-2:],
        *CT_FEATURES,
    }
)

DEFAULTS: dict[Kind, dict[str, Any]] = {
    "random_forest": {"n_trees": 150, "min_leaf": 3},
    "decision_tree": {"min_leaf": 10},
    "nearest_neighbours": {"k": 15},
    "logistic_regression": {"c": 1.0},
}
GRIDS: dict[Kind, list[dict[str, Any]]] = {
    "random_forest": [{"n_trees": 150, "min_leaf": leaf} for leaf in (1, 3, 8)],
    "decision_tree": [{"min_leaf": leaf} for leaf in (3, 10, 20, 40)],
    "nearest_neighbours": [{"k": k} for k in (5, 11, 21, 41)],
    "logistic_regression": [{"c": c} for c in (0.03, 0.3, 3.0)],
}
"""Settings that the inner folds choose from. Fixed before the first run."""


def choose_features(
    cases: Cases, feature_set: str, without: Collection[str] = ()
) -> tuple[str, ...]:
    """Give the features of a set, and make sure that the table can fill them.

    Parameters
    ----------
    cases
        What is learnt from.
    feature_set
        From :data:`FEATURE_SETS`.
    without
        Features of the set to leave out.

    Raises
    ------
    InputError
        If the set or a feature to leave out is unknown, nothing is left, or a feature has no
        value in any case.
    """
    if feature_set not in FEATURE_SETS:
        raise InputError(
            f"a feature set must be one of {', '.join(FEATURE_SETS)}, but it is "
            f"{feature_set!r}; choose one of these"
        )
    known = FEATURE_SETS[feature_set]
    if unknown := set(without) - set(known):
        raise InputError(
            f"only features of the set ({', '.join(known)}) can be left out, but "
            f"{', '.join(sorted(unknown))} is none; correct it"
        )
    features = tuple(name for name in known if name not in without)
    empty = [n for n in features if n in NUMBERS and np.isnan(cases.numbers[n]).all()]
    if empty or not features:
        raise InputError(
            "each feature needs a value in some hotspot, but the table has none for "
            f"{', '.join(empty) or 'any'}; leave it out (--without) or measure it"
        )
    return features


@dataclass(frozen=True, eq=False)
class Encoded:
    """Cases as a matrix: NaN where a value is missing.

    Parameters
    ----------
    values
        Shape (n_cases, n_columns), float64.
    columns
        Name of each column.
    source
        The feature that each column comes from.
    """

    values: F64
    columns: tuple[str, ...]
    source: tuple[str, ...]


def encode(cases: Cases, features: tuple[str, ...]) -> Encoded:
    """Turn features into columns of numbers.

    SUVs become their natural logarithm, counts ``log(1 + n)``, the tissue one column, the
    location one column a place; a feature that may be missing gains a column that says so.

    Raises
    ------
    InputError
        If a feature is unknown.
    """
    parts: list[tuple[str, str, F64]] = []
    for name in features:
        if name == "tissue":
            parts.append(("is_bone", name, (cases.tissue == "bone").astype(np.float64)))
        elif name == "location":
            parts += [
                (f"is_{place}", name, (cases.location == place).astype(np.float64))
                for place in LOCATIONS
            ]
        elif name in NUMBERS:
            column = cases.numbers[name]
            parts.append((name, name, _scaled(name, column)))
            if name in MAY_BE_MISSING:
                parts.append((f"has_{name}", name, np.isfinite(column).astype(np.float64)))
        else:
            raise InputError(
                f"a feature must be tissue, location or one of {', '.join(NUMBERS)}, but "
                f"{name!r} is none; correct the feature set"
            )
    return Encoded(
        np.stack([values for _, _, values in parts], axis=1),
        tuple(column for column, _, _ in parts),
        tuple(source for _, source, _ in parts),
    )


def _scaled(name: str, column: F64) -> F64:
    if name.startswith("hu_"):
        return column
    if name.startswith("n_"):
        return np.log1p(column)
    return np.log(np.maximum(column, 0.01))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained classifier as plain numbers.

    Parameters
    ----------
    kind, params
        What was trained.
    medians, centre, scale
        Stand-in for a missing value, and what is subtracted and divided by, a column.
    parts
        The classifier's own arrays; see :func:`fit`.
    """

    kind: Kind
    params: Mapping[str, Any]
    medians: F64
    centre: F64
    scale: F64
    parts: Mapping[str, NDArray[Any]]
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def predict(self, values: F64, *, threads: int = 1) -> F64:
        """Give the probability of malignancy of each row.

        Parameters
        ----------
        values
            Encoded features. Shape (n, n_columns), float64.
        threads
            The result does not depend on it.

        Returns
        -------
        ndarray
            Shape (n,), float64, between 0 and 1.
        """
        filled = np.where(np.isnan(values), self.medians, values)
        x = (filled - self.centre) / self.scale
        if self.kind == "logistic_regression":
            return np.asarray(expit(x @ self.parts["weight"] + self.parts["offset"][0]))
        if self.kind == "nearest_neighbours":
            tree = self._cache.setdefault("tree", KDTree(self.parts["points"]))
            _, near = tree.query(
                x, k=list(range(1, int(self.params["k"]) + 1)), workers=threads
            )
            return np.asarray(self.parts["malignant"][near].mean(axis=1))
        out = np.zeros(len(x))
        x32 = np.ascontiguousarray(x, dtype=np.float32)
        p = self.parts
        arrays = p["feature"], p["threshold"], p["left"], p["right"], p["probability"]
        cuts = np.linspace(0, len(x), 4 * threads + 1).astype(int)

        def one(k: int) -> None:
            part = slice(cuts[k], cuts[k + 1])
            _kernels.vote(x32[part], p["root"], *arrays, out[part])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(4 * threads)))
        return out


def fit(
    kind: Kind,
    params: Mapping[str, Any],
    values: F64,
    y: NDArray[Any],
    seed: int,
    columns: Sequence[str] = (),
) -> Fitted:
    """Train a classifier on encoded features.

    Parameters
    ----------
    kind, params
        See :data:`DEFAULTS`.
    values, y
        Shape (n, n_columns) float64 with NaN for missing, and shape (n,) with 1 for malignant.
    seed
        Of the random forest.
    columns
        Names for messages.

    Raises
    ------
    InputError
        If the kind is unknown, only one class is there, or a column is empty.
    """
    truth = np.asarray(y) > 0
    if truth.all() or not truth.any():
        raise InputError(
            "training needs malignant and benign hotspots, but all are "
            f"{'malignant' if truth.size and truth.all() else 'benign'}; add the other class"
        )
    if (empty := np.isnan(values).all(axis=0)).any():
        k = int(np.argmax(empty))
        raise InputError(
            "each feature needs a value in some hotspot that is learnt from, but "
            f"{columns[k] if columns else f'column {k}'} has none among {len(values)} of them "
            "(a fold may hold few); leave it out (--without) or measure it"
        )
    if kind not in get_args(Kind):
        raise InputError(
            f"a classifier must be one of {', '.join(get_args(Kind))}, but it is {kind!r}; "
            "choose one of these"
        )
    medians = np.nanmedian(values, axis=0)
    x = np.where(np.isnan(values), medians, values)
    centre, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if kind in ("nearest_neighbours", "logistic_regression"):
        centre, spread = x.mean(axis=0), x.std(axis=0)
        is_constant = spread <= 1e-9 * np.maximum(np.abs(centre), 1.0)  # rounding is no spread
        scale = np.where(is_constant, 1.0, spread)
        x = (x - centre) / scale
    parts = _TRAINERS[kind](x, truth, params, seed)
    return Fitted(kind, dict(params), medians, centre, scale, parts)


def _fit_forest(
    x: F64, truth: NDArray[np.bool_], params: Mapping[str, Any], seed: int
) -> dict[str, NDArray[Any]]:
    # here, because every command would wait seconds for it
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        n_estimators=params["n_trees"], min_samples_leaf=params["min_leaf"], random_state=seed
    )
    forest.fit(x, truth)
    return _join_trees([estimator.tree_ for estimator in forest.estimators_])


def _fit_tree(
    x: F64, truth: NDArray[np.bool_], params: Mapping[str, Any], seed: int
) -> dict[str, NDArray[Any]]:
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(min_samples_leaf=params["min_leaf"], random_state=seed)
    tree.fit(x, truth)
    return _join_trees([tree.tree_])


def _join_trees(trees: list[Any]) -> dict[str, NDArray[Any]]:
    """Put the nodes of all trees behind one another; a leaf has feature -1."""
    start = np.concatenate(([0], np.cumsum([tree.node_count for tree in trees])))

    def child(name: str) -> NDArray[np.int32]:
        parts = [
            np.where(getattr(t, name) >= 0, getattr(t, name) + s, -1)
            for t, s in zip(trees, start[:-1], strict=True)
        ]
        return np.concatenate(parts).astype(np.int32)

    value = np.concatenate([tree.value[:, 0, :] for tree in trees])
    return {
        "root": start[:-1].astype(np.int32),
        "feature": np.concatenate([np.maximum(t.feature, -1) for t in trees]).astype(np.int32),
        "threshold": np.concatenate([tree.threshold for tree in trees]),
        "left": child("children_left"),
        "right": child("children_right"),
        "probability": value[:, 1] / value.sum(axis=1),
    }


def _fit_neighbours(
    x: F64, truth: NDArray[np.bool_], params: Mapping[str, Any], seed: int
) -> dict[str, NDArray[Any]]:
    del seed
    if params["k"] > len(x):
        raise InputError(
            f"{params['k']} neighbours need as many training cases, but there are {len(x)}; "
            "use fewer neighbours"
        )
    return {"points": x, "malignant": truth.astype(np.float64)}


def _fit_logistic(
    x: F64, truth: NDArray[np.bool_], params: Mapping[str, Any], seed: int
) -> dict[str, NDArray[Any]]:
    del seed
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=params["c"], max_iter=1000)
    model.fit(x, truth)
    return {"weight": model.coef_[0], "offset": model.intercept_}


_TRAINERS = {
    "random_forest": _fit_forest,
    "decision_tree": _fit_tree,
    "nearest_neighbours": _fit_neighbours,
    "logistic_regression": _fit_logistic,
}
