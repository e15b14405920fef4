"""Make new listmode files from old ones: convert, thin, repair; and validate one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats.castor import write_castor
from listmode.formats.hdf5 import Hdf5Listmode, ListmodeWriter, cut_listmode
from listmode.formats.opening import open_listmode
from listmode.formats.petsird_writer import write_petsird
from listmode.formats.ticks import tick_runs
from listmode.progress import SILENT, Progress
from listmode.source import I64, Listmode, Stream
from listmode.windows import Windows

U64 = NDArray[np.uint64]

_STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")
_WRITERS: dict[str, Callable[[Listmode, Path], None]] = {
    ".h5": lambda source, path: cut_listmode(source, source.extent, path),
    ".hdf5": lambda source, path: cut_listmode(source, source.extent, path),
    ".petsird": write_petsird,
    ".cdh": write_castor,
}


def convert_listmode(source: Listmode, path: str | Path) -> None:
    """Write a scan in the format that the new name's ending says.

    ``.h5`` and ``.hdf5`` for our own layout, ``.petsird`` for PETSIRD, ``.cdh`` for CASToR.
    What each format keeps is in ``docs/formats.md``.

    Raises
    ------
    InputError
        If no format has that ending, or the file cannot be written.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InputError(
            f"the ending of a new listmode file must be one of {', '.join(_WRITERS)}, but "
            f"{path.name!r} ends otherwise; choose one of these"
        )
    writer(source, path)


