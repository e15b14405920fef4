"""The order in which a file's bytes reach the disk, which a kill may cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listmode.formats._atomic import GuardedFile


def put(file: GuardedFile, at: int, data: bytes) -> None:
    file.seek(at)
    file.write(data)


def test_what_is_new_goes_first_then_the_head_then_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = GuardedFile(path)
    put(file, 0, b"HEADbodytail")
    file.hold()
    put(file, 4, b"BODY")
    put(file, 0, b"head")
    put(file, 12, b"more")
    assert path.read_bytes() == b"HEADbodytailmore"
    assert file.read_at(0, 20) == b"headBODYtailmore" + bytes(4)  # as the library sees it
    order: list[bytes] = []
    as_it_is = file._put

    def noted(at: int, view: memoryview) -> None:
        order.append(bytes(view))
        as_it_is(at, view)

    file._put = noted  # type: ignore[method-assign]
    file.release()
    assert order == [b"head", b"BODY"]
    assert path.read_bytes() == b"headBODYtailmore"
    put(file, 8, b"TAIL")
    assert path.read_bytes() == b"headBODYTAILmore"
    file.close()


def test_gap_that_was_never_written_is_new(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = GuardedFile(path)
    put(file, 8, b"end")
    file.hold()
    put(file, 2, b"gap")
    assert path.read_bytes() == b"\0\0gap\0\0\0end"
    put(file, 4, b"xy")  # over a byte that is there by now
    assert path.read_bytes() == b"\0\0gap\0\0\0end"
    file.release()
    assert path.read_bytes() == b"\0\0gaxy\0\0end"
    file.close()


def test_file_gets_shorter_only_with_its_new_head(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = GuardedFile(path)
    put(file, 0, b"HEADbodytail")
    file.hold()
    file.truncate(8)
    assert path.stat().st_size == 12
    assert file.seek(0, 2) == 8
    file.truncate(16)
    assert path.stat().st_size == 16
    file.truncate(8)
    file.release()
    assert path.read_bytes() == b"HEADbody"
    file.close()


@pytest.mark.parametrize("seed", range(20))
def test_written_places_are_those_of_a_map_of_bytes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    file = GuardedFile(tmp_path / "x")
    known = np.zeros(200, bool)
    for _ in range(60):
        first = int(rng.integers(190))
        last = first + int(rng.integers(1, 10))
        assert file._was_written(first, last) == known[first:last].any()
        put(file, first, bytes(last - first))
        known[first:last] = True
    file.close()
