"""Voxel grids and volumes on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

Unit = Literal["Bq/mL", "SUV", "1/cm", "label", "counts", "1"]


@dataclass(frozen=True)
class Grid:
    """A voxel grid in the scanner frame, its axes along x, y and z.

    Parameters
    ----------
    shape
        Voxels along x, y, z.
    voxel_mm
        Voxel size along x, y, z, mm.
    origin_mm
        Centre of voxel (0, 0, 0) in the scanner frame, mm.

    Raises
    ------
    InputError
        If a size is not positive or a number is not finite.

    Examples
    --------
    >>> Grid.centred((3, 3, 5), 2.0).origin_mm
    (-2.0, -2.0, -4.0)
    """

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        numbers = np.array([*self.shape, *self.voxel_mm, *self.origin_mm], dtype=np.float64)
        if numbers.size != 9 or not np.isfinite(numbers).all() or (numbers[:6] <= 0).any():
            raise InputError(
                "a grid needs three positive sizes, three positive voxel sizes and a finite "
                f"origin, but it has shape {self.shape}, voxels {self.voxel_mm} mm and origin "
                f"{self.origin_mm} mm; correct it"
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "voxel_mm", tuple(float(v) for v in self.voxel_mm))
        object.__setattr__(self, "origin_mm", tuple(float(v) for v in self.origin_mm))

    @classmethod
    def centred(
        cls, shape: tuple[int, int, int], voxel_mm: float | tuple[float, float, float]
    ) -> Grid:
        """Make a grid whose middle is the scanner's centre."""
        v = (voxel_mm,) * 3 if isinstance(voxel_mm, (int, float)) else voxel_mm
        ox, oy, oz = (-(n - 1) / 2.0 * size for n, size in zip(shape, v, strict=True))
        return cls(shape, (float(v[0]), float(v[1]), float(v[2])), (ox, oy, oz))

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, mL."""
        return self.voxel_mm[0] * self.voxel_mm[1] * self.voxel_mm[2] / 1000.0

    @cached_property
    def scanner_from_voxel(self) -> F64:
        """Affine from voxel indices to scanner coordinates (mm). Shape (4, 4), float64."""
        affine = np.diag([*self.voxel_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    @cached_property
    def voxel_from_scanner(self) -> F64:
        """Affine from scanner coordinates (mm) to voxel indices. Shape (4, 4), float64."""
        return np.asarray(np.linalg.inv(self.scanner_from_voxel))

    def axis_mm(self, axis: int) -> F64:
        """Voxel centres along one axis, mm. Shape (shape[axis],), float64."""
        return self.origin_mm[axis] + self.voxel_mm[axis] * np.arange(
            self.shape[axis], dtype=np.float64
        )

    def voxel_index(self, point_mm: ArrayLike) -> F64:
        """Turn points (..., 3) in the scanner frame, mm, into fractional voxel indices."""
        return (np.asarray(point_mm, dtype=np.float64) - self.origin_mm) / self.voxel_mm

    def point_mm(self, index: ArrayLike) -> F64:
        """Turn voxel indices (..., 3) into points in the scanner frame, mm."""
        return np.asarray(index, dtype=np.float64) * self.voxel_mm + self.origin_mm


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on a grid, with their unit and where they came from.

    Parameters
    ----------
    values
        Indexed ``[x, y, z]``. Shape ``grid.shape``, float32 (int32 for labels), C order.
    grid
        Where the voxels are.
    unit
        ``"Bq/mL"`` (decay-corrected to tick zero), ``"SUV"`` (g/mL, body weight), ``"1/cm"``
        (linear attenuation at 511 keV), ``"label"``, ``"counts"`` or ``"1"``.
    provenance
        File hash, windows, settings, version: whatever makes the volume reproducible. JSON
        values only; never a path or a patient's name.

    Raises
    ------
    InputError
        If the shape is not the grid's, a value is not finite, or the unit is unknown.
    """

    values: F32 | NDArray[np.int32]
    grid: Grid
    unit: Unit
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dtype = np.int32 if self.unit == "label" else np.float32
        values = np.ascontiguousarray(self.values, dtype=dtype).view()
        if values.shape != self.grid.shape:
            raise InputError(
                f"a volume must have its grid's shape {self.grid.shape}, but it has "
                f"{values.shape}; resample it or use its own grid"
            )
        if self.unit not in get_args(Unit):
            raise InputError(
                f"a volume's unit must be one of {', '.join(get_args(Unit))}, but it is "
                f"{self.unit!r}; convert the values"
            )
        if not np.isfinite(values).all():
            bad = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise InputError(
                f"a volume must be finite, but voxel {bad} is {values[bad]}; "
                "find what made it before going on"
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
