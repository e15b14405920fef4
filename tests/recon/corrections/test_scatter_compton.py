"""Compton kinematics and the energy window, against published and computed numbers."""

from __future__ import annotations

import numpy as np
import pytest

from recon.corrections import compton

WINDOW_KEV = (435.0, 585.0)


def test_the_density_integrates_to_one_over_all_directions() -> None:
    cos = np.linspace(-1, 1, 20_001)
    total = 2 * np.pi * np.trapezoid(compton.scattering_density(cos), cos)
    assert total == pytest.approx(1.0, abs=1e-7)


def test_a_right_angle_halves_the_energy() -> None:
    assert compton.scattered_energy_kev(np.zeros(1))[0] == pytest.approx(255.5, abs=0.01)


def test_the_lower_window_edge_is_reached_at_34_degrees() -> None:
    energy = compton.scattered_energy_kev(np.cos(np.radians(np.array([34.3, 34.5]))))
    assert energy[0] > 435.0 > energy[1]


@pytest.mark.reference
def test_the_total_cross_section_is_klein_and_nishinas() -> None:
    """0.2866 barn an electron at 511 keV (NIST XCOM, incoherent), r² 79.41 mb."""
    assert float(compton.klein_nishina_total(1.0)) * 0.07941 == pytest.approx(0.2866, rel=2e-3)
    thomson = 8 * np.pi / 3
    assert float(compton.klein_nishina_total(1e-3)) == pytest.approx(thomson, rel=3e-3)


def test_the_density_and_the_total_belong_together() -> None:
    """The unnormalised density integrates to the total cross-section."""
    cos = np.linspace(-1, 1, 20_001)
    p = 1 / (2 - cos)
    differential = 0.5 * p**2 * (p + 1 / p - (1 - cos**2))
    total = 2 * np.pi * np.trapezoid(differential, cos)
    assert total == pytest.approx(float(compton.klein_nishina_total(1.0)), rel=1e-6)


@pytest.mark.reference
def test_a_quarter_of_once_scattered_photons_stays_in_the_window() -> None:
    """Computed independently for 435-585 keV at 10 %: 23.7 %, mean angle 22 degrees."""
    cos = np.linspace(-1, 1, 20_001)
    density = compton.scattering_density(cos)
    accepted = density * compton.window_acceptance(
        compton.scattered_energy_kev(cos), WINDOW_KEV, 0.10
    )
    assert accepted.sum() / density.sum() == pytest.approx(0.237, abs=0.001)
    angle = np.degrees(np.arccos(cos))
    assert (accepted * angle).sum() / accepted.sum() == pytest.approx(22.0, abs=0.4)


def test_an_unscattered_photon_stays_in_the_window() -> None:
    accepted = compton.window_acceptance(np.array([511.0]), WINDOW_KEV, 0.10)
    assert accepted[0] == pytest.approx(0.9994, abs=2e-4)


def test_scattered_photons_are_attenuated_more() -> None:
    ratio = compton.attenuation_ratio(np.array([1.0, 0.9, 0.5, -1.0]))
    assert ratio[0] == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(ratio) > 0).all()
