"""The loop of image and scatter: its grid, its share of the scan, its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid
from recon.scatter_loop import (
    coarse_grid,
    estimate_scatter_iteratively,
    spread_part,
)
from tests.recon.corrections import scenes


def steady_scan(n_events: int, duration_ms: int) -> MemoryListmode:
    a = np.zeros(n_events, np.uint32)
    prompts = EventBatch(a, a + np.uint32(240), np.full(n_events, 16, np.int16))
    offset = np.round(np.linspace(0, n_events, duration_ms + 1)).astype(np.int64)
    return MemoryListmode(scenes.small_scanner(), ScanProtocol(), prompts, offset)


def test_the_coarse_grid_covers_the_fine_one_about_the_same_middle() -> None:
    fine = Grid((165, 164, 50), (3.3, 3.3, 2.0), (-270.0, -265.0, 10.0))
    coarse = coarse_grid(fine, 12.0)
    assert coarse.voxel_mm == (12.0, 12.0, 12.0)
    for axis in range(3):
        for edge in (-0.5, 0.5):
            at = fine.axis_mm(axis)[0 if edge < 0 else -1] + edge * fine.voxel_mm[axis]
            own = coarse.axis_mm(axis)[0 if edge < 0 else -1] + edge * 12.0
            assert (own - at) * edge >= -1e-6
        middles = [g.axis_mm(axis).mean() for g in (fine, coarse)]
        assert middles[0] == pytest.approx(middles[1])


def test_a_coarse_grid_is_kept() -> None:
    grid = Grid.centred((20, 20, 20), 15.0)
    assert coarse_grid(grid, 12.0) == grid


def test_a_part_of_a_long_scan_is_spread_evenly_over_the_windows() -> None:
    scan = steady_scan(100_000, 50_000)
    windows = Windows([0, 30_000], [20_000, 50_000])
    part = spread_part(scan, windows, 8_000)
    assert scan.count(part) == pytest.approx(8_000, rel=0.05)
    assert part.intersection(windows).duration_s == pytest.approx(part.duration_s)
    first = part.intersection(Windows([0], [20_000])).duration_s
    assert first == pytest.approx(part.duration_s / 2, rel=0.1)


def test_a_short_scan_is_used_whole() -> None:
    scan = steady_scan(1_000, 500)
    assert spread_part(scan, scan.extent, 5_000) == scan.extent


def test_at_least_one_round_is_needed() -> None:
    scan = steady_scan(1_000, 500)
    _, mu = scenes.water_cylinder(20.0)
    with pytest.raises(InputError, match="at least one round of image and scatter, but 0"):
        estimate_scatter_iteratively(
            scan, scan.extent, mu=mu, grid=mu.grid, randoms=None, n_rounds=0
        )
