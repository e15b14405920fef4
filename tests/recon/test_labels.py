from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from recon.io import label_names
from recon.pipeline.labels import load_labels

NIFTI: Any = nib
TABLE = """<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0">
<LabelTable>
<Label Key="0" Red="0" Green="0" Blue="0" Alpha="0"><![CDATA[background]]></Label>
<Label Key="1" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[vertebrae_L5]]></Label>
<Label Red="1" Green="0" Blue="0" Alpha="1" Key='22'>kidney &amp; ureter</Label>
<Label Key="3" Red="1"></Label>
</LabelTable></VolumeInformation></CaretExtension>"""


def write(path: Path, *tables: str) -> Path:
    image = NIFTI.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4))
    for table in tables:
        image.header.extensions.append(NIFTI.nifti1.Nifti1Extension(0, table.encode()))
    NIFTI.save(image, path)
    return path


def test_names_come_from_the_header_where_no_table_lies_beside(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path / "organs.nii.gz", "other", TABLE))
    assert labels.names == {1: "vertebrae_L5", 22: "kidney & ureter"}
    assert labels.volume.values.shape == (3, 4, 5)


def test_the_table_beside_wins_over_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "organs.nii.gz", TABLE)
    (tmp_path / "organs.tsv").write_text("label\tname\n1\thip_left\n", "utf-8")
    assert load_labels(path).names == {1: "hip_left"}


def test_without_any_table_numbers_have_no_names(tmp_path: Path) -> None:
    assert load_labels(write(tmp_path / "organs.nii")).names == {}


def test_entities_are_not_resolved_and_huge_tables_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]>' + TABLE.replace("vertebrae_L5", "&a;&a;")
    path = write(tmp_path / "organs.nii", bomb)
    assert load_labels(path).names[1] == "&a;&a;"
    monkeypatch.setattr(label_names, "MAX_TABLE_BYTES", 10)
    assert load_labels(path).names == {}
