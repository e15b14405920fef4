"""Live time out of PETSIRD's dead-time blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from listmode.errors import InputError
from listmode.formats._petsird_blocks import numbers
from listmode.source import LiveFraction


def live_fraction(blocks: Sequence[Mapping[str, Any]]) -> LiveFraction | None:
    """Give the mean live share of all pairs over time; ``None`` where blocks do not say.

    Parameters
    ----------
    blocks
        Decoded ``DeadTimeTimeBlock`` records, in any order.

    Notes
    -----
    PETSIRD's share of a pair is that of both detectors times that of the pair of modules. The
    mean over pairs is taken as the product of the means: exact where both vary independently.
    How pairs differ from each other is not carried.
    """
    steps: dict[int, float] = {}
    for block in blocks:
        try:
            alive = block["aliveTimeFractions"]
            start = int(block["timeInterval"]["start"])
            share = 1.0
            for name, power in (
                ("modulePairAliveTimeFractions", 1),
                ("singlesAliveTimeFractions", 2),
            ):
                if (values := numbers(alive.get(name))).size:
                    share *= float(values.mean()) ** power
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        steps[start] = share
    if not steps:
        return None
    start_ms = np.array(sorted(steps), np.int64)
    try:
        return LiveFraction(start_ms, np.array([steps[int(t)] for t in start_ms]))
    except InputError:
        return None
