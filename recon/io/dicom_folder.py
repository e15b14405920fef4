"""Read the attributes of the DICOM files in a folder, without a word about whose they are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from listmode.errors import InputError
from listmode.progress import SILENT, Progress

NEEDED = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
NUMBERS = (
    *NEEDED, "NumberOfFrames", "GantryDetectorTilt", "KVP", "DataCollectionDiameter",
    "DataCollectionCenterPatient",
)  # fmt: skip
# SNOMED CT, and the SNOMED RT codes of older files (DICOM PS3.16, CID 20 and 21)
_FIRST = {"102540008": "HF", "F-10470": "HF", "102541007": "FF", "F-10480": "FF"}
_SIDE = {"40199007": "S", "F-10340": "S", "1240000": "P", "F-10310": "P"}
TEXTS = (
    "PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence",
    "Modality", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientPosition", "ImageType",
    "FilterMaterial", "FilterType", "RescaleType", "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
)  # fmt: skip


def position_of(ds: Dataset) -> str:
    """Read how the patient lay, from a word (CT) or codes (NM, PET); "" if it is unsaid."""
    if word := ds.get("PatientPosition"):
        return str(word)
    gantry = ds.get("PatientGantryRelationshipCodeSequence") or [Dataset()]
    lying = ds.get("PatientOrientationCodeSequence") or [Dataset()]
    modifier = lying[0].get("PatientOrientationModifierCodeSequence") or [Dataset()]
    first = _FIRST.get(str(gantry[0].get("CodeValue")), "")
    side = _SIDE.get(str(modifier[0].get("CodeValue")), "")
    return first + side if first and side else ""


def read_headers(
    folder: Path, progress: Progress = SILENT
) -> tuple[list[Path], list[Dataset], int]:
    """Read the attributes of all DICOM images of a folder, without their voxels.

    Returns
    -------
    tuple
        Files, their attributes, and how many other files there are.

    Raises
    ------
    InputError
        If there is no folder, no DICOM image in it, or one that is damaged.
    """
    if not folder.is_dir():
        raise InputError(
            "a DICOM series must be a folder of files, but what was given is none; give the "
            "folder that holds the slices"
        )
    found = sorted(path for path in folder.iterdir() if path.is_file())
    paths, headers = [], []
    with progress.stage("DICOM headers", len(found), "files") as stage, quiet():
        for number, path in enumerate(found, start=1):
            stage.advance(1)
            ds = _header(path, f"file {number} of {len(found)} (in order of name)")
            if ds is not None:
                paths.append(path)
                headers.append(ds)
    if not headers:
        raise InputError(
            f"a folder must hold DICOM images, but none of the {len(found)} files in the one "
            "given is one; give the folder that holds the slices"
        )
    return paths, headers, len(found) - len(headers)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom silent: its warnings quote values, and a name could be among them."""
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def _header(path: Path, where: str) -> Dataset | None:
    """Read a file's attributes; ``None`` if it is no DICOM file or a list of such files."""
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        kind = ds.file_meta.get("MediaStorageSOPClassUID")
        if kind == MediaStorageDirectoryStorage:
            return None
        if "SeriesInstanceUID" in ds and "Modality" in ds:
            for keyword in TEXTS:  # a value is parsed when it is asked for first
                ds.get(keyword)
            numbers = [np.asarray(ds.get(word) or 0, dtype=np.float64) for word in NUMBERS]
            if all(np.isfinite(number).all() for number in numbers):
                return ds
    except InvalidDicomError:
        return None
    except Exception:  # a damaged file breaks the parser in many ways
        pass
    raise InputError(
        f"each DICOM file must be whole, but {where} is cut or damaged; export it again"
    )
