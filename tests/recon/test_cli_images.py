from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from recon.cli import app
from recon.image import Volume
from recon.io.nifti import load_volume, save_volume
from tests.recon.io.ct_files import NAME, write_ct
from tests.recon.io.scenes import GRID, PROTOCOL, WINDOWS, asymmetric

CENTRE = "4,9,-1080"


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _refused(message: str, *arguments: object) -> None:
    result = _call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "still ä.nii.gz"
    save_volume(path, asymmetric(), protocol=PROTOCOL, windows=WINDOWS)
    return path


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ct(tmp_path_factory.mktemp("ct") / f"{NAME} CT")


@pytest.mark.parametrize("command", ["export", "mu"])
def test_every_help_says_that_it_is_for_research(command: str) -> None:
    result = _call(command, "--help")
    assert result.exit_code == 0
    assert "For research. Not a medical device." in " ".join(result.stdout.split())
    assert "--json" in result.stdout
    assert "--out" in result.stdout


def test_export_makes_a_series_that_knows_its_suv(image: Path, tmp_path: Path) -> None:
    result = _call("export", image, "--to", "dicom", "-o", tmp_path / "o", "--json")
    assert result.exit_code == 0, result.stderr
    about = json.loads(result.stdout)
    assert about["files"] == ["still ä_dicom"]
    assert about["suv_per_bq_ml"] == PROTOCOL.suv_per_bq_ml
    assert about["notes"] == []
    slices = sorted((tmp_path / "o" / "still ä_dicom").iterdir())
    assert len(slices) == GRID.shape[2]
    assert pydicom.dcmread(slices[0]).PatientIdentityRemoved == "YES"


def test_export_says_that_attenuation_was_not_corrected(tmp_path: Path) -> None:
    bare = Volume(asymmetric().values, GRID, "Bq/mL")
    save_volume(tmp_path / "a.nii", bare, protocol=PROTOCOL, windows=WINDOWS)
    result = _call("export", tmp_path / "a.nii", "--to", "dicom", "-o", tmp_path)
    assert "viewers may refuse an SUV" in result.stdout


