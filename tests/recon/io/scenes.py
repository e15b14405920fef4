"""An off-centre asymmetric object and the facts of its scan, for tests of image files."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np

from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Volume
from recon.io.scan_facts import ScanFacts

GRID = Grid((9, 7, 6), (2.5, 3.0, 4.25), (-21.0, 4.0, -101.5))

PROTOCOL = ScanProtocol(
    tracer="FDG",
    injected_activity_bq=21.7e6,
    injection_time_s=-3611.25,
    patient_weight_kg=71.3,
    patient_height_m=1.68,
    patient_sex="F",
)
WINDOWS = Windows([10_000, 600_500], [120_000, 1_200_000])
START = datetime(2026, 3, 1, 0, 20, 30, 125_000)  # injection was the day before

PROVENANCE: dict[str, Any] = {
    "software": "stillpet",
    "scanner": "quadra",
    "windows_ms": [list(window) for window in WINDOWS],
    "osem": {
        "n_iterations": 4,
        "n_subsets": 5,
        "use_tof": True,
        "psf_fwhm_mm": 4.0,
        "post_filter_fwhm_mm": 2.0,
    },
    "has_attenuation": True,
    "additive": ["RandomsModel", "ScatterModel"],
}


def asymmetric(grid: Grid = GRID) -> Volume:
    """Give a volume without any symmetry, hottest off-centre; its first slice is empty."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid.shape), indexing="ij")
    values = 1000.0 * (1.0 + 2.0 * x + 0.31 * y) * z + 17.0 * np.sin(x + 3.0 * y)
    values[:, :, 0] = 0.0
    values[7, 0, 5] = 154_321.5  # hot, off-centre
    return Volume(np.abs(values).astype(np.float32), grid, "Bq/mL", PROVENANCE)


def facts(start: datetime | None = START) -> ScanFacts:
    return ScanFacts(PROTOCOL, WINDOWS, start)
