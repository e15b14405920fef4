"""A scanner and a protocol as one line of text, for formats that have no room for them.

PETSIRD has no depth of interaction, count fraction or half-life, and rounds places to float32.
Where our own files pass through such a format, this text goes along and restores them bit by
bit; every other program reads the format's own description.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from listmode.errors import InputError
from listmode.formats._atomic import limited_inflate
from listmode.module_pairs import ModulePairs
from listmode.scanner import BlockLayout, Scanner, TofModel
from listmode.source import F32, Listmode, ScanProtocol
from listmode.windows import Windows

MARK = "stillpet-description-1:"
_MAX_TEXT_BYTES = 1 << 28  # ten times a long scanner's arrays


@dataclass(frozen=True)
class Description:
    """What a format without room for it carries along."""

    scanner: Scanner
    protocol: ScanProtocol
    crystal_efficiency: F32 | None
    coverage: Windows
    clock_zero: str


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        packed = base64.b64encode(zlib.compress(value.tobytes(), 6)).decode("ascii")
        return {"dtype": value.dtype.str, "shape": value.shape, "zlib": packed}
    if isinstance(value, TofModel | BlockLayout):
        return asdict(value)
    if isinstance(value, ModulePairs):
        return {f.name: _pack(getattr(value, f.name)) for f in fields(value)}
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and "zlib" in value:
        size = np.dtype(value["dtype"]).itemsize * int(np.prod(value["shape"], dtype=np.int64))
        data = limited_inflate(base64.b64decode(value["zlib"]), min(size, _MAX_TEXT_BYTES))
        return np.frombuffer(data, value["dtype"]).reshape(value["shape"])
    if isinstance(value, list):
        return tuple(value)
    return value


def write_description(source: Listmode) -> str:
    """Turn what the format has no room for into one line of text."""
    scanner = {f.name: _pack(getattr(source.scanner, f.name)) for f in fields(Scanner)}
    if scanner["module_pairs"] is None:
        del scanner["module_pairs"]  # files stay readable by versions that do not know it
    table = {
        "scanner": scanner,
        "protocol": asdict(source.protocol),
        "crystal_efficiency": _pack(source.crystal_efficiency),
        "coverage_ms": [list(window) for window in source.extent],
        "clock_zero": source.clock_zero,
    }
    return MARK + json.dumps(table, separators=(",", ":"))


def read_description(text: str) -> Description | None:
    """Read the text back; ``None`` if it is something else.

    Raises
    ------
    InputError
        If it begins as our text but is damaged.
    """
    if not text.startswith(MARK):
        return None
    try:
        table = json.loads(text[len(MARK) :])
        values = {name: _unpack(value) for name, value in table["scanner"].items()}
        values["tof"] = TofModel(**values["tof"])
        if values["layout"] is not None:
            values["layout"] = BlockLayout(**values["layout"])
        if values.get("module_pairs") is not None:
            parts = {name: _unpack(part) for name, part in values["module_pairs"].items()}
            values["module_pairs"] = ModulePairs(**parts)
        spans = np.asarray(table["coverage_ms"], np.int64).reshape(-1, 2)
        scanner = Scanner(**values)
        efficiency = _unpack(table["crystal_efficiency"])
        if efficiency is not None and efficiency.shape != (scanner.n_crystals,):
            raise ValueError("one efficiency a crystal")
        return Description(
            scanner=scanner,
            protocol=ScanProtocol(**table["protocol"]),
            crystal_efficiency=efficiency,
            coverage=Windows(spans[:, 0], spans[:, 1]),
            clock_zero=str(table["clock_zero"]),
        )
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
        MemoryError,
    ) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        raise InputError(
            "a file written by stillpet must carry its scanner, but that text is damaged "
            f"({type(error).__name__}: {str(error)[:80]}); write the file again"
        ) from None
