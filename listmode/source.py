"""What every listmode file looks like once it is open, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.scanner import Scanner
from listmode.windows import Windows

Stream = Literal["prompts", "delayeds"]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

F18_HALF_LIFE_S = 6586.2  # F-18, as vendor listmode headers give it (STIR PR 918)
F18_BRANCHING = 0.9673  # positrons per decay; same source


@dataclass(frozen=True)
class ScanProtocol:
    """What was injected, into whom, and when; ``None`` where the file does not say.

    Times are seconds on the scan clock (tick zero is 0), so an injection before the scan has a
    negative time. ``count_fraction`` is the share of the coincidences that the file keeps: a
    thinned file says so here, and calibration divides by it.
    """

    tracer: str = "unknown"
    half_life_s: float = F18_HALF_LIFE_S
    branching: float = F18_BRANCHING
    injected_activity_bq: float | None = None
    injection_time_s: float | None = None
    patient_weight_kg: float | None = None
    patient_height_m: float | None = None
    patient_sex: Literal["F", "M"] | None = None
    count_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.count_fraction <= 1.0:
            raise InputError(
                f"count fraction must lie in (0, 1], but it is {self.count_fraction:g}; "
                "give the share of the coincidences that the file keeps"
            )
        if not self.half_life_s > 0.0:
            raise InputError(
                f"half-life must be positive, but it is {self.half_life_s:g} s; "
                "give it in seconds (F-18: 6586.2)"
            )

    @property
    def activity_at_zero_bq(self) -> float | None:
        """Injected activity decayed to tick zero, Bq; ``None`` if the file does not say."""
        if self.injected_activity_bq is None or self.injection_time_s is None:
            return None
        halves = -self.injection_time_s / self.half_life_s
        return float(self.injected_activity_bq * 2.0**-halves)

    @property
    def suv_per_bq_ml(self) -> float | None:
        """Factor from Bq/mL at tick zero to body-weight SUV (g/mL), or ``None`` if unknown."""
        activity = self.activity_at_zero_bq
        if not activity or not self.patient_weight_kg:
            return None
        return self.patient_weight_kg * 1000.0 / activity


@dataclass(frozen=True, eq=False)
class LiveFraction:
    """Which share of the time the scanner could count, constant between steps.

    Parameters
    ----------
    start_ms
        Scan time at which each share begins; the first one also holds before, the last one
        until the end. Shape (n_steps,), int64, ascending.
    fraction
        Share of the coincidences that dead time left, in (0, 1]. Shape (n_steps,), float64.

    Raises
    ------
    InputError
        If the shapes differ, times do not ascend or a share is not in (0, 1].
    """

    start_ms: I64
    fraction: NDArray[np.float64]

    def __post_init__(self) -> None:
        start = np.ascontiguousarray(self.start_ms, np.int64)
        fraction = np.ascontiguousarray(self.fraction, np.float64)
        if start.ndim != 1 or start.size == 0 or start.shape != fraction.shape:
            raise InputError(
                "live time needs one share a step, but there are "
                f"{start.size} steps and {fraction.size} shares; give as many of both"
            )
        if (np.diff(start) <= 0).any() or not ((fraction > 0) & (fraction <= 1)).all():
            raise InputError(
                "live time needs ascending times and shares in (0, 1], but the shares run from "
                f"{fraction.min():g} to {fraction.max():g}; correct them, or leave windows out "
                "in which the scanner counted nothing"
            )
        for name, column in (("start_ms", start), ("fraction", fraction)):
            column.setflags(write=False)
            object.__setattr__(self, name, column)

    def decayed_live_s(self, windows: Windows, half_life_s: float) -> float:
        """Integrate the decay factor times the live share over the windows, s."""
        edges = np.append(self.start_ms, np.iinfo(np.int64).max)
        edges[0] = np.iinfo(np.int64).min
        total = 0.0
        for first, last, share in zip(edges[:-1], edges[1:], self.fraction, strict=True):
            start = np.maximum(windows.start_ms, first)
            stop = np.minimum(windows.stop_ms, last)
            part = stop > start
            if part.any():
                total += share * Windows(start[part], stop[part]).decayed_duration_s(
                    half_life_s
                )
        return float(total)


class Listmode(ABC):
    """An open listmode file. It holds no events; it yields them by windows of time.

    A format subclasses this, sets the attributes and implements :meth:`read` and
    :meth:`tick_offset`. The clock counts milliseconds from the stream's own tick zero, also in
    a file that was cut from a longer one.

    Attributes
    ----------
    scanner
        Geometry, acceptance and timing.
    protocol
        Activity, weight and times.
    start_ms, stop_ms
        The file's extent on the scan clock, ``[start_ms, stop_ms)``.
    crystal_efficiency
        Relative detection efficiency of each crystal, mean about 1. Shape (n_crystals,),
        float32; ``None`` if the file has none (all ones).
    notes, defects
        Free text: what the file says of itself, and what the reader found wrong with it. Never
        a patient's name, never a path.
    file_hash
        SHA-256 of the file, for provenance.
    is_complete
        False where the file was truncated or its writer has not finished.
    live
        Share of the time that dead time left; ``None`` if the file does not say (all of it).
    """

    scanner: Scanner
    protocol: ScanProtocol
    start_ms: int
    stop_ms: int
    crystal_efficiency: F32 | None
    notes: tuple[str, ...]
    defects: tuple[str, ...]
    is_complete: bool
    format_name: str
    clock_zero: str  # what the scan calls zero, in words
    live: LiveFraction | None = None

    @property
    @abstractmethod
    def file_hash(self) -> str:
        """SHA-256 of the file's bytes, as hexadecimal text."""

    @abstractmethod
    def tick_offset(self, stream: Stream = "prompts") -> I64:
        """Give the number of the first event of each tick.

        Returns
        -------
        ndarray
            Shape (stop_ms - start_ms + 1,), int64, ascending. Events of tick ``t`` are
            ``offset[t - start_ms]`` up to but without ``offset[t - start_ms + 1]``.
        """

    @abstractmethod
    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""

    def read_truth(self, start_event: int, stop_event: int) -> NDArray[np.uint8] | None:
        """Read where prompts came from (0 true, 1 scattered, 2 random), if it is known."""
        del start_event, stop_event
        return None

    def refresh(self) -> bool:
        """Read again how much the file holds, where it may grow; most formats never do.

        Events and ticks known before keep their numbers; ``stop_ms``, the tick index,
        ``extent`` and ``is_complete`` follow the file.

        Returns
        -------
        bool
            Whether there is more, or the file was finished.
        """
        return False

    def close(self) -> None:  # noqa: B027  # optional: most formats hold nothing open
        """Release the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def extent(self) -> Windows:
        """The whole scan as one window."""
        return Windows([self.start_ms], [self.stop_ms])

    @property
    def provenance(self) -> Mapping[str, str]:
        """Format, hash and clock zero, for a sidecar."""
        return {
            "format": self.format_name,
            "sha256": self.file_hash,
            "clock_zero": self.clock_zero,
        }

    def n_events(self, stream: Stream = "prompts") -> int:
        """Count all events of a stream."""
        return int(self.tick_offset(stream)[-1])

    def check_windows(self, windows: Windows) -> None:
        """Refuse windows that are empty or reach outside the scan.

        Raises
        ------
        InputError
            If there is no window, or one starts before or stops after the scan.
        """
        if not len(windows):
            raise InputError(
                "at least one window of time is needed, but there is none; "
                "give windows such as 600-1200 (seconds from tick zero)"
            )
        if windows.start_ms[0] < self.start_ms or windows.stop_ms[-1] > self.stop_ms:
            raise InputError(
                f"windows must lie within the scan, {self.start_ms / 1000:g}-"
                f"{self.stop_ms / 1000:g} s from tick zero ({self.clock_zero}), but they are "
                f"{windows}; count seconds from tick zero"
            )

    def event_slices(self, windows: Windows, stream: Stream = "prompts") -> I64:
        """Turn windows into slices of event numbers.

        Returns
        -------
        ndarray
            First and past-the-last event of each window. Shape (n_windows, 2), int64.

        Raises
        ------
        InputError
            If a window reaches outside the scan.
        """
        self.check_windows(windows)
        offset = self.tick_offset(stream)
        return np.stack(
            (
                offset[windows.start_ms - self.start_ms],
                offset[windows.stop_ms - self.start_ms],
            ),
            axis=1,
        )

    def count(self, windows: Windows, stream: Stream = "prompts") -> int:
        """Count the events of a stream in a union of windows."""
        slices = self.event_slices(windows, stream)
        return int((slices[:, 1] - slices[:, 0]).sum())

    def events(
        self, windows: Windows | None = None, stream: Stream = "prompts", chunk: int = 1 << 20
    ) -> Iterator[EventBatch]:
        """Yield the events of a union of windows in batches of at most ``chunk``."""
        for first, last in self.event_slices(windows or self.extent, stream).tolist():
            for start in range(first, last, chunk):
                yield self.read(stream, start, min(start + chunk, last))
