"""SUV by weight, lean body mass and surface, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.source import ScanProtocol
from recon.image import Grid, Volume
from recon.io.nifti import save_volume
from recon.pipeline.measure import find_in_file
from recon.settings import HotspotSettings
from recon.suv import (
    SUV_KINDS,
    SuvBy,
    body_surface_m2,
    james_lean_body_mass_kg,
    lean_body_mass_kg,
    mosteller_surface_m2,
    suv_factor,
    suv_factors,
)

KNOWN = ScanProtocol(
    injected_activity_bq=200e6,
    injection_time_s=-6586.2,  # one half-life: 100 MBq at tick zero
    patient_weight_kg=80.0,
    patient_height_m=1.70,
    patient_sex="F",
)


@pytest.mark.parametrize(
    ("by", "factor"),
    [
        ("weight", 80_000 / 100e6),
        # BMI 27.6817; 9270 * 80 / (8780 + 244 * 27.6817) = 741600 / 15534.33 = 47.7394 kg
        ("lean", 47_739.4 / 100e6),
        # 1.07 * 80 - 148 * (80 / 170)**2 = 85.6 - 32.7751 = 52.8249 kg
        ("lean-james", 52_824.9 / 100e6),
        # 0.007184 * 80**0.425 * 170**0.725 = 0.007184 * 6.43904 * 41.40757 = 1.91545 m²
        ("surface", 19_154.5 / 100e6),
    ],
)
def test_the_factor_shares_the_activity_at_tick_zero_over_the_body(
    by: SuvBy, factor: float
) -> None:
    assert suv_factor(KNOWN, by) == pytest.approx(factor, rel=2e-4)


def test_both_surfaces_agree_for_a_common_body() -> None:
    # sqrt(170 * 80 / 3600) = 1.94365
    assert mosteller_surface_m2(80.0, 1.7) == pytest.approx(1.94365, rel=1e-5)
    for weight, height in ((50.0, 1.6), (70.0, 1.75), (100.0, 1.85)):
        ratio = mosteller_surface_m2(weight, height) / body_surface_m2(weight, height)
        assert abs(ratio - 1) < 0.04


@pytest.mark.parametrize("sex", ["F", "M"])
def test_lean_mass_grows_with_weight_where_james_falls(sex: str) -> None:
    weights = np.arange(40.0, 200.0, 5.0)
    lean = [lean_body_mass_kg(w, 1.6, sex) for w in weights]  # type: ignore[arg-type]
    james = [james_lean_body_mass_kg(w, 1.6, sex) for w in weights]  # type: ignore[arg-type]
    assert (np.diff(lean) > 0).all()
    assert (np.array(lean) < weights).all()
    assert (np.diff(james) < 0).any()


def test_a_factor_needs_its_facts() -> None:
    no_height = ScanProtocol(
        injected_activity_bq=1e8, injection_time_s=0.0, patient_weight_kg=70.0
    )
    assert suv_factor(ScanProtocol(), "lean") is None
    assert suv_factor(no_height) == pytest.approx(7e-4)
    assert suv_factor(no_height, "lean") is None
    assert suv_factor(no_height, "surface") is None
    assert suv_factors(no_height) == {"weight": suv_factor(no_height)}
    assert set(suv_factors(KNOWN)) == set(SUV_KINDS)


def test_impossible_bodies_and_kinds_are_refused() -> None:
    in_cm = ScanProtocol(
        injected_activity_bq=1e8, injection_time_s=0.0, patient_weight_kg=70.0,
        patient_height_m=170.0, patient_sex="M",
    )  # fmt: skip
    heavy = ScanProtocol(
        injected_activity_bq=1e8, injection_time_s=0.0, patient_weight_kg=300.0,
        patient_height_m=1.5, patient_sex="F",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"height must lie in 0.3-2.5 m, but it is 170 m"):
        suv_factor(in_cm, "surface")
    with pytest.raises(InputError, match="lean body mass must be positive"):
        suv_factor(heavy, "lean-james")
    with pytest.raises(
        InputError, match="SUV goes by one of weight, lean, lean-james, surface"
    ):
        suv_factor(KNOWN, "length")  # type: ignore[arg-type]
    assert suv_factors(in_cm) == {"weight": suv_factor(in_cm)}


def test_hotspots_of_a_file_go_by_the_kind_of_the_settings(tmp_path: Path) -> None:
    grid = Grid.centred((12, 12, 12), 4.0)
    values = np.ones(grid.shape, np.float32)
    values[5:8, 5:8, 5:8] = 20_000.0
    about = {"suv_per_bq_ml": 5e-4, "suv_per_bq_ml_by": {"weight": 5e-4, "lean": 4e-4}}
    path = tmp_path / "image.nii.gz"
    save_volume(path, Volume(values, grid, "Bq/mL", about))
    by_weight = find_in_file(path)
    by_lean = find_in_file(path, settings=HotspotSettings(suv_by="lean"))
    assert by_weight.rows[0].suv_max == pytest.approx(10.0)
    assert by_lean.rows[0].suv_max == pytest.approx(8.0)
    with pytest.raises(
        InputError, match=r"factor of SUV by body surface .* holds weight, lean"
    ):
        find_in_file(path, settings=HotspotSettings(suv_by="surface"))
