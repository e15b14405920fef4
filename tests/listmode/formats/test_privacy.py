"""A patient's name and number stay in the vendor's file, whatever is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from listmode.errors import InputError
from listmode.formats import _yardl, open_listmode
from listmode.formats.info import describe
from listmode.formats.petsird_writer import write_petsird
from recon.cli import app
from tests.listmode.formats import test_siemens
from tests.strategies import random_scan

SECRETS = ("Quixote", "QX-4711-Z", "19501231", "Mancha", "1.2.840.99.4711")

HEADER = test_siemens.HEADER.replace(
    "patient name:=Jane Doe",
    "patient name:=Quixote^Alonso\npatient ID:=QX-4711-Z\n%patient date of birth:=19501231\n"
    "!institution:=Hospital de La Mancha\n%study UID:=1.2.840.99.4711",
)


def siemens(folder: Path) -> Path:
    """Write a Siemens scan whose header names the patient in all its fields."""
    path = test_siemens.small_scan(folder)[0]
    (folder / "scan.l.hdr").write_text(HEADER)
    return path


def petsird(folder: Path) -> Path:
    """Write a PETSIRD scan that names the patient in all its fields of identity."""
    path = folder / "scan.petsird"
    write_petsird(random_scan(1), path)
    data = np.fromfile(path, np.uint8)
    schema, start = _yardl.read_preamble(data)
    decoder = _yardl.Decoder(data, start)
    header = decoder.value(schema.steps["header"])
    exam = header["exam"]
    exam["patient"]["patientID"] = "Quixote^Alonso QX-4711-Z 19501231 Mancha"
    for key in ("studyInstanceUID", "seriesInstanceUID", "sopInstanceUID"):
        exam[key] = "1.2.840.99.4711"
    exam["frameOfReferenceUID"] = "1.2.840.99.4711"
    # without our own text, so that the fields of the format itself are read
    header["scanner"]["detectionEfficiencies"]["methodDescription"] = ""
    encoded = _yardl.encode(schema.steps["header"], header)
    rest = data[decoder.offset :].tobytes()
    path.write_bytes(data[:start].tobytes() + encoded + rest)
    return path


def found_in(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [secret for secret in SECRETS if secret.encode() in data]


@pytest.mark.parametrize("make", [siemens, petsird])
def test_identity_is_in_no_output(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    inputs = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert any(found_in(data) for data in inputs.values())  # they were planted
    with open_listmode(path) as source:
        assert found_in(repr(source.protocol) + repr(dict(source.provenance))) == []
        assert found_in(" ".join((*source.notes, *source.defects, source.scanner.name))) == []
        assert found_in(json.dumps(describe(source).to_dict(), default=str)) == []
    said = ""
    for command in (
        ["info", path], ["info", path, "--json"], ["info", path, "-o", tmp_path / "info.png"],
        ["validate", path, "--json"], ["convert", path, tmp_path / "out.h5"],
        ["convert", path, tmp_path / "out.petsird"], ["convert", path, tmp_path / "out.cdh"],
        ["cut", path, tmp_path / "cut.h5", "--windows", "0-0.009"],
    ):  # fmt: skip
        result = CliRunner().invoke(app, [str(part) for part in command])
        said += result.stdout + result.stderr + repr(result.exception)
    assert found_in(said) == []
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p not in inputs]
    assert {"out.h5", "out.petsird", "out.cdh"} <= {p.name for p in written}
    assert [p.name for p in written if found_in(p.read_bytes())] == []


@pytest.mark.parametrize("line", ["number of rings:=64", "%maximum ring difference:=60"])
def test_refusal_of_a_header_does_not_cite_the_patient(tmp_path: Path, line: str) -> None:
    path = siemens(tmp_path)
    key, _, value = line.partition(":=")
    for changed in ("", f"{key}:=7"):
        (tmp_path / "scan.l.hdr").write_text(HEADER.replace(f"{key}:={value}", changed))
        with pytest.raises(InputError, match=key.lstrip("%")) as raised:
            open_listmode(path)
        assert found_in(str(raised.value)) == []
