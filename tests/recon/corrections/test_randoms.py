"""Randoms from delayed events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.corrections.acceptance import find_rings, partners
from recon.corrections.randoms import estimate_randoms, randoms_from_singles
from tests.oracles import all_pairs, small_scanner


def _singles(scanner: Scanner) -> NDArray[np.float64]:
    """A smooth field of singles rates, 1/s, higher at one side and in the middle."""
    x, _, z = scanner.crystal_position_mm.astype(np.float64).T
    return np.asarray(3000 * (1 + 0.4 * x / 100) * (1 + 0.5 * np.cos(z / 80)))


def _scan(scanner: Scanner, seed: int = 5) -> tuple[MemoryListmode, float]:
    """Delayeds of 20 s as Poisson counts of 2 tau Sa Sb; prompts are left out."""
    a, b = all_pairs(scanner)
    s = _singles(scanner)
    expected = scanner.tof.window_ps * 1e-12 * s[a] * s[b] * 20.0
    rng = np.random.default_rng(seed)
    pair = rng.permutation(np.repeat(np.arange(a.size), rng.poisson(expected)))
    bins = rng.integers(0, scanner.tof.n_bins, pair.size)
    delayeds = EventBatch(
        a[pair].astype(np.uint32), b[pair].astype(np.uint32), bins.astype(np.int16)
    )
    offset = np.linspace(0, pair.size, 20_001).astype(np.int64)
    nothing = np.zeros(20_001, np.int64)
    scan = MemoryListmode(
        scanner, ScanProtocol(), EventBatch.empty(), nothing, delayeds, offset
    )
    return scan, float(expected.sum())


@pytest.mark.stats
def test_the_total_and_the_shape_of_randoms_are_found() -> None:
    # Seed 5. The total is Poisson: 5 sigma allowed, false alarms 6e-7. Pair by pair the mean
    # square error must be far below that of counts (about 1 a pair).
    scanner = small_scanner()
    scan, expected = _scan(scanner)
    model = estimate_randoms(scan, scan.extent)
    assert abs(model.total - expected) < 5 * np.sqrt(expected)
    a, b = all_pairs(scanner)
    s = _singles(scanner)
    pairs = EventBatch(a.astype(np.uint32), b.astype(np.uint32), np.zeros(a.size, np.int16))
    got = model.expected(pairs).astype(np.float64) * scanner.tof.n_bins
    truth = scanner.tof.window_ps * 1e-12 * s[a] * s[b] * 20.0
    assert got.sum() == pytest.approx(model.total, rel=1e-4)
    assert np.sqrt(np.mean((got / truth - 1) ** 2)) < 0.08
    side = scanner.crystal_position_mm[a, 0] > 60
    assert got[side].sum() == pytest.approx(truth[side].sum(), rel=0.02)
    assert model.singles_hz.mean() == pytest.approx(s.mean(), rel=0.02)


def test_only_delayeds_of_the_windows_count() -> None:
    scan, _ = _scan(small_scanner())
    windows = Windows([0, 9000], [2000, 12_000])
    model = estimate_randoms(scan, windows)
    assert model.total == pytest.approx(scan.count(windows, "delayeds"), rel=1e-9)


def test_known_singles_give_the_window_times_their_product() -> None:
    scanner = small_scanner()
    s = _singles(scanner).astype(np.float32)
    model = randoms_from_singles(scanner, s, Windows([0], [5000]), count_fraction=0.5)
    pair = EventBatch(np.array([3], np.uint32), np.array([600], np.uint32), np.array([2]))
    expected = 1300e-12 * float(s[3]) * float(s[600]) * 5.0 * 0.5 / 13
    assert float(model.expected(pair)[0]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(model.singles_hz, s, rtol=1e-5)


def test_sums_over_partners_are_those_of_all_pairs() -> None:
    scanner = small_scanner(max_ring_difference=5)
    values = np.random.default_rng(2).random(scanner.n_crystals)
    a, b = all_pairs(scanner)
    truth = np.bincount(a, values[b], scanner.n_crystals)
    truth += np.bincount(b, values[a], scanner.n_crystals)
    assert find_rings(scanner) is not None
    np.testing.assert_allclose(partners(scanner).sum_partners(values), truth, rtol=1e-12)
    # The same crystals without rings: a sample of partners, within its sampling error.
    free = replace(
        scanner,
        crystal_transaxial=np.arange(scanner.n_crystals, dtype=np.int32),
        n_transaxial=scanner.n_crystals,
    )
    assert find_rings(free) is None
    sampled = partners(free).sum_partners(values)
    assert np.abs(sampled / truth - 1).mean() < 0.08


def test_rings_that_lie_turned_or_incomplete_are_no_ring_table() -> None:
    scanner = small_scanner()
    turned = scanner.crystal_position_mm.copy()
    last = scanner.crystal_ring == scanner.crystal_ring.max()
    turned[last, :2] = turned[last, 1::-1]
    assert find_rings(replace(scanner, crystal_position_mm=turned)) is None
    twice = scanner.crystal_transaxial.copy()
    twice[0] = twice[1]
    assert find_rings(replace(scanner, crystal_transaxial=twice)) is None


def test_no_counts_in_the_windows_make_no_randoms() -> None:
    scan, _ = _scan(small_scanner())
    offset = scan.delayeds_offset
    assert offset is not None
    late = MemoryListmode(
        scan.scanner,
        scan.protocol,
        EventBatch.empty(),
        np.zeros(offset.size + 10, np.int64),
        scan.delayeds,
        np.concatenate((np.zeros(10, np.int64), offset)),
    )
    assert estimate_randoms(late, Windows([0], [10])).total == 0


def test_a_scan_without_delayeds_is_refused() -> None:
    scan = MemoryListmode(
        small_scanner(), ScanProtocol(), EventBatch.empty(), np.zeros(11, np.int64)
    )
    with pytest.raises(InputError, match="estimated from delayed events, but this scan holds"):
        estimate_randoms(scan, scan.extent)


def test_singles_of_another_scanner_are_refused() -> None:
    with pytest.raises(InputError, match=r"must be 1024 numbers.*but their shape is \(2,\)"):
        randoms_from_singles(small_scanner(), np.ones(2, np.float32), Windows([0], [5]))
