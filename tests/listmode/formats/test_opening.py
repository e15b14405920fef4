"""Any file is opened by what it holds; what is no listmode is refused with a reason."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.hdf5 import Hdf5Listmode, cut_listmode
from listmode.formats.petsird import PetsirdListmode
from listmode.formats.petsird_writer import write_petsird
from tests.strategies import random_scan


def test_format_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    scan = random_scan(1)
    cut_listmode(scan, scan.extent, tmp_path / "scan.petsird")
    write_petsird(scan, tmp_path / "scan.h5")
    assert isinstance(open_listmode(tmp_path / "scan.petsird"), Hdf5Listmode)
    assert isinstance(open_listmode(str(tmp_path / "scan.h5")), PetsirdListmode)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"must be readable, but 'no\.h5' is not: No such file"
    ):
        open_listmode(tmp_path / "no.h5")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    with pytest.raises(InputError, match=r"must hold data, but 'empty\.h5' is empty"):
        open_listmode(tmp_path / "empty.h5")


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 50, bytes(5000), b"\x00", b"PK\x03\x04"]
)
def test_file_of_another_kind_is_refused_with_the_known_formats(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "thing.bin").write_bytes(content)
    with pytest.raises(
        InputError, match=r"one of stillpet HDF5, PETSIRD.*'thing\.bin' is none"
    ):
        open_listmode(tmp_path / "thing.bin")


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    for seed in range(20):
        content = np.random.default_rng(seed).bytes(8000)
        (tmp_path / "thing.bin").write_bytes(content)
        with pytest.raises(InputError, match="is none of these"):
            open_listmode(tmp_path / "thing.bin")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a regular file, but .* is a folder"):
        open_listmode(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes in the file system are POSIX")
def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="but 'pipe' is a pipe or device"):
        open_listmode(tmp_path / "pipe")


def test_hdf5_of_another_kind_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="it is another kind of HDF5 file"):
        open_listmode(tmp_path / "other.h5")


@pytest.mark.outside
@pytest.mark.parametrize(
    ("path", "n_prompts", "n_delayeds"),
    [
        ("stir/small_listmode_file.l", 218_881, 35_320),
        ("stir/PET_ACQ_small.l.hdr.STIR", 218_881, 35_320),
        ("petsird/geant4_lafov_points.petsird", 472_328, 0),
        ("petsird/petsird_lafov_small_400k.petsird", 399_980, 0),
        ("petsird/petsird_rich_two_types_v0.12.0.petsird", 8400, 1500),
    ],
)
def test_every_outside_file_opens_with_its_counts(
    outside_data: Path, path: str, n_prompts: int, n_delayeds: int
) -> None:
    read = open_listmode(outside_data / path)
    tags = getattr(read, "tags", {})
    assert tags.get("prompts", read.n_events()) == n_prompts
    assert tags.get("delayeds", read.n_events("delayeds")) == n_delayeds
