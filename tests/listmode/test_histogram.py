from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.histogram import accumulate, axial_sensitivity, tick_ranges
from listmode.memory import MemoryListmode
from listmode.scanner import SPEED_OF_LIGHT_MM_PS, Scanner
from listmode.source import ScanProtocol
from listmode.windows import Windows


@pytest.fixture(scope="module")
def quadra() -> Scanner:
    return load_scanner("quadra", "UHS")


def listmode_of(
    scanner: Scanner, a: list[int], b: list[int], k: list[int], tick: list[int], n_ticks: int
) -> MemoryListmode:
    batch = EventBatch(np.array(a, np.uint32), np.array(b, np.uint32), np.array(k, np.int16))
    offset = np.searchsorted(np.array(tick), np.arange(n_ticks + 1)).astype(np.int64)
    return MemoryListmode(scanner, ScanProtocol(), batch, offset)


def random_listmode(scanner: Scanner, n_events: int, n_ticks: int, seed: int) -> MemoryListmode:
    rng = np.random.default_rng(seed)
    one = rng.integers(0, scanner.n_crystals, n_events)
    two = (one + rng.integers(1, scanner.n_crystals, n_events)) % scanner.n_crystals
    bins = rng.integers(0, scanner.tof.n_bins, n_events)
    tick = np.sort(rng.integers(0, n_ticks, n_events))
    offset = np.searchsorted(tick, np.arange(n_ticks + 1)).astype(np.int64)
    batch = EventBatch.from_pairs(one, two, bins, scanner.tof.n_bins)
    return MemoryListmode(scanner, ScanProtocol(), batch, offset)


def slow_positions(scanner: Scanner, batch: EventBatch) -> NDArray[np.float64]:
    """The definition: midpoint, moved by c/2 times the bin's time towards crystal b."""
    a = scanner.crystal_position_mm[batch.crystal_a].astype(np.float64)
    b = scanner.crystal_position_mm[batch.crystal_b].astype(np.float64)
    unit = (b - a) / np.linalg.norm(b - a, axis=1)[:, None]
    tof = scanner.tof
    tof_ps = (batch.tof_bin - (tof.n_bins - 1) / 2.0) * tof.bin_width_ps
    shift = SPEED_OF_LIGHT_MM_PS / 2.0 * tof_ps
    return np.asarray((a + b) / 2.0 + shift[:, None] * unit)


@pytest.mark.kernel
def test_a_late_bin_puts_the_event_towards_crystal_b(quadra: Scanner) -> None:
    opposite = 19 * 20 + 10
    middle = quadra.tof.n_bins // 2
    for k, towards_b in ((middle, 0.0), (middle + 5, 5 * 21.47)):
        h = accumulate(listmode_of(quadra, [10], [opposite], [k], [3], 10))
        at = h.lower_mm + (np.argwhere(h.image)[0] + 0.5) * h.voxel_mm
        a, b = (quadra.crystal_position_mm[i].astype(np.float64) for i in (10, opposite))
        expected = (a + b) / 2 + (b - a) / np.linalg.norm(b - a) * towards_b
        assert np.abs(at - expected).max() <= h.voxel_mm / 2 + 0.05


