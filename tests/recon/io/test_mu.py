from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.progress import SILENT
from recon.image import Grid, Volume
from recon.io.dicom import save_dicom
from recon.io.dicom_folder import position_of
from recon.io.dicom_tags import SeriesPlace
from recon.io.hounsfield import CARNEY_2006
from recon.io.mu import Placement, load_ct, make_mu, read_placement
from recon.io.nifti import load_volume
from tests.recon.io.ct_files import (
    BONE_MM,
    CENTRE_MM,
    NAME,
    ORIGIN_MM,
    SHAPE,
    STEP_MM,
    body_hu,
    header,
    write_ct,
    write_slice,
)
from tests.recon.io.scenes import GRID, facts

HERE = Placement(CENTRE_MM, "HFS", "1.2.3.4")
PET_GRID = Grid.centred((61, 51, 27), 3.3)
BONE_MU = 5.10e-5 * 2000.0 + 4.71e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ct(tmp_path_factory.mktemp("ct") / "ÖRL 1")


def bone_centre(mu: Volume) -> NDArray[np.float64]:
    """Centroid of what is denser than tissue, in the scanner frame."""
    weight = np.clip(mu.values.astype(np.float64) - 0.11, 0.0, None)
    points = mu.grid.point_mm(np.moveaxis(np.indices(mu.grid.shape), 0, -1))
    return np.asarray((weight[..., None] * points).sum((0, 1, 2)) / weight.sum())


def test_bone_lies_where_it_is_in_the_scanner(folder: Path) -> None:
    """The rod is a cylinder on voxels of 2 x 2 x 2.5 mm: its centre is right to 0.3 mm."""
    mu, notes = make_mu(load_ct(folder), HERE, grid=PET_GRID)
    assert bone_centre(mu) == pytest.approx(BONE_MM - CENTRE_MM, abs=0.3)
    assert notes == ()
    assert mu.unit == "1/cm"


@pytest.mark.parametrize(
    ("position", "turn"),
    [("HFS", (1, 1, 1)), ("HFP", (-1, -1, 1)), ("FFS", (-1, 1, -1)), ("FFP", (1, -1, -1))],
)
def test_the_patients_position_turns_the_map(
    folder: Path, position: str, turn: tuple[int, int, int]
) -> None:
    place = replace(HERE, patient_position=position)
    mu, _ = make_mu(load_ct(folder), place, grid=PET_GRID)
    expected = (BONE_MM - CENTRE_MM) * turn
    assert bone_centre(mu) == pytest.approx(expected, abs=0.3)


def test_slices_stored_the_other_way_round_give_the_same_map(
    folder: Path, tmp_path: Path
) -> None:
    """Rows from left to right and columns upwards, as some prone scans are stored."""
    common = header()
    common.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    hu = body_hu()[::-1, ::-1]
    corner = ORIGIN_MM + STEP_MM * [SHAPE[0] - 1, SHAPE[1] - 1, 0]
    (tmp_path / "ct").mkdir()
    for k in range(SHAPE[2]):
        at_mm = corner + STEP_MM * [0, 0, k]
        write_slice(tmp_path / "ct" / f"{k:03d}", common, hu[:, :, k], at_mm)
    turned, _ = make_mu(load_ct(tmp_path / "ct"), HERE, grid=PET_GRID)
    straight, _ = make_mu(load_ct(folder), HERE, grid=PET_GRID)
    assert turned.values == pytest.approx(straight.values, abs=1e-6)


def test_tissues_have_their_mu(folder: Path) -> None:
    """Away from borders, by hand: water 0.096, lung 0.3 x 0.096, bone of 1000 HU at 120 kV."""
    mu, _ = make_mu(load_ct(folder), HERE, grid=PET_GRID, fwhm_mm=3.0)

    def at(lps_mm: Any) -> float:
        index = np.rint(mu.grid.voxel_index(np.asarray(lps_mm) - CENTRE_MM)).astype(int)
        return float(mu.values[tuple(index)])

    assert at(BONE_MM) == pytest.approx(BONE_MU, rel=1e-4)
    assert at((0.0, -20.0, -1100.0)) == pytest.approx(0.096, rel=1e-4)
    assert at((-30.0, 10.0, -1060.0)) == pytest.approx(0.3 * 0.096, rel=1e-3)
    assert at((-80.0, -60.0, -1080.0)) == 0.0


