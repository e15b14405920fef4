"""NIfTI images in and out: the only place where the scanner frame meets RAS+."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Unit, Volume
from recon.io import files, sidecar
from recon.io.resample import resample_axis
from recon.io.sidecar import sidecar_path

RAS_FROM_SCANNER = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS_FROM_SCANNER.setflags(write=False)

MAX_TILT = 1e-3  # rad; one voxel over 1000: no oblique scan is straighter than this
MAX_BYTES = 8 << 30  # an image that unpacks to more is refused, not tried

_COMPRESSION = 1  # noise packs no better at 6, and 6 takes longer
_Image: Any = nib.Nifti1Image  # nibabel has types in part only


def save_volume(
    path: Path,
    volume: Volume,
    *,
    protocol: ScanProtocol | None = None,
    windows: Windows | None = None,
    bids: Mapping[str, Any] | None = None,
) -> None:
    """Write a volume as NIfTI-1 with a JSON sidecar beside it.

    Voxels keep their order; the affine takes voxel indices to RAS+ mm. The same volume gives
    the same bytes. Both files are complete before either takes its name.

    Parameters
    ----------
    path
        ``NAME.nii.gz`` or ``NAME.nii``; the sidecar is ``NAME.json``.
    volume
        float32 is written as it is, labels as int32.
    protocol, windows, bids
        For the sidecar, see :func:`recon.io.sidecar.make_sidecar`.

    Raises
    ------
    InputError
        If the name does not end in .nii or .nii.gz, the provenance is not JSON, or the system
        refuses to write.
    """
    _check_name(path)
    json_bytes = sidecar.encode(sidecar.make_sidecar(volume, protocol, windows, bids))
    affine = RAS_FROM_SCANNER @ volume.grid.scanner_from_voxel
    image = _Image(np.asarray(volume.values), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = f"stillpet, {volume.unit}".encode()
    raw = image.to_bytes()
    if path.name.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile("", "wb", _COMPRESSION, buffer, mtime=0) as packed:
            packed.write(raw)
        raw = buffer.getvalue()
    files.write_whole({sidecar_path(path): json_bytes, path: raw})


def load_volume(path: Path, unit: Unit | None = None) -> Volume:
    """Read a NIfTI image of any axis-aligned orientation into the scanner frame.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``; a sidecar beside it is read if there is one.
    unit
        What the values are; without it the sidecar says so.

    Returns
    -------
    Volume
        Axes along +x, +y, +z of the scanner frame; provenance from the sidecar. A mu-map
        (``"1/cm"``) has passed :func:`check_mu`.

    Raises
    ------
    InputError
        If the file is not NIfTI, is damaged, oblique, not three-dimensional, holds values that
        are not finite (or labels that are not whole), its unit is unknown, or a mu-map is
        empty or in another unit.
    """
    _check_name(path)
    image = _open(path)
    about = read_sidecar(path)
    unit = unit or _unit_of(about, path.name)
    values, grid = _to_scanner_frame(_voxels(image, path.name), image.affine, path.name)
    if unit == "label" and (values != np.rint(values)).any():
        raise InputError(
            f"{path.name}: labels must be whole numbers, but the image holds fractions; "
            "resample label maps by the nearest voxel"
        )
    own = about.get(sidecar.OWN_KEY)
    provenance = own.get("provenance", {}) if isinstance(own, dict) else {}
    volume = Volume(values, grid, unit, provenance)
    if unit == "1/cm":
        check_mu(volume)
    return volume


def check_mu(volume: Volume) -> None:
    """Refuse a mu-map that is empty or plainly in another unit.

    Raises
    ------
    InputError
        If the unit is not 1/cm, all voxels are zero, or the values look like 1/mm or HU.

    Notes
    -----
    Linear attenuation at 511 keV, 1/cm: water 0.096, lung 0.018-0.03, cortical bone 0.15-0.172
    (PMC3572388, table 2); tungsten 2.6 (NIST XCOM). A map of a patient therefore has a maximum
    between 0.09 and 3.
    """
    low, high = float(volume.values.min()), float(volume.values.max())
    if volume.unit != "1/cm":
        raise InputError(
            f"a mu-map must be in 1/cm at 511 keV, but it is in {volume.unit!r}; convert it"
        )
    if low == high == 0.0:
        raise InputError(
            "a mu-map must hold attenuation, but every voxel is zero; give the map of this "
            "scan, or none at all for an object in air"
        )
    if low < -0.01 or high > 5.0:
        raise InputError(
            "a mu-map must be in 1/cm at 511 keV (water 0.096), but its values run from "
            f"{low:g} to {high:g} and look like HU; convert HU to mu first"
        )
    if high < 0.05:
        raise InputError(
            f"a mu-map must be in 1/cm at 511 keV (water 0.096), but its maximum is {high:g} "
            "and looks like 1/mm; multiply it by 10"
        )


def resample_to(volume: Volume, grid: Grid) -> Volume:
    """Bring a volume onto another grid, trilinearly; labels by the nearest voxel.

    Outside of the volume (beyond the outer faces of its voxels) the result is zero. The
    provenance gains ``resampled_from`` with the old grid and the share of the new grid that the
    volume covers; a volume that is on the grid already is returned as it is.

    Parameters
    ----------
    volume
        Any unit.
    grid
        Where to bring it.

    Returns
    -------
    Volume
        On ``grid``, same unit.

    Raises
    ------
    InputError
        If the two grids do not overlap.
    """
    if volume.grid == grid:
        return volume
    values: NDArray[Any] = volume.values
    covered = 1.0
    for axis in range(3):
        at = (grid.axis_mm(axis) - volume.grid.origin_mm[axis]) / volume.grid.voxel_mm[axis]
        inside = (at >= -0.5) & (at <= volume.grid.shape[axis] - 0.5)
        covered *= float(inside.mean())
        values = resample_axis(values, axis, at, inside, is_label=volume.unit == "label")
    if covered == 0.0:
        raise InputError(
            "the volume must overlap the grid it is brought to, but it does not: it starts at "
            f"{volume.grid.origin_mm} mm and the grid at {grid.origin_mm} mm (scanner frame); "
            "check that both come from one scan"
        )
    old = {
        "shape": list(volume.grid.shape),
        "voxel_mm": list(volume.grid.voxel_mm),
        "origin_mm": list(volume.grid.origin_mm),
        "covered_fraction": covered,
    }
    return Volume(values, grid, volume.unit, {**volume.provenance, "resampled_from": old})


def _check_name(path: Path) -> None:
    if path.is_dir():
        raise InputError(
            "an image must be a NIfTI file, but a folder was given; if it holds a CT, "
            "make its mu-map first, which takes the place of the scanner: stillpet mu FOLDER "
            "-o mu.nii.gz --pet PET_FOLDER"
        )
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(
            f"an image's name must end in .nii or .nii.gz, but it is {path.name}; rename it"
        )


def _open(path: Path) -> Any:
    raw = files.read_whole(path)
    try:
        if raw[:2] == b"\x1f\x8b":
            unpacker = zlib.decompressobj(wbits=31)
            raw = unpacker.decompress(raw, MAX_BYTES)
            if not unpacker.eof:
                raise ValueError("its compressed stream is cut or unpacks beyond 8 GiB")
        image = _Image.from_bytes(raw)
        header = image.header
        n_bytes = int(np.prod(image.shape)) * int(header["bitpix"]) // 8
        wanted = int(header["vox_offset"]) + n_bytes
        if len(raw) < wanted:
            raise ValueError(f"it needs {wanted} bytes and has {len(raw)}")
    except Exception as error:
        raise InputError(
            f"{path.name} must be a complete NIfTI-1 image, but it is not: {error}; "
            "export it again"
        ) from None
    return image


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the sidecar of an image; empty if there is none.

    Raises
    ------
    InputError
        If it cannot be read or is not a JSON object.
    """
    beside = sidecar_path(path)
    return sidecar.decode(files.read_whole(beside), beside.name) if beside.is_file() else {}


