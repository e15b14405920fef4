"""Speed of the scatter correction on the Quadra in UHS: simulation and evaluation per event.

The body is an ellipse of 30 x 20 cm and 1 m; sizes are in ``extra_info``.
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.simulate.phantom import cylinder_phantom
from recon.corrections.scatter import ScatterModel, expected_scatter_table
from recon.image import Grid, Volume

N_EVENTS = 1 << 20


def elliptic_body() -> tuple[Volume, Volume]:
    phantom = cylinder_phantom(
        radius_mm=150.0, radius_y_mm=100.0, length_mm=1000.0, activity_bq_ml=5000.0
    )
    grid = Grid.centred((66, 46, 210), 5.0)
    axes = [grid.axis_mm(axis) for axis in range(3)]
    return (
        Volume(phantom.sample_activity(axes[0], axes[1], axes[2]), grid, "Bq/mL"),
        Volume(phantom.sample_mu(axes[0], axes[1], axes[2]), grid, "1/cm"),
    )


def events_in_the_field() -> EventBatch:
    scanner = load_scanner("quadra")
    rng = np.random.default_rng(20240501)
    a, b = rng.integers(0, scanner.n_crystals, (2, 4 * N_EVENTS))
    keep = np.flatnonzero(scanner.accepts(a, b))[:N_EVENTS]
    tof_bin = np.clip(np.round(rng.normal(16, 4, keep.size)), 0, 32).astype(np.int64)
    return EventBatch.from_pairs(a[keep], b[keep], tof_bin, scanner.tof.n_bins)


@pytest.mark.parametrize("threads", [1, 2])
def bench_simulate_scatter(benchmark: BenchmarkFixture, threads: int) -> None:
    """One scatter table at the default settings."""
    scanner = load_scanner("quadra")
    image, mu = elliptic_body()
    table = expected_scatter_table(scanner, image=image, mu=mu, threads=threads)
    assert np.isfinite(table.log_values).all()
    benchmark.extra_info["points"] = table.n_points
    benchmark.extra_info["table_shape"] = table.log_values.shape
    benchmark(expected_scatter_table, scanner, image=image, mu=mu, threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def bench_expected_scatter(benchmark: BenchmarkFixture, threads: int) -> None:
    """Expected counts of events in no order, crystal pair efficiency included."""
    scanner = load_scanner("quadra")
    image, mu = elliptic_body()
    table = expected_scatter_table(scanner, image=image, mu=mu)
    model = ScatterModel(
        table=table,
        crystal_efficiency=np.ones(scanner.n_crystals, np.float32),
        decays_s=100.0,
        segment_z_mm=np.array([-500.0, 500.0]),
        segment_scale=np.array([1.0, 1.1]),
        tail_scale=1.05,
        tail_scale_error=0.01,
        total=0.0,
        fraction=0.3,
        threads=threads,
    )
    batch = events_in_the_field()
    counts = model.expected(batch)
    assert counts.shape == (len(batch),)
    assert (counts >= 0).all()
    benchmark.extra_info["events"] = len(batch)
    benchmark(model.expected, batch)
