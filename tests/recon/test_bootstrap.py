"""Replicates of resampled events: draws, projection, bits, deviations and intervals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, t

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.windows import Windows
from recon import _kernels_bootstrap as kernels
from recon.bootstrap import (
    LANES,
    Replicates,
    bootstrap,
    bootstrap_bytes,
    count_lanes,
    max_interval,
    poisson_limits,
)
from recon.events_store import store_events
from recon.image import Grid
from recon.osem import OsemSettings
from recon.projector import RayModel, TaskPlan, back, forward
from recon.reconstruct import prepare
from tests.recon.test_osem import _cut, _small_case, _small_scan

SETTINGS = OsemSettings(n_iterations=2, n_subsets=2, psf_fwhm_mm=6.0)


def _draws(n_events: int, n_groups: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights by event and replicate."""
    out = np.empty((n_events, n_groups * LANES), np.float32)
    limits = poisson_limits()
    for e in range(n_events):
        for group in range(n_groups):
            lanes = out[e, group * LANES : (group + 1) * LANES]
            kernels.draw_weights(e, group, np.uint64(seed), limits, lanes)
    return out


@pytest.mark.stats
def test_draws_follow_poissons_law_of_mean_one() -> None:
    """Fixed seed; chi-squared of 160,000 draws, limit at a false-alarm rate of 1e-6."""
    draws = _draws(10_000, 2, 5).ravel()
    counts = np.bincount(np.minimum(draws.astype(int), 6), minlength=7)
    p = np.exp(-1.0) / np.array([1, 1, 2, 6, 24, 120])
    expected = draws.size * np.append(p, 1 - p.sum())
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 6)


@pytest.mark.stats
def test_draws_of_replicates_events_and_seeds_are_unrelated() -> None:
    """Fixed seed; 10,000 draws a correlation, limit 6 / sqrt(n): false alarms below 1e-6."""
    draws = _draws(10_000, 2, 5) - 1.0
    other = _draws(10_000, 2, 6) - 1.0
    limit = 6 / np.sqrt(len(draws))
    between = draws.T @ draws / len(draws)
    assert np.abs(between - np.diag(np.diag(between))).max() < limit
    assert np.abs((draws * other).mean(axis=0)).max() < limit
    assert np.abs((draws[1:] * draws[:-1]).mean(axis=0)).max() < limit


