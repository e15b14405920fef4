"""The scatter study: which voxels it judges, and which events."""

from __future__ import annotations

import numpy as np

from benchmarks.scatter_study import inner_regions, trues_of
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.simulate.phantom import cylinder_phantom, torso_phantom
from listmode.simulate.truth import RANDOM, SCATTER, TRUE
from listmode.source import ScanProtocol
from recon.image import Grid


def test_every_corner_of_a_chosen_voxel_keeps_its_distance_from_the_surface() -> None:
    phantom = cylinder_phantom(radius_mm=60.0, length_mm=120.0)
    grid = Grid.centred((18, 18, 18), 8.0)
    (region,) = (
        r for organ, r in inner_regions(phantom, grid, 12.0).items() if organ == "cylinder"
    )
    x, y, z = (np.abs(grid.axis_mm(k)) + 4.0 for k in range(3))  # the outermost corner
    room_mm = np.minimum(60.0 - np.hypot(x[:, None, None], y[:, None]), 60.0 - z)
    assert region.any()
    assert room_mm[region].min() > 12.0 - 1.0
    assert region[room_mm >= 12.0 + 2.0].all()


def test_a_region_keeps_clear_of_other_organs_and_of_the_grids_end() -> None:
    phantom = torso_phantom()
    grid = Grid.centred((50, 36, 70), 8.0)  # as long as the torso
    regions = inner_regions(phantom, grid, 12.0)
    truth = phantom.sample_activity(*(grid.axis_mm(k) for k in range(3)))
    assert not regions["soft_tissue"][:, :, [0, -1]].any()
    for organ in ("heart", "spleen", "kidney", "bladder", "liver", "lung"):
        assert regions[organ].sum() > 20
        assert np.ptp(truth[regions[organ]]) <= 1e-6 * truth.max()


def test_trues_stay_in_their_ticks() -> None:
    truth = np.array([TRUE, SCATTER, RANDOM, TRUE, TRUE], np.uint8)
    crystal = np.arange(5, dtype=np.uint32)
    scan = MemoryListmode(
        scanner=load_scanner("quadra"),
        protocol=ScanProtocol(),
        prompts=EventBatch(crystal, crystal + 4000, np.zeros(5, np.int16)),
        prompts_offset=np.array([0, 2, 4, 5], np.int64),
        truth=truth,
    )
    trues = trues_of(scan)
    assert trues.prompts.crystal_a.tolist() == [0, 3, 4]
    assert trues.prompts_offset.tolist() == [0, 1, 2, 3]
    assert trues.truth is not None
    assert (trues.truth == TRUE).all()
