"""parallelproj on the same events, where it is installed (conda: it is not on PyPI).

Schramm, Thielemans, Front Nucl Med 2023;3, doi 10.3389/fnume.2023.1324562. Both of its Python
interfaces are known: ``parallelproj_core`` (2.x) and ``parallelproj`` (1.x). Its threads are
OpenMP's: set ``OMP_NUM_THREADS`` to compare like with like.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.scanner import Scanner
from recon.image import Grid

F32 = NDArray[np.float32]
NAMES = ("parallelproj_core", "parallelproj")


def find_parallelproj() -> ModuleType | None:
    """Import parallelproj, the newer interface first; ``None`` if neither is installed."""
    for name in NAMES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):
            continue
    return None


def make_update(
    library: ModuleType, scanner: Scanner, grid: Grid, events: EventBatch, n_sigma: float = 3.0
) -> Callable[[F32, F32], F32]:
    """Make one EM update of the events: forward, ratio with the additive term, back.

    Parameters
    ----------
    library
        From :func:`find_parallelproj`.

    Returns
    -------
    callable
        Takes an image (shape ``grid.shape``) and the additive term (one number an event), and
        gives the back-projected ratio.
    """
    place = scanner.crystal_position_mm.astype(np.float32)
    ends = (place[events.crystal_a], place[events.crystal_b])
    origin = np.array(grid.origin_mm, np.float32)
    size = np.array(grid.voxel_mm, np.float32)
    width = float(scanner.tof.bin_width_mm)
    sigma = np.array([scanner.tof.sigma_mm], np.float32)
    offset = np.zeros(1, np.float32)
    n_bins = scanner.tof.n_bins
    core: Any = library

    def update_2(image: F32, additive: F32) -> F32:
        tof = (width, sigma, offset, events.tof_bin, n_bins, n_sigma)
        expected = np.zeros(len(events), np.float32)
        core.joseph3d_tof_lm_fwd(*ends, image, origin, size, expected, *tof)
        ratio = np.float32(1) / (expected + additive)
        back = np.zeros(grid.shape, np.float32)
        core.joseph3d_tof_lm_back(*ends, back, origin, size, ratio, *tof)
        return back

    def update_1(image: F32, additive: F32) -> F32:
        from_middle = events.tof_bin - np.int16(n_bins // 2)
        tof = (width, sigma, offset, n_sigma, from_middle)
        expected = core.joseph3d_fwd_tof_lm(*ends, image, origin, size, *tof)
        ratio = np.float32(1) / (np.asarray(expected, np.float32) + additive)
        back = core.joseph3d_back_tof_lm(*ends, grid.shape, origin, size, ratio, *tof)
        return np.asarray(back, np.float32)

    return update_2 if hasattr(core, "joseph3d_tof_lm_fwd") else update_1
