"""Siemens mMR listmode: words, addresses, and a real scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.formats.siemens import SiemensListmode, plane_rings, transaxial_pairs
from listmode.windows import Windows
from tests.strategies import joined, same_events

HEADER = """!INTERFILE:=
%SMS-MI header name space:=PETLINK bin address
name of data file := scan.l
%study date (yyyy:mm:dd):=2017:03:27
%study time (hh:mm:ss GMT+00:00):=17:00:35
patient name:=Jane Doe
isotope gamma halflife (sec):=6586.2
isotope branching factor:=0.97
radiopharmaceutical:=FDG
tracer activity at time of injection (Bq):=4.65e+007
%tracer injection date (yyyy:mm:dd):=2017:03:27
%tracer injection time (hh:mm:ss GMT+00:00):=16:07:00
number of rings:=64
%number of TOF time bins:=1
%LM event and tag words format (bits):=32
%maximum ring difference:=60
%number of projections:=344
%number of views:=252
%segment table :={127,115,115}
%total listmode word counts:=0
"""
N_BINS = 344 * 252
TAG, PROMPT = 0x80000000, 0x40000000


def valid_addresses(n: int, seed: int = 0) -> np.ndarray:
    """Draw addresses that name two crystals."""
    rng = np.random.default_rng(seed)
    pairs = np.flatnonzero(transaxial_pairs()[0] >= 0)
    return np.asarray(rng.integers(0, 4084, n) * N_BINS + rng.choice(pairs, n))


def write_scan(folder: Path, words: list[int] | np.ndarray, header: str = HEADER) -> Path:
    """Write words and their header."""
    np.asarray(words, np.uint32).astype("<u4").tofile(folder / "scan.l")
    (folder / "scan.l.hdr").write_text(header)
    return folder / "scan.l"


def small_scan(folder: Path) -> tuple[Path, np.ndarray]:
    """One early event, then ticks 5, 6 and 8 with prompts and a delayed each; one other tag."""
    a = valid_addresses(40)
    words = [PROMPT | a[0], TAG | 5]
    words += [PROMPT | x for x in a[1:21]] + [a[21], 0xE0000001, TAG | 6, PROMPT | a[22]]
    words += [TAG | 8] + [PROMPT | x for x in a[23:39]] + [a[39]]
    return write_scan(folder, words), a


def crystals(address: int) -> tuple[int, int]:
    """Find the two crystals of an address slowly, by STIR's formulas."""
    tangential, rest = address % 344 - 172, address // 344
    view, plane = rest % 252, rest // 252
    slots = (view + tangential // 2) % 504, (view - -(-tangential // 2) + 252) % 504
    k = 0
    while plane >= 64 - (k + 1) // 2:
        plane -= 64 - (k + 1) // 2
        k += 1
    step = (k + 1) // 2
    rings = (plane + step, plane) if k % 2 else (plane, plane + step)
    one, other = (
        ring * 448 + slot // 9 * 8 + slot % 9 - 1
        for ring, slot in zip(rings, slots, strict=True)
    )
    return min(one, other), max(one, other)


@pytest.mark.kernel
def test_addresses_become_crystals_as_the_slow_formulas_say(tmp_path: Path) -> None:
    path, address = small_scan(tmp_path)
    read = open_listmode(path)
    got = joined(list(read.events(chunk=3)))
    chosen = [int(x) for x in np.r_[address[1:21], address[22], address[23:39]]]
    expected = [crystals(x) for x in chosen]
    assert list(zip(got.crystal_a.tolist(), got.crystal_b.tolist(), strict=True)) == expected
    late = read.read("delayeds", 1, 2)
    assert (late.crystal_a[0], late.crystal_b[0]) == crystals(int(address[39]))


@pytest.mark.kernel
def test_ticks_hold_the_events_after_their_tag(tmp_path: Path) -> None:
    read = open_listmode(small_scan(tmp_path)[0])
    assert isinstance(read, SiemensListmode)
    assert (read.start_ms, read.stop_ms) == (5, 9)
    assert read.tick_offset().tolist() == [0, 20, 21, 21, 37]
    assert read.tick_offset("delayeds").tolist() == [0, 1, 1, 1, 2]
    assert dict(read.tags) == {
        "prompts": 38,
        "delayeds": 2,
        "time tags": 3,
        "other tags": 1,
        "events before the first time tag": 1,
    }
    assert "1 events before the first time tag have no time" in read.defects[0]


@pytest.mark.kernel
def test_part_of_a_tick_is_read_alike(tmp_path: Path) -> None:
    read = open_listmode(small_scan(tmp_path)[0])
    whole = read.read("prompts", 0, 100)
    assert len(whole) == 37
    for first in range(0, 37, 5):
        part = read.read("prompts", first, first + 4)
        piece = slice(first, first + 4)
        expected = EventBatch(
            whole.crystal_a[piece], whole.crystal_b[piece], whole.tof_bin[piece]
        )
        assert same_events(part, expected)


def test_header_gives_the_same_scan_as_the_data(tmp_path: Path) -> None:
    path = small_scan(tmp_path)[0]
    by_data, by_header = open_listmode(path), open_listmode(tmp_path / "scan.l.hdr")
    assert by_data.file_hash == by_header.file_hash
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "scan.l.hdr").rename(moved / "any.name")
    given = open_listmode(path, header=moved / "any.name")
    assert same_events(given.read("prompts", 0, 99), by_data.read("prompts", 0, 99))


