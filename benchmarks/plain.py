"""Plain baselines of reading and of the motion pass: what h5py and numpy do without us."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.source import Listmode

CHUNK = 1 << 20
VOXEL_MM = 4.0


def read_columns(path: Path) -> int:
    """Read the three columns of the prompts with h5py, a piece at a time; count the events."""
    with h5py.File(path, "r") as file:
        columns = [file["prompts"][name] for name in ("crystal_a", "crystal_b", "tof_bin")]
        n = int(columns[0].shape[0])
        return sum(
            min(len(column[k : k + CHUNK]) for column in columns) for k in range(0, n, CHUNK)
        )


def most_likely_positions(listmode: Listmode) -> NDArray[np.int64]:
    """Histogram the most likely positions in voxels of 4 mm, event by event, with numpy.

    Returns
    -------
    ndarray
        Events in the detector's box. Shape (n_x, n_y, n_z), int64.
    """
    scanner = listmode.scanner
    place = scanner.crystal_position_mm.astype(np.float64)
    centre_mm = scanner.tof.bin_centre_mm()
    half = np.abs(place).max(axis=0)
    shape = np.ceil(2.0 * half / VOXEL_MM).astype(np.int64)
    image = np.zeros(int(shape.prod()), np.int64)
    for batch in listmode.events(chunk=CHUNK):
        a, b = place[batch.crystal_a], place[batch.crystal_b]
        along = b - a
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        at = (a + b) / 2.0 + along * centre_mm[batch.tof_bin, None]
        voxel = np.floor((at + half) / VOXEL_MM).astype(np.int64)
        voxel = voxel[((voxel >= 0) & (voxel < shape)).all(axis=1)]
        flat = np.ravel_multi_index(tuple(voxel.T), tuple(shape.tolist()))
        image += np.bincount(flat, minlength=image.size)
    return image.reshape(shape)
