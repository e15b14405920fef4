from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots.cases import Cases, add_context
from recon.hotspots.cohort import generate_cohort
from tests.recon.hotspots.tables import settings, simple


def of_one_patient(**changes: Any) -> Cases:
    columns: dict[str, Any] = {
        "patient": ["A", "A", "A", "B"],
        "tissue": ["bone", "bone", "lymph_node", "bone"],
        "location": ["spine", "spine", "common_iliac", "thorax"],
        "suv_max": [4.0, 10.0, 6.0, 3.0],
        "primary_suv_max": [15.0, 15.0, 15.0, np.nan],
        "reference_suv_max": [1.0, np.nan, 1.2, 0.9],
    }
    return add_context(**(columns | changes))


def test_context_by_hand() -> None:
    numbers = of_one_patient().numbers
    assert numbers["n_bone"].tolist() == [2, 2, 2, 1]
    assert numbers["n_lymph_node"].tolist() == [1, 1, 1, 0]
    assert numbers["scan_suv_max"].tolist() == [10, 10, 10, 3]
    assert numbers["region_suv_mean"].tolist() == [7, 7, 6, 3]
    others = numbers["scan_suv_max_others"]
    assert others[:3].tolist() == [10, 6, 10]
    assert np.isnan(others[3])
    assert numbers["region_suv_mean_others"][:2].tolist() == [10, 4]
    assert np.isnan(numbers["region_suv_mean_others"][2:]).all()


def test_table_comes_back_from_csv() -> None:
    cases = simple()
    again = Cases.from_csv(cases.to_csv())
    assert again.to_csv() == cases.to_csv()
    assert again.digest == cases.digest
    assert again.malignant.tolist() == cases.malignant.tolist()


def test_unknown_labels_stay_unknown() -> None:
    cases = of_one_patient()
    assert cases.malignant.tolist() == [-1] * 4
    assert Cases.from_csv(cases.to_csv()).malignant.tolist() == [-1] * 4


def test_refuses_an_empty_table() -> None:
    header = simple().to_csv().splitlines()[0]
    with pytest.raises(InputError, match="at least one hotspot, but it is empty"):
        Cases.from_csv(header + "\n")


def test_refuses_missing_and_extra_columns_by_name() -> None:
    text = simple().to_csv().replace("n_bone", "bones", 1)
    with pytest.raises(InputError, match="lacks n_bone and has bones more"):
        Cases.from_csv(text)


def test_refuses_a_cell_that_is_no_number() -> None:
    details = {"origin": ["image"] * 4}
    text = of_one_patient(details=details).to_csv().replace("image,10,", "image,hot,", 1)
    with pytest.raises(InputError, match=r"line 3: suv_max must hold a number.*'hot'"):
        Cases.from_csv(text)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda t: t.replace("spine", "spine;7,2", 1),
            "line 2: a line must have as many cells",
        ),
        (lambda t: t.replace("level", "side", 1), "lacks level and has none more"),
        (
            lambda t: t.replace("level,", "level,level,", 1),
            "each column once, but it has level",
        ),
        (
            lambda t: t.replace("spine", '"spine"x', 1),
            "comma-separated text, but line 2 is not",
        ),
        (lambda t: t.replace(",image,", ",image,,", 1), "line 2: a line must have as many"),
        (lambda _: "", "lacks hotspot, hu_max"),
    ],
)
def test_refuses_what_is_no_table(change: Callable[[str], str], found: str) -> None:
    details = {"origin": ["image"] * 4}
    with pytest.raises(InputError, match=found):
        Cases.from_csv(change(of_one_patient(details=details).to_csv()))


def test_refuses_a_label_other_than_0_and_1() -> None:
    lines = of_one_patient(labels={"malignant": [0, 1, 1, 0]}).to_csv().splitlines()
    lines[3] = lines[3][:-1] + "10000000000000000000000"
    with pytest.raises(InputError, match=r"line 4: malignant must hold 0 or 1.*'1000"):
        Cases.from_csv("\n".join(lines))


def test_details_come_back_and_tell_what_is_simulated() -> None:
    details = {"level": ["L5", "", "", "7"], "origin": ["image", "simulated", "", "image"]}
    cases = of_one_patient(details=details)
    again = Cases.from_csv(cases.to_csv())
    assert again.details["level"].tolist() == details["level"]
    assert again.details["side"].tolist() == [""] * 4
    assert again.n_simulated == cases.n_simulated == 1
    assert again.take([1]).n_simulated == 1
    assert again.with_numbers(hu_mean=np.zeros(4)).n_simulated == 1
    assert generate_cohort(settings(), 0).n_simulated == 563


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"tissue": ["bone", "liver", "lymph_node", "bone"]}, "tissue must be.*has 'liver'"),
        ({"location": ["spine", "skull", "pelvis", "thorax"]}, "location must be.*has 'skull'"),
        (
            {"location": ["para_aortic", "spine", "pelvis", "thorax"]},
            "only a lymph_node lies in para_aortic, but row 0 is a bone",
        ),
        ({"suv_max": [4.0, np.nan, 6.0, 3.0]}, "suv_max must be a finite number, but row 1"),
        ({"suv_max": [4.0, 1.0, -6.0, 3.0]}, "suv_max must not be negative.*row 2"),
        ({"suv_max": [4e4, 1e5, 6e4, 3e4]}, "must be a body-weight SUV.*looks like Bq/mL"),
        ({"reference_suv_max": [1.0, np.inf, 1.0, 1.0]}, "reference_suv_max must not be"),
        ({"labels": {"malignant": [0, 1, 2, 0]}}, "malignant must be 1.*holds 2"),
        ({"labels": {"malignant": [0, 1, 256, 0]}}, "malignant must be 1.*holds 256"),
        ({"primary_suv_max": [1.0]}, "primary_suv_max has shape"),
        ({"hu_max": [1.0, 2.0, np.inf, 3.0]}, "hu_max must not be negative or infinite"),
        ({"patient": ["A", "A", " ", "B"]}, "patient must be a code, but row 2 has none"),
        ({"details": {"origin": ["guess"] * 4}}, "origin must be one of image, simulated"),
    ],
)
def test_refuses_what_cannot_be_used(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match=found):
        of_one_patient(**changes)


def test_doubts_suv_in_the_range_of_kbq_ml() -> None:
    cases = of_one_patient(suv_max=[60.0, 80.0, 90.0, 70.0])
    assert any("as kBq/mL it is common" in note for note in cases.notes)
    assert of_one_patient().notes == ()
