"""Analytic shapes with activity and attenuation, and phantoms made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError
from listmode.simulate import _kernels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Vector = tuple[float, float, float]
Kind = Literal["ellipsoid", "cylinder", "box"]

_KINDS: tuple[Kind, ...] = ("ellipsoid", "cylinder", "box")


@dataclass(frozen=True)
class Shape:
    """One piece of a phantom.

    Parameters
    ----------
    name
        Unique within a phantom.
    label
        Name in the label map; pieces may share one.
    kind
        ``"ellipsoid"``, ``"cylinder"`` (elliptic, along z) or ``"box"``.
    centre_mm, semi_mm
        Centre and semi-axes along x, y, z, mm.
    activity
        Concentration inside, in the phantom's unit.
    mu_per_cm
        Linear attenuation at 511 keV, 1/cm.
    parent
        Name of an earlier piece that holds this one whole; ``None`` in air. Values replace the
        parent's.
    is_fixed
        Stays in the scanner's frame when the patient moves (the table).
    """

    name: str
    label: str
    kind: Kind
    centre_mm: Vector
    semi_mm: Vector
    activity: float
    mu_per_cm: float
    parent: str | None = None
    is_fixed: bool = False

    @property
    def volume_ml(self) -> float:
        """Volume, mL."""
        factor = {"ellipsoid": 4.0 * math.pi / 3.0, "cylinder": 2.0 * math.pi, "box": 8.0}
        return factor[self.kind] * math.prod(self.semi_mm) / 1000.0


@dataclass(frozen=True, eq=False)
class Phantom:
    """A body made of shapes; one of them may fill with time.

    Values add up: a shape adds its value less its parent's. Integrals along lines are then
    sums of chords in any order. Positions are in the scanner's frame for an unmoved patient.

    Parameters
    ----------
    name
        Name, for provenance.
    shapes
        Pieces, parents before children.
    physiological
        Labels whose uptake is normal.
    weight_kg
        Body weight for SUV, kg.
    unit
        Unit of the shapes' activity.
    bq_ml_per_suv
        Bq/mL at tick zero of one SUV; not used if the unit is Bq/mL.
    filling_shape, filling_ml_min
        Name of the ellipsoid that fills and how fast, mL/min. It keeps its caudal end, its
        shape and its concentration (Lotz et al., caudal part most reproducible; volume linear
        in time: doi 10.1016/j.ijrobp.2019.06.849).

    Raises
    ------
    InputError
        If names are not unique, a parent is missing, a size or a value is impossible.
    """

    name: str
    shapes: tuple[Shape, ...]
    physiological: frozenset[str] = frozenset()
    weight_kg: float = 70.0
    unit: Literal["Bq/mL", "SUV"] = "Bq/mL"
    bq_ml_per_suv: float = 1.0
    filling_shape: str | None = None
    filling_ml_min: float = 0.0

    def __post_init__(self) -> None:
        known: set[str] = set()
        for shape in self.shapes:
            if shape.name in known or (shape.parent is not None and shape.parent not in known):
                raise InputError(
                    f"phantom {self.name!r}: shapes need unique names and parents that come "
                    f"before them, but {shape.name!r} in {shape.parent!r} breaks this; rename "
                    "or reorder"
                )
            if min(shape.semi_mm) <= 0.0 or shape.activity < 0.0 or shape.mu_per_cm < 0.0:
                raise InputError(
                    f"phantom {self.name!r}: sizes must be positive and values not negative, "
                    f"but {shape.name!r} has semi-axes {shape.semi_mm} mm, activity "
                    f"{shape.activity:g} and mu {shape.mu_per_cm:g}/cm; correct it"
                )
            known.add(shape.name)
        if self.filling_shape is not None and self.filling_shape not in known:
            raise InputError(
                f"phantom {self.name!r}: the shape that fills must be one of its shapes, but "
                f"{self.filling_shape!r} is not; name one of {', '.join(sorted(known))}"
            )

    def __getitem__(self, name: str) -> Shape:
        return self.shapes[self._index[name]]

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {shape.name: i for i, shape in enumerate(self.shapes)}

    @cached_property
    def labels(self) -> dict[int, str]:
        """Names of the label map's numbers; 0 is air."""
        names = dict.fromkeys(shape.label for shape in self.shapes)
        return {0: "air"} | {i + 1: name for i, name in enumerate(names)}

    @property
    def bq_ml_per_unit(self) -> float:
        """Bq/mL at tick zero of one unit of the shapes' activity."""
        return self.bq_ml_per_suv if self.unit == "SUV" else 1.0

    def with_suv_scale(self, bq_ml_per_suv: float) -> Phantom:
        """Return the same body after another injected activity; Bq/mL phantoms stay."""
        return replace(self, bq_ml_per_suv=bq_ml_per_suv)

    @cached_property
    def activity_steps(self) -> F64:
        """What each shape adds to the activity, Bq/mL. Shape (n_shapes,), float64."""
        return self._steps(lambda shape: shape.activity) * self.bq_ml_per_unit

    @cached_property
    def mu_steps(self) -> F64:
        """What each shape adds to mu, 1/mm. Shape (n_shapes,), float64."""
        return self._steps(lambda shape: shape.mu_per_cm) / 10.0

    @cached_property
    def is_fixed(self) -> NDArray[np.bool_]:
        """Which shapes stay in the scanner's frame. Shape (n_shapes,)."""
        return np.array([shape.is_fixed for shape in self.shapes], dtype=bool)

    def _steps(self, value: Callable[[Shape], float]) -> F64:
        parents = [None if s.parent is None else self[s.parent] for s in self.shapes]
        steps = [
            value(shape) - (0.0 if parent is None else value(parent))
            for shape, parent in zip(self.shapes, parents, strict=True)
        ]
        return np.where(np.abs(steps) < 1e-12, 0.0, steps)

    def filled_ml(self, time_s: float) -> float:
        """Give the volume of the shape that fills, mL; 0 if there is none."""
        if self.filling_shape is None:
            return 0.0
        volume = self[self.filling_shape].volume_ml + self.filling_ml_min * time_s / 60.0
        return max(volume, 1.0)

    def shape_at(self, name: str, time_s: float) -> Shape:
        """Give a shape as it is at a time."""
        shape = self[name]
        if name != self.filling_shape:
            return shape
        factor = (self.filled_ml(time_s) / shape.volume_ml) ** (1.0 / 3.0)
        x, y, z = shape.centre_mm
        a, b, c = shape.semi_mm
        return replace(
            shape,
            centre_mm=(x, y, z - c + c * factor),
            semi_mm=(a * factor, b * factor, c * factor),
        )

    def geometry(self, time_s: float = 0.0) -> F64:
        """Give the shapes as rows for the kernels at a time. Shape (n_shapes, 7), float64."""
        rows = np.empty((len(self.shapes), 7))
        for i, shape in enumerate(self.shapes):
            now = self.shape_at(shape.name, time_s)
            rows[i] = _KINDS.index(now.kind), *now.centre_mm, *(1.0 / s for s in now.semi_mm)
        return rows

    def volume_ml(self, time_s: float = 0.0) -> F64:
        """Give each shape's volume, children included, mL. Shape (n_shapes,), float64."""
        return np.array([self.shape_at(s.name, time_s).volume_ml for s in self.shapes])

    def activity_bq(self, time_s: float = 0.0) -> float:
        """Give the activity of the whole phantom, decay-corrected to tick zero, Bq."""
        return float((self.activity_steps * self.volume_ml(time_s)).sum())

    def bounds_mm(self, time_s: float = 0.0) -> F64:
        """Give the box around all shapes: x0, x1, y0, y1, z0, z1, mm. Shape (6,), float64."""
        rows = self.geometry(time_s)
        low, high = rows[:, 1:4] - 1.0 / rows[:, 4:], rows[:, 1:4] + 1.0 / rows[:, 4:]
        return np.stack((low.min(axis=0), high.max(axis=0)), axis=1).ravel()

    def sample_activity(
        self,
        x_mm: ArrayLike,
        y_mm: ArrayLike,
        z_mm: ArrayLike,
        *,
        time_s: float = 0.0,
        shift_mm: Vector = (0.0, 0.0, 0.0),
        supersample: int = 3,
    ) -> F32:
        """Sample the activity on voxels, decay-corrected to tick zero.

        Parameters
        ----------
        x_mm, y_mm, z_mm
            Voxel centres along each axis, evenly spaced. Shapes (nx,), (ny,), (nz,), mm.
        time_s
            Time on the scan clock, s: how full the bladder is.
        shift_mm
            Displacement of the patient in the scanner's frame, mm.
        supersample
            Points along each edge of a voxel that a surface may cut.

        Returns
        -------
        ndarray
            Bq/mL. Shape (nx, ny, nz), float32.
        """
        return self._sample(
            self.activity_steps, (x_mm, y_mm, z_mm), time_s, shift_mm, supersample
        )

    def sample_mu(
        self,
        x_mm: ArrayLike,
        y_mm: ArrayLike,
        z_mm: ArrayLike,
        *,
        time_s: float = 0.0,
        shift_mm: Vector = (0.0, 0.0, 0.0),
        supersample: int = 3,
    ) -> F32:
        """Sample the linear attenuation at 511 keV on voxels, 1/cm; the table does not move.

        Parameters as for :meth:`sample_activity`. Returns shape (nx, ny, nz), float32.
        """
        return self._sample(
            self.mu_steps * 10.0, (x_mm, y_mm, z_mm), time_s, shift_mm, supersample
        )

    def sample_labels(
        self,
        x_mm: ArrayLike,
        y_mm: ArrayLike,
        z_mm: ArrayLike,
        *,
        time_s: float = 0.0,
        shift_mm: Vector = (0.0, 0.0, 0.0),
    ) -> I32:
        """Sample the label map: the last shape around each voxel's centre, 0 in air.

        Parameters as for :meth:`sample_activity`. Returns shape (nx, ny, nz), int32.
        """
        x, y, z = (np.array(a, dtype=np.float64, ndmin=1) for a in (x_mm, y_mm, z_mm))
        out = np.zeros((x.size, y.size, z.size), np.int32)
        number = {name: i for i, name in self.labels.items()}
        for shape, row in zip(self.shapes, self._moved(time_s, shift_mm), strict=True):
            _kernels.set_label(row, number[shape.label], x, y, z, out)
        return out

    def _moved(self, time_s: float, shift_mm: Vector) -> F64:
        rows = self.geometry(time_s)
        rows[~self.is_fixed, 1:4] += np.asarray(shift_mm, dtype=np.float64)
        return rows

    def _sample(
        self,
        steps: F64,
        axes: tuple[ArrayLike, ArrayLike, ArrayLike],
        time_s: float,
        shift_mm: Vector,
        supersample: int,
    ) -> F32:
        x, y, z = (np.array(a, dtype=np.float64, ndmin=1) for a in axes)
        out = np.zeros((x.size, y.size, z.size))
        pitch = [float(a[1] - a[0]) if a.size > 1 else 0.0 for a in (x, y, z)]
        reach = 0.5 * math.hypot(*pitch)
        for row, step in zip(self._moved(time_s, shift_mm), steps, strict=True):
            if step != 0.0:
                _kernels.add_shape(row, float(step), x, y, z, reach, supersample, out)
        return np.maximum(out, 0.0).astype(np.float32)
