"""Read a CT or PET series of DICOM files: where its slices lie and whether all are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from recon.image import F64
from recon.io.dicom_folder import NEEDED, position_of, quiet, read_headers

MAX_TILT = 1e-3  # rad, as for NIfTI
MAX_PIXELS = 4096 * 4096  # in a slice: a damaged size would ask for any amount of memory
MAX_UNEVEN_MM = 0.05  # vendors round positions to 0.01 mm or so
AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Series:
    """An axial series in patient coordinates (DICOM LPS), slices in order of position.

    Parameters
    ----------
    headers
        Attributes of each slice without its voxels.
    paths
        Its files.
    shape
        Voxels along x, y and z.
    step_mm
        From voxel to voxel along x, y and z; negative where the axis runs the other way.
    origin_mm
        Centre of voxel (0, 0, 0).
    patient_position
        HFS, HFP, FFS or FFP.
    frame_of_reference_uid
        To compare, never to be written.
    n_ignored
        Files that are not DICOM images.
    """

    headers: tuple[Dataset, ...]
    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    step_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    patient_position: str
    frame_of_reference_uid: str
    n_ignored: int

    @property
    def centre_mm(self) -> F64:
        """Middle of the grid in patient coordinates, mm. Shape (3,), float64."""
        half = (np.array(self.shape) - 1) / 2.0
        return np.array(self.origin_mm) + half * self.step_mm

    def read_slice(self, k: int) -> NDArray[np.float64]:
        """Read one slice, rescaled (HU of a CT). Shape (x, y), float64.

        Raises
        ------
        InputError
            If the file is cut or its compression cannot be undone.
        """
        try:
            with quiet():
                ds = pydicom.dcmread(self.paths[k])
                stored = ds.pixel_array
        except Exception as error:
            raise InputError(
                f"each slice must be a whole DICOM image, but slice {k + 1} of "
                f"{len(self.paths)} (at {self.origin_mm[2] + k * self.step_mm[2]:g} mm) cannot "
                f"be read ({type(error).__name__}: cut, or compressed in a way that needs "
                "another library); export the series again, uncompressed"
            ) from None
        values = stored.astype(np.float64) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        if "PixelPaddingValue" in ds:  # outside of what was measured
            values[_is_padding(stored, ds)] = AIR_HU
        return np.ascontiguousarray(values.T)


def _is_padding(stored: NDArray[Any], ds: Dataset) -> NDArray[np.bool_]:
    first = int(ds.PixelPaddingValue)
    last = int(ds.get("PixelPaddingRangeLimit", first))
    return np.asarray((stored >= min(first, last)) & (stored <= max(first, last)))


def read_series(folder: Path, modality: str, progress: Progress = SILENT) -> Series:
    """Read the headers of a folder that holds one axial series, and check that it is whole.

    Parameters
    ----------
    folder
        Files of one series; other files than DICOM images are passed over.
    modality
        ``CT`` or ``PT``.

    Raises
    ------
    InputError
        If there is no such folder or series, a file is cut, series are mixed, the gantry was
        tilted, the slices are not axial, a slice is missing or there twice, slices differ in
        size, or their values have no scale.
    """
    paths, headers, n_ignored = read_headers(folder, progress)
    _check_one_series(headers, modality)
    for number, ds in enumerate(headers, start=1):
        _check_header(ds, number, len(headers))
    _check_alike(headers)
    _check_size(headers[0])
    row, column = _directions(headers[0])
    order, positions = _order(headers)
    headers, paths = [headers[i] for i in order], [paths[i] for i in order]
    spacing = _spacing(positions)
    between_rows, between_columns = (float(v) for v in headers[0].PixelSpacing)
    first = [float(v) for v in headers[0].ImagePositionPatient]
    return Series(
        headers=tuple(headers),
        paths=tuple(paths),
        shape=(int(headers[0].Columns), int(headers[0].Rows), len(headers)),
        step_mm=(row * between_columns, column * between_rows, spacing),
        origin_mm=(first[0], first[1], first[2]),
        patient_position=position_of(headers[0]) or "HFS",
        frame_of_reference_uid=str(headers[0].get("FrameOfReferenceUID", "")),
        n_ignored=n_ignored,
    )


def _check_one_series(headers: Sequence[Dataset], modality: str) -> None:
    kinds = Counter(
        (str(ds.get("Modality", "unknown")), str(ds.get("SeriesInstanceUID", "")))
        for ds in headers
    )
    if len(kinds) > 1:
        listed = ", ".join(f"{n} files of a {kind} series" for (kind, _), n in kinds.items())
        raise InputError(
            f"a folder must hold one series, but this one holds {listed}; put each series "
            "into a folder of its own"
        )
    if (found := next(iter(kinds))[0]) != modality:
        raise InputError(
            f"the series must be of modality {modality}, but it is {found}; give another folder"
        )


def _check_header(ds: Dataset, number: int, n: int) -> None:
    """Refuse what makes one file unusable; a file is named by its number, not by a name."""
    where = f"file {number} of {n} (in order of name)"
    if int(ds.get("NumberOfFrames", 1) or 1) > 1:
        raise InputError(
            f"each file must hold one slice, but {where} holds {ds.NumberOfFrames}; export the "
            "series as single slices"
        )
    if "LOCALIZER" in ds.get("ImageType", []):
        raise InputError(
            f"a series must hold slices only, but {where} is a localizer; move it elsewhere"
        )
    missing = [keyword for keyword in NEEDED if ds.get(keyword) in (None, "")]
    if missing:
        raise InputError(
            f"each slice must have {', '.join(NEEDED)}, but {where} lacks "
            f"{', '.join(missing)}; the file is cut or no original image: export it again"
        )
    tilt = float(ds.get("GantryDetectorTilt", 0.0) or 0.0)
    if abs(tilt) > np.degrees(MAX_TILT):
        raise InputError(
            f"the gantry must not be tilted, but in {where} it is by {tilt:g} degrees; "
            "resample the series to upright slices first"
        )


def _check_alike(headers: Sequence[Dataset]) -> None:
    for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        values = {str(ds.get(keyword)) for ds in headers}
        if len(values) > 1:
            raise InputError(
                f"all slices must have one {keyword}, but they have {len(values)} different; "
                "give the slices of one reconstruction"
            )


def _check_size(ds: Dataset) -> None:
    spacing = [float(v) for v in ds.PixelSpacing]
    if len(spacing) != 2 or min(spacing) <= 0.0 or not 0 < ds.Rows * ds.Columns <= MAX_PIXELS:
        raise InputError(
            "slices must have a positive pixel spacing and up to 4096 x 4096 pixels, but they "
            f"have {ds.Rows} x {ds.Columns} of {spacing} mm; export the series again"
        )


def _directions(ds: Dataset) -> tuple[float, float]:
    """Give the signs of the axes of rows and columns along patient x and y."""
    cosines = np.array([float(v) for v in ds.ImageOrientationPatient])
    along = cosines[[0, 4]]
    if (np.abs(along) < np.cos(MAX_TILT)).any():
        raise InputError(
            "slices must be axial with rows from side to side, but their orientation is "
            f"{[round(float(c), 4) for c in cosines]}; give the axial reconstruction"
        )
    return float(np.sign(along[0])), float(np.sign(along[1]))


def _order(headers: Sequence[Dataset]) -> tuple[NDArray[np.intp], F64]:
    """Sort by position; slices must lie straight above each other."""
    at = np.array([[float(v) for v in ds.ImagePositionPatient] for ds in headers])
    order = np.argsort(at[:, 2], kind="stable")
    at = at[order]
    shift = np.abs(at[:, :2] - at[0, :2]).max()
    length = at[-1, 2] - at[0, 2]
    if shift > max(MAX_TILT * length, MAX_UNEVEN_MM):
        raise InputError(
            "slices must lie straight above each other, but they shift sideways by "
            f"{shift:.2f} mm over {length:g} mm: the gantry was tilted; resample the series to "
            "upright slices first"
        )
    return order, at[:, 2]


def _spacing(positions: F64) -> float:
    steps = np.diff(positions)
    if not steps.size:
        raise InputError(
            "a series must have two slices at least, but it has one; give the whole series"
        )
    if (steps < MAX_UNEVEN_MM).any():
        k = int(np.argmin(steps))
        raise InputError(
            f"each slice must be there once, but two lie at {positions[k]:g} mm; remove the "
            "copy or the second reconstruction"
        )
    spacing = float(np.median(steps))
    bad = np.flatnonzero(np.abs(steps - spacing) > MAX_UNEVEN_MM)
    if bad.size:
        k = int(bad[0])
        raise InputError(
            f"slices must be evenly spaced, but between {positions[k]:g} and "
            f"{positions[k + 1]:g} mm there are {steps[k]:g} mm instead of {spacing:g}: a "
            "slice is missing; export the whole series"
        )
    return float(positions[-1] - positions[0]) / steps.size
