"""Crystals at a block's edge: they see more, but only of what comes in by their own side.

A stated block profile is a mean over the directions of a wide source. A photon that enters by
the side of a block has not crossed the crystals that would lie before its own in an endless
slab; one that leaves by that side loses nothing. So the profile of a pair depends on the
incidence at either end, and with it on the distance of the LOR from the axis and on its tilt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from listmode.scanner import BlockLayout, Scanner
from recon.corrections import _kernels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I16 = NDArray[np.int16]

STEEPEST = 2.5  # tangent of the incidence; steeper LORs do not reach the field of view
PER_SLOPE = 12  # table entries per unit of slope
N_DEPTHS = 128
PROFILE_SOURCE_MM, PROFILE_SOURCE_SHARE = 250.0, 0.75  # of `simulate.calibrate`: its radius


@dataclass(frozen=True, eq=False)
class EdgeResponse:
    """What a crystal sees, over its mean, by its place in the block and the incidence.

    Parameters
    ----------
    axis
        Unit vector from the first to the last ring. Shape (3,), float32.
    sense
        +1 or -1: places in a block rise along ``sense`` times axis x normal.
    place
        Place across the block, and ring. Shape (n_crystals, 2), int16.
    across, along
        Factors by place (or ring) and slope, -2.5 to 2.5. Float32.
    """

    axis: F32
    sense: float
    place: I16
    across: F32
    along: F32

    def apply(
        self,
        scanner: Scanner,
        crystal_a: NDArray[np.uint32],
        crystal_b: NDArray[np.uint32],
        out: F32,
    ) -> None:
        """Multiply the efficiencies of pairs by both ends' factors, in place."""
        _kernels.edge_factors(
            crystal_a, crystal_b, scanner.crystal_position_mm, scanner.crystal_normal,
            self.axis, self.sense, self.place, self.across, self.along, STEEPEST, PER_SLOPE,
            out,
        )  # fmt: skip


