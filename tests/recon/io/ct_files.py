"""CT series made for a test: an asymmetric body off the centre, as DICOM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (96, 80, 40)
STEP_MM = np.array([2.0, 2.0, 2.5])
ORIGIN_MM = np.array([-88.0, -71.0, -1130.0])  # LPS; the table counts from far away
CENTRE_MM = (4.0, 9.0, -1080.0)  # where the PET scanner's centre is
BONE_MM = np.array([30.0, -13.0, -1062.5])  # LPS centre of a bone rod's middle
BONE_RADIUS_MM, BONE_HALF_MM = 12.0, 15.0
NAME = "DOE^JANE"


def body_hu() -> NDArray[np.float64]:
    """Water in a wide ellipse, a lung on the right, a rod of bone on the left. [x, y, z]."""
    axes = [ORIGIN_MM[a] + STEP_MM[a] * np.arange(SHAPE[a]) for a in range(3)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    hu = np.full(SHAPE, -1000.0)
    hu[((x - 6.0) / 70.0) ** 2 + ((y - 8.0) / 50.0) ** 2 < 1.0] = 0.0
    hu[(np.hypot(x + 30.0, y - 10.0) < 20.0) & (z > -1075.0)] = -700.0
    rod = np.hypot(x - BONE_MM[0], y - BONE_MM[1]) < BONE_RADIUS_MM
    hu[rod & (np.abs(z - BONE_MM[2]) < BONE_HALF_MM)] = 1000.0
    return hu


def header() -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, "H123456", "19700102"
    ds.InstitutionName = "St Nowhere"
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), "1.2.3.4"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientPosition = "HFS"
    ds.KVP = 120
    ds.DataCollectionDiameter = 500
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.PixelSpacing = [float(STEP_MM[1]), float(STEP_MM[0])]
    ds.SliceThickness = float(STEP_MM[2])
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    return ds


def write_slice(path: Path, common: Dataset, hu: NDArray[Any], at_mm: Any) -> None:
    """Write one slice ``hu[x, y]`` whose first voxel is at ``at_mm``."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = common.SOPClassUID
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", common, preamble=b"\0" * 128, file_meta=meta)
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.ImagePositionPatient = [float(v) for v in at_mm]
    ds.Rows, ds.Columns = hu.shape[1], hu.shape[0]
    stored = (hu - float(ds.get("RescaleIntercept", -1024))) / float(ds.get("RescaleSlope", 1))
    ds.PixelData = np.rint(stored).astype("<i2").T.tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def write_ct(folder: Path, hu: NDArray[Any] | None = None, **changes: Any) -> Path:
    """Write a series; ``changes`` are attributes, ``None`` leaves one out.

    The names run against the order of position.
    """
    hu = body_hu() if hu is None else hu
    common = header()
    for keyword, value in changes.items():
        if value is None:
            del common[keyword]
        else:
            setattr(common, keyword, value)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(hu.shape[2]):
        at_mm = ORIGIN_MM + STEP_MM * [0, 0, k]
        write_slice(folder / f"{hu.shape[2] - k:04d}.dcm", common, hu[:, :, k], at_mm)
    return folder
