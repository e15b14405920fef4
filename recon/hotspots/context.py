"""From a patient's measured hotspots to cases with context."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from listmode.errors import InputError
from recon.hotspots.cases import Cases, add_context
from recon.hotspots.features import CtFeatures, Hotspot, HotspotTable
from recon.hotspots.places import Place, place_of, plain_name
from recon.hotspots.symmetry import Reference

PRIMARY = frozenset({"prostate", "primary", "primary_tumour", "primary_tumor"})


@dataclass(frozen=True)
class Described:
    """Cases of one patient, and what was left out.

    Parameters
    ----------
    cases
        One row a hotspot in bone or lymph node.
    hotspot_id
        The hotspot of each case in the measured table.
    places
        Where each case is, with vertebra or rib and side as far as names tell.
    left_out
        Hotspot and reason of every other one.
    """

    cases: Cases
    hotspot_id: tuple[int, ...]
    places: tuple[Place, ...]
    left_out: tuple[tuple[int, str], ...]


def describe_patient(
    table: HotspotTable,
    references: Sequence[Reference],
    *,
    patient: str,
    primary: Collection[str] = PRIMARY,
    primary_suv_max: float | None = None,
    suv_max_se: Sequence[float] | None = None,
    ct: Sequence[CtFeatures] | None = None,
    excluded: Collection[int] = (),
    origin: str = "image",
) -> Described:
    """Make the cases of one patient from measured hotspots.

    The hottest hotspot in a region that ``primary`` names is the primary tumour; it gives a
    feature and is no case itself. Physiological uptake, and hotspots whose region names neither
    bone nor lymph node, are left out and listed.

    Parameters
    ----------
    table
        Of one patient, in SUV.
    references
        From :func:`~recon.hotspots.symmetry.reference_uptake` on an SUV volume, one a row.
    patient
        A code for the patient, never a name.
    primary
        Names of regions that hold the primary tumour.
    primary_suv_max
        Its SUVmax if it is known otherwise.
    suv_max_se
        Standard error of each row's SUVmax; without it the table's own.
    ct
        From :func:`~recon.hotspots.features.measure_ct`, one a row.
    excluded
        Hotspots (ids) whose uptake the user calls physiological.
    origin
        From :data:`~recon.hotspots.cases.ORIGINS`; say so if the scan was simulated.

    Raises
    ------
    InputError
        If there is not one reference a row, SUV is unknown, an id to exclude is unknown, or no
        hotspot is in bone or lymph node.
    """
    if len(references) != len(table):
        raise InputError(
            f"each hotspot needs one reference, but there are {len(references)} for "
            f"{len(table)} hotspots; measure both from one segmentation"
        )
    if any(math.isnan(row.suv_max) for row in table):
        raise InputError(
            "cases are described in SUV, but the SUV of this table is unknown; give injected "
            "activity and weight"
        )
    if strange := set(excluded) - {row.id for row in table}:
        raise InputError(
            f"only hotspots 1 to {len(table)} can be excluded, but "
            f"{', '.join(map(str, sorted(strange)))} was asked for; look the id up in the table"
        )
    unknown = CtFeatures(math.nan, math.nan, math.nan)
    hu = [unknown] * len(table) if ct is None else list(ct)
    errors = [r.suv_max_se for r in table] if suv_max_se is None else list(suv_max_se)
    kept, left_out = [], []
    main = [r.suv_max for r in table if plain_name(r.label) in primary and r.id not in excluded]
    for k, row in enumerate(table):
        place = place_of(row.label)
        if why := _why_left_out(row, place, primary, excluded):
            left_out.append((row.id, why))
        else:
            kept.append((k, row, place))
    if not kept:
        raise InputError(
            "a patient needs a hotspot in bone or lymph node, but all "
            f"{len(table)} are elsewhere; check the label map's names"
        )
    if primary_suv_max is None:
        primary_suv_max = max(main, default=math.nan)
    cases = add_context(
        patient=[patient] * len(kept),
        tissue=[place.tissue for _, _, place in kept],
        location=[place.location for _, _, place in kept],
        suv_max=[row.suv_max for _, row, _ in kept],
        primary_suv_max=np.full(len(kept), primary_suv_max),
        reference_suv_max=[references[k].value for k, _, _ in kept],
        suv_max_se=[errors[k] for k, _, _ in kept],
        hu_mean=[hu[k].hu_mean for k, _, _ in kept],
        hu_max=[hu[k].hu_max for k, _, _ in kept],
        hu_sd=[hu[k].hu_sd for k, _, _ in kept],
        details={
            "hotspot": [str(row.id) for _, row, _ in kept],
            "level": [place.level for *_, place in kept],
            "side": [place.side for *_, place in kept],
            "origin": [origin] * len(kept),
        },
    )
    return Described(
        cases,
        tuple(row.id for _, row, _ in kept),
        tuple(place for _, _, place in kept),
        tuple(left_out),
    )


def _why_left_out(
    row: Hotspot, place: Place, primary: Collection[str], excluded: Collection[int]
) -> str:
    if row.id in excluded:
        return "physiological: the user says so"
    if row.is_physiological:
        return "physiological"
    if plain_name(row.label) in primary:
        return "primary tumour"
    if not place.tissue:
        return f"neither bone nor lymph node: {row.label or 'no region'}"
    return ""


def join_patients(patients: Sequence[Cases]) -> Cases:
    """Put the cases of several patients into one table.

    Raises
    ------
    InputError
        If there is no patient, or one code stands for two.
    """
    codes = [code for cases in patients for code in np.unique(cases.patient).tolist()]
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if not codes or twice:
        raise InputError(
            "each patient needs a code of his own, but "
            f"{', '.join(twice) or 'none'} {'stand in two tables' if twice else 'is given'}; "
            "rename them"
        )
    first = patients[0]
    return Cases(
        np.concatenate([c.patient for c in patients]),
        np.concatenate([c.tissue for c in patients]),
        np.concatenate([c.location for c in patients]),
        {n: np.concatenate([c.numbers[n] for c in patients]) for n in first.numbers},
        {n: np.concatenate([c.labels[n] for c in patients]) for n in first.labels},
        {n: np.concatenate([c.details[n] for c in patients]) for n in first.details},
    )