@pytest.mark.kernel
def test_agrees_with_the_slow_definition(quadra: Scanner) -> None:
    listmode = random_listmode(quadra, 3000, 4000, 5)
    h = accumulate(listmode, slice_ms=500)
    place = slow_positions(quadra, listmode.prompts)
    index = np.floor((place - h.lower_mm) / h.voxel_mm).astype(int)
    inside = ((index >= 0) & (index < h.image.shape)).all(axis=1)
    expected = np.zeros(h.image.shape, np.int64)
    np.add.at(expected, tuple(index[inside].T), 1)
    # Single precision may put an event that lies on a voxel's wall into the neighbour.
    assert np.abs(h.image.astype(np.int64) - expected).sum() <= 6
    tick = np.repeat(np.arange(4000), np.diff(listmode.tick_offset()))[inside]
    per_slice = np.bincount(tick // 500, minlength=8)
    assert np.abs(h.slice_counts - per_slice).sum() <= 4


def test_profiles_and_image_hold_the_same_events(quadra: Scanner) -> None:
    h = accumulate(random_listmode(quadra, 20_000, 3300, 6))
    assert np.array_equal(h.z_profile.sum(axis=0), h.image.sum(axis=(0, 1)))
    assert np.array_equal(h.x_profile.sum(axis=(0, 1)), h.image.sum(axis=(1, 2)))
    assert np.array_equal(h.y_profile.sum(axis=(0, 1)), h.image.sum(axis=(0, 2)))
    assert int(h.image.sum()) + sum(h.rejected.values()) == h.n_events == 20_000


def test_any_number_of_threads_gives_the_same_bits(
    quadra: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tasks of 700 events, so that there are many of them.
    monkeypatch.setattr(tick_ranges, "__defaults__", (700,))
    listmode = random_listmode(quadra, 20_000, 5000, 7)
    one = accumulate(listmode, threads=1)
    for threads in (2, 3):
        other = accumulate(listmode, threads=threads)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.z_profile, other.z_profile)
        assert np.array_equal(one.x_profile, other.x_profile)


def test_windows_read_their_own_events_only(quadra: Scanner) -> None:
    listmode = random_listmode(quadra, 5000, 4000, 8)
    windows = Windows([250, 2100], [1300, 2101])
    h = accumulate(listmode, windows)
    assert h.n_events == listmode.count(windows)
    assert h.live_ms.tolist() == [250, 500, 300, 0, 1, 0, 0, 0]
    whole = accumulate(listmode)
    rest = accumulate(listmode, windows.complement(0, 4000))
    assert np.array_equal(whole.image, h.image + rest.image)


@pytest.mark.kernel
def test_unusable_events_are_counted_with_their_reason(quadra: Scanner) -> None:
    last = quadra.n_crystals
    listmode = listmode_of(
        quadra, [0, 0, 0, 0], [380, 380, 380, last], [0, 33, -1, 16], [0, 0, 1, 1], 2
    )
    h = accumulate(listmode)
    assert list(h.rejected.values()) == [1, 2, 0]
    assert int(h.image.sum()) == 1


def test_a_scan_without_tof_puts_events_at_midpoints() -> None:
    mmr = load_scanner("mmr")
    place = mmr.crystal_position_mm.astype(np.float64)
    far = int(np.argmin(((place + place[5] * [1, 1, -3]) ** 2).sum(axis=1)))
    h = accumulate(listmode_of(mmr, [5], [far], [0], [0], 1))
    a, b = place[5], place[far]
    at = h.lower_mm + (np.argwhere(h.image)[0] + 0.5) * h.voxel_mm
    assert np.abs(at - (a + b) / 2).max() <= h.voxel_mm / 2 + 0.01
    assert not h.has_tof
    assert np.isinf(h.blur_along_mm)


def test_an_empty_scan_gives_an_empty_histogram(quadra: Scanner) -> None:
    h = accumulate(listmode_of(quadra, [], [], [], [], 1200))
    assert h.n_events == 0
    assert h.n_slices == 3
    assert not h.image.any()


def test_sizes_that_are_not_positive_are_refused(quadra: Scanner) -> None:
    listmode = listmode_of(quadra, [], [], [], [], 10)
    with pytest.raises(InputError, match="positive voxel size and slices of at least 1 ms"):
        accumulate(listmode, voxel_mm=0.0)
    with pytest.raises(InputError, match="positive voxel size and slices of at least 1 ms"):
        accumulate(listmode, slice_ms=0)


@pytest.mark.reference
def test_axial_sensitivity_follows_a_geant4_model_of_a_line_in_air(quadra: Scanner) -> None:
    """Project's own Geant4 model of the Quadra, all ring differences: cps/kBq by z in mm."""
    z = np.array([25.0, 75.0, 125.0, 175.0, 225.0, 275.0, 325.0])
    geant4 = np.array([221.0, 210.0, 197.0, 180.0, 161.0, 141.0, 118.0])
    ours = axial_sensitivity(quadra, z, path_mm=0.0)
    assert np.abs(ours / ours[0] - geant4 / geant4[0]).max() < 0.015


def test_axial_sensitivity_is_flat_where_ring_differences_are_limited() -> None:
    flat = axial_sensitivity(load_scanner("quadra", "HS"), np.linspace(-325.0, 325.0, 9))
    assert np.ptp(flat) < 0.01
