"""What a table of cases may hold: names of tissues and places, numbers that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from recon.hotspots.rows import listed

F64 = NDArray[np.float64]

TISSUES = ("bone", "lymph_node")
LOCATIONS = (
    "thorax",
    "spine",
    "pelvis",
    "lower_extremity",
    "para_aortic",
    "common_iliac",
)
_ONLY_IN = {"spine": "bone", "lower_extremity": "bone", "para_aortic": "lymph_node"}
_ONLY_IN |= {"common_iliac": "lymph_node"}
SIMULATED = "simulated"
ORIGINS = ("", "image", SIMULATED)
REQUIRED = ("suv_max", "n_lymph_node", "n_bone", "scan_suv_max", "region_suv_mean")

IMPOSSIBLE_SUV = 1000.0
SUSPICIOUS_MEDIAN_SUV = 50.0


def check_patients(patient: NDArray[np.str_]) -> None:
    """Refuse hotspots without a patient."""
    if (nameless := np.char.strip(patient) == "").any():
        raise InputError(
            f"patient must be a code, but row {int(np.argmax(nameless))} has none; hotspots "
            "without one would count as one patient: give each patient a code"
        )


def check_names(
    tissue: NDArray[np.str_], location: NDArray[np.str_], origin: NDArray[np.str_]
) -> None:
    """Refuse unknown tissues, places and origins, and tissues in the wrong place."""
    for what, column, known in (
        ("tissue", tissue, TISSUES),
        ("location", location, LOCATIONS),
        ("origin", origin, ORIGINS),
    ):
        if unknown := set(column.tolist()) - set(known):
            raise InputError(
                f"{what} must be one of {', '.join(filter(None, known))}, but the table has "
                f"{listed(map(repr, unknown))}; rename it"
            )
    for place, only in _ONLY_IN.items():
        if (wrong := (location == place) & (tissue != only)).any():
            raise InputError(
                f"only a {only} lies in {place}, but row {int(np.argmax(wrong))} is a "
                f"{tissue[np.argmax(wrong)]} there; correct its tissue or location"
            )


def check_numbers(numbers: Mapping[str, F64]) -> None:
    """Refuse what cannot be measured: missing, negative, infinite, or no SUV."""
    for name in REQUIRED:
        if (bad := ~np.isfinite(numbers[name])).any():
            raise InputError(
                f"{name} must be a finite number, but row {int(np.argmax(bad))} holds "
                f"{numbers[name][np.argmax(bad)]}; measure it or leave the hotspot out"
            )
    for name, column in numbers.items():
        least = -math.inf if name.startswith("hu_") else 0.0
        if (bad := (column < least) | np.isinf(column)).any():
            raise InputError(
                f"{name} must not be negative or infinite, but row {int(np.argmax(bad))} holds "
                f"{column[np.argmax(bad)]:g}; correct it"
            )
    top = float(numbers["suv_max"].max())
    if top > IMPOSSIBLE_SUV:
        raise InputError(
            f"suv_max must be a body-weight SUV (g/mL), but its highest is {top:g} and looks "
            "like Bq/mL; divide by the injected activity per gram"
        )


def check_labels(labels: Mapping[str, NDArray[Any]]) -> None:
    """Refuse labels other than 1, 0 and -1."""
    for name, column in labels.items():
        if bad := set(column.tolist()) - {-1, 0, 1}:
            raise InputError(
                f"{name} must be 1 (malignant), 0 (benign) or empty, but it holds "
                f"{listed(map(str, bad))}; recode it"
            )


def doubts(numbers: Mapping[str, F64]) -> tuple[str, ...]:
    """Say what is possible but unlikely."""
    median = float(np.median(numbers["suv_max"]))
    if median <= SUSPICIOUS_MEDIAN_SUV:
        return ()
    return (
        f"the median of suv_max is {median:.3g}: as body-weight SUV that is rare, as kBq/mL it "
        "is common; check the unit",
    )
