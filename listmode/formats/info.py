"""What is in a listmode file, in figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.source import I64, Listmode, ScanProtocol, Stream

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Info:
    """A listmode file in figures.

    Attributes
    ----------
    format_name, sha256, clock_zero, is_complete, notes, defects
        As the reader gives them; see :class:`listmode.source.Listmode`.
    scanner_name, mode, n_crystals, n_rings, max_ring_difference, n_tof_bins, tof_fwhm_ps
        The scanner; ``tof_fwhm_ps`` is ``None`` without TOF.
    n_prompts, n_delayeds
        Events in the file, with those that no window holds.
    n_prompts_in_time, n_delayeds_in_time
        Events that windows can hold.
    start_ms, stop_ms, held_s
        Extent on the scan clock, and how many seconds of it the file holds.
    tags
        What else the file counts, by name.
    has_truth
        Whether prompts carry their origin.
    rate_start_s, prompts_hz, delayeds_hz
        Count rates over time: the start of each bin and its rates; NaN where the file holds no
        time. Shape (n_bins,), float64.
    protocol, activity_at_zero_bq
        What was injected, and how much of it is left at tick zero.
    """

    format_name: str
    sha256: str
    clock_zero: str
    is_complete: bool
    notes: tuple[str, ...]
    defects: tuple[str, ...]
    scanner_name: str
    mode: str
    n_crystals: int
    n_rings: int
    max_ring_difference: int
    n_tof_bins: int
    tof_fwhm_ps: float | None
    n_prompts: int
    n_delayeds: int
    n_prompts_in_time: int
    n_delayeds_in_time: int
    start_ms: int
    stop_ms: int
    held_s: float
    tags: Mapping[str, int]
    has_truth: bool
    rate_start_s: F64
    prompts_hz: F64
    delayeds_hz: F64
    protocol: ScanProtocol
    activity_at_zero_bq: float | None

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values that JSON can hold; NaN becomes ``None``."""
        plain = asdict(self)
        for name in ("rate_start_s", "prompts_hz", "delayeds_hz"):
            plain[name] = [
                round(v, 6) if math.isfinite(v) else None for v in plain[name].tolist()
            ]
        plain["notes"], plain["defects"] = list(self.notes), list(self.defects)
        plain["tags"] = dict(self.tags)
        return plain


def describe(listmode: Listmode, bin_ms: int | None = None) -> Info:
    """Describe an open listmode file without reading its events.

    Parameters
    ----------
    listmode
        Any open file.
    bin_ms
        Length of a bin of the count rates, ms; 1 s, or less for a scan of less than a minute.

    Raises
    ------
    InputError
        If the bin length is not positive.
    """
    if bin_ms is None:
        bin_ms = _bin_length(listmode.stop_ms - listmode.start_ms)
    if bin_ms < 1:
        raise InputError(
            f"a bin of count rates must last at least 1 ms, but {bin_ms} ms was asked for; "
            "give a positive length"
        )
    scanner, protocol = listmode.scanner, listmode.protocol
    tags = dict(getattr(listmode, "tags", {}))
    edges = np.append(np.arange(listmode.start_ms, listmode.stop_ms, bin_ms), listmode.stop_ms)
    held_ms = _held(listmode, edges)
    in_time = {stream: listmode.n_events(stream) for stream in ("prompts", "delayeds")}
    return Info(
        format_name=listmode.format_name,
        sha256=listmode.file_hash,
        clock_zero=listmode.clock_zero,
        is_complete=listmode.is_complete,
        notes=listmode.notes,
        defects=listmode.defects,
        scanner_name=scanner.name,
        mode=scanner.mode,
        n_crystals=scanner.n_crystals,
        n_rings=scanner.n_rings,
        max_ring_difference=scanner.max_ring_difference,
        n_tof_bins=scanner.tof.n_bins,
        tof_fwhm_ps=scanner.tof.fwhm_ps if scanner.tof.has_tof else None,
        n_prompts=int(tags.get("prompts", in_time["prompts"])),
        n_delayeds=int(tags.get("delayeds", in_time["delayeds"])),
        n_prompts_in_time=in_time["prompts"],
        n_delayeds_in_time=in_time["delayeds"],
        start_ms=listmode.start_ms,
        stop_ms=listmode.stop_ms,
        held_s=float(held_ms.sum()) / 1000.0,
        tags=tags,
        has_truth=listmode.read_truth(0, 0) is not None,
        rate_start_s=edges[:-1] / 1000.0,
        prompts_hz=_rate(listmode, "prompts", edges, held_ms),
        delayeds_hz=_rate(listmode, "delayeds", edges, held_ms),
        protocol=protocol,
        activity_at_zero_bq=protocol.activity_at_zero_bq,
    )


def _bin_length(duration_ms: int) -> int:
    """Choose the longest bin of at most 1 s that gives 60 bins."""
    lengths = (1000, 500, 200, 100, 50, 20, 10, 5, 2)
    return next((ms for ms in lengths if duration_ms >= 60 * ms), 1)


def _held(listmode: Listmode, edges: I64) -> I64:
    """Count the ms of each bin that the file holds."""
    starts = listmode.extent.start_ms[:, None]
    stops = listmode.extent.stop_ms[:, None]
    overlap = np.minimum(stops, edges[1:]) - np.maximum(starts, edges[:-1])
    held: I64 = np.maximum(overlap, 0).sum(axis=0)
    return held


def _rate(listmode: Listmode, stream: Stream, edges: I64, held_ms: I64) -> F64:
    counts = np.diff(listmode.tick_offset(stream)[edges - listmode.start_ms])
    seconds = np.where(held_ms > 0, held_ms, np.nan) / 1000.0
    return np.asarray(counts / seconds, np.float64)
