"""Multiple scatter from single scatter: as much as matter is thick, and broader."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from recon.corrections.scatter_grid import Nodes

F32 = NDArray[np.float32]


def multiple_scatter(single: F32, nodes: Nodes, ratio: float, spread_rad: float) -> F32:
    """Estimate multiple scatter by broadening single scatter over the detector.

    A photon that scatters once more still lands near where it would have landed: single
    scatter is convolved with a normal distribution over the angle between an LOR's ends and
    over either end's axial place (the mean of the two, since mostly one photon scatters twice).

    Parameters
    ----------
    single
        Single scatter (not its logarithm) on the nodes of a scatter table. Shape (n_views,
        n_z, n_delta, n_z, n_tof), float32.
    nodes
        The coarse detector.
    ratio
        Multiple scatter over single scatter.
    spread_rad
        Standard deviation of the broadening, seen from the scanner's axis, rad.

    Returns
    -------
    ndarray
        Shape and unit of ``single``.

    Notes
    -----
    Multiple scatter as a broadened copy of single scatter: Ollinger (1996),
    doi 10.1088/0031-9155/41/1/012.
    """
    n_views, n_z, n_delta, _, n_tof = single.shape
    radius_mm = float(np.hypot(*nodes.position_mm[0, :2]))
    z_mm = nodes.position_mm[:n_z, 2]
    angle = (nodes.first_delta + np.arange(_past_half_turn(nodes))) * 2 * math.pi / nodes.n_phi
    across = _gauss(angle[:n_delta], angle, spread_rad)
    across *= (angle[1] - angle[0]) / (math.sqrt(2 * math.pi) * spread_rad)
    along = _gauss(z_mm, z_mm, spread_rad * radius_mm)
    along /= along.sum(axis=1, keepdims=True)
    turned = _unfold(single, nodes).reshape(n_views * n_z, angle.size, n_z * n_tof)
    broad = np.matmul((0.5 * ratio * across).astype(np.float32), turned)
    first_end = np.matmul(along.astype(np.float32), broad.reshape(n_views, n_z, -1))
    second_end = np.matmul(along.astype(np.float32), broad.reshape(-1, n_z, n_tof))
    return np.asarray(first_end.reshape(single.shape) + second_end.reshape(single.shape))


def _gauss(
    at: NDArray[np.float64], of: NDArray[np.float64], sigma: float
) -> NDArray[np.float64]:
    return np.asarray(np.exp(-0.5 * ((at[:, None] - of[None, :]) / sigma) ** 2))


def _past_half_turn(nodes: Nodes) -> int:
    """Count angles from the first one past half a turn to the first one's mirror."""
    return 2 * (nodes.n_phi // 2 - nodes.first_delta) + 1


def _unfold(single: F32, nodes: Nodes) -> F32:
    """Continue the table past half a turn, where a pair's ends exchange their places."""
    half = nodes.n_phi // 2 - nodes.first_delta
    parts = [single[:, :, : half + 1]]
    for k in range(1, half + 1):
        views = (nodes.n_phi // 2 + k) // nodes.phi_stride
        other = np.roll(single[:, :, half - k, :, ::-1], -views, axis=0)
        parts.append(other.transpose(0, 2, 1, 3)[:, :, None])
    return np.concatenate(parts, axis=2)
