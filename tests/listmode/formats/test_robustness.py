"""Damaged files: a clean error or a correct partial read, never a crash, a hang or a flood.

The cases are those of ``benchmarks/fuzz_readers.py``, which runs 100,000 of them a reader;
``STILLPET_FUZZ`` sets their number here (1000). Each test below the first is a case that the
fuzzers found, or a promise that damage must not break.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import fuzz_readers
from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _yardl, open_listmode
from listmode.formats._scanner_text import read_description
from listmode.formats.castor import write_castor
from listmode.formats.convert import repair_listmode
from listmode.formats.hdf5 import Hdf5Listmode, cut_listmode
from listmode.source import Stream
from tests.fuzz_readers import SEEDS
from tests.listmode.formats import test_siemens
from tests.strategies import random_scan, same_events

N_CASES = int(os.environ.get("STILLPET_FUZZ", "1000"))
CHUNK = 1 << 16
STREAMS: tuple[Stream, ...] = ("prompts", "delayeds")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limits of its workers are Linux's")
@pytest.mark.parametrize("reader", SEEDS)
def test_damaged_files_end_cleanly(reader: str) -> None:
    if reader == "gate":
        pytest.importorskip("uproot", reason="the gate extra is not installed")
    state = fuzz_readers.run(reader, N_CASES, seed=20240501)
    assert state.findings == []
    assert sum(state.outcomes.values()) == N_CASES
    assert state.outcomes["refused"] > 0
    assert state.outcomes.get("whole", 0) + state.outcomes.get("partial", 0) > N_CASES // 50


def write_three_chunks(path: Path) -> Hdf5Listmode:
    """Write a scan of three chunks of prompts."""
    scan = random_scan(1, n_prompts=3 * CHUNK - 1000, n_delayeds=100, n_ticks=1200)
    cut_listmode(scan, scan.extent, path)
    return Hdf5Listmode(path)


def place_of_chunk(path: Path, name: str, number: int) -> int:
    """Say at which byte a chunk of a column lies."""
    with h5py.File(path) as file:
        place = file[name].id.get_chunk_info(number).byte_offset
    assert isinstance(place, int)
    return place


@pytest.mark.parametrize("column", ["crystal_a", "crystal_b", "tof_bin"])
def test_damage_in_one_chunk_leaves_the_events_of_the_others(
    tmp_path: Path, column: str
) -> None:
    path = tmp_path / "scan.h5"
    with write_three_chunks(path) as whole:
        true = whole.read("prompts", 0, 3 * CHUNK)
        offset = whole.tick_offset().copy()
    data = bytearray(path.read_bytes())
    data[place_of_chunk(path, f"prompts/{column}", 1) + 100] ^= 8
    path.write_bytes(data)
    with open_listmode(path) as damaged:
        with pytest.raises(InputError, match=rf"column {column} of prompts .*65536-131072 are"):
            damaged.read("prompts", CHUNK + 5, CHUNK + 6)
        for first, last in ((0, CHUNK), (2 * CHUNK, 3 * CHUNK - 1000)):
            part = EventBatch(
                true.crystal_a[first:last], true.crystal_b[first:last], true.tof_bin[first:last]
            )
            assert same_events(damaged.read("prompts", first, last), part)
    kept = repair_listmode(path, tmp_path / "repaired.h5")
    n = np.diff(offset)
    ticks = np.flatnonzero((offset[1:] <= CHUNK) | (offset[:-1] >= 2 * CHUNK) | (n == 0))
    assert kept.duration_s * 1000 == len(ticks)
    with open_listmode(tmp_path / "repaired.h5") as repaired:
        assert repaired.count(kept) == n[ticks].sum()
        assert any("repaired" in note for note in repaired.notes)


@pytest.mark.parametrize("name", ["prompts/crystal_a", "prompts/tick_offset"])
def test_chunk_that_the_index_has_lost_is_not_read_as_zeros(tmp_path: Path, name: str) -> None:
    """The library fills it with zeros and says nothing, in an index without checksum."""
    path = tmp_path / "scan.h5"
    write_three_chunks(path).close()
    data = path.read_bytes()
    with h5py.File(path) as file:
        number = file[name].id.get_num_chunks() - 1
        step = file[name].chunks[0] * number
    place = place_of_chunk(path, name, number)
    key = step.to_bytes(8, "little") + bytes(8) + place.to_bytes(8, "little")
    assert data.count(key) == 1
    path.write_bytes(data.replace(key, bytes(16) + key[16:]))
    with h5py.File(path) as file:
        assert not file[name][-100:].any()  # what the library says
    with pytest.raises(
        InputError, match=r"no place in the index|its index names|must ascend from 0 to"
    ):
        open_listmode(path).read("prompts", 0, 3 * CHUNK)


@pytest.mark.parametrize("column", ["crystal_a", "crystal_b", "tof_bin"])
def test_chunk_whose_place_leads_to_zeros_is_not_read(tmp_path: Path, column: str) -> None:
    """Their checksum is zero and fits: only the note of what was written tells."""
    seed = SEEDS["hdf5"](tmp_path)
    data = seed.whole[seed.opened]
    place = place_of_chunk(seed.opened, f"prompts/{column}", 1)
    zeros = data.index(bytes(64 * 4 + 4))
    with h5py.File(seed.opened) as file:
        size = file[f"prompts/{column}"].id.get_chunk_info(1).size
    key = size.to_bytes(4, "little") + bytes(4) + (64).to_bytes(8, "little") + bytes(8)
    old = key + place.to_bytes(8, "little")
    assert data.count(old) == 1
    seed.opened.write_bytes(data.replace(old, key + zeros.to_bytes(8, "little")))
    with h5py.File(seed.opened) as file:
        assert not file[f"prompts/{column}"][64:128].any()  # what the library says
    with open_listmode(seed.opened) as read:
        with pytest.raises(InputError, match=r"64-128 are damaged \(zeros that were not"):
            read.read("prompts", 0, 300)
        assert same_events(read.read("prompts", 0, 64), _part(seed.truth["prompts"], 64))


@pytest.mark.parametrize("value", ["x", 7, h5py.Empty("f4"), np.zeros(3, "u4")])
def test_sums_that_are_none_do_not_hinder_the_reading(tmp_path: Path, value: object) -> None:
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["prompts/crystal_a"].attrs["chunk_sums"] = value
    assert len(open_listmode(tmp_path / "scan.h5").read("prompts", 0, 500)) == 500


def test_note_of_the_sums_of_many_chunks_fits_into_the_file(tmp_path: Path) -> None:
    """A day of 1 ms ticks has 170,000 chunks of them: more than a small attribute holds."""
    with h5py.File(tmp_path / "x.h5", "w", libver=("v108", "v108")) as file:
        made = file.create_dataset("x", (10,), "u4", chunks=(5,), fletcher32=True)
        made.attrs["chunk_sums"] = np.arange(200_000, dtype="<u4")
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["x"].attrs["chunk_sums"][-1] == 199_999


def _part(batch: EventBatch, n: int) -> EventBatch:
    return EventBatch(batch.crystal_a[:n], batch.crystal_b[:n], batch.tof_bin[:n])


def test_damaged_metadata_is_a_clean_error(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_three_chunks(path).close()
    data = bytearray(path.read_bytes())
    data[40] ^= 1  # in the superblock, which its checksum guards
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"must be a whole HDF5 file .* found OSError"):
        open_listmode(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("crystal_b", 144, "events must name crystals below 144 and TOF bins below 5"),
        ("tof_bin", 5, "events must name crystals below 144 and TOF bins below 5"),
        ("tof_bin", -1, "events must name crystals below 144 and TOF bins below 5"),
    ],
)
def test_events_that_name_nothing_are_refused(
    tmp_path: Path, column: str, value: int, message: str
) -> None:
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["prompts"][column][7] = value
    with pytest.raises(InputError, match=message):
        open_listmode(tmp_path / "scan.h5").read("prompts", 0, 500)


def _shape(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    del file[name]
    file.create_dataset(name, shape, dtype, chunks=tuple(min(n, 64) for n in shape))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("prompts/tick_offset", (2**40,), "<i8", "1099511627776"),
        ("prompts/tick_offset", (50,), "<f8", "must hold at most"),
        ("scanner/crystal_profile", (2**36,), "<f4", "68719476736"),
        ("prompts/crystal_a", (500, 2), "<u4", "must be one row of <u4, but it is 2"),
        ("prompts/tof_bin", (500,), "<f4", "must be one row of <i2, but it is 1 of float32"),
        ("normalisation/crystal_efficiency", (100,), "<f4", "must hold one efficiency a crys"),
    ],
)
def test_arrays_of_another_size_or_type_are_refused_before_they_fill_the_memory(
    tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str, message: str
) -> None:
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        _shape(file, name, shape, dtype)
        file[name][:1] = 0
    for opener in (Hdf5Listmode, open_listmode):  # with and without the child's trial
        with pytest.raises(
            InputError, match=rf"{message}|bytes in chunks of|of [0-9]* chunks in"
        ):
            opener(tmp_path / "scan.h5")


def test_group_in_place_of_a_dataset_is_refused(tmp_path: Path) -> None:
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        del file["prompts"]
        file.create_dataset("prompts", (2**40,), "<i8", chunks=(1024,))
    with pytest.raises(InputError, match="prompts is no group"):
        Hdf5Listmode(tmp_path / "scan.h5")


def test_empty_array_of_huge_extent_is_truncated() -> None:
    item = _yardl.Node("fixed", dtype="<f8")
    node = _yardl.Node("array", children=(item,), n_dims=2)
    huge = b"\xff" * 8 + b"\x7f"
    data = np.frombuffer(b"\x00" + huge + bytes(20), np.uint8)
    with pytest.raises(_yardl.Truncated):
        _yardl.Decoder(data, 0).value(node)
    many = _yardl.Node("array", children=(item,), n_dims=12)
    data = np.frombuffer(b"\x00" + b"\x60" * 11 + bytes(100), np.uint8)  # 0 x 96 x 96 x ...
    with pytest.raises(_yardl.Truncated):
        _yardl.Decoder(data, 0).value(many)


def test_array_of_too_many_dimensions_is_refused() -> None:
    node = _yardl.Node("array", children=(_yardl.Node("fixed", dtype="<f8"),), n_dims=-1)
    with pytest.raises(InputError, match="at most 32 dimensions, but one before byte 1 has 40"):
        _yardl.Decoder(np.frombuffer(b"\x28" + b"\x01" * 400, np.uint8), 0).value(node)


@pytest.mark.parametrize("key", ["Data filename", "Scanner name"])
def test_name_too_long_for_the_disk_is_no_file(tmp_path: Path, key: str) -> None:
    write_castor(random_scan(1), tmp_path / "scan.cdh")
    (tmp_path / "scan.stillpet.json").unlink()
    lines = (tmp_path / "scan.cdh").read_text().splitlines()
    lines = [f"{key}: {'x' * 300}" if line.startswith(key) else line for line in lines]
    (tmp_path / "scan.cdh").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"is not there; put|is not beside"):
        open_listmode(tmp_path / "scan.cdh")


def test_header_that_names_too_long_a_file_is_refused(tmp_path: Path) -> None:
    test_siemens.small_scan(tmp_path)
    header = test_siemens.HEADER.replace(":= scan.l", ":=" + "x" * 300)
    (tmp_path / "scan.l.hdr").write_text(header)
    with pytest.raises(InputError, match="is not there; put the data file"):
        open_listmode(tmp_path / "scan.l.hdr")


def test_array_without_dimensions_is_one_value() -> None:
    item = _yardl.Node("fixed", dtype="<f8")
    node = _yardl.Node("array", children=(item,), n_dims=-1)
    value = _yardl.Decoder(np.frombuffer(b"\x00" + bytes(20), np.uint8), 0).value(node)
    assert value.shape == ()


def test_segment_table_of_endless_digits_is_read(tmp_path: Path) -> None:
    header = test_siemens.HEADER.replace("{127,115,115}", "{" + "9" * 5000 + "}")
    path = test_siemens.write_scan(tmp_path, test_siemens.small_scan(tmp_path)[1][:0], header)
    test_siemens.small_scan(tmp_path)
    (tmp_path / "scan.l.hdr").write_text(header)
    assert open_listmode(path).n_events() > 0


@pytest.mark.parametrize("text", ["true", "nan", "-3", "1e-320"])
def test_width_of_tof_bins_that_is_none_is_refused_or_unknown(
    tmp_path: Path, text: str
) -> None:
    write_castor(random_scan(1), tmp_path / "scan.cdh")
    (tmp_path / "scan.stillpet.json").unlink()
    lines = (tmp_path / "scan.cdh").read_text().splitlines()
    key = "List TOF quantization bin size (ps)"
    lines = [f"{key}: {text}" if line.startswith(key) else line for line in lines]
    (tmp_path / "scan.cdh").write_text("\n".join(lines))
    if text == "1e-320":
        assert open_listmode(tmp_path / "scan.cdh").scanner.tof.n_bins < 32_768
    else:
        with pytest.raises(InputError, match=r"quantization bin size .* as a number from 0"):
            open_listmode(tmp_path / "scan.cdh")


@pytest.mark.parametrize("value", [math.inf, 2**70, "x", None])
def test_description_with_a_coverage_that_is_none_is_refused(
    tmp_path: Path, value: object
) -> None:
    import json

    write_castor(random_scan(1), tmp_path / "scan.cdh")
    text = json.loads((tmp_path / "scan.stillpet.json").read_text())
    mark, _, packed = text.partition("{")
    table = json.loads("{" + packed)
    table["coverage_ms"] = [[0, value]]
    with pytest.raises(InputError, match="that text is damaged"):
        read_description(mark + json.dumps(table))
