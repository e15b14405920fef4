"""Poses: where the patient lay and when, as rigid transforms with covariances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from listmode.errors import InputError
from listmode.windows import Windows

F64 = NDArray[np.float64]

RIGID = 1e-5  # how far a matrix may be from a rotation: that of text with six digits
BODY_BOX_MM = (250.0, 150.0, 500.0)  # half widths of the box in which poses are compared


@dataclass(frozen=True, eq=False)
class Poses:
    """Where the patient lay in each part of the time.

    The reference is the pose that images are shown in and that the mu-map has. A pose takes a
    point of the patient from where it is in the reference to where it was in the scanner.

    Parameters
    ----------
    scanner_from_reference
        Rigid transforms. Shape (n_poses, 4, 4), float64, mm.
    windows
        When each pose was taken, on the scan clock; disjoint, none empty.
    covariance
        Of translation (mm) and small rotation (rad) about the scanner's centre, in the
        scanner's axes. Shape (n_poses, 6, 6), float64; zeros where nothing is known.
    source
        Where the poses come from, in a word or two.

    Raises
    ------
    InputError
        If a transform is not rigid, windows overlap, a pose has none, or arrays disagree.
    """

    scanner_from_reference: F64
    windows: tuple[Windows, ...]
    covariance: F64
    source: str = "given"

    def __post_init__(self) -> None:
        n = len(self.windows)
        for name, shape in (("scanner_from_reference", (n, 4, 4)), ("covariance", (n, 6, 6))):
            array = np.array(getattr(self, name), dtype=np.float64, order="C")
            if array.shape != shape or not np.isfinite(array).all():
                raise InputError(
                    f"{n} poses need a finite {name} of shape {shape}, but its shape is "
                    f"{array.shape} or it holds values that are not finite; give one a pose"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if not n or not all(len(part) for part in self.windows):
            raise InputError(
                f"there must be poses, each with a window, but there are {n} and "
                f"{sum(not len(part) for part in self.windows)} of them have none; leave "
                "out poses that were never taken"
            )
        self._check_rigid()
        self._check_disjoint()

    def _check_rigid(self) -> None:
        turn = self.scanner_from_reference[:, :3, :3]
        off = np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        off += np.abs(self.scanner_from_reference[:, 3] - [0, 0, 0, 1]).max(axis=1)
        if (bad := np.flatnonzero((off > RIGID) | (np.linalg.det(turn) < 0))).size:
            raise InputError(
                "a pose must be a rotation and a shift, but the matrix of pose "
                f"{int(bad[0])} stretches or mirrors by {float(off[bad[0]]):.2g}; correct the "
                "matrix"
            )

    def _check_disjoint(self) -> None:
        order = sorted((a, b, k) for k, part in enumerate(self.windows) for a, b in part)
        for (_, stop, one), (start, _, other) in pairwise(order):
            if start < stop:
                raise InputError(
                    f"a patient has one pose at a time, but poses {one} and {other} both "
                    f"claim {start / 1000:g} s; correct their windows"
                )

    @classmethod
    def still(cls, windows: Windows) -> Poses:
        """Make the one pose of a patient who never left the reference."""
        return cls(np.eye(4)[None], (windows,), np.zeros((1, 6, 6)), "none")

    @classmethod
    def from_shifts(
        cls,
        shift_mm: ArrayLike,
        windows: Sequence[Windows],
        standard_error_mm: ArrayLike | None = None,
        source: str = "given",
    ) -> Poses:
        """Make poses that are shifts.

        Parameters
        ----------
        shift_mm
            Displacement from the reference, x, y, z. Shape (n_poses, 3), mm.
        windows
            When each was taken.
        standard_error_mm
            Shape (n_poses, 3), mm; zeros if ``None``.
        """
        shift = np.asarray(shift_mm, np.float64).reshape(-1, 3)
        matrix = np.tile(np.eye(4), (len(shift), 1, 1))
        matrix[:, :3, 3] = shift
        covariance = np.zeros((len(shift), 6, 6))
        if standard_error_mm is not None:
            error = np.asarray(standard_error_mm, np.float64).reshape(-1, 3)
            covariance[:, range(3), range(3)] = error**2
        return cls(matrix, tuple(windows), covariance, source)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def reference_from_scanner(self) -> F64:
        """The inverse transforms: the detector as the patient sees it. Shape (n, 4, 4)."""
        return np.stack([invert(matrix) for matrix in self.scanner_from_reference])

    @property
    def is_moving(self) -> bool:
        """Whether any pose differs from the reference."""
        return bool((self.scanner_from_reference != np.eye(4)).any())

    def within(self, windows: Windows) -> Poses:
        """Keep the poses, and of each the time, that lie in a union of windows.

        Raises
        ------
        InputError
            If some of that time has no pose: its counts would be in no model.
        """
        parts = [overlap(windows, own) for own in self.windows]
        covered = sum(int((part.stop_ms - part.start_ms).sum()) for part in parts)
        if covered != int((windows.stop_ms - windows.start_ms).sum()):
            left = windows
            for own in self.windows:
                left = left.intersection(own.complement(*span_ms(windows)))
            raise InputError(
                f"poses must cover all of the time that is used, but {left} have none; give "
                "them a pose, or leave that time out with --windows"
            )
        keep = [k for k, part in enumerate(parts) if len(part)]
        return Poses(
            self.scanner_from_reference[keep],
            tuple(parts[k] for k in keep),
            self.covariance[keep],
            self.source,
        )

    def timeline(self) -> list[tuple[Windows, int]]:
        """Give windows in order of time, each with the number of its pose."""
        order = sorted((a, b, k) for k, part in enumerate(self.windows) for a, b in part)
        runs: list[tuple[list[int], list[int], int]] = []
        for start, stop, pose in order:
            if not runs or runs[-1][2] != pose:
                runs.append(([], [], pose))
            runs[-1][0].append(start)
            runs[-1][1].append(stop)
        return [(Windows(starts, stops), pose) for starts, stops, pose in runs]

    def weights(self, half_life_s: float) -> F64:
        """Give each pose's share of the decays: the weight of its sensitivity.

        ``D_p / sum D``, with ``D`` the decay factor integrated over the windows, which leave
        dead time out. Shape (n_poses,), float64; they add up to 1.
        """
        share = np.array([part.decayed_duration_s(half_life_s) for part in self.windows])
        return np.asarray(share / share.sum())

    def at(self, time_s: float) -> int:
        """Give the number of the pose at a time, s; of the nearest where there is none.

        A mu-map is often made before the scan: then it shows the first pose.
        """
        time = round(time_s * 1000.0)
        distance = [
            int(np.maximum(np.maximum(part.start_ms - time, time + 1 - part.stop_ms), 0).min())
            for part in self.windows
        ]
        return int(np.argmin(distance))

    def relative_to(self, pose: int) -> Poses:
        """Make one of the poses the reference.

        Its covariance is added to that of the others; the coupling of rotation and place,
        of second order in small angles, is left out.
        """
        old = self.scanner_from_reference[pose]
        if (old == np.eye(4)).all() and not self.covariance[pose].any():
            return self
        matrix = self.scanner_from_reference @ invert(old)
        matrix[pose] = np.eye(4)
        covariance = self.covariance + self.covariance[pose]
        covariance[pose] = 0.0
        return replace(self, scanner_from_reference=matrix, covariance=covariance)

    def displacement_mm(self, point_mm: ArrayLike) -> F64:
        """Give how far each pose takes points of the reference. Shape (n_poses, n, 3), mm."""
        points = np.asarray(point_mm, np.float64).reshape(-1, 3)
        turned = np.einsum("pij,nj->pni", self.scanner_from_reference[:, :3, :3], points)
        return np.asarray(turned + self.scanner_from_reference[:, None, :3, 3] - points)

    def standard_error_mm(self, point_mm: ArrayLike) -> F64:
        """Give the standard error of points' places. Shape (n_poses, n, 3): x, y, z, mm."""
        points = np.asarray(point_mm, np.float64).reshape(-1, 3)
        lever = np.zeros((len(points), 3, 6))
        lever[:, :, :3] = np.eye(3)
        for axis in range(3):  # a small turn about an axis moves p by axis x p
            lever[:, :, 3 + axis] = np.cross(np.eye(3)[axis], points)
        return np.asarray(np.sqrt(np.einsum("nij,pjk,nik->pni", lever, self.covariance, lever)))

    def merged(self, tolerance_mm: float, box_mm: Sequence[float] = BODY_BOX_MM) -> Poses:
        """Join poses that take the body to the same place within a tolerance.

        In order of time a pose joins the first group whose first pose takes every corner of a
        box to within the tolerance; a group takes the mean of its poses by duration.

        Parameters
        ----------
        tolerance_mm
            Largest distance, mm.
        box_mm
            Half widths of the box about the scanner's centre, mm.
        """
        corner = np.array(np.meshgrid(*([-b, b] for b in box_mm))).reshape(3, -1).T
        place = self.displacement_mm(corner)
        groups: list[list[int]] = []
        for k in sorted(range(len(self)), key=lambda k: int(self.windows[k].start_ms[0])):
            for group in groups:
                if np.linalg.norm(place[k] - place[group[0]], axis=1).max() <= tolerance_mm:
                    group.append(k)
                    break
            else:
                groups.append([k])
        return Poses(
            np.stack([self._mean(group) for group in groups]),
            tuple(join([self.windows[k] for k in group]) for group in groups),
            np.stack([self.covariance[group].mean(axis=0) for group in groups]),
            self.source,
        )

    def _mean(self, group: list[int]) -> F64:
        if len(group) == 1:
            return np.asarray(self.scanner_from_reference[group[0]])
        weight = np.array([self.windows[k].duration_s for k in group])
        matrix = np.eye(4)
        turn = Rotation.from_matrix(self.scanner_from_reference[group, :3, :3])
        matrix[:3, :3] = turn.mean(weight).as_matrix()
        matrix[:3, 3] = np.average(self.scanner_from_reference[group, :3, 3], 0, weight)
        return matrix

    def to_dict(self) -> dict[str, Any]:
        """Give the poses as JSON values."""
        return {
            "source": self.source,
            "poses": [
                {
                    "windows_s": [[a / 1000.0, b / 1000.0] for a, b in part],
                    "scanner_from_reference": matrix.tolist(),
                    "standard_error": np.sqrt(np.diag(covariance)).tolist(),
                }
                for part, matrix, covariance in zip(
                    self.windows, self.scanner_from_reference, self.covariance, strict=True
                )
            ],
        }


