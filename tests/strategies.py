"""Generators of small inputs shared by tests: windows, scanners and scans."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.scanner import BlockLayout, Scanner, TofModel, build_scanner
from listmode.source import ScanProtocol
from listmode.windows import Windows

PROTOCOL = ScanProtocol(
    tracer="FDG",
    injected_activity_bq=22.0e6,
    injection_time_s=-3600.0,
    patient_weight_kg=73.5,
    patient_height_m=1.7,
    patient_sex="F",
    count_fraction=0.25,
)


def small_scanner(n_tof_bins: int = 5) -> Scanner:
    """Two units of three rings with a gap ring, eight blocks of three crystals and a gap."""
    return build_scanner(
        name="small",
        layout=BlockLayout(
            n_blocks=8,
            n_crystals=3,
            n_virtual=1,
            n_units=2,
            n_rings_per_unit=3,
            n_gap_rings=1,
            front_radius_mm=100.0,
            first_block_rad=0.1,
        ),
        crystal_size_mm=(4.0, 5.0, 20.0),
        crystal_pitch_mm=(4.2, 5.2),
        max_ring_difference=5,
        fov_radius_mm=80.0,
        tof=TofModel(n_tof_bins, 200.0, 300.0 if n_tof_bins > 1 else np.inf),
        profile_transaxial=(0.9, 1.0, 0.9),
        mode="test",
    )


def random_batch(rng: np.random.Generator, scanner: Scanner, n_events: int) -> EventBatch:
    """Make events of any pairs of different crystals."""
    first = rng.integers(0, scanner.n_crystals, n_events)
    second = (first + rng.integers(1, scanner.n_crystals, n_events)) % scanner.n_crystals
    tof_bin = rng.integers(0, scanner.tof.n_bins, n_events)
    return EventBatch.from_pairs(first, second, tof_bin, scanner.tof.n_bins)


def random_scan(
    seed: int,
    *,
    n_prompts: int = 500,
    n_delayeds: int = 80,
    n_ticks: int = 40,
    start_ms: int = 0,
    has_truth: bool = False,
    scanner: Scanner | None = None,
) -> MemoryListmode:
    """Make a scan in memory; some of its ticks are empty."""
    rng = np.random.default_rng(seed)
    scanner = scanner or small_scanner()
    weights = rng.random(n_ticks) * (rng.random(n_ticks) < 0.8)
    weights[rng.integers(n_ticks)] += 1.0
    offsets = [
        np.concatenate(([0], np.cumsum(rng.multinomial(n, weights / weights.sum()))))
        for n in (n_prompts, n_delayeds)
    ]
    return MemoryListmode(
        scanner=scanner,
        protocol=PROTOCOL,
        prompts=random_batch(rng, scanner, n_prompts),
        prompts_offset=offsets[0],
        delayeds=random_batch(rng, scanner, n_delayeds),
        delayeds_offset=offsets[1],
        truth=rng.integers(0, 3, n_prompts).astype(np.uint8) if has_truth else None,
        start_ms=start_ms,
        crystal_efficiency=rng.uniform(0.5, 1.5, scanner.n_crystals).astype(np.float32),
    )


@st.composite
def windows(draw: st.DrawFn, start_ms: int = 0, stop_ms: int = 100) -> Windows:
    """Draw a union of windows within an extent; windows may adjoin."""
    edges = draw(
        st.lists(st.integers(start_ms, stop_ms), min_size=2, max_size=12, unique=True).map(
            sorted
        )
    )
    keep = draw(st.lists(st.booleans(), min_size=len(edges) - 1, max_size=len(edges) - 1))
    keep[draw(st.integers(0, len(keep) - 1))] = True
    pairs = [(a, b) for a, b, k in zip(edges[:-1], edges[1:], keep, strict=True) if k]
    return Windows([a for a, _ in pairs], [b for _, b in pairs])


def same_events(one: EventBatch, other: EventBatch) -> bool:
    """Say whether two batches hold the same events in the same order."""
    return (
        np.array_equal(one.crystal_a, other.crystal_a)
        and np.array_equal(one.crystal_b, other.crystal_b)
        and np.array_equal(one.tof_bin, other.tof_bin)
    )


def joined(batches: list[EventBatch]) -> EventBatch:
    """Join batches into one."""
    if not batches:
        return EventBatch.empty()
    return EventBatch(
        np.concatenate([b.crystal_a for b in batches]),
        np.concatenate([b.crystal_b for b in batches]),
        np.concatenate([b.tof_bin for b in batches]),
    )
