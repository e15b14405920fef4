"""Cases: hotspots with tissue, place, context and readers' labels, ready to be classified."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError
from recon.hotspots.case_checks import LOCATIONS as LOCATIONS
from recon.hotspots.case_checks import ORIGINS as ORIGINS
from recon.hotspots.case_checks import SIMULATED as SIMULATED
from recon.hotspots.case_checks import TISSUES as TISSUES
from recon.hotspots.case_checks import (
    check_labels,
    check_names,
    check_numbers,
    check_patients,
    doubts,
)
from recon.hotspots.rows import read_rows

F64 = NDArray[np.float64]

SCHEMA = "stillpet-cases-2"

TEXTS = ("patient", "tissue", "location")
DETAILS = ("hotspot", "level", "side", "origin")
NUMBERS = (
    "suv_max",
    "suv_max_se",
    "primary_suv_max",
    "reference_suv_max",
    "n_lymph_node",
    "n_bone",
    "scan_suv_max",
    "region_suv_mean",
    "scan_suv_max_others",
    "region_suv_mean_others",
    "hu_mean",
    "hu_max",
    "hu_sd",
)
LABELS = ("reader_1", "reader_2", "malignant")
COLUMNS = TEXTS + DETAILS + NUMBERS + LABELS


@dataclass(frozen=True, eq=False)
class Cases:
    """A table of hotspots; NaN where a number is not known, -1 where a label is not.

    Parameters
    ----------
    patient
        Whose hotspot it is. Shape (n,), str.
    tissue, location
        From :data:`TISSUES` and :data:`LOCATIONS`. Shape (n,), str.
    numbers
        The columns of :data:`NUMBERS`, each of shape (n,), float64.
    labels
        ``reader_1``, ``reader_2`` and their consensus ``malignant``: 1, 0 or -1. Shape (n,),
        int8.
    details
        What no classifier reads, "" where it is not known: ``hotspot`` (its id in the table of
        hotspots), ``level`` (vertebra or rib), ``side``, and ``origin`` from :data:`ORIGINS`.
        Shape (n,), str.
    notes
        Doubts about the values, for whoever reads results.

    Raises
    ------
    InputError
        If there is no hotspot, columns differ in length, a tissue, location or origin is
        unknown, a required number is missing, negative or not finite, or an SUV is impossible.
    """

    patient: NDArray[np.str_]
    tissue: NDArray[np.str_]
    location: NDArray[np.str_]
    numbers: Mapping[str, F64]
    labels: Mapping[str, NDArray[np.int8]]
    details: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.patient)
        if not n:
            raise InputError(
                "a table of cases needs at least one hotspot, but it is empty; check what "
                "the segmentation found"
            )
        numbers = {
            name: np.array(self.numbers.get(name, np.full(n, np.nan)), dtype=np.float64)
            for name in NUMBERS
        }
        labels = {name: np.asarray(self.labels.get(name, np.full(n, -1))) for name in LABELS}
        check_labels(labels)  # before they are cut to eight bits
        labels = {name: np.array(column, dtype=np.int8) for name, column in labels.items()}
        details = {
            name: np.array(self.details.get(name, np.full(n, "")), dtype=np.str_)
            for name in DETAILS
        }
        columns: dict[str, NDArray[Any]] = {**details, **numbers, **labels}
        columns |= {"tissue": self.tissue, "location": self.location}
        for name, column in columns.items():
            if column.shape != (n,):
                raise InputError(
                    f"each column must have one value a hotspot ({n}), but {name} has shape "
                    f"{column.shape}; correct the table"
                )
            column.setflags(write=False)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "details", details)
        check_names(self.tissue, self.location, details["origin"])
        check_patients(self.patient)
        check_numbers(numbers)
        notes = dict.fromkeys((*self.notes, *doubts(numbers)))
        object.__setattr__(self, "notes", tuple(notes))

    def __len__(self) -> int:
        return len(self.patient)

    @property
    def malignant(self) -> NDArray[np.int8]:
        """Consensus label. Shape (n,), int8."""
        return self.labels["malignant"]

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return len(np.unique(self.patient))

    @property
    def n_simulated(self) -> int:
        """Number of hotspots that no patient ever had."""
        return int((self.details["origin"] == SIMULATED).sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the table as CSV."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    def take(self, rows: ArrayLike) -> Cases:
        """Return some rows, in the order given (a mask or numbers of rows)."""
        pick = np.asarray(rows)
        return Cases(
            self.patient[pick],
            self.tissue[pick],
            self.location[pick],
            {name: column[pick] for name, column in self.numbers.items()},
            {name: column[pick] for name, column in self.labels.items()},
            {name: column[pick] for name, column in self.details.items()},
        )

    def with_numbers(self, **columns: ArrayLike) -> Cases:
        """Return the table with some numbers replaced (controls, what-if questions)."""
        numbers = {**self.numbers}
        numbers |= {name: np.asarray(column, np.float64) for name, column in columns.items()}
        return replace(self, numbers=numbers, notes=())

    def with_malignant(self, malignant: ArrayLike) -> Cases:
        """Return the table with other consensus labels."""
        labels = {**self.labels, "malignant": np.asarray(malignant, dtype=np.int8)}
        return replace(self, labels=labels, notes=())

    def to_csv(self) -> str:
        """Write the table as CSV text; unknown values are empty cells."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i in range(len(self)):
            writer.writerow(
                [
                    *(getattr(self, name)[i] for name in TEXTS),
                    *(self.details[name][i] for name in DETAILS),
                    *(_number_cell(self.numbers[name][i]) for name in NUMBERS),
                    *(
                        "" if self.labels[name][i] < 0 else self.labels[name][i]
                        for name in LABELS
                    ),
                ]
            )
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str, name: str = "table") -> Cases:
        """Read what :meth:`to_csv` wrote; columns may come in any order.

        Raises
        ------
        InputError
            If columns are missing or unknown, or a value cannot be used.
        """
        rows = read_rows(
            text, COLUMNS, name=name, schema=SCHEMA, advice="see docs/classifier.md"
        )
        numbers = {c: _parse(rows, c, float, math.nan, name) for c in NUMBERS}
        labels = {c: _parse(rows, c, _label, -1, name) for c in LABELS}
        texts = {
            c: np.array([row[c].strip() for row in rows], dtype=np.str_)
            for c in TEXTS + DETAILS
        }
        return cls(
            texts["patient"],
            texts["tissue"],
            texts["location"],
            {c: np.array(column, dtype=np.float64) for c, column in numbers.items()},
            {c: np.array(column, dtype=np.int8) for c, column in labels.items()},
            {c: texts[c] for c in DETAILS},
        )