def thin_listmode(
    source: Listmode,
    path: str | Path,
    fraction: float,
    seed: int,
    *,
    progress: Progress = SILENT,
) -> None:
    """Keep each event by chance and write the rest to a new HDF5 file.

    The file's ``count_fraction`` says so, and calibration divides by it. A thinned scan has the
    counts of a lower dose, but not its make-up: randoms fall with the square of the activity
    and the crystals' own background not at all, while thinning takes the same share of all.

    Parameters
    ----------
    source
        Any open scan.
    path
        The file to make.
    fraction
        Share of the events to keep, in (0, 1].
    seed
        An event's fate follows from the seed, its stream and its number alone.

    Raises
    ------
    InputError
        If the fraction is out of range or the file cannot be written.
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(
            f"the share of events to keep must lie in (0, 1], but it is {fraction:g}; "
            "give a fraction such as 0.2"
        )
    protocol = replace(
        source.protocol, count_fraction=source.protocol.count_fraction * fraction
    )
    note = (
        f"thinned to {fraction:g} of the events (seed {seed}): randoms and the crystals' own "
        "background are thinned alike, unlike in a scan of lower dose"
    )

    def keep(stream: Stream, first: int, last: int) -> NDArray[np.bool_]:
        key = 2 * seed + _STREAMS.index(stream)
        return _uniform(key, first, last) < np.uint64(min(int(fraction * 2.0**53), 2**53))

    held = source.extent.merged()
    with _writer_like(source, path, held, protocol=protocol, note=note) as writer:
        _copy(source, held, writer, keep, progress)


def _uniform(key: int, first: int, last: int) -> U64:
    """Give a number of 53 random bits for each event number of ``[first, last)``.

    Notes
    -----
    The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014,
    doi 10.1145/2660193.2660195) over key and event number.
    """
    golden = 0x9E3779B97F4A7C15
    with np.errstate(over="ignore"):
        z = np.arange(first, last, dtype=np.uint64) * np.uint64(golden)
        z += np.uint64((key * 0xD1342543DE82EF95 + 1) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return z >> np.uint64(11)


def _writer_like(source: Listmode, path: str | Path, held: Windows, **changes: Any) -> Any:
    provenance = {k: v for k, v in source.provenance.items() if k not in ("sha256", "format")}
    return ListmodeWriter(
        path,
        scanner=source.scanner,
        protocol=changes.get("protocol", source.protocol),
        start_ms=int(held.start_ms[0]),
        crystal_efficiency=source.crystal_efficiency,
        has_truth=source.read_truth(0, 0) is not None,
        provenance=provenance | {"made_from_sha256": source.file_hash},
        clock_zero=source.clock_zero,
        coverage=held,
        notes=(*source.notes, *filter(None, [changes.get("note")])),
        defects=source.defects,
    )


def _copy(
    source: Listmode,
    held: Windows,
    writer: ListmodeWriter,
    keep: Callable[[Stream, int, int], NDArray[np.bool_]],
    progress: Progress,
) -> None:
    total = sum(source.count(held, stream) for stream in _STREAMS)
    with progress.stage("copy events", total) as stage:
        for stream in _STREAMS:
            has_truth = stream == "prompts" and source.read_truth(0, 0) is not None
            offset = source.tick_offset(stream)
            for gap, start, stop in _with_gaps(held):
                nothing = np.empty(0, np.uint8) if has_truth else None
                writer.append(stream, EventBatch.empty(), np.zeros(gap, np.int64), nothing)
                for first, last in tick_runs(source, start, stop, stream):
                    ticks = offset[first - source.start_ms : last - source.start_ms + 1]
                    a, b = int(ticks[0]), int(ticks[-1])
                    kept = keep(stream, a, b)
                    upto = np.concatenate(([0], np.cumsum(kept)))
                    truth = source.read_truth(a, b) if has_truth else None
                    writer.append(
                        stream,
                        _chosen(source.read(stream, a, b), kept),
                        np.diff(upto[ticks - a]),
                        None if truth is None else truth[kept],
                    )
                    stage.advance(b - a)


def _chosen(batch: EventBatch, kept: NDArray[np.bool_]) -> EventBatch:
    return EventBatch(batch.crystal_a[kept], batch.crystal_b[kept], batch.tof_bin[kept])


def _with_gaps(held: Windows) -> Iterator[tuple[int, int, int]]:
    previous = int(held.start_ms[0])
    for start, stop in held:
        yield start - previous, start, stop
        previous = stop


def repair_listmode(path: str | Path, new_path: str | Path) -> Windows:
    """Save what can be read of a damaged or unfinished HDF5 file into a new, complete one.

    Ticks with an event that cannot be read, or that does not fit the scanner, are left out as a
    whole: the new file says which time it holds, so that rates and durations stay right.

    Parameters
    ----------
    path
        The damaged file, also one that its writer left behind (``.*.part``).
    new_path
        The file to make.

    Returns
    -------
    Windows
        The time that the new file holds.

    Raises
    ------
    InputError
        If the file is none of ours, not one tick of it can be read, or the new one cannot be
        written.
    """
    with Hdf5Listmode(path) as source:
        readable = np.ones(source.stop_ms - source.start_ms, bool)
        for stream in _STREAMS:
            for start, stop in source.extent.merged():
                for first, last in tick_runs(source, start, stop, stream, n_events=1 << 18):
                    bad = np.array(_bad_ticks(source, stream, first, last), np.int64)
                    readable[bad - source.start_ms] = False
        ticks = np.arange(source.start_ms, source.stop_ms + 1)
        good = source.extent.intersection(Windows.from_mask(readable, ticks))
        if not len(good):
            raise InputError(
                f"at least one tick of {Path(path).name!r} must be readable, but none is; "
                "there is nothing to save"
            )
        lost_s = source.extent.duration_s - good.duration_s
        note = f"repaired: {lost_s:g} s could not be read and are left out"
        with _writer_like(source, new_path, good, note=note) as writer:
            _copy(source, good, writer, lambda _, a, b: np.ones(b - a, bool), SILENT)
    return good


def _bad_ticks(source: Listmode, stream: Stream, first: int, last: int) -> list[int]:
    """Find the ticks of ``[first, last)`` that cannot be read, by halving."""
    offset = source.tick_offset(stream)
    a, b = (int(offset[t - source.start_ms]) for t in (first, last))
    if a == b:
        return []
    try:
        found = _misfits(source, stream, a, b)
        if not found.size:
            return []
        if last - first > 1:
            ticks = np.searchsorted(offset, found, side="right") - 1
            return [int(t) + source.start_ms for t in np.unique(ticks)]
    except InputError:
        pass
    if last - first == 1:
        return [first]
    middle = (first + last) // 2
    halves = ((first, middle), (middle, last))
    return [tick for low, high in halves for tick in _bad_ticks(source, stream, low, high)]


def _misfits(source: Listmode, stream: Stream, a: int, b: int) -> I64:
    """Give the numbers of the events in ``[a, b)`` that do not fit the scanner."""
    batch = source.read(stream, a, b)
    scanner = source.scanner
    bad = batch.crystal_b >= scanner.n_crystals
    bad |= (batch.tof_bin < 0) | (batch.tof_bin >= scanner.tof.n_bins)
    return np.flatnonzero(bad) + a


@dataclass(frozen=True)
class Validation:
    """What a check of a whole file found.

    Attributes
    ----------
    n_prompts, n_delayeds
        Events that were read.
    faults
        What is wrong, one line each; empty for a sound file.
    """

    n_prompts: int
    n_delayeds: int
    faults: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def validate_listmode(path: str | Path, *, progress: Progress = SILENT) -> Validation:
    """Read a whole file and check every promise of its format.

    Structure and tick index are checked when it is opened, checksums and the order of pairs as
    each event is read; then crystals and TOF bins must exist and truth must be known values.

    Raises
    ------
    InputError
        If the file cannot be opened at all.
    """
    with open_listmode(path) as source:
        faults = list(source.defects)
        if not source.is_complete and not faults:
            faults.append("the file is incomplete")
        counts = dict.fromkeys(_STREAMS, 0)
        total = sum(source.count(source.extent, stream) for stream in _STREAMS)
        with progress.stage("validate", total) as stage:
            for stream in _STREAMS:
                for start, stop in source.extent:
                    for first, last in tick_runs(source, start, stop, stream):
                        a, b = (
                            int(source.tick_offset(stream)[t - source.start_ms])
                            for t in (first, last)
                        )
                        counts[stream] += b - a
                        faults += _faults(source, stream, a, b)
                        stage.advance(b - a)
                outside = source.n_events(stream) - counts[stream]
                if outside:
                    faults.append(f"{outside} {stream} lie in time that the file does not hold")
        return Validation(counts["prompts"], counts["delayeds"], tuple(faults))


def _faults(source: Listmode, stream: Stream, a: int, b: int) -> list[str]:
    try:
        misfits = _misfits(source, stream, a, b)
        truth = source.read_truth(a, b) if stream == "prompts" else None
    except InputError as error:
        return [str(error)]
    faults = []
    if misfits.size:
        faults.append(
            f"{misfits.size} {stream} name a crystal or TOF bin that the scanner does not "
            f"have; the first is event {misfits[0]}"
        )
    if truth is not None and truth.size and truth.max() > 2:
        faults.append(f"truth of {int((truth > 2).sum())} prompts is none of 0, 1 and 2")
    return faults
