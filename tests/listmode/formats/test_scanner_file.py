"""Scanners from TOML."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from listmode.errors import InputError
from listmode.formats.scanner_file import list_presets, load_scanner

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
        _load(tmp_path, VISION.replace("n_blocks = 38", 'n_blocks = "many"'))


def test_unknown_key_of_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wrong kind: .*n_blokcs"):
        _load(tmp_path, VISION.replace("n_blocks = 38", "n_blokcs = 38"))


def test_size_of_two_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sizes need 3 numbers, but there are 2"):
        _load(tmp_path, VISION.replace("size_mm = [3.2, 3.2, 20.0]", "size_mm = [3.2, 3.2]"))
