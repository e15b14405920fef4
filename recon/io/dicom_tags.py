"""The attributes of a DICOM PET series, apart from its voxels."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, PositronEmissionTomographyImageStorage
from pydicom.valuerep import DSfloat

from listmode.errors import InputError
from recon.image import Volume
from recon.io import sidecar
from recon.io.scan_facts import ScanFacts

SCANNER_FROM_PATIENT = {
    "HFS": (1.0, 1.0, 1.0),
    "HFP": (-1.0, -1.0, 1.0),
    "FFS": (-1.0, 1.0, -1.0),
    "FFP": (1.0, -1.0, -1.0),
}
"""Diagonal of the rotation between patient (LPS) and scanner axes, by PatientPosition.

The scanner's axes are those of LPS for a patient who lies head first, supine. Each of the
rotations is its own inverse (DICOM PS3.3, C.7.3.1.1.2).
"""

_NAMESPACE = uuid.UUID("5b0f8c52-8d0e-5c3e-9f61-6d3c2f1f7a10")
_NUCLIDES = {
    "F18": codes.cid4020._18Fluorine,
    "Ga68": codes.cid4020._68Gallium,
    "C11": codes.cid4020._11Carbon,
    "Cu64": codes.cid4020._64Copper,
    "Zr89": codes.cid4020._89Zirconium,
}


@dataclass(frozen=True)
class Identity:
    """Who the patient is. Without it a series carries a code and no person.

    Parameters
    ----------
    patient_name
        As DICOM writes it: ``FAMILY^GIVEN``.
    patient_id
        The hospital's number.
    birth_date
        ``YYYYMMDD`` or "".
    accession_number
        Of the examination, or "".
    """

    patient_name: str
    patient_id: str
    birth_date: str = ""
    accession_number: str = ""

    def __post_init__(self) -> None:
        if not self.patient_name or not self.patient_id:
            raise InputError(
                "an identified series needs the patient's name and number, but one of them is "
                "empty; give both, or write it de-identified"
            )
        if self.birth_date:
            try:
                datetime.strptime(self.birth_date, "%Y%m%d")
            except ValueError:
                raise InputError(
                    "a birth date must be written YYYYMMDD, but this one is not; correct it"
                ) from None


@dataclass(frozen=True)
class SeriesPlace:
    """Where a series belongs.

    Parameters
    ----------
    patient_position
        How the patient lay: HFS, HFP, FFS or FFP.
    subject
        Code of the patient in a de-identified series.
    study_uid, frame_of_reference_uid
        Of the study and of the CT, to lie beside them; new ones if ``None``.
    """

    patient_position: str = "HFS"
    subject: str = "anonymous"
    study_uid: str | None = None
    frame_of_reference_uid: str | None = None

    def __post_init__(self) -> None:
        if self.patient_position not in SCANNER_FROM_PATIENT:
            raise InputError(
                f"the patient position must be one of {', '.join(SCANNER_FROM_PATIENT)}, but "
                f"it is {self.patient_position!r}; other positions cannot be written"
            )
        if not self.subject:
            raise InputError(
                "a de-identified series needs a code for the patient, but it is empty; viewers "
                "refuse a series without one: give any"
            )


def make_uid(*parts: object) -> UID:
    """Derive an identifier from what it names (DICOM PS3.5, B.2: an UUID under 2.25)."""
    name = "/".join(str(part) for part in parts)
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")


def series_attributes(
    volume: Volume, facts: ScanFacts, identity: Identity | None, place: SeriesPlace, key: str
) -> Dataset:
    """Give the attributes that all slices of a series share.

    Parameters
    ----------
    volume
        Its grid and provenance; the voxels are not looked at.
    facts
        Complete, as :func:`~recon.io.scan_facts.check_pet` wants them.
    identity
        The patient, or ``None`` for a series without a person.
    place
        Position, study, frame of reference.
    key
        What the identifiers are made from.
    """
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    _add_patient(ds, facts, identity, place)
    _add_times(ds, facts)
    _add_orientation(ds, place)
    _add_corrections(ds, volume, facts)
    _add_dose(ds, facts)
    ds.SOPClassUID = PositronEmissionTomographyImageStorage
    ds.Modality = "PT"
    ds.StudyInstanceUID = place.study_uid or make_uid("study", key)
    ds.SeriesInstanceUID = make_uid("series", key)
    ds.FrameOfReferenceUID = place.frame_of_reference_uid or make_uid("frame", key)
    ds.PositionReferenceIndicator = ""
    ds.StudyID, ds.ReferringPhysicianName, ds.Laterality = "1", "", ""
    ds.SeriesNumber = 1
    ds.Manufacturer = "stillpet"
    ds.ManufacturerModelName = str(volume.provenance.get("scanner", "unknown"))[:64]
    ds.SoftwareVersions = metadata.version("stillpet")
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SeriesType = ["STATIC", "IMAGE"]
    ds.Units, ds.CountsSource, ds.CollimatorType = "BQML", "EMISSION", "NONE"
    ds.NumberOfSlices = volume.grid.shape[2]
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    columns, rows, _ = volume.grid.shape
    dx, dy, dz = volume.grid.voxel_mm
    ds.Rows, ds.Columns = rows, columns
    ds.PixelSpacing = [decimal(dy), decimal(dx)]  # between rows first
    ds.SliceThickness = decimal(dz)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept = 0
    return ds


def _add_patient(
    ds: Dataset, facts: ScanFacts, identity: Identity | None, place: SeriesPlace
) -> None:
    protocol = facts.protocol
    if identity is None:
        ds.PatientName = ds.PatientID = place.subject
        ds.PatientBirthDate = ds.AccessionNumber = ""
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = "made by stillpet from data without identity"
        ds.LongitudinalTemporalInformationModified = (
            "REMOVED" if facts.start is None else "UNMODIFIED"
        )
    else:
        ds.PatientName, ds.PatientID = identity.patient_name, identity.patient_id
        ds.PatientBirthDate = identity.birth_date
        ds.AccessionNumber = identity.accession_number
        ds.PatientIdentityRemoved = "NO"
    ds.PatientSex = protocol.patient_sex or ""
    ds.PatientWeight = decimal(protocol.patient_weight_kg or 0.0)
    if protocol.patient_height_m:
        ds.PatientSize = decimal(protocol.patient_height_m)


def _add_times(ds: Dataset, facts: ScanFacts) -> None:
    """Write tick zero as series time, the first window as acquisition time."""
    first = facts.at(facts.windows.start_ms[0].item() / 1000.0)
    ds.StudyDate = ds.SeriesDate = facts.zero.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = _time(facts.zero)
    ds.AcquisitionDate = ds.ContentDate = first.strftime("%Y%m%d")
    ds.AcquisitionTime = ds.ContentTime = _time(first)
    ds.ActualFrameDuration = round(facts.windows.duration_s * 1000.0)
    ds.FrameReferenceTime = decimal(facts.reference_time_s * 1000.0)
    n = len(facts.windows)
    used = f"{facts.windows.duration_s:g} s in {n} window{'s' if n > 1 else ''}"
    ds.SeriesDescription = f"stillpet, {used}"[:64]
    clock = "dates are fiction, differences exact; " if facts.start is None else ""
    text = (
        f"Made from {used}, {facts.windows} s from series time; {clock}decay-corrected to "
        f"series time. {sidecar.PURPOSE}"
    )
    ds.ImageComments = text[:10240]


def _add_orientation(ds: Dataset, place: SeriesPlace) -> None:
    """Say how the patient lay, by codes, beside which PatientPosition must not stand.

    DICOM PS3.3, C.7.3.1 and C.8.4.6; CID 19, 20, 21.
    """
    x, y, _ = SCANNER_FROM_PATIENT[place.patient_position]
    ds.ImageOrientationPatient = [x, 0, 0, 0, y, 0]
    lying = coded(codes.cid19.Recumbent)
    is_supine = place.patient_position.endswith("S")
    lying.PatientOrientationModifierCodeSequence = [
        coded(codes.cid20.Supine if is_supine else codes.cid20.Prone)
    ]
    ds.PatientOrientationCodeSequence = [lying]
    is_head_first = place.patient_position.startswith("H")
    ds.PatientGantryRelationshipCodeSequence = [
        coded(codes.cid21.Headfirst if is_head_first else codes.cid21.FeetFirst)
    ]


def _add_corrections(ds: Dataset, volume: Volume, facts: ScanFacts) -> None:
    """Name the corrections that the image says were done, and no other."""
    about = volume.provenance
    has_scatter, has_randoms = _additive(about.get("additive", []))
    done = ["DECY"]
    if "osem" in about:
        done.append("NORM")
        osem = about["osem"]
        tof = "TOF-" if osem.get("use_tof") else ""
        ds.ReconstructionMethod = f"{tof}OSEM {osem['n_iterations']}i{osem['n_subsets']}s"
        ds.ConvolutionKernel = f"Gauss {osem.get('post_filter_fwhm_mm', 0.0):g} mm"
    if about.get("has_attenuation"):
        done.append("ATTN")
        ds.AttenuationCorrectionMethod = "mu-map at 511 keV"
    if has_scatter:
        done.append("SCAT")
        ds.ScatterCorrectionMethod = "single scatter, with TOF"
    if has_randoms:
        done.append("RAN")
    if about.get("motion"):
        done.append("MOTN")
    ds.RandomsCorrectionMethod = "DLYD" if has_randoms else "NONE"
    ds.CorrectedImage = done
    ds.DecayCorrection = "START"
    ds.DecayFactor = decimal(facts.decay_factor)


def _additive(names: Sequence[str]) -> tuple[bool, bool]:
    """Say whether scatter and randoms were corrected, from the names of the models.

    Models that follow the patient's poses have one name for both kinds: two are both.
    """
    is_both = len(names) == 2
    return is_both or "ScatterModel" in names, is_both or "RandomsModel" in names


def _add_dose(ds: Dataset, facts: ScanFacts) -> None:
    protocol = facts.protocol
    injected = facts.at(protocol.injection_time_s or 0.0)
    item = Dataset()
    item.Radiopharmaceutical = protocol.tracer[:64]
    item.RadionuclideTotalDose = decimal(protocol.injected_activity_bq or 0.0)
    item.RadionuclideHalfLife = decimal(protocol.half_life_s)
    item.RadionuclidePositronFraction = decimal(protocol.branching)
    item.RadiopharmaceuticalStartTime = _time(injected)
    item.RadiopharmaceuticalStartDateTime = injected.strftime("%Y%m%d%H%M%S.%f")
    nuclide = _NUCLIDES.get(sidecar.nuclide(protocol.half_life_s) or "")
    item.RadionuclideCodeSequence = [] if nuclide is None else [coded(nuclide)]
    ds.RadiopharmaceuticalInformationSequence = [item]


def decimal(value: float) -> DSfloat:
    """Write a number as DICOM's decimal string of at most 16 characters."""
    return DSfloat(float(value), auto_format=True)


def _time(moment: datetime) -> str:
    return moment.strftime("%H%M%S.%f")


def coded(code: Any) -> Dataset:
    """Make the item of a code sequence."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item
