"""Names, types and chunks of stillpet's HDF5 layout, and its metadata as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import h5py
import numpy as np

from listmode.errors import InputError
from listmode.scanner import BlockLayout, Scanner, TofModel
from listmode.source import ScanProtocol

FORMAT = "stillpet listmode"
VERSION = 1
CHUNK_EVENTS = 1 << 16
CHUNK_TICKS = 1 << 9  # what a killed writer may lose is less than a chunk: half a second
COLUMNS: Mapping[str, str] = {"crystal_a": "<u4", "crystal_b": "<u4", "tof_bin": "<i2"}
TRUTH_DTYPE = "<u1"
TICK_DTYPE = "<i8"

_ARRAYS = {
    "crystal_position_mm": "mm",
    "crystal_normal": "1",
    "crystal_ring": "1",
    "crystal_transaxial": "1",
    "crystal_profile": "1",
}
_PROTOCOL_TEXT = ("tracer", "patient_sex")


def write_scanner(file: h5py.File, scanner: Scanner) -> None:
    """Store everything that the scanner description holds, bit for bit."""
    group = file.create_group("scanner")
    for field in fields(scanner):
        value = getattr(scanner, field.name)
        if field.name in _ARRAYS:
            dataset = group.create_dataset(field.name, data=value, fletcher32=True, chunks=True)
            dataset.attrs["unit"] = _ARRAYS[field.name]
        elif isinstance(value, TofModel | BlockLayout):
            part = group.create_group(field.name)
            for inner in fields(value):
                part.attrs[inner.name] = getattr(value, inner.name)
        elif value is not None:
            group.attrs[field.name] = value


def _plain(value: Any) -> Any:
    """Turn what h5py gives for an attribute into the plain Python value that was stored."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return value


def read_scanner(file: h5py.File) -> Scanner:
    """Rebuild the scanner bit for bit.

    Raises
    ------
    InputError
        If a part of the description is missing or of the wrong kind.
    """
    try:
        group = file["scanner"]
        values: dict[str, Any] = {k: _plain(v) for k, v in group.attrs.items()}
        values.update({name: group[name][...] for name in _ARRAYS})
        values["tof"] = TofModel(**{k: _plain(v) for k, v in group["tof"].attrs.items()})
        if "layout" in group:
            values["layout"] = BlockLayout(
                **{k: _plain(v) for k, v in group["layout"].attrs.items()}
            )
        return Scanner(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"a stillpet file must describe its scanner, but its description is damaged: "
            f"{error}; write the file again or repair it"
        ) from None


def write_protocol(file: h5py.File, protocol: ScanProtocol) -> None:
    """Store what is known of injection and patient; what is unknown is left out."""
    group = file.create_group("protocol")
    for field in fields(protocol):
        value = getattr(protocol, field.name)
        if value is not None:
            group.attrs[field.name] = value


def read_protocol(file: h5py.File) -> ScanProtocol:
    """Read what is known of injection and patient.

    Raises
    ------
    InputError
        If a value is of the wrong kind.
    """
    known = {field.name for field in fields(ScanProtocol)}
    try:
        group = file["protocol"]
        values = {k: _plain(v) for k, v in group.attrs.items() if k in known}
        wrong = [k for k, v in values.items() if isinstance(v, str) != (k in _PROTOCOL_TEXT)]
        if wrong:
            raise TypeError(f"{wrong[0]} is {values[wrong[0]]!r}")
        return ScanProtocol(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"a stillpet file must hold its protocol, but it is damaged: {error}; "
            "write the file again or repair it"
        ) from None