def _number_cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _label(text: str) -> int:
    return {"0": 0, "1": 1}[text]


_EXPECTED: dict[Callable[[str], Any], str] = {float: "a number", _label: "0 or 1"}


def _parse(
    rows: Sequence[Mapping[str, str]],
    column: str,
    kind: Callable[[str], Any],
    unknown: float,
    name: str,
) -> list[Any]:
    values = []
    for line, row in enumerate(rows, start=2):
        text = row[column].strip()
        try:
            values.append(kind(text) if text else unknown)
        except (ValueError, KeyError):
            raise InputError(
                f"{name}, line {line}: {column} must hold {_EXPECTED[kind]}, but it holds "
                f"{text!r}; correct that cell or leave it empty"
            ) from None
    return values


def add_context(
    *,
    patient: ArrayLike,
    tissue: ArrayLike,
    location: ArrayLike,
    suv_max: ArrayLike,
    primary_suv_max: ArrayLike,
    reference_suv_max: ArrayLike,
    labels: Mapping[str, ArrayLike] | None = None,
    details: Mapping[str, ArrayLike] | None = None,
    **more: ArrayLike,
) -> Cases:
    """Make cases from all hotspots of each patient: count, and compare each with the others.

    Parameters
    ----------
    patient, tissue, location
        Shape (n,), str.
    suv_max
        SUVmax of the hotspot. Shape (n,), g/mL.
    primary_suv_max
        SUVmax of the patient's primary tumour, NaN if there is none. Shape (n,), g/mL.
    reference_suv_max
        SUVmax of the same place in health (other side, next vertebra), NaN if not found.
        Shape (n,), g/mL.
    labels, details
        Of :data:`LABELS` and :data:`DETAILS`, those that are known.
    more
        Further columns of :data:`NUMBERS`.

    Returns
    -------
    Cases
        With ``n_lymph_node`` and ``n_bone`` (hotspots of the patient in lymph nodes and in
        bone), ``scan_suv_max`` (highest SUVmax over all of the patient's hotspots),
        ``region_suv_mean`` (mean SUVmax of the patient's hotspots at this location), and the
        last two once more without the hotspot itself (``..._others``; NaN if it is the only
        one).

    Raises
    ------
    InputError
        As :class:`Cases`.
    """
    who = np.asarray(patient, dtype=np.str_)
    what = np.asarray(tissue, dtype=np.str_)
    where = np.asarray(location, dtype=np.str_)
    suv = np.asarray(suv_max, dtype=np.float64)
    n = len(who)
    columns = {name: np.full(n, np.nan) for name in NUMBERS[4:10]}
    for one in np.unique(who):
        mine = np.flatnonzero(who == one)
        columns["n_lymph_node"][mine] = (what[mine] == "lymph_node").sum()
        columns["n_bone"][mine] = (what[mine] == "bone").sum()
        columns["scan_suv_max"][mine] = suv[mine].max()
        for i in mine:
            others = mine[mine != i]
            here = mine[where[mine] == where[i]]
            columns["region_suv_mean"][i] = suv[here].mean()
            if others.size:
                columns["scan_suv_max_others"][i] = suv[others].max()
            if here.size > 1:
                columns["region_suv_mean_others"][i] = suv[here[here != i]].mean()
    numbers = {
        **columns,
        "suv_max": suv,
        "primary_suv_max": np.asarray(primary_suv_max, dtype=np.float64),
        "reference_suv_max": np.asarray(reference_suv_max, dtype=np.float64),
        **{name: np.asarray(column, dtype=np.float64) for name, column in more.items()},
    }
    return Cases(
        who,
        what,
        where,
        numbers,
        {name: np.asarray(column) for name, column in (labels or {}).items()},
        {name: np.asarray(column, dtype=np.str_) for name, column in (details or {}).items()},
    )
