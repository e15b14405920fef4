"""Simulated scans of a moving bladder at a hundredth of the photon simulator's cost.

The photon simulator is asked once, for two kinds of pools. *Residuals*: most likely positions
of the events of a point source less its place, at eight places along the bladder's axis inside
the pregnant phantom, with their rates; they hold the timing, the crystals, their penetration,
the TOF bins, the accepted directions and the attenuation. *Surroundings*: most likely positions
around the bladder of the whole phantom with a bladder that is as hot as what is around it,
with scatter and randoms.

A scan is then drawn event by event: a time, a uniform place in the ellipsoid as it lies and as
large as it is at that time, accepted with the sensitivity there, and a residual; and an event
of the surroundings, moved with the body (trues and scatter) or not (randoms). Left out: the
scatter of the bladder's own excess, and that the surroundings' attenuation moves.
``benchmarks.motion_envelope photons`` compares such a scan with the photon simulator's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from benchmarks import _kernels_motion
from benchmarks._kernels_motion import MARGIN
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.histogram import axial_sensitivity, blur_along_mm
from listmode.memory import MemoryListmode
from listmode.motion.bladder import Bladder
from listmode.motion.region import RegionEvents, collect_region, sensitivity_weight
from listmode.motion.template import COS_EDGE, blur_covariance
from listmode.scanner import Scanner
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.motion import PatientMotion
from listmode.simulate.phantom import SOFT, pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.simulate.shapes import Phantom, Shape
from listmode.simulate.truth import RANDOM
from listmode.windows import Windows

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

BLADDER_XY_MM = (0.0, -48.0)
CAUDAL_END_MM = -311.0
ASPECT_MM = np.array([38.0, 30.0, 31.0])  # semi-axes at 148 mL
ASPECT_ML = 4.0 / 3.0 * math.pi * 38.0 * 30.0 * 31.0 / 1000.0
NODE_Z_MM = np.linspace(-320.0, -180.0, 8)  # of the unmoved body; 600 mL fit inside
SURROUND_BOX_MM = ((-175.0, 175.0), (-175.0, 100.0), (-430.0, -95.0))
HALF_LIFE_S = 6586.2
PIVOT_MM = np.array([0.0, 0.0, -130.0])
TRAVEL_MM = 25.0  # room for moves in the region; the analysis of a file keeps 45 mm
VOIDING_S = 20.0
TISSUE_SUV = 0.7  # of the pelvis around the bladder
POINT_BQ_ML = 2e11
POOL_S, POOL_SHARE = 600.0, 0.1  # of the low-dose protocol's counts, for the surroundings


@dataclass(frozen=True, eq=False)
class Pools:
    """What the photon simulator was asked for; see the module.

    ``blur_mm`` has shape (n_nodes, n, 3); ``rate`` is events per s and Bq at each node;
    ``moving_hz`` and ``fixed_hz`` are the rates of the surroundings at tick zero.
    """

    node_z_mm: F64
    rate: F64
    blur_mm: F32
    blur_direction: U8
    moving_mm: F32
    moving_direction: U8
    moving_hz: float
    fixed_mm: F32
    fixed_direction: U8
    fixed_hz: float
    bq_ml_per_suv: float

    def save(self, path: Path) -> None:
        """Write the pools as ``.npz`` under a temporary name, then rename."""
        part = path.with_name(f".{path.name}.part.npz")
        np.savez(part, **vars(self))
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> Pools:
        with np.load(path, allow_pickle=False) as held:
            columns = {name: held[name] for name in held.files}
        plain: dict[str, Any] = {n: float(v) if v.ndim == 0 else v for n, v in columns.items()}
        return cls(**plain)


def scanner() -> Scanner:
    return load_scanner("quadra", "UHS")


def _around_point(phantom: Phantom, place: tuple[float, float, float]) -> Phantom:
    """Keep the phantom's attenuation; let a small sphere hold all its activity."""
    cold = tuple(replace(s, activity=0.0) for s in phantom.shapes)
    tiny = Shape("point", "point", "ellipsoid", place, (0.25,) * 3, POINT_BQ_ML, SOFT)
    return replace(phantom, shapes=(*cold, tiny), filling_shape=None, unit="Bq/mL")


