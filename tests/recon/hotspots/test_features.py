from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.windows import Windows
from recon.hotspots.features import (
    COLUMNS,
    PEAK_RADIUS_MM,
    HotspotTable,
    intensity_peaks,
    measure_hotspots,
)
from recon.hotspots.segment import FixedSuv, UserMask, find_hotspots
from recon.image import Grid, Unit, Volume
from recon.io.tables import load_hotspots, save_hotspots
from tests.recon.hotspots import ibsi


def volume_of(values: Any, unit: Unit = "SUV", **provenance: Any) -> Volume:
    values = np.asarray(values, np.float32)
    return Volume(values, Grid.centred(values.shape, 3.0), unit, provenance)


def measured(volume: Volume, suv: float = 4.0, **options: Any) -> HotspotTable:
    found = find_hotspots(volume, threshold=FixedSuv(suv), min_volume_ml=0.0, saddle_ratio=0.0)
    return measure_hotspots(volume, found, **options)


def ball(centre: tuple[int, int, int] = (8, 9, 10)) -> Volume:
    values = np.ones((20, 20, 20), np.float32)
    i, j, k = centre
    values[i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3] = 6.0
    values[i, j, k] = 9.0
    return volume_of(values)


@pytest.mark.reference
def test_reproduces_the_ibsi_digital_phantom() -> None:
    """IBSI reference manual, sections 3.1-3.3 (10.48550/arXiv.1612.07003), digital phantom."""
    volume = ibsi.phantom()
    found = find_hotspots(volume, threshold=UserMask(ibsi.region()), min_volume_ml=0.0)
    row = measure_hotspots(volume, found).rows[0]
    assert row.n_voxels == 74
    assert row.suv_peak == pytest.approx(2.6, abs=0.05)
    assert row.suv_peak_global == pytest.approx(3.1, abs=0.05)
    assert row.suv_mean == pytest.approx(2.15, abs=0.005)
    assert row.suv_sd**2 == pytest.approx(3.05, abs=0.005)
    assert row.suv_max == 6.0
    assert row.skewness == pytest.approx(1.08, abs=0.005)
    assert row.kurtosis == pytest.approx(-0.355, abs=0.0005)
    assert row.volume_ml * 1000.0 == pytest.approx(592.0, abs=4.0)
    assert row.mesh_volume_ml * 1000.0 == pytest.approx(556.0, abs=4.0)
    assert row.surface_mm2 == pytest.approx(388.0, abs=3.0)
    assert row.sphericity == pytest.approx(0.843, abs=0.005)
    assert row.max_diameter_mm == pytest.approx(13.1, abs=0.1)
    assert row.com_shift_mm == pytest.approx(0.672, abs=0.004)
    assert row.suv_mean * row.mesh_volume_ml * 1000.0 == pytest.approx(1.20e3, abs=20.0)


@given(st.integers(0, 10**6), st.tuples(*[st.floats(1.0, 5.0)] * 3))
@example(0, (1.0, 1.0, 3.1))
@settings(max_examples=25, deadline=None)
def test_peak_agrees_with_the_obvious_slow_one(
    seed: int, voxel: tuple[float, float, float]
) -> None:
    values = np.random.default_rng(seed).random((7, 6, 8), np.float32)
    volume = Volume(values, Grid.centred((7, 6, 8), voxel), "SUV")
    index = np.argwhere(values > 0.9).astype(np.int64)
    everywhere = np.argwhere(values >= 0.0)
    means = []
    for at in index:
        # From whole numbers of voxels: differences of positions would put a centre that lies
        # exactly on the sphere (2 voxels of 3.1 mm) now inside, now outside.
        away_mm = (everywhere - at) * np.array(voxel)
        near = (away_mm**2).sum(axis=1) <= PEAK_RADIUS_MM**2 * (1.0 + 1e-12)
        means.append(values.ravel()[near].mean(dtype=np.float64))
    hottest = int(np.argmax(values[tuple(index.T)]))
    assert intensity_peaks(volume, index) == pytest.approx((means[hottest], max(means)))


