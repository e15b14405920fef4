"""Tables and findings as files: CSV, TSV and JSON, written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from listmode.errors import InputError
from recon.hotspots.features import HotspotTable
from recon.io import files, sidecar


def save_hotspots(path: Path, table: HotspotTable) -> None:
    """Write a hotspot table as CSV; see docs/hotspot_table.md for its columns.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    save_text(path, table.to_csv())


def load_hotspots(path: Path) -> HotspotTable:
    """Read a hotspot table from CSV.

    Raises
    ------
    InputError
        If the file cannot be read or its columns are not those of a hotspot table.
    """
    return HotspotTable.from_csv(load_text(path), path.name)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object (``motion.json``, a run's summary).

    Raises
    ------
    InputError
        If a value is not JSON or the file cannot be written.
    """
    files.write_whole({path: sidecar.encode(content)})


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        If the file cannot be read or is not a JSON object.
    """
    return sidecar.decode(files.read_whole(path), path.name)


def save_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, sep: str = "\t"
) -> None:
    """Write rows as text with one header line (``motion.tsv``); ``None`` and NaN are ``n/a``.

    Raises
    ------
    InputError
        If a row has another length than the header, or the file cannot be written.
    """
    out = io.StringIO()
    writer = csv.writer(out, delimiter=sep, lineterminator="\n")
    writer.writerow(columns)
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise InputError(
                f"each row must have {len(columns)} values, but row {number} has {len(row)}; "
                f"the columns are {', '.join(columns)}"
            )
        writer.writerow([_cell(value) for value in row])
    save_text(path, out.getvalue())


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "n/a"  # BIDS: Common principles, tabular files
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def save_text(path: Path, text: str) -> None:
    """Write text as UTF-8.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    files.write_whole({path: text.encode()})


def load_text(path: Path) -> str:
    """Read UTF-8 text.

    Raises
    ------
    InputError
        If the file cannot be read or is not UTF-8.
    """
    try:
        return files.read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path.name} must be UTF-8 text, but byte {error.start} is not; save it as UTF-8"
        ) from None
