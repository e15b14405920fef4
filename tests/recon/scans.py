"""A small scanner and scans on it, made without the simulator and without the projector."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.formats.hdf5 import ListmodeWriter
from listmode.scanner import BlockLayout, Scanner, TofModel, build_scanner
from listmode.source import ScanProtocol

F64 = NDArray[np.float64]


def small_scanner() -> Scanner:
    """16 blocks of 6 crystals around, 24 rings; 288 mm long, 140 mm in radius."""
    return build_scanner(
        name="small",
        layout=BlockLayout(16, 6, 0, 4, 6, 0, front_radius_mm=140.0),
        crystal_size_mm=(9.0, 9.0, 20.0),
        crystal_pitch_mm=(9.2, 12.0),
        max_ring_difference=23,
        fov_radius_mm=120.0,
        tof=TofModel(15, 143.0, 228.0),
    )


def _events(scanner: Scanner, places_mm: F64, rng: np.random.Generator) -> EventBatch:
    """Send two photons from each place and take the nearest crystals; keep what is accepted."""
    n = len(places_mm)
    cos = rng.uniform(-0.75, 0.75, n)
    phi = rng.uniform(0.0, 2.0 * math.pi, n)
    sin = np.sqrt(1.0 - cos**2)
    flight = np.stack((sin * np.cos(phi), sin * np.sin(phi), cos), axis=1)
    radius = 147.0
    a = (flight[:, :2] ** 2).sum(axis=1)
    b = (places_mm[:, :2] * flight[:, :2]).sum(axis=1)
    c = (places_mm[:, :2] ** 2).sum(axis=1) - radius**2
    root = np.sqrt(b**2 - a * c)
    crystals, lengths = [], []
    for length in ((-b + root) / a, (-b - root) / a):
        crystals.append(_nearest(scanner, places_mm + flight * length[:, None]))
        lengths.append(np.abs(length))
    one, two = crystals
    dt_ps = (lengths[0] - lengths[1]) / 0.299792458 + rng.normal(0.0, 97.0, n)
    tof_bin = np.rint(dt_ps / 143.0).astype(np.int64) + 7
    good = (one >= 0) & (two >= 0) & (one != two) & (tof_bin >= 0) & (tof_bin < 15)
    one, two, tof_bin = one[good], two[good], tof_bin[good]
    ok = scanner.accepts(one, two)
    return EventBatch.from_pairs(one[ok], two[ok], tof_bin[ok], 15)


def _nearest(scanner: Scanner, hits_mm: F64) -> NDArray[np.int64]:
    """Number of the crystal that a point on the cylinder falls into, -1 beyond the ends."""
    ring = np.floor(hits_mm[:, 2] / 12.0 + 12.0).astype(np.int64)
    first = scanner.crystal_position_mm[: scanner.n_transaxial, :2].astype(np.float64)
    angle = np.arctan2(first[:, 1], first[:, 0])
    distance = np.abs(
        (np.arctan2(hits_mm[:, 1], hits_mm[:, 0])[:, None] - angle + math.pi) % (2 * math.pi)
        - math.pi
    )
    number = ring * scanner.n_transaxial + distance.argmin(axis=1)
    return np.where((ring >= 0) & (ring < 24), number, -1)


def write_scan(
    path: Path,
    *,
    seconds: int = 60,
    dead_s: tuple[int, int] | None = (50, 60),
    events_per_s: int = 4000,
    protocol: ScanProtocol | None = None,
    seed: int = 7,
) -> None:
    """Write a warm cylinder with two hot spheres; nothing is counted in ``dead_s``."""
    scanner, rng = small_scanner(), np.random.default_rng(seed)
    known = ScanProtocol(
        injected_activity_bq=1e6, injection_time_s=-3600.0, patient_weight_kg=10.0
    )
    with ListmodeWriter(
        path, scanner=scanner, protocol=protocol or known, clock_zero="start of the test"
    ) as writer:
        for second in range(seconds):
            n = 0 if dead_s and dead_s[0] <= second < dead_s[1] else events_per_s
            share = n // 3
            spheres = rng.normal(0.0, 4.0, (2 * share, 3))
            spheres[:share] += (40.0, -20.0, 60.0)
            spheres[share:] += (-30.0, 30.0, -50.0)
            r = 70.0 * np.sqrt(rng.uniform(0.0, 1.0, share))
            phi = rng.uniform(0.0, 2.0 * math.pi, share)
            cylinder = np.stack(
                (r * np.cos(phi), r * np.sin(phi), rng.uniform(-110.0, 110.0, share)), axis=1
            )
            batch = _events(scanner, np.concatenate((spheres, cylinder)), rng)
            order = rng.permutation(len(batch))
            mixed = EventBatch(
                batch.crystal_a[order], batch.crystal_b[order], batch.tof_bin[order]
            )
            ticks = np.bincount(rng.integers(0, 1000, len(mixed)), minlength=1000)
            writer.append("prompts", mixed, ticks.astype(np.int64))