def test_protocol_comes_from_the_header_and_no_name_does(tmp_path: Path) -> None:
    read = open_listmode(small_scan(tmp_path)[0])
    assert read.protocol.injected_activity_bq == 4.65e7
    assert read.protocol.injection_time_s == -(53 * 60 + 35)
    assert read.protocol.tracer == "FDG"
    assert read.protocol.branching == 0.97
    said = repr(read.protocol) + repr(read.provenance) + " ".join(read.notes + read.defects)
    assert "Doe" not in said


def test_events_on_an_empty_slot_or_outside_are_left_out_and_counted(tmp_path: Path) -> None:
    a = valid_addresses(40)
    gap = int(np.flatnonzero(transaxial_pairs()[0] < 0)[7])
    words = [TAG, *(PROMPT | x for x in a), PROMPT | gap, PROMPT | (4084 * N_BINS + 5)]
    read = open_listmode(write_scan(tmp_path, words), header=tmp_path / "scan.l.hdr")
    assert read.n_events() == 40
    said = " ".join(read.defects)
    assert "1 events name a slot without crystal" in said
    assert "1 events lie outside the sinogram" in said


def test_header_that_lies_about_segments_is_reported(tmp_path: Path) -> None:
    read = open_listmode(small_scan(tmp_path)[0])
    assert any("segment table (3 segments, 357 planes) is not" in d for d in read.defects)


def test_clock_that_goes_back_or_leaps_is_ignored_and_reported(tmp_path: Path) -> None:
    a = valid_addresses(60)
    words = [TAG | 3, *(PROMPT | x for x in a[:40]), TAG | 1, PROMPT | a[40], TAG | 4_000_000]
    read = open_listmode(
        write_scan(tmp_path, [*words, PROMPT | a[41]]), header=tmp_path / "scan.l.hdr"
    )
    assert (read.start_ms, read.stop_ms) == (3, 4)
    assert read.n_events() == 42
    assert "2 time tags go back or jump" in read.defects[0]


def test_truncated_file_is_incomplete(tmp_path: Path) -> None:
    path = small_scan(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-2])
    text = HEADER.replace("word counts:=0", "word counts:=1000")
    (tmp_path / "scan.l.hdr").write_text(text)
    read = open_listmode(path)
    assert not read.is_complete
    said = " ".join(read.defects)
    assert "truncated: the last 2 bytes are no whole word" in said
    assert "announces 1000 words, the file holds 43" in said
    assert read.count(Windows([5], [6])) == 20


