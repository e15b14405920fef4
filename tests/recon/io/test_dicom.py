from __future__ import annotations

import errno
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from listmode.errors import InputError
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Volume
from recon.io.bids_keys import UNKNOWN_START
from recon.io.dicom import save_dicom
from recon.io.dicom_folder import position_of
from recon.io.dicom_tags import SCANNER_FROM_PATIENT, Identity, SeriesPlace
from recon.io.nifti import save_volume
from recon.io.scan_facts import ScanFacts
from tests.recon.io.scenes import GRID, PROTOCOL, PROVENANCE, START, WINDOWS, asymmetric, facts

sitk: Any = SimpleITK  # its functions have no types


def read_slices(folder: Path) -> list[Dataset]:
    slices: list[Dataset] = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return slices


def read_series(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def moment(date: str, time: str) -> datetime:
    return datetime.strptime(date + time, "%Y%m%d%H%M%S.%f")


def qiba_suv_factor(ds: Dataset) -> float:
    """SUVbw per stored unit by the vendor-neutral way of QIBA's FDG-PET/CT profile.

    Written from the profile's text (RSNA QIBA, SUV vendor-neutral pseudo-code, happy path).
    """
    assert "ATTN" in ds.CorrectedImage
    assert "DECY" in ds.CorrectedImage
    assert ds.DecayCorrection == "START"
    assert ds.Units == "BQML"
    item = ds.RadiopharmaceuticalInformationSequence[0]
    series = moment(ds.SeriesDate, ds.SeriesTime)
    assert series <= moment(ds.AcquisitionDate, ds.AcquisitionTime)
    injected = datetime.strptime(item.RadiopharmaceuticalStartDateTime, "%Y%m%d%H%M%S.%f")
    decay_time_s = (series - injected) / timedelta(seconds=1)
    halves = decay_time_s / float(item.RadionuclideHalfLife)
    decayed_bq = float(item.RadionuclideTotalDose) / 2.0**halves
    return float(float(ds.PatientWeight) * 1000.0 / decayed_bq)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "série 1"
    save_dicom(folder, asymmetric(), facts())
    return folder


def test_simpleitk_reads_the_same_geometry_and_values_as_from_nifti(
    series: Path, tmp_path: Path
) -> None:
    """0.01 mm; 1e-4 of each slice's maximum, where 16 bits allow 1.5e-5 (NIfTI in LPS: ITK)."""
    save_volume(tmp_path / "a.nii.gz", asymmetric())
    dicom, nifti = read_series(series), sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert dicom.GetSize() == nifti.GetSize() == GRID.shape
    for corner in [(0, 0, 0), (8, 0, 0), (0, 6, 0), (0, 0, 5), (8, 6, 5)]:
        here = np.array(dicom.TransformIndexToPhysicalPoint(corner))
        there = nifti.TransformIndexToPhysicalPoint(corner)
        assert here == pytest.approx(there, abs=0.01)
        assert here == pytest.approx(GRID.point_mm(corner), abs=0.01)
    a, b = sitk.GetArrayFromImage(dicom), sitk.GetArrayFromImage(nifti)
    top = np.abs(b).max(axis=(1, 2), keepdims=True)
    assert (np.abs(a - b) <= 1.0001 * top / 65534 + 1e-9).all()
    assert (np.abs(a - b) <= 1e-4 * top).all()
    hot = np.unravel_index(np.argmax(a), a.shape)
    point = dicom.TransformIndexToPhysicalPoint([int(i) for i in hot[::-1]])
    assert point == pytest.approx(GRID.point_mm((7, 0, 5)), abs=0.01)


def test_an_empty_first_slice_does_not_make_whole_numbers_of_the_others(series: Path) -> None:
    """ITK takes the pixel type of a series from its first file."""
    assert not sitk.GetArrayFromImage(read_series(series))[0].any()
    assert read_series(series).GetPixelID() == sitk.sitkFloat64


def test_a_slope_is_never_whole(tmp_path: Path) -> None:
    flat = np.full(GRID.shape, 32767.0, np.float32)
    save_dicom(tmp_path / "s", Volume(flat, GRID, "Bq/mL"), facts())
    for ds in read_slices(tmp_path / "s"):
        assert not float(ds.RescaleSlope).is_integer()
        assert ds.pixel_array * float(ds.RescaleSlope) == pytest.approx(32767.0, rel=2e-5)


def test_negative_values_stay_negative(tmp_path: Path) -> None:
    values = asymmetric().values.copy()
    values[2, 3, 4] = -4321.0
    save_dicom(tmp_path / "s", Volume(values, GRID, "Bq/mL"), facts())
    ds = read_slices(tmp_path / "s")[4]
    assert ds.pixel_array[3, 2] * float(ds.RescaleSlope) == pytest.approx(
        -4321.0, abs=0.51 * 74e3 / 32767
    )


def test_suv_from_the_tags_by_the_vendor_neutral_way_is_ours(series: Path) -> None:
    for ds in read_slices(series):
        assert qiba_suv_factor(ds) == pytest.approx(PROTOCOL.suv_per_bq_ml, rel=1e-9)
    by_hand = 71.3e3 / (21.7e6 * 2.0 ** (-3611.25 / 6586.2))
    assert PROTOCOL.suv_per_bq_ml == pytest.approx(by_hand, rel=1e-12)


@given(
    injection_s=st.floats(-90_000.0, -1.0),
    start=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
    half_life_s=st.sampled_from([1221.8, 4069.7, 6586.2, 45724.0]),
)
def test_suv_from_the_tags_survives_midnights_and_fractions_of_seconds(
    tmp_path_factory: pytest.TempPathFactory,
    injection_s: float,
    start: datetime,
    half_life_s: float,
) -> None:
    """Times have microseconds: 0.6e-6 s of the shortest half-life here is 3e-10."""
    protocol = replace(PROTOCOL, injection_time_s=injection_s, half_life_s=half_life_s)
    folder = tmp_path_factory.mktemp("s") / "s"
    grid = Grid.centred((2, 2, 1), 3.0)
    one_slice = Volume(np.ones(grid.shape, np.float32), grid, "Bq/mL", PROVENANCE)
    save_dicom(folder, one_slice, ScanFacts(protocol, WINDOWS, start))
    ds = pydicom.dcmread(next(iter(folder.iterdir())))
    assert qiba_suv_factor(ds) == pytest.approx(protocol.suv_per_bq_ml, rel=1e-8)


def test_times_are_those_of_tick_zero_and_the_first_window(series: Path) -> None:
    ds = read_slices(series)[0]
    assert moment(ds.SeriesDate, ds.SeriesTime) == START
    assert moment(ds.AcquisitionDate, ds.AcquisitionTime) == START + timedelta(seconds=10)
    item = ds.RadiopharmaceuticalInformationSequence[0]
    assert item.RadiopharmaceuticalStartDateTime == "20260228232018.875000"
    assert item.RadiopharmaceuticalStartTime == "232018.875000"


def test_a_union_of_windows_says_which_time_was_used(series: Path) -> None:
    ds = read_slices(series)[0]
    assert ds.ActualFrameDuration == 110_000 + 599_500  # not the 1190 s that passed
    assert ds.SeriesDescription == "stillpet, 709.5 s in 2 windows"
    assert "10-120,600.5-1200" in ds.ImageComments.replace(" ", "")


def test_frame_reference_time_is_when_the_activity_equals_its_mean(series: Path) -> None:
    """The oracle averages the decay over the windows in steps of 0.5 ms."""
    ds = read_slices(series)[0]
    at = np.concatenate([np.arange(a, b) + 0.5 for a, b in WINDOWS]) / 1000.0
    mean = np.mean(2.0 ** (-at / 6586.2))
    assert 2.0 ** (-float(ds.FrameReferenceTime) / 1000.0 / 6586.2) == pytest.approx(mean)
    assert float(ds.DecayFactor) == pytest.approx(1.0 / mean)


def test_frame_reference_time_of_one_window_is_the_average_count_rate_time() -> None:
    """T_ave = 1/lambda ln(lambda T / (1 - exp(-lambda T))): DICOM PS3.3, C.8.9.4."""
    one = ScanFacts(PROTOCOL, Windows([300_000], [1_500_000]))
    rate = np.log(2.0) / 6586.2
    average = np.log(rate * 1200.0 / (1.0 - np.exp(-rate * 1200.0))) / rate
    assert one.reference_time_s == pytest.approx(300.0 + average, abs=1e-6)


def _modules() -> list[str]:
    iod = get_iod_module_map()["positron-emission-tomography-image"]
    return [module["key"] for module in iod if module["usage"] == "M"]


def _holders(ds: Dataset, path: list[str]) -> list[Dataset]:
    for keyword in path:
        if keyword not in ds:
            return []
        return [h for item in ds[keyword].value for h in _holders(item, path[1:])]
    return [ds]


@pytest.mark.parametrize("module", _modules())
def test_no_required_attribute_is_missing(series: Path, module: str) -> None:
    """Type 1: there and not empty; type 2: there. The tables are highdicom's."""
    ds = read_slices(series)[3]
    table = get_module_attribute_map()[module]
    assert table or module == "general-acquisition"
    for attribute in table:
        for holder in _holders(ds, attribute["path"]):
            if attribute["type"] in ("1", "2"):
                assert attribute["keyword"] in holder
            if attribute["type"] == "1":
                assert holder[attribute["keyword"]].value not in (None, "", [])


def test_attributes_whose_condition_holds_are_written(series: Path) -> None:
    """Type 1C and 2C by hand: identity removed, NM/PET, corrected for decay, UTF-8."""
    table = get_module_attribute_map()
    conditional = {a["keyword"] for m in _modules() for a in table[m] if "C" in a["type"]}
    ds = read_slices(series)[0]
    for keyword in (
        "DeidentificationMethod", "DecayFactor", "SpecificCharacterSet",
    ):  # fmt: skip
        assert keyword in conditional
        assert ds[keyword].value not in (None, "")


def test_corrections_are_named_as_they_were_done(series: Path, tmp_path: Path) -> None:
    ds = read_slices(series)[0]
    assert list(ds.CorrectedImage) == ["DECY", "NORM", "ATTN", "SCAT", "RAN"]
    assert ds.ReconstructionMethod == "TOF-OSEM 4i5s"
    assert ds.RandomsCorrectionMethod == "DLYD"
    moved = {**PROVENANCE, "motion": {"poses": 2}, "additive": ["ByPose", "ByPose"]}
    save_dicom(tmp_path / "m", Volume(asymmetric().values, GRID, "Bq/mL", moved), facts())
    done = list(read_slices(tmp_path / "m")[0].CorrectedImage)
    assert done == ["DECY", "NORM", "ATTN", "SCAT", "RAN", "MOTN"]
    bare = Volume(asymmetric().values, GRID, "Bq/mL", {})
    save_dicom(tmp_path / "s", bare, facts())
    ds = read_slices(tmp_path / "s")[0]
    assert ds.CorrectedImage == "DECY"
    assert ds.RandomsCorrectionMethod == "NONE"
    assert "AttenuationCorrectionMethod" not in ds


@pytest.mark.parametrize("position", SCANNER_FROM_PATIENT)
def test_each_position_puts_the_hot_voxel_where_it_was_in_the_patient(
    tmp_path: Path, position: str
) -> None:
    """By hand: voxel (7, 0, 5) lies at (-3.5, 4, -80.25) mm in the scanner."""
    place = SeriesPlace(patient_position=position)
    save_dicom(tmp_path / "s", asymmetric(), facts(), place=place)
    image = read_series(tmp_path / "s")
    values = sitk.GetArrayFromImage(image)
    k, j, i = (int(n) for n in np.unravel_index(np.argmax(values), values.shape))
    left, back, head = {
        "HFS": (-3.5, 4.0, -80.25),
        "HFP": (3.5, -4.0, -80.25),
        "FFS": (3.5, 4.0, 80.25),
        "FFP": (-3.5, -4.0, 80.25),
    }[position]
    here = image.TransformIndexToPhysicalPoint((i, j, k))
    assert here == pytest.approx((left, back, head), abs=0.01)
    ds = read_slices(tmp_path / "s")[0]
    assert "PatientPosition" not in ds  # PS3.3, C.7.3.1: not beside the codes
    assert position_of(ds) == position
    first = ds.PatientGantryRelationshipCodeSequence[0].CodeMeaning
    assert first == ("headfirst" if position[0] == "H" else "feet-first")
    lying = ds.PatientOrientationCodeSequence[0]
    modifier = lying.PatientOrientationModifierCodeSequence[0].CodeMeaning
    assert modifier == ("supine" if position[2] == "S" else "prone")


def test_without_identity_no_person_and_no_date_is_named(tmp_path: Path) -> None:
    save_dicom(tmp_path / "s", asymmetric(), facts(start=None))
    ds = read_slices(tmp_path / "s")[0]
    assert ds.PatientIdentityRemoved == "YES"
    assert str(ds.PatientName) == ds.PatientID == "anonymous"
    assert ds.PatientBirthDate == ds.AccessionNumber == ds.ReferringPhysicianName == ""
    assert ds.LongitudinalTemporalInformationModified == "REMOVED"
    assert moment(ds.SeriesDate, ds.SeriesTime) == UNKNOWN_START
    assert "fiction" in ds.ImageComments
    assert qiba_suv_factor(ds) == pytest.approx(PROTOCOL.suv_per_bq_ml, rel=1e-9)


def test_with_identity_the_series_belongs_to_the_patient(tmp_path: Path) -> None:
    who = Identity("DOE^JÖRG", "H-123", "19700102", "A7")
    place = SeriesPlace(study_uid="1.2.3", frame_of_reference_uid="1.2.4")
    save_dicom(tmp_path / "s", asymmetric(), facts(), identity=who, place=place)
    ds = read_slices(tmp_path / "s")[0]
    assert (str(ds.PatientName), ds.PatientID) == ("DOE^JÖRG", "H-123")
    assert (ds.PatientBirthDate, ds.AccessionNumber) == ("19700102", "A7")
    assert ds.PatientIdentityRemoved == "NO"
    assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID) == ("1.2.3", "1.2.4")


