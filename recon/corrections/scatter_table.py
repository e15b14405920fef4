"""TOF single-scatter simulation: the shape and absolute size of scatter, before any scaling."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from recon.corrections import _kernels, compton
from recon.corrections.multiple_scatter import multiple_scatter
from recon.corrections.normalisation import stopping_length
from recon.corrections.scatter_grid import (
    DEFAULT,
    CoarseBody,
    ScatterSettings,
    coarse_body,
    lay_nodes,
    lay_tof_samples,
    place_points,
)
from recon.image import Volume
from recon.projector import run_in_parts

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

MIN_ACCEPTANCE = 5e-3  # of an unscattered photon's: larger scattering angles are left out
MULTIPLE_EXPONENT = 1.5  # of mean free paths; fitted with multiple_share, see docs/scatter.md
LEAST_SHARE = 1e-9  # of the hottest coarse voxel's activity times its size: stands for none
CHUNK = 32  # scatter points at a time: what their rays hold stays in the cache


@dataclass(frozen=True, eq=False)
class ScatterTable:
    """Single scatter between nodes of a coarse cylinder of detectors.

    A value is the expected scatter of an LOR and TOF bin over the LOR's response to trues,
    ``n_i`` of ARCHITECTURE.md: the line integral of activity that, without attenuation, would
    give as many counts. Counts are ``D n_i`` times it.

    Parameters
    ----------
    scanner
        The scanner it was made for.
    log_values
        Natural logarithms, of Bq/mL mm a TOF bin, indexed by the first node's angle and axial
        place, the second's angle beyond the first (from ``first_delta`` on) and axial place,
        and the TOF sample. Shape (n_views, n_z, n_delta, n_z, n_tof), float32.
    n_phi, phi_stride, first_delta
        Nodes round the ring; every how many of them a pair's first node stands, and the
        smallest angle between a pair's nodes, in node spacings.
    crystal_phi, crystal_z
        Each crystal's angle and axial place in node spacings. Shape (n_crystals,), float32.
    samples_per_bin
        TOF samples a TOF bin (at most 1).
    n_points
        Scatter points behind it.
    multiple_ratio
        Multiple scatter that was added, relative to single scatter.
    """

    scanner: Scanner
    log_values: F32
    n_phi: int
    phi_stride: int
    first_delta: int
    crystal_phi: F32
    crystal_z: F32
    samples_per_bin: float
    n_points: int
    multiple_ratio: float

    def evaluate(self, batch: EventBatch, *, threads: int = 2) -> F32:
        """Interpolate the table at events.

        Parameters
        ----------
        batch
            Events of the scanner.
        threads
            Python threads; the bits do not depend on it.

        Returns
        -------
        ndarray
            Shape (n_events,), float32, Bq/mL mm.
        """
        out = np.empty(len(batch), np.float32)

        def part(some: slice) -> None:
            _kernels.interpolate(
                batch.crystal_a[some],
                batch.crystal_b[some],
                batch.tof_bin[some],
                self.crystal_phi,
                self.crystal_z,
                self.phi_stride,
                self.first_delta,
                self.scanner.tof.n_bins,
                self.samples_per_bin,
                self.log_values,
                out[some],
            )

        run_in_parts(part, len(batch), threads)
        return out


def angle_table(scanner: Scanner, n: int = 1024) -> tuple[float, F32]:
    """Tabulate what a scattering angle costs a photon, over its cosine.

    Returns
    -------
    cos_min, table
        The least cosine that the energy window lets through, and over n cosines from there to
        1 the scattering density times the acceptance relative to an unscattered photon (1/sr)
        and how much the attenuation grows (its ratio less 1). Shape (n, 2), float32.
    """

    def relative_acceptance(cos: F64) -> F64:
        energy = compton.scattered_energy_kev(cos)
        full = compton.scattered_energy_kev(np.ones(1))
        window, resolution = scanner.energy_window_kev, scanner.energy_resolution
        accepted = compton.window_acceptance(energy, window, resolution)
        return accepted / compton.window_acceptance(full, window, resolution)

    cos = np.linspace(-1.0, 1.0, 20_001)
    cos_min = float(cos[np.argmax(relative_acceptance(cos) > MIN_ACCEPTANCE)])
    cos = np.linspace(cos_min, 1.0, n)
    density = compton.scattering_density(cos) * relative_acceptance(cos)
    table = np.stack((density, compton.attenuation_ratio(cos) - 1.0), axis=1)
    return cos_min, table.astype(np.float32)


def expected_scatter_table(
    scanner: Scanner,
    *,
    image: Volume,
    mu: Volume,
    settings: ScatterSettings = DEFAULT,
    body: CoarseBody | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> ScatterTable:
    """Simulate the single scatter of an activity image in a mu-map, with TOF.

    From each scatter point a ray goes to every node of a coarse detector. An LOR's scatter is
    the sum over points of the activity on either ray, seen by one photon directly and by the
    other after scattering at the point, with the attenuation of both at their energies, the
    Klein-Nishina density, the energy window and the nodes' faces.

    Parameters
    ----------
    scanner
        Its crystals must lie about a cylinder round the z axis.
    image
        Activity at tick zero, Bq/mL.
    mu
        Attenuation at 511 keV, 1/cm, on any grid.
    settings
        Grids and thresholds; see :class:`ScatterSettings`.
    body
        What :func:`coarse_body` makes of image, mu-map and settings, if it is there already.
    threads
        Python threads; the bits do not depend on it.
    progress
        Told the scatter points.

    Raises
    ------
    InputError
        If a unit is wrong, the mu-map holds no matter or the image no activity, or the crystals
        do not lie about a cylinder.

    Notes
    -----
    Watson (2000), doi 10.1109/23.873028; with TOF Watson (2007), doi 10.1109/TNS.2007.902358.
    An annihilation at distance r from point S on the ray to crystal a has
    c/2 (t_a - t_b) = (R_a - R_b)/2 - r, on the ray to b (R_a - R_b)/2 + r. One unoriented
    line in 2 pi of directions carries a pair, so that the étendue of crystal and point,
    A cos / R² dS, over 2 pi counts pairs as in ``n_i``; cell areas, window efficiency and
    constants cancel in the ratio that the table holds.
    """
    nodes = lay_nodes(scanner, settings)
    tof = lay_tof_samples(scanner.tof, settings.image_voxel_mm)
    body = body or coarse_body(image, mu, settings)
    voxel_mm = settings.image_voxel_mm
    point, mass = place_points(np.ascontiguousarray(body.field[..., 1]), settings)
    node = body.grid.voxel_index(nodes.position_mm)
    stopping = stopping_length(scanner)
    cos_min, angles = angle_table(scanner)
    step = tof.step_mm / voxel_mm
    n_reach = math.ceil(math.hypot(*body.grid.shape) / step) + 1
    n_nodes = len(node)
    thickness = np.zeros(2)
    rays = _rays(min(CHUNK, len(mass)), n_nodes, n_reach)
    n_views = nodes.n_phi // nodes.phi_stride
    shape = (n_views * nodes.n_z, nodes.n_delta, nodes.n_z)
    histogram = np.zeros((*shape, tof.n_steps), np.float32)
    values = np.zeros((*shape, len(tof.blur)), np.float32)

    def trace(i: int, chunk: F64) -> None:
        _kernels.trace_rays(
            chunk, node, nodes.normal, stopping, body.field, step, i, i + 1, *rays
        )

    def add(view: int, chunk: F64) -> None:
        rows = slice(view * nodes.n_z, (view + 1) * nodes.n_z)
        _kernels.add_scatter(
            view,
            nodes.n_phi,
            nodes.n_z,
            nodes.phi_stride,
            nodes.first_delta,
            nodes.max_dz,
            chunk,
            *rays,
            step,
            cos_min,
            angles,
            histogram[rows],
        )

    def finish(row: int) -> None:
        _kernels.finish_row(
            row,
            nodes.n_phi,
            nodes.n_z,
            nodes.phi_stride,
            nodes.first_delta,
            node,
            nodes.normal,
            stopping,
            voxel_mm,
            tof.first_step,
            tof.blur,
            histogram[row],
            values[row],
        )

    with (
        ThreadPoolExecutor(threads) as pool,
        progress.stage("scatter", len(mass), "points") as stage,
    ):
        for first in range(0, len(mass), CHUNK):
            points, masses = point[first : first + CHUNK], mass[first : first + CHUNK]
            list(pool.map(trace, range(len(masses)), repeat(points)))
            list(pool.map(add, range(n_views), repeat(masses)))
            thickness += _thickness(masses, rays)
            stage.advance(len(masses))
        list(pool.map(finish, range(shape[0])))
    values = values.reshape(n_views, nodes.n_z, nodes.n_delta, nodes.n_z, -1)
    mean_free_paths = float(thickness[1] / thickness[0])
    ratio = settings.multiple_share * mean_free_paths**MULTIPLE_EXPONENT
    if ratio > 0.0:
        values += multiple_scatter(values, nodes, ratio, settings.multiple_spread_rad)
    floor = LEAST_SHARE * voxel_mm * float(body.field[..., 0].max())
    np.log(np.maximum(values, floor, out=values), out=values)
    return ScatterTable(
        scanner=scanner,
        log_values=values,
        n_phi=nodes.n_phi,
        phi_stride=nodes.phi_stride,
        first_delta=nodes.first_delta,
        crystal_phi=nodes.crystal_phi,
        crystal_z=nodes.crystal_z,
        samples_per_bin=tof.samples_per_bin,
        n_points=len(mass),
        multiple_ratio=ratio,
    )


def _thickness(mass: F64, rays: tuple[F32, F32, F32, F32, F32, F32, I32]) -> F64:
    """Sum what leaves the scatter points towards the nodes, and that times its mean free paths.

    Rays are weighted by the solid angle of their node and by the photons that survive.
    """
    n = mass.size
    _, _, gain, mu_integral, survival, _, _ = rays
    weight = (gain[:n] * survival[:n]).astype(np.float64)
    return np.array([mass @ weight.sum(axis=1), mass @ (weight * mu_integral[:n]).sum(axis=1)])


def _rays(
    n_points: int, n_nodes: int, n_reach: int
) -> tuple[F32, F32, F32, F32, F32, F32, I32]:
    """Make room for the rays of a chunk of points, in the order that the kernels take them."""
    pair = (n_points, n_nodes)
    return (
        np.empty((*pair, 3), np.float32),  # direction
        np.empty(pair, np.float32),  # distance
        np.empty(pair, np.float32),  # gain
        np.empty(pair, np.float32),  # integral of mu
        np.empty(pair, np.float32),  # its exp(-)
        np.empty((*pair, n_reach), np.float32),  # activity by step
        np.empty(pair, np.int32),  # steps
    )