@pytest.mark.parametrize("fwhm_mm", [0.0, 4.0, 8.0])
def test_smoothing_and_resampling_keep_the_integral_of_mu(folder: Path, fwhm_mm: float) -> None:
    """The oracle converts the phantom's own array; the default grid covers the whole CT."""
    mu, _ = make_mu(load_ct(folder), HERE, fwhm_mm=fwhm_mm, voxel_mm=2.0)
    truth = CARNEY_2006[120.0].mu_per_cm(body_hu()).sum(dtype=np.float64) * STEP_MM.prod()
    ours = mu.values.sum(dtype=np.float64) * np.prod(mu.grid.voxel_mm)
    assert ours == pytest.approx(truth, rel=0.02)  # the last half slices are not on the grid
    assert np.abs(np.array(mu.grid.origin_mm) / 2.0 % 1.0).max() < 1e-9  # a voxel on the centre


def test_smoothing_widens_by_its_own_width(tmp_path: Path) -> None:
    """A block: its variance grows by sigma squared, along x and along z."""
    hu = np.full((64, 8, 64), -1000.0)
    hu[24:41, :, 20:43] = 3000.0
    folder = write_ct(tmp_path / "ct", hu)
    x, y, z = ORIGIN_MM + STEP_MM * [32, 4, 31]
    grid, place = Grid.centred((101, 1, 97), (1.0, 1.0, 1.25)), Placement((x, y, z))
    variances = []
    for fwhm_mm in (0.0, 8.0):
        mu, _ = make_mu(load_ct(folder), place, grid=grid, fwhm_mm=fwhm_mm)
        for axis in (0, 2):
            profile = mu.values.sum(axis=(1, 2 - axis), dtype=np.float64)
            at = mu.grid.axis_mm(axis)
            mean = (profile * at).sum() / profile.sum()
            variances.append((profile * (at - mean) ** 2).sum() / profile.sum())
    added = (8.0 / 2.3548) ** 2
    assert variances[2] - variances[0] == pytest.approx(added, rel=0.05)
    assert variances[3] - variances[1] == pytest.approx(added, rel=0.05)


