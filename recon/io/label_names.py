"""Names of the numbers in a label map, from the table in its header if it has one."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import nibabel as nib

_LABEL = re.compile(
    r"""<Label\s[^<>]*?Key\s*=\s*["'](\d{1,9})["'][^<>]*>\s*"""
    r"""(?:<!\[CDATA\[(?P<raw>.{0,200}?)\]\]>|(?P<text>[^<]*))\s*</Label>""",
    re.DOTALL,
)
MAX_TABLE_BYTES = 1 << 20


def read_label_names(path: Path) -> dict[int, str]:
    """Read the names from the header of a NIfTI label map; empty where it holds none.

    Parameters
    ----------
    path
        A readable NIfTI image.

    Returns
    -------
    dict
        Name of each number above zero.

    Notes
    -----
    The table is the ``LabelTable`` of the GIFTI format, in a NIfTI header extension; that is
    how TotalSegmentator (Wasserthal et al., 2023, 10.1148/ryai.230024) stores names in the one
    file of its option ``--ml``. It is read as text, entry by entry: nothing in it is resolved.
    """
    image: Any = nib
    names: dict[int, str] = {}
    for extension in image.load(path).header.extensions:
        content = extension.get_content()
        raw = content if isinstance(content, bytes) else str(content).encode()
        if len(raw) > MAX_TABLE_BYTES or b"<LabelTable" not in raw:
            continue
        for found in _LABEL.finditer(raw.decode("utf-8", "replace")):
            name = found["raw"] if found["raw"] is not None else html.unescape(found["text"])
            if int(found[1]) and name.strip():
                names[int(found[1])] = name.strip()
    return names
