"""Unions of windows against brute force: counts, bits of the image, SUV of a still object."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.scanner import TofModel
from listmode.source import LiveFraction, ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Volume
from recon.osem import OsemSettings
from recon.reconstruct import reconstruct
from recon.sensitivity import Sensitivity, compute_sensitivity
from tests.oracles import cylinder_scan, small_scanner, some_events

N_UNIONS, N_IMAGES = 1000, 25
FIRST_MS, N_TICKS = 137, 240
COLUMNS = ("crystal_a", "crystal_b", "tof_bin")


def _scan() -> MemoryListmode:
    """Bursts, silent ticks and a late first tick; a delayed stream with times of its own."""
    scanner = small_scanner(tof=TofModel(13, 100.0, 200.0))
    rng = np.random.default_rng(4)
    streams: list[Any] = []
    for n in (9000, 2000):
        weight = rng.gamma(0.3, size=N_TICKS)
        weight[[0, 17, 18, 19, N_TICKS - 1]] = 0.0
        per_tick = rng.multinomial(n, weight / weight.sum())
        events = some_events(scanner, n, seed=n)
        offset = np.concatenate(([0], np.cumsum(per_tick))).astype(np.int64)
        streams += [EventBatch(*(getattr(events, c)[:n] for c in COLUMNS)), offset]
    prompts, prompts_offset, delayeds, delayeds_offset = streams
    return MemoryListmode(
        scanner, ScanProtocol(), prompts, prompts_offset, delayeds, delayeds_offset,
        start_ms=FIRST_MS,
    )  # fmt: skip


def _random_union(rng: np.random.Generator, first: int, n_ticks: int) -> Windows:
    """Draw windows with gaps, adjoining ones, single ticks, and both ends of the scan."""
    kind = rng.integers(4)
    n = int(rng.integers(1, 13))
    ends = np.sort(rng.choice(n_ticks + 1, 2 * n, replace=False)) + first
    start, stop = ends[::2], ends[1::2]
    if kind == 1:  # each window starts where the last one stopped
        start, stop = ends[:-1], ends[1:]
    elif kind == 2:
        stop = start + 1
    elif kind == 3:
        start[0], stop[-1] = first, first + n_ticks
        start = np.where(rng.random(n) < 0.5, start, np.concatenate((start[:1], stop[:-1])))
    return Windows(start.astype(np.int64), stop.astype(np.int64))


def _times_ms(offset: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(np.arange(offset.size - 1) + FIRST_MS, np.diff(offset))


def _cut(scan: MemoryListmode, keep: NDArray[np.bool_]) -> MemoryListmode:
    """Keep some prompts only, on the same clock."""
    before = np.concatenate(([0], np.cumsum(keep)))
    return MemoryListmode(
        scan.scanner,
        scan.protocol,
        EventBatch(*(getattr(scan.prompts, c)[keep] for c in COLUMNS)),
        before[scan.prompts_offset].astype(np.int64),
        start_ms=scan.start_ms,
    )


def test_a_thousand_random_unions_hold_what_brute_force_counts_and_images_of_a_cut_file() -> (
    None
):
    scan, rng = _scan(), np.random.default_rng(31)
    assert scan.delayeds_offset is not None
    times = {"prompts": _times_ms(scan.prompts_offset)}
    times["delayeds"] = _times_ms(scan.delayeds_offset)
    grid = Grid.centred((17, 17, 15), 9.0)
    sensitivity = compute_sensitivity(scan.scanner, grid, n_pairs=100_000)
    settings = OsemSettings(n_iterations=1, n_subsets=3, psf_fwhm_mm=0.0)
    n_images = n_windows = 0
    for number in range(N_UNIONS):
        windows = _random_union(rng, FIRST_MS, N_TICKS)
        n_windows += len(windows)
        inside = {
            stream: np.logical_or.reduce([(time >= a) & (time < b) for a, b in windows])
            for stream, time in times.items()
        }
        assert scan.count(windows) == int(inside["prompts"].sum())
        assert scan.count(windows, "delayeds") == int(inside["delayeds"].sum())
        read = np.concatenate(
            [b.crystal_a for b in scan.events(windows)] or [np.zeros(0, np.uint32)]
        )
        np.testing.assert_array_equal(read, scan.prompts.crystal_a[inside["prompts"]])
        if number % (N_UNIONS // N_IMAGES) == 0 and inside["prompts"].any():
            images = [
                reconstruct(
                    one, windows, grid=grid, settings=settings, sensitivity=sensitivity
                ).values
                for one in (scan, _cut(scan, inside["prompts"]))
            ]
            np.testing.assert_array_equal(images[0], images[1])
            n_images += 1
    assert n_windows > 5 * N_UNIONS
    assert n_images > 0.8 * N_IMAGES


# ---- SUV of a still object

RADIUS_MM, HALF_MM, MU = 55.0, 45.0, 0.096
GRID = Grid.centred((25, 25, 21), 5.6)
SECONDS, DEAD_FROM_S, LIVE_SHARE = 6.0, 2.5, 0.6
ACTIVITY_BQ_ML = 1.0e3
PROTOCOL = ScanProtocol(
    half_life_s=4.0, branching=0.9, injected_activity_bq=4e6, injection_time_s=0.0,
    patient_weight_kg=1.0,
)  # fmt: skip


@cache
def _still() -> tuple[MemoryListmode, Volume, Sensitivity]:
    """A uniform cylinder that decays fast; later, 40 % of the events fall to dead time."""
    scan = cylinder_scan(
        small_scanner(tof=TofModel(13, 100.0, 200.0), n_crystals=8, n_rings_per_unit=16,
                      pitch_mm=4.9),
        activity_bq_ml=ACTIVITY_BQ_ML, radius_mm=RADIUS_MM, half_mm=HALF_MM, mu_per_cm=MU,
        seconds=SECONDS, protocol=PROTOCOL,
    )  # fmt: skip
    keep = np.random.default_rng(8).random(len(scan.prompts)) < LIVE_SHARE
    dead_from_ms = round(1000 * DEAD_FROM_S)
    keep[: int(scan.prompts_offset[dead_from_ms])] = True
    lost = _cut(scan, keep)
    lost.live = LiveFraction(np.array([0, dead_from_ms]), np.array([1.0, LIVE_SHARE]))
    fine = Grid.centred((66, 66, 62), 2.5)
    x, y, z = np.meshgrid(*[fine.axis_mm(k) for k in range(3)], indexing="ij")
    inside = (np.hypot(x, y) < RADIUS_MM) & (np.abs(z) < HALF_MM)
    mu = Volume(inside * np.float32(MU), fine, "1/cm")
    return (
        lost,
        mu,
        compute_sensitivity(lost.scanner, GRID, mu=mu, n_pairs=2_000_000, coarse_mm=11.2),
    )


@pytest.mark.slow
@pytest.mark.stats
def test_the_suv_of_a_still_object_does_not_depend_on_the_union_within_its_noise() -> None:
    """24 unions (seed 5) against the whole scan: decay, duration and dead time are right.

    The events of a union are a part of the whole, so that the ratio of the two means has the
    variance (1/n - 1/N) times 2.5: the region holds half of the events, unevenly weighted.
    Chi-square of 24 stays below 52 in 999 of 1000 cases; dead time left out makes it 10,000.
    """
    scan, mu, sensitivity = _still()
    scale = scan.protocol.suv_per_bq_ml
    assert scale is not None
    x, y, z = np.meshgrid(*[GRID.axis_mm(k) for k in range(3)], indexing="ij")
    inner = (np.hypot(x, y) < 0.8 * RADIUS_MM) & (np.abs(z) < 0.8 * HALF_MM)
    # one subset: the last of several would add the noise of its own few events
    settings = OsemSettings(n_iterations=6, n_subsets=1, psf_fwhm_mm=0.0)

    def suv(windows: Windows) -> float:
        image = reconstruct(
            scan, windows, grid=GRID, mu=mu, settings=settings, sensitivity=sensitivity
        )
        return float(image.values[inner].mean() * scale)

    whole, n_all = suv(scan.extent), scan.n_events()
    assert whole == pytest.approx(ACTIVITY_BQ_ML * scale, rel=0.02)
    rng = np.random.default_rng(5)
    chi_square = 0.0
    for _ in range(24):
        windows = _random_union(rng, 0, 40)
        windows = Windows(windows.start_ms * 150, windows.stop_ms * 150)
        n = scan.count(windows)
        error = suv(windows) / whole - 1
        chi_square += error**2 / (2.5 * (1 / n - 1 / n_all) + 1e-12)
    assert chi_square < 52
