"""The coarse grids of the scatter simulation: detector nodes, TOF samples, matter, points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

from listmode.errors import InputError
from listmode.scanner import Scanner, TofModel
from recon.image import Grid, Volume

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

MAX_ROUNDNESS_ERROR = 0.1  # spread of the crystals' distance from the axis, relative
TRUNCATION = 4.0  # standard deviations of the timing kept


@dataclass(frozen=True)
class ScatterSettings:
    """How finely scatter is simulated and how it is scaled.

    Parameters
    ----------
    image_voxel_mm
        Voxel of the activity and mu that rays are traced through, mm.
    point_spacing_mm, n_points
        Smallest spacing of scatter points, mm, and about how many of them a large body gets:
        one a cell, placed at random where there is mu.
    transaxial_spacing_mm, axial_spacing_mm
        Largest distance of the coarse detector's nodes, mm.
    mu_threshold_per_cm
        Least mu that scatters, 1/cm.
    body_mu_per_cm
        Least mu of the body, 1/cm: the body confines the activity (with what it encloses), and
        LORs that miss it are the tails. A table is meant to lie below it.
    body_margin_mm
        Margin round the body, mm.
    multiple_share, multiple_spread_rad
        Multiple over single scatter where one mean free path of matter lies between scatter
        points and detector (0 leaves it out), and how much broader it is, rad.
    scale_to_tails
        Whether the tails scale the simulation; if not, ``fallback_scale`` does.
    fallback_scale
        Scatter over the simulation where the tails cannot tell.
    max_tail_error
        Largest relative standard error of a scale that is believed.
    n_segments
        Axial segments with a scale of their own; 1 for one scale.
    segment_spread
        Expected relative spread of the segments' scales about the global one.
    max_tail_events, n_pairs
        Events and crystal pairs that the scaling looks at.
    seed
        Of the points' and pairs' places.
    """

    image_voxel_mm: float = 10.0
    point_spacing_mm: float = 20.0
    n_points: int = 900
    transaxial_spacing_mm: float = 45.0
    axial_spacing_mm: float = 50.0
    mu_threshold_per_cm: float = 0.01
    body_mu_per_cm: float = 0.04
    body_margin_mm: float = 15.0
    multiple_share: float = 0.365
    multiple_spread_rad: float = 0.24
    scale_to_tails: bool = True
    fallback_scale: float = 1.0
    max_tail_error: float = 0.05
    n_segments: int = 8
    segment_spread: float = 0.05
    max_tail_events: int = 2_000_000
    n_pairs: int = 1_500_000
    seed: int = 20070112

    def __post_init__(self) -> None:
        for name in (
            "image_voxel_mm",
            "point_spacing_mm",
            "n_points",
            "transaxial_spacing_mm",
            "axial_spacing_mm",
            "mu_threshold_per_cm",
            "body_mu_per_cm",
            "multiple_spread_rad",
            "fallback_scale",
            "max_tail_error",
            "n_segments",
            "segment_spread",
            "max_tail_events",
            "n_pairs",
        ):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"scatter setting {name} must be positive, but it is "
                    f"{getattr(self, name)!r}; correct it or leave it out"
                )


DEFAULT = ScatterSettings()


@dataclass(frozen=True, eq=False)
class Nodes:
    """The coarse detector: nodes on a cylinder through the crystals, angle by angle.

    Node ``phi * n_z + z`` faces the axis. The first node of a pair stands at every
    ``phi_stride``-th angle, the second from ``first_delta`` spacings on (the field of view's
    edge) for ``n_delta`` spacings, which passes half a turn, and up to ``max_dz`` spacings
    away axially (the acceptance).
    """

    n_phi: int
    n_z: int
    phi_stride: int
    first_delta: int
    n_delta: int
    max_dz: int
    position_mm: F64
    normal: F64
    crystal_phi: F32
    crystal_z: F32


def lay_nodes(scanner: Scanner, settings: ScatterSettings) -> Nodes:
    """Lay the coarse detector's nodes.

    Raises
    ------
    InputError
        If the crystals do not lie about a cylinder round the z axis.
    """
    xyz = scanner.crystal_position_mm.astype(np.float64)
    distance = np.hypot(xyz[:, 0], xyz[:, 1])
    radius = float(distance.mean())
    spread = float(np.abs(distance - radius).max())
    if not spread <= MAX_ROUNDNESS_ERROR * radius:
        raise InputError(
            "scatter needs crystals that lie about a cylinder round the z axis, within "
            f"{MAX_ROUNDNESS_ERROR:.0%} of its radius, but those of {scanner.name!r} lie "
            f"{distance.min():.1f} to {distance.max():.1f} mm from it; "
            "reconstruct without scatter correction"
        )
    n_phi = 4 * max(4, math.ceil(math.pi / 2 * radius / settings.transaxial_spacing_mm))
    z_low, z_high = float(xyz[:, 2].min()), float(xyz[:, 2].max())
    n_z = max(2, math.ceil((z_high - z_low) / settings.axial_spacing_mm) + 1)
    dz_mm = max((z_high - z_low) / (n_z - 1), 1e-3)
    phi, z = (
        i.ravel()
        for i in np.meshgrid(
            np.arange(n_phi) * 2 * np.pi / n_phi, z_low + np.arange(n_z) * dz_mm, indexing="ij"
        )
    )
    normal = np.stack((np.cos(phi), np.sin(phi), np.zeros_like(phi)), axis=1)
    position = normal * radius
    position[:, 2] = z
    turn = np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi)
    edge_rad = 2 * math.acos(min(1.0, scanner.fov_radius_mm / radius))
    first = max(1, math.floor(edge_rad * n_phi / (2 * math.pi) - 0.1))
    ring_mm = (z_high - z_low) / max(1, int(np.ptp(scanner.crystal_ring)))
    reach_mm = ring_mm * scanner.max_ring_difference
    return Nodes(
        n_phi=n_phi,
        n_z=n_z,
        phi_stride=2,
        first_delta=first,
        n_delta=n_phi // 2 + 2 - first,
        max_dz=min(n_z, math.ceil(reach_mm / dz_mm) + 1),
        position_mm=position,
        normal=normal,
        crystal_phi=((turn % 1.0) * n_phi).astype(np.float32),
        crystal_z=((xyz[:, 2] - z_low) / dz_mm).astype(np.float32),
    )


@dataclass(frozen=True, eq=False)
class TofSamples:
    """TOF samples of the table over the finer steps of the histograms.

    ``blur[t, j]`` is the share of step ``first_step[t] + j`` that an average TOF bin at sample
    ``t`` takes; there are ``samples_per_bin`` samples a bin (at most one).
    """

    step_mm: float
    n_steps: int
    samples_per_bin: float
    first_step: I32
    blur: F32


def lay_tof_samples(tof: TofModel, voxel_mm: float) -> TofSamples:
    """Choose TOF samples: the bins, or groups of bins that are finer than the timing.

    The Gaussian is narrowed by the variance that the steps themselves add: each of emission
    and TOF position is known to a step.
    """
    if not tof.has_tof:
        return TofSamples(voxel_mm, 1, 1.0, np.zeros(1, np.int32), np.ones((1, 1), np.float32))
    n_group = max(1, int(tof.sigma_mm / tof.bin_width_mm))
    n_samples = math.ceil(tof.n_bins / n_group)
    n_samples += (n_samples - tof.n_bins) % 2 if n_group == 1 else 1 - n_samples % 2
    width_mm = n_group * tof.bin_width_mm
    step_mm = width_mm / max(1, round(width_mm / min(voxel_mm, tof.sigma_mm)))
    sigma = math.sqrt(max(tof.sigma_mm**2 - step_mm**2 / 6.0, (0.3 * tof.sigma_mm) ** 2))
    reach = TRUNCATION * sigma
    half = math.ceil((n_samples * width_mm / 2 + reach) / step_mm)
    centre = (np.arange(2 * half) + 0.5 - half) * step_mm
    sample = (np.arange(n_samples) - (n_samples - 1) / 2.0) * width_mm
    low = (sample - width_mm / 2)[:, None] - centre
    share = (ndtr((low + width_mm) / sigma) - ndtr(low / sigma)) / n_group
    first = np.searchsorted(centre, sample - width_mm / 2 - reach)
    n_taps = min(2 * half, math.ceil((width_mm + 2 * reach) / step_mm) + 1)
    first = np.minimum(first, 2 * half - n_taps)
    taps = np.take_along_axis(share, first[:, None] + np.arange(n_taps), axis=1)
    return TofSamples(
        step_mm, 2 * half, 1.0 / n_group, first.astype(np.int32), taps.astype(np.float32)
    )


def resample_mean(volume: Volume, grid: Grid) -> F64:
    """Average a volume over the voxels of another grid; zero outside the volume.

    Parameters
    ----------
    volume
        Values on their own grid.
    grid
        The grid to fill.

    Returns
    -------
    ndarray
        Shape ``grid.shape``, float64: integrals over voxels are conserved.
    """
    values: F64 = np.asarray(volume.values, dtype=np.float64)
    for axis in range(3):
        size, own = grid.voxel_mm[axis], volume.grid.voxel_mm[axis]
        low = (grid.axis_mm(axis) - size / 2)[:, None]
        own_low = (volume.grid.axis_mm(axis) - own / 2)[None, :]
        overlap = np.minimum(low + size, own_low + own) - np.maximum(low, own_low)
        weight = np.maximum(overlap, 0.0) / size
        values = np.moveaxis(np.tensordot(weight, values, axes=(1, axis)), 0, axis)
    return values


def body_mask(mu_per_cm: F64, grid: Grid, settings: ScatterSettings) -> NDArray[np.bool_]:
    """Find the body in a mu-map: dense matter, what it encloses, and a margin.

    Returns
    -------
    ndarray
        Shape ``grid.shape``, bool.
    """
    mask = np.asarray(mu_per_cm >= settings.body_mu_per_cm)
    for k in range(mask.shape[2]):  # slice by slice: the lungs may lie open at the field's end
        mask[:, :, k] = ndimage.binary_fill_holes(mask[:, :, k])
    if settings.body_margin_mm <= 0.0 or not mask.any():
        return mask
    distance = ndimage.distance_transform_edt(~mask, sampling=grid.voxel_mm)
    return np.asarray(distance <= settings.body_margin_mm)


@dataclass(frozen=True, eq=False)
class CoarseBody:
    """Activity and mu on the coarse grid that holds all matter.

    ``field[x, y, z] = (Bq/mL, mu per voxel length)``, float32, with a border of zeros that
    the grid counts; activity is kept within ``body`` only.
    """

    grid: Grid
    field: F32
    body: NDArray[np.bool_]


def coarse_body(image: Volume, mu: Volume, settings: ScatterSettings) -> CoarseBody:
    """Average activity and mu over coarse voxels and confine the activity to the body.

    Raises
    ------
    InputError
        If a unit is wrong, the mu-map holds no matter or the image no activity inside it.
    """
    for what, volume, unit in (("activity image", image, "Bq/mL"), ("mu-map", mu, "1/cm")):
        if volume.unit != unit:
            raise InputError(
                f"scatter needs the {what} in {unit}, but it is in {volume.unit}; convert it"
            )
    matter = mu.values >= settings.mu_threshold_per_cm
    if not matter.any():
        raise InputError(
            f"scatter needs matter in the mu-map (at least {settings.mu_threshold_per_cm:g} "
            f"/cm somewhere), but its largest value is {float(mu.values.max()):g} /cm; "
            "check the map's unit (1/cm) and place"
        )
    size = settings.image_voxel_mm
    margin_mm = settings.body_margin_mm + 2 * size
    span = np.array(
        [np.flatnonzero(matter.any(axis=k))[[0, -1]] for k in ((1, 2), (0, 2), (0, 1))]
    )
    low = mu.grid.point_mm(span[:, 0] - 0.5) - margin_mm
    high = mu.grid.point_mm(span[:, 1] + 0.5) + margin_mm
    nx, ny, nz = (int(n) for n in np.ceil((high - low) / size))
    x, y, z = (float(v) for v in low + size / 2)
    grid = Grid((nx, ny, nz), (size, size, size), (x, y, z))
    coarse_mu = resample_mean(mu, grid)
    body = body_mask(coarse_mu, grid, settings)
    activity = np.where(body, np.maximum(resample_mean(image, grid), 0.0), 0.0)
    field = np.stack((activity, coarse_mu * size / 10.0), axis=3).astype(np.float32)
    border = np.ones(grid.shape, dtype=bool)
    border[1:-1, 1:-1, 1:-1] = False
    field[border] = 0.0
    if not field[..., 0].any():
        raise InputError(
            "scatter needs activity inside the body of the mu-map, but the image has none "
            "there; check that image and mu-map are in the same place"
        )
    return CoarseBody(grid, field, body)


def place_points(mu_per_voxel: F32, settings: ScatterSettings) -> tuple[F64, F64]:
    """Place one scatter point in each cell that holds matter, at random in proportion to mu.

    Parameters
    ----------
    mu_per_voxel
        Attenuation per voxel length. Shape (nx, ny, nz), float32.
    settings
        Spacing, threshold and seed.

    Returns
    -------
    point, mass
        Places in voxel indices, shape (n, 3), and the cells' integrals of mu over volume in
        squared voxel lengths, shape (n,), float64: no mass is lost by the jitter.
    """
    size = settings.image_voxel_mm
    index = np.argwhere(mu_per_voxel >= settings.mu_threshold_per_cm * size / 10.0)
    spacing_mm = max(
        settings.point_spacing_mm, size * (len(index) / settings.n_points) ** (1 / 3)
    )
    cell = (index * size / spacing_mm).astype(np.int64)
    _, label = np.unique(cell, axis=0, return_inverse=True)
    label = label.ravel()
    order = np.argsort(label, kind="stable")
    index, label = index[order], label[order]
    mu = mu_per_voxel[tuple(index.T)].astype(np.float64)
    mass = np.asarray(np.bincount(label, weights=mu), dtype=np.float64)
    rng = np.random.default_rng(settings.seed)
    total = np.cumsum(mu)
    before = np.concatenate(([0.0], np.cumsum(mass)[:-1]))
    pick = np.searchsorted(total, before + mass * rng.random(mass.size))
    # rounding may step into the next cell: keep to the cell's own voxels
    first = np.searchsorted(label, np.arange(mass.size))
    last = np.searchsorted(label, np.arange(mass.size), side="right") - 1
    pick = np.clip(pick, first, last)
    return index[pick] + rng.random((mass.size, 3)) - 0.5, mass
