"""Write any scan for CASToR: headers, events, the scanner's look-up table and a sidecar."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats._atomic import atomic_path
from listmode.formats._scanner_text import write_description
from listmode.formats.ticks import tick_runs
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode, Stream

STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


def event_dtype(factors: list[str], has_tof: bool) -> np.dtype[Any]:
    """Give the layout of an event: time, correction factors, TOF if any, two crystals."""
    fields = [("time_ms", "<u4"), *((name, "<f4") for name in factors)]
    if has_tof:
        fields.append(("tof_ps", "<f4"))
    return np.dtype([*fields, ("crystal_1", "<u4"), ("crystal_2", "<u4")])


def castor_files(path: Path) -> tuple[Path, ...]:
    """Name the files that :func:`write_castor` makes for the header ``NAME.cdh``."""
    endings = (".cdh", ".cdf", "_delayeds.cdh", "_delayeds.cdf", ".lut", ".hscan")
    return tuple(path.parent / f"{path.stem}{e}" for e in (*endings, ".stillpet.json"))


def write_castor(source: Listmode, path: str | Path, *, progress: Progress = SILENT) -> None:
    """Write a scan for CASToR: header, events, scanner look-up table and a sidecar.

    Beside ``NAME.cdh`` and ``NAME.cdf`` (prompts) lie ``NAME_delayeds.cdh`` and ``.cdf``,
    ``NAME.lut`` and ``NAME.hscan`` (for CASToR's scanner folder), and ``NAME.stillpet.json``,
    from which :func:`open_listmode` restores scanner, protocol and time held bit by bit.

    Parameters
    ----------
    source
        Any open scan that starts at or after tick zero.
    path
        The header to make, ``NAME.cdh``.

    Raises
    ------
    InputError
        If the scan starts before tick zero or a file cannot be written.
    """
    path = Path(path)
    if source.start_ms < 0:
        raise InputError(
            f"CASToR counts time from 0, but the scan starts at {source.start_ms} ms; "
            "cut it at tick zero first"
        )
    name = path.stem
    with ExitStack() as stack:  # all files appear at the end, or none; the header last
        parts = {p.name: stack.enter_context(atomic_path(p)) for p in castor_files(path)}
        for stream in STREAMS:
            own = name if stream == "prompts" else f"{name}_delayeds"
            header = _header(source, stream, own, name)
            parts[f"{own}.cdh"].write_text(header, "utf-8")
        description = json.dumps(write_description(source))
        parts[f"{name}.stillpet.json"].write_text(description, "utf-8")
        parts[f"{name}.hscan"].write_text(_scanner_text(source.scanner, name), "utf-8")
        parts[f"{name}.lut"].write_bytes(_look_up_table(source.scanner))
        total = sum(source.count(source.extent, stream) for stream in STREAMS)
        with progress.stage("write CASToR", total) as stage:
            for stream in STREAMS:
                own = name if stream == "prompts" else f"{name}_delayeds"
                with parts[f"{own}.cdf"].open("wb") as file:
                    for start, stop in source.extent:
                        for first, last in tick_runs(source, start, stop, stream):
                            events = _event_table(source, stream, first, last)
                            file.write(events.tobytes())
                            stage.advance(len(events))


def _event_table(source: Listmode, stream: Stream, first: int, last: int) -> NDArray[Any]:
    tof = source.scanner.tof
    offset = source.tick_offset(stream)[first - source.start_ms : last - source.start_ms + 1]
    batch = source.read(stream, int(offset[0]), int(offset[-1]))
    table = np.empty(len(batch), event_dtype([], tof.has_tof))
    table["time_ms"] = np.repeat(np.arange(first, last), np.diff(offset))
    table["crystal_1"], table["crystal_2"] = batch.crystal_a, batch.crystal_b
    if tof.has_tof:
        table["tof_ps"] = (batch.tof_bin - (tof.n_bins - 1) / 2.0) * tof.bin_width_ps
    return table


def _header(source: Listmode, stream: Stream, own: str, scanner_name: str) -> str:
    tof = source.scanner.tof
    lines = [
        f"Data filename: {own}.cdf",
        f"Number of events: {source.n_events(stream)}",
        "Data mode: list-mode",
        "Data type: PET",
        f"Start time (s): {source.start_ms / 1000:.3f}",
        f"Duration (s): {(source.stop_ms - source.start_ms) / 1000:.3f}",
        f"Scanner name: {scanner_name}",
        "Calibration factor: 1",
        "Attenuation correction flag: 0",
        "Normalization correction flag: 0",
        "Scatter correction flag: 0",
        "Random correction flag: 0",
        f"TOF information flag: {int(tof.has_tof)}",
    ]
    if tof.has_tof:
        lines += [
            f"TOF resolution (ps): {tof.fwhm_ps!r}",
            f"List TOF measurement range (ps): {tof.window_ps!r}",
            f"List TOF quantization bin size (ps): {tof.bin_width_ps!r}",
        ]
    return "\n".join(lines) + "\n"


def _look_up_table(scanner: Scanner) -> bytes:
    rows = np.concatenate((scanner.crystal_position_mm, scanner.crystal_normal), axis=1)
    return np.ascontiguousarray(rows, "<f4").tobytes()


def _scanner_text(scanner: Scanner, name: str) -> str:
    tangential, axial, radial = scanner.crystal_size_mm
    return (
        "modality: PET\n"
        f"scanner name: {name}\n"
        f"number of elements: {scanner.n_crystals}\n"
        "number of layers: 1\n"
        f"crystals size depth: {radial!r}\n"
        f"crystals size transaxial: {tangential!r}\n"
        f"crystals size axial: {axial!r}\n"
        f"mean depth of interaction: {scanner.doi_mm!r}\n"
        f"scanner radius: {scanner.crystal_radius_mm!r}\n"
        "voxels number transaxial: 200\nvoxels number axial: 200\n"
        f"field of view transaxial: {2 * scanner.fov_radius_mm!r}\n"
        f"field of view axial: {scanner.axial_length_mm!r}\n"
    )
