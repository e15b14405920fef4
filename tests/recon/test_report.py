from __future__ import annotations

import functools
import io
import re

import numpy as np
import pytest
from matplotlib import image as mpl_image
from numpy.typing import NDArray

from recon.image import Grid, Volume
from recon.report import figures
from recon.report.html import Picture, Report, Section, Table, render_html
from recon.report.measures import axial_profile, coefficient_of_variation, measure_profile

GRID = Grid((40, 40, 60), (4.0, 4.0, 4.0), (-78.0, -78.0, -118.0))


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 55)  # what is tested does not hang on the resolution


def _pixels(png: bytes) -> NDArray[np.float32]:
    assert png.startswith(b"\x89PNG")
    return np.asarray(mpl_image.imread(io.BytesIO(png), format="png"))[..., :3]


def _with_spot(x: float, y: float, z: float, radius: float = 10.0) -> NDArray[np.float32]:
    gx, gy, gz = np.meshgrid(*(GRID.axis_mm(a) for a in range(3)), indexing="ij", sparse=True)
    inside = (gx - x) ** 2 + (gy - y) ** 2 + (gz - z) ** 2 < radius**2
    return np.where(inside, 5.0, 0.0).astype(np.float32)


def _centre(change: NDArray[np.bool_]) -> tuple[float, float]:
    """Middle of the changed pixels: column and row as fractions of the picture."""
    rows, columns = np.nonzero(change)
    return float(columns.mean() / change.shape[1]), float(rows.mean() / change.shape[0])


def _difference(a: bytes, b: bytes) -> NDArray[np.bool_]:
    return np.asarray(np.abs(_pixels(a) - _pixels(b)).max(axis=-1) > 0.3)


def _mips(values: NDArray[np.float32]) -> bytes:
    return figures.draw_mips([("image", values)], GRID, unit="SUV", scale_max=5.0)


@functools.cache
def _empty() -> bytes:
    return _mips(np.zeros(GRID.shape, np.float32))


