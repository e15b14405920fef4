"""Rigid registration of short images: how a patient turned and shifted between two states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import least_squares

from listmode.errors import InputError
from listmode.scanner import FWHM_PER_SIGMA
from recon.image import Volume
from recon.motion.poses import rigid

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

FWHM_MM = (24.0, 12.0)  # coarse to find the way, fine to arrive
IMAGE_FWHM_MM = 6.0  # of the images themselves: noise has at least this correlation
BODY_SHARE = 0.1  # of the strong voxels' activity: what is weaker is air
END_MM = 30.0  # at the grid's ends, where a moved patient has no counterpart
MIN_POINTS = 500
MAX_POINTS = 40_000  # smoothed voxels repeat one another: more of them only take time
DEGREES_MAX = 15.0


@dataclass(frozen=True, eq=False)
class RigidFit:
    """How one image lies relative to another.

    Parameters
    ----------
    moving_from_fixed
        Takes a point of the fixed image to where it is in the moving one. Shape (4, 4), mm.
    covariance
        Of translation (mm) and small rotation (rad) about the scanner's centre. Shape (6, 6).
    n_points
        Voxels that were compared.
    misfit
        RMS difference of the images' square roots over that of the fixed one's structure:
        0 for equal images.
    """

    moving_from_fixed: F64
    covariance: F64
    n_points: int
    misfit: float


def register_rigid(
    fixed: Volume,
    moving: Volume,
    *,
    keep: Bools | None = None,
    weight: NDArray[np.floating] | None = None,
    fwhm_mm: Sequence[float] = FWHM_MM,
) -> RigidFit:
    """Find the turn and shift that take one image to another of the same patient.

    Parameters
    ----------
    fixed, moving
        Images of two states on one grid.
    keep
        Voxels of the fixed image to compare: leave out what fills or moves by itself, such as
        the bladder. All if ``None``. Shape ``grid.shape``.
    weight
        Sensitivity, or counts expected per unit of activity: noise falls with its root. Shape
        ``grid.shape``.
    fwhm_mm
        Gaussian smoothing, from coarse to fine, mm.

    Returns
    -------
    RigidFit
        With a covariance from the fit's own residuals, as if noise had the correlation of the
        smoothing.

    Raises
    ------
    InputError
        If the images are on different grids or hold too little to compare.

    Notes
    -----
    Least squares of ``sqrt(fixed(x)) - g sqrt(moving(T x))``: the variance of a voxel of an
    emission image goes with its activity, so the square root makes noise even (Anscombe,
    Biometrika 1948;35:246, doi 10.1093/biomet/35.3-4.246) and keeps one hot organ from deciding
    alone. Images without attenuation correction move with the patient; corrected ones also
    hold on to the mu-map.
    """
    if fixed.grid != moving.grid:
        raise InputError(
            f"images to register must share a grid, but they are on {fixed.grid} and "
            f"{moving.grid}; reconstruct both on one"
        )
    grid = fixed.grid
    body = _body(fixed, max(fwhm_mm)) if keep is None else _body(fixed, max(fwhm_mm)) & keep
    if (n := int(body.sum())) < MIN_POINTS:
        raise InputError(
            f"registration needs at least {MIN_POINTS} voxels of the body to compare, but "
            f"{n} are left; use longer windows or a finer grid"
        )
    every = -(-n // MAX_POINTS)
    index = np.argwhere(body)[::every]
    points = grid.point_mm(index)
    centre = points.mean(axis=0)
    share = np.ones(len(index)) if weight is None else weight[tuple(index.T)]
    root_weight = np.sqrt(share / share.mean())
    # millimetres and degrees, so that all six numbers are of one size; then the gain
    guess = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    for fwhm in fwhm_mm:
        here, there = (_smooth_root(volume, fwhm) for volume in (fixed, moving))
        target = here[tuple(index.T)]
        there = ndimage.spline_filter(there, order=3, mode="nearest")

        def residual(guess: F64, there: F64 = there, target: F64 = target) -> F64:
            matrix = rigid(guess[:3], np.radians(guess[3:6]), centre)
            at = grid.voxel_index(points @ matrix[:3, :3].T + matrix[:3, 3]).T
            found = ndimage.map_coordinates(there, at, order=3, mode="nearest", prefilter=False)
            return np.asarray(root_weight * (target - guess[6] * found))

        limit = np.array([100.0] * 3 + [DEGREES_MAX] * 3 + [10.0])
        low = np.append(-limit[:6], 0.1)
        fit = least_squares(residual, guess, bounds=(low, limit), xtol=1e-6, ftol=1e-6)
        guess = fit.x
    spread = float(np.std(target * root_weight))
    fwhm = float(np.hypot(fwhm_mm[-1], IMAGE_FWHM_MM))
    covariance = _covariance(np.asarray(fit.jac), fit.fun, fwhm, grid.voxel_ml * every, centre)
    return RigidFit(
        rigid(guess[:3], np.radians(guess[3:6]), centre), covariance, len(index),
        float(np.sqrt(np.mean(fit.fun**2)) / spread) if spread else np.inf,
    )  # fmt: skip


def _body(volume: Volume, fwhm_mm: float) -> Bools:
    """Mark the body without what lies at the ends of the grid."""
    smooth = _smooth(volume, fwhm_mm)
    strong = np.quantile(smooth, 0.95)
    body = smooth > BODY_SHARE * strong
    margin = int(np.ceil(END_MM / volume.grid.voxel_mm[2]))
    body[:, :, :margin] = body[:, :, body.shape[2] - margin :] = False
    # one voxel around it, so that the walls are in
    return np.asarray(ndimage.binary_dilation(body))


def _smooth(volume: Volume, fwhm_mm: float) -> F64:
    sigma = np.array(fwhm_mm) / FWHM_PER_SIGMA / volume.grid.voxel_mm
    values = np.asarray(volume.values, np.float64)
    return np.asarray(ndimage.gaussian_filter(values, sigma, mode="nearest"))


def _smooth_root(volume: Volume, fwhm_mm: float) -> F64:
    return np.sqrt(np.maximum(_smooth(volume, fwhm_mm), 0.0))


def _covariance(
    jacobian: F64, residual: F64, fwhm_mm: float, voxel_ml: float, centre: F64
) -> F64:
    """Give the covariance of shift and turn about the scanner's centre.

    Neighbouring voxels share their noise: a sum over a Gaussian's autocorrelation counts how
    many of them make one independent value.
    """
    sigma = fwhm_mm / FWHM_PER_SIGMA
    n_alike = max((4 * np.pi * sigma**2) ** 1.5 / (1000 * voxel_ml), 1.0)
    variance = float(residual @ residual) / max(len(residual) - 7, 1)
    own = np.linalg.pinv(jacobian.T @ jacobian)[:6, :6] * variance * n_alike
    to_rad = np.diag([1.0] * 3 + [np.pi / 180] * 3)
    own = to_rad @ own @ to_rad
    lever = np.eye(6)  # a turn about the body's centre moves the scanner's centre
    for axis in range(3):
        lever[:3, 3 + axis] = np.cross(np.eye(3)[axis], -centre)
    return np.asarray(lever @ own @ lever.T)