def test_peak_takes_the_better_of_two_equally_hot_voxels() -> None:
    values = np.zeros((15, 5, 5), np.float32)
    values[3, 2, 2] = values[11, 2, 2] = 5.0
    values[11, 3, 2] = 4.0
    volume = volume_of(values)
    local, overall = intensity_peaks(volume, np.argwhere(values == 5.0).astype(np.int64))
    assert local == overall
    n_inside = sum(
        (9 * (i * i + j * j + k * k)) <= PEAK_RADIUS_MM**2
        for i in range(-2, 3)
        for j in range(-2, 3)
        for k in range(-2, 3)
    )
    assert local == pytest.approx(9.0 / n_inside)


def test_position_is_in_the_scanner_frame_and_in_ras() -> None:
    volume = ball((8, 9, 10))
    row = measured(volume).rows[0]
    x, y, z = volume.grid.point_mm([8, 9, 10])
    assert (row.x_mm, row.y_mm, row.z_mm) == pytest.approx((x, y, z))
    assert (row.peak_x_mm, row.peak_y_mm, row.peak_z_mm) == pytest.approx((x, y, z))
    assert (row.ras_x_mm, row.ras_y_mm) == pytest.approx((-x, -y))


def test_numbers_of_a_cube_by_hand() -> None:
    row = measured(ball()).rows[0]
    assert (row.suv_max, row.n_voxels) == (9.0, 125)
    assert row.volume_ml == pytest.approx(125 * 0.027)
    assert row.suv_mean == pytest.approx((124 * 6 + 9) / 125)
    assert row.tlg_g == pytest.approx(row.suv_mean * row.volume_ml)
    assert not row.is_at_edge


def test_a_hotspot_cut_by_the_edge_says_so() -> None:
    values = np.ones((8, 8, 8), np.float32)
    values[0, 3:5, 3:5] = 6.0
    assert measured(volume_of(values)).rows[0].is_at_edge


def test_activity_and_suv_go_together() -> None:
    factor = 2.5e-4
    suv = ball()
    activity = Volume((suv.values / factor).astype(np.float32), suv.grid, "Bq/mL")
    found = find_hotspots(suv, threshold=FixedSuv(4.0))
    a = measure_hotspots(suv, found, suv_per_bq_ml=factor).rows[0]
    b = measure_hotspots(activity, found, suv_per_bq_ml=factor).rows[0]
    for name in ("suv_max", "suv_peak", "suv_mean", "max_bq_ml", "peak_bq_ml", "tlg_g"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-6)
    unknown = measure_hotspots(activity, found).rows[0]
    assert np.isnan(unknown.suv_max)
    assert unknown.max_bq_ml == pytest.approx(36_000.0)


def test_same_voxels_measured_in_another_image() -> None:
    still, full = ball(), ball()
    blurred = Volume(full.values * np.float32(0.5), full.grid, "SUV")
    found = find_hotspots(still, threshold=FixedSuv(4.0))
    row = measure_hotspots(blurred, found).rows[0]
    assert (row.suv_max, row.n_voxels) == (4.5, 125)


@pytest.mark.parametrize(
    ("windows", "warns"), [("0-120", True), ("0-300,600-900", True), ("0-1200", False)]
)
def test_says_that_few_minutes_make_suv_max_noisy(windows: str, warns: bool) -> None:
    given_windows = measured(ball(), windows=Windows.parse(windows))
    pairs = [[a, b] for a, b in Windows.parse(windows)]
    from_file = measured(volume_of(ball().values, windows_ms=pairs))
    for table in (given_windows, from_file):
        assert any("SUVmax comes from" in note for note in table.notes) is warns
        assert table.rows[0].duration_s == Windows.parse(windows).duration_s


def test_left_out_candidates_are_told() -> None:
    found = find_hotspots(ball(), threshold=FixedSuv(4.0), min_volume_ml=50.0)
    table = measure_hotspots(ball(), found)
    assert len(table) == 0
    assert table.notes == ("1 candidates left out: smaller than the least volume",)


