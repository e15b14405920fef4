"""Thresholds taken from the patient's own liver or blood pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from listmode.errors import InputError
from recon.hotspots.places import plain_name
from recon.hotspots.segment import Absolute
from recon.image import Volume

LIVER_SPHERE_MM = 15.0  # radius
BLOOD_VOLUME_RADIUS_MM = 5.0

_NO_LIVER_RULE = ("psma-1007", "psma1007")
_BLOOD_NAMES = ("blood_pool", "aorta", "heart")


@dataclass(frozen=True)
class RegionStatistics:
    """Mean and standard deviation of a reference region, and how many voxels it has."""

    mean: float
    sd: float
    n_voxels: int


def liver_threshold(
    volume: Volume,
    labels: Volume,
    label_names: Mapping[int, str],
    *,
    tracer: str,
    factor: float = 1.5,
    n_sd: float = 2.0,
) -> Absolute:
    """Set the threshold from a sphere of 30 mm in the right lobe of the liver.

    With the default factors this is PERCIST's 1.5 x mean + 2 SD (Wahl et al., 2009,
    10.2967/jnumed.108.057307).

    Parameters
    ----------
    volume
        SUV or Bq/mL.
    labels, label_names
        Label map on the same grid, with a region called liver.
    tracer
        Refused for PSMA-1007, which the liver itself takes up (median SUVmean 11.8:
        10.1111/cpf.70016).
    factor, n_sd
        The threshold is ``factor x mean + n_sd x SD``.

    Raises
    ------
    InputError
        If the tracer is PSMA-1007, there is no liver, or it cannot hold the sphere.
    """
    if any(name in tracer.lower().replace(" ", "") for name in _NO_LIVER_RULE):
        raise InputError(
            "a liver threshold needs a liver that is not hot itself, but the tracer is "
            f"{tracer} (median liver SUV 11.8); use a fixed SUV or the blood pool"
        )
    liver = _region(volume, labels, label_names, ("liver",))
    found = _sphere_in(volume, _right_half(liver), LIVER_SPHERE_MM, "liver")
    return Absolute(factor * found.mean + n_sd * found.sd)


def blood_threshold(
    volume: Volume,
    labels: Volume,
    label_names: Mapping[int, str],
    *,
    factor: float = 2.0,
    n_sd: float = 2.0,
) -> Absolute:
    """Set the threshold from the blood pool: ``factor x mean + n_sd x SD``.

    The defaults are PERCIST's for patients whose liver is not usable (Wahl et al., 2009,
    10.2967/jnumed.108.057307). Measured in a sphere of 10 mm diameter, deepest inside the
    region called blood_pool, aorta or heart, whichever is there first.

    Raises
    ------
    InputError
        If there is no such region, or it cannot hold the sphere.
    """
    blood = _region(volume, labels, label_names, _BLOOD_NAMES)
    found = _sphere_in(volume, blood, BLOOD_VOLUME_RADIUS_MM, "blood pool")
    return Absolute(factor * found.mean + n_sd * found.sd)


def _region(
    volume: Volume, labels: Volume, names: Mapping[int, str], wanted: Collection[str]
) -> NDArray[np.bool_]:
    if labels.grid != volume.grid:
        raise InputError(
            f"the label map must lie on the volume's grid, {volume.grid}, but it lies on "
            f"{labels.grid}; bring it there with recon.io.nifti.resample_to"
        )
    for name in wanted:
        values = [value for value, found in names.items() if plain_name(found) == name]
        region = np.isin(labels.values, values)
        if region.any():
            return region
    raise InputError(
        f"the label map must have a region called {' or '.join(wanted)}, but it has "
        f"{', '.join(sorted(names.values())) or 'none'}; use another threshold"
    )


def _right_half(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the half of a region on the patient's right (-x)."""
    along_x = np.flatnonzero(region.any(axis=(1, 2)))
    half = region.copy()
    half[int(along_x.mean()) + 1 :] = False
    return half


def _sphere_in(
    volume: Volume, region: NDArray[np.bool_], radius_mm: float, what: str
) -> RegionStatistics:
    """Measure a sphere about the deepest voxel of a region."""
    padded = np.pad(region, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=volume.grid.voxel_mm)
    depth = np.asarray(depth)[1:-1, 1:-1, 1:-1]
    if depth.max() < radius_mm:
        raise InputError(
            f"the {what} must hold a sphere of {2 * radius_mm:g} mm, but the largest inside it "
            f"has {2 * depth.max():.3g} mm; use another threshold"
        )
    centre = np.unravel_index(int(np.argmax(depth)), depth.shape)
    axes = [np.arange(n) - c for n, c in zip(region.shape, centre, strict=True)]
    x, y, z = (a * v for a, v in zip(axes, volume.grid.voxel_mm, strict=True))
    inside = (
        x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2 <= radius_mm**2
    )
    values = volume.values[inside].astype(np.float64)
    return RegionStatistics(float(values.mean()), float(values.std()), values.size)
