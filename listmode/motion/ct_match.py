"""How far the patient lay from where the CT, and so the mu-map, shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, rotate

from listmode.errors import InputError
from listmode.histogram import Histogram
from listmode.motion.template import blur_covariance

F64 = NDArray[np.float64]
Axes = tuple[F64, F64, F64]

BINNING = 2  # histo-image voxels joined along each edge: the blur is wider than 8 mm
SMOOTH_MM = 6.0  # standard deviation, on top of the blur, against noise
BODY_PER_CM = 0.06  # mu of a body's inside, 1/cm; fat is 0.09 and lung 0.018-0.03
LUNG_PER_CM = 0.012  # air is below it
LUNG_UPTAKE = 0.35  # relative to soft tissue, FDG and PSMA alike
EDGE_MM = 32.0  # how far around a surface places are compared
N_ANGLES = 12
SLAB_MM = 120.0
CUT_MM = 80.0  # left out where the body is cut off
MAX_ERROR_MM = 6.0  # a worse standard error is none
MIN_COUNTS = 20_000
CLIP = 2.0  # organs hotter than this many times the body's typical level count as that
ROUNDS = 15


@dataclass(frozen=True)
class Displacement:
    """How far something lies off the mu-map.

    Parameters
    ----------
    shift_mm, standard_error_mm
        Displacement x, y, z in the scanner frame and its standard error, mm; ``inf`` as error,
        and zero as shift, along an axis that cannot be told.
    """

    shift_mm: tuple[float, float, float]
    standard_error_mm: tuple[float, float, float]

    @property
    def is_determinable(self) -> tuple[bool, bool, bool]:
        """Whether the displacement along x, y and z can be told."""
        x, y, z = (math.isfinite(e) for e in self.standard_error_mm)
        return x, y, z

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; None along an axis that cannot be told."""
        known = self.is_determinable
        return {
            "shift_mm": [v if k else None for v, k in zip(self.shift_mm, known, strict=True)],
            "standard_error_mm": [
                v if k else None for v, k in zip(self.standard_error_mm, known, strict=True)
            ],
        }


@dataclass(frozen=True)
class CtMatch(Displacement):
    """Displacement of the patient from the mu-map.

    Parameters
    ----------
    shift_mm, standard_error_mm
        Patient less mu-map, x, y, z in the scanner frame, mm; the error is ``inf`` along an
        axis along which nothing can be told.
    n_slabs
        Slabs of the body that it rests on.
    note
        In words, with the warning if there is one.
    """

    n_slabs: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; None along an axis that cannot be told."""
        return {
            **super().to_dict(),
            "n_slabs": self.n_slabs,
            "note": self.note,
        }


@dataclass(frozen=True)
class CtFit(Displacement):
    """How chosen windows lie to the mu-map.

    Parameters
    ----------
    shift_mm, standard_error_mm
        Mean place of the patient in the windows less the mu-map, x, y, z in the scanner frame,
        mm; ``inf`` as error, and zero as shift, along an axis that cannot be told.
    suv_error
        Expected relative error of SUVs by the misfit, without sign: the median and the 95th
        percentile over the body; ``None`` where the windows fit or nothing is known.
    note
        The displacement in words, or why it is not determinable.
    warning
        What a reader must know of the SUVs; empty if the windows fit.
    """

    suv_error: tuple[float, float] | None
    note: str
    warning: str

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; None along an axis that cannot be told."""
        return {
            **super().to_dict(),
            "suv_error_median_95": None if self.suv_error is None else list(self.suv_error),
            "note": self.note,
            "warning": self.warning,
        }


