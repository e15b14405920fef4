"""Make a mu-map of a CT series: converted, smoothed to PET resolution, on a PET grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from recon.image import F64, Grid, Volume
from recon.io.ct import Series, read_series
from recon.io.dicom_folder import position_of
from recon.io.dicom_tags import SCANNER_FROM_PATIENT
from recon.io.hounsfield import Spectrum, spectrum_of
from recon.io.nifti import check_mu
from recon.io.resample import resample_axis

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
BODY_HU = -300.0
CT_FIELD_MM = 500.0  # of the common CT where the series does not say
MIN_ARC_MM = 20.0  # a table's shell at the edge is thinner


@dataclass(frozen=True)
class Placement:
    """Where the CT lies in the PET scanner.

    Parameters
    ----------
    centre_mm
        The point of patient coordinates (DICOM LPS) that is the centre of the PET's field of
        view.
    patient_position
        How the patient lay: HFS, HFP, FFS or FFP.
    frame_of_reference_uid
        Of the PET; "" if unknown.
    """

    centre_mm: tuple[float, float, float]
    patient_position: str | None = None
    frame_of_reference_uid: str = ""


def read_placement(folder: Path) -> Placement:
    """Take the place of the scanner from the vendor's own PET series of the scan.

    The middle of its grid is taken for the centre of the field of view: true of a scan in one
    bed position over the whole axial field.

    Raises
    ------
    InputError
        If the folder does not hold one whole PET series.
    """
    pet = read_series(folder, "PT")
    x, y, z = (float(v) for v in pet.centre_mm)
    return Placement((x, y, z), pet.patient_position, pet.frame_of_reference_uid)


def load_ct(folder: Path, progress: Progress = SILENT) -> Series:
    """Read the headers of a CT series; see :func:`recon.io.ct.read_series`."""
    return read_series(folder, "CT", progress)


def make_mu(
    ct: Series,
    placement: Placement,
    *,
    grid: Grid | None = None,
    voxel_mm: float = 3.3,
    fwhm_mm: float = 4.0,
    progress: Progress = SILENT,
) -> tuple[Volume, tuple[str, ...]]:
    """Turn a CT into a mu-map at 511 keV in the frame of the PET scanner.

    Each slice becomes mu first and is smoothed then: attenuation is an integral of mu, which
    smoothing keeps and smoothing of HU across bone does not. Slices are read one by one, so
    memory is that of the result and of its columns at CT slice spacing.

    Parameters
    ----------
    ct
        From :func:`load_ct`.
    placement
        Where the scanner is.
    grid
        Of the PET image; without it a grid of ``voxel_mm`` that covers the CT.
    voxel_mm
        Cubic voxels of that grid.
    fwhm_mm
        Gaussian that brings the CT to PET resolution; 0 for none.

    Returns
    -------
    Volume
        1/cm, zero outside of the CT.
    tuple of str
        Warnings: doubtful spectrum, contrast agent, truncation, other frame of reference, part
        of the grid that the CT does not cover.

    Raises
    ------
    InputError
        If grid and CT do not overlap, a position or width is unusable, or a slice is damaged.
    """
    position = placement.patient_position or ct.patient_position
    if position not in SCANNER_FROM_PATIENT:
        raise InputError(
            f"the patient position must be one of {', '.join(SCANNER_FROM_PATIENT)}, but it is "
            f"{position!r}; such a CT cannot be brought into the scanner"
        )
    if not (fwhm_mm >= 0.0 and voxel_mm > 0.0):
        raise InputError(
            "smoothing must be zero or more and voxels larger, but they are "
            f"{fwhm_mm:g} and {voxel_mm:g} mm; correct them"
        )
    turn = np.array(SCANNER_FROM_PATIENT[position])
    grid = grid or _covering_grid(ct, turn, np.array(placement.centre_mm), voxel_mm)
    at = [
        (turn[a] * grid.axis_mm(a) + placement.centre_mm[a] - ct.origin_mm[a]) / ct.step_mm[a]
        for a in range(3)
    ]
    inside = [(at[a] >= -0.5) & (at[a] <= ct.shape[a] - 0.5) for a in range(3)]
    if not all(covered.any() for covered in inside):
        raise InputError(
            "CT and PET grid must overlap, but the CT's middle is at "
            f"{_listed(ct.centre_mm)} mm and the PET's at {_listed(placement.centre_mm)} mm of "
            "patient coordinates; give the right place of the PET's centre"
        )
    kvp, is_tin = _tube(ct)
    spectrum, warnings = spectrum_of(kvp, is_tin_filtered=is_tin)
    columns, truncated = _columns(ct, spectrum, at, inside, fwhm_mm, progress)
    sigma = fwhm_mm / FWHM_PER_SIGMA / abs(ct.step_mm[2])
    columns = ndimage.gaussian_filter(columns, (0.0, 0.0, sigma), mode="nearest")
    values = resample_axis(columns, 2, at[2], inside[2], is_label=False)
    notes = (*warnings, *_doubts(ct, placement), *truncated, *_uncovered(inside[2]))
    provenance = {
        "made_from": "CT",
        "kvp": kvp,
        "bilinear": {"break_hu": spectrum.break_hu, "source": "doi 10.1118/1.2174132"},
        "smoothed_fwhm_mm": fwhm_mm,
        "n_slices": ct.shape[2],
        "slice_spacing_mm": abs(ct.step_mm[2]),
        "patient_position": position,
        "notes": list(notes),
    }
    volume = Volume(values, grid, "1/cm", provenance)
    check_mu(volume)
    return volume, notes


def _listed(point_mm: object) -> str:
    return f"({', '.join(f'{float(v):.1f}' for v in np.asarray(point_mm))})"


def _covering_grid(ct: Series, turn: F64, centre_mm: F64, voxel_mm: float) -> Grid:
    """Lay voxels over the whole CT, one of them on the scanner's centre."""
    half = np.array(ct.shape) / 2.0 * ct.step_mm  # to the outer faces
    ends = turn * (np.array([-half, half]) + ct.centre_mm - centre_mm)
    first = np.ceil(ends.min(axis=0) / voxel_mm).astype(int)
    stop = np.floor(ends.max(axis=0) / voxel_mm).astype(int)
    nx, ny, nz = (int(n) for n in np.maximum(stop - first + 1, 1))
    x, y, z = (float(v) for v in first * voxel_mm)
    return Grid((nx, ny, nz), (voxel_mm, voxel_mm, voxel_mm), (x, y, z))