def test_same_input_gives_the_same_bytes_and_other_input_another_series(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        save_dicom(tmp_path / name, asymmetric(), facts())
    save_dicom(tmp_path / "three", asymmetric(), facts(start=None))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == GRID.shape[2]
    for name in names:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    uids = {read_slices(tmp_path / n)[0].SeriesInstanceUID for n in ("one", "three")}
    assert len(uids) == 2


def test_refuses_an_image_that_is_not_pet(tmp_path: Path) -> None:
    mu = Volume(np.full(GRID.shape, 0.096, np.float32), GRID, "1/cm")
    with pytest.raises(InputError, match=r"must be in Bq/mL, but this volume is in '1/cm'"):
        save_dicom(tmp_path / "s", mu, facts())


@pytest.mark.parametrize(
    ("protocol", "found"),
    [
        (
            replace(PROTOCOL, injected_activity_bq=None),
            "injected activity must be known",
        ),
        (replace(PROTOCOL, injected_activity_bq=-1.0), "injected activity must be known"),
        (replace(PROTOCOL, patient_weight_kg=-1.0), "weight must be known"),
        (replace(PROTOCOL, injection_time_s=None), "time of injection must be known"),
        (replace(PROTOCOL, patient_weight_kg=None), "weight must be known and positive"),
    ],
)
def test_refuses_to_write_without_what_an_suv_needs(
    tmp_path: Path, protocol: ScanProtocol, found: str
) -> None:
    with pytest.raises(InputError, match=found):
        save_dicom(tmp_path / "s", asymmetric(), ScanFacts(protocol, WINDOWS))
    assert not (tmp_path / "s").exists()


def test_refuses_windows_before_tick_zero(tmp_path: Path) -> None:
    early = ScanFacts(PROTOCOL, Windows([-5000], [5000]))
    with pytest.raises(InputError, match="must not start before tick zero"):
        save_dicom(tmp_path / "s", asymmetric(), early)


def test_refuses_a_folder_that_holds_files(series: Path) -> None:
    with pytest.raises(InputError, match="must be new or empty"):
        save_dicom(series, asymmetric(), facts())


def test_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    save_dicom(tmp_path / "s", asymmetric(), facts())
    assert len(list((tmp_path / "s").iterdir())) == GRID.shape[2]


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        save_dicom(tmp_path / "s", asymmetric(), facts())
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_position_it_does_not_know() -> None:
    with pytest.raises(InputError, match="must be one of HFS, HFP, FFS, FFP"):
        SeriesPlace(patient_position="HFDR")


def test_refuses_an_empty_code() -> None:
    with pytest.raises(InputError, match="needs a code for the patient"):
        SeriesPlace(subject="")


def test_refuses_half_an_identity() -> None:
    with pytest.raises(InputError, match="needs the patient's name and number"):
        Identity("DOE^JANE", "")


def test_refuses_a_birth_date_in_another_order_without_repeating_it() -> None:
    with pytest.raises(InputError, match="must be written YYYYMMDD") as caught:
        Identity("DOE^JANE", "1", "02.01.1970")
    assert "1970" not in str(caught.value)
