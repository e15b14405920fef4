from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots.context import describe_patient, join_patients
from recon.hotspots.features import HotspotTable, measure_ct, measure_hotspots
from recon.hotspots.segment import FixedSuv, find_hotspots
from recon.hotspots.symmetry import MidPlane, Reference, reference_uptake
from recon.image import Grid, Volume
from tests.recon.hotspots.bodies import BLOCK_GRID, BLOCK_NAMES, blocks
from tests.recon.hotspots.tables import simple


def patient() -> tuple[Volume, HotspotTable, tuple[Reference, ...]]:
    volume, regions = blocks()
    found = find_hotspots(
        volume, threshold=FixedSuv(4.0), labels=regions, label_names=BLOCK_NAMES
    )
    references = reference_uptake(
        volume,
        found,
        MidPlane((1.0, 0.0, 0.0), 0.0, 1.0),
        labels=regions,
        label_names=BLOCK_NAMES,
    )
    return volume, measure_hotspots(volume, found), references


def test_image_becomes_cases_and_everything_left_out_has_a_reason() -> None:
    _, table, references = patient()
    out = describe_patient(table, references, patient="P1")
    by_label = {row.label: row.id for row in table}
    assert out.cases.tissue.tolist() == ["bone", "lymph_node"]
    assert out.cases.location.tolist() == ["pelvis", "common_iliac"]
    assert out.hotspot_id == (by_label["hip_left"], by_label["lymph_node_common_iliac_left"])
    assert [place.side for place in out.places] == ["left", "left"]
    assert out.cases.details["side"].tolist() == ["left", "left"]
    assert out.cases.details["hotspot"].tolist() == [str(k) for k in out.hotspot_id]
    assert out.cases.details["origin"].tolist() == ["image", "image"]
    assert dict(out.left_out) == {
        by_label["urinary_bladder"]: "physiological",
        by_label["prostate"]: "primary tumour",
        by_label["muscle"]: "neither bone nor lymph node: muscle",
    }
    numbers = out.cases.numbers
    assert numbers["primary_suv_max"].tolist() == [14.0, 14.0]
    assert numbers["reference_suv_max"][0] == pytest.approx(1.1)
    assert math.isnan(numbers["reference_suv_max"][1])  # muscle is no lymph node
    assert numbers["scan_suv_max"].tolist() == [8.0, 8.0]
    assert (numbers["n_bone"][0], numbers["n_lymph_node"][0]) == (1, 1)


def test_uncertainty_and_a_known_primary_travel_along() -> None:
    _, table, references = patient()
    errors = [0.1 * row.id for row in table]
    out = describe_patient(
        table, references, patient="P1", primary_suv_max=20.0, suv_max_se=errors
    )
    wanted = [0.1 * k for k in out.hotspot_id]
    assert out.cases.numbers["suv_max_se"] == pytest.approx(wanted)
    assert out.cases.numbers["primary_suv_max"].tolist() == [20.0, 20.0]
    measured = table.with_uncertainty(errors, np.zeros(len(table)), np.ones(len(table)))
    again = describe_patient(measured, references, patient="P1", origin="simulated").cases
    assert again.numbers["suv_max_se"] == pytest.approx(wanted)
    assert again.n_simulated == 2


def test_the_user_can_call_uptake_physiological() -> None:
    _, table, references = patient()
    by_label = {row.label: row.id for row in table}
    gone = {by_label["hip_left"], by_label["prostate"]}
    out = describe_patient(table, references, patient="P1", excluded=gone)
    assert out.cases.tissue.tolist() == ["lymph_node"]
    assert out.cases.numbers["n_bone"].tolist() == [0]
    assert np.isnan(out.cases.numbers["primary_suv_max"]).all()
    reasons = dict(out.left_out)
    assert {reasons[k] for k in gone} == {"physiological: the user says so"}
    with pytest.raises(InputError, match="hotspots 1 to 5 can be excluded, but 9 was asked"):
        describe_patient(table, references, patient="P1", excluded=[9])


def test_ct_features_travel_along() -> None:
    volume, table, references = patient()
    found = find_hotspots(volume, threshold=FixedSuv(4.0))
    hu = np.where(volume.values > 4.0, 300.0, -1000.0).astype(np.float32)
    hu[26, 8, 8] = 700.0  # one of 64 voxels of the left hip
    ct = measure_ct(Volume(hu, BLOCK_GRID, "1"), found)
    out = describe_patient(table, references, patient="P1", ct=ct)
    assert out.cases.numbers["hu_max"].tolist() == [700.0, 300.0]
    assert out.cases.numbers["hu_mean"].tolist() == [306.25, 300.0]
    assert out.cases.numbers["hu_sd"][0] == pytest.approx(np.std([700.0] + [300.0] * 63))


def test_refuses_a_ct_that_is_none() -> None:
    volume, _, _ = patient()
    found = find_hotspots(volume, threshold=FixedSuv(4.0))
    with pytest.raises(InputError, match="a CT must be in HU"):
        measure_ct(
            Volume(np.full(BLOCK_GRID.shape, 0.096, np.float32), BLOCK_GRID, "1/cm"), found
        )
    other = Grid.centred((4, 4, 4), 5.0)
    with pytest.raises(InputError, match="must lie on the segmentation's grid"):
        measure_ct(Volume(np.full(other.shape, -900.0, np.float32), other, "1"), found)


def test_patients_are_joined_and_keep_their_codes() -> None:
    _, table, references = patient()
    one, two = (
        describe_patient(table, references, patient=code).cases for code in ("P1", "P2")
    )
    both = join_patients([one, two])
    assert both.patient.tolist() == ["P1", "P1", "P2", "P2"]
    with pytest.raises(InputError, match="a code of his own, but P1 stand in two"):
        join_patients([one, one])
    assert len(join_patients([simple()])) == len(simple())


def test_refuses_missing_references_suv_and_places() -> None:
    _, table, references = patient()
    with pytest.raises(InputError, match="one reference, but there are 1 for 5"):
        describe_patient(table, references[:1], patient="P1")
    unknown = HotspotTable(
        tuple(dataclasses.replace(row, suv_max=math.nan) for row in table), ""
    )
    with pytest.raises(InputError, match="SUV of this table is unknown"):
        describe_patient(unknown, references, patient="P1")
    soft = HotspotTable(tuple(dataclasses.replace(row, label="muscle") for row in table))
    with pytest.raises(InputError, match="a hotspot in bone or lymph node, but all 5"):
        describe_patient(soft, references, patient="P1")
