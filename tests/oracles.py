"""Obvious and slow versions of what the kernels do, and analytic truths."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.scanner import BlockLayout, Scanner, TofModel, build_scanner
from listmode.source import ScanProtocol
from recon.image import Grid

F64 = NDArray[np.float64]


def small_scanner(
    *,
    n_units: int = 2,
    n_rings_per_unit: int = 8,
    n_blocks: int = 16,
    n_crystals: int = 4,
    radius_mm: float = 100.0,
    tof: TofModel | None = None,
    max_ring_difference: int = 100,
    fov_radius_mm: float = 80.0,
    pitch_mm: float = 8.0,
) -> Scanner:
    """Make a scaled-down scanner with blocks and a gap ring."""
    return build_scanner(
        name="small",
        layout=BlockLayout(
            n_blocks=n_blocks,
            n_crystals=n_crystals,
            n_virtual=1,
            n_units=n_units,
            n_rings_per_unit=n_rings_per_unit,
            n_gap_rings=1,
            front_radius_mm=radius_mm,
        ),
        crystal_size_mm=(pitch_mm * 0.95, pitch_mm * 0.95, 20.0),
        crystal_pitch_mm=(pitch_mm, pitch_mm),
        max_ring_difference=max_ring_difference,
        fov_radius_mm=fov_radius_mm,
        tof=tof or TofModel(13, 100.0, 200.0),
    )


def all_pairs(scanner: Scanner) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List every accepted pair, crystal_a < crystal_b."""
    a, b = np.triu_indices(scanner.n_crystals, 1)
    good = scanner.accepts(a, b)
    return a[good], b[good]


