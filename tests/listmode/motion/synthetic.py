"""Made-up scans for tests of motion: positions, directions and timing, no photon physics.

Events are drawn from an ellipsoidal bladder on a background box (and other ellipsoids), moved
and filled as asked, their lines met with the scanner's flat blocks, their times blurred. There
is no attenuation, scatter or crystal penetration: for those there is :mod:`listmode.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.scanner import FWHM_PER_SIGMA, SPEED_OF_LIGHT_MM_PS, Scanner
from listmode.source import ScanProtocol

F64 = NDArray[np.float64]
Path = Callable[[F64], F64]


def still(time_s: F64) -> F64:
    return np.zeros((time_s.size, 3))


def step(at_s: float, shift_mm: tuple[float, float, float]) -> Path:
    def path(time_s: F64) -> F64:
        return np.asarray((time_s >= at_s)[:, None] * np.asarray(shift_mm))

    return path


@dataclass(frozen=True)
class MadeUpScan:
    """A bladder in a body; rates are those of accepted-if-geometrically-possible emissions."""

    duration_s: float = 120.0
    bladder_hz: float = 1600.0
    background_hz: float = 6000.0
    centre_mm: tuple[float, float, float] = (0.0, 20.0, -330.0)
    volume_ml: float = 148.0
    aspect: tuple[float, float, float] = (38.0, 30.0, 31.0)
    filling_ml_min: float = 0.0
    body_move: Path = still  # moves everything
    bladder_move: Path = still  # moves the bladder alone, on top
    box_low_mm: tuple[float, float, float] = (-110.0, -75.0, -430.0)
    box_high_mm: tuple[float, float, float] = (110.0, 115.0, -225.0)
    blobs: tuple[tuple[tuple[float, float, float], float, float], ...] = field(default=())
    seed: int = 1

    def semi_axis_mm(self, time_s: F64) -> F64:
        """Semi-axes, shape (n, 3): volume grows linearly, the shape stays."""
        volume = self.volume_ml + self.filling_ml_min * time_s / 60.0
        unit = (volume * 1000.0 / (4.0 / 3.0 * math.pi * np.prod(self.aspect))) ** (1.0 / 3.0)
        return np.asarray(unit[:, None] * np.asarray(self.aspect))

    def bladder_centre_mm(self, time_s: F64) -> F64:
        """Centre of the bladder, shape (n, 3): its caudal end stays while it fills."""
        growth = self.semi_axis_mm(time_s)[:, 2] - self.semi_axis_mm(np.zeros(1))[0, 2]
        centre = np.asarray(self.centre_mm) + self.body_move(time_s) + self.bladder_move(time_s)
        centre[:, 2] += growth
        return np.asarray(centre)


def _in_ball(rng: np.random.Generator, n: int) -> F64:
    v = rng.standard_normal((n, 3))
    v /= np.linalg.norm(v, axis=1)[:, None]
    return np.asarray(v * rng.random(n)[:, None] ** (1.0 / 3.0))


def _emissions(scan: MadeUpScan, rng: np.random.Generator) -> tuple[F64, F64]:
    """Draw times (s, ascending) and places (mm)."""
    times, places = [], []
    n = rng.poisson(scan.bladder_hz * scan.duration_s)
    t = rng.random(n) * scan.duration_s
    times.append(t)
    places.append(scan.bladder_centre_mm(t) + _in_ball(rng, n) * scan.semi_axis_mm(t))
    n = rng.poisson(scan.background_hz * scan.duration_s)
    t = rng.random(n) * scan.duration_s
    low, high = np.asarray(scan.box_low_mm), np.asarray(scan.box_high_mm)
    times.append(t)
    places.append(low + rng.random((n, 3)) * (high - low) + scan.body_move(t))
    for centre, radius, rate in scan.blobs:
        n = rng.poisson(rate * scan.duration_s)
        t = rng.random(n) * scan.duration_s
        times.append(t)
        places.append(np.asarray(centre) + radius * _in_ball(rng, n) + scan.body_move(t))
    time_s, place = np.concatenate(times), np.concatenate(places)
    order = np.argsort(time_s, kind="stable")
    return time_s[order], place[order]


def _crystal(scanner: Scanner, hit: F64) -> NDArray[np.int64]:
    """Number of the crystal that a hit on the front polygon lies in; -1 for gaps."""
    layout = scanner.layout
    assert layout is not None
    sector = 2.0 * math.pi / layout.n_blocks
    phi = layout.sense * (np.arctan2(hit[:, 1], hit[:, 0]) - layout.first_block_rad)
    block = np.round(phi / sector).astype(int)
    radius = layout.front_radius_mm + scanner.doi_mm
    across = radius * np.tan(phi - block * sector) / scanner.crystal_pitch_mm[0]
    k = np.floor(across + layout.n_crystals / 2.0).astype(int)
    slot = np.round(hit[:, 2] / scanner.crystal_pitch_mm[1] + (layout.n_rings - 1) / 2.0)
    per_unit = layout.n_rings_per_unit + layout.n_gap_rings
    unit, row = np.divmod(slot.astype(int), per_unit)
    good = (k >= 0) & (k < layout.n_crystals) & (row < layout.n_rings_per_unit)
    good &= (slot >= 0) & (slot < layout.n_rings)
    ring = unit * layout.n_rings_per_unit + row
    number = (ring * layout.n_blocks + block % layout.n_blocks) * layout.n_crystals + k
    return np.where(good, number, -1).astype(np.int64)


def make_listmode(scanner: Scanner, scan: MadeUpScan) -> MemoryListmode:
    """Draw the scan's events on a block scanner."""
    rng = np.random.default_rng(scan.seed)
    time_s, place = _emissions(scan, rng)
    n = time_s.size
    cos = rng.random(n) * 1.2 - 0.6
    phi = rng.random(n) * 2.0 * math.pi
    sin = np.sqrt(1.0 - cos**2)
    u = np.stack((sin * np.cos(phi), sin * np.sin(phi), cos), axis=1)
    assert scanner.layout is not None
    radius = scanner.layout.front_radius_mm + scanner.doi_mm
    a = (u[:, :2] ** 2).sum(axis=1)
    b = (place[:, :2] * u[:, :2]).sum(axis=1)
    c = (place[:, :2] ** 2).sum(axis=1) - radius**2
    root = np.sqrt(np.maximum(b * b - a * c, 0.0))
    forth, back = (-b + root) / a, (-b - root) / a
    first = _crystal(scanner, place + forth[:, None] * u)
    second = _crystal(scanner, place + back[:, None] * u)
    # Photon times are path lengths over c; the bins rise with t_1 - t_2.
    difference_ps = (forth + back) / SPEED_OF_LIGHT_MM_PS
    tof = scanner.tof
    if tof.has_tof:
        difference_ps += rng.standard_normal(n) * tof.fwhm_ps / FWHM_PER_SIGMA
        bins = np.floor(difference_ps / tof.bin_width_ps + tof.n_bins / 2.0).astype(int)
    else:
        bins = np.zeros(n, int)
    keep = (first >= 0) & (second >= 0) & (bins >= 0) & (bins < tof.n_bins)
    keep[keep] = scanner.accepts(first[keep], second[keep])
    tick = np.minimum((time_s[keep] * 1000.0).astype(int), round(scan.duration_s * 1000) - 1)
    per_tick = np.bincount(tick, minlength=round(scan.duration_s * 1000))
    offset = np.concatenate(([0], np.cumsum(per_tick))).astype(np.int64)
    batch = EventBatch.from_pairs(first[keep], second[keep], bins[keep], tof.n_bins)
    return MemoryListmode(scanner, ScanProtocol(), batch, offset)