def fit_of_windows(
    match: CtMatch, shift_mm: F64, mu_per_cm: F64, axes_mm: Axes, fit_mm: float
) -> CtFit:
    """Say how far chosen windows lie off the mu-map and what that does to SUVs.

    Parameters
    ----------
    match
        Of one stretch of the scan; its standard error is that of every other stretch too, for
        the changes between them are known far better.
    shift_mm
        Mean displacement in the windows from the mu-map, mm; NaN along an axis that cannot be
        told. Shape (3,).
    mu_per_cm, axes_mm
        As for :func:`match_mu_map`.
    fit_mm
        Windows as near as this, or within two standard errors, fit.
    """
    known = match.is_determinable
    x, y, z = np.nan_to_num(np.where(known, shift_mm, 0.0)).tolist()
    if not any(known):
        return CtFit((x, y, z), match.standard_error_mm, None, match.note, "")
    place = CtMatch((x, y, z), match.standard_error_mm, match.n_slabs, "")
    note = f"in the kept windows {_describe(place)}"
    error = np.where(known, match.standard_error_mm, 0.0)
    if not (np.abs((x, y, z)) > np.maximum(2.0 * error, fit_mm)).any():
        return CtFit((x, y, z), match.standard_error_mm, None, note, "")
    typical, large = attenuation_error(mu_per_cm, axes_mm, (x, y, z))
    warning = (
        f"the chosen windows lie off the CT by {x:+.0f}, {y:+.0f}, {z:+.0f} mm (x, y, z): "
        f"SUVs err by {100 * typical:.0f} % in the median over the body, and by more than "
        f"{100 * large:.0f} % in a twentieth of it, near lungs and outlines"
    )
    return CtFit((x, y, z), match.standard_error_mm, (typical, large), note, warning)


def match_mu_map(histogram: Histogram, mu_per_cm: F64, axes_mm: Axes) -> CtMatch:
    """Compare the body's outline in the counts with its outline in the mu-map.

    From the mu-map a histo-image is predicted: even activity in soft tissue, less in the
    lungs, attenuated along the transverse directions and blurred like most likely positions.
    Slab by slab, the shift is sought that brings prediction and counts together near the
    surfaces of body and lungs; organs hotter than twice the body's level are cut off. The
    slabs' scatter gives the standard error.

    Parameters
    ----------
    histogram
        Of the windows in question, without a move within them.
    mu_per_cm
        Linear attenuation at 511 keV, 1/cm. Shape (nx, ny, nz).
    axes_mm
        Centres of its voxels along x, y, z in the scanner frame, evenly spaced, mm.

    Raises
    ------
    InputError
        If the axes do not fit the mu-map.

    Notes
    -----
    Least squares by Gauss-Newton on images (Lucas and Kanade 1981, Proc. IJCAI, 674-679).
    """
    if mu_per_cm.shape != tuple(len(a) for a in axes_mm):
        raise InputError(
            "a mu-map needs one place a voxel along each axis, but it has shape "
            f"{mu_per_cm.shape} and axes of {[len(a) for a in axes_mm]}; give its own axes"
        )
    nothing = (0.0, 0.0, 0.0), (math.inf, math.inf, math.inf)
    if not histogram.has_tof or histogram.image.sum() < MIN_COUNTS:
        why = "without TOF" if not histogram.has_tof else "with so few counts"
        return CtMatch(*nothing, 0, f"fit to the CT: not determinable {why}")
    counts, axes = _binned(histogram)
    mu = _resample(mu_per_cm, axes_mm, axes)
    expected, surface = _predict(mu, axes, histogram)
    inside = counts[(mu > BODY_PER_CM) & (counts > 0)]
    if not inside.size or not surface.any():
        return CtMatch(*nothing, 0, "fit to the CT: not determinable, the mu-map shows no body")
    measured = np.minimum(counts, CLIP * float(np.median(inside)))
    rows = [
        found
        for first, last in _slabs(mu, axes[2])
        if (found := _fit_slab(measured, expected, surface, axes, first, last)) is not None
    ]
    return _combine(np.array(rows).reshape(-1, 2, 3))


