"""The IBSI digital phantom and its reference values.

Voxels and mask: Image Biomarker Standardisation Initiative, reference manual, section "Digital
phantom" (Zwanenburg et al., 10.48550/arXiv.1612.07003; data CC BY 4.0). Slices along z; rows of
a slice run along y (4), columns along x (5); 2 mm voxels; 74 of 80 voxels in the region.
"""

from __future__ import annotations

import numpy as np

from recon.image import Grid, Volume

_SLICES = (
    ((4, 4, 6, 4, 1), (4, 4, 6, 1, 1), (1, 1, 6, 1, 1), (1, 1, 6, 1, 1)),
    ((4, 1, 6, 4, 1), (1, 1, 3, 1, 1), (1, 1, 9, 1, 1), (1, 1, 1, 1, 1)),
    ((1, 4, 6, 1, 1), (1, 1, 6, 1, 1), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    ((1, 4, 4, 1, 1), (1, 4, 4, 1, 1), (1, 4, 4, 1, 1), (1, 4, 4, 1, 1)),
)
_OUTSIDE = ((0, 1, 1), (2, 2, 1), (3, 2, 3), (3, 3, 3), (4, 2, 3), (4, 3, 3))  # x, y, z

_GRID = Grid((5, 4, 4), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


def phantom() -> Volume:
    values = np.array(_SLICES, np.float32).transpose(2, 1, 0)
    return Volume(values, _GRID, "SUV")


def region() -> Volume:
    mask = np.ones(_GRID.shape, np.int32)
    for voxel in _OUTSIDE:
        mask[voxel] = 0
    return Volume(mask, _GRID, "label")
