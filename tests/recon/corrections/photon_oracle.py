"""The oracle of scatter: a slow, plain photon Monte Carlo of a water cylinder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

MU_PER_MM = 0.0096
WINDOW_KEV = (435.0, 585.0)
RESOLUTION = 0.10


@dataclass(frozen=True)
class Detected:
    """Weighted single-scatter coincidences on a detector cylinder."""

    weight: F64  # counts per decay
    end_1_mm: F64
    end_2_mm: F64
    tof_mm: F64  # from the middle of the line towards end 2, not blurred

    @property
    def total(self) -> float:
        return float(self.weight.sum())


def _directions(rng: np.random.Generator, n: int) -> F64:
    cos = rng.uniform(-1, 1, n)
    phi = rng.uniform(0, 2 * np.pi, n)
    sin = np.sqrt(1 - cos**2)
    return np.stack((sin * np.cos(phi), sin * np.sin(phi), cos), axis=1)


def _to_cylinder(p: F64, u: F64, radius: float, half_length: float) -> F64:
    """Distance from inside a capped cylinder to its surface."""
    a = u[:, 0] ** 2 + u[:, 1] ** 2
    b = p[:, 0] * u[:, 0] + p[:, 1] * u[:, 1]
    c = p[:, 0] ** 2 + p[:, 1] ** 2 - radius**2
    with np.errstate(divide="ignore", invalid="ignore"):
        side = (-b + np.sqrt(np.maximum(b * b - a * c, 0))) / a
        cap = (np.sign(u[:, 2]) * half_length - p[:, 2]) / u[:, 2]
    side = np.where(a > 0, side, np.inf)
    return np.minimum(side, np.where(u[:, 2] != 0, cap, np.inf))


def _klein_nishina(rng: np.random.Generator, n: int) -> F64:
    """Cosines by rejection; the unnormalised density is at most 2 at 511 keV."""
    cos = np.empty(0)
    while cos.size < n:
        trial = rng.uniform(-1, 1, 3 * n)
        p = 1 / (1 + (1 - trial))
        keep = rng.uniform(0, 2, 3 * n) < p**2 * (p + 1 / p - (1 - trial**2))
        cos = np.concatenate((cos, trial[keep]))
    return cos[:n]


def _turn(rng: np.random.Generator, u: F64, cos: F64) -> F64:
    other = np.where(np.abs(u[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    v = np.cross(u, other)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    w = np.cross(u, v)
    psi = rng.uniform(0, 2 * np.pi, len(u))[:, None]
    sin = np.sqrt(1 - cos**2)[:, None]
    return np.asarray(u * cos[:, None] + sin * (np.cos(psi) * v + np.sin(psi) * w))


def _acceptance(energy: F64) -> F64:
    sigma = RESOLUTION * 511.0 * np.sqrt(energy / 511.0) / 2.3548
    erf = np.vectorize(math.erf)
    low, high = ((edge - energy) / sigma / math.sqrt(2) for edge in WINDOW_KEV)
    return np.asarray((erf(high) - erf(low)) / 2)


def _cross_section(energy: float) -> float:
    """Integrate Klein and Nishina's cross-section over the angle, arbitrary unit."""
    cos = np.linspace(-1, 1, 4001)
    p = 1 / (1 + energy / 511.0 * (1 - cos))
    return float(np.trapezoid(p**2 * (p + 1 / p - (1 - cos**2)), cos))


def single_scatter(
    *,
    radius_mm: float,
    length_mm: float,
    detector_radius_mm: float,
    detector_length_mm: float,
    stopping: float,
    n_decays: int,
    seed: int,
    offset_mm: float = 0.0,
) -> Detected:
    """Follow photon pairs of a uniform cylinder (moved along x by ``offset_mm``).

    One photon leaves unscattered, the other scatters once and survives by weight. The
    detector stops a photon with probability ``1 - exp(-stopping / cos)``; its window's
    efficiency is one.
    """
    rng = np.random.default_rng(seed)
    r = radius_mm * np.sqrt(rng.uniform(0, 1, n_decays))
    phi = rng.uniform(0, 2 * np.pi, n_decays)
    z = rng.uniform(-length_mm / 2, length_mm / 2, n_decays)
    p = np.stack((r * np.cos(phi), r * np.sin(phi), z), axis=1)
    u = _directions(rng, n_decays)  # photon 1, unscattered; photon 2 flies along -u
    half = length_mm / 2
    weight = 2.0 * np.exp(
        -MU_PER_MM * _to_cylinder(p, u, radius_mm, half)
    )  # either may scatter
    chord = _to_cylinder(p, -u, radius_mm, half)
    free = -np.log(rng.uniform(0, 1, n_decays)) / MU_PER_MM
    keep = free < chord
    p, u, weight, free = p[keep], u[keep], weight[keep], free[keep]
    place = p - u * free[:, None]
    cos = _klein_nishina(rng, len(p))
    energy = 511.0 / (2 - cos)
    full = _acceptance(np.array([511.0]))[0]
    v = _turn(rng, -u, cos)
    grid = np.linspace(150.0, 511.0, 200)
    ratio = np.array([_cross_section(e) for e in grid]) / _cross_section(511.0)
    weight *= np.exp(
        -MU_PER_MM * np.interp(energy, grid, ratio) * _to_cylinder(place, v, radius_mm, half)
    )
    weight *= _acceptance(energy) / full
    shift = np.array([offset_mm, 0.0, 0.0])
    ends, paths = [], []
    for start, direction, before in ((p, u, 0.0), (place, v, free)):
        path = _to_cylinder(start + shift, direction, detector_radius_mm, 1e9)
        end = start + shift + direction * path[:, None]
        inner = np.hypot(end[:, 0], end[:, 1])
        face = (end[:, 0] * direction[:, 0] + end[:, 1] * direction[:, 1]) / inner
        weight *= (np.abs(end[:, 2]) < detector_length_mm / 2) * (1 - np.exp(-stopping / face))
        ends.append(end)
        paths.append(path + before)
    keep = weight > 0
    tof = (paths[0] - paths[1]) / 2
    return Detected(weight[keep] / n_decays, ends[0][keep], ends[1][keep], tof[keep])
