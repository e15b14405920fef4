"""Resolution as a Gaussian in image space, and the filter after reconstruction."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from listmode.errors import InputError
from listmode.scanner import FWHM_PER_SIGMA
from recon import _kernels
from recon.image import Grid
from recon.projector import run_in_threads

F32 = NDArray[np.float32]
N_SIGMA = 3.0  # where the Gaussian is cut off and renormalised


def blur(values: F32, grid: Grid, fwhm_mm: float, threads: int = 2) -> F32:
    """Convolve with an isotropic Gaussian; outside the grid the image is zero.

    The operation is its own transpose, so one function serves the model before forward
    projection and after back projection.

    Parameters
    ----------
    values
        Shape ``grid.shape``, float32.
    fwhm_mm
        Full width at half maximum, mm; 0 changes nothing.

    Returns
    -------
    ndarray
        Shape ``grid.shape``, float32.

    Raises
    ------
    InputError
        If the width is negative.
    """
    if not fwhm_mm >= 0:
        raise InputError(
            f"a resolution must be zero or more, but it is {fwhm_mm:g} mm; give the FWHM in mm"
        )
    if fwhm_mm == 0:
        return values
    values = np.require(values, np.float32, ["C", "W"])  # one type: writable and contiguous
    source, target = values, np.empty_like(values)
    for axis in range(3):
        taps = _taps(fwhm_mm / FWHM_PER_SIGMA / grid.voxel_mm[axis])
        n_rows = values.shape[1 if axis == 0 else 0]
        edges = np.linspace(0, n_rows, max(threads, 1) + 1).astype(int).tolist()

        def work(
            rows: tuple[int, int],
            axis: int = axis,
            taps: F32 = taps,
            source: F32 = source,
            target: F32 = target,
        ) -> None:
            _kernels.convolve(source, taps, axis, *rows, target)

        run_in_threads(work, list(pairwise(edges)), threads)
        source, target = target, (np.empty_like(values) if axis == 0 else source)
    return source


def _taps(sigma: float) -> F32:
    """Integrate a Gaussian over voxels, cut off at ``N_SIGMA``; the middle comes first."""
    edges = np.arange(math.ceil(N_SIGMA * sigma) + 2) - 0.5
    weight = np.diff(ndtr(edges / sigma))
    return np.asarray(weight / (weight[0] + 2 * weight[1:].sum()), np.float32)
