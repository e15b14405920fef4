"""Simulated cohorts of hotspots with known truth, from one frozen table of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from recon.hotspots.cases import LOCATIONS, SIMULATED, Cases, add_context

SCHEMA = "stillpet-cohort-1"
GROUPS = ("bone_benign", "bone_malignant", "lymph_node_benign", "lymph_node_malignant")


@dataclass(frozen=True)
class CohortSettings:
    """Parameters of a simulated cohort; the TOML file says where each comes from.

    Parameters
    ----------
    patients, counts, suv_max, primary, reference, location, readers
        The tables of the file.

    Raises
    ------
    InputError
        If a table or a key is missing or unknown, or numbers contradict one another.
    """

    patients: Mapping[str, Any]
    counts: Mapping[str, Any]
    suv_max: Mapping[str, Any]
    primary: Mapping[str, Any]
    reference: Mapping[str, Any]
    location: Mapping[str, Any]
    readers: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, keys in _KEYS.items():
            table = getattr(self, name)
            _check_keys(name, table, keys)
        for group in GROUPS:
            _check_keys(f"suv_max.{group}", self.suv_max[group], ("median", "sd_log"))
            share = sum(self.location[group].values())
            if set(self.location[group]) - set(LOCATIONS) or abs(share - 1.0) > 1e-6:
                raise InputError(
                    f"location.{group} must share 1 among {', '.join(LOCATIONS)}, but it has "
                    f"{dict(self.location[group])}; correct the cohort file"
                )
        p = self.patients
        owners = p["n_malignant_lymph_node"] + p["n_malignant_bone"] - p["n_malignant_both"]
        most = max(owners, p["n_benign_bone"], p["n_benign_lymph_node"])
        fewest = min(p["n_malignant_lymph_node"], p["n_malignant_bone"])
        if most > p["n"] or p["n_malignant_both"] > fewest:
            raise InputError(
                f"owners of hotspots must be among the {p['n']} patients, but {most} are "
                "needed; correct the cohort file"
            )

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> CohortSettings:
        """Make settings from a parsed TOML file.

        Raises
        ------
        InputError
            If the schema is another one, or a table is missing or unknown.
        """
        if table.get("schema") != SCHEMA:
            raise InputError(
                f"a cohort file must have schema {SCHEMA!r}, but it has "
                f"{table.get('schema')!r}; use the file that comes with this version"
            )
        _check_keys("the cohort file", table, ("schema", *_KEYS))
        return cls(**{name: table[name] for name in _KEYS})


_KEYS = {
    "patients": (
        "n",
        "within_correlation",
        "n_malignant_lymph_node",
        "n_malignant_bone",
        "n_malignant_both",
        "n_benign_bone",
        "n_benign_lymph_node",
    ),
    "counts": (*GROUPS, "gamma_shape_malignant", "gamma_shape_benign"),
    "suv_max": GROUPS,
    "primary": ("median", "sd_log", "patient_correlation", "missing"),
    "reference": ("median", "sd_log", "missing"),
    "location": GROUPS,
    "readers": ("error",),
}


def _check_keys(what: str, table: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if set(table) != set(keys):
        raise InputError(
            f"{what} must have exactly {', '.join(keys)}, but it has "
            f"{', '.join(table) or 'nothing'}; correct the cohort file"
        )


def generate_cohort(settings: CohortSettings, seed: int) -> Cases:
    """Draw a simulated cohort.

    Every patient has a hidden log-SUV effect u. A hotspot's log SUVmax is
    ``log median + sd (sqrt(rho) u + sqrt(1 - rho) e)`` with e its own standard normal deviate
    and rho the within-patient correlation. The hotspots of a group are dealt to its owners: one
    each, the rest by gamma-distributed shares.

    Parameters
    ----------
    settings
        From :func:`recon.io.cohorts.load_cohort_settings`.
    seed
        The same seed gives the same cohort.

    Returns
    -------
    Cases
        With context, both readers' labels and the true ``malignant``. Simulated.
    """
    rng = np.random.default_rng(seed)
    p = settings.patients
    effect = rng.standard_normal(p["n"])
    owners = _deal_owners(p, rng)
    who: list[NDArray[np.int64]] = []
    for name in GROUPS:
        kind = "malignant" if name.endswith("malignant") else "benign"
        shape = settings.counts[f"gamma_shape_{kind}"]
        n = settings.counts[name]
        share = rng.gamma(shape, size=owners[name].size)
        more = rng.multinomial(n - owners[name].size, share / share.sum())
        who.append(np.repeat(owners[name], 1 + more))
    patient = np.concatenate(who)
    group = np.repeat(np.arange(len(GROUPS)), [w.size for w in who])
    rho = p["within_correlation"]
    deviate = np.sqrt(rho) * effect[patient]
    deviate += np.sqrt(1 - rho) * rng.standard_normal(patient.size)
    median = np.array([settings.suv_max[g]["median"] for g in GROUPS])[group]
    sd_log = np.array([settings.suv_max[g]["sd_log"] for g in GROUPS])[group]
    location = np.concatenate(
        [
            rng.choice(
                list(settings.location[g]), w.size, p=list(settings.location[g].values())
            )
            for g, w in zip(GROUPS, who, strict=True)
        ]
    )
    malignant = np.array([g.endswith("malignant") for g in GROUPS])[group].astype(np.int8)
    wrong = rng.random((2, patient.size)) < settings.readers["error"]
    order = np.argsort(patient, kind="stable")
    return add_context(
        patient=np.array([f"P{k:03d}" for k in patient])[order],
        tissue=np.array([g.rpartition("_")[0] for g in GROUPS])[group][order],
        location=location[order],
        suv_max=(median * np.exp(sd_log * deviate))[order],
        primary_suv_max=_primary(settings, effect, rng)[patient][order],
        reference_suv_max=_reference(settings, patient.size, rng)[order],
        labels={
            "malignant": malignant[order],
            "reader_1": (malignant ^ wrong[0])[order],
            "reader_2": (malignant ^ wrong[1])[order],
        },
        details={"origin": np.full(patient.size, SIMULATED)},
    )


def _deal_owners(
    p: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    """Choose who owns hotspots of each group.

    Some patients own malignant ones of both tissues. Benign bone uptake goes first to those who
    would have no hotspot at all: a patient without any would not be in such a study.
    """
    shuffled = rng.permutation(p["n"])
    n_node, n_both = p["n_malignant_lymph_node"], p["n_malignant_both"]
    first = n_node - n_both
    owners = {
        "lymph_node_malignant": shuffled[:n_node],
        "bone_malignant": shuffled[first : first + p["n_malignant_bone"]],
        "lymph_node_benign": rng.permutation(p["n"])[: p["n_benign_lymph_node"]],
    }
    has_one = np.isin(np.arange(p["n"]), np.concatenate(list(owners.values())))
    candidates = rng.permutation(p["n"])
    waiting_first = candidates[np.argsort(has_one[candidates], kind="stable")]
    owners["bone_benign"] = waiting_first[: p["n_benign_bone"]]
    return owners


def _primary(
    settings: CohortSettings, effect: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    s = settings.primary
    r = s["patient_correlation"]
    deviate = r * effect + np.sqrt(1 - r**2) * rng.standard_normal(effect.size)
    suv = s["median"] * np.exp(s["sd_log"] * deviate)
    return np.where(rng.random(effect.size) < s["missing"], np.nan, suv)


def _reference(
    settings: CohortSettings, n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    s = settings.reference
    suv = s["median"] * np.exp(s["sd_log"] * rng.standard_normal(n))
    return np.where(rng.random(n) < s["missing"], np.nan, suv)