@pytest.mark.kernel
@pytest.mark.filterwarnings("ignore:overflow encountered in scalar")  # the hash wraps
def test_an_update_of_lanes_is_that_of_each_replicate_alone() -> None:
    listmode, grid = _small_scan()
    rays = RayModel.make(grid, listmode.scanner, tof=True)
    with store_events(listmode, listmode.extent, TaskPlan(rays)) as store:
        n = min(store.crystal_a.size, 60)
        rng = np.random.default_rng(2)
        images = rng.random((2 * LANES, *grid.shape)).astype(np.float32)
        padded = np.zeros((2, rays.zeros().size, LANES), np.float32)
        for k, image in enumerate(images):
            padded[k // LANES, :, k % LANES] = rays.pad(image)
        out = np.zeros_like(padded)
        additive = rng.random(store.crystal_a.size).astype(np.float32)
        kernels.update_replicates(
            padded, out, rays.shape, rays.ends, rays.voxel_mm, store.crystal_a,
            store.crystal_b, store.tof_bin, additive, rays.tof_centre_mm, rays.table,
            rays.per_mm, rays.reach_mm, np.uint64(9), poisson_limits(), 0, n,
        )  # fmt: skip
        events = EventBatch(store.crystal_a[:n], store.crystal_b[:n], store.tof_bin[:n])
        weights = _draws(n, 2, 9)
        for k, image in enumerate(images):
            expected = forward(image, grid, listmode.scanner, events) + additive[:n]
            alone = back(weights[:, k] / expected, grid, listmode.scanner, events)
            lane = rays.crop(np.ascontiguousarray(out[k // LANES, :, k % LANES]))
            np.testing.assert_allclose(lane, alone, rtol=2e-4, atol=1e-5 * alone.max())


def test_each_replicate_explains_as_many_counts_as_it_drew() -> None:
    """With one subset and nothing additive, EM's image predicts the counts it was given."""
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=2, n_subsets=1, psf_fwhm_mm=0.0)
    with prepare(
        listmode, listmode.extent, grid=grid, sensitivity=sensitivity, settings=settings
    ) as problem:
        found = bootstrap(problem, 8, seed=4)
        drawn = _draws(problem.store.crystal_a.size, 1, 4).sum(axis=0)
        predicted = [float((problem.expected_per_unit() * x).sum()) for x in found.images]
    np.testing.assert_allclose(predicted, drawn, rtol=2e-3)
    assert np.ptp(drawn) > 0


def _run(n: int = 8, seed: int = 1, **more: Any) -> Replicates:
    listmode, grid, sensitivity = _small_case()
    settings = more.pop("settings", SETTINGS)
    with prepare(
        more.pop("listmode", listmode), more.pop("windows", listmode.extent), grid=grid,
        sensitivity=sensitivity, settings=settings, **more,
    ) as problem:  # fmt: skip
        return bootstrap(problem, n, seed)


@pytest.mark.parametrize("use_tof", [True, False])
def test_replicates_have_the_same_bits_at_any_number_of_threads(use_tof: bool) -> None:
    settings = replace(SETTINGS, use_tof=use_tof)
    one, two, four = (_run(threads=k, settings=settings).images for k in (1, 2, 4))
    assert one.std(axis=0).max() > 0
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, four)


def test_replicates_of_windows_have_the_bits_of_a_file_cut_to_them() -> None:
    listmode, _, _ = _small_case()
    windows = Windows([50, 90], [60, 140])
    whole = _run(windows=windows).images
    cut = _run(windows=windows, listmode=_cut(listmode, windows)).images
    np.testing.assert_array_equal(whole, cut)


def test_more_replicates_leave_the_first_as_they_are() -> None:
    few, many = _run(8).images, _run(9).images
    assert len(many) == 16
    np.testing.assert_array_equal(few, many[:8])
    assert (many[8] != many[0]).any()
    assert (_run(8, seed=2).images[0] != few[0]).any()


class _Ends:
    """Progress that ends the run after some updates, as a kill would."""

    def __init__(self, n_updates: int) -> None:
        self.left = n_updates

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "events") -> Iterator[_Ends]:
        del name, total, unit
        yield self

    def advance(self, n: int) -> None:
        del n
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n_updates", [0, 1, 2])
def test_a_bootstrap_goes_on_after_a_kill_to_the_same_bits(
    tmp_path: Path, n_updates: int
) -> None:
    listmode, grid, sensitivity = _small_case()
    with prepare(
        listmode, listmode.extent, grid=grid, sensitivity=sensitivity, settings=SETTINGS,
        resume_dir=tmp_path,
    ) as problem:  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            bootstrap(replace(problem, progress=_Ends(n_updates)), 8)
        assert len(list(tmp_path.iterdir())) == 1
        again = bootstrap(problem, 8).images
    np.testing.assert_array_equal(again, _run().images)


def test_the_deviation_is_that_of_the_images() -> None:
    found = _run(16)
    deviation = found.standard_deviation()
    assert deviation.unit == "Bq/mL"
    assert deviation.provenance["bootstrap"] == {"n_replicates": 16, "seed": 1}
    np.testing.assert_allclose(
        deviation.values, found.images.std(axis=0, ddof=1, dtype=np.float64), rtol=1e-5
    )


def test_images_that_do_not_fit_wait_in_a_file_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_memory = _run()
    monkeypatch.setattr("recon.bootstrap.MEMORY_BYTES", 1000)
    in_file = _run()
    assert in_memory.images.base is None
    assert isinstance(in_file.images.base, np.memmap | mmap)
    np.testing.assert_array_equal(in_memory.images, in_file.images)


def test_maxima_are_taken_in_each_region() -> None:
    grid = Grid.centred((2, 2, 2), 1.0)
    images = np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2)
    regions = np.array([[[1, 1], [0, 0]], [[2, 0], [0, 2]]], np.int32)
    found = Replicates(images, grid, 1).maxima(regions)
    np.testing.assert_array_equal(found, [[1, 7], [9, 15]])
    assert Replicates(images, grid, 1).maxima(np.zeros_like(regions)).shape == (2, 0)


def test_the_interval_is_students_about_the_observed_maximum() -> None:
    maxima = np.array([[10.0, 1.0], [12.0, 1.0], [14.0, 1.0]])
    found = max_interval(np.array([9.0, 0.5]), maxima)
    reach = t.ppf(0.975, 2) * 2.0
    np.testing.assert_allclose(found.se, [2.0, 0.0])
    np.testing.assert_allclose(found.low, [9.0 - reach, 0.5])
    np.testing.assert_allclose(found.high, [9.0 + reach, 0.5])
    wide = max_interval(np.array([1.0, 0.5]), maxima)
    assert wide.low[0] == 0.0


@pytest.mark.parametrize(("n", "lanes"), [(2, 8), (8, 8), (9, 16), (24, 24), (1024, 1024)])
def test_replicates_come_in_groups_of_eight(n: int, lanes: int) -> None:
    assert count_lanes(n) == lanes
    grid = Grid.centred((10, 10, 10), 1.0)
    assert bootstrap_bytes(grid, n) - bootstrap_bytes(grid, 8) == (lanes - 8) * 2 * 4000


@pytest.mark.parametrize("n", [1, -3, 2000])
def test_an_impossible_number_of_replicates_is_refused(n: int) -> None:
    with pytest.raises(
        InputError, match=rf"bootstrap needs 2 to 1024 replicates, but {n} were"
    ):
        count_lanes(n)


def test_regions_of_another_grid_and_single_replicates_are_refused() -> None:
    one = Replicates(np.ones((1, 2, 2, 2), np.float32), Grid.centred((2, 2, 2), 1.0), 1)
    with pytest.raises(InputError, match="regions must have the shape of the replicates"):
        one.maxima(np.zeros((3, 3, 3), np.int32))
    with pytest.raises(InputError, match="at least two replicates and a level between 0 and 1"):
        max_interval(np.ones(1), np.ones((1, 1)))
