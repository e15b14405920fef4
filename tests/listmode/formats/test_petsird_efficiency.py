"""Which of a PETSIRD header's efficiencies reach the model, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats._petsird_scanner import Detector, build_detector

N_MODULES, N_ELEMENTS, N_ENERGY = 4, 2, 3


def header(**efficiencies: Any) -> dict[str, Any]:
    """Describe a square of four modules of two crystals, with three energy bins."""
    corners = np.array([(x, y, z) for x in (0.0, 20.0) for y in (-2, 2) for z in (-2, 2)])
    elements = np.zeros((N_ELEMENTS, 3, 4))
    elements[:, :, :3] = np.eye(3)
    elements[:, 2, 3] = (-2.5, 2.5)
    modules = np.zeros((N_MODULES, 3, 4))
    for k in range(N_MODULES):
        c, s = np.cos(k * np.pi / 2), np.sin(k * np.pi / 2)
        modules[k, :, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
        modules[k, :2, 3] = 100 * c, 100 * s
    object_ = {"detectingElements": {"object": {"shape": corners}, "transforms": elements}}
    return {
        "scanner": {
            "scannerGeometry": {
                "replicatedModules": [{"object": object_, "transforms": modules}]
            },
            "eventEnergyBinEdges": [{"edges": np.array([430.0, 470.0, 520.0, 580.0])}],
            "tofBinEdges": [[{"edges": np.array([-30.0, 0.0, 30.0])}]],
            "tofResolution": [[20.0]],
            "energyResolutionAt511": [0.1],
            "detectionEfficiencies": efficiencies,
        }
    }


def said(detector: Detector) -> str:
    return "; ".join(detector.notes)


def test_efficiency_of_a_crystal_is_the_mean_over_its_energy_bins() -> None:
    """Detection bins run over energy first, then element, then module."""
    bins = np.random.default_rng(1).uniform(0.5, 1.5, N_MODULES * N_ELEMENTS * N_ENERGY)
    found = build_detector(header(detectionBinEfficiencies=[bins]))
    expected = [
        sum(bins[(m * N_ELEMENTS + e) * N_ENERGY + k] for k in range(N_ENERGY)) / N_ENERGY
        for m in range(N_MODULES)
        for e in range(N_ELEMENTS)
    ]
    assert found.crystal_efficiency is not None
    assert found.crystal_efficiency == pytest.approx(expected / np.mean(expected), rel=1e-6)
    assert "crystal efficiencies are the mean over the energy bins" in said(found)


def test_equal_efficiencies_are_none_at_all() -> None:
    bins = np.full(N_MODULES * N_ELEMENTS * N_ENERGY, 0.7)
    assert build_detector(header(detectionBinEfficiencies=[bins])).crystal_efficiency is None


@pytest.mark.parametrize(
    ("bins", "note"),
    [
        (np.ones(5), "their number or values do not fit"),
        (np.full(24, np.nan), "their number or values do not fit"),
        (np.zeros(24), "left out: they are zero"),
        (np.r_[-1.0, np.ones(23)], "their number or values do not fit"),
    ],
)
def test_efficiencies_that_make_no_sense_are_left_out_and_said_to_be(
    bins: np.ndarray, note: str
) -> None:
    found = build_detector(header(detectionBinEfficiencies=[bins]))
    assert found.crystal_efficiency is None
    assert note in said(found)


def pair_tables(values: list[np.ndarray], lut: np.ndarray | None = None) -> dict[str, Any]:
    """Give the tables of one module type: a group of symmetry for each array of values."""
    if lut is None:
        lut = np.zeros((N_MODULES, N_MODULES), np.int64)
    groups = [{"values": v, "sgid": k} for k, v in enumerate(values)]
    return {"modulePairSGIDLUT": [[lut]], "modulePairEfficienciesVectors": [[groups]]}


def test_pairs_of_modules_that_are_never_in_coincidence_are_counted() -> None:
    lut = np.where(np.eye(N_MODULES, dtype=bool), -1, 0)
    n = N_ELEMENTS * N_ENERGY
    found = build_detector(header(**pair_tables([np.ones((n, n))], lut)))
    assert "4 of 16 pairs of modules are never in coincidence" in said(found)
    assert "SGID" not in said(found)


def test_pair_efficiencies_that_are_no_products_are_left_out_with_their_spread() -> None:
    n = N_ELEMENTS * N_ENERGY
    values = np.random.default_rng(2).uniform(0.5, 1.5, (n, n))
    found = build_detector(header(**pair_tables([values])))
    assert found.crystal_efficiency is None
    low, high = values.min(), values.max()
    assert f"(SGID tables, {low:.3g}-{high:.3g}) are left out" in said(found)


def test_calibration_factor_is_noted() -> None:
    found = build_detector(header(calibrationFactor=2.5))
    assert "the calibration factor 2.5 of the header is not applied" in said(found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["corners", "places", "modules"])
def test_geometry_that_is_not_finite_is_refused(part: str, value: float) -> None:
    made = header()
    replicated = made["scanner"]["scannerGeometry"]["replicatedModules"][0]
    elements = replicated["object"]["detectingElements"]
    array = {
        "corners": elements["object"]["shape"],
        "places": elements["transforms"],
        "modules": replicated["transforms"],
    }[part]
    array.reshape(-1)[3] = value
    with pytest.raises(InputError, match=f"must be finite, but the {part} of its crystals"):
        build_detector(made)
