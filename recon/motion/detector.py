"""The detector as a patient in each pose sees it, and the patient as the detector does.

Motion ends here: no kernel knows of it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from listmode.scanner import Scanner
from recon.image import Grid, Volume
from recon.motion.poses import Poses, invert
from recon.projector import RayModel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def move_scanner(scanner: Scanner, reference_from_scanner: F64) -> Scanner:
    """Give the detector as a patient in a pose sees it: the same crystals, elsewhere.

    For sensitivity and attenuation only: which pairs are accepted follows from the unmoved one.
    """
    if (reference_from_scanner == np.eye(4)).all():
        return scanner
    turn, shift = reference_from_scanner[:3, :3], reference_from_scanner[:3, 3]
    position = scanner.crystal_position_mm.astype(np.float64)
    normal = scanner.crystal_normal.astype(np.float64)
    return replace(
        scanner,
        crystal_position_mm=(position @ turn.T + shift).astype(np.float32),
        crystal_normal=(normal @ turn.T).astype(np.float32),
        layout=None,
    )


def move_rays(rays: RayModel, grid: Grid, scanner: Scanner, poses: Poses) -> RayModel:
    """Give every pose its own copy of the crystals in the reference frame.

    Crystal ``c`` in pose ``p`` has the number ``c + p n_crystals``. So no kernel knows of
    motion, and a LOR keeps its continuous ends wherever the patient's motion takes them.
    """
    position = scanner.crystal_position_mm.astype(np.float64)
    ends = []
    for reference_from_scanner in poses.reference_from_scanner:
        affine = grid.voxel_from_scanner @ reference_from_scanner
        ends.append(position @ affine[:3, :3].T + affine[:3, 3])
    return replace(rays, ends=np.ascontiguousarray(np.concatenate(ends), rays.ends.dtype))


def move_volume(volume: Volume, scanner_from_reference: F64) -> Volume:
    """Bring a volume from the reference to where a pose took it in the scanner.

    A shift moves the grid and leaves the values; a turn resamples them linearly on the
    smallest grid of the same voxels that holds the turned volume.

    Parameters
    ----------
    volume
        In the reference pose.
    scanner_from_reference
        Shape (4, 4), mm.
    """
    grid = volume.grid
    if (scanner_from_reference == np.eye(4)).all():
        return volume
    if (scanner_from_reference[:3, :3] == np.eye(3)).all():
        x, y, z = (np.array(grid.origin_mm) + scanner_from_reference[:3, 3]).tolist()
        return replace(volume, grid=replace(grid, origin_mm=(x, y, z)))
    corner = grid.point_mm(np.array([*product(*((0, n - 1) for n in grid.shape))]))
    place = corner @ scanner_from_reference[:3, :3].T + scanner_from_reference[:3, 3]
    low, high = place.min(axis=0), place.max(axis=0)
    nx, ny, nz = np.ceil((high - low) / grid.voxel_mm - 1e-6).astype(int).tolist()
    x, y, z = low.tolist()
    moved = Grid((nx + 1, ny + 1, nz + 1), grid.voxel_mm, (x, y, z))
    old_from_new = grid.voxel_from_scanner @ invert(scanner_from_reference)
    old_from_new = old_from_new @ moved.scanner_from_voxel
    old = np.asarray(volume.values, np.float32)
    values: F32 = affine_transform(old, old_from_new, output_shape=moved.shape, order=1)
    return Volume(values, moved, volume.unit, volume.provenance)
