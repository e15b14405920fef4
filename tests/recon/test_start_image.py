"""The image that iterations start from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.scanner import TofModel
from listmode.source import ScanProtocol
from recon.events_store import store_events
from recon.image import Grid
from recon.osem import OsemSettings, Problem, osem
from recon.projector import RayModel, TaskPlan, forward
from recon.sensitivity import compute_sensitivity
from tests.oracles import cylinder_scan, small_scanner

ACTIVITY_BQ_ML = 2.0e5


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_first_iteration_finds_the_activity_whatever_explains_events_beside_it(
    share: float,
) -> None:
    """Five updates come within 10 % of the truth, also where half of the counts are additive.

    From 1 Bq/mL they reached a small part of it: all was put down to the additive term.
    """
    scan = cylinder_scan(
        small_scanner(tof=TofModel(13, 100.0, 200.0)),
        activity_bq_ml=ACTIVITY_BQ_ML, radius_mm=40.0, half_mm=50.0, mu_per_cm=0.0,
        seconds=0.02, protocol=ScanProtocol(),
    )  # fmt: skip
    grid = Grid.centred((17, 17, 19), 8.0)
    sensitivity = compute_sensitivity(scan.scanner, grid, n_pairs=400_000, coarse_mm=8.0)
    x, y, z = np.meshgrid(*[grid.axis_mm(k) for k in range(3)], indexing="ij")
    inside = (np.hypot(x, y) < 40) & (np.abs(z) < 50)
    body = np.where(inside, np.float32(ACTIVITY_BQ_ML), np.float32(0))

    def term(batch: EventBatch) -> NDArray[np.float32]:
        line = forward(body, grid, scan.scanner, batch)
        return np.asarray(share * line, np.float32)

    settings = OsemSettings(n_iterations=1, n_subsets=5, psf_fwhm_mm=0.0)
    rays = RayModel.make(grid, scan.scanner)
    calibration = 0.02 * scan.protocol.branching
    with store_events(scan, scan.extent, TaskPlan(rays), n_subsets=5, additive=term) as store:
        problem = Problem(store, sensitivity.values, grid, calibration, settings)
        (image,) = osem(problem)
    mean = float(image.values[inside].mean())
    assert mean == pytest.approx((1 - share) * ACTIVITY_BQ_ML, rel=0.1)
