"""A toy simulation of a small scanner, made without our scanners and without our readers.

It flies photons from known places into flat blocks, and numbers crystals as GATE's
cylindricalPET does and as we do, each by its own arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
C_MM_S = 2.99792458e11
N_BLOCKS, N_ACROSS, N_UNITS, N_DEEP = 16, 6, 4, 6  # blocks, crystals, units, rings in a unit
PITCH_MM, RING_MM, FRONT_MM, LENGTH_MM = 9.2, 12.0, 140.0, 20.0
BIN_PS, N_BINS = 50.0, 61

SCANNER_TOML = f"""
name = "toy"
default_mode = "all"
[modes]
all = 23
[layout]
n_blocks = {N_BLOCKS}
n_crystals = {N_ACROSS}
n_virtual = 0
n_units = {N_UNITS}
n_rings_per_unit = {N_DEEP}
n_gap_rings = 0
front_radius_mm = {FRONT_MM}
[crystal]
size_mm = [9.0, 11.8, {LENGTH_MM}]
pitch_mm = [{PITCH_MM}, {RING_MM}]
doi_mm = 7.0
stopping_per_mm = 0.083
window_efficiency = 1.0
[energy]
window_kev = [435.0, 585.0]
resolution = 0.1
[tof]
n_bins = {N_BINS}
bin_width_ps = {BIN_PS}
fwhm_ps = 200.0
[acceptance]
fov_radius_mm = 120.0
"""


@dataclass(frozen=True)
class Toy:
    """Coincidences with their truth."""

    columns: Columns
    crystals: NDArray[np.int64]  # of our numbering, photons 1 and 2; shape (n, 2)
    source_mm: F64
    truth: NDArray[np.uint8]


def _fly(source_mm: F64, flight: F64, depth_mm: F64) -> tuple[Columns, NDArray[np.int64]]:
    """Meet the plane at a depth in the block that the photon flies into."""
    angle = np.arctan2(
        source_mm[:, 1] + 200 * flight[:, 1], source_mm[:, 0] + 200 * flight[:, 0]
    )
    best: Columns = {}
    crystal = np.full(len(angle), -1, np.int64)
    for step in (0, -1, 1):  # the block of that direction, or one beside it
        block = (np.round(angle / (2 * math.pi / N_BLOCKS)).astype(np.int64) + step) % N_BLOCKS
        phi = block * 2 * math.pi / N_BLOCKS
        normal = np.stack((np.cos(phi), np.sin(phi), 0 * phi), axis=1)
        tangent = np.stack((-np.sin(phi), np.cos(phi), 0 * phi), axis=1)
        away = (flight * normal).sum(axis=1)
        length = (FRONT_MM + depth_mm - (source_mm * normal).sum(axis=1)) / away
        hit = source_mm + length[:, None] * flight
        across = np.floor((hit * tangent).sum(axis=1) / PITCH_MM + N_ACROSS / 2).astype(
            np.int64
        )
        ring = np.floor(hit[:, 2] / RING_MM + N_UNITS * N_DEEP / 2).astype(np.int64)
        good = (away > 0) & (across >= 0) & (across < N_ACROSS) & (crystal < 0)
        good &= (ring >= 0) & (ring < N_UNITS * N_DEEP)
        found = {
            "rsectorID": block,
            "moduleID": ring // N_DEEP,
            "submoduleID": 0 * ring,
            "crystalID": ring % N_DEEP * N_ACROSS + across,
            "time": length / C_MM_S,
            **{f"globalPos{axis}": hit[:, i] for i, axis in enumerate("XYZ")},
        }
        for name, values in found.items():
            best[name] = np.where(good, values, best.get(name, values))
        number = ring * N_BLOCKS * N_ACROSS + block * N_ACROSS + across
        crystal = np.where(good, number, crystal)
    return best, crystal


def toy(seed: int, n: int = 4000, source_mm: tuple[float, float, float] = (45, -30, 40)) -> Toy:
    """Simulate a point source; a third scattered, a fifth random by label."""
    rng = np.random.default_rng(seed)
    source = np.tile(np.array(source_mm, np.float64), (n, 1))
    cos = rng.uniform(-0.4, 0.4, n)
    phi = rng.uniform(0, 2 * math.pi, n)
    sin = np.sqrt(1 - cos**2)
    flight = np.stack((sin * np.cos(phi), sin * np.sin(phi), cos), axis=1)
    decay_s = np.sort(rng.uniform(0.0, 0.3, n))
    columns: Columns = {}
    crystals = []
    for k, way in (("1", flight), ("2", -flight)):
        found, crystal = _fly(source, way, rng.uniform(0.0, LENGTH_MM, n))
        crystals.append(crystal)
        for name, values in found.items():
            kind = np.float64 if name == "time" else np.float32
            whole = np.issubdtype(values.dtype, np.integer)
            columns[f"{name}{k}"] = values.astype(np.int32 if whole else kind)
        columns[f"time{k}"] += decay_s
    good = (crystals[0] >= 0) & (crystals[1] >= 0)
    truth = rng.choice(3, n, p=[0.5, 0.3, 0.2]).astype(np.uint8)
    columns["eventID1"] = np.arange(n, dtype=np.int32)
    columns["eventID2"] = columns["eventID1"] + (truth == 2)
    way = rng.integers(0, 4, n)  # which photon scattered, and how
    for i, name in enumerate(("comptonPhantom", "RayleighPhantom")):
        for j, k in enumerate("12"):
            columns[f"{name}{k}"] = ((truth == 1) & (way == 2 * i + j)).astype(np.int32)
    columns["comptonPhantom1"][truth == 2] = 1  # a scattered random is random
    for k in "12":
        columns[f"energy{k}"] = np.full(n, 0.511, np.float32)
    return Toy(
        {name: values[good] for name, values in columns.items()},
        np.stack(crystals, axis=1)[good],
        source[good],
        truth[good],
    )
