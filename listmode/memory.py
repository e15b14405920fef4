"""A listmode scan held in memory, for small scans and tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.scanner import Scanner
from listmode.source import F32, I64, Listmode, ScanProtocol, Stream


@dataclass
class MemoryListmode(Listmode):
    """A scan whose events are arrays.

    Parameters
    ----------
    scanner, protocol
        As for every listmode source.
    prompts
        Events in order of time.
    prompts_offset
        First event of each tick, from ``start_ms`` on. Shape (n_ticks + 1,), int64.
    delayeds, delayeds_offset
        The delayed stream; none if left out.
    truth
        Origin of each prompt: 0 true, 1 scattered, 2 random. Shape (n_prompts,), uint8.
    start_ms
        Scan time of the first tick.

    Raises
    ------
    InputError
        If an offset does not ascend or does not end at its stream's number of events.
    """

    scanner: Scanner
    protocol: ScanProtocol
    prompts: EventBatch
    prompts_offset: I64
    delayeds: EventBatch = field(default_factory=EventBatch.empty)
    delayeds_offset: I64 | None = None
    truth: NDArray[np.uint8] | None = None
    start_ms: int = 0
    crystal_efficiency: F32 | None = None
    notes: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    is_complete: bool = True
    format_name: str = "memory"
    clock_zero: str = "first tick"

    def __post_init__(self) -> None:
        self.stop_ms = self.start_ms + len(self.prompts_offset) - 1
        if self.delayeds_offset is None:
            self.delayeds_offset = np.zeros(len(self.prompts_offset), np.int64)
        for stream, batch, offset in (
            ("prompts", self.prompts, self.prompts_offset),
            ("delayeds", self.delayeds, self.delayeds_offset),
        ):
            if offset[0] != 0 or offset[-1] != len(batch) or (np.diff(offset) < 0).any():
                raise InputError(
                    f"the tick index of {stream} must ascend from 0 to {len(batch)} events, "
                    f"but it runs from {offset[0]} to {offset[-1]}; count events per tick again"
                )

    @property
    def file_hash(self) -> str:
        """SHA-256 over the events and their ticks."""
        h = hashlib.sha256()
        for batch, offset in (
            (self.prompts, self.prompts_offset),
            (self.delayeds, self.delayeds_offset),
        ):
            for column in (batch.crystal_a, batch.crystal_b, batch.tof_bin, offset):
                h.update(np.ascontiguousarray(column).tobytes())
        return h.hexdigest()

    def tick_offset(self, stream: Stream = "prompts") -> I64:
        """Give the number of the first event of each tick; see :class:`Listmode`."""
        if stream == "prompts":
            return self.prompts_offset
        assert self.delayeds_offset is not None
        return self.delayeds_offset

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""
        batch = self.prompts if stream == "prompts" else self.delayeds
        part = slice(start_event, stop_event)
        return EventBatch(batch.crystal_a[part], batch.crystal_b[part], batch.tof_bin[part])

    def read_truth(self, start_event: int, stop_event: int) -> NDArray[np.uint8] | None:
        """Read where each prompt came from (0 true, 1 scattered, 2 random)."""
        return None if self.truth is None else self.truth[start_event:stop_event]
