"""Walk the ticks of a scan in runs of a bounded number of events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from listmode.source import Listmode, Stream

RUN_EVENTS = 1 << 20


def tick_runs(
    listmode: Listmode,
    start_ms: int,
    stop_ms: int,
    stream: Stream = "prompts",
    *,
    n_events: int = RUN_EVENTS,
    step_ms: int = 1,
) -> Iterator[tuple[int, int]]:
    """Part ``[start_ms, stop_ms)`` into runs of ticks, each of about ``n_events`` events.

    A run holds a multiple of ``step_ms`` ticks (the last one the rest) and at least one step,
    so a step with more events than that is a run of its own.

    Yields
    ------
    start_ms, stop_ms
        Ends of each run on the scan clock.
    """
    offset = listmode.tick_offset(stream)
    tick, end = start_ms - listmode.start_ms, stop_ms - listmode.start_ms
    while tick < end:
        last = int(np.searchsorted(offset, offset[tick] + n_events, side="right")) - 1
        n_steps = max((last - tick) // step_ms, 1)
        last = min(tick + n_steps * step_ms, end)
        yield tick + listmode.start_ms, last + listmode.start_ms
        tick = last