def invert(matrix: F64) -> F64:
    """Invert a rigid transform; the identity stays the identity to the bit."""
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = 0.0 - matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def rigid(shift_mm: ArrayLike, turn_rad: ArrayLike, centre_mm: ArrayLike = (0, 0, 0)) -> F64:
    """Make a rigid transform: a turn about a centre, then a shift.

    Parameters
    ----------
    shift_mm
        Shape (3,), mm.
    turn_rad
        Rotation vector: its direction is the axis, its length the angle. Shape (3,), rad.
    centre_mm
        Shape (3,), mm.

    Returns
    -------
    ndarray
        Shape (4, 4), float64.
    """
    centre = np.asarray(centre_mm, np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.asarray(turn_rad, np.float64)).as_matrix()
    matrix[:3, 3] = centre + np.asarray(shift_mm, np.float64) - matrix[:3, :3] @ centre
    return matrix


def span_ms(windows: Windows) -> tuple[int, int]:
    """Give the first start and the last stop, ms."""
    return int(windows.start_ms[0]), int(windows.stop_ms[-1])


def overlap(windows: Windows, other: Windows) -> Windows:
    """Cut windows to another union, leaving adjoining ones apart: sums keep their bits."""
    starts, stops = [], []
    for start, stop in windows:
        first = int(np.searchsorted(other.stop_ms, start, side="right"))
        last = int(np.searchsorted(other.start_ms, stop, side="left"))
        for k in range(first, last):
            starts.append(max(start, int(other.start_ms[k])))
            stops.append(min(stop, int(other.stop_ms[k])))
    return Windows(np.array(starts, np.int64), np.array(stops, np.int64))


def join(parts: Sequence[Windows]) -> Windows:
    """Put disjoint unions into one, in order of time."""
    order = sorted(pair for part in parts for pair in part)
    return Windows([a for a, _ in order], [b for _, b in order])