def some_events(scanner: Scanner, n: int, seed: int) -> EventBatch:
    """Draw accepted pairs and TOF bins uniformly."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, scanner.n_crystals, 4 * n)
    b = rng.integers(0, scanner.n_crystals, 4 * n)
    good = scanner.accepts(a, b) & (a != b)
    a, b = a[good][:n], b[good][:n]
    return EventBatch.from_pairs(
        a, b, rng.integers(0, scanner.tof.n_bins, a.size), scanner.tof.n_bins
    )


def central_events(scanner: Scanner, n: int, seed: int, within_mm: float) -> EventBatch:
    """Draw pairs whose LOR and TOF bin point to within ``within_mm`` of the centre."""
    events = some_events(scanner, 200 * n, seed)
    p = scanner.crystal_position_mm.astype(np.float64)
    a, b = p[events.crystal_a], p[events.crystal_b]
    tof = scanner.tof
    at_mm = (events.tof_bin - (tof.n_bins - 1) / 2)[:, None] * tof.bin_width_mm
    direction = (b - a) / np.linalg.norm(b - a, axis=1)[:, None]
    if tof.has_tof:
        miss = np.linalg.norm((a + b) / 2 + at_mm * direction, axis=1)
    else:
        miss = np.linalg.norm(np.cross(a, direction), axis=1)
    near = np.flatnonzero(miss < within_mm)
    # As many along z as across, so that no principal axis is left out.
    steep = np.abs(direction[near, 2]) > 0.75
    pick = np.concatenate((near[steep][: n // 3], near[~steep][: n - n // 3]))
    return EventBatch(events.crystal_a[pick], events.crystal_b[pick], events.tof_bin[pick])


def tof_weight(s_mm: float, width_mm: float, sigma_mm: float, n_sigma: float) -> float:
    """Integrate a truncated Gaussian over one bin by counting."""
    t = np.linspace(-n_sigma, n_sigma, 200_001)
    g = np.exp(-0.5 * t**2)
    inside = np.abs(s_mm + t * sigma_mm) <= width_mm / 2
    return float(g[inside].sum() / g.sum())


def dense_matrix(grid: Grid, scanner: Scanner, events: EventBatch, n_sigma: float) -> F64:
    """Build the matrix of Joseph's method from its definition, voxel by voxel.

    The weight of a voxel is that of linear interpolation, in the plane across the ray's
    longest step (in voxels), at the voxel's own plane; times the ray's length a plane; times
    the TOF weight at that point.
    """
    matrix = np.zeros((len(events), *grid.shape))
    tof = scanner.tof
    for e in range(len(events)):
        a_mm = scanner.crystal_position_mm[events.crystal_a[e]].astype(np.float64)
        b_mm = scanner.crystal_position_mm[events.crystal_b[e]].astype(np.float64)
        a, b = grid.voxel_index(a_mm), grid.voxel_index(b_mm)
        length_mm = float(np.linalg.norm(b_mm - a_mm))
        axis = int(np.argmax(np.abs(b - a)))
        others = [k for k in range(3) if k != axis]
        step_mm = length_mm / abs(b[axis] - a[axis])
        centre_mm = (int(events.tof_bin[e]) - (tof.n_bins - 1) / 2) * tof.bin_width_mm
        for plane in range(grid.shape[axis]):
            share = (plane - a[axis]) / (b[axis] - a[axis])
            if not 0 <= share <= 1:
                continue
            point = a + share * (b - a)
            weight = step_mm
            if tof.has_tof:
                s_mm = (share - 0.5) * length_mm - centre_mm
                weight *= tof_weight(s_mm, tof.bin_width_mm, tof.sigma_mm, n_sigma)
            for voxel in np.ndindex(*[grid.shape[k] for k in others]):
                near = [1 - abs(point[k] - i) for k, i in zip(others, voxel, strict=True)]
                if min(near) > 0:
                    where = np.zeros(3, int)
                    where[axis] = plane
                    where[others] = voxel
                    matrix[(e, *where)] += weight * near[0] * near[1]
    return matrix


def ellipsoid_chord(
    start_mm: F64, stop_mm: F64, centre_mm: tuple[float, ...], semi_axes_mm: tuple[float, ...]
) -> F64:
    """Length of segments inside an ellipsoid, mm. Ends have shape (n, 3)."""
    first, last = ellipsoid_span(start_mm, stop_mm, centre_mm, semi_axes_mm)
    length_mm = np.linalg.norm(stop_mm - start_mm, axis=1)
    return np.asarray((last - first) * length_mm, dtype=np.float64)


def ellipsoid_span(
    start_mm: F64, stop_mm: F64, centre_mm: tuple[float, ...], semi_axes_mm: tuple[float, ...]
) -> tuple[F64, F64]:
    """Give where segments enter and leave an ellipsoid, as shares of their length."""
    p = (start_mm - centre_mm) / np.array(semi_axes_mm)
    d = (stop_mm - start_mm) / np.array(semi_axes_mm)
    a, b, c = (d * d).sum(1), (p * d).sum(1), (p * p).sum(1) - 1
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    return (-b - root) / a, (-b + root) / a


def ellipsoid_volume(
    grid: Grid, centre_mm: tuple[float, ...], semi_axes_mm: tuple[float, ...], n_sub: int = 4
) -> F64:
    """Fill an ellipsoid with ones, voxels at its rim by share of their volume."""
    offset = (np.arange(n_sub) - (n_sub - 1) / 2) / n_sub
    axes = [
        (np.add.outer(grid.axis_mm(k), offset * grid.voxel_mm[k]) - centre_mm[k])
        / semi_axes_mm[k]
        for k in range(3)
    ]
    x, y, z = (a.ravel() ** 2 for a in axes)
    inside = x[:, None, None] + y[None, :, None] + z[None, None, :] < 1
    nx, ny, nz = grid.shape
    blocks = inside.reshape(nx, n_sub, ny, n_sub, nz, n_sub)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=np.float64)


def exhaustive_rates(
    scanner: Scanner, crystal_a: NDArray[np.int64], crystal_b: NDArray[np.int64]
) -> F64:
    """Efficiency of pairs straight from the formula for n in ARCHITECTURE.md."""
    p = scanner.crystal_position_mm.astype(np.float64)
    size, pitch = scanner.crystal_size_mm, scanner.crystal_pitch_mm
    depth = scanner.stopping_per_mm * size[2] * size[0] * size[1] / (pitch[0] * pitch[1])
    r = p[crystal_b] - p[crystal_a]
    distance = np.linalg.norm(r, axis=1)
    out = 1e-3 / (2 * math.pi) * scanner.window_efficiency**2 / distance**2
    for crystal in (crystal_a, crystal_b):
        cos = np.abs((r * scanner.crystal_normal[crystal]).sum(axis=1)) / distance
        out *= pitch[0] * pitch[1] * cos * (1 - np.exp(-depth / cos))
        out *= scanner.crystal_profile[crystal]
    return np.asarray(out, dtype=np.float64)


def cylinder_span(
    start_mm: F64, stop_mm: F64, radius_mm: float, half_mm: float
) -> tuple[F64, F64]:
    """Give where segments enter and leave a centred cylinder along z, as shares of length."""
    d = stop_mm - start_mm
    a = (d[:, :2] ** 2).sum(1)
    b = (start_mm[:, :2] * d[:, :2]).sum(1)
    c = (start_mm[:, :2] ** 2).sum(1) - radius_mm**2
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    with np.errstate(divide="ignore"):
        low, high = (-half_mm - start_mm[:, 2]) / d[:, 2], (half_mm - start_mm[:, 2]) / d[:, 2]
    first = np.maximum((-b - root) / a, np.where(d[:, 2] == 0, -np.inf, np.minimum(low, high)))
    last = np.minimum((-b + root) / a, np.where(d[:, 2] == 0, np.inf, np.maximum(low, high)))
    return first, np.maximum(first, last)


def cylinder_scan(
    scanner: Scanner,
    *,
    activity_bq_ml: float,
    radius_mm: float,
    half_mm: float,
    mu_per_cm: float,
    seconds: float,
    protocol: ScanProtocol,
    seed: int = 77,
) -> MemoryListmode:
    """Draw the scan of a uniform cylinder from chords, efficiencies and timing errors.

    Pairs are drawn evenly and kept by their analytic rate; places are even along the chord;
    timing errors are Gaussian; times follow the decay. The number of events is its
    expectation, so activity has no noise from it. No projector takes part.
    """
    rng = np.random.default_rng(seed)
    p = scanner.crystal_position_mm.astype(np.float64)
    n_crystals, tof = scanner.n_crystals, scanner.tof
    decayed_s = (
        (1 - 2 ** (-seconds / protocol.half_life_s)) / math.log(2) * protocol.half_life_s
    )
    scale = activity_bq_ml * protocol.branching * protocol.count_fraction * decayed_s
    kept: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    n_kept, n_drawn, total, top = 0, 0, 0.0, 0.0
    while True:
        a, b = rng.integers(0, n_crystals, (2, 500_000))
        n_drawn += a.size
        good = scanner.accepts(a, b) & (a != b)
        a, b = np.minimum(a, b)[good], np.maximum(a, b)[good]
        first, last = cylinder_span(p[a], p[b], radius_mm, half_mm)
        meets = last > first
        a, b, first, last = a[meets], b[meets], first[meets], last[meets]
        length = np.linalg.norm(p[b] - p[a], axis=1)
        rate = exhaustive_rates(scanner, a, b) * (last - first) * length
        rate *= np.exp(-(last - first) * length * mu_per_cm / 10)
        total += float(rate.sum())
        top = top or 1.5 * float(rate.max())
        assert rate.max() <= top
        keep = rng.random(a.size) * top < rate
        a, b, first, last, length = (
            a[keep], b[keep], first[keep], last[keep], length[keep],
        )  # fmt: skip
        s = ((first + (last - first) * rng.random(a.size)) - 0.5) * length
        k = np.zeros(a.size, np.int64)
        if tof.has_tof:
            s = s + rng.normal(0, tof.sigma_mm, a.size)
            k = np.floor(s / tof.bin_width_mm + tof.n_bins / 2).astype(np.int64)
        inside = (k >= 0) & (k < tof.n_bins)
        kept.append((a[inside], b[inside], k[inside]))
        n_kept += int(inside.sum())
        # Pairs are unordered: n (n - 1) / 2 of them, against draws of both orders.
        n_expected = scale * total / n_drawn * n_crystals**2 / 2
        if n_kept >= n_expected:
            break
    n = round(n_expected)
    crystal_a, crystal_b, tof_bin = (np.concatenate(c)[:n] for c in zip(*kept, strict=True))
    share = (np.arange(n) + 0.5) / n * (1 - 2 ** (-seconds / protocol.half_life_s))
    time_ms = -np.log2(1 - share) * protocol.half_life_s * 1000
    offset = np.searchsorted(time_ms, np.arange(round(seconds * 1000) + 1)).astype(np.int64)
    offset[-1] = n
    events = EventBatch(
        crystal_a.astype(np.uint32), crystal_b.astype(np.uint32), tof_bin.astype(np.int16)
    )
    return MemoryListmode(scanner, protocol, events, offset)