def _positions(
    listmode: MemoryListmode, box: tuple[tuple[float, float], ...]
) -> tuple[F32, U8]:
    low, high = np.array(box).T
    held = collect_region(listmode, low, high, threads=1)
    return held.point_mm, held.direction


def _only(listmode: MemoryListmode, keep: NDArray[np.bool_]) -> MemoryListmode:
    """Keep some prompts of a scan."""
    held = np.concatenate(([0], np.cumsum(keep)))
    events = listmode.prompts
    batch = EventBatch(events.crystal_a[keep], events.crystal_b[keep], events.tof_bin[keep])
    offset = held[listmode.prompts_offset].astype(np.int64)
    return MemoryListmode(listmode.scanner, listmode.protocol, batch, offset)


def make_pools(*, seed: int = 20240501, n_residuals: int = 80_000, threads: int = 1) -> Pools:
    """Ask the photon simulator for the pools; about two minutes of CPU."""
    phantom = pregnant_phantom(bladder_suv=TISSUE_SUV, filling_ml_min=0.0, has_hotspots=False)
    rates, blurs, directions = [], [], []
    for k, z in enumerate(NODE_Z_MM):
        place = (*BLADDER_XY_MM, float(z))
        source = _around_point(phantom, place)
        activity = source.activity_bq()
        duration_s = n_residuals / (activity * 4.5e-3)
        listmode, _ = simulate_in_memory(
            scanner=scanner(), phantom=source, dose=replace(LOW_DOSE_FDG, floor_bq=activity),
            seed=seed + k, scatter="off", with_randoms=False, duration_s=max(duration_s, 0.01),
            threads=threads,
        )  # fmt: skip
        box = tuple((c - 80.0, c + 80.0) for c in place)
        point, direction = _positions(listmode, box)
        rates.append(len(point) / listmode.extent.duration_s / activity)
        blurs.append(point - np.asarray(place, np.float32))
        directions.append(direction)
    n = min(len(b) for b in blurs)
    rng = np.random.default_rng(seed)
    order = [rng.permutation(len(b))[:n] for b in blurs]
    listmode, truth = simulate_in_memory(
        scanner=scanner(), phantom=phantom, dose=LOW_DOSE_FDG, seed=seed + 100,
        count_fraction=POOL_SHARE, duration_s=POOL_S, threads=threads,
    )  # fmt: skip
    assert listmode.truth is not None
    is_random = listmode.truth == RANDOM
    parts = []
    for keep, power in ((~is_random, 1.0), (is_random, 2.0)):  # randoms go with the square
        point, direction = _positions(_only(listmode, keep), SURROUND_BOX_MM)
        decay = power * math.log(2.0) / HALF_LIFE_S
        live_s = (1.0 - math.exp(-decay * POOL_S)) / decay
        parts.append((point, direction, len(point) / live_s / POOL_SHARE))
    (moving, moving_d, moving_hz), (fixed, fixed_d, fixed_hz) = parts
    return Pools(
        node_z_mm=NODE_Z_MM,
        rate=np.array(rates),
        blur_mm=np.stack([b[o] for b, o in zip(blurs, order, strict=True)]),
        blur_direction=np.stack([d[o] for d, o in zip(directions, order, strict=True)]),
        moving_mm=moving,
        moving_direction=moving_d,
        moving_hz=moving_hz,
        fixed_mm=fixed,
        fixed_direction=fixed_d,
        fixed_hz=fixed_hz,
        bq_ml_per_suv=truth.phantom.bq_ml_per_suv,
    )


Step = tuple[float, tuple[float, float, float]]


