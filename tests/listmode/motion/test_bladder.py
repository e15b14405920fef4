from __future__ import annotations

import numpy as np
import pytest

from listmode.formats.scanner_file import load_scanner
from listmode.histogram import accumulate
from listmode.memory import MemoryListmode
from listmode.motion.bladder import BladderSettings, locate_bladder
from listmode.motion.template import (
    BlurredEllipsoid,
    blur_covariance,
    build_template,
    draw_ellipsoid,
    fit_ellipsoid,
)
from listmode.scanner import Scanner
from listmode.source import ScanProtocol
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("volume_ml", "bladder_hz"), [(60.0, 300.0), (148.0, 1600.0), (290.0, 900.0)]
)
def test_finds_bladders_of_any_size(
    quadra: Scanner, volume_ml: float, bladder_hz: float
) -> None:
    scan = MadeUpScan(duration_s=30.0, volume_ml=volume_ml, bladder_hz=bladder_hz, seed=3)
    search = locate_bladder(accumulate(make_listmode(quadra, scan)))
    assert search.best is not None
    assert np.abs(np.subtract(search.best.centre_mm, scan.centre_mm)).max() < 2.0
    assert search.best.volume_ml == pytest.approx(volume_ml, rel=0.2)
    assert 1 <= len(search.candidates) <= 3
    assert search.candidates[0] is search.best


def test_says_no_bladder_instead_of_guessing(quadra: Scanner) -> None:
    faint = MadeUpScan(duration_s=30.0, bladder_hz=30.0, seed=4)
    search = locate_bladder(accumulate(make_listmode(quadra, faint)))
    assert search.best is None
    assert search.note.startswith("no bladder")
    assert search.to_dict()["found"] is False


def test_a_blob_off_the_midline_is_no_bladder(quadra: Scanner) -> None:
    tumour = MadeUpScan(
        duration_s=30.0,
        bladder_hz=0.0,
        blobs=(((75.0, 20.0, -320.0), 25.0, 600.0),),
        seed=5,
    )
    rules = BladderSettings(midline_mm=50.0)
    search = locate_bladder(accumulate(make_listmode(quadra, tumour)), rules)
    assert search.best is None


def test_an_empty_scan_and_one_without_tof_have_no_bladder(quadra: Scanner) -> None:
    empty = MadeUpScan(duration_s=1.0, bladder_hz=0.0, background_hz=0.0)
    search = locate_bladder(accumulate(make_listmode(quadra, empty)))
    assert search.note == "no bladder: the scan holds no events"
    mmr = load_scanner("mmr")
    nothing = MemoryListmode(
        mmr, ScanProtocol(), make_listmode(quadra, empty).prompts, np.zeros(11, np.int64)
    )
    assert "without TOF" in locate_bladder(accumulate(nothing)).note


def test_a_drawn_ellipsoid_has_its_volume_and_place() -> None:
    axes = tuple(np.arange(-60.0, 60.1, 3.0) for _ in range(3))
    semi, centre = np.array([38.0, 30.0, 31.0]), np.array([1.3, -2.1, 0.7])
    drawn = draw_ellipsoid(semi, centre, (axes[0], axes[1], axes[2]))
    assert drawn.sum() * 27.0 == pytest.approx(4.0 / 3.0 * np.pi * semi.prod(), rel=0.01)
    mean = [(drawn.sum(axis=tuple({0, 1, 2} - {i})) @ axes[i]) / drawn.sum() for i in range(3)]
    assert np.abs(mean - centre).max() < 0.05


def test_the_fit_recovers_an_ellipsoid_from_counts() -> None:
    rng = np.random.default_rng(6)
    axes = tuple(np.arange(-80.0, 80.1, 4.0) for _ in range(3))
    covariance = blur_covariance(15.8)
    model = BlurredEllipsoid((axes[0], axes[1], axes[2]), covariance, np.full(24, 1 / 24))
    semi, centre = np.array([38.0, 30.0, 31.0]), np.array([2.0, -1.0, 3.0])
    counts = rng.poisson(60.0 * model.draw(semi, centre) + 5.0).astype(float)
    fit = fit_ellipsoid(
        counts, model, semi_axis_mm=np.array([30.0, 35.0, 28.0]), centre_mm=np.zeros(3)
    )
    assert np.abs(fit.semi_axis_mm - semi).max() < 0.7
    assert np.abs(fit.centre_mm - centre).max() < 0.4
    assert fit.contrast == pytest.approx(12.0, rel=0.1)
    assert fit.chi2 == pytest.approx(1.0, abs=0.1)


def test_counts_that_slope_do_not_move_the_fitted_centre() -> None:
    """Noise-free; 0.4 % a mm along z, as at the scanner's end: left out, it errs by 0.7 mm."""
    x, y, z = (np.arange(-80.0, 80.1, 4.0) for _ in range(3))
    model = BlurredEllipsoid((x, y, z), blur_covariance(15.8), np.full(24, 1 / 24))
    semi, centre, origin = np.array([38.0, 30.0, 31.0]), np.array([2.0, -1.0, 3.0]), np.zeros(3)
    counts = (60.0 * model.draw(semi, centre) + 5.0) * (1.0 + 0.004 * (z - centre[2]))
    plain = fit_ellipsoid(counts, model, semi_axis_mm=semi, centre_mm=origin)
    level = fit_ellipsoid(counts, model, semi_axis_mm=semi, centre_mm=origin, has_tilt=True)
    assert abs(plain.centre_mm[2] - 3.0) > 0.5
    assert np.abs(level.centre_mm - centre).max() < 0.02
    assert level.tilt_per_mm == pytest.approx((0.0, 0.0, 0.004), abs=1e-4)


def test_the_template_gradient_is_minus_that_of_its_log_density() -> None:
    template = build_template(np.array([38.0, 30.0, 31.0]), 10.0, blur_covariance(15.8))
    for axis in range(3):
        slope = np.gradient(template.table[..., 0], template.voxel_mm, axis=axis + 1)
        assert np.abs(slope + template.table[..., axis + 1]).max() < 1e-5
    assert template.table[:, 0, 0, 0, 0].max() < 0.05  # the background, far out
    assert not template.outside.any()
