"""Find the constants of a scanner preset with the simulator's own photons.

``python -m listmode.simulate.calibrate quadra`` prints them as TOML.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats.scanner_file import load_scanner
from listmode.scanner import Scanner
from listmode.simulate.phantom import cylinder_phantom, line_phantom
from listmode.simulate.protocols import Dose
from listmode.simulate.simulation import Simulation

F64 = NDArray[np.float64]

PUBLISHED_CPS_PER_KBQ = {
    "quadra": ("UHS", 176.0),  # Prenosil et al. 2022, doi 10.2967/jnumed.121.261972
    "vision600": ("standard", 16.4),  # van Sluis et al. 2019, doi 10.2967/jnumed.118.215418
    "uexplorer": ("full", 174.0),  # Spencer et al. 2021, doi 10.2967/jnumed.120.250597
    "pennpet": ("full", 140.0),  # Dai et al. 2023, doi 10.2967/jnumed.123.265723
    "mmr": ("standard", 15.0),  # Delso et al. 2011, doi 10.2967/jnumed.111.092726
}
"""NEMA NU 2 sensitivity of a 70 cm line at the centre: mode and cps/kBq."""


def line_sensitivity(
    scanner: Scanner, *, offset_mm: float = 0.0, seed: int = 1, seconds: float = 20.0
) -> float:
    """Measure the sensitivity to NEMA's 70 cm line in air, cps/kBq.

    Parameters
    ----------
    scanner
        Scanner, with its present ``window_efficiency``.
    offset_mm
        Distance of the line from the axis, mm.
    seed, seconds
        Seed and length of a scan of 1 MBq.
    """
    phantom = line_phantom(position_mm=(0.0, -offset_mm, 0.0), activity_bq=1e6)
    dose = Dose.in_phantom(phantom, seconds)
    simulation = Simulation(
        scanner, phantom, dose, seed=seed, scatter="off", with_randoms=False
    )
    n_trues = sum(
        len(simulation.make_slice(number).prompts) for number in range(simulation.n_slices)
    )
    decays = seconds * 1e6 / 1000.0
    # decay within the scan: a source of 1 kBq means its mean activity
    half_life_s = simulation.protocol.half_life_s
    rate = np.log(2.0) / half_life_s
    return float(n_trues / (decays * -np.expm1(-rate * seconds) / (rate * seconds)))


def calibrate_window(scanner: Scanner, cps_per_kbq: float) -> float:
    """Find the window efficiency that gives a scanner its published sensitivity."""
    with_one = replace(scanner, window_efficiency=1.0)
    return float(np.sqrt(cps_per_kbq / line_sensitivity(with_one, seconds=5.0)))


def measure_profile(scanner: Scanner, *, seed: int = 1) -> tuple[F64, F64]:
    """Measure what crystals see relative to the slab model, by their place in the block.

    A wide cylinder of activity in air lights the crystals from all sides. Each crystal's
    singles are divided by what the slab model expects from the same source: the sum over the
    source of A cos / (4 pi d^2) (1 - exp(-mu f L / cos)), with the cell's area A, the
    incidence cos and the filled fraction f, at the effective depth of interaction.

    Returns
    -------
    transaxial, axial
        Ratio to the slab model across a block and along a unit, over that of crystals far from
        an edge: there the slab model holds for coincidences, while near sources spoil it for
        singles (up to 1 %). Float64.
    """
    layout = scanner.layout
    assert layout is not None
    radius = min(250.0, 0.75 * scanner.fov_radius_mm)
    phantom = cylinder_phantom(
        radius_mm=radius, length_mm=scanner.axial_length_mm, activity_bq_ml=100.0, mu_per_cm=0.0
    )
    simulation = Simulation(scanner, phantom, Dose.in_phantom(phantom, 1.0), seed=seed)
    n_decays = 24_000_000
    singles = simulation.count_singles(n_decays).astype(np.float64)
    expected = _slab_model(scanner, radius) * n_decays
    shape = (layout.n_units, layout.n_rings_per_unit, layout.n_blocks, layout.n_crystals)
    ratio = singles.reshape(shape).sum(axis=2) / expected.reshape(shape).sum(axis=2)
    across, along = ratio.mean(axis=(0, 1)), ratio.mean(axis=(0, 2))
    across, along = (across + across[::-1]) / 2.0, (along + along[::-1]) / 2.0
    return _flat_inside(across), _flat_inside(along)


def _flat_inside(profile: F64) -> F64:
    """Average what lies more than 4 crystals from an edge, and take it as 1."""
    if profile.size <= 8:
        return np.asarray(profile / profile.mean())
    out = profile / profile[4:-4].mean()
    out[4:-4] = 1.0
    return np.asarray(out)


def _slab_model(scanner: Scanner, radius_mm: float) -> F64:
    """Expect singles of every crystal per decay in a cylinder. Shape (n_crystals,), float64."""
    n = 1500
    # an even sequence (Roberts 2018, R3): far less noise than random points
    step = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    a, b, c = np.mod(np.outer(np.arange(n) + 0.5, step), 1.0).T
    r, phi, z = radius_mm * np.sqrt(a), 2.0 * np.pi * b, scanner.axial_length_mm * (c - 0.5)
    source = np.stack((r * np.cos(phi), r * np.sin(phi), z), axis=1)
    pitch, size = scanner.crystal_pitch_mm, scanner.crystal_size_mm
    area = pitch[0] * pitch[1]
    depth = scanner.stopping_per_mm * size[2] * size[0] * size[1] / area
    out = np.zeros(scanner.n_crystals)
    position = scanner.crystal_position_mm.astype(np.float64)
    normal = scanner.crystal_normal.astype(np.float64)
    for point in source:
        way = position - point
        d2 = (way**2).sum(axis=1)
        cos = (way * normal).sum(axis=1) / np.sqrt(d2)
        out += area * cos / (4.0 * np.pi * d2) * -np.expm1(-depth / cos)
    return out / n


def main(names: list[str]) -> None:
    """Print the constants of presets as TOML, with the check of all modes."""
    for name in names:
        if name not in PUBLISHED_CPS_PER_KBQ:
            raise InputError(
                f"calibration needs a published sensitivity, but there is none for {name!r}; "
                f"choose from {', '.join(PUBLISHED_CPS_PER_KBQ)}"
            )
        mode, published = PUBLISHED_CPS_PER_KBQ[name]
        scanner = load_scanner(name, mode)
        window = calibrate_window(scanner, published)
        across, along = measure_profile(scanner)
        sys.stdout.write(
            f"# {name}: {mode} {published:g} cps/kBq\nwindow_efficiency = {window:.4f}\n"
            f"[profile]\ntransaxial = {np.round(across, 3).tolist()}\n"
            f"axial = {np.round(along, 3).tolist()}\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
