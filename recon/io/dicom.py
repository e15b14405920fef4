"""Write an image as a DICOM PET series whose SUV any viewer can compute from its tags."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage
from pydicom.valuerep import DSfloat

from listmode.progress import SILENT, Progress
from recon.image import Volume
from recon.io import files
from recon.io.dicom_tags import (
    SCANNER_FROM_PATIENT,
    Identity,
    SeriesPlace,
    decimal,
    make_uid,
    series_attributes,
)
from recon.io.scan_facts import ScanFacts, check_pet

STORED_MAX = 32767
"""Largest stored number: a slice's values are kept to half of its maximum / 32767."""


def save_dicom(
    folder: Path,
    volume: Volume,
    facts: ScanFacts,
    *,
    identity: Identity | None = None,
    place: SeriesPlace | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write an image as one DICOM PET series, one file a slice, from the feet upwards (HFS).

    The activity is corrected to tick zero of the listmode, so tick zero is ``SeriesDate`` and
    ``SeriesTime``, to which ``DecayCorrection`` START refers; ``AcquisitionTime`` is when the
    first window starts. A union of windows is one frame: ``ActualFrameDuration`` is the time
    that was used, and ``ImageComments`` lists the windows. The same input gives the same bytes.

    Parameters
    ----------
    folder
        New or empty; it takes its name when all slices are complete.
    volume
        Bq/mL at tick zero.
    facts
        Dose, weight, times and windows; all of what an SUV needs.
    identity
        The patient, for a series that is to go back to the hospital. Without it
        ``PatientIdentityRemoved`` is YES, and only weight, height and sex are kept.
    place
        Position of the patient, study and frame of reference.

    Raises
    ------
    InputError
        If the volume is not in Bq/mL, dose, injection time or weight is unknown, the folder is
        not empty, or the system refuses to write.

    Notes
    -----
    Attributes and their meaning: DICOM PS3.3, A.21 and C.8.9 (2024). Stored numbers are signed
    16 bit with a slope a slice, so a value is off by at most its slice's maximum / 65534.
    """
    check_pet(volume, facts)
    place = place or SeriesPlace()
    key = _key(volume, facts, identity, place)
    common = series_attributes(volume, facts, identity, place, key)
    top = float(np.abs(volume.values).max())
    with progress.stage("DICOM slices", volume.grid.shape[2], "slices") as stage:

        def slices() -> Iterator[tuple[str, bytes]]:
            for k in range(volume.grid.shape[2]):
                yield f"PT{k + 1:05d}.dcm", _slice_bytes(common, volume, place, key, k, top)
                stage.advance(1)

        files.write_folder(folder, slices())


def _key(
    volume: Volume, facts: ScanFacts, identity: Identity | None, place: SeriesPlace
) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(volume.values).tobytes())
    about = [
        asdict(volume.grid), asdict(facts.protocol), list(facts.windows), str(facts.start),
        None if identity is None else asdict(identity), asdict(place),
    ]  # fmt: skip
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def _slice_bytes(
    common: Dataset, volume: Volume, place: SeriesPlace, key: str, k: int, top: float
) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
    meta.MediaStorageSOPInstanceUID = make_uid("image", key, k)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", common, preamble=b"\0" * 128, file_meta=meta)
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.InstanceNumber = ds.ImageIndex = k + 1
    corner = volume.grid.point_mm((0, 0, k)) * SCANNER_FROM_PATIENT[place.patient_position]
    ds.ImagePositionPatient = [decimal(v) for v in corner]
    ds.SliceLocation = decimal(corner[2])
    slope, stored = _stored(volume.values[:, :, k], top)
    ds.RescaleSlope = slope
    ds.PixelData = stored.T.astype("<i2").tobytes()  # rows run along y
    ds["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _stored(values: NDArray[Any], volume_max: float) -> tuple[DSfloat, NDArray[np.int64]]:
    """Scale a slice to 16 bits by a slope that text of 16 characters holds exactly.

    A whole slope, such as the 1 of an empty slice, would make ITK read the series as whole
    numbers (its readers take the type from the first file), so there is none.
    """
    top = float(np.abs(values).max()) or volume_max or 1.0
    slope = decimal(top / STORED_MAX)
    if float(slope).is_integer():
        slope = decimal(float(slope) * (1.0 + 1e-6))
    stored = np.rint(values.astype(np.float64) / float(slope)).astype(np.int64)
    return slope, np.clip(stored, -STORED_MAX - 1, STORED_MAX)
