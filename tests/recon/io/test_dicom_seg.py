from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom.seg
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map
from numpy.typing import NDArray

from listmode.errors import InputError
from recon.image import Grid, Volume
from recon.io.dicom import save_dicom
from recon.io.dicom_seg import save_seg
from recon.io.dicom_tags import SCANNER_FROM_PATIENT, Identity, SeriesPlace
from tests.recon.io.scenes import GRID, asymmetric, facts


def hotspots() -> Volume:
    """Two hotspots of different shape; their numbers leave a gap."""
    mask = np.zeros(GRID.shape, np.int32)
    mask[7, 0, 5] = 2
    mask[1:3, 4:7, 1:3] = 5
    mask[1, 4, 1] = 0
    return Volume(mask, GRID, "label")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "pet"
    save_dicom(folder, asymmetric(), facts())
    return folder


def points_of(ds: Any, segment: int) -> NDArray[np.float64]:
    """Where a segment's voxels lie in the patient, from the frames one by one."""
    points = []
    shared = ds.SharedFunctionalGroupsSequence[0]
    rows_mm, columns_mm = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    along = np.array(
        [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    )
    for frame, group in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            corner = group.PlanePositionSequence[0].ImagePositionPatient
            for row, column in np.argwhere(frame):
                shift = column * columns_mm * along[:3] + row * rows_mm * along[3:]
                points.append(np.array([float(v) for v in corner]) + shift)
    return np.array(sorted(p.round(4).tolist() for p in points))


@pytest.mark.parametrize("position", SCANNER_FROM_PATIENT)
def test_each_voxel_comes_back_where_it_was_in_the_patient(
    tmp_path: Path, position: str
) -> None:
    place = SeriesPlace(patient_position=position)
    save_dicom(tmp_path / "pet", asymmetric(), facts(), place=place)
    assert save_seg(tmp_path / "seg.dcm", hotspots(), tmp_path / "pet") == 2
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    for segment, number in ((1, 2), (2, 5)):
        index = np.argwhere(hotspots().values == number)
        expected = GRID.point_mm(index) * SCANNER_FROM_PATIENT[position]
        found = points_of(ds, segment)
        assert found == pytest.approx(np.array(sorted(expected.tolist())), abs=0.01)


def test_highdicom_reads_it_back(series: Path, tmp_path: Path) -> None:
    save_seg(tmp_path / "seg.dcm", hotspots(), series)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    volume = seg.get_volume(combine_segments=True)
    values = hotspots().values
    for (k, j, i), found in np.ndenumerate(volume.array):
        x, y, z, _ = volume.affine @ [k, j, i, 1]
        at = tuple(np.rint(GRID.voxel_index([x, y, z])).astype(int))
        assert {0: 0, 2: 1, 5: 2}[int(values[at])] == found
    assert sum(volume.array.ravel() > 0) == (values > 0).sum()


def test_segments_are_coded_tracked_and_refer_to_the_series(
    series: Path, tmp_path: Path
) -> None:
    save_seg(tmp_path / "seg.dcm", hotspots(), series, regions=["liver", "rib_left_7"])
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    first, second = ds.SegmentSequence
    assert first.TrackingID == "stillpet hotspot 2"
    assert second.SegmentLabel == "hotspot 5, rib_left_7"
    assert first.TrackingUID != second.TrackingUID
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("111099", "DCM")
    category = first.SegmentedPropertyCategoryCodeSequence[0]
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("309825002", "SCT")
    assert first.AnatomicRegionSequence[0].CodeValue == "10200004"  # SNOMED CT: liver
    assert "AnatomicRegionSequence" not in second
    pet = pydicom.dcmread(next(iter(series.iterdir())))
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == pet.SeriesInstanceUID
    assert ds.FrameOfReferenceUID == pet.FrameOfReferenceUID
    assert ds.StudyInstanceUID == pet.StudyInstanceUID
    assert ds.SeriesInstanceUID != pet.SeriesInstanceUID
    instances = {pydicom.dcmread(path).SOPInstanceUID for path in series.iterdir()}
    referenced = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced} <= instances


