from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.histogram import Histogram, accumulate
from listmode.motion.respiration import find_respiration, gate_by_phase
from listmode.scanner import Scanner
from listmode.windows import Windows
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode

F64 = NDArray[np.float64]
PERIOD_S = 4.3


def breathe(amplitude_mm: float, time_s: F64) -> F64:
    """The body's axial displacement, mm."""
    return np.asarray(amplitude_mm * np.sin(2.0 * np.pi * time_s / PERIOD_S))


def breathing_scan(quadra: Scanner, amplitude_mm: float, *, seed: int) -> Histogram:
    """A hot dome above the pelvis that moves with the breath; the made-up scan's own events."""

    def path(time_s: F64) -> F64:
        return np.stack([np.zeros_like(time_s)] * 2 + [breathe(amplitude_mm, time_s)], axis=1)

    scan = MadeUpScan(
        duration_s=120.0,
        bladder_hz=200.0,
        background_hz=3000.0,
        box_high_mm=(110.0, 115.0, 300.0),
        blobs=(((60.0, 0.0, 60.0), 70.0, 4000.0),),
        body_move=path,
        seed=seed,
    )
    return accumulate(make_listmode(quadra, scan), threads=1)


@pytest.fixture(scope="module")
def breathing(quadra: Scanner) -> Histogram:
    return breathing_scan(quadra, 8.0, seed=71)


@pytest.mark.slow
@pytest.mark.stats
def test_the_signal_follows_the_breath(breathing: Histogram) -> None:
    """Seed 71. A correlation of 0.5 by chance in 240 slices has a probability below 1e-15."""
    found = find_respiration(breathing)
    assert found.is_usable
    assert found.rate_hz == pytest.approx(1.0 / PERIOD_S, abs=0.02)
    time = (found.edges_ms[:-1] + found.edges_ms[1:]) / 2000.0
    assert np.corrcoef(found.signal, breathe(1.0, time))[0, 1] > 0.8
    assert found.to_dict()["is_usable"] is True


@pytest.mark.slow
def test_gates_cover_the_scan_once_and_part_the_places(breathing: Histogram) -> None:
    found = find_respiration(breathing)
    gates = gate_by_phase(found, 4)
    assert sum(g.duration_s for g in gates) == pytest.approx(120.0)
    every = Windows.empty()
    for gate in gates:
        assert every.intersection(gate).duration_s == 0.0
        assert gate.duration_s == pytest.approx(30.0, abs=0.6)
        every = every.union(gate)
    place = []
    for gate in gates:
        time = np.concatenate([np.arange(a, b, 100) for a, b in gate]) / 1000.0
        place.append(float(breathe(8.0, time).mean()))
    # A gate of a quarter of the phase around its end is 0.9 of the amplitude away from none.
    assert max(place) > 4.0
    assert min(place) < -4.0


@pytest.mark.slow
@pytest.mark.stats
def test_a_body_that_does_not_breathe_has_no_signal(quadra: Scanner) -> None:
    """Seed 72; the largest of some twenty cells of noise passes 3 with less than 1 in 100."""
    found = find_respiration(breathing_scan(quadra, 0.0, seed=72))
    assert not found.is_usable
    with pytest.raises(InputError, match="gating needs a breathing signal"):
        gate_by_phase(found, 4)


def test_breathing_needs_short_slices_a_long_scan_and_two_gates(quadra: Scanner) -> None:
    short = accumulate(make_listmode(quadra, MadeUpScan(duration_s=5.0, seed=73)), threads=1)
    with pytest.raises(InputError, match="needs about 8 breaths"):
        find_respiration(short)
    with pytest.raises(InputError, match="slices of at most 1000 ms"):
        find_respiration(replace(short, slice_ms=2000))
    with pytest.raises(InputError, match="at least 2 gates"):
        gate_by_phase(find_respiration(_long(short)), 1)


def _long(histogram: Histogram) -> Histogram:
    rows = np.tile(histogram.z_profile, (10, 1))
    return replace(histogram, z_profile=rows, live_ms=np.tile(histogram.live_ms, 10))
