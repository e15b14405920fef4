"""Names, types and chunks of stillpet's HDF5 layout, and its metadata as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats._chunks import index_faults, read_whole
from listmode.module_pairs import ModulePairs
from listmode.scanner import MAX_CRYSTALS, BlockLayout, Scanner, TofModel
from listmode.source import F32, ScanProtocol

FORMAT = "stillpet listmode"
VERSION = 1
SUPERBLOCK_PLAIN, SUPERBLOCK_LIVE = 2, 3  # HDF5's own, as the two writers make it
CHUNK_EVENTS = 1 << 16
CHUNK_TICKS = 1 << 9  # what a killed writer may lose is less than a chunk: half a second
LIVE_CHUNK_EVENTS = 1 << 14  # written again at each flush until it is full
COLUMNS: Mapping[str, str] = {"crystal_a": "<u4", "crystal_b": "<u4", "tof_bin": "<i2"}
TRUTH_DTYPE = "<u1"
TICK_DTYPE = "<i8"

ARRAYS = {
    "crystal_position_mm": "mm",
    "crystal_normal": "1",
    "crystal_ring": "1",
    "crystal_transaxial": "1",
    "crystal_profile": "1",
}
_PAIR_TABLES = ("crystal_module", "crystal_element", "group", "factor")
_MAX_PAIR_VALUES = 1 << 28
_PROTOCOL_TEXT = ("tracer", "patient_sex")


def write_head(
    file: h5py.File,
    *,
    scanner: Scanner,
    protocol: ScanProtocol,
    start_ms: int,
    crystal_efficiency: F32 | None,
    provenance: Mapping[str, str],
    clock_zero: str,
    notes: tuple[str, ...],
    defects: tuple[str, ...],
    is_live: bool = False,
) -> None:
    """Store all but the events; the file counts as incomplete from here on."""
    file.attrs["complete"] = 0
    if is_live:
        file.attrs["layout"] = "live"
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = VERSION
    file.attrs["start_ms"] = np.int64(start_ms)
    file.attrs["clock_zero"] = clock_zero
    file.attrs["notes"] = list(notes) or h5py.Empty("S1")
    file.attrs["defects"] = list(defects) or h5py.Empty("S1")
    write_scanner(file, scanner)
    write_protocol(file, protocol)
    group = file.create_group("provenance")
    for key, text in provenance.items():
        group.attrs[key] = text
    if crystal_efficiency is not None:
        dataset = file.create_dataset(
            "normalisation/crystal_efficiency",
            data=np.asarray(crystal_efficiency, np.float32),
            fletcher32=True,
            chunks=True,
        )
        dataset.attrs["unit"] = "1"


def read_array(
    group: Any,
    name: str,
    kinds: str,
    max_values: int,
    *,
    is_growing: bool = False,
    mapped: NDArray[np.uint8] | None = None,
) -> NDArray[Any]:
    """Read a small dataset whole, once its size and type are known to be sane.

    With ``mapped``, all bytes of the file, this is several times faster. The index of a growing
    dataset has checksums of its own and may be ahead of its length.

    Raises
    ------
    InputError
        If it is no dataset of at most ``max_values`` numbers of these NumPy kinds.
    """
    dataset = group[name]
    shape = getattr(dataset, "shape", None)
    if shape is None or dataset.dtype.kind not in kinds or dataset.size > max_values:
        raise InputError(
            f"{name} must hold at most {max_values} plain numbers, but it holds "
            f"{shape} of type {getattr(dataset, 'dtype', None)!s:.40}; write the file again"
        )
    if not is_growing and (fault := index_faults(dataset, mapped)):
        raise InputError(f"{name} must be whole, but {fault}; copy or write the file again")
    if mapped is not None and not is_growing and dataset.chunks is not None:
        fast = read_whole(dataset, mapped)
        if fast is not None:
            return fast
    values: NDArray[Any] = dataset[...]
    return values


def write_scanner(file: h5py.File, scanner: Scanner) -> None:
    """Store everything that the scanner description holds, bit for bit."""
    group = file.create_group("scanner")
    for field in fields(scanner):
        value = getattr(scanner, field.name)
        if field.name in ARRAYS:
            dataset = group.create_dataset(field.name, data=value, fletcher32=True, chunks=True)
            dataset.attrs["unit"] = ARRAYS[field.name]
        elif isinstance(value, TofModel | BlockLayout):
            part = group.create_group(field.name)
            for inner in fields(value):
                part.attrs[inner.name] = getattr(value, inner.name)
        elif isinstance(value, ModulePairs):
            part = group.create_group(field.name)
            for name in _PAIR_TABLES:
                table = getattr(value, name)
                if table is not None:
                    part.create_dataset(name, data=table, fletcher32=True, chunks=True)
                    part[name].attrs["unit"] = "1"
        elif value is not None:
            group.attrs[field.name] = value


def _plain(value: Any) -> Any:
    """Turn what h5py gives for an attribute into the plain Python value that was stored."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return value


def read_scanner(file: h5py.File, mapped: NDArray[np.uint8] | None = None) -> Scanner:
    """Rebuild the scanner bit for bit.

    Raises
    ------
    InputError
        If a part of the description is missing or of the wrong kind.
    """
    try:
        group = file["scanner"]
        values: dict[str, Any] = {k: _plain(v) for k, v in group.attrs.items()}
        values.update(
            {
                name: read_array(group, name, "fiu", 3 * MAX_CRYSTALS, mapped=mapped)
                for name in ARRAYS
            }
        )
        values["tof"] = TofModel(**{k: _plain(v) for k, v in group["tof"].attrs.items()})
        if "layout" in group:
            values["layout"] = BlockLayout(
                **{k: _plain(v) for k, v in group["layout"].attrs.items()}
            )
        if "module_pairs" in group:
            part = group["module_pairs"]
            tables = {
                name: read_array(part, name, "fi", _MAX_PAIR_VALUES, mapped=mapped)
                for name in _PAIR_TABLES
                if name in part
            }
            values["module_pairs"] = ModulePairs(**tables)
        return Scanner(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"a stillpet file must describe its scanner, but its description is damaged: "
            f"{error!s:.120}; write the file again or repair it"
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
            raise TypeError(f"{wrong[0]} is {values[wrong[0]]!r:.60}")
        return ScanProtocol(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"a stillpet file must hold its protocol, but it is damaged: {error}; "
            "write the file again or repair it"
        ) from None
