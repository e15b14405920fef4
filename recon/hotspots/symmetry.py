"""The mid-sagittal plane, and what a hotspot's place looks like in health."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from listmode.errors import InputError
from recon.hotspots.places import place_of, without_side
from recon.hotspots.segment import Segmentation
from recon.image import Volume

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

CLIP_SUV = 3.0  # hot organs and lesions are not symmetric: above this they weigh no more
MIDLINE_MM = 15.0  # nearer to the plane there is no other side
DILATE_MM = 5.0
LEAST_MATCH = 0.5  # share of the mirrored place that must be the same kind of tissue
MOST_MU_DIFFERENCE = (
    0.02  # per cm; soft tissue 0.096, spongy bone 0.11-0.13 (PMC3572388, table 2)
)


@dataclass(frozen=True)
class MidPlane:
    """The plane that parts left from right: points p with ``normal . p = offset_mm``.

    Parameters
    ----------
    normal
        Unit vector towards the patient's left (+x for a straight patient), scanner frame.
    offset_mm
        Distance of the plane from the scanner's centre along the normal, mm.
    likeness
        Correlation of the image with its mirror image: 1 for perfect symmetry.
    """

    normal: tuple[float, float, float]
    offset_mm: float
    likeness: float

    def distance_mm(self, point_mm: F64) -> F64:
        """Signed distance of points (..., 3) from the plane, positive on the left, mm."""
        return np.asarray(point_mm @ np.array(self.normal) - self.offset_mm)

    def mirror(self, point_mm: F64) -> F64:
        """Reflect points (..., 3) at the plane, mm."""
        return np.asarray(
            point_mm - 2.0 * self.distance_mm(point_mm)[..., None] * np.array(self.normal)
        )


def find_mid_sagittal(volume: Volume, *, clip: float | None = None) -> MidPlane:
    """Find the plane about which an image is most alike its mirror image.

    The plane is half of the transform that registers the image to its mirror. Turns about the
    y and z axis and the offset are searched on a coarse, then on a finer image.

    Parameters
    ----------
    volume
        SUV, a mu-map, or activity.
    clip
        Values above count as this; ``None`` means SUV 3 for an SUV volume, no clipping for a
        mu-map and the 90th percentile of the positive values otherwise.

    Returns
    -------
    MidPlane
        In the scanner frame.

    Raises
    ------
    InputError
        If the volume holds nothing.
    """
    values = np.clip(np.asarray(volume.values, dtype=np.float64), 0.0, None)
    if not values.any():
        raise InputError(
            "a mid-sagittal plane needs an image with something in it, but every voxel is zero "
            "or less; give the activity image or the mu-map"
        )
    if clip is None:
        clip = {"SUV": CLIP_SUV, "1/cm": math.inf}.get(
            volume.unit, float(np.quantile(values[values > 0], 0.9))
        )
    values = np.minimum(values, clip)
    centre = np.array([float(c) for c in ndimage.center_of_mass(values)])
    middle = volume.grid.point_mm(centre)
    best = np.zeros(3)  # turn about z, turn about y (rad), shift along the normal (mm)
    for step_mm, spread in ((12.0, (0.12, 0.12, 12.0)), (6.0, (0.02, 0.02, 2.0))):
        match = _Match(volume, values, step_mm, middle)
        corners = best + np.vstack((np.zeros(3), np.diag(spread)))
        found = optimize.minimize(
            match.unlikeness,
            best,
            method="Nelder-Mead",
            options={"initial_simplex": corners, "xatol": 1e-3, "fatol": 1e-7, "maxiter": 300},
        )
        best = np.asarray(found.x)
    normal = _normal(best)
    return MidPlane(
        normal=(float(normal[0]), float(normal[1]), float(normal[2])),
        offset_mm=float(middle @ normal + best[2]),
        likeness=1.0 - float(found.fun),
    )


def _normal(turn: F64) -> F64:
    about_z, about_y = float(turn[0]), float(turn[1])
    return np.array(
        [
            math.cos(about_z) * math.cos(about_y),
            math.sin(about_z) * math.cos(about_y),
            math.sin(about_y),
        ]
    )


class _Match:
    """Compares a smoothed, thinned image with its mirror image."""

    def __init__(self, volume: Volume, values: F64, step_mm: float, middle: F64) -> None:
        voxel = np.array(volume.grid.voxel_mm)
        self._grid = volume.grid
        self._smooth = ndimage.gaussian_filter(values, step_mm / 2.355 / voxel)
        thin = np.maximum(np.rint(step_mm / voxel).astype(int), 1)
        index = np.stack(
            np.meshgrid(
                *[np.arange(0, n, t) for n, t in zip(values.shape, thin, strict=True)],
                indexing="ij",
            ),
            axis=-1,
        ).reshape(-1, 3)
        here = self._smooth[tuple(index.T)]
        inside = here > 0.02 * here.max()
        self._points = volume.grid.point_mm(index[inside]) - middle
        self._here = here[inside]
        self._middle = middle

    def unlikeness(self, turn: F64) -> float:
        """Give one minus the correlation of the image with its mirror image."""
        normal = _normal(turn)
        distance = self._points @ normal - turn[2]
        there = self._points - 2.0 * distance[:, None] * normal + self._middle
        mirrored = ndimage.map_coordinates(
            self._smooth, self._grid.voxel_index(there).T, order=1, mode="constant"
        )
        if not mirrored.std() > 0.0:
            return 2.0
        return 1.0 - float(np.corrcoef(self._here, mirrored)[0, 1])


@dataclass(frozen=True)
class Reference:
    """SUVmax of a hotspot's place in health.

    Parameters
    ----------
    value
        In the volume's unit; NaN where no such place was found.
    source
        ``"other side"``, ``"next vertebra"``, ``"next level"`` or ``"missing"``.
    reason
        Why it is missing.
    """

    value: float
    source: str
    reason: str = ""


def reference_uptake(
    volume: Volume,
    segmentation: Segmentation,
    plane: MidPlane,
    *,
    labels: Volume | None = None,
    label_names: Mapping[int, str] | None = None,
    mu: Volume | None = None,
) -> tuple[Reference, ...]:
    """Measure for each hotspot the same place in health.

    A hotspot away from the midline is mirrored at the plane and widened by 5 mm; voxels of
    other hotspots are left out. Near the midline, and in a vertebra, its region moves along z
    to the nearest vertebra (or, without named vertebrae, the nearest level) without a hotspot.
    The reference is the highest voxel there. It is missing where the mirrored place is of
    another kind (label map), of other attenuation (mu-map), outside of the image, or hot.

    Parameters
    ----------
    volume
        What is measured; on the segmentation's grid.
    plane
        From :func:`find_mid_sagittal`.
    labels, label_names, mu
        Label map with names, and mu-map, on the same grid.

    Returns
    -------
    tuple
        One reference a hotspot, in order.

    Raises
    ------
    InputError
        If a grid is another one.
    """
    for what, other in (
        ("segmentation", segmentation.mask),
        ("label map", labels),
        ("mu-map", mu),
    ):
        if other is not None and other.grid != volume.grid:
            raise InputError(
                f"the {what} must lie on the volume's grid, {volume.grid}, but it lies on "
                f"{other.grid}; bring it there with recon.io.nifti.resample_to"
            )
    body = _Body(volume, segmentation, plane, labels, label_names or {}, mu)
    return tuple(body.reference(number) for number in range(1, segmentation.n_hotspots + 1))


@dataclass(frozen=True, eq=False)
class _Body:
    """What the references are measured in."""

    volume: Volume
    segmentation: Segmentation
    plane: MidPlane
    labels: Volume | None
    names: Mapping[int, str]
    mu: Volume | None

    def reference(self, number: int) -> Reference:
        index = np.argwhere(self.segmentation.mask.values == number)
        points = self.volume.grid.point_mm(index)
        region = self.segmentation.region[number - 1]
        is_spine = place_of(region).location == "spine"
        off_mm = abs(float(self.plane.distance_mm(points.mean(axis=0))))
        if is_spine and self.labels is not None:
            return self._next_vertebra(index, self.labels)
        if off_mm < MIDLINE_MM:
            return self._next_level(index)
        return self._other_side(index, region)

    def _other_side(self, index: I64, region: str) -> Reference:
        grid = self.volume.grid
        corner = self.plane.mirror(grid.point_mm(np.array([index.min(0), index.max(0)])))
        margin = DILATE_MM / np.array(grid.voxel_mm) + 2.0
        reached = self.plane.mirror(grid.point_mm(index))
        low = np.floor(grid.voxel_index(np.vstack((corner, reached))).min(axis=0) - margin)
        high = np.ceil(grid.voxel_index(np.vstack((corner, reached))).max(axis=0) + margin)
        axes = [np.arange(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
        box = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        box = box[((box >= 0) & (box < grid.shape)).all(axis=1)]
        back = self.plane.mirror(grid.point_mm(box))
        near = _distance_to(index, back, grid.voxel_mm, grid.point_mm(np.zeros(3)))
        core = box[near <= 0.5 * min(grid.voxel_mm)]
        return self._measured(core, box[near <= DILATE_MM], region, index, "other side")

    def _next_vertebra(self, index: I64, label_map: Volume) -> Reference:
        """Move the region to the nearest vertebra of the label map without a hotspot."""
        labels, mask = label_map.values, self.segmentation.mask.values
        hot = set(np.unique(labels[mask > 0]).tolist())
        here = index.mean(axis=0)
        best: tuple[float, F64] | None = None
        for value, name in sorted(self.names.items()):
            if place_of(name).location != "spine" or value in hot:
                continue
            voxels = np.argwhere(labels == value)
            if not len(voxels):
                continue
            shift = voxels.mean(axis=0) - here
            distance = abs(float(shift[2])) * self.volume.grid.voxel_mm[2]
            if best is None or distance < best[0]:
                best = (distance, shift)
        if best is None:
            return Reference(math.nan, "missing", "no vertebra without a hotspot")
        moved = index + np.rint(best[1]).astype(np.int64)
        return self._measured(moved, moved, "", index, "next vertebra")

    def _next_level(self, index: I64) -> Reference:
        """Move the region along z by its own height until it meets no hotspot."""
        height = int(np.ptp(index[:, 2])) + 1
        gap = height + math.ceil(DILATE_MM / self.volume.grid.voxel_mm[2])
        mask = self.segmentation.mask.values
        for step in range(1, 6):
            for sign in (1, -1):
                moved = index + np.array([0, 0, sign * step * gap])
                if (moved < 0).any() or (moved >= self.volume.grid.shape).any():
                    continue
                if not mask[tuple(moved.T)].any():
                    return self._measured(moved, moved, "", index, "next level")
        return Reference(math.nan, "missing", "no level without a hotspot")

    def _measured(
        self, core: I64, wide: I64, region: str, hotspot: I64, source: str
    ) -> Reference:
        """Judge a place by its core and take the highest voxel of the wider region."""
        core, wide = self._inside(core), self._inside(wide)
        if not len(core):
            return Reference(math.nan, "missing", "its place lies outside of the image")
        mask = self.segmentation.mask.values
        if (mask[tuple(core.T)] > 0).mean() > 1.0 - LEAST_MATCH:
            return Reference(math.nan, "missing", "its place is a hotspot itself")
        wide = wide[mask[tuple(wide.T)] == 0]
        if region and self.labels is not None:
            if self._is_kind(core, region).mean() < LEAST_MATCH:
                return Reference(math.nan, "missing", "its place is another kind of tissue")
            wide = wide[self._is_kind(wide, region)]  # a neighbouring organ is no reference
        if self.mu is not None:
            here = float(self.mu.values[tuple(hotspot.T)].mean())
            there = float(self.mu.values[tuple(core.T)].mean())
            if abs(here - there) > MOST_MU_DIFFERENCE:
                return Reference(math.nan, "missing", "its place attenuates otherwise")
        return Reference(float(self.volume.values[tuple(wide.T)].max()), source)

    def _inside(self, index: I64) -> I64:
        shape = np.array(self.volume.grid.shape)
        return np.asarray(index[((index >= 0) & (index < shape)).all(axis=1)])

    def _is_kind(self, index: I64, region: str) -> Bool:
        """Say for each voxel whether its region is of the same kind, whatever the side."""
        assert self.labels is not None  # callers have checked
        same = [v for v, n in self.names.items() if without_side(n) == without_side(region)]
        return np.isin(self.labels.values[tuple(index.T)], same)


def _distance_to(index: I64, points: F64, voxel_mm: tuple[float, ...], origin: F64) -> F64:
    """Distance of points from the nearest of some voxels (0 inside of one), mm."""
    low = index.min(axis=0) - 6
    mask = np.zeros(index.max(axis=0) + 7 - low, dtype=bool)
    mask[tuple((index - low).T)] = True
    distance = ndimage.distance_transform_edt(~mask, sampling=voxel_mm)
    at = (points - origin) / np.array(voxel_mm) - low
    return np.asarray(
        ndimage.map_coordinates(distance, at.T, order=1, mode="constant", cval=np.inf)
    )
