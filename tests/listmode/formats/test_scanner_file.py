"""Scanners from TOML."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats.scanner_file import list_presets, load_scanner
from tests.strategies import small_scanner

VISION = (resources.files("listmode") / "presets" / "vision600.toml").read_text("utf-8")


def _load(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    load_scanner(tmp_path / "mine.toml")


def test_file_gives_the_same_scanner_as_its_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(VISION)
    assert load_scanner(tmp_path / "mine.toml").digest == load_scanner("vision600").digest


def test_presets_are_the_promised_ones() -> None:
    assert list_presets() == ["mmr", "pennpet", "quadra", "uexplorer", "vision600"]


def test_name_may_carry_the_mode() -> None:
    assert load_scanner("quadra-HS").digest == load_scanner("quadra", "HS").digest
    assert load_scanner("quadra").mode == "UHS"


def test_profiles_of_a_file_reach_the_crystals(tmp_path: Path) -> None:
    text = VISION.partition("[profile]")[0] + "[profile]\ntransaxial = [" + "0.5, " * 20 + "]\n"
    (tmp_path / "mine.toml").write_text(text)
    assert load_scanner(tmp_path / "mine.toml").crystal_profile.max() == 0.5


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a preset .* or a TOML file"):
        load_scanner(tmp_path / "no.toml")


def test_broken_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scanner file 'mine\.toml' must be TOML"):
        _load(tmp_path, "name = ")


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have the key 'fov_radius_mm'"):
        _load(tmp_path, VISION.replace("fov_radius_mm", "radius"))


def test_value_of_a_wrong_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a value of the wrong kind"):
        _load(tmp_path, VISION.replace("doi_mm = ", "doi_mm = [] # "))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_blocks = 38", 'n_blocks = "many"', "must have n_blocks of at least 3, but it has"),
        ("n_blocks = 38", "n_blocks = 3000000", "must have at most 4000000 crystals"),
        ("n_blocks = 38", "n_blocks = " + "9" * 5000, "must be TOML, but it is not"),
        ("fov_radius_mm = ", "fov_radius_mm = nan # ", "fov_radius_mm must be a size that"),
        ("window_kev = [435.0", "window_kev = [inf", "energy_window_kev must be a size that"),
        ("front_radius_mm = ", "front_radius_mm = nan # ", "must have a positive radius"),
        ("n_bins = ", "n_bins = 40000 # ", "at least one bin, a positive bin width"),
    ],
)
def test_numbers_that_no_scanner_has_are_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in VISION
    with pytest.raises(InputError, match=message):
        _load(tmp_path, VISION.replace(old, new))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scanner.toml").write_bytes(b"name = \xff\xfe")
    with pytest.raises(InputError, match=r"must be a readable text, but 'scanner\.toml'"):
        load_scanner(tmp_path / "scanner.toml")
    (tmp_path / "scanner.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="has more than 1048576 bytes"):
        load_scanner(tmp_path / "scanner.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_rings": 3}, "index slots must lie within 0 and n_rings"),
        (
            {"crystal_position_mm": np.full((144, 3), 1e30)},
            "crystals must lie within 100000 mm",
        ),
    ],
)
def test_crystals_outside_their_tables_are_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        replace(small_scanner(), **change)  # type: ignore[arg-type]


def test_unknown_key_of_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wrong kind: .*n_blokcs"):
        _load(tmp_path, VISION.replace("n_blocks = 38", "n_blokcs = 38"))


def test_size_of_two_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sizes need 3 numbers, but there are 2"):
        _load(tmp_path, VISION.replace("size_mm = [3.2, 3.2, 20.0]", "size_mm = [3.2, 3.2]"))
