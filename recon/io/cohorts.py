"""Cohort settings, tables of cases and classifier models as files."""

from __future__ import annotations

import hashlib
import tomllib
from collections import UserDict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from recon.hotspots.cases import Cases
from recon.hotspots.classify import Classifier
from recon.hotspots.cohort import CohortSettings
from recon.io import files, sidecar, tables


def load_cohort_settings(path: Path | None = None) -> CohortSettings:
    """Read cohort settings; without a path those that come with stillpet.

    Raises
    ------
    InputError
        If the file cannot be read, is not TOML or not a cohort file.
    """
    if path is None:
        text = (resources.files("recon") / "hotspots" / "cohort.toml").read_text("utf-8")
    else:
        text = tables.load_text(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"a cohort file must be TOML, but it is not: {error}; correct it"
        ) from None
    return CohortSettings.from_table(table)


def save_cases(path: Path, cases: Cases) -> None:
    """Write a table of cases as CSV.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    files.write_whole({path: cases.to_csv().encode()})


def load_cases(path: Path) -> Cases:
    """Read a table of cases from CSV.

    Raises
    ------
    InputError
        If the file cannot be read or its contents cannot be used.
    """
    return Cases.from_csv(tables.load_text(path), path.name)


PROBABILITY_COLUMNS = (
    "patient",
    "hotspot",
    "tissue",
    "location",
    "level",
    "side",
    "origin",
    "suv_max",
    "suv_max_se",
    "probability",
)


def save_probabilities(path: Path, cases: Cases, probability: NDArray[np.float64]) -> None:
    """Write the probability of each hotspot as CSV; see docs/classifier.md for its columns.

    Parameters
    ----------
    path
        The file.
    cases
        What was classified.
    probability
        That each hotspot is malignant. Shape (n_cases,), float64.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    columns = {
        "patient": cases.patient,
        "tissue": cases.tissue,
        "location": cases.location,
        **cases.details,
        **cases.numbers,
        "probability": probability,
    }
    each = (columns[name].tolist() for name in PROBABILITY_COLUMNS)
    rows = (["" if cell != cell else cell for cell in row] for row in zip(*each, strict=True))
    tables.save_table(path, PROBABILITY_COLUMNS, rows, sep=",")


MAX_MODEL_BYTES = 200 << 20


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier as JSON.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    files.write_whole({path: classifier.to_json().encode()})


def load_classifier(path: Path) -> Classifier:
    """Read a classifier; nothing in the file is run.

    Raises
    ------
    InputError
        If the file cannot be read, is larger than 200 MiB, or is no classifier of this version.
    """
    if path.is_file() and path.stat().st_size > MAX_MODEL_BYTES:
        raise InputError(
            f"{path.name} must be a classifier of at most {MAX_MODEL_BYTES >> 20} MiB, but it "
            f"has {path.stat().st_size >> 20} MiB; take the original file"
        )
    return Classifier.from_json(tables.load_text(path), path.name)


class KeptParts(UserDict[str, Any]):
    """Finished parts of an evaluation, in a file that is written anew with each.

    Parameters
    ----------
    path
        The file; parts in it count if they were kept under the same ``key``.
    key
        Everything that the parts depend on, as JSON values.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = path
        self._key = hashlib.sha256(sidecar.encode(key)).hexdigest()
        if path.is_file():
            try:
                content = tables.load_json(path)
            except InputError:  # another program's file, or a damaged disk: begin anew
                return
            if content.get("key") == self._key:
                self.data = dict(content["parts"])

    def __setitem__(self, name: str, part: Any) -> None:
        self.data[name] = part
        tables.save_json(self._path, {"key": self._key, "parts": self.data})

    def remove(self) -> None:
        """Remove the file: all is done."""
        self._path.unlink(missing_ok=True)
