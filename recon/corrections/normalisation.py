"""How sensitive each crystal pair is: geometry, stopping power, crystal efficiencies."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.scanner import Scanner
from recon import _kernels

F32 = NDArray[np.float32]


def crystal_weight(scanner: Scanner, crystal_efficiency: F32 | None = None) -> F32:
    """Multiply measured efficiency and block profile of each crystal.

    Parameters
    ----------
    crystal_efficiency
        Relative efficiency of each crystal; ones if ``None``. Shape (n_crystals,).

    Returns
    -------
    ndarray
        Shape (n_crystals,), float32.

    Raises
    ------
    InputError
        If there is not one finite efficiency, zero or positive, for each crystal.
    """
    if crystal_efficiency is None:
        return scanner.crystal_profile
    if crystal_efficiency.shape != (scanner.n_crystals,):
        raise InputError(
            f"crystal efficiencies must be {scanner.n_crystals} numbers, one a crystal of "
            f"{scanner.name!r}, but their shape is {crystal_efficiency.shape}; use the "
            "efficiencies of this scanner"
        )
    good = np.isfinite(crystal_efficiency) & (crystal_efficiency >= 0)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InputError(
            f"crystal efficiencies must be finite and not negative, but crystal {i} has "
            f"{crystal_efficiency[i]:g}; set dead crystals to 0"
        )
    return (scanner.crystal_profile * crystal_efficiency).astype(np.float32)


def stopping_length(scanner: Scanner) -> float:
    """Give the crystal's length in mean free paths, thinned by the gaps between crystals."""
    tangential, axial, radial = scanner.crystal_size_mm
    pitch = scanner.crystal_pitch_mm
    return scanner.stopping_per_mm * radial * (tangential * axial) / (pitch[0] * pitch[1])


def efficiency_scale(scanner: Scanner) -> float:
    """Give the factor of ``n_i`` that all pairs share, mm⁴ mL/mm³."""
    area_mm2 = scanner.crystal_pitch_mm[0] * scanner.crystal_pitch_mm[1]
    return 1e-3 / (2.0 * math.pi) * area_mm2**2 * scanner.window_efficiency**2


def pair_efficiency(
    scanner: Scanner,
    crystal_a: NDArray[np.integer],
    crystal_b: NDArray[np.integer],
    crystal_efficiency: F32 | None = None,
) -> F32:
    """Give the sensitivity of crystal pairs to activity along their LOR.

    Parameters
    ----------
    scanner
        Geometry, stopping power and energy window.
    crystal_a, crystal_b
        Crystal numbers. Shape (n,).
    crystal_efficiency
        Relative efficiency of each crystal; ones if ``None``. Shape (n_crystals,).

    Returns
    -------
    ndarray
        Counts per second of each pair per Bq/mL and mm of LOR, without attenuation. Shape
        (n,), float32.

    Raises
    ------
    InputError
        If there is not one usable efficiency for each crystal.

    Notes
    -----
    ``n = 1e-3/(2 pi) (A cos_a)(A cos_b)/R² e_a e_b g_a g_b w² P_a P_b`` with
    ``P = 1 - exp(-mu f L / cos)``: the étendue of two faces over the 2 pi of a pair's
    directions (Cherry, Sorenson, Phelps, Physics in Nuclear Medicine, 4th ed., 2012, ch. 18).
    ``f`` is the filled fraction of the crystal's cell. The stopping length of oblique rays
    moves the UHS/HS sensitivity ratio of the Quadra from 1.96 to 2.06.
    """
    out = np.empty(len(crystal_a), np.float32)
    _kernels.pair_efficiency(
        np.ascontiguousarray(crystal_a, np.uint32),
        np.ascontiguousarray(crystal_b, np.uint32),
        scanner.crystal_position_mm,
        scanner.crystal_normal,
        np.array(crystal_weight(scanner, crystal_efficiency)),
        stopping_length(scanner),
        efficiency_scale(scanner),
        out,
    )
    return out
