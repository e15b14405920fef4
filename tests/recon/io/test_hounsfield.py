from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.io.hounsfield import CARNEY_2006, spectrum_of

voltages = st.sampled_from(sorted(CARNEY_2006)) | st.floats(70.0, 150.0)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kvp", "hu", "mu_per_cm"),
    [
        (80.0, 1000.0, 3.64e-5 * 2000 + 6.26e-2),
        (100.0, 1000.0, 4.43e-5 * 2000 + 5.44e-2),
        (110.0, 1000.0, 4.92e-5 * 2000 + 4.88e-2),
        (120.0, 1000.0, 5.10e-5 * 2000 + 4.71e-2),
        (130.0, 1000.0, 5.51e-5 * 2000 + 4.24e-2),
        (140.0, 1000.0, 5.64e-5 * 2000 + 4.08e-2),
        (120.0, 0.0, 0.096),
        (140.0, -700.0, 0.3 * 0.096),
        (100.0, -1000.0, 0.0),
    ],
)
def test_values_are_those_of_carney(kvp: float, hu: float, mu_per_cm: float) -> None:
    """Carney et al., Med Phys 2006;33:976-983, doi 10.1118/1.2174132."""
    spectrum, warnings = spectrum_of(kvp)
    assert spectrum.mu_per_cm(hu) == pytest.approx(mu_per_cm, rel=1e-6)
    assert warnings == ()


@pytest.mark.reference
def test_cortical_bone_is_what_tissue_tables_say() -> None:
    """ICRU-44 cortical bone, about 1550 HU at 120 kV: 0.172 1/cm (PMC3572388, table 2)."""
    assert spectrum_of(120.0)[0].mu_per_cm(1550.0) == pytest.approx(0.172, abs=0.01)


@given(voltages)
def test_the_two_lines_meet_and_never_fall(kvp: float) -> None:
    """The table's own rounding leaves 2e-4 1/cm at the break."""
    spectrum, _ = spectrum_of(kvp)
    mu = spectrum.mu_per_cm(np.linspace(-1100.0, 3071.0, 4173))
    assert np.diff(mu).min() > -2e-4
    at = spectrum.break_hu
    below, above = spectrum.mu_per_cm([at - 1e-6, at + 1e-6])
    assert below == pytest.approx(above, abs=2e-4)
    assert mu.min() == 0.0


@given(voltages)
def test_bone_of_a_voltage_lies_between_its_neighbours(kvp: float) -> None:
    """The higher the voltage, the fewer HU bone has, and the more mu one HU means."""
    mu = spectrum_of(kvp)[0].mu_per_cm(1200.0)
    bounds = [spectrum_of(v)[0].mu_per_cm(1200.0) for v in (80.0, 140.0)]
    assert min(bounds) - 1e-6 <= mu <= max(bounds) + 1e-6


def test_an_unknown_voltage_is_assumed_and_said() -> None:
    spectrum, warnings = spectrum_of(None)
    assert spectrum.kvp == 120.0
    assert "does not say its tube voltage: 120 kV is assumed" in warnings[0]


@pytest.mark.parametrize("kvp", [70.0, 90.0, 135.0, 150.0])
def test_a_voltage_outside_of_the_table_is_doubted(kvp: float) -> None:
    assert "is not in the table of tube voltages" in spectrum_of(kvp)[1][0]


def test_tin_is_doubted() -> None:
    assert "filtered by tin" in spectrum_of(100.0, is_tin_filtered=True)[1][0]
