"""CASToR list-mode data files (``.cdh`` header, ``.cdf`` events), in and out.

An event is a uint32 time in ms, float32 correction factors as the header's flags say, the
float32 arrival-time difference ``t_1 - t_2`` in ps (so CASToR's GATE converter writes it), and
two uint32 crystal numbers. Crystals are rows of the scanner's look-up table: float32 x, y and z
in mm and the direction of the crystal's axis.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats._mapped import MAX_TICKS, MappedListmode, is_file, map_file
from listmode.formats._petsird_scanner import ring_slots, transaxial_slots
from listmode.formats._scanner_text import read_description
from listmode.formats.castor_writer import STREAMS, event_dtype, write_castor
from listmode.scanner import Scanner, TofModel
from listmode.source import I64, ScanProtocol, Stream
from listmode.windows import Windows

__all__ = ["CastorListmode", "write_castor"]

_BLOCK_EVENTS = 1 << 16
_MAX_TEXT_BYTES = 1 << 20
_MAX_SIDECAR_BYTES = 1 << 28
_UNKNOWN_TOF_BINS = 65
_FACTORS = {  # in the order they are stored
    "attenuation correction flag": "attenuation",
    "scatter correction flag": "scatter",
    "random correction flag": "random",
    "normalization correction flag": "normalization",
}


class CastorListmode(MappedListmode):
    """A CASToR list-mode file, open for reading.

    Parameters
    ----------
    header
        The ``.cdh`` file; data, look-up table and sidecar lie beside it.

    Raises
    ------
    InputError
        If the header is damaged, events are not in order of time, or the scanner is unknown.
    """

    format_name = "CASToR list-mode"

    def __init__(self, header: str | Path) -> None:
        header = Path(header)
        keys = _read_header(header)
        super().__init__(_data_path(header, keys))
        defects: list[str] = []
        ours = _read_sidecar(header.with_suffix(".stillpet.json"))
        has_tof = keys.get("tof information flag", "0") == "1"
        if ours is None:
            self.scanner = _scanner_of_lut(header, keys, has_tof)
            self.protocol, self.crystal_efficiency = ScanProtocol(), None
            self.clock_zero = "time 0 of the CASToR file"
        else:
            self.scanner, self.protocol = ours.scanner, ours.protocol
            self.crystal_efficiency = ours.crystal_efficiency
            self.clock_zero = ours.clock_zero
        factors = [name for key, name in _FACTORS.items() if keys.get(key, "0") == "1"]
        self._dtype = event_dtype(factors, has_tof)
        delayeds = header.with_name(f"{header.stem}_delayeds.cdf")
        self._tables = {
            "prompts": self._map(self._path, defects),
            "delayeds": self._map(delayeds, defects) if delayeds.is_file() else None,
        }
        announced = int(_number(keys, "number of events", header.name))
        n = 0 if self._tables["prompts"] is None else len(self._tables["prompts"])
        self.is_complete = announced <= n and not defects
        if announced > n:
            defects.append(f"truncated: the header announces {announced} events, {n} are there")
        self._index(keys, header.name, None if ours is None else ours.coverage, defects)
        self.notes = (
            *(f"the {name} factors of the events are not used" for name in factors),
            *(("crystals' ring numbers are made from their places",) if ours is None else ()),
        )
        self.defects = tuple(defects)

    def _map(self, path: Path, defects: list[str]) -> NDArray[Any] | None:
        size = path.stat().st_size
        if size % self._dtype.itemsize:
            defects.append(
                f"truncated: the last {size % self._dtype.itemsize} bytes of the events are no "
                "whole event"
            )
        return map_file(path, self._dtype) if size >= self._dtype.itemsize else None

    def _index(
        self, keys: dict[str, str], name: str, held: Windows | None, defects: list[str]
    ) -> None:
        start = round(_number(keys, "start time (s)", name) * 1000)
        stop = start + max(round(_number(keys, "duration (s)", name) * 1000), 1)
        if held is not None:
            start, stop = int(held.start_ms[0]), int(held.stop_ms[-1])
        for table in self._tables.values():
            if table is not None:
                start = min(start, int(table["time_ms"][0]))
                stop = max(stop, int(table["time_ms"][-1]) + 1)
        self.start_ms, self.stop_ms = start, stop
        self._check_length()
        self._hold(held)
        self._valid_offset = {s: self._index_stream(s, defects) for s in STREAMS}

    def _index_stream(self, stream: Stream, defects: list[str]) -> I64:
        """Count the valid events of each tick and of each block of events."""
        table = self._tables[stream]
        per_tick = np.zeros(min(self.stop_ms - self.start_ms, MAX_TICKS) + 1, np.int64)
        valid_offset = [0]
        n_left_out, last_time = 0, self.start_ms
        for first in range(0, 0 if table is None else len(table), _BLOCK_EVENTS):
            assert table is not None
            part = table[first : first + _BLOCK_EVENTS]
            time = part["time_ms"].astype(np.int64)
            if time[0] < last_time or (np.diff(time) < 0).any():
                raise InputError(
                    f"events must be in order of time, but those of {self._path.name!r} after "
                    f"event {first} are not; sort the file first"
                )
            last_time = int(time[-1])
            valid = self._valid(part)
            n_left_out += int((~valid).sum())
            np.add.at(per_tick, time[valid] - self.start_ms + 1, 1)
            valid_offset.append(valid_offset[-1] + int(valid.sum()))
        if n_left_out:
            defects.append(
                f"{n_left_out} {stream} name no crystal, one crystal twice or a time "
                "difference outside the TOF bins: left out"
            )
        np.cumsum(per_tick, out=per_tick)
        per_tick.setflags(write=False)
        self._offset[stream] = per_tick
        return np.array(valid_offset, np.int64)

    def _valid(self, part: NDArray[Any]) -> NDArray[np.bool_]:
        n = self.scanner.n_crystals
        one, other = part["crystal_1"], part["crystal_2"]
        bins = self._tof_bins(part)
        fits = (bins >= 0) & (bins < self.scanner.tof.n_bins)
        return np.asarray((one < n) & (other < n) & (one != other) & fits)

    def _tof_bins(self, part: NDArray[Any]) -> NDArray[np.float64]:
        tof = self.scanner.tof
        if "tof_ps" not in (part.dtype.names or ()) or not tof.has_tof:
            return np.zeros(len(part))
        with np.errstate(invalid="ignore", over="ignore"):
            return np.round(
                part["tof_ps"].astype(np.float64) / tof.bin_width_ps + (tof.n_bins - 1) / 2.0
            )

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""
        table, offset = self._tables[stream], self._valid_offset[stream]
        stop_event = min(stop_event, int(offset[-1]))
        if table is None or stop_event <= start_event:
            return EventBatch.empty()
        first = int(np.searchsorted(offset, start_event, side="right")) - 1
        last = int(np.searchsorted(offset, stop_event, side="left"))
        part = table[first * _BLOCK_EVENTS : last * _BLOCK_EVENTS]
        part = part[self._valid(part)]
        part = part[start_event - int(offset[first]) : stop_event - int(offset[first])]
        return EventBatch.from_pairs(
            part["crystal_1"],
            part["crystal_2"],
            self._tof_bins(part).astype(np.int64),
            self.scanner.tof.n_bins,
        )


def _read_header(path: Path) -> dict[str, str]:
    text = path.read_bytes()[:_MAX_TEXT_BYTES].decode("utf-8", "replace")
    keys = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            keys[key.strip().lower()] = value.split("#")[0].strip()
    mode = keys.get("data mode", "").lower().replace("-", "")
    lines = keys.get("maximum number of lines per event", "1")
    per_event = keys.get("per event tof resolution flag", "0")
    if (mode, keys.get("data type"), lines, per_event) != ("listmode", "PET", "1", "0"):
        raise InputError(
            "a CASToR file must hold list-mode PET events of one line and one TOF resolution, "
            f"but {path.name!r} says otherwise (mode {mode[:20]!r}); convert it with CASToR"
        )
    return keys


def _number(keys: dict[str, str], key: str, name: str) -> float:
    try:
        value = float(keys[key])
        if not 0.0 <= value < 2.0**40:
            raise ValueError
    except (KeyError, ValueError):
        raise InputError(
            f"a CASToR header must give {key!r} as a number from 0, but {name!r} has "
            f"{keys.get(key, 'none')[:20]!r}; correct that line"
        ) from None
    return value


def _data_path(header: Path, keys: dict[str, str]) -> Path:
    data = header.parent / Path(keys.get("data filename", "")).name
    if data == header.parent or not is_file(data):
        raise InputError(
            f"a CASToR header must name its data file beside it, but {header.name!r} names "
            f"{data.name!r}, which is not there; put the data file into the same folder"
        )
    return data


def _read_sidecar(path: Path) -> Any:
    if not path.is_file() or path.stat().st_size > _MAX_SIDECAR_BYTES:
        return None
    try:
        text = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise InputError(
            f"the sidecar {path.name!r} must be JSON, but it is damaged; remove it to read the "
            "scan by its look-up table"
        ) from None
    return read_description(text) if isinstance(text, str) else None


def _scanner_of_lut(header: Path, keys: dict[str, str], has_tof: bool) -> Scanner:
    """Make a scanner of the look-up table that lies beside the header."""
    name = Path(keys.get("scanner name", "")).name
    lut = header.parent / f"{name}.lut"
    if not name or not is_file(lut):
        raise InputError(
            f"a CASToR scan needs its scanner's look-up table, but {lut.name!r} is not beside "
            f"{header.name!r}; copy it there (a .geom file must be turned into a .lut first)"
        )
    rows = map_file(lut, "<f4")
    with np.errstate(invalid="ignore"):  # signalling NaN of a damaged table
        rows = rows[: len(rows) // 6 * 6].reshape(-1, 6).astype(np.float64)
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise InputError(
            f"a CASToR look-up table must hold six finite numbers a crystal, but {lut.name!r} "
            f"does not ({len(rows)} crystals); copy it again"
        )
    place, normal = rows[:, :3], rows[:, 3:]
    outward = np.where((place[:, :2] * normal[:, :2]).sum(axis=1) < 0, -1.0, 1.0)
    normal = normal * outward[:, None]
    ring, around = ring_slots(place[:, 2]), transaxial_slots(place[:, :2])
    step_mm = np.diff(np.unique(np.round(place[:, 2], 3)))
    pitch = float(np.median(step_mm)) if step_mm.size else 4.0
    tof = TofModel(1, 4726.62, math.inf)
    if has_tof:
        window_ps = _number(keys, "list tof measurement range (ps)", header.name)
        key = "list tof quantization bin size (ps)"
        width_ps = _number(keys, key, header.name) if keys.get(key) else 0.0
        is_binned = width_ps * 32_767 > window_ps  # as many as an event can name
        n_bins = round(window_ps / width_ps) if is_binned else _UNKNOWN_TOF_BINS
        fwhm_ps = _number(keys, "tof resolution (ps)", header.name)
        tof = TofModel(min(max(n_bins, 1), 32_767), window_ps / max(n_bins, 1), fwhm_ps)
    return Scanner(
        name=name,
        crystal_position_mm=place.astype(np.float32),
        crystal_normal=normal.astype(np.float32),
        crystal_ring=ring,
        crystal_transaxial=around,
        n_rings=int(ring.max()) + 1,
        n_transaxial=int(around.max()) + 1,
        crystal_size_mm=(pitch, pitch, 20.0),
        crystal_pitch_mm=(pitch, pitch),
        max_ring_difference=int(ring.max()),
        fov_radius_mm=float(np.hypot(place[:, 0], place[:, 1]).max()),
        doi_mm=0.0,
        stopping_per_mm=0.083,  # LSO; the table gives places only
        window_efficiency=1.0,
        energy_window_kev=(435.0, 585.0),  # not in the file
        energy_resolution=0.10,
        background_singles_hz=0.0,
        tof=tof,
        crystal_profile=np.ones(len(place), np.float32),
    )


def recognise(path: Path, head: bytes) -> bool:
    """Say whether a file is a CASToR header, or the data file of one beside it."""
    text = head.decode("latin-1").lower()
    if "data filename" in text and "data mode" in text:
        return True
    return path.suffix.lower() == ".cdf" and path.with_suffix(".cdh").is_file()


def open_file(path: Path, header: Path | None) -> CastorListmode:
    """Open CASToR data by their header or data file."""
    if header is None:
        header = path.with_suffix(".cdh") if path.suffix.lower() == ".cdf" else path
    return CastorListmode(header)
