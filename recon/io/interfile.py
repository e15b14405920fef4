"""Write a volume as Interfile: an ASCII header and raw floats, as STIR or CASToR reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from listmode.errors import InputError
from recon.image import Volume
from recon.io import files
from recon.io.scan_facts import ScanFacts

Flavour = Literal["stir", "castor"]
SUFFIXES = {"stir": (".hv", ".v"), "castor": (".hdr", ".img")}
"""Suffixes of the header and of the data."""

_FLOAT = {"stir": "float", "castor": "short float"}  # Interfile 3.3 says "short float"


def save_interfile(
    path: Path, volume: Volume, flavour: Flavour = "stir", facts: ScanFacts | None = None
) -> None:
    """Write a volume as an Interfile header and a file of little-endian 32-bit floats.

    x runs fastest, then y, then z. The two programs mean different things by one key:

    * ``stir``: STIR's axes for a patient head first, supine are left, back and **feet**, so the
      planes are written from the head downwards. ``first pixel offset`` of x and y is the
      centre of the first voxel; of z it is the displacement of the image's middle plane from
      the scanner's, along STIR's z, as STIR's projectors take it.
    * ``castor``: the scanner frame as it is, planes from the feet upwards; ``first pixel
      offset`` is the displacement of the image's centre from the scanner's.

    Parameters
    ----------
    path
        The header: ``NAME.hv`` (STIR; the data are ``NAME.v``) or ``NAME.hdr`` (CASToR,
        ``NAME.img``).
    volume
        Any unit; a mu-map in 1/cm is what both programs expect of one.
    flavour
        For whom.
    facts
        Windows, for the frame's start and duration.

    Raises
    ------
    InputError
        If the flavour is unknown, the name has another suffix, or the system refuses to write.

    Notes
    -----
    Keys: Interfile 3.3 (Todd-Pokropek, Cradduck, Deconinck, Nucl Med Commun 1992;13:673-699,
    doi 10.1097/00006231-199209000-00007). Axes and offsets: STIR 6, ``DiscretisedDensity.inl``,
    ``interfile.cxx`` and ``DataSymmetriesForBins_PET_CartesianGrid.cxx``; CASToR 3,
    ``gInterfile.cc`` and ``oProjectionLine.cc``.
    """
    if flavour not in get_args(Flavour):
        raise InputError(
            f"Interfile is written for {' or '.join(get_args(Flavour))}, but it was asked for "
            f"{flavour!r}; choose one of them"
        )
    header_suffix, data_suffix = SUFFIXES[flavour]
    if path.suffix != header_suffix:
        raise InputError(
            f"an Interfile header for {flavour} must be named NAME{header_suffix}, but it is "
            f"{path.name}; rename it"
        )
    data = path.with_suffix(data_suffix)
    planes = volume.values[:, :, ::-1] if flavour == "stir" else volume.values
    raw = planes.astype("<f4").tobytes(order="F")
    text = "\n".join(_header(data.name, volume, flavour, facts))
    files.write_whole({data: raw, path: (text + "\n").encode()})


def _offset_mm(volume: Volume, flavour: Flavour) -> tuple[float, float, float]:
    grid = volume.grid
    middle = grid.point_mm((np.array(grid.shape) - 1) / 2.0)
    x, y, z = (float(v) for v in middle)
    return (grid.origin_mm[0], grid.origin_mm[1], -z) if flavour == "stir" else (x, y, z)


def _header(
    data_name: str, volume: Volume, flavour: Flavour, facts: ScanFacts | None
) -> list[str]:
    grid = volume.grid
    of = "Bq/mL, decay-corrected to tick zero" if volume.unit == "Bq/mL" else volume.unit
    lines = [
        "!INTERFILE :=",
        f"; values: {of}",
        "!imaging modality := PT",
        "!version of keys := 3.3",
        f"name of data file := {data_name}",
        "!GENERAL DATA :=",
        "originating system := stillpet",
        "!GENERAL IMAGE DATA :=",
        "!type of data := PET",
        "imagedata byte order := LITTLEENDIAN",
        "patient orientation := head_in",
        "patient rotation := supine",
        "!PET STUDY (General) :=",
        "!PET data type := Image",
        "process status := Reconstructed",
        f"!number format := {_FLOAT[flavour]}",
        "!number of bytes per pixel := 4",
        "number of dimensions := 3",
    ]
    offset = _offset_mm(volume, flavour)
    for axis, label in enumerate("xyz"):
        lines += [
            f"matrix axis label [{axis + 1}] := {label}",
            f"!matrix size [{axis + 1}] := {grid.shape[axis]}",
            f"scaling factor (mm/pixel) [{axis + 1}] := {grid.voxel_mm[axis]:.9g}",
            f"first pixel offset (mm) [{axis + 1}] := {offset[axis]:.9g}",
        ]
    lines.append("number of time frames := 1")
    if facts is not None:
        index = "[1]" if flavour == "stir" else ""
        mark, start = ("", "image relative start time") if index else ("!", "image start time")
        first_s = facts.windows.start_ms[0].item() / 1000.0
        lines += [
            f"; windows used: {facts.windows} s from tick zero",
            f"{mark}image duration (sec){index} := {facts.windows.duration_s:.9g}",
            f"{mark}{start} (sec){index} := {first_s:.9g}",
        ]
    return [*lines, "!END OF INTERFILE :="]
