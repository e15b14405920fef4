"""The scanner as the simulator's kernels need it: blocks, rings, acceptance, timing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.scanner import FWHM_PER_SIGMA, Scanner

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

ACOLLINEARITY_FWHM_RAD = math.radians(0.54)
"""Deviation of the photons from a straight line in either transverse direction, FWHM.

Moses 2011, doi 10.1016/j.nima.2010.11.092: 0.0022 D is D/4 times 0.50 degrees; measured values
reach 0.58.
"""
POSITRON_F18 = (0.080, 37.9, 3.10)
"""F-18 in water: share and inverse ranges (1/mm) of the projections' two exponentials.

Levin and Hoffman 1999, doi 10.1088/0031-9155/44/3/019: C = 0.516, k1 = 37.9/mm, k2 = 3.10/mm;
the share of the first is (C/k1) / (C/k1 + (1-C)/k2).
"""
EFFICIENCY_SPREAD = 0.05


@dataclass(frozen=True, eq=False)
class Detector:
    """Arrays for the kernels; see :func:`listmode.simulate._kernels.crystal_in_block`."""

    scanner: Scanner
    blocks: F64
    block_cos_sin: F64
    reach_mm: F64
    ring_xy: F64
    ring_slot: I64
    ring_z: F64
    tof: F64
    positron: F64
    acollinearity_rad: float
    energy: F64

    @property
    def acceptance(self) -> tuple[F64, I64, int, float]:
        """The arguments of the kernels' acceptance rule."""
        s = self.scanner
        return self.ring_xy, self.ring_slot, s.max_ring_difference, s.fov_radius_mm


def make_detector(
    scanner: Scanner, *, has_positron_range: bool = True, has_acollinearity: bool = True
) -> Detector:
    """Describe a scanner's blocks for the kernels.

    Raises
    ------
    InputError
        If the scanner has no block layout.
    """
    layout = scanner.layout
    if layout is None:
        raise InputError(
            f"the simulator follows photons into blocks, but scanner {scanner.name!r} has no "
            "block layout; use a preset or a TOML description"
        )
    size, pitch = scanner.crystal_size_mm, scanner.crystal_pitch_mm
    front, half_width = layout.front_radius_mm, layout.n_crystals * pitch[0] / 2.0
    outer = math.hypot(front + size[2], half_width)
    blocks = np.array(
        [front, size[2], pitch[0], pitch[1], size[0], size[1], layout.n_blocks,
         layout.n_crystals, layout.n_units, layout.n_rings_per_unit, layout.n_gap_rings,
         layout.first_block_rad, layout.sense, scanner.stopping_per_mm, outer,
         math.tan(math.pi / layout.n_blocks)]
    )  # fmt: skip
    phi = layout.first_block_rad + layout.sense * 2 * np.pi * (
        np.arange(layout.n_blocks) / layout.n_blocks
    )
    n_ring = layout.n_blocks * layout.n_crystals
    slack = 4.0 * pitch[1]  # acollinearity bends lines by up to about 2 mm at the ring
    low, high = (edge / 510.999 for edge in scanner.energy_window_kev)
    sigma = scanner.energy_resolution / FWHM_PER_SIGMA
    keep = low - 4.0 * sigma
    has_tof = scanner.tof.has_tof
    return Detector(
        scanner=scanner,
        blocks=blocks,
        block_cos_sin=np.ascontiguousarray(np.stack((np.cos(phi), np.sin(phi)), axis=1)),
        reach_mm=np.array(
            [
                layout.n_rings * pitch[1] / 2.0 + slack,
                (scanner.max_ring_difference + 1) * pitch[1] + slack,
            ]
        ),
        ring_xy=np.ascontiguousarray(scanner.crystal_position_mm[:n_ring, :2], np.float64),
        ring_slot=np.ascontiguousarray(scanner.crystal_ring[::n_ring], np.int64),
        ring_z=np.ascontiguousarray(scanner.crystal_position_mm[::n_ring, 2], np.float64),
        tof=np.array(
            [
                scanner.tof.n_bins,
                scanner.tof.bin_width_ps,
                scanner.tof.fwhm_ps / FWHM_PER_SIGMA if has_tof else 0.0,
            ]
        ),
        positron=np.array(POSITRON_F18 if has_positron_range else (1.0, 0.0, 0.0)),
        acollinearity_rad=(
            ACOLLINEARITY_FWHM_RAD / FWHM_PER_SIGMA if has_acollinearity else 0.0
        ),
        energy=np.array([low, high, keep, sigma, 3.0]),
    )


def draw_crystal_efficiency(scanner: Scanner, seed: int) -> F32:
    """Draw relative crystal efficiencies: lognormal, 5 %, cut at 3 sigma, mean 1.

    Returns
    -------
    ndarray
        Shape (n_crystals,), float32.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(0,))))
    deviate = np.clip(rng.normal(size=scanner.n_crystals), -3.0, 3.0)
    efficiency = np.exp(EFFICIENCY_SPREAD * deviate)
    return np.asarray(efficiency / efficiency.mean(), np.float32)


def make_state(seed: int, *key: int) -> U64:
    """Make the state of one kernel's random numbers: the same for the same seed and key."""
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return np.asarray(sequence.generate_state(4, np.uint64), np.uint64)
