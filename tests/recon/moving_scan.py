"""Scans of a patient who moves, photon by photon, with no simulator and no projector.

Bodies are ellipsoids whose activities and attenuations add up. Photons fly along straight lines
from decays in the moved patient to flat blocks, where the crystal is found from the layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.scanner import SPEED_OF_LIGHT_MM_PS, Scanner
from listmode.source import ScanProtocol
from tests.oracles import ellipsoid_chord

F64 = NDArray[np.float64]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Ellipsoid:
    """Adds its activity (relative) and attenuation (1/cm) to what is there."""

    centre_mm: Vector
    semi_mm: Vector
    activity: float
    mu_per_cm: float = 0.0

    @property
    def size(self) -> float:
        return self.activity * math.prod(self.semi_mm)


def turn(axis: int, angle_rad: float) -> F64:
    """A turn about x, y or z, written out."""
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(4)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def shift(x: float, y: float, z: float) -> F64:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def coincidences(
    scanner: Scanner,
    bodies: list[Ellipsoid],
    scanner_from_reference: F64,
    n_decays: int,
    rng: np.random.Generator,
) -> EventBatch:
    """Follow the photons of decays in one pose; give what is detected, in random order."""
    parts = []
    while n_decays > 0:
        n = min(n_decays, 500_000)
        parts.append(_some(scanner, bodies, scanner_from_reference, n, rng))
        n_decays -= n
    return EventBatch(
        *(np.concatenate([getattr(p, c) for p in parts])
          for c in ("crystal_a", "crystal_b", "tof_bin"))
    )  # fmt: skip


def _some(
    scanner: Scanner, bodies: list[Ellipsoid], pose: F64, n: int, rng: np.random.Generator
) -> EventBatch:
    size = np.array([body.size for body in bodies])
    body = rng.choice(size.size, n, p=size / size.sum())
    ball = rng.normal(size=(n, 3))
    ball *= (rng.random(n) ** (1 / 3) / np.linalg.norm(ball, axis=1))[:, None]
    centre = np.array([b.centre_mm for b in bodies])[body]
    place = centre + ball * np.array([b.semi_mm for b in bodies])[body]
    place = place @ pose[:3, :3].T + pose[:3, 3]
    flight = rng.normal(size=(n, 3))
    flight /= np.linalg.norm(flight, axis=1)[:, None]
    one, length_one = _hit(scanner, place, flight)
    two, length_two = _hit(scanner, place, -flight)
    good = (one >= 0) & (two >= 0)
    one, two, place, flight = one[good], two[good], place[good], flight[good]
    length = np.stack((length_one[good], length_two[good]))
    good = scanner.accepts(one, two)
    start = scanner.crystal_position_mm[one].astype(np.float64)
    stop = scanner.crystal_position_mm[two].astype(np.float64)
    keep = np.where(good, 1.0, 0.0)
    depth = scanner.stopping_per_mm * scanner.crystal_size_mm[2]
    depth *= scanner.crystal_size_mm[0] / scanner.crystal_pitch_mm[0]
    depth *= scanner.crystal_size_mm[1] / scanner.crystal_pitch_mm[1]
    for crystal in (one, two):
        cos = np.abs((flight * scanner.crystal_normal[crystal]).sum(axis=1))
        keep *= 1.0 - np.exp(-depth / np.maximum(cos, 1e-3))
    back = np.linalg.inv(pose)
    start, stop = (p @ back[:3, :3].T + back[:3, 3] for p in (start, stop))
    for b in bodies:
        if b.mu_per_cm:
            with np.errstate(invalid="ignore"):
                chord = ellipsoid_chord(start, stop, b.centre_mm, b.semi_mm)
            keep *= np.exp(-0.1 * b.mu_per_cm * np.nan_to_num(chord))
    kept = rng.random(keep.size) < keep
    one, two, length = one[kept], two[kept], length[:, kept]
    tof = scanner.tof
    delay_ps = (length[0] - length[1]) / SPEED_OF_LIGHT_MM_PS
    delay_ps += rng.normal(0.0, tof.fwhm_ps / math.sqrt(8 * math.log(2)), one.size)
    tof_bin = np.floor(delay_ps / tof.bin_width_ps + tof.n_bins / 2).astype(np.int64)
    inside = (tof_bin >= 0) & (tof_bin < tof.n_bins)
    return EventBatch.from_pairs(one[inside], two[inside], tof_bin[inside], tof.n_bins)


def _hit(scanner: Scanner, place: F64, flight: F64) -> tuple[NDArray[np.int64], F64]:
    """Give the crystal that a photon reaches at its effective depth (or -1) and how far."""
    layout = scanner.layout
    assert layout is not None
    radius = layout.front_radius_mm + scanner.doi_mm
    step = 2 * math.pi / layout.n_blocks
    a = (flight[:, :2] ** 2).sum(axis=1)
    b = (place[:, :2] * flight[:, :2]).sum(axis=1)
    c = (place[:, :2] ** 2).sum(axis=1) - radius**2
    with np.errstate(invalid="ignore", divide="ignore"):
        far = (-b + np.sqrt(b * b - a * c)) / a
    hit = place + flight * np.nan_to_num(far)[:, None]
    phi = np.arctan2(hit[:, 1], hit[:, 0]) - layout.first_block_rad
    block = np.rint(layout.sense * phi / step).astype(np.int64) % layout.n_blocks
    angle = layout.first_block_rad + layout.sense * block * step
    normal = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    length = (radius - (place[:, :2] * normal).sum(axis=1)) / (flight[:, :2] * normal).sum(
        axis=1
    )
    hit = place + flight * length[:, None]
    across = layout.sense * (hit[:, 1] * normal[:, 0] - hit[:, 0] * normal[:, 1])
    k = np.rint(across / scanner.crystal_pitch_mm[0] + (layout.n_crystals - 1) / 2)
    k = k.astype(np.int64)
    ring = np.rint(hit[:, 2] / scanner.crystal_pitch_mm[1] + (layout.n_rings - 1) / 2)
    ring = ring.astype(np.int64)
    unit, row = np.divmod(ring, layout.n_rings_per_unit + layout.n_gap_rings)
    per_ring = layout.n_blocks * layout.n_crystals
    crystal = (unit * layout.n_rings_per_unit + row) * per_ring + block * layout.n_crystals + k
    good = np.isfinite(far) & (k >= 0) & (k < layout.n_crystals) & (length > 0)
    good &= (ring >= 0) & (ring < layout.n_rings) & (row < layout.n_rings_per_unit)
    return np.where(good, crystal, -1), length


def in_turn(
    scanner: Scanner, parts: list[EventBatch], seconds: list[float], protocol: ScanProtocol
) -> MemoryListmode:
    """Put poses one after the other, the events of each evenly over its time."""
    offset = [np.zeros(1, np.int64)]
    for part, length_s in zip(parts, seconds, strict=True):
        n_ms = round(length_s * 1000)
        offset.append(offset[-1][-1] + np.arange(1, n_ms + 1) * len(part) // n_ms)
    columns = [
        np.concatenate([getattr(p, c) for p in parts])
        for c in ("crystal_a", "crystal_b", "tof_bin")
    ]
    return MemoryListmode(scanner, protocol, EventBatch(*columns), np.concatenate(offset))
