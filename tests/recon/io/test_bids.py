from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bids_validator import BIDSValidator
from bidsschematools.schema import load_schema

from listmode.errors import InputError
from recon.image import Volume
from recon.io.bids import save_bids
from recon.io.nifti import load_volume, save_volume
from recon.io.scan_facts import ScanFacts, load_facts
from tests.recon.io.scenes import GRID, PROTOCOL, WINDOWS, asymmetric, facts

SCHEMA: Any = load_schema()
VALIDATOR: Any = BIDSValidator()


def saved(folder: Path, **labels: Any) -> Path:
    return save_bids(folder, asymmetric(), facts(), subject="01", **labels)


def about_of(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
    return about


def level(field: Any) -> str:
    return str(field if isinstance(field, str) else field["level"])


def keys_at(wanted: str, *groups: str) -> set[str]:
    rules = SCHEMA.rules.sidecars.pet
    return {k for g in groups for k, f in rules[g].fields.items() if level(f) == wanted}


GROUPS = ("PETHardware", "PETRadioChemistry", "PETTime", "PETReconstruction")


@pytest.mark.parametrize("labels", [{}, {"session": "2"}, {"reconstruction": "still"}])
def test_the_validator_accepts_every_name(tmp_path: Path, labels: dict[str, str]) -> None:
    saved(tmp_path / "ä b", **labels)
    root = tmp_path / "ä b"
    names = [f"/{p.relative_to(root).as_posix()}" for p in root.rglob("*") if p.is_file()]
    assert len(names) == 4
    assert [name for name in names if not VALIDATOR.is_bids(name)] == []


def test_has_every_required_key(tmp_path: Path) -> None:
    """Names and levels from the schema that the BIDS validator itself uses."""
    about = about_of(saved(tmp_path))
    required = keys_at("required", *GROUPS)
    assert len(required) > 20
    required |= keys_at(
        "required", "EntitiesReconMethodMetadata", "EntitiesReconFilterMetadata"
    )
    assert required - set(about) == set()


def test_has_the_recommended_keys_that_a_scan_knows(tmp_path: Path) -> None:
    """The others (mass, molar activity, address of the hospital) no listmode file knows."""
    recommended = keys_at("recommended", *GROUPS)
    assert {
        "ReconMethodImplementationVersion",
        "DecayCorrectionFactor",
        "ReconFilterSize",
        "ReconMethodParameterUnits",
        "ReconMethodParameterValues",
    } <= recommended & set(about_of(saved(tmp_path)))


def _suits(value: Any, rule: Any) -> bool:
    if "anyOf" in rule:
        return any(_suits(value, one) for one in rule["anyOf"])
    if "enum" in rule:
        return value in list(rule["enum"])
    if rule["type"] == "array":
        return isinstance(value, list) and all(_suits(v, rule["items"]) for v in value)
    if rule["type"] == "number":
        low = rule.get("minimum", -np.inf)
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= low
    if rule["type"] == "boolean":
        return isinstance(value, bool)
    pattern = SCHEMA.objects.formats[rule["format"]]["pattern"] if "format" in rule else ".*"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def test_every_bids_key_has_a_value_of_its_kind(tmp_path: Path) -> None:
    about = about_of(saved(tmp_path))
    known = {
        key: SCHEMA.objects.metadata[key] for key in about if key in SCHEMA.objects.metadata
    }
    assert len(known) > 25
    assert [key for key, rule in known.items() if not _suits(about[key], rule)] == []


def test_dataset_description_has_what_the_schema_requires(tmp_path: Path) -> None:
    saved(tmp_path)
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    fields = SCHEMA.rules.json.dataset.dataset_description.fields
    assert {k for k, f in fields.items() if level(f) == "required"} <= set(description)


def test_times_and_suv_are_those_of_the_scan(tmp_path: Path) -> None:
    about = about_of(saved(tmp_path))
    assert about["TimeZero"] == "00:20:30"
    assert about["ScanStart"] == about["ImageDecayCorrectionTime"] == 0.0
    assert about["InjectionStart"] == -3611.25
    assert (about["FrameTimesStart"], about["FrameDuration"]) == ([10.0], [709.5])
    halves = -about["InjectionStart"] / about["RadionuclideHalfLife"]
    decayed = about["InjectedRadioactivity"] * 1e6 / 2.0**halves
    assert about["stillpet"]["suv_per_bq_ml"] == pytest.approx(
        about["BodyWeight"] * 1e3 / decayed
    )
    assert about["TimeZeroIsFictional"] is False


def test_the_plain_sidecar_of_an_image_has_every_required_key_too(tmp_path: Path) -> None:
    save_volume(tmp_path / "a.nii.gz", asymmetric(), protocol=PROTOCOL, windows=WINDOWS)
    about = about_of(tmp_path / "a.nii.gz")
    assert keys_at("required", *GROUPS) - set(about) == set()
    assert about["TimeZeroIsFictional"] is True


def test_an_unknown_start_is_said_to_be_fiction(tmp_path: Path) -> None:
    path = save_bids(tmp_path, asymmetric(), facts(start=None), subject="01")
    assert about_of(path)["TimeZeroIsFictional"] is True


def test_image_and_facts_come_back(tmp_path: Path) -> None:
    path = saved(tmp_path, session="2")
    loaded = load_volume(path)
    assert np.array_equal(loaded.values, asymmetric().values)
    assert loaded.grid.origin_mm == GRID.origin_mm
    back = load_facts(path)
    assert (back.protocol, back.windows) == (PROTOCOL, WINDOWS)


def test_a_second_image_joins_the_dataset_and_keeps_its_description(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text('{"Name": "ours", "BIDSVersion": "1.8"}')
    saved(tmp_path)
    saved(tmp_path, session="2")
    assert "ours" in (tmp_path / "dataset_description.json").read_text()
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 2


def test_an_image_of_unknown_making_says_so(tmp_path: Path) -> None:
    bare = Volume(asymmetric().values, GRID, "Bq/mL")
    about = about_of(save_bids(tmp_path, bare, facts(), subject="01"))
    assert about["ReconMethodName"] == about["ManufacturersModelName"] == "unknown"
    assert about["ReconMethodParameterLabels"] == ["none"]
    assert about["AttenuationCorrection"] == "none"


@pytest.mark.parametrize("label", ["", "DOE^JANE", "a_b", "a-b", "ä"])
def test_refuses_a_label_that_bids_does_not_allow(tmp_path: Path, label: str) -> None:
    with pytest.raises(InputError, match="must have letters and digits only"):
        save_bids(tmp_path, asymmetric(), facts(), subject=label)
    assert list(tmp_path.iterdir()) == []


def test_refuses_an_image_without_dose(tmp_path: Path) -> None:
    without = ScanFacts(replace(PROTOCOL, injected_activity_bq=None), WINDOWS)
    with pytest.raises(InputError, match="injected activity must be known and positive"):
        save_bids(tmp_path, asymmetric(), without, subject="01")


def test_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="must be writable, but making it failed"):
        save_bids(tmp_path / "a", asymmetric(), facts(), subject="01")
