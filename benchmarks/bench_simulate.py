"""Speed of the simulator: trues and randoms, scatter from the table, scatter by photons.

The count of events is in ``extra_info``; a rate is that over the median time. Slices are made
on two threads, as for a file, and thrown away.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from listmode.formats.scanner_file import load_scanner
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.simulate.simulation import ScatterMode, Simulation
from listmode.simulate.transport import track_decays

THREADS = 2


def prepared(scatter: ScatterMode, *, with_randoms: bool) -> Simulation:
    simulation = Simulation(
        load_scanner("quadra"), pregnant_phantom(), LOW_DOSE_FDG, seed=1, scatter=scatter,
        with_randoms=with_randoms, duration_s=16.0, table_events=100_000, threads=THREADS,
    )  # fmt: skip
    simulation.prepare()
    return simulation


def generate(simulation: Simulation) -> int:
    """Make four slices of the scan and count their prompts."""
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(len(s.prompts) for s in pool.map(simulation.make_slice, range(4)))


@pytest.mark.parametrize("scatter", ["off", "table"])
def bench_generate(benchmark: BenchmarkFixture, scatter: ScatterMode) -> None:
    """Low-dose scan of the pregnant phantom; "off" is trues + randoms + delayeds."""
    simulation = prepared(scatter, with_randoms=True)
    expected = simulation.budget.prompts_hz * 4 * simulation.slice_ms / 1000.0
    n_prompts = generate(simulation)
    assert n_prompts == pytest.approx(expected, rel=0.05)
    benchmark.extra_info["events"] = n_prompts
    benchmark(generate, simulation)


def bench_scatter_photons(benchmark: BenchmarkFixture) -> None:
    """Scatter's own rate: photons of 1 million decays followed, scattered events kept."""
    simulation = prepared("off", with_randoms=False)
    body = simulation._body(8.0)
    shift = simulation._coarse_shift_mm

    def track() -> int:
        return track_decays(
            simulation.detector, body, simulation._box, shift, 1_000_000, (1,), THREADS
        ).n_scatter

    n_scatter = track()
    assert n_scatter > 5_000
    benchmark.extra_info["events"] = n_scatter
    benchmark(track)