def attenuation_error(
    mu_per_cm: F64, axes_mm: Axes, shift_mm: tuple[float, float, float]
) -> tuple[float, float]:
    """Say how wrong SUVs are when the patient lay off the mu-map.

    The mean transverse attenuation of every body voxel with the mu-map moved by the shift is
    compared with that of the mu-map as it lies.

    Parameters
    ----------
    mu_per_cm, axes_mm
        As for :func:`match_mu_map`.
    shift_mm
        Patient less mu-map, mm.

    Returns
    -------
    median, large
        Relative errors, without sign: the median and the 95th percentile over the body.
    """
    step = 8.0
    onto = [np.arange(a[0], a[-1] + 1e-6, step) for a in axes_mm]
    lying = _resample(mu_per_cm, axes_mm, (onto[0], onto[1], onto[2]))
    # Seen from the patient, the mu-map has moved the other way.
    x, y, z = (o + s for o, s in zip(onto, shift_mm, strict=True))
    assumed = _resample(mu_per_cm, axes_mm, (x, y, z))
    body = (lying > BODY_PER_CM) & (assumed > BODY_PER_CM)
    if not body.any():
        return 0.0, 0.0
    error = np.abs(_survival(lying, step)[body] / _survival(assumed, step)[body] - 1.0)
    return float(np.median(error)), float(np.percentile(error, 95))