@dataclass(frozen=True)
class MotionCase:
    """One simulated scan: the bladder, what moves it, and the share of the counts.

    Parameters
    ----------
    kind
        Group of the suite that it belongs to.
    seed
        Of its events and its wander.
    suv, volume_ml, filling_ml_min
        The bladder at tick zero and how fast it fills (its caudal end stays).
    steps, ramp_s
        Whole-body shifts, (s, mm), and how long each takes, s.
    turn_deg, turn_axis, turn_s
        A rotation of the body about a pivot 150 mm cranial of the bladder, and its time.
    local_steps
        Shifts of the bladder alone, pushed by the fetus.
    void_ml, void_s
        Volume that leaves the bladder within 20 s, and when.
    layering
        Slope of the urine's activity towards the back at the end of the scan, relative to its
        mean and by semi-axis; it grows evenly from none. The mean place moves by a fifth of it.
    breathing_mm, wander_mm
        As in :class:`listmode.simulate.motion.PatientMotion`.
    counts
        Share of the low-dose protocol's counts.
    duration_s
        Length, s.
    """

    kind: str
    seed: int
    suv: float = 10.0
    volume_ml: float = 148.0
    filling_ml_min: float = 5.0
    steps: tuple[Step, ...] = ()
    ramp_s: float = 0.0
    turn_deg: float = 0.0
    turn_axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    turn_s: float = 0.0
    local_steps: tuple[Step, ...] = ()
    void_ml: float = 0.0
    void_s: float = 0.0
    layering: float = 0.0
    breathing_mm: float = 0.0
    wander_mm: float = 0.0
    counts: float = 1.0
    duration_s: float = 1200.0

    def body_motion(self) -> PatientMotion:
        """The body's translation."""
        return PatientMotion(
            tuple(t for t, _ in self.steps), tuple(d for _, d in self.steps), self.ramp_s,
            self.breathing_mm, 4.3, self.wander_mm, self.seed,
        )  # fmt: skip

    def size(self, time_s: F64) -> F64:
        """Size relative to 148 mL."""
        volume = self.volume_ml + self.filling_ml_min * time_s / 60.0
        volume = volume - self.void_ml * np.clip((time_s - self.void_s) / VOIDING_S, 0.0, 1.0)
        return np.asarray(np.cbrt(volume / ASPECT_ML))

    def turn(self) -> F64:
        """Rotation matrices before and after the turn. Shape (2, 3, 3)."""
        axis = np.asarray(self.turn_axis) * math.radians(self.turn_deg)
        return np.stack((np.eye(3), Rotation.from_rotvec(axis).as_matrix()))

    def bladder_place_mm(self, time_s: F64) -> F64:
        """True centre of the bladder. Shape (n, 3)."""
        centre = np.array([*BLADDER_XY_MM, CAUDAL_END_MM])[None, :].repeat(time_s.size, 0)
        centre[:, 2] += ASPECT_MM[2] * self.size(time_s)
        turned = (centre - PIVOT_MM) @ self.turn()[1].T + PIVOT_MM
        is_turned = (time_s >= self.turn_s) & (self.turn_deg != 0.0)
        centre = np.where(is_turned[:, None], turned, centre)
        local = PatientMotion(
            tuple(t for t, _ in self.local_steps), tuple(d for _, d in self.local_steps)
        )
        moved = self.body_motion().displacement_mm(time_s) + local.displacement_mm(time_s)
        return np.asarray(centre + moved)

    def true_changes(self) -> list[tuple[float, F64]]:
        """Times (middle of a ramp) and shifts of the bladder at its steps and its turn, mm."""
        items = [(t + self.ramp_s / 2.0, np.asarray(d)) for t, d in self.steps]
        items += [(t, np.asarray(d)) for t, d in self.local_steps]
        if self.turn_deg:
            before, after = self.bladder_place_mm(np.array([self.turn_s - 1e-3, self.turn_s]))
            items.append((self.turn_s, after - before))
        return sorted(items, key=lambda item: item[0])


