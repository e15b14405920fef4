from __future__ import annotations

import pytest

from recon.hotspots.cases import LOCATIONS, TISSUES
from recon.hotspots.places import Place, place_of, without_side


@pytest.mark.parametrize(
    ("region", "place"),
    [
        ("vertebrae_T12", Place("bone", "spine", "T12", "")),
        ("rib_right_7", Place("bone", "thorax", "7", "right")),
        ("hip_left", Place("bone", "pelvis", "", "left")),
        ("Femur right", Place("bone", "lower_extremity", "", "right")),
        ("sacrum", Place("bone", "pelvis", "", "")),
        ("lymph_node_common_iliac_left", Place("lymph_node", "common_iliac", "", "left")),
        ("lymph_nodes_para-aortic", Place("lymph_node", "para_aortic", "", "")),
        ("kidney_left", Place("", "", "", "left")),
        ("", Place()),
    ],
)
def test_reads_a_place_from_a_name(region: str, place: Place) -> None:
    assert place_of(region) == place
    assert place.tissue in (*TISSUES, "")
    assert place.location in (*LOCATIONS, "")


def test_both_sides_compare_equal() -> None:
    assert without_side("hip_left") == without_side("Hip right")
