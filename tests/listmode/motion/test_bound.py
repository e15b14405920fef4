"""The trace against the smallest error that any estimator could have, computed here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.memory import MemoryListmode
from listmode.motion.bladder import Bladder
from listmode.motion.trace import MotionTrace, TraceSettings, collect_around, follow_bladder
from listmode.scanner import Scanner
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode

F64 = NDArray[np.float64]
VOXEL_MM = 1.5
SCAN = MadeUpScan(duration_s=600.0, bladder_hz=1600.0, background_hz=5000.0, seed=81)
START = Bladder((3.0, 17.0, -328.0), (36.0, 31.0, 32.0), 150.0, 10.0, 1e4, 1500.0)


def directions(listmode: MemoryListmode, n: int) -> F64:
    """Unit vectors of n events drawn from the scan: what the scanner accepts."""
    rng = np.random.default_rng(3)
    event = rng.integers(0, len(listmode.prompts), n)
    place = listmode.scanner.crystal_position_mm.astype(np.float64)
    u = place[listmode.prompts.crystal_b[event]] - place[listmode.prompts.crystal_a[event]]
    return np.asarray(u / np.linalg.norm(u, axis=1)[:, None])


def information_per_event(scanner: Scanner, scan: MadeUpScan, lines: F64) -> F64:
    """Fisher information of the bladder's displacement in one of its events, 1/mm^2, by axis.

    The density of an LOR and its TOF bin, seen as a density of places: the bladder blurred
    along the LOR by the Gaussian of the timing and the width of a bin, across it by the
    crystals' width at both ends (a uniform mean of two), on the background. The information
    is the integral of (slope of the blurred bladder)^2 over the density; it is that of all
    the data, LOR and TOF bin, for the directions are kept apart.
    """
    semi = scan.semi_axis_mm(np.zeros(1))[0]
    half = np.ceil((semi + 55.0) / VOXEL_MM).astype(int)
    x, y, z = (VOXEL_MM * np.arange(-h, h) for h in half)
    inside = np.zeros((x.size, y.size, z.size))
    for sx in (-0.25, 0.25):  # eight points a voxel
        for sy in (-0.25, 0.25):
            for sz in (-0.25, 0.25):
                inside += (
                    ((x[:, None, None] + sx * VOXEL_MM) / semi[0]) ** 2
                    + ((y[None, :, None] + sy * VOXEL_MM) / semi[1]) ** 2
                    + ((z[None, None, :] + sz * VOXEL_MM) / semi[2]) ** 2
                    < 1.0
                ) / 8.0
    low, high = np.asarray(scan.box_low_mm), np.asarray(scan.box_high_mm)
    background = scan.background_hz / float(np.prod(high - low))
    excess = scan.bladder_hz / (inside.sum() * VOXEL_MM**3)
    spectrum = np.fft.rfftn(inside * excess)
    k = np.stack(
        np.meshgrid(
            2 * np.pi * np.fft.fftfreq(x.size, VOXEL_MM),
            2 * np.pi * np.fft.fftfreq(y.size, VOXEL_MM),
            2 * np.pi * np.fft.rfftfreq(z.size, VOXEL_MM),
            indexing="ij",
        )
    )
    pitch_mm = float(np.mean(scanner.crystal_pitch_mm))
    information = np.zeros(3)
    for u in lines:
        along = np.einsum("i,ixyz->xyz", u, k)
        across2 = np.maximum((k**2).sum(axis=0) - along**2, 0.0)
        blur = np.exp(-0.5 * along**2 * scanner.tof.sigma_mm**2)
        blur *= np.sinc(along * scanner.tof.bin_width_mm / (2.0 * math.pi))
        blur *= np.exp(-0.5 * across2 * pitch_mm**2 / 24.0)
        blurred = np.fft.irfftn(spectrum * blur)  # all sizes are even
        density = np.maximum(blurred, 0.0) + background
        for axis in range(3):
            slope = np.gradient(blurred, VOXEL_MM, axis=axis)
            information[axis] += float((slope**2 / density).sum()) * VOXEL_MM**3
    return information / len(lines) / scan.bladder_hz


@pytest.fixture(scope="module")
def listmode(quadra: Scanner) -> MemoryListmode:
    return make_listmode(quadra, SCAN)


@pytest.fixture(scope="module")
def trace(listmode: MemoryListmode) -> MotionTrace:
    events = collect_around(listmode, START)
    return follow_bladder(events, START, settings=TraceSettings(window_ms=1000)).trace


@pytest.mark.slow
@pytest.mark.stats
def test_the_trace_is_within_a_third_of_the_bound(
    quadra: Scanner, listmode: MemoryListmode, trace: MotionTrace
) -> None:
    """600 windows of 1 s, seed 81: 1.16, 1.23 and 1.26 along x, y, z. An RMS of 600 values is
    known to 2.9 %; an estimator at 1.50, as a centroid, passes 1.30 with less than 1e-5."""
    alone = make_listmode(
        quadra, MadeUpScan(duration_s=60.0, background_hz=0.0, bladder_hz=1600.0, seed=82)
    )
    per_second = len(alone.prompts) / 60.0
    information = information_per_event(quadra, SCAN, directions(listmode, 24))
    bound = 1.0 / np.sqrt(information * per_second)
    error = trace.displacement_mm - trace.displacement_mm.mean(axis=0)
    ratio = np.sqrt((error**2).mean(axis=0)) / bound
    assert (ratio <= 1.30).all(), ratio
    assert (ratio >= 0.88).all(), ratio  # below the bound by more than chance: it is wrong


@pytest.mark.slow
@pytest.mark.stats
def test_the_traces_errors_are_as_large_as_it_says(trace: MotionTrace) -> None:
    """1800 pulls, seed 81: their standard deviation is known to 1.7 %. A true 1.00 fails the
    5 % with 0.3 %; the seed is fixed."""
    error = trace.displacement_mm - trace.displacement_mm.mean(axis=0)
    pull = error / trace.standard_error_mm
    assert float(pull.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
@pytest.mark.stats
def test_the_place_of_a_still_bladder_is_not_biased(trace: MotionTrace) -> None:
    """Seed 81; the mean of 600 windows is known to 0.015 mm, the blocks of 100 to 0.04 mm."""
    blocks = trace.displacement_mm.reshape(6, 100, 3).mean(axis=1)
    assert np.abs(blocks - blocks.mean(axis=0)).max() < 0.2
    place = trace.reference_mm + trace.displacement_mm.mean(axis=0)
    assert np.abs(place - np.asarray(SCAN.centre_mm)).max() < 1.0
