"""Poses as CSV: the course of a tracking camera in, the poses of a run out."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from listmode.errors import InputError
from listmode.windows import Windows
from recon.io.tables import load_text, save_table
from recon.motion import Poses, poses_from_samples

F64 = NDArray[np.float64]

SHIFT = ("x_mm", "y_mm", "z_mm")
TURN = ("rx_deg", "ry_deg", "rz_deg")
QUATERNION = ("qw", "qx", "qy", "qz")
ERRORS = (*(f"{name.split('_')[0]}_error_mm" for name in SHIFT), *(f"{n}_error" for n in TURN))
KNOWN = ("time_s", *SHIFT, *TURN, *QUATERNION, *ERRORS)


def load_poses(path: Path, extent: Windows, *, tolerance_mm: float = 0.5) -> Poses:
    """Read the course of a patient's pose.

    One header line, then a row a sample, which holds until the next one. ``time_s`` counts
    from tick zero; ``x_mm, y_mm, z_mm`` say where in the scanner's frame the pose takes the
    point that lies at the scanner's centre in the reference. A turn about that point may be
    given as a rotation vector (``rx_deg, ry_deg, rz_deg``) or a quaternion (``qw, qx, qy,
    qz``), standard errors as ``x_error_mm`` ... ``rz_deg_error``.

    Parameters
    ----------
    path
        A CSV file with commas, semicolons or tabs.
    extent
        The time to cover.
    tolerance_mm
        Samples nearer than this anywhere in the body become one pose.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column or holds a cell that is no number, or the
        course is unusable (see :func:`recon.motion.poses_from_samples`).
    """
    text = load_text(path)
    first = text.splitlines()[0] if text else ""
    sep = max(",;\t", key=first.count)
    rows = list(csv.reader(io.StringIO(text), delimiter=sep))
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in ("time_s", *SHIFT) if name not in header]
    unknown = [name for name in header if name not in KNOWN]
    turned = sum(name in header for name in (*TURN, *QUATERNION))
    if missing or unknown or turned not in (0, 3, 4):
        raise InputError(
            f"poses must have the columns time_s, {', '.join(SHIFT)} and may have "
            f"{', '.join(TURN)} or {', '.join(QUATERNION)}, but {path.name} has "
            f"{', '.join(header) or 'no header'}; correct its first line"
        )
    table = {name: _column(rows, header, name, path.name) for name in header}
    n = len(table["time_s"])
    if not n:
        raise InputError(
            f"a file of poses must hold a row a pose, but {path.name} holds none below its "
            "header; give at least the pose at the start"
        )
    matrix = np.tile(np.eye(4), (n, 1, 1))
    matrix[:, :3, :3] = _turns(table, n, path.name)
    matrix[:, :3, 3] = np.stack([table[name] for name in SHIFT], axis=1)
    covariance = np.zeros((n, 6, 6))
    for k, name in enumerate(ERRORS):
        error = table.get(name, np.zeros(n))
        covariance[:, k, k] = (error if k < 3 else np.radians(error)) ** 2
    return poses_from_samples(
        table["time_s"], matrix, extent, covariance=covariance, tolerance_mm=tolerance_mm,
        source="file",
    )  # fmt: skip


def _turns(table: dict[str, F64], n: int, name: str) -> F64:
    """Give the rotation matrices. Shape (n, 3, 3)."""
    if TURN[0] in table:
        vector = np.radians(np.stack([table[column] for column in TURN], axis=1))
        return np.asarray(Rotation.from_rotvec(vector).as_matrix())
    if QUATERNION[0] not in table:
        return np.tile(np.eye(3), (n, 1, 1))
    quaternion = np.stack([table[column] for column in QUATERNION], axis=1)
    length = np.linalg.norm(quaternion, axis=1)
    if (bad := np.flatnonzero(np.abs(length - 1.0) > 1e-2)).size:
        raise InputError(
            f"a quaternion must have length 1, but that of row {int(bad[0]) + 2} of {name} has "
            f"{float(length[bad[0]]):.3g}; its columns are qw (the real part), qx, qy, qz"
        )
    return np.asarray(Rotation.from_quat(quaternion, scalar_first=True).as_matrix())


def _column(rows: list[list[str]], header: list[str], name: str, file: str) -> F64:
    at = header.index(name)
    values = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            value = float(row[at])
        except (ValueError, IndexError):
            value = math.nan
        if not math.isfinite(value):
            found = repr(row[at]) if at < len(row) else "nothing"
            raise InputError(
                f"every pose must have a number for {name}, but row {number} of {file} has "
                f"{found}; correct or remove that row"
            )
        values.append(value)
    return np.array(values, np.float64)


def save_poses(path: Path, poses: Poses) -> None:
    """Write poses as a course that :func:`load_poses` reads back: one row a window.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    error = np.sqrt(np.diagonal(poses.covariance, axis1=1, axis2=2)).copy()
    error[:, 3:] = np.degrees(error[:, 3:])
    turn = np.degrees(Rotation.from_matrix(poses.scanner_from_reference[:, :3, :3]).as_rotvec())
    shift = poses.scanner_from_reference[:, :3, 3]
    rows = [
        [part.start_ms[k] / 1000.0, *shift[pose], *turn[pose], *error[pose]]
        for part, pose in poses.timeline()
        for k in range(len(part))
    ]
    plain = [[float(value) for value in row] for row in rows]
    save_table(path, ("time_s", *SHIFT, *TURN, *ERRORS), plain, sep=",")
