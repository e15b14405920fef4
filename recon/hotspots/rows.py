"""Rows of a CSV table whose columns are known beforehand; anything else is refused by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable

from listmode.errors import InputError


def read_rows(
    text: str, columns: Collection[str], *, name: str, schema: str, advice: str
) -> list[dict[str, str]]:
    """Read the rows of a CSV table with one header line; columns may come in any order.

    Parameters
    ----------
    text
        The table.
    columns
        Exactly the columns that it must have.
    name, schema, advice
        What the table is called, what it claims to be, and where to look it up, for messages.

    Returns
    -------
    list of dict
        Cells by column, "" where a cell is empty or the line ends early.

    Raises
    ------
    InputError
        If columns are missing, unknown or there twice, a line has more cells than the header,
        or the text is not CSV.
    """
    reader = csv.DictReader(io.StringIO(text), restval="", strict=True)
    try:
        found = tuple(reader.fieldnames or ())
        rows = list(reader)
    except csv.Error as error:
        line = reader.reader.line_num
        raise InputError(
            f"{name} must be comma-separated text, but line {line} is not: {error}; "
            "correct that line"
        ) from None
    missing, extra = set(columns) - set(found), set(found) - set(columns)
    if missing or extra:
        raise InputError(
            f"{name} must have the columns of {schema}, but it lacks {listed(missing)} "
            f"and has {listed(extra)} more; {advice}"
        )
    if twice := {column for column in found if found.count(column) > 1}:
        raise InputError(
            f"{name} must have each column once, but it has {listed(twice)} twice; remove one"
        )
    for line, row in enumerate(rows, start=2):
        if None in row:
            raise InputError(
                f"{name}, line {line}: a line must have as many cells as the header "
                f"({len(found)}), but it has more; write decimals with a point, not a comma"
            )
    return rows


def listed(names: Iterable[str]) -> str:
    """Write names for a message, in order; "none" if there is none."""
    return ", ".join(sorted(map(str, names))) or "none"