def _unit_of(about: dict[str, Any], name: str) -> Unit:
    own = about.get(sidecar.OWN_KEY)
    unit = own.get("unit") if isinstance(own, dict) else about.get("Units")
    if unit == "g/mL":
        unit = "SUV"
    if unit not in get_args(Unit):
        raise InputError(
            f"{name}: the unit of an image must be known, but its sidecar says {unit!r}; say "
            f"which of {', '.join(get_args(Unit))} it is"
        )
    return cast("Unit", unit)


def _voxels(image: Any, name: str) -> NDArray[Any]:
    """Read scaled voxel values, three-dimensional."""
    values: NDArray[Any] = np.asanyarray(image.dataobj)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.number) or values.size == 0:
        raise InputError(
            f"{name}: an image must have three dimensions of numbers, but it has shape "
            f"{image.shape} of {image.get_data_dtype()}; give one frame of one channel"
        )
    if np.iscomplexobj(values):
        raise InputError(
            f"{name}: an image must hold real numbers, but it is complex; give its magnitude"
        )
    if not np.isfinite(values).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(
            f"{name}: an image must be finite, but voxel {bad} is {values[bad]}; replace "
            "such voxels by zero if they lie outside of the body"
        )
    return values


def _to_scanner_frame(
    values: NDArray[Any], ras_from_voxel: NDArray[np.float64], name: str
) -> tuple[NDArray[Any], Grid]:
    """Permute and flip an image so that its axes run along the scanner's."""
    affine = RAS_FROM_SCANNER @ ras_from_voxel  # RAS_FROM_SCANNER is its own inverse
    steps = affine[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    if not np.isfinite(affine).all() or (lengths == 0).any():
        raise InputError(
            f"{name}: an image's affine must be invertible, but it is {affine[:3].tolist()}; "
            "export the image again with its orientation"
        )
    cosines = steps / lengths
    order = np.argmax(np.abs(cosines), axis=1)  # which voxel axis runs along x, y, z
    along = cosines[np.arange(3), order]
    if sorted(order) != [0, 1, 2] or (np.abs(along) < np.cos(MAX_TILT)).any():
        tilt = float(np.degrees(np.arccos(np.clip(np.abs(along).min(), 0.0, 1.0))))
        raise InputError(
            f"{name}: an image's axes must run along the scanner's, but they are tilted by "
            f"{tilt:.2f} degrees; resample it without rotation first"
        )
    origin = affine[:3, 3].copy()
    for axis in range(3):
        if along[axis] < 0:
            origin += steps[:, order[axis]] * (values.shape[order[axis]] - 1)
    values = values.transpose(order)
    flip = tuple(slice(None, None, -1) if along[axis] < 0 else slice(None) for axis in range(3))
    voxel = lengths[order]
    x, y, z = values.shape
    grid = Grid((x, y, z), (voxel[0], voxel[1], voxel[2]), (origin[0], origin[1], origin[2]))
    return values[flip], grid
