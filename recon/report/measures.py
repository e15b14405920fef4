"""Numbers that the report is judged by: profile widths, edges and noise, from arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from recon.image import Volume

F64 = NDArray[np.float64]

EDGE_MM = 12.0  # outer part of a profile that counts as background, each side


@dataclass(frozen=True)
class ProfileWidths:
    """Widths of one hot object along z.

    ``rms_mm`` is the background-subtracted RMS width; ``lower_edge_mm`` and ``upper_edge_mm``
    are the 20-80 % widths of the object's walls. A shift in the middle of a scan widens all
    three; the full width at half maximum hardly sees it.
    """

    centre_mm: float
    rms_mm: float
    lower_edge_mm: float
    upper_edge_mm: float


def axial_profile(
    volume: Volume,
    centre_mm: tuple[float, float, float],
    *,
    radius_mm: float = 60.0,
    half_length_mm: float = 75.0,
) -> tuple[F64, F64]:
    """Integrate a volume over x and y in a cylinder along z.

    Parameters
    ----------
    volume
        Any unit.
    centre_mm
        Middle of the cylinder in the scanner frame, mm.
    radius_mm, half_length_mm
        Size of the cylinder, mm.

    Returns
    -------
    z_mm
        Slice centres. Shape (n,), mm.
    profile
        Integral over the slice's part of the cylinder: unit of the volume times mL a mm of z.
        Shape (n,).
    """
    grid = volume.grid
    x, y, z = (grid.axis_mm(axis) - centre_mm[axis] for axis in range(3))
    inside = x[:, None] ** 2 + y[None, :] ** 2 <= radius_mm**2
    part = np.abs(z) <= half_length_mm
    area_ml_per_mm = grid.voxel_mm[0] * grid.voxel_mm[1] / 1000.0
    profile = volume.values[:, :, part][inside].sum(axis=0, dtype=np.float64)
    return z[part] + centre_mm[2], profile * area_ml_per_mm


def measure_profile(z_mm: F64, profile: F64) -> ProfileWidths | None:
    """Measure position and widths of the object in an axial profile.

    The background is the straight line through the mean of both ends (12 mm each). The object
    reaches, from its highest point, down to where the rest falls below nothing on both sides.

    Parameters
    ----------
    z_mm, profile
        As :func:`axial_profile` gives them. Shape (n,).

    Returns
    -------
    ProfileWidths or None
        ``None`` if nothing stands out of the background.
    """
    if z_mm.size < 8:
        return None
    low, high = z_mm < z_mm[0] + EDGE_MM, z_mm > z_mm[-1] - EDGE_MM
    slope = (profile[high].mean() - profile[low].mean()) / (
        z_mm[high].mean() - z_mm[low].mean()
    )
    rest = profile - profile[low].mean() - slope * (z_mm - z_mm[low].mean())
    top = int(np.argmax(rest))
    if rest[top] <= 0.0:
        return None
    below = np.flatnonzero(rest <= 0.0)
    first = int(below[below < top].max(initial=-1)) + 1
    last = int(below[below > top].min(initial=rest.size))
    z, weight = z_mm[first:last], rest[first:last]
    centre = float((z * weight).sum() / weight.sum())
    rms = float(np.sqrt((weight * (z - centre) ** 2).sum() / weight.sum()))
    return ProfileWidths(
        centre_mm=centre,
        rms_mm=rms,
        lower_edge_mm=_edge_width(z_mm[: top + 1], rest[: top + 1]),
        upper_edge_mm=_edge_width(-z_mm[top:][::-1], rest[top:][::-1]),
    )


def _edge_width(z_mm: F64, rising: F64) -> float:
    """Distance over which a profile climbs from 20 % to 80 % of its last value, mm."""
    level = rising / rising[-1]
    at = []
    for fraction in (0.2, 0.8):
        k = int(np.flatnonzero(level < fraction).max(initial=0))  # last place below it
        k = min(k, level.size - 2)
        step = level[k + 1] - level[k]
        at.append(z_mm[k] + (z_mm[k + 1] - z_mm[k]) * (fraction - level[k]) / step)
    return float(at[1] - at[0])


def coefficient_of_variation(
    volume: Volume, region: NDArray[np.bool_], *, margin_mm: float = 10.0
) -> tuple[float, float, int] | None:
    """Measure mean and relative noise in a region, away from its surface.

    Parameters
    ----------
    volume
        Any unit.
    region
        Voxels of an organ that takes up evenly, such as the liver. Shape ``grid.shape``.
    margin_mm
        Width of the rim that is left out, mm.

    Returns
    -------
    tuple or None
        Mean (unit of the volume), standard deviation over mean, and number of voxels; ``None``
        if fewer than 30 voxels are left.
    """
    found = ndimage.find_objects(region.astype(np.uint8))
    if not found:
        return None
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in found[0])
    distance_mm = ndimage.distance_transform_edt(region[box], sampling=volume.grid.voxel_mm)
    values = volume.values[box][np.asarray(distance_mm) > margin_mm].astype(np.float64)
    if values.size < 30 or values.mean() <= 0.0:
        return None
    return float(values.mean()), float(values.std(ddof=1) / values.mean()), int(values.size)
