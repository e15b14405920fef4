"""The template: how the positions of a bladder's events scatter, direction by direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfftn, next_fast_len, rfftn
from scipy.ndimage import gaussian_filter

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

N_AZIMUTH = 8
COS_EDGE = 0.25  # axial cosine that parts straight from oblique LORs; their rms is 0.25-0.36
N_DIRECTIONS = 3 * N_AZIMUTH
DETECTOR_SIGMA_MM = (
    1.6
    # Across the LOR: 3.4-3.8 mm FWHM (Prenosil et al. 2022, 10.2967/jnumed.121.261972).
)
MAX_ROUNDS = 12  # of the ellipsoid's fit; it takes four to eight
MAX_TILT_PER_MM = 0.01  # twice what was seen: 0.003 by the body, 0.004 by the scanner's end
TAIL_SIGMAS = 2.8  # how far beyond the ellipsoid's edge the template reaches


@dataclass(frozen=True, eq=False)
class Template:
    """Density of most likely positions around an ellipsoid of activity, and its gradient.

    The density is that of a uniform ellipsoid blurred by the timing along the LOR, on a
    uniform background of 1, for each class of LOR directions on its own: this keeps the
    information that averaging over directions loses.

    Parameters
    ----------
    table
        Columns: log density, and minus its gradient along x, y, z (1/mm).
        Shape (n_directions, nx, ny, nz, 4), float32.
    lower_mm
        Centre of voxel (0, 0, 0), from the ellipsoid's centre, mm. Shape (3,).
    voxel_mm
        Edge of a voxel, mm.
    semi_axis_mm
        Of the ellipsoid, along x, y, z, mm.
    contrast
        Density of the unblurred ellipsoid over the background's.
    outside
        Log density beyond the table: zero, the background. Shape (n_directions,), float32.
    """

    table: F32
    lower_mm: F64
    voxel_mm: float
    semi_axis_mm: F64
    contrast: float
    outside: F32

    @property
    def half_mm(self) -> F64:
        """Half the width of the table along x, y, z, mm."""
        return np.asarray(-self.lower_mm)


@dataclass(frozen=True, eq=False)
class EllipsoidFit:
    """A blurred ellipsoid on a uniform background, fitted to a histo-image.

    ``excess`` and ``background`` are counts a voxel of the unblurred ellipsoid and of what lies
    under it; ``chi2`` is the misfit a voxel in units of the Poisson variance;
    ``is_at_limit`` says that the fit ran into the limits of its search. ``tilt_per_mm`` is the
    relative slope of the counts across the ellipsoid along x, y, z, 1/mm, if it was fitted.
    """

    centre_mm: F64
    semi_axis_mm: F64
    excess: float
    background: float
    chi2: float
    is_at_limit: bool = False
    tilt_per_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def contrast(self) -> float:
        """Excess over background."""
        return self.excess / max(self.background, 1e-9)

    @property
    def volume_ml(self) -> float:
        """Volume of the ellipsoid, mL."""
        return float(4.0 / 3.0 * math.pi * np.prod(self.semi_axis_mm) / 1000.0)


def class_directions() -> F64:
    """Mean of n n^T over each class of LOR directions. Shape (n_directions, 3, 3).

    Directions are taken as spread evenly in azimuth, and in axial cosine up to 0.6, which is
    where acceptance and the body's attenuation leave few LORs.
    """
    azimuth = (np.arange(N_AZIMUTH * 16) + 0.5) * np.pi / (N_AZIMUTH * 16)
    edges = (-0.60, -COS_EDGE, COS_EDGE, 0.60)
    result = np.empty((N_DIRECTIONS, 3, 3))
    for d in range(N_DIRECTIONS):
        phi = azimuth[16 * (d // 3) : 16 * (d // 3 + 1)][:, None]
        cos = np.linspace(edges[d % 3], edges[d % 3 + 1], 24)[None, :]
        sin = np.sqrt(1.0 - cos**2)
        n = np.stack(np.broadcast_arrays(sin * np.cos(phi), sin * np.sin(phi), cos))
        flat = n.reshape(3, -1)
        result[d] = flat @ flat.T / flat.shape[1]
    return result


def blur_covariance(along_mm: float) -> F64:
    """Give the covariance of most likely positions about the place of annihilation, mm^2.

    Parameters
    ----------
    along_mm
        Standard deviation along the LOR, mm: that of the timing, (c/2 sigma_t), and of a TOF
        bin, width / sqrt(12), together.

    Returns
    -------
    ndarray
        One matrix a class of LOR directions. Shape (n_directions, 3, 3).
    """
    across = DETECTOR_SIGMA_MM**2
    return np.asarray(across * np.eye(3) + (along_mm**2 - across) * class_directions())


def _frequencies(shape: tuple[int, ...], voxel_mm: float) -> tuple[Any, Any, Any]:
    kx, ky = (2 * np.pi * np.fft.fftfreq(n, voxel_mm) for n in shape[:2])
    kz = 2 * np.pi * np.fft.rfftfreq(shape[2], voxel_mm)
    return kx[:, None, None], ky[None, :, None], kz[None, None, :]


def transfer_function(covariance: F64, shape: tuple[int, ...], voxel_mm: float) -> F64:
    """Fourier transform of a Gaussian of the given covariance (mm^2), for ``rfftn``."""
    k = _frequencies(shape, voxel_mm)
    form: Any = 0.0
    for p in range(3):
        for q in range(3):
            form = form + covariance[p, q] * k[p] * k[q]
    return np.asarray(np.exp(-0.5 * form))


def draw_ellipsoid(semi_axis_mm: F64, centre_mm: F64, axes_mm: tuple[F64, F64, F64]) -> F64:
    """Fill an ellipsoid on voxel centres, with partly filled voxels at its edge."""
    voxel = axes_mm[0][1] - axes_mm[0][0]
    u, v, w = (
        (axis - c) / a for axis, c, a in zip(axes_mm, centre_mm, semi_axis_mm, strict=True)
    )
    rho = np.sqrt(u[:, None, None] ** 2 + v[None, :, None] ** 2 + w[None, None, :] ** 2)
    gradient = np.sqrt(
        (u[:, None, None] / semi_axis_mm[0]) ** 2
        + (v[None, :, None] / semi_axis_mm[1]) ** 2
        + (w[None, None, :] / semi_axis_mm[2]) ** 2
    )
    depth = (1.0 - rho) * rho / np.maximum(gradient, 1e-9)  # signed distance to the edge
    depth = np.where(rho < 0.5, semi_axis_mm.min() / 2, depth)
    return np.asarray(np.clip(0.5 + depth / voxel, 0.0, 1.0))


def _axes(half_mm: F64, voxel_mm: float) -> tuple[F64, F64, F64]:
    n = np.ceil(half_mm / voxel_mm).astype(int)
    x, y, z = (voxel_mm * np.arange(-k, k + 1, dtype=np.float64) for k in n)
    return x, y, z


def _mirrored(known: F64, matrix: F64) -> tuple[int, tuple[float, float, float]] | None:
    """Find a covariance whose mirror image this one is; an ellipsoid is its own.

    Returns
    -------
    index, signs
        Which one, and -1 for each axis that the mirror turns round; ``None`` without any.
    """
    for signs in ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0)):
        turned = matrix * np.outer(signs, signs)
        off = np.abs(known - turned).max(axis=(1, 2), initial=0.0)
        same = np.flatnonzero(off < 1e-9 * np.abs(matrix).max())
        if same.size:
            return int(same[0]), signs
    return None


def build_template(
    semi_axis_mm: F64, contrast: float, covariance: F64, *, voxel_mm: float = 3.0
) -> Template:
    """Tabulate the template of a uniform ellipsoid.

    Parameters
    ----------
    semi_axis_mm
        Along x, y, z, mm. Shape (3,).
    contrast
        Density of the unblurred ellipsoid over the background's.
    covariance
        Of the blur of each class of directions, mm^2. Shape (n_directions, 3, 3).
    voxel_mm
        Edge of a voxel of the table, mm.
    """
    semi = np.asarray(semi_axis_mm, dtype=np.float64)
    reach = np.sqrt(np.einsum("dii->di", covariance).max(axis=0))
    axes = _axes(semi + TAIL_SIGMAS * reach, voxel_mm)
    shape = tuple(len(a) for a in axes)
    padded = tuple(
        next_fast_len(n + int(2 * TAIL_SIGMAS * r / voxel_mm), real=True)
        for n, r in zip(shape, reach, strict=True)
    )
    spectrum = rfftn(draw_ellipsoid(semi, np.zeros(3), axes), padded)
    table = np.empty((len(covariance), *shape, 4), np.float32)
    inside = tuple(slice(n) for n in shape)
    for d, matrix in enumerate(covariance):
        if (known := _mirrored(covariance[:d], matrix)) is not None:
            other, signs = known
            turned = np.flip(table[other], tuple(p for p in range(3) if signs[p] < 0))
            table[d] = turned * np.array([1.0, *signs], np.float32)
            continue
        blurred = irfftn(spectrum * transfer_function(matrix, padded, voxel_mm), padded)
        log_density = np.log(1.0 + contrast * np.maximum(blurred[inside], 0.0))
        table[d, ..., 0] = log_density
        for p, slope in enumerate(np.gradient(log_density, voxel_mm)):
            table[d, ..., p + 1] = -slope
    return Template(
        table=table,
        lower_mm=np.array([a[0] for a in axes]),
        voxel_mm=voxel_mm,
        semi_axis_mm=semi,
        contrast=float(contrast),
        outside=np.zeros(len(covariance), np.float32),
    )


class BlurredEllipsoid:
    """Draws ellipsoids blurred by a mixture of LOR directions on a fixed grid, for fits.

    Parameters
    ----------
    axes_mm
        Voxel centres along x, y, z, evenly spaced alike.
    covariance, share
        Blur of each class of directions, mm^2, and the class's share of the events.
    """

    def __init__(self, axes_mm: tuple[F64, F64, F64], covariance: F64, share: F64) -> None:
        self.axes_mm = axes_mm
        self.shape = tuple(len(a) for a in axes_mm)
        voxel = float(axes_mm[0][1] - axes_mm[0][0])
        reach = np.sqrt(np.einsum("dii->di", covariance).max(axis=0))
        self._padded = tuple(
            next_fast_len(n + int(TAIL_SIGMAS * r / voxel), real=True)
            for n, r in zip(self.shape, reach, strict=True)
        )
        self._transfer: Any = sum(
            s * transfer_function(c, self._padded, voxel)
            for s, c in zip(share, covariance, strict=True)
            if s > 0
        )

    def draw(self, semi_axis_mm: F64, centre_mm: F64) -> F64:
        """Draw one ellipsoid of density 1, blurred."""
        sharp = draw_ellipsoid(semi_axis_mm, centre_mm, self.axes_mm)
        blurred = irfftn(rfftn(sharp, self._padded) * self._transfer, self._padded)
        return np.asarray(blurred[tuple(slice(n) for n in self.shape)])


def amplitudes(shape: F64, counts: F64, weight: F64) -> tuple[float, float]:
    """Solve for excess and background, weighted least squares, neither below zero."""
    s, w = shape.ravel(), weight.ravel()
    n = counts.ravel()
    ss, s1, ww = float((w * s * s).sum()), float((w * s).sum()), float(w.sum())
    sn, wn = float((w * s * n).sum()), float((w * n).sum())
    determinant = max(ss * ww - s1 * s1, 1e-12)
    excess = (sn * ww - s1 * wn) / determinant
    if excess <= 0:
        return 0.0, wn / ww
    background = (wn - excess * s1) / ww
    return (excess, background) if background > 0 else (sn / max(ss, 1e-12), 0.0)


def poisson_weight(counts: F64) -> F64:
    """Inverse variances of counts, from their own smooth neighbourhood."""
    return np.asarray(1.0 / (gaussian_filter(counts, 1.5) + 0.02 * counts.mean() + 1e-6))


def fit_ellipsoid(
    counts: F64,
    model: BlurredEllipsoid,
    *,
    semi_axis_mm: F64,
    centre_mm: F64,
    has_tilt: bool = False,
) -> EllipsoidFit:
    """Fit a blurred ellipsoid on a uniform background to a histo-image.

    Parameters
    ----------
    counts
        Counts a voxel. Shape as the model's grid.
    model
        Draws blurred ellipsoids on that grid.
    semi_axis_mm, centre_mm
        Where to start. Shape (3,).
    has_tilt
        Whether the counts of the ellipsoid and of the background may slope: attenuation and
        sensitivity differ from end to end of the ellipsoid by several per cent, and a centre
        fitted without the slope is the centre of the counts, not that of the ellipsoid.

    Notes
    -----
    Gauss-Newton on weighted squares, with excess and background solved for in every round.
    """
    weight = poisson_weight(counts)
    start = np.concatenate((np.log(semi_axis_mm), centre_mm))
    reach = np.array([math.log(2.2)] * 3 + [25.0] * 3)
    steps = np.array([0.02] * 3 + [0.5] * 3)
    largest = np.array([0.25] * 3 + [8.0] * 3)
    p = start.copy()
    for _ in range(MAX_ROUNDS):
        drawn = model.draw(np.exp(p[:3]), p[3:])
        excess, background = amplitudes(drawn, counts, weight)
        columns = [
            excess * (model.draw(np.exp(q[:3]), q[3:]) - drawn).ravel() / step
            for q, step in (
                (p + step * unit, step) for unit, step in zip(np.eye(6), steps, strict=True)
            )
        ]
        columns += [drawn.ravel(), np.ones(drawn.size)]
        if has_tilt:
            places = _places(model.axes_mm, p[3:])
            columns += [(place * drawn).ravel() for place in places]
            columns += [place.ravel() for place in places]
        matrix = np.stack(columns)
        weighted = matrix * weight.ravel()
        left = (counts - excess * drawn - background).ravel()
        normal = weighted @ matrix.T
        normal[np.diag_indices(len(normal))] *= 1.0 + 1e-6
        solution = np.linalg.lstsq(normal, weighted @ left, rcond=None)[0]
        change = np.clip(solution[:6], -largest, largest)
        new = np.clip(p + change, start - reach, start + reach)
        done = bool((np.abs(new - p) < 0.1 * steps).all())
        p = new
        if done:
            break
    drawn = model.draw(np.exp(p[:3]), p[3:])
    excess, background = amplitudes(drawn, counts, weight)
    return EllipsoidFit(
        centre_mm=p[3:],
        semi_axis_mm=np.exp(p[:3]),
        excess=excess,
        background=background,
        chi2=float((weight * (counts - excess * drawn - background) ** 2).mean()),
        is_at_limit=bool((np.abs(p - start) >= 0.999 * reach).any()),
        tilt_per_mm=_tilt(solution[8:11], excess) if has_tilt else (0.0, 0.0, 0.0),
    )


def _places(axes_mm: tuple[F64, F64, F64], centre_mm: F64) -> list[F64]:
    """Give x, y and z of every voxel from a centre, mm."""
    grids = np.meshgrid(*axes_mm, indexing="ij")
    return [np.asarray(g - c) for g, c in zip(grids, centre_mm, strict=True)]


def _tilt(slopes: F64, excess: float) -> tuple[float, float, float]:
    """Give relative slopes, 1/mm, no larger than sensitivity and attenuation make them."""
    x, y, z = np.clip(slopes / max(excess, 1e-9), -MAX_TILT_PER_MM, MAX_TILT_PER_MM).tolist()
    return x, y, z
