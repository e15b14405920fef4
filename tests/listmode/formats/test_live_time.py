"""Live time out of dead-time blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from listmode.events import EventBatch
from listmode.formats._live import live_fraction
from listmode.formats.convert import what_is_lost
from listmode.memory import MemoryListmode
from listmode.source import LiveFraction, ScanProtocol
from tests.oracles import small_scanner


def _block(start: int, pairs: Any, singles: Any = None) -> dict[str, Any]:
    alive = {"modulePairAliveTimeFractions": pairs, "singlesAliveTimeFractions": singles}
    return {"timeInterval": {"start": start, "stop": start + 10}, "aliveTimeFractions": alive}


def test_the_share_of_a_pair_is_that_of_both_detectors_and_their_modules() -> None:
    blocks = [
        _block(30, [[np.array([0.7, 0.9])]], [np.array([0.5, 0.7])]),
        _block(10, [[np.array([0.9, 1.0])]]),
    ]
    live = live_fraction(blocks)
    assert live is not None
    assert live.start_ms.tolist() == [10, 30]
    np.testing.assert_allclose(live.fraction, [0.95, 0.8 * 0.6**2])


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [{}],
        [{"timeInterval": {"start": 0}, "aliveTimeFractions": None}],
        [_block(0, [[np.array([np.nan])]])],
        [_block(0, [[np.array([0.0])]])],
        [_block(0, [[np.array([1.5])]])],
    ],
)
def test_blocks_that_say_nothing_usable_give_no_live_time(blocks: list[dict[str, Any]]) -> None:
    assert live_fraction(blocks) is None


def test_a_copy_that_loses_live_time_says_so() -> None:
    scan = MemoryListmode(
        small_scanner(), ScanProtocol(), EventBatch.empty(), np.zeros(11, np.int64)
    )
    assert what_is_lost(scan, "copy.h5") == ()
    scan.live = LiveFraction(np.array([0]), np.array([0.9]))
    assert "not corrected for dead time" in what_is_lost(scan, "copy.h5")[0]
