"""Forward and back projection of events in any order, against the textbook's."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.textbook import Textbook, body_events
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from recon.image import Grid
from recon.projector import back, forward

N_EVENTS = 300_000
GRID = Grid.centred((165, 165, 322), 3.3)


@cache
def _events() -> EventBatch:
    return body_events(load_scanner("quadra"), N_EVENTS)


@cache
def _textbook() -> Textbook:
    return Textbook(load_scanner("quadra"), GRID, _events())


@pytest.mark.parametrize("way", ["stillpet", "textbook"])
def bench_forward(benchmark: BenchmarkFixture, way: str) -> None:
    scanner, events = load_scanner("quadra"), _events()
    image = np.random.default_rng(1).random(GRID.shape).astype(np.float32)
    ours = forward(image, GRID, scanner, events)
    theirs = _textbook().forward(image)
    assert np.abs(ours - theirs).sum() < 2e-3 * theirs.sum()
    benchmark.extra_info["events"] = N_EVENTS
    if way == "stillpet":
        benchmark(forward, image, GRID, scanner, events)
    else:
        benchmark(_textbook().forward, image)


@pytest.mark.parametrize("way", ["stillpet", "textbook"])
def bench_back(benchmark: BenchmarkFixture, way: str) -> None:
    scanner, events = load_scanner("quadra"), _events()
    weights = np.ones(N_EVENTS, np.float32)
    ours = back(weights, GRID, scanner, events)
    theirs = _textbook().back(weights)
    assert np.abs(ours - theirs).sum() < 2e-3 * theirs.sum()
    benchmark.extra_info["events"] = N_EVENTS
    if way == "stillpet":
        benchmark(back, weights, GRID, scanner, events)
    else:
        benchmark(_textbook().back, weights)
