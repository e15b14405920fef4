"""Make new listmode files from old ones: convert, thin, repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats._copy import STREAMS, copy_events, writer_like
from listmode.formats.castor_writer import castor_files, write_castor
from listmode.formats.hdf5 import Hdf5Listmode, cut_listmode, open_file
from listmode.formats.petsird_writer import write_petsird
from listmode.formats.ticks import tick_runs
from listmode.formats.validate import misfits
from listmode.progress import SILENT, Progress
from listmode.source import Listmode, Stream
from listmode.windows import Windows

U64 = NDArray[np.uint64]
Writer = Callable[[Listmode, Path, Progress], None]


def _to_hdf5(source: Listmode, path: Path, progress: Progress) -> None:
    cut_listmode(source, source.extent, path, progress=progress)


_WRITERS: dict[str, Writer] = {
    ".h5": _to_hdf5,
    ".hdf5": _to_hdf5,
    ".petsird": lambda source, path, progress: write_petsird(source, path, progress=progress),
    ".cdh": lambda source, path, progress: write_castor(source, path, progress=progress),
}


def _writer_of(path: Path) -> Writer:
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InputError(
            f"the ending of a new listmode file must be one of {', '.join(_WRITERS)}, but "
            f"{path.name!r} ends otherwise; choose one of these"
        )
    return writer


def files_of(path: str | Path) -> tuple[Path, ...]:
    """Name all files that :func:`convert_listmode` makes for a new name.

    Raises
    ------
    InputError
        If no format has that ending.
    """
    path = Path(path)
    _writer_of(path)
    return castor_files(path) if path.suffix.lower() == ".cdh" else (path,)


def what_is_lost(source: Listmode, path: str | Path) -> tuple[str, ...]:
    """Say what of an open scan the format of a new name has no place for.

    What the source's own reader had to leave out is in its ``notes`` already.

    Raises
    ------
    InputError
        If no format has that ending.
    """
    path = Path(path)
    _writer_of(path)
    lost = []
    for stream in STREAMS:
        n_outside = source.n_events(stream) - source.count(source.extent, stream)
        if n_outside:
            lost.append(f"{n_outside} {stream} in time that the file does not hold")
    if source.live is not None:
        lost.append("live time: activities from the copy are not corrected for dead time")
    if path.suffix.lower() in (".h5", ".hdf5"):
        return tuple(lost)
    if source.read_truth(0, 0) is not None:
        lost.append("truth: where each prompt came from")
    return (*lost, "notes, defects and free-text provenance of the source")


def convert_listmode(
    source: Listmode, path: str | Path, *, progress: Progress = SILENT
) -> None:
    """Write a scan in the format that the new name's ending says.

    ``.h5`` and ``.hdf5`` for our own layout, ``.petsird`` for PETSIRD, ``.cdh`` for CASToR.
    What each format keeps is in ``docs/formats.md``.

    Raises
    ------
    InputError
        If no format has that ending, or the file cannot be written.
    """
    path = Path(path)
    _writer_of(path)(source, path, progress)


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
        key = 2 * seed + STREAMS.index(stream)
        return _uniform(key, first, last) < np.uint64(min(int(fraction * 2.0**53), 2**53))

    held = source.extent.merged()
    with writer_like(source, path, held, protocol=protocol, note=note) as writer:
        copy_events(source, held, writer, keep=keep, progress=progress)


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


def repair_listmode(
    path: str | Path, new_path: str | Path, *, progress: Progress = SILENT
) -> Windows:
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
    with open_file(Path(path), None) as source:
        good = _good_time(source, progress)
        if not len(good):
            raise InputError(
                f"at least one tick of {Path(path).name!r} must be readable, but none is; "
                "there is nothing to save"
            )
        lost_s = source.extent.duration_s - good.duration_s
        note = f"repaired: {lost_s:g} s could not be read and are left out"
        if not source.is_complete:
            note += "; the writer of the original did not finish it"
        with writer_like(
            source, new_path, good, note=note, defects=source.inherited_defects
        ) as writer:
            copy_events(source, good, writer, progress=progress)
    return good


def _good_time(source: Hdf5Listmode, progress: Progress) -> Windows:
    """Find the ticks whose events can all be read and fit the scanner."""
    readable = np.ones(source.stop_ms - source.start_ms, bool)
    total = sum(source.count(source.extent, stream) for stream in STREAMS)
    with progress.stage("check events", total) as stage:
        for stream in STREAMS:
            offset = source.tick_offset(stream)
            for start, stop in source.extent.merged():
                for first, last in tick_runs(source, start, stop, stream, n_events=1 << 18):
                    bad = np.array(_bad_ticks(source, stream, first, last), np.int64)
                    readable[bad - source.start_ms] = False
                    a, b = (int(offset[t - source.start_ms]) for t in (first, last))
                    stage.advance(b - a)
    ticks = np.arange(source.start_ms, source.stop_ms + 1)
    return source.extent.intersection(Windows.from_mask(readable, ticks))


def _bad_ticks(source: Listmode, stream: Stream, first: int, last: int) -> list[int]:
    """Find the ticks of ``[first, last)`` that cannot be read, by halving."""
    offset = source.tick_offset(stream)
    a, b = (int(offset[t - source.start_ms]) for t in (first, last))
    if a == b:
        return []
    try:
        found = misfits(source, stream, a, b)
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
