"""Which of a PETSIRD header's efficiencies reach the model, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats._petsird_scanner import Detector, build_detector
from listmode.formats.petsird import PetsirdListmode

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


def test_pairs_of_modules_that_are_never_in_coincidence_are_not_accepted() -> None:
    lut = np.where(np.eye(N_MODULES, dtype=bool), -1, 0)
    n = N_ELEMENTS * N_ENERGY
    found = build_detector(header(**pair_tables([np.ones((n, n))], lut)))
    assert "4 of 10 pairs of modules are never in coincidence" in said(found)
    assert "SGID" not in said(found)
    pairs = found.scanner.module_pairs
    assert pairs is not None
    assert pairs.factor is None
    a, b = np.indices((N_MODULES * N_ELEMENTS,) * 2).reshape(2, -1)
    assert np.array_equal(pairs.groups(a, b) < 0, a // N_ELEMENTS == b // N_ELEMENTS)


def test_tables_that_say_nothing_are_none() -> None:
    n = N_ELEMENTS * N_ENERGY
    found = build_detector(header(**pair_tables([np.full((n, n), 0.4)])))
    assert found.scanner.module_pairs is None
    assert not found.notes or "SGID" not in said(found)
    only_lut = {"modulePairSGIDLUT": [[np.zeros((N_MODULES, N_MODULES), np.int64)]]}
    assert build_detector(header(**only_lut)).scanner.module_pairs is None


@pytest.mark.parametrize("is_ragged", [False, True])
def test_pair_efficiencies_are_those_of_the_specification(is_ragged: bool) -> None:
    """Steps 1-6 of PETSIRD's DetectionEfficiencies, crystal by crystal, energies averaged."""
    rng = np.random.default_rng(2)
    n = N_ELEMENTS * N_ENERGY
    values = [rng.uniform(0.5, 1.5, (n, n)) for _ in range(3)]
    lut = rng.integers(-1, 3, (N_MODULES, N_MODULES))
    made = pair_tables(values, lut)
    if is_ragged:
        made["modulePairSGIDLUT"] = [[[row[: k + 1].tolist() for k, row in enumerate(lut)]]]
        made["modulePairEfficienciesVectors"][0][0].reverse()  # told by sgid, not by place
    found = build_detector(header(**made))
    assert "(SGID tables, " in said(found)
    pairs = found.scanner.module_pairs
    assert pairs is not None
    for high in range(N_MODULES * N_ELEMENTS):
        for low in range(high):
            (m0, e0), (m1, e1) = divmod(high, N_ELEMENTS), divmod(low, N_ELEMENTS)
            sgid = lut[m0, m1]
            expected = 0.0
            if sgid >= 0:
                bins = [
                    values[sgid][e0 * N_ENERGY + k0, e1 * N_ENERGY + k1]
                    for k0 in range(N_ENERGY)
                    for k1 in range(N_ENERGY)
                ]
                expected = sum(bins) / len(bins)
            got = pairs.factors(np.array([low]), np.array([high]))
            assert float(got[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"modulePairSGIDLUT": [[np.zeros((3, 4), np.int64)]]}, "groups for 3 of 4 modules"),
        ({"modulePairSGIDLUT": [[[[0], [0], [0], [0]]]]}, "groups for 1 partners of module 1"),
        ({"modulePairSGIDLUT": [[np.full((4, 4), 1)]]}, "group 1 of 1"),
        ({"modulePairEfficienciesVectors": [[[{"values": np.ones((2, 2)), "sgid": 0}]]]},
         "cannot reshape"),
        ({"modulePairEfficienciesVectors": [[[{"values": np.ones((6, 6)), "sgid": 7}]]]},
         "1 tables for 8 groups"),
        ({"modulePairEfficienciesVectors": [[[{"values": np.full((6, 6), -1.0), "sgid": 0}]]]},
         "a factor is negative"),
    ],
)  # fmt: skip
def test_pair_tables_that_do_not_fit_are_left_out_and_said_to_be(
    change: dict[str, Any], why: str
) -> None:
    n = N_ELEMENTS * N_ENERGY
    found = build_detector(header(**(pair_tables([np.ones((n, n))]) | change)))
    assert found.scanner.module_pairs is None
    assert f"(SGID tables) are left out: they do not fit the scanner ({why}" in said(found)


def test_scanner_of_too_many_modules_has_no_pair_tables() -> None:
    made = header(modulePairSGIDLUT=[[[[0]]]])
    replicated = made["scanner"]["scannerGeometry"]["replicatedModules"][0]
    replicated["transforms"] = np.repeat(replicated["transforms"], 2049, axis=0)
    assert "8196 modules, more than 8192" in said(build_detector(made))


@pytest.mark.outside
def test_pair_efficiencies_are_those_of_the_official_library(outside_data: Path) -> None:
    """Two types of modules, two energy bins, 243 groups: every tenth event of the file."""
    import petsird
    from petsird.helpers import get_detection_efficiency

    path = outside_data / "petsird" / "petsird_rich_two_types_v0.12.0.petsird"
    ours = PetsirdListmode(path)
    pairs, detector = ours.scanner.module_pairs, ours._detector
    assert pairs is not None
    ratios = []
    with petsird.BinaryPETSIRDReader(str(path)) as reader:
        scanner = reader.read_header().scanner
        single = scanner.detection_efficiencies.detection_bin_efficiencies
        for block in reader.read_time_blocks():
            if type(block.value).__name__ != "EventTimeBlock":
                continue
            for i, row in enumerate(block.value.prompt_events):
                for j, events in enumerate(row):
                    kind = petsird.TypeOfModulePair((i, j))
                    for event in events[::10]:
                        bins = [int(b) for b in event.detection_bins[:2]]
                        theirs = get_detection_efficiency(scanner, kind, event)
                        theirs /= single[i][bins[0]] * single[j][bins[1]]
                        crystals = [
                            detector.first_crystal[t] + b // detector.n_energy[t]
                            for t, b in zip((i, j), bins, strict=True)
                        ]
                        got = pairs.factors(*(np.array([c]) for c in crystals))
                        ratios.append((float(got[0]), float(theirs)))
    table = np.array(ratios)
    assert len(table) > 800
    assert len(np.unique(table[:, 0])) > 50
    np.testing.assert_allclose(table[:, 1], 42.0 * table[:, 0], rtol=1e-5)


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
