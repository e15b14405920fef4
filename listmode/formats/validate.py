"""Hold a listmode file to every promise of its format."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from listmode.errors import InputError
from listmode.formats.hdf5 import Hdf5Listmode
from listmode.formats.opening import open_listmode
from listmode.formats.ticks import tick_runs
from listmode.progress import SILENT, Progress
from listmode.source import I64, Listmode, Stream

_STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


@dataclass(frozen=True)
class Validation:
    """What a check of a whole file found.

    Attributes
    ----------
    format_name
        What kind of file it is.
    n_prompts, n_delayeds
        Events that were read.
    faults
        What is wrong with this file, one line each; empty for a sound file.
    inherited_defects
        What was wrong with the file that this one was made from; no fault of this one.
    """

    format_name: str
    n_prompts: int
    n_delayeds: int
    faults: tuple[str, ...]
    inherited_defects: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values that JSON can hold."""
        plain = asdict(self)
        plain["faults"] = list(self.faults)
        plain["inherited_defects"] = list(self.inherited_defects)
        return plain | {"is_sound": self.is_sound}


def validate_listmode(
    path: str | Path, *, header: str | Path | None = None, progress: Progress = SILENT
) -> Validation:
    """Read a whole file and check every promise of its format.

    The tick index is checked when the file is opened; of our own HDF5 files the structure (each
    column's type, unit, checksum and length) is checked next. Then every event is read:
    checksums, the order of pairs, crystals and TOF bins that exist, known values of truth.

    Parameters
    ----------
    path, header
        As for :func:`listmode.formats.open_listmode`.

    Raises
    ------
    InputError
        If the file cannot be opened at all.
    """
    with open_listmode(path, header=header) as source:
        inherited: tuple[str, ...] = ()
        structure: tuple[str, ...] = ()
        if isinstance(source, Hdf5Listmode):
            inherited, structure = source.inherited_defects, source.check_structure()
        faults = [*source.defects[len(inherited) :], *structure]
        if not source.is_complete and not faults:
            faults.append("the file is incomplete")
        counts = dict.fromkeys(_STREAMS, 0)
        total = sum(source.count(source.extent, stream) for stream in _STREAMS)
        with progress.stage("validate", total) as stage:
            for stream in _STREAMS:
                offset = source.tick_offset(stream)
                for start, stop in source.extent:
                    for first, last in tick_runs(source, start, stop, stream):
                        a, b = (int(offset[t - source.start_ms]) for t in (first, last))
                        counts[stream] += b - a
                        faults += _faults(source, stream, a, b)
                        stage.advance(b - a)
                outside = source.n_events(stream) - counts[stream]
                if outside:
                    faults.append(f"{outside} {stream} lie in time that the file does not hold")
        return Validation(
            source.format_name,
            counts["prompts"],
            counts["delayeds"],
            tuple(faults),
            inherited,
        )


def misfits(source: Listmode, stream: Stream, first: int, last: int) -> I64:
    """Give the numbers of the events in ``[first, last)`` that do not fit the scanner.

    Raises
    ------
    InputError
        If the events cannot be read.
    """
    batch = source.read(stream, first, last)
    scanner = source.scanner
    bad = batch.crystal_b >= scanner.n_crystals
    bad |= (batch.tof_bin < 0) | (batch.tof_bin >= scanner.tof.n_bins)
    return np.flatnonzero(bad) + first


def _faults(source: Listmode, stream: Stream, a: int, b: int) -> list[str]:
    try:
        bad = misfits(source, stream, a, b)
        truth = source.read_truth(a, b) if stream == "prompts" else None
    except InputError as error:
        return [str(error)]
    faults = []
    if bad.size:
        faults.append(
            f"{bad.size} {stream} name a crystal or TOF bin that the scanner does not "
            f"have; the first is event {bad[0]}"
        )
    if truth is not None and truth.size and truth.max() > 2:
        faults.append(f"truth of {int((truth > 2).sum())} prompts is none of 0, 1 and 2")
    return faults