def _columns(
    ct: Series,
    spectrum: Spectrum,
    at: list[F64],
    inside: list[NDArray[np.bool_]],
    fwhm_mm: float,
    progress: Progress,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Bring each slice to the grid's x and y. Shape (grid x, grid y, CT slices)."""
    sigma = [fwhm_mm / FWHM_PER_SIGMA / abs(ct.step_mm[a]) for a in (0, 1)]
    edge = _edge(ct)
    columns = np.empty((at[0].size, at[1].size, ct.shape[2]), dtype=np.float32)
    arcs_mm = np.zeros(ct.shape[2])
    with progress.stage("CT slices", ct.shape[2], "slices") as stage:
        for k in range(ct.shape[2]):
            hu = ct.read_slice(k)
            arcs_mm[k] = (hu[edge] > BODY_HU).sum() * abs(ct.step_mm[0])
            plane = ndimage.gaussian_filter(spectrum.mu_per_cm(hu), sigma, mode="nearest")
            plane = plane[:, :, np.newaxis]
            for axis in (0, 1):
                plane = resample_axis(plane, axis, at[axis], inside[axis], is_label=False)
            columns[:, :, k] = plane[:, :, 0]
            stage.advance(1)
    n_cut = int((arcs_mm > MIN_ARC_MM).sum())
    if not n_cut:
        return columns, ()
    return columns, (
        f"the CT is truncated: in {n_cut} of {ct.shape[2]} slices the body reaches the edge "
        f"of its field (along {arcs_mm.max():.0f} mm at most); what lies beyond is missing or "
        "guessed by the CT",
    )


def _edge(ct: Series) -> NDArray[np.bool_]:
    """Mark the outermost voxels that the CT measured. Shape (x, y)."""
    ds = ct.headers[0]
    diameter = float(ds.get("DataCollectionDiameter", CT_FIELD_MM) or CT_FIELD_MM)
    centre = ds.get("DataCollectionCenterPatient") or ct.centre_mm
    x, y = (
        ct.origin_mm[a] + ct.step_mm[a] * np.arange(ct.shape[a]) - float(centre[a])
        for a in (0, 1)
    )
    is_measured = np.hypot(x[:, np.newaxis], y) <= diameter / 2.0
    return np.asarray(is_measured & ~ndimage.binary_erosion(is_measured))


def _tube(ct: Series) -> tuple[float | None, bool]:
    """Give the tube voltage, and whether the beam was filtered by tin.

    Raises
    ------
    InputError
        If slices differ in voltage.
    """
    voltages = {float(ds.get("KVP") or 0.0) for ds in ct.headers}
    if len(voltages) > 1:
        raise InputError(
            "all slices must have one tube voltage, but they have "
            f"{', '.join(f'{v:g}' for v in sorted(voltages))} kV; give the slices of one scan"
        )
    filters = " ".join(
        str(ct.headers[0].get(keyword) or "") for keyword in ("FilterMaterial", "FilterType")
    ).upper()
    kvp = voltages.pop()
    return kvp or None, "TIN" in filters or "SN" in filters.split()


def _doubts(ct: Series, placement: Placement) -> list[str]:
    ds = ct.headers[0]
    notes = []
    if ds.get("ContrastBolusAgent") or ds.get("ContrastBolusAgentSequence"):
        notes.append("a contrast agent was given for the CT: where it collects, mu is too high")
    theirs = placement.frame_of_reference_uid
    if theirs and theirs != ct.frame_of_reference_uid:
        notes.append(
            "CT and PET have different frames of reference: nothing says that they lie on each "
            "other; compare them by eye"
        )
    if not position_of(ds):
        notes.append("the CT does not say how the patient lay: head first, supine is assumed")
    if placement.patient_position not in (None, ct.patient_position):
        notes.append(
            f"the patient lay {ct.patient_position} in the CT and "
            f"{placement.patient_position} in the PET: check that it is one scan"
        )
    if ds.get("RescaleType", "HU") not in ("HU", "US", ""):
        notes.append("the CT does not say that its values are HU: check water and air")
    if ct.n_ignored:
        notes.append(f"{ct.n_ignored} files in the folder are no DICOM images: left out")
    return notes


def _uncovered(inside: NDArray[np.bool_]) -> list[str]:
    if inside.all():
        return []
    return [
        f"the CT covers {inside.mean():.0%} of the grid's length: there is no attenuation in "
        "the rest"
    ]