def test_the_vendors_pet_says_where_the_scanner_is(tmp_path: Path, folder: Path) -> None:
    """A PET series whose grid's middle lies 8 mm left and 3 mm in front of patient zero."""
    grid = Grid((5, 5, 4), (4.0, 4.0, 5.0), (0.0, -11.0, -1087.5))
    pet = Volume(np.ones(grid.shape, np.float32), grid, "Bq/mL")
    save_dicom(tmp_path / "pet", pet, facts(), place=SeriesPlace(frame_of_reference_uid="1.2"))
    place = read_placement(tmp_path / "pet")
    assert place == Placement((8.0, -3.0, -1080.0), "HFS", "1.2")
    mu, notes = make_mu(load_ct(folder), place, grid=PET_GRID)
    assert bone_centre(mu) == pytest.approx(BONE_MM - place.centre_mm, abs=0.3)
    assert any("different frames of reference" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"KVP": None}, "does not say its tube voltage"),
        ({"KVP": 90}, "90 kV is not in the table"),
        ({"FilterMaterial": "TIN"}, "filtered by tin"),
        ({"FilterType": "Sn 0.4"}, "filtered by tin"),
        ({"ContrastBolusAgent": "Iomeprol"}, "contrast agent was given"),
        ({"FrameOfReferenceUID": "1.2.3.5"}, "different frames of reference"),
        ({"PatientPosition": "FFS"}, "lay FFS in the CT and HFS in the PET"),
        ({"PatientPosition": None}, "does not say how the patient lay"),
        ({"RescaleType": "HU_MOD"}, "does not say that its values are HU"),
    ],
)
def test_what_is_doubtful_is_said(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    mu, notes = make_mu(load_ct(write_ct(tmp_path / "ct", **changes)), HERE, grid=PET_GRID)
    assert [note for note in notes if found in note] != []
    assert list(notes) == mu.provenance["notes"]


def test_a_body_at_the_edge_of_the_field_is_reported(tmp_path: Path) -> None:
    """The ellipse is 140 mm wide: a field of 110 mm cuts it everywhere."""
    ct = load_ct(write_ct(tmp_path / "ct", DataCollectionDiameter=110))
    _, notes = make_mu(ct, HERE, grid=PET_GRID)
    assert any(f"truncated: in {SHAPE[2]} of {SHAPE[2]} slices" in note for note in notes)


def test_a_table_at_the_edge_is_not_a_truncated_body(tmp_path: Path) -> None:
    hu = body_hu()
    hu[:, 70:72, :] = -100.0  # 4 mm of shell from side to side of the image
    _, notes = make_mu(load_ct(write_ct(tmp_path / "ct", hu)), HERE, grid=PET_GRID)
    assert notes == ()


def test_padding_is_air(tmp_path: Path) -> None:
    hu = body_hu()
    hu[:10] = -2000.0 + 3500.0
    ct = load_ct(write_ct(tmp_path / "ct", hu, PixelPaddingValue=1500 + 1024))
    mu, _ = make_mu(ct, HERE, grid=PET_GRID)
    left = mu.grid.voxel_index([ORIGIN_MM[0] + 8.0 - CENTRE_MM[0], 0.0, 0.0])[0]
    assert mu.values[: int(left)].max() < 1e-3


def test_a_part_that_the_ct_does_not_cover_is_said(folder: Path) -> None:
    long = Grid.centred((61, 51, 61), 3.3)
    mu, notes = make_mu(load_ct(folder), HERE, grid=long)
    assert "of the grid's length: there is no attenuation in the rest" in notes[0]
    assert not mu.values[:, :, :10].any()


def test_the_patient_is_in_no_file_and_no_message(tmp_path: Path, folder: Path) -> None:
    from recon.io.nifti import save_volume

    mu, notes = make_mu(load_ct(folder), HERE, grid=PET_GRID)
    save_volume(tmp_path / "mu.nii", mu)
    written = (tmp_path / "mu.nii").read_bytes() + (tmp_path / "mu.json").read_bytes()
    for secret in (NAME, "DOE", "H123456", "19700102", "St Nowhere", "1.2.3.4", folder.name):
        assert secret.encode() not in written
        assert secret not in " ".join(notes)
    assert load_volume(tmp_path / "mu.nii").unit == "1/cm"


def test_damaged_text_is_not_repeated_on_the_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """pydicom warns of values that break a rule, and quotes them."""
    with pydicom.config.disable_value_validation():
        folder = write_ct(tmp_path / "ct", FrameOfReferenceUID="DOE^JANE")
    make_mu(load_ct(folder), HERE, grid=PET_GRID)
    assert capfd.readouterr() == ("", "")


def test_refuses_a_series_that_is_no_ct(tmp_path: Path) -> None:
    pet = Volume(np.ones(GRID.shape, np.float32), GRID, "Bq/mL")
    save_dicom(tmp_path / "pet", pet, facts())
    with pytest.raises(InputError, match="must be of modality CT, but it is PT"):
        load_ct(tmp_path / "pet")


def test_refuses_a_folder_of_mixed_series(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", body_hu()[:, :, :3])
    other = header()
    write_slice(tmp_path / "ct" / "x", other, body_hu()[:, :, 0], ORIGIN_MM)
    with pytest.raises(InputError, match="3 files of a CT series, 1 files of a CT series"):
        load_ct(tmp_path / "ct")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"RescaleSlope": None}, "lacks RescaleSlope"),
        ({"RescaleIntercept": None}, "lacks RescaleIntercept"),
        ({"GantryDetectorTilt": 12.5}, "gantry must not be tilted"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "slices must be axial"),
        ({"ImageOrientationPatient": [0.9998, 0.02, 0, -0.02, 0.9998, 0]}, "must be axial"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        ({"NumberOfFrames": 7}, "must hold one slice"),
        ({"PixelSpacing": [0.0, 2.0]}, "must have a positive pixel spacing"),
        ({"PixelSpacing": [2.0, -2.0]}, "must have a positive pixel spacing"),
    ],
)
def test_refuses_what_cannot_become_a_map(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(InputError, match=found):
        load_ct(write_ct(tmp_path / "ct", body_hu()[:, :, :4], **changes))


def test_refuses_a_missing_slice_by_its_position(tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct", body_hu()[:, :, :9])
    (folder / "0005.dcm").unlink()
    found = r"between -1122.5 and -1117.5 mm there are 5 mm instead of 2.5"
    with pytest.raises(InputError, match=found):
        load_ct(folder)


def test_refuses_a_slice_that_is_there_twice(tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct", body_hu()[:, :, :4])
    (folder / "copy").write_bytes((folder / "0002.dcm").read_bytes())
    with pytest.raises(InputError, match="two lie at -1125 mm"):
        load_ct(folder)


def test_refuses_slices_that_shift_sideways(tmp_path: Path) -> None:
    common, hu = header(), body_hu()
    for k in range(5):
        write_slice(
            tmp_path / f"{k}", common, hu[:, :, k], ORIGIN_MM + k * np.array([0.0, 0.5, 2.5])
        )
    with pytest.raises(InputError, match=r"shift sideways by 2.00 mm over 10 mm"):
        load_ct(tmp_path)


def test_refuses_slices_of_different_sizes(tmp_path: Path) -> None:
    common, hu = header(), body_hu()
    write_slice(tmp_path / "a", common, hu[:, :, 0], ORIGIN_MM)
    write_slice(tmp_path / "b", common, hu[:-2, :, 1], ORIGIN_MM + np.array([0, 0, 2.5]))
    with pytest.raises(InputError, match="must have one Columns, but they have 2 different"):
        load_ct(tmp_path)


def test_refuses_a_single_slice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have two slices at least"):
        load_ct(write_ct(tmp_path / "ct", body_hu()[:, :, :1]))


def test_refuses_slices_of_different_voltage(tmp_path: Path) -> None:
    common, hu = header(), body_hu()
    write_slice(tmp_path / "a", common, hu[:, :, 0], ORIGIN_MM)
    common.KVP = 80
    write_slice(tmp_path / "b", common, hu[:, :, 1], ORIGIN_MM + np.array([0, 0, 2.5]))
    with pytest.raises(InputError, match="one tube voltage, but they have 80, 120 kV"):
        make_mu(load_ct(tmp_path), HERE)


@pytest.mark.parametrize("keep", [0, 100, 140, 300, 700, -1])
def test_refuses_a_cut_file(tmp_path: Path, keep: int) -> None:
    """Cut to nothing, in the preamble, in the header and in the voxels."""
    folder = write_ct(tmp_path / "ct", body_hu()[:, :, :6])
    path = folder / "0003.dcm"
    path.write_bytes(path.read_bytes()[: keep if keep >= 0 else -50])
    with pytest.raises(InputError, match=r"cut|instead of 2.5"):
        make_mu(load_ct(folder), HERE, grid=PET_GRID)


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a folder of files"):
        load_ct(tmp_path / "none")


def test_refuses_a_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(InputError, match="must hold DICOM images, but none of the 1 files"):
        load_ct(tmp_path)


def test_passes_over_other_files_and_says_so(tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    _, notes = make_mu(load_ct(folder, SILENT), HERE, grid=PET_GRID)
    assert notes == ("1 files in the folder are no DICOM images: left out",)


def test_refuses_a_scanner_elsewhere(folder: Path) -> None:
    with pytest.raises(InputError, match=r"must overlap, but the CT's middle is at \(7.0, 8.0"):
        make_mu(load_ct(folder), Placement((0.0, 0.0, 0.0)), grid=PET_GRID)


def test_refuses_a_position_that_is_none(folder: Path) -> None:
    with pytest.raises(InputError, match="position must be one of HFS, HFP, FFS, FFP"):
        make_mu(load_ct(folder), replace(HERE, patient_position="HFDL"))


@pytest.mark.parametrize(("fwhm_mm", "voxel_mm"), [(-1.0, 3.0), (4.0, 0.0)])
def test_refuses_sizes_that_are_none(folder: Path, fwhm_mm: float, voxel_mm: float) -> None:
    with pytest.raises(InputError, match="smoothing must be zero or more"):
        make_mu(load_ct(folder), HERE, fwhm_mm=fwhm_mm, voxel_mm=voxel_mm)


def test_a_folder_for_a_mu_map_says_what_to_do(folder: Path) -> None:
    with pytest.raises(InputError, match="make its mu-map first"):
        load_volume(folder, "1/cm")


def test_reads_a_compressed_slice(tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct", body_hu()[:, :, :4])
    plain = load_ct(folder).read_slice(1)
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.compress(pydicom.uid.RLELossless)
        ds.save_as(path)
    assert np.array_equal(load_ct(folder).read_slice(1), plain)


def test_refuses_a_number_that_is_none(tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct", body_hu()[:, :, :3])
    path = folder / "0002.dcm"
    path.write_bytes(path.read_bytes().replace(b"2.0\\2.0", b"2.0\\abc"))
    with pytest.raises(InputError, match=r"file 2 of 3 \(in order of name\) is cut or damaged"):
        load_ct(folder)


@pytest.mark.parametrize(
    ("gantry", "side", "position"),
    [("F-10480", "F-10310", "FFP"), ("102540008", "1240000", "HFP"), ("?", "F-10340", "")],
)
def test_reads_the_position_from_old_and_new_codes(
    gantry: str, side: str, position: str
) -> None:
    """DICOM PS3.16, CID 20 and 21, in SNOMED RT (older vendors) and SNOMED CT."""
    ds, lying, modifier, first = (pydicom.Dataset() for _ in range(4))
    modifier.CodeValue, first.CodeValue = side, gantry
    lying.PatientOrientationModifierCodeSequence = [modifier]
    ds.PatientOrientationCodeSequence = [lying]
    ds.PatientGantryRelationshipCodeSequence = [first]
    assert position_of(ds) == position


def test_refuses_slices_too_large_to_be_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.io.ct.MAX_PIXELS", 95 * 80)
    with pytest.raises(InputError, match="up to 4096 x 4096 pixels, but they have 80 x 96"):
        load_ct(write_ct(tmp_path / "ct", body_hu()[:, :, :2]))


def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path) -> None:
    """200 seeded damages of one slice: bits, cuts, repeats, lengths. No other error, ever."""
    rng = np.random.default_rng(20261125)
    folder = write_ct(tmp_path / "ct", body_hu()[40:72, 30:62, 10:13])
    x, y, z = ORIGIN_MM + STEP_MM * [16, 16, 1]
    path = folder / "0002.dcm"
    good = path.read_bytes()
    n_refused = 0
    for _ in range(200):
        bad, at = bytearray(good), int(rng.integers(1400))
        match rng.integers(4):
            case 0:
                bad[at] ^= 1 << int(rng.integers(8))
            case 1:
                del bad[at:]
            case 2:
                bad[at:at] = bad[at : at + int(rng.integers(1, 64))]
            case _:
                bad[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b" nan"])
        path.write_bytes(bytes(bad))
        try:
            make_mu(load_ct(folder), Placement((x, y, z)), voxel_mm=8.0)
        except InputError:
            n_refused += 1
    assert 60 < n_refused < 200
