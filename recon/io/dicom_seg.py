"""Write hotspots as a DICOM segmentation of the PET series that they were found in."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation as DicomSegmentation
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID

from listmode.errors import InputError
from recon.image import Volume
from recon.io import files
from recon.io.ct import Series, read_series
from recon.io.dicom_tags import SCANNER_FROM_PATIENT, make_uid

MAX_SHIFT_MM = 0.01

# A hotspot is a region that stands out, and no diagnosis: not "lesion", not "neoplasm".
CATEGORY = codes.cid7150.SpatialAndRelationalConcept
KIND = codes.DCM.SelectedRegion

REGIONS = {
    "bladder": codes.SCT.Bladder,
    "brain": codes.SCT.Brain,
    "heart": codes.SCT.Heart,
    "kidney": codes.SCT.Kidney,
    "liver": codes.SCT.Liver,
    "placenta": codes.SCT.Placenta,
    "spleen": codes.SCT.Spleen,
    "uterus": codes.SCT.Uterus,
}
"""SNOMED CT codes of label-map regions; a region without one is named in the label only."""


def save_seg(
    path: Path,
    mask: Volume,
    series_folder: Path,
    *,
    regions: Sequence[str] = (),
    method: str = "threshold",
) -> int:
    """Write a label map of hotspots as DICOM SEG, one segment a hotspot.

    Patient, study and frame of reference are those of the PET series, so what the series does
    not say (a name) the segmentation does not say either. The same input gives the same bytes.

    Parameters
    ----------
    path
        The file, ``NAME.dcm``.
    mask
        Each number above zero is one hotspot; on the grid of the series.
    series_folder
        The PET series, as :func:`recon.io.dicom.save_dicom` wrote it.
    regions
        Region of each hotspot in ascending order of its number, or "".
    method
        How the hotspots were found.

    Returns
    -------
    int
        Number of segments.

    Raises
    ------
    InputError
        If the mask holds no hotspot, is no label map or lies on another grid than the series,
        or the system refuses to write.

    Notes
    -----
    DICOM PS3.3, A.51 and C.8.20. Tracking identifiers are ``stillpet hotspot N``; their UIDs
    come from series and number, so a second look at the same series tracks the same ones.
    """
    if mask.unit != "label":
        raise InputError(
            f"hotspots must come as a label map, but the volume is in {mask.unit!r}; give one "
            "number a hotspot"
        )
    numbers = np.unique(mask.values[mask.values > 0])
    if not numbers.size:
        raise InputError(
            "a segmentation needs one hotspot at least, but the mask holds none; lower the "
            "threshold or write no segmentation"
        )
    if regions and len(regions) != numbers.size:
        raise InputError(
            f"each of the {numbers.size} hotspots needs a region (or an empty one), but "
            f"{len(regions)} are given; give one each"
        )
    series = read_series(series_folder, "PT")
    frames = _on_series(mask, series)
    segments = np.searchsorted(numbers, frames) + 1
    segments[frames == 0] = 0
    source = series.headers[0]
    uid = str(source.SeriesInstanceUID)
    digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
    descriptions = [
        _describe(segment, int(number), region, uid, method)
        for segment, number, region in zip(
            range(1, numbers.size + 1), numbers, regions or [""] * numbers.size, strict=True
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values of the series
        ds = DicomSegmentation(
            source_images=list(series.headers),
            pixel_array=segments.astype(np.uint16),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=make_uid("seg series", uid, digest, method, *regions),
            series_number=int(source.get("SeriesNumber") or 1) + 100,
            sop_instance_uid=make_uid("seg", uid, digest, method, *regions),
            instance_number=1,
            manufacturer="stillpet",
            manufacturer_model_name="stillpet",
            software_versions=metadata.version("stillpet"),
            device_serial_number="none",
            content_description="hotspots; no diagnosis",
        )
    ds.SeriesDescription = f"stillpet hotspots ({numbers.size})"
    _fix_times(ds, source)
    _fix_uid(ds, make_uid("seg dimensions", uid, digest))
    buffer = io.BytesIO()
    ds.save_as(buffer)
    files.write_whole({path: buffer.getvalue()})
    return int(numbers.size)


def _fix_times(ds: Dataset, source: Dataset) -> None:
    """Write the image's times, never the moment of writing."""
    for kind in ("Date", "Time"):
        for keyword in ("InstanceCreation", "Content", "Series"):
            setattr(ds, keyword + kind, source["Content" + kind].value)
    for equipment in ds.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime


def _fix_uid(ds: Dataset, uid: UID) -> None:
    """Replace the identifier of the frames' order, which the library draws at random."""
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _on_series(mask: Volume, series: Series) -> NDArray[np.int32]:
    """Order the mask as the series' slices, rows and columns are; both must be one grid."""
    turn = np.array(SCANNER_FROM_PATIENT.get(series.patient_position, (1.0, 1.0, 1.0)))
    ends = [turn * series.origin_mm, turn * (2.0 * series.centre_mm - series.origin_mm)]
    last = mask.grid.point_mm(np.array(mask.grid.shape) - 1)
    low, high = np.minimum(*ends), np.maximum(*ends)
    shift = np.abs([low - mask.grid.origin_mm, high - last]).max()
    if series.shape != mask.grid.shape or shift > MAX_SHIFT_MM:
        raise InputError(
            f"the mask must lie on the grid of the PET series, {series.shape} voxels, but it "
            f"has {mask.grid.shape}, shifted by up to {shift:.3g} mm; segment the image that "
            "the series was made from"
        )
    values = np.asarray(mask.values, dtype=np.int32)
    flips = turn * np.sign(series.step_mm) < 0
    values = values[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(values.transpose(2, 1, 0))


def _describe(
    segment: int, number: int, region: str, series_uid: str, method: str
) -> SegmentDescription:
    known: Code | None = REGIONS.get(region.removesuffix("s"))
    is_manual = method == "user mask"
    families = codes.cid7162
    return SegmentDescription(
        segment_number=segment,
        segment_label=f"hotspot {number}" + (f", {region}" if region else "")[:40],
        segmented_property_category=CATEGORY,
        segmented_property_type=KIND,
        algorithm_type="SEMIAUTOMATIC" if is_manual else "AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=f"stillpet, {method}"[:64],
            family=families.ManualProcessing if is_manual else families.NeighborhoodAnalysis,
            version=metadata.version("stillpet"),
        ),
        tracking_uid=make_uid("hotspot", series_uid, number),
        tracking_id=f"stillpet hotspot {number}",
        anatomic_regions=None if known is None else [known],
    )
