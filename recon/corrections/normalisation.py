"""How sensitive each crystal pair is: geometry, stopping power, crystal efficiencies."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.scanner import Scanner
from recon import _kernels
from recon.corrections.block_edges import edge_response

F32 = NDArray[np.float32]

_N_COMPARED = 1 << 18  # pairs whose mean efficiency a stated table gets


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
        Geometry, stopping power and energy window; a table of module pairs takes their place
        where there is one.
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
    moves the UHS/HS sensitivity ratio of the Quadra from 1.96 to 2.06. A stated block profile
    ``g`` follows the incidence: see :mod:`recon.corrections.block_edges`.
    """
    pairs = scanner.module_pairs
    if pairs is not None and pairs.factor is not None:
        weight = crystal_weight(scanner, crystal_efficiency)
        stated = pairs.factors(crystal_a, crystal_b) * np.float32(_stated_scale(scanner))
        return np.asarray(stated * (weight[crystal_a] * weight[crystal_b]))
    out = np.empty(len(crystal_a), np.float32)
    a = np.ascontiguousarray(crystal_a, np.uint32)
    b = np.ascontiguousarray(crystal_b, np.uint32)
    _kernels.pair_efficiency(
        a,
        b,
        scanner.crystal_position_mm,
        scanner.crystal_normal,
        np.array(crystal_weight(scanner, crystal_efficiency)),
        stopping_length(scanner),
        efficiency_scale(scanner),
        out,
    )
    if (edges := edge_response(scanner)) is not None:
        edges.apply(scanner, a, b, out)
    if pairs is not None:
        out *= pairs.factors(a, b)
    return out


@lru_cache(maxsize=8)
def _stated_scale(scanner: Scanner) -> float:
    """Give what turns stated factors into efficiencies of the same mean as by geometry.

    The mean is that over pairs of crystals that face each other, by their normals, and whose
    modules are in coincidence: the same ones wherever the patient lies.
    """
    pairs = scanner.module_pairs
    assert pairs is not None
    rng = np.random.default_rng(20240302)
    a, b = rng.integers(0, scanner.n_crystals, (2, _N_COMPARED))
    towards = (scanner.crystal_normal[a] * scanner.crystal_normal[b]).sum(axis=1) < 0
    good = towards & (pairs.groups(a, b) >= 0)
    stated = float(pairs.factors(a[good], b[good]).sum(dtype=np.float64))
    by_geometry = pair_efficiency(replace(scanner, module_pairs=None), a[good], b[good])
    return float(by_geometry.sum(dtype=np.float64)) / stated if stated > 0.0 else 0.0
