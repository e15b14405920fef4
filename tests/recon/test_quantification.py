"""Becquerels per millilitre against the simulator, which follows photons into crystals."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.formats.scanner_file import load_scanner
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.phantom import cylinder_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from recon.corrections.randoms import estimate_randoms
from recon.image import Grid, Volume
from recon.osem import OsemSettings
from recon.reconstruct import reconstruct

ACTIVITY_BQ_ML = 1500.0


@pytest.mark.slow
@pytest.mark.stats
def test_a_simulated_cylinder_with_randoms_has_its_activity() -> None:
    # About a million trues: the mean over the inner part has 0.2 % noise, so that its limit of
    # 3 % lies at more than 10 sigma; the rest of the limit is the two detector models.
    scanner = load_scanner("quadra")
    scan, _ = simulate_in_memory(
        scanner=scanner,
        phantom=cylinder_phantom(activity_bq_ml=ACTIVITY_BQ_ML),
        dose=LOW_DOSE_FDG,
        seed=1,
        duration_s=4.0,
        scatter="off",
        count_fraction=0.6,
    )
    assert scan.truth is not None
    randoms = estimate_randoms(scan, scan.extent)
    n_true_randoms = int((scan.truth == 2).sum())
    assert abs(randoms.total - n_true_randoms) < 6 * np.sqrt(2 * n_true_randoms)
    grid = Grid.centred((40, 40, 56), 6.6)
    x, y, z = np.meshgrid(*[grid.axis_mm(k) for k in range(3)], indexing="ij")
    matter = (np.hypot(x, y) < 100) & (np.abs(z) < 150)
    image = reconstruct(
        scan,
        scan.extent,
        grid=grid,
        mu=Volume(matter * np.float32(0.096), grid, "1/cm"),
        settings=OsemSettings(n_iterations=2, n_sensitivity_pairs=3_000_000),
        additive=[randoms],
    )
    inner = (np.hypot(x, y) < 80) & (np.abs(z) < 120)
    assert image.values[inner].mean() == pytest.approx(ACTIVITY_BQ_ML, rel=0.03)
    assert image.provenance["additive"] == ["RandomsModel"]