def test_no_required_attribute_is_missing(series: Path, tmp_path: Path) -> None:
    """Type 1: there and not empty; type 2: there; at the top level, by highdicom's tables."""
    save_seg(tmp_path / "seg.dcm", hotspots(), series)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    for module in get_iod_module_map()["segmentation"]:
        if module["usage"] != "M":
            continue
        for attribute in get_module_attribute_map()[module["key"]]:
            if attribute["path"] or attribute["type"] not in ("1", "2"):
                continue
            assert attribute["keyword"] in ds
            if attribute["type"] == "1":
                assert ds[attribute["keyword"]].value not in (None, "", [])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("position", SCANNER_FROM_PATIENT)
def test_an_independent_validator_finds_no_error(tmp_path: Path, position: str) -> None:
    place = SeriesPlace(patient_position=position)
    save_dicom(tmp_path / "pet", asymmetric(), facts(start=None), place=place)
    save_seg(tmp_path / "seg.dcm", hotspots(), tmp_path / "pet", regions=["liver", ""])
    for path in (tmp_path / "pet" / "PT00003.dcm", tmp_path / "seg.dcm"):
        command = ["dciodvfy", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Error" not in said.stdout + said.stderr


def test_names_the_patient_only_where_the_series_does(tmp_path: Path, series: Path) -> None:
    who = Identity("DOE^JANE", "H123456")
    save_dicom(tmp_path / "pet", asymmetric(), facts(), identity=who)
    save_seg(tmp_path / "named.dcm", hotspots(), tmp_path / "pet")
    save_seg(tmp_path / "bare.dcm", hotspots(), series)
    assert str(pydicom.dcmread(tmp_path / "named.dcm").PatientName) == "DOE^JANE"
    assert str(pydicom.dcmread(tmp_path / "bare.dcm").PatientName) == "anonymous"


def test_same_input_gives_the_same_bytes(series: Path, tmp_path: Path) -> None:
    for name in ("one.dcm", "two.dcm"):
        save_seg(tmp_path / name, hotspots(), series)
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()


def test_a_users_mask_is_not_called_automatic(series: Path, tmp_path: Path) -> None:
    save_seg(tmp_path / "seg.dcm", hotspots(), series, method="user mask")
    segment = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[0]
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_refuses_a_mask_without_hotspots(series: Path, tmp_path: Path) -> None:
    empty = Volume(np.zeros(GRID.shape, np.int32), GRID, "label")
    with pytest.raises(InputError, match="needs one hotspot at least"):
        save_seg(tmp_path / "seg.dcm", empty, series)


def test_refuses_a_mask_that_is_an_image(series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must come as a label map"):
        save_seg(tmp_path / "seg.dcm", asymmetric(), series)


def test_refuses_regions_of_another_number(series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="each of the 2 hotspots needs a region"):
        save_seg(tmp_path / "seg.dcm", hotspots(), series, regions=["liver"])


@pytest.mark.parametrize("origin_mm", [(-21.0, 4.0, -101.4), (-18.5, 4.0, -101.5)])
def test_refuses_a_mask_on_another_grid(
    series: Path, tmp_path: Path, origin_mm: tuple[float, float, float]
) -> None:
    shifted = Volume(hotspots().values, Grid(GRID.shape, GRID.voxel_mm, origin_mm), "label")
    with pytest.raises(InputError, match="must lie on the grid of the PET series"):
        save_seg(tmp_path / "seg.dcm", shifted, series)


def test_refuses_a_folder_that_is_no_pet_series(tmp_path: Path) -> None:
    (tmp_path / "pet").mkdir()
    with pytest.raises(InputError, match="must hold DICOM images"):
        save_seg(tmp_path / "seg.dcm", hotspots(), tmp_path / "pet")