def _binned(histogram: Histogram) -> tuple[F64, Axes]:
    """Join voxels, divide by the axial sensitivity, smooth."""
    n = [size // BINNING * BINNING for size in histogram.image.shape]
    image = histogram.image[: n[0], : n[1], : n[2]].astype(np.float64)
    image /= np.maximum(histogram.sensitivity[: n[2]], 0.05)
    shape = [x for size in n for x in (size // BINNING, BINNING)]
    joined = image.reshape(shape).sum(axis=(1, 3, 5))
    x, y, z = (
        histogram.centre_mm(k)[: n[k]].reshape(-1, BINNING).mean(axis=1) for k in range(3)
    )
    return np.asarray(gaussian_filter(joined, SMOOTH_MM / (BINNING * histogram.voxel_mm))), (
        x,
        y,
        z,
    )


def _resample(values: F64, axes_mm: Axes, onto_mm: Axes) -> F64:
    """Interpolate a map onto other voxel centres; zero outside. Blurred first if finer."""
    step = [float(a[1] - a[0]) if len(a) > 1 else 1.0 for a in axes_mm]
    coarse = float(onto_mm[0][1] - onto_mm[0][0])
    smooth = gaussian_filter(
        np.asarray(values, dtype=np.float64), [max(0.4 * coarse / s - 0.4, 0.0) for s in step]
    )
    place = [(o - a[0]) / s for o, a, s in zip(onto_mm, axes_mm, step, strict=True)]
    return np.asarray(
        map_coordinates(smooth, np.stack(np.meshgrid(*place, indexing="ij")), order=1, cval=0.0)
    )


def _survival(mu: F64, voxel_mm: float) -> F64:
    """Mean survival of both photons over transverse directions at every voxel."""
    total = np.zeros_like(mu)
    for angle in np.arange(N_ANGLES) * 180.0 / N_ANGLES:
        turned = rotate(mu, angle, axes=(0, 1), reshape=False, order=1)
        line = np.exp(-turned.sum(axis=1, keepdims=True) * voxel_mm / 10.0)
        smeared = np.broadcast_to(line, mu.shape)
        total += rotate(smeared, -angle, axes=(0, 1), reshape=False, order=1, mode="nearest")
    return total / N_ANGLES


def _predict(mu: F64, axes: Axes, histogram: Histogram) -> tuple[F64, NDArray[np.bool_]]:
    """Predict a histo-image up to its scale; mark what lies near a surface."""
    voxel = float(axes[0][1] - axes[0][0])
    body = np.where(mu > BODY_PER_CM, 1.0, np.where(mu > LUNG_PER_CM, LUNG_UPTAKE, 0.0))
    blur = np.sqrt(
        np.diag(blur_covariance(histogram.blur_along_mm).mean(axis=0)) + SMOOTH_MM**2
    )
    expected = gaussian_filter(body * _survival(mu, voxel), blur / voxel)
    wide = gaussian_filter((mu > BODY_PER_CM).astype(np.float64), EDGE_MM / 2.0 / voxel)
    return np.asarray(expected), np.asarray((wide > 0.02) & (wide < 0.9))


def _slabs(mu: F64, z_mm: F64) -> list[tuple[int, int]]:
    """Cut the mu-map's body along z into slabs of even length; ends of slices.

    Where the body runs out of the mu-map or the field of view, that end is no end of the body:
    it would hold the shift at zero, so some centimetres of it are left out.
    """
    inside = np.flatnonzero((mu > BODY_PER_CM).sum(axis=(0, 1)) > 20)
    if not inside.size:
        return []
    voxel = float(z_mm[1] - z_mm[0])
    reach = round(3.0 * SMOOTH_MM / voxel)
    cut = round(CUT_MM / voxel)
    near = round(2.0 * SMOOTH_MM / voxel) + 1
    first = inside[0] + cut if inside[0] <= near else inside[0] - reach
    last = inside[-1] - cut if inside[-1] >= len(z_mm) - 1 - near else inside[-1] + reach + 1
    first, last = max(first, 0), min(last, len(z_mm))
    if last - first < 4:
        return []
    n = max(round((last - first) * voxel / SLAB_MM), 1)
    cuts = np.linspace(first, last, n + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(cuts) if b - a >= 4]


def _fit_slab(
    measured: F64,
    expected: F64,
    surface: NDArray[np.bool_],
    axes: Axes,
    first: int,
    last: int,
) -> F64 | None:
    """Fit one slab's shift; its information along each axis comes with it. Shape (2, 3)."""
    voxel = float(axes[0][1] - axes[0][0])
    near = np.zeros_like(surface)
    near[:, :, first:last] = surface[:, :, first:last]
    if near.sum() < 200:
        return None
    index = np.argwhere(near)
    target = measured[near]
    gradients: list[F64] = [np.asarray(g, np.float64) for g in np.gradient(expected, voxel)]
    shift = np.zeros(3)
    for _ in range(ROUNDS):
        place: F64 = np.ascontiguousarray((index - shift / voxel).T, dtype=np.float64)
        model = map_coordinates(expected, place, order=1)
        slopes = [-map_coordinates(g, place, order=1) for g in gradients]
        scale = float(target @ model) / max(float(model @ model), 1e-12)
        columns = np.stack([*(scale * s for s in slopes), model, np.ones_like(model)])
        normal = columns @ columns.T
        # A slab that tells nothing of an axis stays where it is along it.
        normal[np.diag_indices(3)] += 1e-3 * normal[:3, :3].trace()
        if not scale > 0:
            return None  # nothing of the body was counted here
        right = columns @ (target - scale * model)
        change = np.linalg.lstsq(normal, right, rcond=None)[0][:3]
        shift = np.clip(shift + np.clip(change, -12.0, 12.0), -60.0, 60.0)
        if np.abs(change).max() < 0.05:
            break
    left = target - scale * model
    noise = float((left**2).mean())
    info = np.array([scale**2 * float(s @ s) for s in slopes]) / max(noise, 1e-12)
    return np.stack((shift, info))


def _combine(rows: F64) -> CtMatch:
    """Weigh the slabs by what they tell, along each axis; their scatter is the error."""
    shift, error = np.zeros(3), np.full(3, math.inf)
    for axis in range(3):
        value, info = rows[:, 0, axis], rows[:, 1, axis]
        if len(value) < 3 or not info.sum() > 0:
            continue
        weight = info / info.sum()
        mean = float(weight @ value)
        effective = 1.0 / float((weight**2).sum())
        if effective < 1.5:
            continue
        spread = float(weight @ (value - mean) ** 2)
        shift[axis] = mean
        # A floor of 1 mm: what slabs have in common (the uptake assumed) they do not show.
        error[axis] = math.hypot(math.sqrt(spread / (effective - 1.0)), 1.0)
    error[error > MAX_ERROR_MM] = math.inf
    (x, y, z), (ex, ey, ez) = shift.tolist(), error.tolist()
    match = CtMatch((x, y, z), (ex, ey, ez), len(rows), "")
    return CtMatch(match.shift_mm, match.standard_error_mm, len(rows), _describe(match))


def _describe(match: CtMatch) -> str:
    parts = [
        f"{name} {value:+.1f} ± {error:.1f} mm"
        if math.isfinite(error)
        else f"{name} not determinable"
        for name, value, error in zip(
            "xyz", match.shift_mm, match.standard_error_mm, strict=True
        )
    ]
    return "the patient lies off the CT by " + ", ".join(parts)
