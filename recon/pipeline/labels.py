"""Label maps with the names of their numbers: NIfTI and a TSV table beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from recon.hotspots.segment import PHYSIOLOGICAL
from recon.image import Grid, Volume
from recon.io.label_names import read_label_names
from recon.io.nifti import load_volume, resample_to, save_volume
from recon.io.tables import load_text, save_table

COLUMNS = ("label", "name", "physiological")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Which organ each voxel belongs to.

    Parameters
    ----------
    volume
        Numbers, 0 for nothing.
    names
        Name of each number.
    physiological
        Names of organs that take up tracer in health.
    """

    volume: Volume
    names: Mapping[int, str]
    physiological: frozenset[str] = PHYSIOLOGICAL

    def on(self, grid: Grid) -> LabelMap:
        """Bring the map onto another grid by the nearest voxel."""
        return LabelMap(resample_to(self.volume, grid), self.names, self.physiological)

    def region(self, name: str) -> NDArray[np.bool_] | None:
        """Give the voxels of an organ; ``None`` if the map does not know it."""
        numbers = [number for number, known in self.names.items() if known == name]
        return np.isin(self.volume.values, numbers) if numbers else None


def names_path(path: Path) -> Path:
    """Name the table beside a label map: ``labels.nii.gz`` has ``labels.tsv``."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")


def save_labels(path: Path, labels: LabelMap) -> None:
    """Write a label map and the table of its names.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    save_table(
        names_path(path),
        COLUMNS,
        [(n, name, name in labels.physiological) for n, name in sorted(labels.names.items())],
    )
    save_volume(path, labels.volume)


def load_labels(path: Path) -> LabelMap:
    """Read a label map; names from the TSV table beside it, or from its own header.

    Without either the numbers have no names. A table without the column ``physiological``
    leaves it to the names that stillpet knows.

    Raises
    ------
    InputError
        If the image is not a label map, or the table lacks its columns or holds a number that
        is not whole.
    """
    volume = load_volume(path, "label")
    table = names_path(path)
    if not table.is_file():
        return LabelMap(volume, read_label_names(path))
    rows = csv.DictReader(io.StringIO(load_text(table)), delimiter="\t")
    found = rows.fieldnames or ()
    if not {"label", "name"} <= set(found):
        raise InputError(
            f"{table.name} must have the columns {', '.join(COLUMNS)}, but it has "
            f"{', '.join(found) or 'none'}; separate them by tabs"
        )
    names: dict[int, str] = {}
    physiological: set[str] = set()
    for line, row in enumerate(rows, start=2):
        try:
            names[int(row["label"])] = row["name"]
        except ValueError:
            raise InputError(
                f"{table.name}, line {line}: label must be a whole number, but it is "
                f"{row['label']!r}; correct it"
            ) from None
        if (row.get("physiological") or "").lower() == "true":
            physiological.add(row["name"])
    known = frozenset(physiological) if "physiological" in found else PHYSIOLOGICAL
    return LabelMap(volume, names, known)