def test_missing_header_is_named(tmp_path: Path) -> None:
    path = small_scan(tmp_path)[0]
    (tmp_path / "scan.l.hdr").unlink()
    with pytest.raises(InputError, match=r"needs its header, but no header beside 'scan\.l'"):
        open_listmode(path)


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    path = small_scan(tmp_path)[0]
    path.unlink()
    with pytest.raises(InputError, match=r"names 'scan\.l', which is not there"):
        open_listmode(tmp_path / "scan.l.hdr")


def test_header_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = small_scan(tmp_path)[0]
    with pytest.raises(InputError, match="header must be readable, but 'no' is not"):
        open_listmode(path, header=tmp_path / "no")


def test_file_without_time_is_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path, [PROMPT | int(x) for x in valid_addresses(10)])
    with pytest.raises(InputError, match="must hold time tags, but"):
        open_listmode(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "number of rings:=64",
            "number of rings:=80",
            "only the word layout of the Siemens mMR",
        ),
        ("number of rings:=64", "", "must have the key 'number of rings'"),
        ("(bits):=32", "(bits):=64", "convert the scan to PETSIRD"),
        (
            "counts:=0",
            "counts:=many",
            "'total listmode word counts' must be a count, but it is",
        ),
    ],
)
def test_header_of_another_scanner_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = small_scan(tmp_path)[0]
    (tmp_path / "scan.l.hdr").write_text(HEADER.replace(old, new))
    with pytest.raises(InputError, match=message):
        open_listmode(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scan.ptd", bytes(1000)),
        ("SCAN.PTD", np.arange(5000, dtype="<u4").tobytes() + bytes(128) + b"DICM"),
        ("scan.dcm", bytes(128) + b"DICM" + bytes(1000)),
        ("scan", bytes(128) + b"DICM" + bytes(1000)),
    ],
)
def test_listmode_in_dicom_is_recognised_and_points_to_petsird(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"as in Siemens \.ptd .*export the scan to PETSIRD"):
        open_listmode(tmp_path / name)


def test_scan_longer_than_any_is_refused(tmp_path: Path) -> None:
    tags = [TAG | t for t in range(0, 50_000_000, 500_000)]
    path = write_scan(tmp_path, tags)
    with pytest.raises(InputError, match="must last at most 12 h"):
        open_listmode(path)


def test_planes_run_by_segment_and_rings() -> None:
    ring_0, ring_1 = plane_rings()
    assert ring_0.size == 4084
    assert np.unique(ring_0 * 64 + ring_1).size == 4084
    assert (ring_1 - ring_0)[[0, 63, 64, 127, 190]].tolist() == [0, 0, -1, 1, -2]


def test_every_pair_around_the_ring_has_one_address() -> None:
    one, other = transaxial_pairs()
    real = one >= 0
    assert ((one < 0) == (other < 0)).all()
    low, high = np.minimum(one, other)[real], np.maximum(one, other)[real]
    assert np.unique(low * 448 + high).size == real.sum()
    assert one.max() == 447


def test_preset_puts_crystals_where_the_vendor_counts_them() -> None:
    """STIR: slot d lies at 2 pi d / 504 from the top (-y) towards +x; the block is flat."""
    scanner = load_scanner("mmr")
    vendor_slot = scanner.crystal_transaxial[:448] + 1
    x, y = scanner.crystal_position_mm[:448, 0], scanner.crystal_position_mm[:448, 1]
    angle = np.arctan2(x, -y)
    difference = np.angle(np.exp(1j * (angle - 2 * np.pi * vendor_slot / 504)))
    assert np.abs(difference).max() * 335.0 < 0.6  # mm: chord against arc within a block
    assert np.abs(difference.reshape(56, 8).mean(axis=1)).max() < 1e-6


@pytest.fixture(scope="session")
def real_scan(outside_data: Path) -> SiemensListmode:
    opened = open_listmode(outside_data / "stir" / "small_listmode_file.l")
    assert isinstance(opened, SiemensListmode)
    return opened


