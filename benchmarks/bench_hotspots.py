"""Speed of hotspots: segmentation and features at full size, classification of 100,000."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from recon.hotspots.cases import Cases
from recon.hotspots.classify import classify, train
from recon.hotspots.cohort import generate_cohort
from recon.hotspots.features import measure_hotspots
from recon.hotspots.models import Kind
from recon.hotspots.segment import FractionOfMax, find_hotspots
from recon.image import Grid, Volume
from recon.io.cohorts import load_cohort_settings

N_CASES = 100_000


def image(n_foci: int = 60) -> Volume:
    """A body of 165 x 165 x 322 voxels of 3.3 mm with noise and foci, SUV."""
    rng = np.random.default_rng(20240501)
    grid = Grid.centred((165, 165, 322), 3.3)
    x, y = grid.axis_mm(0)[:, None, None], grid.axis_mm(1)[None, :, None]
    values = np.zeros(grid.shape, np.float32)
    values += ((x / 190) ** 2 + (y / 130) ** 2 <= 1).astype(np.float32)
    values *= 1 + 0.2 * rng.standard_normal(grid.shape, np.float32)
    for _ in range(n_foci):
        i, j, k = (int(rng.integers(60, n - 60)) for n in grid.shape)
        values[i - 3 : i + 4, j - 3 : j + 4, k - 3 : k + 4] += rng.uniform(4, 20)
    return Volume(values, grid, "SUV")


def bench_find_and_measure(benchmark: BenchmarkFixture) -> None:
    volume = image()
    found = find_hotspots(volume, threshold=FractionOfMax())
    assert 20 <= found.n_hotspots <= 60
    benchmark.extra_info["voxels"] = volume.grid.n_voxels
    benchmark(
        lambda: measure_hotspots(volume, find_hotspots(volume, threshold=FractionOfMax()))
    )


def many() -> Cases:
    cases = generate_cohort(load_cohort_settings(), 1)
    return cases.take(np.arange(N_CASES) % len(cases))


@pytest.mark.parametrize(
    "kind", ["random_forest", "decision_tree", "nearest_neighbours", "logistic_regression"]
)
def bench_classify(benchmark: BenchmarkFixture, kind: Kind) -> None:
    model = train(generate_cohort(load_cohort_settings(), 0), kind=kind)
    cases = many()
    assert classify(model, cases).shape == (N_CASES,)
    benchmark.extra_info["hotspots"] = N_CASES
    benchmark(classify, model, cases, threads=2)
