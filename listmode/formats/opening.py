"""Open any listmode file: the table of formats, told apart by their content."""

from __future__ import annotations

import stat
from importlib import import_module
from pathlib import Path

from listmode.errors import InputError
from listmode.source import Listmode

FORMATS = {
    "hdf5": "stillpet HDF5",
    "petsird": "PETSIRD",
    "safir": "SAFIR listmode",
    "castor": "CASToR list-mode",
    "gate": "GATE ROOT",
    "siemens": "Siemens 32-bit listmode",
}
"""Module of each format and its name, in the order they are tried.

A format is one module with ``recognise(path, head) -> bool`` and
``open_file(path, header) -> Listmode``, and one line here.
"""

_N_HEAD_BYTES = 4096


def open_listmode(path: str | Path, *, header: str | Path | None = None) -> Listmode:
    """Open a listmode file of any known format, told by its content and not by its name.

    Parameters
    ----------
    path
        The data file, or for formats with a text header the header.
    header
        The header, if it is not beside the data or there are several.

    Returns
    -------
    Listmode
        Lazy: it holds no events.

    Raises
    ------
    InputError
        If there is no such file, it is empty, or no format knows it.
    """
    path = Path(path)
    head = _read_head(path)
    for module_name in FORMATS:
        module = import_module(f"listmode.formats.{module_name}")
        if module.recognise(path, head):
            opened: Listmode = module.open_file(path, None if header is None else Path(header))
            return opened
    raise InputError(
        f"a listmode file must be one of {', '.join(FORMATS.values())}, but {path.name!r} is "
        f"none of these (it begins with {head[:8].hex(' ')}); choose another file or convert it"
    )


def _read_head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                head = file.read(_N_HEAD_BYTES)
        else:
            head = None
    except OSError as error:
        raise InputError(
            f"a listmode file must be readable, but {path.name!r} is not: {error.strerror}; "
            "check its path and permissions"
        ) from None
    if head is None:
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise InputError(
            f"a listmode file must be a regular file, but {path.name!r} is {kind}; "
            "give the file itself, stored on disk"
        )
    if not head:
        raise InputError(
            f"a listmode file must hold data, but {path.name!r} is empty; copy it again"
        )
    return head