@pytest.mark.outside
def test_real_scan_has_its_counts(real_scan: SiemensListmode) -> None:
    assert dict(real_scan.tags) == {
        "prompts": 218_881,
        "delayeds": 35_320,
        "time tags": 613,
        "other tags": 2,
        "events before the first time tag": 187,
    }
    assert (real_scan.start_ms, real_scan.stop_ms) == (0, 613)
    assert real_scan.n_events() + real_scan.n_events("delayeds") == 218_881 + 35_320 - 187
    said = " ".join(real_scan.defects)
    assert "187 events before the first time tag have no time and are in no window" in said
    assert "segment table (11 segments, 837 planes) is not that of the events" in said
    assert "without crystal" not in said


def _lines(
    scan: SiemensListmode,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends and weights of all lines: prompts count 1, delayeds -1."""
    place = scan.scanner.crystal_position_mm.astype(np.float64)
    streams = [joined(list(scan.events(stream=s))) for s in ("prompts", "delayeds")]
    a = np.concatenate([place[b.crystal_a] for b in streams])
    b = np.concatenate([place[b.crystal_b] for b in streams])
    weight = np.repeat([1.0, -1.0], [len(s) for s in streams])
    return a, b, weight


def _centroid(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Point of least weighted squared distance from all lines, seen along z, mm."""
    along = (b - a)[:, :2] / np.linalg.norm((b - a)[:, :2], axis=1)[:, None]
    across = np.stack((-along[:, 1], along[:, 0]), axis=1)
    distance = (across * a[:, :2]).sum(axis=1)
    matrix = np.einsum("e,ei,ej->ij", weight, across, across)
    return np.asarray(np.linalg.solve(matrix, (weight * distance) @ across))


@pytest.mark.outside
def test_real_object_lies_off_centre_towards_the_top(real_scan: SiemensListmode) -> None:
    """From raw lines before any image: 18.6 mm off the axis, along -y (the gantry's top)."""
    x_mm, y_mm = _centroid(*_lines(real_scan))
    assert 17.5 < np.hypot(x_mm, y_mm) < 20.0
    assert y_mm < -17.5
    assert abs(x_mm) < 3.0


@pytest.mark.outside
@pytest.mark.stats
def test_oblique_lines_meet_in_the_object_only_with_this_order_of_segments(
    real_scan: SiemensListmode,
) -> None:
    """The parallax of an off-centre object tells which end of an oblique line is higher.

    A line that passes its midpoint by f of its length left of the object's axis crosses the
    axis f dz above its middle, so middles fall as f dz rises; with the rings exchanged they
    would rise. Ring differences 20-39 give a slope of -0.62 +- 0.06 (a false alarm at 0 would
    be a 10 sigma event).
    """
    a, b, weight = _lines(real_scan)
    centre = _centroid(a, b, weight)
    length = np.linalg.norm((b - a)[:, :2], axis=1)
    along = (b - a)[:, :2] / length[:, None]
    f = ((centre - a[:, :2]) * along).sum(axis=1) / length - 0.5
    dz = b[:, 2] - a[:, 2]
    rings = np.abs(dz) / 4.0625
    oblique = (rings > 19.5) & (rings < 39.5)
    x, middle, w = (f * dz)[oblique], ((a + b)[:, 2] / 2)[oblique], weight[oblique]
    middle = middle - np.average(middle, weights=w)
    slope = (w * x * middle).sum() / (w * x * x).sum()
    sigma = np.sqrt((x * x * middle * middle).sum()) / (w * x * x).sum()
    assert slope + 5.0 * sigma < 0.0


@pytest.mark.outside
def test_true_coincidences_peak_in_the_middle_rings(real_scan: SiemensListmode) -> None:
    ring = real_scan.scanner.crystal_ring
    counts = np.zeros(64)
    for stream, sign in (("prompts", 1.0), ("delayeds", -1.0)):
        for batch in real_scan.events(stream=stream):  # type: ignore[arg-type]
            for crystal in (batch.crystal_a, batch.crystal_b):
                counts += sign * np.bincount(ring[crystal], minlength=64)
    assert 24 <= counts.argmax() <= 47
