from __future__ import annotations

from pathlib import Path

import pytest

from listmode.errors import InputError
from recon.settings import (
    GridSettings,
    HotspotSettings,
    ReportSettings,
    Settings,
    from_table,
    load_settings,
)


def _write(folder: Path, text: str) -> Path:
    path = folder / "stillpet.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    settings = load_settings(
        _write(tmp_path, "[grid]\nvoxel_mm = 4\n[osem]\nn_iterations = 2\n")
    )
    assert settings.grid.voxel_mm == 4.0
    assert settings.osem.n_iterations == 2
    assert settings.osem.n_subsets == Settings().osem.n_subsets
    assert settings.hotspots == HotspotSettings()


def test_no_file_means_the_defaults() -> None:
    assert load_settings(None) == Settings()


def test_an_unknown_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'gird' is none of them; did you mean 'grid'"):
        load_settings(_write(tmp_path, "[gird]\nvoxel_mm = 4\n"))


def test_an_unknown_key_is_refused_by_name_and_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of \[osem\].*'iterations' is none of them"):
        load_settings(_write(tmp_path, "[osem]\niterations = 2\n"))


def test_a_key_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(InputError, match="'zzz' is none of them; remove it"):
        from_table(GridSettings, {"zzz": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[grid]\nvoxel_mm = "four"\n', "grid.voxel_mm must be a number, but it is 'four'"),
        ("[osem]\nn_subsets = 2.5\n", "osem.n_subsets must be a whole number, but it is 2.5"),
        ("[osem]\nn_subsets = true\n", "osem.n_subsets must be a whole number"),
        ("[corrections]\nscatter = 1\n", "corrections.scatter must be true or false"),
        ('[hotspots]\nrule = "best"\n', "hotspots.rule must be one of 'fraction', 'suv'"),
        ('[grid]\nradius_mm = "all"\n', "grid.radius_mm must be a number, but it is 'all'"),
        ("grid = 3\n", "grid must be"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_settings(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"voxel_mm": 0.0}, "grid.voxel_mm must lie in 0.5-50, but it is 0"),
        ({"radius_mm": -1.0}, "grid.radius_mm must lie in"),
        ({"length_mm": float("nan")}, "grid.length_mm must lie in"),
    ],
)
def test_a_grid_out_of_range_is_refused(table: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_table(GridSettings, table)


def test_a_fraction_above_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"hotspots.threshold must lie in"):
        HotspotSettings(rule="fraction", threshold=4.0)
    assert HotspotSettings(rule="suv", threshold=4.0).threshold == 4.0


def test_a_grey_scale_needs_a_positive_end() -> None:
    with pytest.raises(InputError, match=r"report.suv_max must lie in"):
        ReportSettings(suv_max=0.0)


def test_broken_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be TOML, but 'stillpet.toml' is not.*line 1"):
        load_settings(_write(tmp_path, "[grid\n"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be readable text, but 'none.toml' is not"):
        load_settings(tmp_path / "none.toml")


def test_settings_are_json_values() -> None:
    content = Settings().to_dict()
    assert content["grid"]["voxel_mm"] == 3.3
    assert set(content) >= {"grid", "osem", "motion", "corrections", "hotspots", "report"}
