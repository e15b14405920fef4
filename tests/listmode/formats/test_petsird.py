"""PETSIRD: read by its own schema, checked against the official library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import petsird
import pytest

from listmode.errors import InputError
from listmode.formats import _kernels, _yardl, open_listmode
from listmode.formats._petsird_blocks import describe_blocks
from listmode.formats._petsird_scanner import (
    mean_depth_mm,
    read_protocol,
    ring_slots,
    transaxial_slots,
)
from listmode.formats.petsird import PetsirdListmode
from listmode.formats.petsird_writer import write_petsird
from listmode.windows import Windows
from tests.strategies import joined, random_scan, same_events, small_scanner

KINDS = ("geant4_lafov_points", "petsird_lafov_small_400k", "petsird_rich_two_types_v0.12.0")


def official_events(path: Path) -> list[list[tuple[int, ...]]]:
    """Read prompts and delayeds with the official library: start, types, bins, TOF index."""
    events: list[list[tuple[int, ...]]] = [[], []]
    with petsird.BinaryPETSIRDReader(str(path)) as reader:
        reader.read_header()
        for block in reader.read_time_blocks():
            value = block.value
            if type(value).__name__ != "EventTimeBlock":
                continue
            start = int(value.time_interval.start)
            for number, lists in enumerate((value.prompt_events, value.delayed_events)):
                for i, row in enumerate(lists or []):
                    for j, items in enumerate(row):
                        events[number] += [
                            (start, i, j, *map(int, e.detection_bins), int(e.tof_idx))
                            for e in items
                        ]
    return events


def expect_same(read: PetsirdListmode, events: list[list[tuple[int, ...]]]) -> None:
    """Compare a reader with events as the official library gives them."""
    d = read._detector
    n_types = len(d.n_bins)
    for number, stream in enumerate(("prompts", "delayeds")):
        table = np.array(events[number], np.int64).reshape(-1, 6)
        table = table[(table[:, 1] < n_types) & (table[:, 2] < n_types)]
        start, i, j, bin_0, bin_1, tof = table.T
        crystal_0 = d.first_crystal[i] + bin_0 // d.n_energy[i]
        crystal_1 = d.first_crystal[j] + bin_1 // d.n_energy[j]
        n_tof = d.n_tof[i * n_types + j]
        valid = (crystal_0 != crystal_1) & (bin_0 < d.n_bins[i]) & (bin_1 < d.n_bins[j])
        valid &= tof < n_tof
        tof = np.where(crystal_0 < crystal_1, tof, n_tof - 1 - tof) * int(d.has_tof)
        batch = joined(list(read.events(stream=stream, chunk=777)))  # type: ignore[arg-type]
        assert np.array_equal(batch.crystal_a, np.minimum(crystal_0, crystal_1)[valid])
        assert np.array_equal(batch.crystal_b, np.maximum(crystal_0, crystal_1)[valid])
        assert np.array_equal(batch.tof_bin, tof[valid])
        ticks = np.arange(read.start_ms, read.stop_ms)
        offset = read.tick_offset("delayeds" if number else "prompts")
        counts = np.diff(offset)
        assert np.array_equal(np.repeat(ticks, counts), start[valid])


@pytest.mark.parametrize("n_tof_bins", [5, 1])
@pytest.mark.parametrize("block_ms", [1, 7])
def test_scan_comes_back_bit_by_bit(tmp_path: Path, n_tof_bins: int, block_ms: int) -> None:
    scan = random_scan(1, scanner=small_scanner(n_tof_bins), start_ms=14)
    write_petsird(scan, tmp_path / "scan é.petsird", block_ms=block_ms)
    with open_listmode(tmp_path / "scan é.petsird") as read:
        assert read.scanner.digest == scan.scanner.digest
        assert read.protocol == scan.protocol
        assert read.crystal_efficiency is not None
        assert scan.crystal_efficiency is not None
        assert np.array_equal(read.crystal_efficiency, scan.crystal_efficiency)
        assert read.is_complete
        assert read.extent == scan.extent
        assert same_events(read.read("prompts", 0, 10_000), scan.prompts)
        assert same_events(read.read("delayeds", 0, 10_000), scan.delayeds)
        edges = np.append(np.arange(14, 54, block_ms), 54)
        for first, last in pairwise(edges.tolist()):
            window = Windows([first], [last])
            assert read.count(window) == scan.count(window)


def test_official_library_reads_what_we_write(tmp_path: Path) -> None:
    scan = random_scan(2)
    write_petsird(scan, tmp_path / "scan.petsird")
    expect_same(
        PetsirdListmode(tmp_path / "scan.petsird"), official_events(tmp_path / "scan.petsird")
    )
    with petsird.BinaryPETSIRDReader(str(tmp_path / "scan.petsird")) as reader:
        header = reader.read_header()
        assert header.scanner.model_name == "small"
        assert header.exam.patient.patients_weight == 73.5
        for _ in reader.read_time_blocks():
            pass


def test_plain_description_gives_the_same_places_and_bins(tmp_path: Path) -> None:
    """What another program sees, without the text that restores our own scanner."""
    scan = random_scan(2)
    write_petsird(scan, tmp_path / "scan.petsird")
    read = PetsirdListmode(tmp_path / "scan.petsird")
    plain, ours = read._detector.scanner, scan.scanner
    behind = (plain.doi_mm - ours.doi_mm) * ours.crystal_normal
    assert np.allclose(plain.crystal_position_mm, ours.crystal_position_mm + behind, atol=1e-4)
    assert np.allclose(plain.crystal_normal, ours.crystal_normal, atol=1e-6)
    assert plain.crystal_ring.tolist() == ours.crystal_ring.tolist()
    assert plain.crystal_size_mm == pytest.approx(ours.crystal_size_mm)
    assert plain.crystal_pitch_mm == pytest.approx(ours.crystal_pitch_mm, abs=1e-3)
    assert plain.tof.bin_width_ps == pytest.approx(ours.tof.bin_width_ps)
    assert plain.tof.fwhm_ps == pytest.approx(ours.tof.fwhm_ps)
    protocol = read_protocol(
        {
            "patient": {"patientsSex": "F", "patientsWeight": 73.5, "patientID": "secret"},
            "startOfAcquisition": 3600 * 10**9,
            "radiopharmaceuticals": [
                {"radionuclideTotalDose": 1e7, "radiopharmaceuticalStartDateTime": 10**9}
            ],
        },
        [],
    )
    assert protocol.injection_time_s == -3599.0
    assert "secret" not in repr(protocol)


def test_unknown_radionuclide_is_reported() -> None:
    defects: list[str] = []
    exam: dict[str, Any] = {
        "radiopharmaceuticals": [{"radionuclideCodeSequence": {"codeMeaning": "^68^Gallium"}}]
    }
    read_protocol(exam, defects)
    assert "names the radionuclide '^68^Gallium' without a half-life" in defects[0]


@pytest.mark.outside
@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
def test_events_equal_those_of_the_official_library(outside_data: Path, kind: str) -> None:
    path = outside_data / "petsird" / f"{kind}.petsird"
    expect_same(PetsirdListmode(path), official_events(path))


@pytest.mark.outside
def test_rich_file_keeps_all_its_events_and_says_what_it_leaves_out(outside_data: Path) -> None:
    read = PetsirdListmode(outside_data / "petsird" / f"{KINDS[2]}.petsird")
    assert (read.n_events(), read.n_events("delayeds")) == (8400, 1500)
    assert (read.start_ms, read.stop_ms) == (0, 1000)
    assert read.scanner.n_crystals == 24 * 16 + 8 * 12
    assert not read.scanner.tof.has_tof
    assert read.protocol.patient_weight_kg == 65.0
    said = " ".join(read.notes)
    assert "2 types of modules" in said
    assert "TOF is left out: the 3 pairs of module types have 3 sets of TOF bins" in said
    assert "4 blocks of GantryMovementTimeBlock are not carried; none of them moves" in said
    assert "BedMovementTimeBlock are not carried: they move by up to 6.0 mm" in said
    assert "ExternalSignalTimeBlock are not carried: 100 values of 1 signals, -0.15" in said
    assert "someID" not in said + " ".join(read.defects) + repr(read.protocol)
    assert len(read.blocks("BedMovementTimeBlock")) == 4
    trace = read.blocks("ExternalSignalTimeBlock")
    assert len(trace) == 20
    assert trace[0]["timeInterval"] == {"start": 0, "stop": 50}
    assert trace[0]["signalValues"][1] == pytest.approx(0.0333272, abs=1e-6)


def pose(z_mm: float) -> dict[str, Any]:
    """Make the transformation of a shift along the axis."""
    return {"matrix": np.column_stack((np.eye(3), [0.0, 0.0, z_mm]))}


@pytest.mark.parametrize(
    ("kind", "blocks", "said"),
    [
        (
            "BedMovementTimeBlock",
            [{"transform": pose(z)["matrix"]} for z in (4.0, 4.0, -3.5)],
            ": they move by up to 7.5 mm, and events stay where they were recorded",
        ),
        (
            "GantryMovementTimeBlock",
            [{"transforms": np.stack([pose(0)["matrix"]] * 2)}] * 3,
            "; none of them moves",
        ),
        (
            "DeadTimeTimeBlock",
            [
                {"aliveTimeFractions": {"modulePairAliveTimeFractions": [[np.array([f, 1.0])]]}}
                for f in (0.9, 0.92)
            ],
            ": pairs of modules are alive for 0.900-1.000 of the time (mean 0.955); "
            "activities are corrected for the mean of all pairs, not for their differences",
        ),
        (
            "SinglesHistogramTimeBlock",
            [
                {
                    "singlesPerSinglesUnitHistogram": [np.array([[30, 20]]), np.array([50])],
                    "timeInterval": {"start": 0, "stop": 20},
                }
            ],
            ": 5e+03 singles/s in all",
        ),
        ("ExternalSignalTimeBlock", [{"signalID": 1, "signalValues": np.array([np.nan])}], ""),
        ("BedMovementTimeBlock", [{"other": 1}], ""),
        ("BedMovementTimeBlock", [], ""),
        ("NewTimeBlock", [{}], ""),
    ],
)
def test_blocks_that_are_not_carried_are_summed_up(
    kind: str, blocks: list[dict[str, Any]], said: str
) -> None:
    assert describe_blocks(kind, blocks) == said


@pytest.mark.outside
def test_self_pairs_of_the_random_sample_are_counted(outside_data: Path) -> None:
    read = PetsirdListmode(outside_data / "petsird" / f"{KINDS[1]}.petsird")
    assert read.n_events() == 399_980
    assert read.defects == ("20 events with one crystal twice are left out",)


@pytest.mark.outside
def test_points_of_another_program_lie_where_they_were_put(outside_data: Path) -> None:
    """Geant4 photons: six points at x = 0; the mean TOF position along their LORs.

    Events whose LOR passes within 8 mm of a point and whose bin lies within 60 mm of it; the
    sign of y is that of the file's frame, and a mirrored TOF would be off by up to 400 mm.
    """
    read = PetsirdListmode(outside_data / "petsird" / f"{KINDS[0]}.petsird")
    assert read.n_events() == 472_328
    assert read.scanner.n_rings == 323
    assert 7.0 <= read.scanner.doi_mm <= 7.5
    assert read.scanner.tof.fwhm_ps == pytest.approx(228.0, abs=0.1)
    place = read.scanner.crystal_position_mm.astype(np.float64)
    events = joined(list(read.events()))
    a, b = place[events.crystal_a], place[events.crystal_b]
    unit = (b - a) / np.linalg.norm(b - a, axis=1)[:, None]
    along = read.scanner.tof.bin_centre_mm()[events.tof_bin]
    found = (a + b) / 2 + unit * along[:, None]
    for y_mm in (10.0, 100.0, 200.0):
        for z_mm in (0.0, 398.6):
            point = np.array([0.0, y_mm, z_mm])
            miss = np.linalg.norm(np.cross(point - a, unit), axis=1)
            expected = ((point - (a + b) / 2) * unit).sum(axis=1)
            mine = (miss < 8.0) & (np.abs(along - expected) < 60.0)
            assert mine.sum() > 30_000
            assert np.abs(found[mine].mean(axis=0) - point).max() < 0.5


def test_truncated_file_gives_its_whole_blocks_and_says_so(tmp_path: Path) -> None:
    scan = random_scan(3)
    write_petsird(scan, tmp_path / "whole.petsird")
    whole = (tmp_path / "whole.petsird").read_bytes()
    blocks = PetsirdListmode(tmp_path / "whole.petsird")._blocks
    for n_whole, cut in ((20, int(blocks[20, 3]) + 5), (39, len(whole) - 9)):
        (tmp_path / "cut.petsird").write_bytes(whole[:cut])
        read = PetsirdListmode(tmp_path / "cut.petsird")
        assert not read.is_complete
        assert f"begins at byte {blocks[n_whole, 3]}" in read.defects[0]
        assert f"the {n_whole} whole blocks before it are read" in read.defects[0]
        assert read.stop_ms == n_whole
        n = int(scan.prompts_offset[n_whole])
        assert same_events(read.read("prompts", 0, 10_000), scan.read("prompts", 0, n))


def test_file_without_its_last_byte_is_incomplete(tmp_path: Path) -> None:
    scan = random_scan(3)
    write_petsird(scan, tmp_path / "scan.petsird")
    whole = (tmp_path / "scan.petsird").read_bytes()
    (tmp_path / "scan.petsird").write_bytes(whole[:-1])
    read = PetsirdListmode(tmp_path / "scan.petsird")
    assert not read.is_complete
    assert same_events(read.read("prompts", 0, 10_000), scan.prompts)


def test_damaged_block_ends_the_reading_there(tmp_path: Path) -> None:
    write_petsird(random_scan(3), tmp_path / "scan.petsird")
    data = bytearray((tmp_path / "scan.petsird").read_bytes())
    at = int(PetsirdListmode(tmp_path / "scan.petsird")._blocks[5, 3])
    data[at] = 77  # no such kind of block
    (tmp_path / "scan.petsird").write_bytes(data)
    read = PetsirdListmode(tmp_path / "scan.petsird")
    assert f"damaged: the time block at byte {at} does not follow" in read.defects[0]
    assert read.stop_ms == 5


def _cut(tmp_path: Path, n_bytes: int) -> Path:
    write_petsird(random_scan(3), tmp_path / "scan.petsird")
    whole = (tmp_path / "scan.petsird").read_bytes()
    (tmp_path / "cut.petsird").write_bytes(whole[:n_bytes])
    return tmp_path / "cut.petsird"


def test_file_that_ends_in_its_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it ends within it, at byte 14000"):
        open_listmode(_cut(tmp_path, 14_000))


def test_file_that_ends_in_its_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file ends before it does"):
        open_listmode(_cut(tmp_path, 1000))


def test_file_without_a_whole_block_is_refused(tmp_path: Path) -> None:
    write_petsird(random_scan(3), tmp_path / "scan.petsird")
    first = int(PetsirdListmode(tmp_path / "scan.petsird")._blocks[0, 3])
    with pytest.raises(InputError, match="not one whole block of events"):
        open_listmode(_cut(tmp_path, first + 3))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"name": "Header"', b'"nome": "Header"', "the schema of this one is damaged"),
        (b'"protocol"', b'"protokol"', "the schema of this one is damaged"),
        (b'"length": 2', b'"length": 0', "a length of 0"),
        (b'"name": "PETSIRD"', b'"name": "OTHERS!"', "must hold PETSIRD data, but"),
        (b"stillpet-description-1:{", b"stillpet-description-1:[", "that text is damaged"),
    ],
)
def test_spoilt_file_is_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    write_petsird(random_scan(3), tmp_path / "scan.petsird")
    data = (tmp_path / "scan.petsird").read_bytes()
    if old not in data:  # the schema may be written with or without blanks
        old, new = old.replace(b": ", b":"), new.replace(b": ", b":")
    assert old in data
    assert len(old) == len(new) or not new.endswith(b"!")
    (tmp_path / "scan.petsird").write_bytes(data.replace(old, new.ljust(len(old))))
    with pytest.raises(InputError, match=message):
        open_listmode(tmp_path / "scan.petsird")


def test_unknown_kind_of_block_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_petsird(random_scan(3), tmp_path / "scan.petsird")
    with pytest.raises(InputError, match=r"must be one of .*BedMovementTimeBlock.*'Table' was"):
        PetsirdListmode(tmp_path / "scan.petsird").blocks("Table")


def test_scan_before_tick_zero_is_refused_by_the_writer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="counts time from 0 in whole ms, but the scan starts"):
        write_petsird(random_scan(3, start_ms=-5), tmp_path / "scan.petsird")
    assert not list(tmp_path.iterdir())


def test_mean_depth_is_that_of_a_cut_exponential() -> None:
    depth = np.linspace(0.0, 20.0, 200_001)
    weight = np.exp(-0.083 * depth)
    assert mean_depth_mm(20.0) == pytest.approx((depth * weight).sum() / weight.sum(), abs=1e-4)


def test_gap_rings_are_counted_as_slots() -> None:
    z = np.repeat([0.0, 2.0, 4.0, 8.0, 10.0], 3)[::-1].copy()
    assert ring_slots(z)[::3].tolist() == [5, 4, 2, 1, 0]


def test_rings_without_a_common_pitch_are_numbered_as_they_come() -> None:
    assert ring_slots(np.array([0.0, 1.0, 1.3, 2.0])).tolist() == [0, 1, 2, 3]


def test_transaxial_slots_turn_from_x_towards_y() -> None:
    xy = np.array([[0.0, -1.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [2.0, 0.0]])
    assert transaxial_slots(xy).tolist() == [3, 0, 1, 2, 0]


@pytest.mark.kernel
@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32 - 1, 2**62])
def test_number_reads_back_fast_and_checked(value: int) -> None:
    data = np.frombuffer(_yardl.varint(value) + bytes(10), np.uint8)
    n = len(_yardl.varint(value))
    assert _kernels._varint(data, 0) == (value, n)
    fast = getattr(_kernels._fast_varint, "py_func", _kernels._fast_varint)
    assert fast(data, 0) == (value, n)
    assert _yardl.Decoder(data, 0).unsigned() == value


@pytest.mark.kernel
def test_number_without_end_is_broken_or_cut() -> None:
    assert _kernels._varint(np.full(20, 255, np.uint8), 0)[0] == -1
    assert _kernels._varint(np.full(3, 255, np.uint8), 0)[0] == -2
    with pytest.raises(InputError, match="a number must have at most 10 bytes"):
        _yardl.Decoder(np.full(20, 255, np.uint8), 0).unsigned()


@pytest.mark.kernel
def test_skipping_numbers_counts_their_last_bytes() -> None:
    data = np.array([1, 200, 3, 255, 255, 0, 9], np.uint8)
    assert _kernels._skip_varints(data, 0, 3) == 6
    assert _kernels._skip_varints(data, 0, 5) == -1


def _schema_of(types: list[dict[str, Any]], first: str) -> bytes:
    step = {"name": "x", "type": first}
    return json.dumps({"protocol": {"name": "T", "sequence": [step]}, "types": types}).encode()


@pytest.mark.parametrize(("n_types", "per_type"), [(15, 2), (60, 1)])
def test_schema_that_unfolds_without_measure_is_refused_at_once(
    n_types: int, per_type: int
) -> None:
    """Types are made once, but count as often and as deep as they are used.

    They come from the innermost outwards, so that each one names only known types.
    """
    step = {f"f{k}": {"name": f"f{k}", "type": f"T.R{k}"} for k in range(n_types)}
    types: list[dict[str, Any]] = [
        {"name": f"R{k}", "fields": [{"name": str(i), "type": inner} for i in range(per_type)]}
        for k in range(n_types)
        for inner in ["float32" if k == 0 else f"T.R{k - 1}"]
    ]
    types.append({"name": "All", "fields": list(step.values())})
    with pytest.raises(InputError, match="it is nested too deeply"):
        _yardl.Schema(_schema_of(types, "T.All"))
    assert _yardl.Schema(_schema_of(types, "T.R9")).steps["x"].least_bytes == 4 * per_type**10


def test_recursive_type_is_refused() -> None:
    types = [{"name": "R", "fields": [{"name": "again", "type": [None, "T.R"]}]}]
    with pytest.raises(InputError, match="it is nested too deeply"):
        _yardl.Schema(_schema_of(types, "T.R"))


@pytest.mark.kernel
def test_values_encode_and_decode_alike() -> None:
    text = json.dumps(
        {
            "protocol": {"name": "T", "sequence": [{"name": "x", "type": "T.R"}]},
            "types": [
                {
                    "name": "R",
                    "fields": [
                        {"name": "i", "type": "int32"},
                        {"name": "s", "type": "string"},
                        {"name": "o", "type": [None, "float32"]},
                        {"name": "v", "type": {"vector": {"items": "uint64"}}},
                        {"name": "m", "type": {"array": {"items": "float64", "dimensions": 2}}},
                        {"name": "d", "type": {"array": {"items": "float32"}}},
                        {
                            "name": "u",
                            "type": [
                                {"tag": "a", "type": "bool"},
                                {"tag": "b", "type": "string"},
                            ],
                        },
                    ],
                }
            ],
        }
    )
    node = _yardl.Schema(text.encode()).steps["x"]
    value = {
        "i": -3,
        "s": "é",
        "o": 1.5,
        "v": [1, 2**40],
        "m": np.arange(6.0).reshape(2, 3),
        "d": np.ones((2, 1, 2), np.float32),
        "u": ("b", "z"),
    }
    data = np.frombuffer(_yardl.encode(node, value), np.uint8)
    decoder = _yardl.Decoder(data, 0)
    back = decoder.value(node)
    assert decoder.offset == len(data)
    for name in ("i", "s", "o", "v", "u"):
        assert back[name] == value[name]
    assert np.array_equal(back["m"], value["m"])  # type: ignore[arg-type]
    assert back["d"].shape == (2, 1, 2)
    empty = _yardl.Decoder(np.frombuffer(_yardl.encode(node, None), np.uint8), 0).value(node)
    assert empty["i"] == 0
    assert empty["o"] is None
    assert empty["u"] == ("a", False)


@pytest.mark.outside
@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.7.2", "0.8.1", "0.9.1", "0.10.0", "0.11.1", "0.12.0"])
def test_every_minor_version_is_read_as_its_own_library_does(
    tmp_path: Path, version: str
) -> None:
    """Each release writes and reads its own example; the wheels lie in a folder apart."""
    folder = Path(os.environ.get("STILLPET_PETSIRD_WHEELS", "no-such-folder"))
    wheels = sorted(folder.glob(f"petsird-{version}-*.whl"))
    if not wheels:
        pytest.skip("set STILLPET_PETSIRD_WHEELS to a folder of `pip download petsird==...`")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(tmp_path / "library")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "library")}
    made = tmp_path / "made.petsird"
    with made.open("wb") as out:
        command = [sys.executable, "-W", "ignore", "-m", "petsird.helpers.generator"]
        subprocess.run(command, env=environment, stdout=out, check=True, cwd=tmp_path)
    script = Path(__file__).read_text("utf-8")
    source = script[script.index("def official_events") : script.index("def expect_same")]
    dump = (
        "from __future__ import annotations\nimport json, sys, petsird\n"
        "from pathlib import Path\n"
        f"{source}\nprint(json.dumps(official_events(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", dump, str(made)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    read = PetsirdListmode(made)
    assert read.is_complete
    assert read.n_events() > 1000
    expect_same(read, json.loads(done.stdout))