def start_bladder(case: MotionCase) -> Bladder:
    """Where the search would find the bladder: the truth at mid scan with errors (seeded)."""
    rng = np.random.default_rng(case.seed + 7)
    middle = np.array([case.duration_s / 2.0])
    place = case.bladder_place_mm(middle)[0] + rng.normal(0.0, 2.0, 3)
    semi = ASPECT_MM * case.size(middle)[0] * np.exp(rng.normal(0.0, 0.05, 3))
    volume = 4.0 / 3.0 * math.pi * float(semi.prod()) / 1000.0
    contrast = max(case.suv / TISSUE_SUV - 1.0, 0.1)
    (x, y, z), (a, b, c) = place.tolist(), semi.tolist()
    return Bladder((x, y, z), (a, b, c), volume, contrast, 1e5, contrast * volume)


def _geometry() -> F64:
    """Relative axial sensitivity by class of LOR and by the millimetre from -450 mm on."""
    z_mm, quadra = np.arange(-450.0, 0.0), scanner()
    oblique = axial_sensitivity(quadra, z_mm, cosines=(COS_EDGE, 1.0))
    straight = axial_sensitivity(quadra, z_mm, cosines=(0.0, COS_EDGE))
    return np.stack((oblique, straight, oblique))


def draw_scan(pools: Pools, case: MotionCase) -> RegionEvents:
    """Draw one scan's events around the bladder; the same case gives the same bits."""
    rng = np.random.default_rng(case.seed)
    n_ms = round(case.duration_s * 1000)
    time_s = np.asarray((np.arange(n_ms) + 0.5) / 1000.0)
    decay = np.exp2(-time_s / HALF_LIFE_S)
    size = case.size(time_s)
    excess = (case.suv - TISSUE_SUV) * pools.bq_ml_per_suv * ASPECT_ML * size**3
    bladder_hz = excess * MARGIN * pools.rate.max() * case.counts * decay
    start = start_bladder(case)
    half = np.array(start.semi_axis_mm) + np.array([40.0, 40.0, 25.0]) + TRAVEL_MM
    lower, upper = np.array(start.centre_mm) - half, np.array(start.centre_mm) + half
    near = ((pools.moving_mm > lower - 35.0) & (pools.moving_mm < upper + 35.0)).all(axis=1)
    inside = ((pools.fixed_mm > lower) & (pools.fixed_mm < upper)).all(axis=1)
    n = [
        rng.poisson(hz / 1000.0).astype(np.int64)
        for hz in (
            bladder_hz,
            pools.moving_hz * MARGIN * near.mean() * case.counts * decay,
            pools.fixed_hz * inside.mean() * case.counts * decay**2,
        )
    ]
    total = int(sum(k.sum() for k in n))
    time_ms, direction = np.empty(total, np.int32), np.empty(total, np.uint8)
    point = np.empty((total, 3), np.float32)
    centre = case.bladder_place_mm(time_s)
    kept = _kernels_motion.draw_events(
        rng, n[0], n[1], n[2], centre.astype(np.float32), size.astype(np.float32), ASPECT_MM,
        pools.rate, _geometry(), pools.node_z_mm, pools.blur_mm, pools.blur_direction,
        pools.moving_mm[near], pools.moving_direction[near],
        case.body_motion().displacement_mm(time_s).astype(np.float32), case.turn(),
        ((time_s >= case.turn_s) & (case.turn_deg != 0.0)).astype(np.uint8), PIVOT_MM,
        (case.layering * time_s / case.duration_s).astype(np.float32),
        pools.fixed_mm[inside], pools.fixed_direction[inside], lower, upper,
        time_ms, point, direction,
    )  # fmt: skip
    quadra = scanner()
    point = point[:kept].copy()
    return RegionEvents(
        time_ms=time_ms[:kept].copy(),
        point_mm=point,
        direction=direction[:kept].copy(),
        weight=sensitivity_weight(
            quadra, point[:, 2], direction[:kept], float((lower[2] + upper[2]) / 2)
        ),
        covariance=blur_covariance(blur_along_mm(quadra)),
        lower_mm=lower,
        upper_mm=upper,
        windows=Windows([0], [n_ms]),
    )
