"""Compton scattering of annihilation photons and what the energy window makes of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from listmode.scanner import FWHM_PER_SIGMA

F64 = NDArray[np.float64]

REST_ENERGY_KEV = 510.99895  # electron; CODATA 2018, doi 10.1103/RevModPhys.93.025010


def scattered_energy_kev(cos_angle: F64) -> F64:
    """Give the energy of a once-scattered annihilation photon, keV.

    Parameters
    ----------
    cos_angle
        Cosine of the scattering angle.

    Notes
    -----
    Compton (1923), doi 10.1103/PhysRev.21.483: E' = E / (1 + E/mc² (1 - cos)), with E = mc².
    """
    return REST_ENERGY_KEV / (2.0 - np.asarray(cos_angle, dtype=np.float64))


def scattering_density(cos_angle: F64) -> F64:
    """Give the probability of a scattering angle per solid angle, 1/sr, at 511 keV.

    The Klein-Nishina differential cross-section divided by the total one, so that it
    integrates to one over all directions.

    Parameters
    ----------
    cos_angle
        Cosine of the scattering angle.

    Notes
    -----
    Klein and Nishina (1929), doi 10.1007/BF01366453, for an annihilation photon: with
    p = 1 / (2 - cos), d sigma / d Omega = r² p² (p + 1/p - sin²) / 2.
    """
    cos = np.asarray(cos_angle, dtype=np.float64)
    p = 1.0 / (2.0 - cos)
    return 0.5 * p**2 * (p + 1.0 / p - (1.0 - cos**2)) / klein_nishina_total(1.0)


def klein_nishina_total(energy: float | F64) -> F64:
    """Give the total Klein-Nishina cross-section in squared classical electron radii.

    Parameters
    ----------
    energy
        Photon energy in units of the electron's rest energy.

    Notes
    -----
    Klein and Nishina (1929), doi 10.1007/BF01366453, integrated over all directions.
    """
    a = np.asarray(energy, dtype=np.float64)
    log = np.log1p(2.0 * a)
    bracket = (1.0 + a) / a**2 * (2.0 * (1.0 + a) / (1.0 + 2.0 * a) - log / a)
    return 2.0 * np.pi * (bracket + log / (2.0 * a) - (1.0 + 3.0 * a) / (1.0 + 2.0 * a) ** 2)


def window_acceptance(
    energy_kev: F64, window_kev: tuple[float, float], energy_resolution: float
) -> F64:
    """Give the probability that a photon stopped in the detector falls into the energy window.

    The measured energy is normal about the true one, its FWHM growing with the square root of
    the energy (photon statistics).

    Parameters
    ----------
    energy_kev
        Photon energies, keV.
    window_kev
        Lower and upper end of the energy window, keV.
    energy_resolution
        FWHM at 511 keV as a fraction.
    """
    energy = np.asarray(energy_kev, dtype=np.float64)
    sigma = energy_resolution / FWHM_PER_SIGMA * np.sqrt(energy * REST_ENERGY_KEV)
    low, high = window_kev
    return np.asarray(ndtr((high - energy) / sigma) - ndtr((low - energy) / sigma))


def attenuation_ratio(cos_angle: F64) -> F64:
    """Give how much more a photon is attenuated after scattering once than before it.

    The ratio of the total Compton cross-sections at the scattered energy and at 511 keV: in
    tissue nearly all attenuation is Compton scattering.

    Parameters
    ----------
    cos_angle
        Cosine of the scattering angle.
    """
    energy = scattered_energy_kev(cos_angle) / REST_ENERGY_KEV
    return klein_nishina_total(energy) / klein_nishina_total(1.0)