def test_what_the_command_line_says_wins(image: Path, tmp_path: Path) -> None:
    result = _call(
        "export", image, "--to", "dicom", "-o", tmp_path, "--dose-mbq", 10, "--weight-kg", 50,
        "--injection-time-s", -60, "--start", "2026-03-01T09:30:00", "--position", "FFS",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    ds = pydicom.dcmread(next(iter((tmp_path / "still ä_dicom").iterdir())))
    item = ds.RadiopharmaceuticalInformationSequence[0]
    assert float(item.RadionuclideTotalDose) == 10e6
    assert item.RadiopharmaceuticalStartDateTime == "20260301092900.000000"
    assert float(ds.PatientWeight) == 50.0
    assert ds.PatientGantryRelationshipCodeSequence[0].CodeMeaning == "feet-first"


def test_the_patient_is_named_where_it_is_asked_for(image: Path, tmp_path: Path) -> None:
    person = ("--patient-name", "DOE^JANE", "--patient-id", "H1", "--birth-date", "19700102")
    to = ("export", image, "--to", "dicom", "-o", tmp_path)
    _refused("goes into a series with --identified only", *to, *person)
    result = _call(*to, "--identified", *person)
    assert result.exit_code == 0, result.stderr
    assert "DOE" not in result.stdout + result.stderr
    ds = pydicom.dcmread(next(iter((tmp_path / "still ä_dicom").iterdir())))
    assert (str(ds.PatientName), ds.PatientID) == ("DOE^JANE", "H1")


def test_hotspots_go_along_found_or_given(image: Path, tmp_path: Path) -> None:
    result = _call(
        "export", image, "--to", "dicom", "-o", tmp_path / "a", "--find-hotspots", "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["files"] == ["still ä_dicom", "still ä_seg.dcm"]
    found = pydicom.dcmread(tmp_path / "a" / "still ä_seg.dcm")
    assert found.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    mask = np.zeros(GRID.shape, np.int32)
    mask[7, 0, 5] = 3
    save_volume(tmp_path / "mask.nii", Volume(mask, GRID, "label"))
    result = _call(
        "export", image, "--to", "dicom", "-o", tmp_path / "b", "--hotspots",
        tmp_path / "mask.nii",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    given = pydicom.dcmread(tmp_path / "b" / "still ä_seg.dcm")
    assert [s.TrackingID for s in given.SegmentSequence] == ["stillpet hotspot 3"]


def test_export_makes_a_bids_tree(image: Path, tmp_path: Path) -> None:
    result = _call(
        "export", image, "--to", "bids", "-o", tmp_path, "--subject", "07", "--session", "1",
        "--reconstruction", "still", "--manufacturer", "Siemens", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    name = "sub-07/ses-1/pet/sub-07_ses-1_trc-FDG_rec-still_pet.nii.gz"
    assert json.loads(result.stdout)["files"] == [name]
    assert np.array_equal(load_volume(tmp_path / name).values, asymmetric().values)


@pytest.mark.parametrize(("flavour", "suffix"), [("stir", "hv"), ("castor", "hdr")])
def test_export_makes_interfile(image: Path, tmp_path: Path, flavour: str, suffix: str) -> None:
    result = _call("export", image, "--to", "interfile", "--flavour", flavour, "-o", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / f"still ä.{suffix}").is_file()


def test_a_mu_map_becomes_interfile_without_a_scan(tmp_path: Path) -> None:
    save_volume(tmp_path / "mu.nii", Volume(np.full(GRID.shape, 0.096), GRID, "1/cm"))
    result = _call("export", tmp_path / "mu.nii", "--to", "interfile", "-o", tmp_path)
    assert result.exit_code == 0, result.stderr


def test_export_refuses_with_what_to_do(image: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "bare.nii", asymmetric(), windows=WINDOWS)
    bare = ("export", tmp_path / "bare.nii", "--to", "dicom", "-o", tmp_path)
    _refused("--to must be one of dicom, bids, interfile", "export", image, "--to", "png")
    _refused("give it with --dose-mbq", *bare)
    _refused("give it with --injection-time-s", *bare, "--dose-mbq", 20)
    _refused("give it with --weight-kg", *bare, "--dose-mbq", 20, "--injection-time-s", -9)
    _refused("written for stir or castor", "export", image, "--to", "interfile", "-o",
             tmp_path, "--flavour", "medcon")  # fmt: skip
    save_volume(tmp_path / "mu.nii", Volume(np.full(GRID.shape, 0.096), GRID, "1/cm"))
    mu = ("export", tmp_path / "mu.nii", "--to", "dicom", "-o", tmp_path)
    _refused("must say which time the image was made from", *mu)


def test_mu_makes_a_map_that_recon_takes(ct: Path, tmp_path: Path) -> None:
    out = tmp_path / "mu.nii.gz"
    result = _call("mu", ct, "-o", out, "--centre-mm", CENTRE, "--voxel-mm", 4, "--json")
    assert result.exit_code == 0, result.stderr
    about = json.loads(result.stdout)
    assert about["notes"] == []
    assert load_volume(out, "1/cm").grid.shape == tuple(about["shape"])


def test_mu_takes_the_grid_of_an_image_and_the_place_of_a_pet_series(
    ct: Path, tmp_path: Path, image: Path
) -> None:
    """The PET is asymmetric(): its grid's middle, not zero, is where the scanner is."""
    assert _call("export", image, "--to", "dicom", "-o", tmp_path).exit_code == 0
    pet = tmp_path / "still ä_dicom"
    _refused("CT and PET grid must overlap", "mu", ct, "--pet", pet, "--like", image)
    out = tmp_path / "mu.nii"
    result = _call("mu", ct, "-o", out, "--centre-mm", "15,-4,-990", "--like", image)
    assert result.exit_code == 0, result.stderr
    assert load_volume(out, "1/cm").grid.shape == GRID.shape


def test_mu_refuses_with_what_to_do(ct: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "mu.nii")
    _refused("must be given once, by --pet or by --centre-mm, but none is", "mu", ct, *out)
    _refused("but both are given", "mu", ct, *out, "--pet", ct, "--centre-mm", "1,2,3")
    _refused("must be three numbers", "mu", ct, *out, "--centre-mm", "1,2")
    _refused("must be of modality PT, but it is CT", "mu", ct, *out, "--pet", ct)
    bad = write_ct(tmp_path / "bad", RescaleSlope=None)
    _refused("lacks RescaleSlope", "mu", bad, *out, "--centre-mm", CENTRE)
    _refused("make its mu-map first", "hotspots", ct)


def test_the_patient_in_the_ct_is_named_nowhere(ct: Path, tmp_path: Path) -> None:
    """Not on the way, not in the result, not in an error; also not by the folder's name."""
    out = ("-o", tmp_path / "mu.nii", "--centre-mm", CENTRE)
    fine = _call("mu", ct, *out, "--json")
    assert fine.exit_code == 0
    (tmp_path / "cut").mkdir()
    for number, path in enumerate(sorted(ct.iterdir())):
        copy = tmp_path / "cut" / f"{NAME}-{number:02d}"
        copy.write_bytes(path.read_bytes()[: 700 if number == 3 else None])
    cut = _call("mu", tmp_path / "cut", *out)
    none = _call("mu", tmp_path / NAME, *out)
    assert cut.exit_code == none.exit_code == 2
    assert "file 4 of 40" in cut.stderr
    written = b"".join(path.read_bytes() for path in tmp_path.glob("mu.*"))
    said = fine.stdout + fine.stderr + cut.stderr + none.stderr
    for secret in ("DOE", "JANE", "H123456", "19700102", "St Nowhere"):
        assert secret not in said
        assert secret.encode() not in written


def test_without_the_extra_it_says_what_to_install(
    image: Path, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = ("dicom", "dicom_folder", "dicom_seg", "dicom_tags", "ct", "mu")
    for name in needs:
        monkeypatch.delitem(sys.modules, f"recon.io.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    install = "pip install 'stillpet[dicom]'"
    _refused(install, "export", image, "--to", "dicom", "-o", tmp_path)
    _refused(install, "mu", ct, "--centre-mm", CENTRE)
    assert _call("export", image, "--to", "bids", "-o", tmp_path).exit_code == 0


def test_a_name_in_a_foreign_image_goes_no_further(tmp_path: Path) -> None:
    """Other tools leave names in sidecars and NIfTI headers."""
    source = tmp_path / "in" / "a.nii"
    source.parent.mkdir()
    save_volume(source, asymmetric(), protocol=PROTOCOL, windows=WINDOWS)
    raw = bytearray(source.read_bytes())
    raw[148 : 148 + len(NAME)] = NAME.encode()  # NIfTI-1: descrip
    raw[14 : 14 + len(NAME)] = NAME.encode()  # db_name
    source.write_bytes(raw)
    sidecar = source.with_suffix(".json")
    about = json.loads(sidecar.read_text()) | {"PatientName": NAME, "InstitutionName": NAME}
    sidecar.write_text(json.dumps(about))
    out = tmp_path / "out"
    for to in (("dicom", "--find-hotspots"), ("bids",), ("interfile",)):
        result = _call("export", source, "-o", out, "--to", *to)
        assert result.exit_code == 0, result.stderr
        assert "DOE" not in result.stdout + result.stderr
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > GRID.shape[2] + 6
    assert [path for path in written if b"DOE" in path.read_bytes()] == []