def test_distances_between_hotspots() -> None:
    values = np.zeros((30, 5, 5), np.float32)
    values[[2, 6, 20], 2, 2] = 9.0, 8.0, 7.0
    table = measured(volume_of(values))
    assert table.column("nearest_mm") == pytest.approx([12.0, 12.0, 42.0])
    assert table.dissemination_mm == pytest.approx(54.0)
    alone = measured(ball())
    assert np.isnan(alone.rows[0].nearest_mm)
    assert np.isnan(alone.dissemination_mm)


def test_equal_values_have_no_skewness() -> None:
    values = np.zeros((8, 8, 8), np.float32)
    values[2:5, 2:5, 2:5] = 5.1
    row = measured(volume_of(values)).rows[0]
    assert (row.skewness, row.kurtosis) == (0.0, 0.0)


def test_table_comes_back_from_its_file(tmp_path: Path) -> None:
    values = ball().values.copy()
    values[2:4, 2:4, 2:4] = 5.0
    table = measured(volume_of(values))
    save_hotspots(tmp_path / "hotspots.csv", table)
    loaded = load_hotspots(tmp_path / "hotspots.csv")
    assert loaded.to_csv() == table.to_csv()
    assert [row.id for row in loaded] == [1, 2]
    assert loaded.column("suv_max").tolist() == [9.0, 5.0]
    assert np.isnan(loaded.rows[0].max_bq_ml)


def test_uncertainty_of_suv_max_is_empty_until_it_is_given(tmp_path: Path) -> None:
    table = measured(ball())
    assert np.isnan(table.column("suv_max_se")).all()
    known = table.with_uncertainty([0.3], [8.5], [9.6])
    save_hotspots(tmp_path / "hotspots.csv", known)
    row = load_hotspots(tmp_path / "hotspots.csv").rows[0]
    assert (row.suv_max_se, row.suv_max_low, row.suv_max_high) == (0.3, 8.5, 9.6)
    assert row.suv_max == table.rows[0].suv_max


def test_refuses_uncertainty_of_other_hotspots() -> None:
    with pytest.raises(InputError, match=r"each hotspot \(1\) needs one standard error"):
        measured(ball()).with_uncertainty([0.1, 0.2], [1.0, 1.0], [2.0, 2.0])


def test_physiological_rows_can_be_left_out() -> None:
    labels = Volume(np.full((20, 20, 20), 3, np.int32), ball().grid, "label")
    found = find_hotspots(
        ball(), threshold=FixedSuv(4.0), labels=labels, label_names={3: "liver"}
    )
    table = measure_hotspots(ball(), found)
    assert (table.rows[0].label, table.rows[0].is_physiological) == ("liver", True)
    assert len(table.without_physiological()) == 0


def test_refuses_a_table_of_other_columns() -> None:
    text = measured(ball()).to_csv().replace("suv_max", "suvmax", 1)
    with pytest.raises(InputError, match="lacks suv_max and has suvmax more"):
        HotspotTable.from_csv(text)


@pytest.mark.parametrize(
    ("column", "cell", "found"),
    [
        ("suv_max", "hot", "line 2: suv_max must hold a float, but it holds 'hot'"),
        ("id", "", "line 2: id must hold a int"),
        ("is_physiological", "yes", "line 2: is_physiological must hold a bool"),
    ],
)
def test_refuses_a_cell_of_another_kind(column: str, cell: str, found: str) -> None:
    header, line = measured(ball()).to_csv().splitlines()
    cells = line.split(",")
    cells[COLUMNS.index(column)] = cell
    with pytest.raises(InputError, match=found):
        HotspotTable.from_csv("\n".join((header, ",".join(cells))) + "\n")


def test_refuses_another_grid_and_another_unit() -> None:
    found = find_hotspots(ball(), threshold=FixedSuv(4.0))
    with pytest.raises(InputError, match="must lie on the volume's grid"):
        measure_hotspots(volume_of(np.ones((5, 5, 5))), found)
    with pytest.raises(InputError, match="measured in SUV or Bq/mL"):
        measure_hotspots(Volume(ball().values, ball().grid, "1/cm"), found)
