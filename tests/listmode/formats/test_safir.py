"""SAFIR listmode: records, crystal map, and a real-format point source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.safir import SIGNATURE, SafirListmode
from tests.strategies import joined

TAG = 1 << 63


def record(a: tuple[int, int], b: tuple[int, int], *, is_delayed: bool = False) -> int:
    """Pack an event of two crystals (ring, place)."""
    return a[0] | b[0] << 8 | a[1] << 16 | b[1] << 32 | int(is_delayed) << 62


def write_scan(folder: Path, words: list[int], n_rings: int = 3, n_around: int = 6) -> Path:
    """Write records and a map of a small ring."""
    lines = ["#ring\tdet\tx\ty\tz"]
    for ring in range(n_rings):
        for k in range(n_around):
            angle = 2 * np.pi * k / n_around
            x, y = 50 * np.cos(angle), 50 * np.sin(angle)
            lines.append(f"{ring}\t{k}\t{x:.3f}\t{y:.3f}\t{2.0 * ring - 2.0:.3f}")
    (folder / "map.txt").write_text("\n".join(lines) + "\n")
    head = SIGNATURE.ljust(32, b"?")
    (folder / "scan.safir").write_bytes(head + np.array(words, "<u8").tobytes())
    return folder / "scan.safir"


WORDS = [
    record((0, 1), (2, 4)),  # before the first tag
    TAG | 7,
    record((2, 4), (0, 1)),
    record((1, 0), (1, 3), is_delayed=True),
    TAG | 9,
    record((0, 0), (0, 3)),
    record((5, 0), (0, 3)),  # no such ring
    record((1, 2), (1, 2)),  # one crystal twice
]


@pytest.mark.kernel
def test_records_become_ordered_pairs_at_the_tick_of_their_tag(tmp_path: Path) -> None:
    read = open_listmode(write_scan(tmp_path, WORDS))
    assert isinstance(read, SafirListmode)
    assert (read.start_ms, read.stop_ms) == (7, 10)
    assert read.tick_offset().tolist() == [0, 1, 1, 2]
    assert read.tick_offset("delayeds").tolist() == [0, 1, 1, 1]
    prompts = joined(list(read.events(chunk=1)))
    assert prompts.crystal_a.tolist() == [1, 0]
    assert prompts.crystal_b.tolist() == [16, 3]
    assert read.read("delayeds", 0, 1).crystal_b.tolist() == [9]
    assert read.defects == (
        "1 events before the first time tag are in no window",
        "2 events name no crystal of the map: left out",
    )
    assert read.is_complete


def test_map_gives_places_rings_and_pitch(tmp_path: Path) -> None:
    scanner = open_listmode(write_scan(tmp_path, WORDS)).scanner
    assert scanner.n_crystals == 18
    assert scanner.crystal_position_mm[16].tolist() == pytest.approx(
        [-25, -43.301, 2], abs=1e-3
    )
    assert scanner.crystal_pitch_mm[1] == pytest.approx(2.0)
    assert scanner.crystal_ring[16] == 2
    assert not scanner.tof.has_tof


def test_truncated_file_is_incomplete(tmp_path: Path) -> None:
    path = write_scan(tmp_path, WORDS)
    path.write_bytes(path.read_bytes()[:-3])
    read = open_listmode(path)
    assert not read.is_complete
    assert "truncated: the last 5 bytes are no whole record" in read.defects


def test_clock_that_goes_back_is_reported(tmp_path: Path) -> None:
    read = open_listmode(write_scan(tmp_path, [*WORDS, TAG | 1]))
    assert "1 time tags go back" in read.defects[1]
    assert read.stop_ms == 10


def test_missing_map_is_named(tmp_path: Path) -> None:
    path = write_scan(tmp_path, WORDS)
    (tmp_path / "map.txt").rename(tmp_path / "second")
    (tmp_path / "map.txt").write_bytes((tmp_path / "second").read_bytes())
    with pytest.raises(InputError, match="needs its crystal map, but there is not exactly one"):
        open_listmode(path)
    assert open_listmode(path, header=tmp_path / "second").n_events() == 2


def test_unreadable_map_is_named(tmp_path: Path) -> None:
    path = write_scan(tmp_path, WORDS)
    with pytest.raises(InputError, match="crystal map must be readable, but 'no' is not"):
        open_listmode(path, header=tmp_path / "no")


@pytest.mark.parametrize("line", ["0 1 2 3", "0 1 x y z", "0 1 2 3 nan", "300 1 2 3 4"])
def test_damaged_map_is_refused(tmp_path: Path, line: str) -> None:
    path = write_scan(tmp_path, WORDS)
    (tmp_path / "map.txt").write_text(f"#ring\n{line}\n")
    with pytest.raises(InputError, match="must list ring, place, x, y and z of each crystal"):
        open_listmode(path)


def test_file_without_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold time tags, but"):
        open_listmode(write_scan(tmp_path, WORDS[:1]))


def test_file_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold its signature and records"):
        open_listmode(write_scan(tmp_path, []))


@pytest.mark.outside
def test_point_source_has_its_counts_and_place(outside_data: Path) -> None:
    """The point nearest to all lines, robustly (each line's weight falls with its distance)."""
    read = open_listmode(outside_data / "stir" / "safir" / "point_5.clm.safir")
    assert isinstance(read, SafirListmode)
    assert read.tags["prompts"] + read.tags["delayeds"] == 35_887
    assert read.tags["delayeds"] == 43
    assert read.tags["time tags"] == 359
    assert (read.start_ms, read.stop_ms) == (1, 9996)
    place = read.scanner.crystal_position_mm.astype(np.float64)
    events = joined(list(read.events()))
    a, b = place[events.crystal_a], place[events.crystal_b]
    unit = (b - a) / np.linalg.norm(b - a, axis=1)[:, None]
    project = np.eye(3) - unit[:, :, None] * unit[:, None, :]
    point = np.zeros(3)
    for _ in range(30):
        miss = np.linalg.norm(np.einsum("eij,ej->ei", project, point - a), axis=1)
        weight = 1.0 / (1.0 + (miss / 2.0) ** 2)
        matrix = np.einsum("e,eij->ij", weight, project)
        point = np.linalg.solve(matrix, np.einsum("e,eij,ej->i", weight, project, a))
    assert point == pytest.approx([4.60, 0.00, -0.01], abs=0.1)
