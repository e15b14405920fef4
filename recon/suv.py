"""Standardised uptake values: by body weight, lean body mass or body surface."""

from __future__ import annotations

import math
from typing import Literal, get_args

from listmode.errors import InputError
from listmode.source import ScanProtocol

SuvBy = Literal["weight", "lean", "lean-james", "surface"]
SUV_KINDS: tuple[SuvBy, ...] = get_args(SuvBy)

SUV_WORDS: dict[SuvBy, str] = {
    "weight": "SUV by body weight, g/mL",
    "lean": "SUV by lean body mass (Janmahasatian 2005), g/mL",
    "lean-james": "SUV by lean body mass (James 1976), g/mL",
    "surface": "SUV by body surface (Du Bois 1916), cm²/mL",
}


def lean_body_mass_kg(weight_kg: float, height_m: float, sex: Literal["F", "M"]) -> float:
    """Give the lean body mass.

    Parameters
    ----------
    weight_kg, height_m
        Body weight, kg, and height, m.
    sex
        ``"F"`` or ``"M"``.

    Notes
    -----
    Janmahasatian et al., Clin Pharmacokinet 2005;44:1051-1065, doi
    10.2165/00003088-200544100-00004: ``9270 W / (8780 + 244 BMI)`` for women and ``9270 W /
    (6680 + 216 BMI)`` for men.

    Examples
    --------
    >>> round(lean_body_mass_kg(70.0, 1.75, "M"), 1)
    55.9
    """
    bmi = weight_kg / height_m**2
    offset, slope = (8780.0, 244.0) if sex == "F" else (6680.0, 216.0)
    return 9270.0 * weight_kg / (offset + slope * bmi)


def james_lean_body_mass_kg(weight_kg: float, height_m: float, sex: Literal["F", "M"]) -> float:
    """Give the lean body mass by the older formula; it falls again for very heavy people.

    Notes
    -----
    James, Research on Obesity, HMSO 1976, as DICOM's LBMJAMES128 has it (PS3.16, CID 85):
    ``1.07 W - 148 (W / H)**2`` for women and ``1.10 W - 128 (W / H)**2`` for men, H in cm.

    Examples
    --------
    >>> round(james_lean_body_mass_kg(70.0, 1.75, "M"), 1)
    56.5
    """
    ratio = weight_kg / (100.0 * height_m)
    slope, square = (1.07, 148.0) if sex == "F" else (1.10, 128.0)
    return slope * weight_kg - square * ratio**2


def body_surface_m2(weight_kg: float, height_m: float) -> float:
    """Give the body surface.

    Notes
    -----
    Du Bois, Du Bois, Arch Intern Med 1916;17:863-871, doi
    10.1001/archinte.1916.00080130010002: ``0.007184 W**0.425 H**0.725``, H in cm.

    Examples
    --------
    >>> round(body_surface_m2(70.0, 1.75), 2)
    1.85
    """
    return float(0.007184 * weight_kg**0.425 * (100.0 * height_m) ** 0.725)


def mosteller_surface_m2(weight_kg: float, height_m: float) -> float:
    """Give the body surface by the short formula, within some per cent of Du Bois'.

    Notes
    -----
    Mosteller, N Engl J Med 1987;317:1098, doi 10.1056/NEJM198710223171717:
    ``sqrt(H W / 3600)``, H in cm.
    """
    return math.sqrt(100.0 * height_m * weight_kg / 3600.0)


def suv_factor(protocol: ScanProtocol, by: SuvBy = "weight") -> float | None:
    """Give the factor from Bq/mL at tick zero to SUV; ``None`` where a fact is not known.

    Parameters
    ----------
    protocol
        Activity, weight; height and sex for all but ``"weight"`` (a surface needs no sex).
    by
        What the injected activity is shared over.

    Returns
    -------
    float or None
        g/mL per Bq/mL; cm²/mL per Bq/mL by surface.

    Raises
    ------
    InputError
        If weight or height is impossible, or there is no such kind.
    """
    if by not in SUV_KINDS:
        raise InputError(
            f"SUV goes by one of {', '.join(SUV_KINDS)}, but {by!r} was asked for; choose one"
        )
    factor, weight, height = (
        protocol.suv_per_bq_ml,
        protocol.patient_weight_kg,
        protocol.patient_height_m,
    )
    if by == "weight" or factor is None or weight is None:
        return factor
    if height is None or (by != "surface" and protocol.patient_sex is None):
        return None
    if not 0.3 <= height <= 2.5:
        raise InputError(
            f"a patient's height must lie in 0.3-2.5 m, but it is {height:g} m; correct the "
            "protocol, which counts in metres"
        )
    if by == "surface":
        return factor * body_surface_m2(weight, height) * 10.0 / weight  # 1e4 cm² over 1e3 g
    assert protocol.patient_sex is not None
    formula = lean_body_mass_kg if by == "lean" else james_lean_body_mass_kg
    mass = formula(weight, height, protocol.patient_sex)
    if not mass > 0.0:
        raise InputError(
            f"lean body mass must be positive, but James' formula gives {mass:.3g} kg for "
            f"{weight:g} kg and {height:g} m; use 'lean'"
        )
    return factor * mass / weight


def suv_factors(protocol: ScanProtocol) -> dict[str, float]:
    """Give the factors of all kinds that the protocol allows, for provenance."""
    found: dict[str, float] = {}
    for by in SUV_KINDS:
        try:
            factor = suv_factor(protocol, by)
        except InputError:
            continue
        if factor is not None:
            found[by] = factor
    return found