def test_a_spot_at_the_left_back_head_is_right_and_up_in_both_projections() -> None:
    change = _difference(_mips(_with_spot(0, 0, 0)), _empty())
    width = change.shape[1]
    middle = [_centre(change[:, : width // 2]), _centre(change[:, width // 2 :])]
    moved = _difference(_mips(_with_spot(50, 40, 80)), _empty())
    coronal, sagittal = _centre(moved[:, : width // 2]), _centre(moved[:, width // 2 :])
    assert coronal[0] > middle[0][0] + 0.1  # the patient's left is on the right
    assert sagittal[0] > middle[1][0] + 0.1  # the back is on the right
    assert coronal[1] < middle[0][1] - 0.1  # the head is up
    assert sagittal[1] < middle[1][1] - 0.1


def test_axial_slices_have_the_front_on_top_and_the_left_on_the_right() -> None:
    def draw(values: NDArray[np.float32]) -> bytes:
        return figures.draw_fused(
            [("image", values)], None, GRID, [("place", (0.0, 0.0, 0.0))],
            unit="SUV", scale_max=5.0,
        )  # fmt: skip

    empty = draw(np.zeros(GRID.shape, np.float32))
    middle = _centre(_difference(draw(_with_spot(0, 0, 0)), empty))
    left_front = _centre(_difference(draw(_with_spot(50, -40, 0)), empty))
    assert left_front[0] > middle[0] + 0.1
    assert left_front[1] < middle[1] - 0.1


def test_projections_are_true_to_scale() -> None:
    change = _difference(_mips(_with_spot(0, 0, 0, radius=40)), _empty())
    half = change[:, : change.shape[1] // 2]
    rows, columns = np.nonzero(half)
    wide, tall = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert wide == pytest.approx(tall, rel=0.06)


def test_inverted_grey_shows_high_values_dark() -> None:
    hot = _pixels(_mips(np.full(GRID.shape, 5.0, np.float32)))
    cold = _pixels(_empty())
    row, columns = hot.shape[0] // 2 + 40, slice(hot.shape[1] // 5, hot.shape[1] // 4)
    assert hot[row, columns].mean() < 0.1
    assert cold[row, columns].mean() > 0.9


def test_the_body_box_holds_the_body_with_its_margin() -> None:
    mu = np.zeros(GRID.shape, np.float32)
    mu[15:25, 10:30, 5:50] = 0.096
    box = figures.body_box(mu, GRID, margin_mm=8.0)
    assert box == (slice(13, 27), slice(8, 32), slice(3, 52))
    assert figures.body_box(None, GRID) == tuple(slice(0, n) for n in GRID.shape)
    assert figures.body_box(np.zeros_like(mu), GRID) == tuple(slice(0, n) for n in GRID.shape)


def test_a_trace_without_any_position_can_still_be_drawn() -> None:
    time_s = np.arange(5.0)
    missing = np.full((5, 3), np.nan)
    png = figures.draw_trace(time_s, missing, np.full((5, 3), np.inf), [(0.0, 5.0)])
    assert _pixels(png).shape[0] > 100


def test_kept_windows_are_shaded() -> None:
    time_s = np.arange(100.0)
    still = np.zeros((100, 3))
    error = np.ones((100, 3))
    bare = _pixels(figures.draw_trace(time_s, still, error, []))
    png = figures.draw_trace(
        time_s, still, error, [(50.0, 99.0)],
        [figures.ChangeMark(50.0, (49.0, 51.0), "a shift")],
    )  # fmt: skip
    shade = np.array([0xD6, 0xE6, 0xD3]) / 255.0
    green = np.abs(_pixels(png) - shade).max(axis=-1) < 0.02
    assert np.nonzero(green.sum(axis=0) > 50)[0].mean() > bare.shape[1] * 0.6


def test_equal_figures_give_equal_bytes() -> None:
    assert _mips(_with_spot(0, 0, 0)) == _mips(_with_spot(0, 0, 0))


def test_a_closeup_shows_the_spot_in_all_its_views_and_nothing_beyond() -> None:
    def draw(values: NDArray[np.float32]) -> bytes:
        return figures.draw_closeup(
            [("image", values)], GRID, (10.0, 0.0, 20.0), unit="SUV", half_mm=40.0
        )

    change = _difference(draw(_with_spot(10, 0, 20)), draw(_with_spot(10, 0, 110, radius=5)))
    half = change.shape[1] // 2
    assert change[:, :half].any()
    assert change[:, half:].any()


def test_rates_and_profiles_are_drawn() -> None:
    x = np.linspace(0.0, 10.0, 20)
    assert _pixels(figures.draw_rates(x, [("prompts", x * 1000)])).shape[0] > 100
    png = figures.draw_profiles(x, [("full", x), ("still", x)], ylabel="SUV", title="profile")
    assert _pixels(png).shape[0] > 100


def _report() -> Report:
    picture = Picture(_mips(_with_spot(0, 0, 0)), "a spot", "One <spot>.")
    table = Table(["a", "b"], [["1 < 2", "3"]])
    section = Section("Images & more", ["A <b>text</b>."], [picture], [table], code='{"a": 1}')
    return Report("Still frames", "a scan", ["It moved."], ["A note."], [section])


def test_the_page_is_self_contained_and_says_what_it_is() -> None:
    page = render_html(_report())
    assert "For research. Not a medical device." in page
    assert "It moved." in page
    assert "A note." in page
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "@import" not in page
    assert "<script" not in page


def test_text_in_the_page_cannot_become_markup() -> None:
    page = render_html(_report())
    assert "A &lt;b&gt;text&lt;/b&gt;." in page
    assert "1 &lt; 2" in page
    assert "One &lt;spot&gt;." in page


# ---- measures


def _ellipsoid(half_z: float, shifts: tuple[float, ...] = (0.0,)) -> Volume:
    fine = Grid.centred((60, 60, 90), 2.0)
    x, y, z = np.meshgrid(*(fine.axis_mm(a) for a in range(3)), indexing="ij", sparse=True)
    values = np.full(fine.shape, 0.5)
    for shift in shifts:
        inside = (x / 25) ** 2 + (y / 25) ** 2 + ((z - shift) / half_z) ** 2 < 1
        values = values + np.where(inside, 9.5 / len(shifts), 0.0)
    return Volume(values.astype(np.float32), fine, "SUV")


def test_the_rms_width_of_an_ellipsoid_is_its_semi_axis_over_root_five() -> None:
    widths = measure_profile(*axial_profile(_ellipsoid(31.0), (0, 0, 0), radius_mm=40))
    assert widths is not None
    assert widths.rms_mm == pytest.approx(31.0 / np.sqrt(5.0), rel=0.01)
    assert widths.centre_mm == pytest.approx(0.0, abs=0.1)
    # 1 - (z/c)^2 = 0.2 and 0.8
    wall = 31.0 * (np.sqrt(0.8) - np.sqrt(0.2))
    assert widths.lower_edge_mm == pytest.approx(wall, rel=0.03)
    assert widths.upper_edge_mm == pytest.approx(wall, rel=0.03)


def test_a_shift_of_13_mm_widens_the_rms_width_as_the_variances_add() -> None:
    still = measure_profile(*axial_profile(_ellipsoid(31.0), (0, 0, 0), radius_mm=40))
    moved = measure_profile(
        *axial_profile(_ellipsoid(31.0, (-6.5, 6.5)), (0, 0, 0), radius_mm=40)
    )
    assert still is not None
    assert moved is not None
    expected = np.sqrt(31.0**2 / 5 + 6.5**2) / (31.0 / np.sqrt(5.0))
    assert moved.rms_mm / still.rms_mm == pytest.approx(expected, rel=0.01)


def test_nothing_above_the_background_has_no_width() -> None:
    z = np.arange(-40.0, 41.0)
    assert measure_profile(z, np.zeros_like(z)) is None
    assert measure_profile(z[:5], np.ones(5)) is None


def test_noise_is_measured_away_from_the_rim() -> None:
    rng = np.random.default_rng(5)
    values = np.full(GRID.shape, 2.0)
    values[:5] = 50.0  # a hot neighbour that must not count
    values += rng.normal(0.0, 0.2, GRID.shape)
    region = np.zeros(GRID.shape, bool)
    region[4:30, 5:35, 5:55] = True
    found = coefficient_of_variation(Volume(values.astype(np.float32), GRID, "SUV"), region)
    assert found is not None
    mean, variation, n = found
    assert mean == pytest.approx(2.0, rel=0.01)
    assert variation == pytest.approx(0.1, rel=0.05)
    assert n > 1000


def test_a_region_too_small_for_noise_gives_none() -> None:
    region = np.zeros(GRID.shape, bool)
    region[5, 5, 5] = True
    volume = Volume(np.ones(GRID.shape, np.float32), GRID, "SUV")
    assert coefficient_of_variation(volume, region) is None