@lru_cache(maxsize=8)
def edge_response(scanner: Scanner) -> EdgeResponse | None:
    """Tabulate how a scanner's block profile depends on the incidence.

    Returns
    -------
    EdgeResponse or None
        ``None`` where the scanner states no profile, or no layout of all its crystals.
    """
    layout, profile = scanner.layout, scanner.crystal_profile
    if layout is None or float(np.ptp(profile)) == 0.0:
        return None
    n_around = layout.n_blocks * layout.n_crystals
    if scanner.n_crystals != n_around * layout.n_units * layout.n_rings_per_unit:
        return None
    number = np.arange(scanner.n_crystals)
    place = np.stack((number % n_around % layout.n_crystals, number // n_around), axis=1)
    ends = scanner.crystal_position_mm[[0, -n_around]].astype(np.float64)
    axis = ends[1] - ends[0]
    length = float(np.linalg.norm(axis))
    return EdgeResponse(
        axis=(axis / length if length > 0.0 else np.array([0.0, 0.0, 1.0])).astype(np.float32),
        sense=float(layout.sense),
        place=place.astype(np.int16),
        across=_across(scanner, layout).astype(np.float32),
        along=_along(scanner, layout).astype(np.float32),
    )


def _slopes() -> F64:
    return np.arange(-STEEPEST * PER_SLOPE, STEEPEST * PER_SLOPE + 1) / PER_SLOPE


def side_gain(
    n: int,
    pitch_mm: float,
    depth_mm: float,
    stopping_per_mm: float,
    slope: F64,
    *,
    gap_mm: float = math.inf,
    turn_rad: float = 0.0,
    front_mm: float = 0.0,
) -> F64:
    """Give what the crystals of a block gain by photons that enter by its side.

    Parameters
    ----------
    n, pitch_mm
        Crystals from the side inwards, and their width, mm.
    depth_mm, stopping_per_mm
        Depth of the block and its attenuation, gaps between its crystals averaged, 1/mm.
    slope
        Tangents of the incidence, positive towards the inside of the block. Shape (n_slopes,).
    gap_mm
        Distance to the next block in line; infinite if there is none.
    turn_rad, front_mm
        Angle to the next block of a polygon, with the distance of its sides from the centre,
        in place of the gap.

    Returns
    -------
    ndarray
        Gain over the response of the same crystal in an endless slab. Shape (n, n_slopes),
        float64.

    Notes
    -----
    A ray that meets the side at depth y would have crossed ``y/cos`` of the slab and crosses
    what the next block puts in its way. The difference of the two survivals, times what each
    crystal stops of it, integrated over y, over ``pitch cos (1 - exp(-mu L/cos))``.
    """
    sine, cosine = slope / np.hypot(1.0, slope), 1.0 / np.hypot(1.0, slope)
    y = (np.arange(N_DEPTHS) + 0.5) * depth_mm / N_DEPTHS
    width = n * pitch_mm
    before = np.zeros((slope.size, y.size))
    if turn_rad > 0.0 or math.isfinite(gap_mm):
        c, s = math.cos(turn_rad), math.sin(turn_rad)
        t0 = np.zeros_like(y) - width / 2.0
        t = t0 * c + (y + front_mm) * s
        if turn_rad == 0.0:
            t = t0 + width + gap_mm
        high = -t0 * s + (y + front_mm) * c - front_mm
        back_t, back_y = -(sine * c + cosine * s), -(-sine * s + cosine * c)
        enter = np.zeros_like(before)
        leave = np.full_like(before, np.inf)
        for at, way, low, top in (
            (t, back_t, -width / 2.0, width / 2.0),
            (high, back_y, 0.0, depth_mm),
        ):
            way = np.where(np.abs(way) < 1e-12, 1e-12, way)[:, None]
            one, two = (low - at) / way, (top - at) / way
            enter = np.maximum(enter, np.minimum(one, two))
            leave = np.minimum(leave, np.maximum(one, two))
        before = np.maximum(leave - enter, 0.0)
    more = np.exp(-stopping_per_mm * before) - np.exp(-stopping_per_mm * y / cosine[:, None])
    last = (depth_mm - y) / cosine[:, None]
    edge = np.arange(n + 1)[:, None, None] * pitch_mm / np.maximum(sine, 1e-9)[:, None]
    left = np.exp(-stopping_per_mm * np.minimum(edge, last))
    stopped = (left[:-1] - left[1:]) * more * sine[:, None]
    gained = stopped.sum(axis=2) * depth_mm / N_DEPTHS
    slab = pitch_mm * cosine * -np.expm1(-stopping_per_mm * depth_mm / cosine)
    return np.asarray(gained / slab)


def _stopping(scanner: Scanner) -> float:
    size, pitch = scanner.crystal_size_mm, scanner.crystal_pitch_mm
    return scanner.stopping_per_mm * size[0] * size[1] / (pitch[0] * pitch[1])


def _both_sides(slopes: F64, low: F64, high: F64) -> F64:
    """Lay the gains of both sides, each (n, n_slopes at or above 0), over all slopes."""
    n_half = slopes.size // 2
    table = np.ones((low.shape[0], slopes.size))
    table[:, n_half:] += low
    table[:, : n_half + 1] += high[::-1, ::-1]
    return table


def _source_radius_mm(scanner: Scanner) -> float:
    return min(PROFILE_SOURCE_MM, PROFILE_SOURCE_SHARE * scanner.fov_radius_mm)


def _across(scanner: Scanner, layout: BlockLayout) -> F64:
    slopes = _slopes()
    gain = side_gain(
        layout.n_crystals,
        scanner.crystal_pitch_mm[0],
        scanner.crystal_size_mm[2],
        _stopping(scanner),
        slopes[slopes.size // 2 :],
        turn_rad=2.0 * math.pi / layout.n_blocks,
        front_mm=layout.front_radius_mm,
    )
    table = _both_sides(slopes, gain, gain)
    # a long source of radius R lights a crystal from each direction by its chord
    fine = np.linspace(-STEEPEST, STEEPEST, 4001)
    angle = np.arctan(fine)
    distance = (layout.front_radius_mm + scanner.doi_mm) * np.sin(angle)
    chord = np.sqrt(np.maximum(_source_radius_mm(scanner) ** 2 - distance**2, 0.0))
    depth = _stopping(scanner) * scanner.crystal_size_mm[2]
    light = chord * np.cos(angle) ** 3 * -np.expm1(-depth / np.cos(angle))  # d angle = cos²
    mean = [np.average(np.interp(fine, slopes, row), weights=light) for row in table]
    return np.asarray(table / np.array(mean)[:, None])


def _along(scanner: Scanner, layout: BlockLayout) -> F64:
    slopes = _slopes()
    half = slopes[slopes.size // 2 :]
    n, pitch = layout.n_rings_per_unit, scanner.crystal_pitch_mm[1]
    mu, depth_mm = _stopping(scanner), scanner.crystal_size_mm[2]
    inner = side_gain(n, pitch, depth_mm, mu, half, gap_mm=layout.n_gap_rings * pitch)
    outer = side_gain(n, pitch, depth_mm, mu, half)
    units = [
        _both_sides(
            slopes,
            outer if unit == 0 else inner,
            outer if unit == layout.n_units - 1 else inner,
        )
        for unit in range(layout.n_units)
    ]
    # the profile is the mean over units and both directions, of a source as long as the rings
    n_around = layout.n_blocks * layout.n_crystals
    z_mm = scanner.crystal_position_mm @ (
        (scanner.crystal_position_mm[-1] - scanner.crystal_position_mm[n_around - 1])
        / max(1e-9, scanner.axial_length_mm - pitch)
    )
    ring_mm = z_mm[::n_around] - z_mm[::n_around].mean()
    source = (np.arange(400) + 0.5) / 400 * scanner.axial_length_mm
    source -= scanner.axial_length_mm / 2.0
    across_mm = layout.front_radius_mm + scanner.doi_mm
    mean = np.zeros(n)
    for row, z in enumerate(ring_mm.tolist()):
        slope = (z - source) / across_mm
        light = (1 + slope**2) ** -1.5 * -np.expm1(-mu * depth_mm * np.hypot(1, slope))
        of_slope = np.interp(slope, slopes, units[row // n][row % n])
        mean[row % n] += np.average(of_slope, weights=light) / layout.n_units
    mean = (mean + mean[::-1]) / 2.0
    return np.asarray(np.concatenate([unit / mean[:, None] for unit in units]))
