"""SAFIR listmode: 64-bit records of a small-animal insert, and its crystal map.

A record is a time tag (bit 63 set; the low 48 bits count ms) or an event: rings (8 bits each),
places around the ring (16 each), layers (4 each), and bit 62 for delayeds. The crystal map is a
text table of ring, place, x, y and z in mm; its axes are the scanner frame's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _kernels
from listmode.formats._mapped import MappedListmode, map_file
from listmode.scanner import Scanner, TofModel
from listmode.source import ScanProtocol, Stream

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]

SIGNATURE = b"MUPET CListModeData\0"
_HEADER_BYTES = 32  # the signature and bytes that its writer leaves as they are
_MAX_JUMP_MS = 600_000
_MAX_MAP_BYTES = 1 << 26
_CRYSTAL_LENGTH_MM = 13.0  # the map gives places only; nothing of the image depends on it


class SafirListmode(MappedListmode):
    """A SAFIR listmode file, open for reading.

    Time tags come every few ten ms, and an event counts at the tick of the tag before it.

    Attributes
    ----------
    tags
        Prompts, delayeds and time tags in the file, before anything is left out.

    Parameters
    ----------
    path
        The file of records.
    crystal_map
        The table of crystals.

    Raises
    ------
    InputError
        If the file or its map is damaged, or there is no time tag.
    """

    format_name = "SAFIR listmode"

    def __init__(self, path: str | Path, crystal_map: str | Path) -> None:
        super().__init__(Path(path))
        raw = map_file(self._path, "<u1")
        n_words = (raw.size - _HEADER_BYTES) // 8
        if raw[: len(SIGNATURE)].tobytes() != SIGNATURE or n_words < 1:
            raise InputError(
                f"a SAFIR file must hold its signature and records, but {self._path.name!r} "
                f"has {raw.size} bytes without them; copy it again"
            )
        self._words: NDArray[np.int64] = raw[_HEADER_BYTES : _HEADER_BYTES + 8 * n_words].view(
            "<i8"
        )
        self.scanner, self._table = _read_map(Path(crystal_map))
        self.protocol = ScanProtocol()
        self.crystal_efficiency = None
        self.clock_zero = "time tag 0 of the listmode stream"
        found = np.zeros(7, np.int64)
        _kernels.survey_safir(self._words, _MAX_JUMP_MS, found)
        if found[4] < 0:
            raise InputError(
                f"a SAFIR file must hold time tags, but {self._path.name!r} has none in "
                f"{n_words} records; it is truncated"
            )
        self.start_ms, self.stop_ms = int(found[4]), int(found[5]) + 1
        self._check_length()
        self._hold(None)
        self.tags: Mapping[str, int] = {
            "prompts": int(found[0]),
            "delayeds": int(found[1]),
            "time tags": int(found[2]),
            "events before the first time tag": int(found[3]),
        }
        n_rejected = self._index()
        step_ms = (self.stop_ms - self.start_ms) / max(found[2], 1)
        self.notes = (
            f"a time tag comes every {step_ms:.0f} ms: events have no finer time",
            "the crystal map gives places only, used as they are; sizes are the pitch, and an "
            "energy window of 350-650 keV is assumed",
        )
        extra = (raw.size - _HEADER_BYTES) % 8
        self.is_complete = not extra
        self.defects = tuple(
            text
            for n, text in (
                (found[3], f"{found[3]} events before the first time tag are in no window"),
                (found[6], f"{found[6]} time tags go back or jump more than 10 min: ignored"),
                (n_rejected, f"{n_rejected} events name no crystal of the map: left out"),
                (extra, f"truncated: the last {extra} bytes are no whole record"),
            )
            if n
        )

    def _index(self) -> int:
        n_ticks = self.stop_ms - self.start_ms
        self._word_at = np.zeros(n_ticks + 1, np.int64)
        prompts, delayeds = np.zeros(n_ticks + 1, np.int64), np.zeros(n_ticks + 1, np.int64)
        n_rejected = _kernels.index_safir(
            self._words, _MAX_JUMP_MS, self.start_ms, self._table, self._word_at, prompts,
            delayeds,
        )  # fmt: skip
        for offset in (prompts, delayeds):
            offset.setflags(write=False)
        self._offset = {"prompts": prompts, "delayeds": delayeds}
        return int(n_rejected)

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""
        offset = self._offset[stream]
        n = max(min(stop_event, int(offset[-1])) - start_event, 0)
        a, b = np.empty(n, np.uint32), np.empty(n, np.uint32)
        if n:
            tick = int(np.searchsorted(offset, start_event, side="right")) - 1
            _kernels.decode_safir(
                self._words, int(self._word_at[tick]), start_event - int(offset[tick]),
                int(stream == "delayeds"), self._table, a, b,
            )  # fmt: skip
        return EventBatch(a, b, np.zeros(n, np.int16))


def _read_map(path: Path) -> tuple[Scanner, I32]:
    """Make the scanner of a crystal map, and the crystal of each ring and place."""
    try:
        if path.stat().st_size > _MAX_MAP_BYTES:
            raise ValueError("more than 64 MiB")
        lines = path.read_text("ascii").splitlines()
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        table = np.array(rows, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != 5 or not np.isfinite(table).all():
            raise ValueError("not five finite numbers a line")
        ring, around = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
        if ring.min() < 0 or around.min() < 0 or ring.max() > 255 or around.max() > 65_535:
            raise ValueError("rings beyond 0-255 or places beyond 0-65535")
    except OSError as error:
        raise InputError(
            f"a SAFIR crystal map must be readable, but {path.name!r} is not: "
            f"{error.strerror}; check its path"
        ) from None
    except ValueError as error:
        raise InputError(
            "a SAFIR crystal map must list ring, place, x, y and z of each crystal, but "
            f"{path.name!r} does not ({error}); give the map that belongs to the scanner"
        ) from None
    order = np.lexsort((around, ring))
    number = np.full((int(ring.max()) + 1, int(around.max()) + 1), -1, np.int32)
    number[ring[order], around[order]] = np.arange(len(order))
    return _scanner(table[order, 2:], ring[order], around[order], number), number


def _scanner(
    place_mm: F64, ring: NDArray[np.int64], around: NDArray[np.int64], number: I32
) -> Scanner:
    radius_mm = np.hypot(place_mm[:, 0], place_mm[:, 1])
    normal = np.zeros_like(place_mm)
    normal[:, :2] = place_mm[:, :2] / np.maximum(radius_mm, 1e-9)[:, None]
    z_mm = np.unique(place_mm[:, 2])
    axial_mm = float(np.median(np.diff(z_mm))) if z_mm.size > 1 else 1.0
    pitch_mm = (2.0 * math.pi * float(radius_mm.mean()) / number.shape[1], axial_mm)
    return Scanner(
        name="SAFIR (crystal map)",
        crystal_position_mm=place_mm.astype(np.float32),
        crystal_normal=normal.astype(np.float32),
        crystal_ring=ring.astype(np.int32),
        crystal_transaxial=around.astype(np.int32),
        n_rings=number.shape[0],
        n_transaxial=number.shape[1],
        crystal_size_mm=(*pitch_mm, _CRYSTAL_LENGTH_MM),
        crystal_pitch_mm=pitch_mm,
        max_ring_difference=number.shape[0] - 1,
        fov_radius_mm=float(radius_mm.max()),
        doi_mm=0.0,
        stopping_per_mm=0.081,  # LYSO, as for the presets
        window_efficiency=1.0,
        energy_window_kev=(350.0, 650.0),  # the file does not say
        energy_resolution=0.15,
        background_singles_hz=0.0,
        tof=TofModel(1, 1000.0, math.inf),
        crystal_profile=np.ones(len(ring), np.float32),
    )


def _find_map(path: Path) -> Path | None:
    """Find the one crystal map beside a file."""
    maps = []
    for other in sorted(path.parent.iterdir()):
        if other == path or not other.is_file():
            continue
        with other.open("rb") as file:
            if file.read(5) == b"#ring":
                maps.append(other)
    return maps[0] if len(maps) == 1 else None


def recognise(path: Path, head: bytes) -> bool:
    """Say whether a file begins as SAFIR listmode."""
    del path
    return head.startswith(SIGNATURE)


def open_file(path: Path, header: Path | None) -> SafirListmode:
    """Open SAFIR listmode; its crystal map is given as header or lies beside it.

    Raises
    ------
    InputError
        If there is not exactly one crystal map.
    """
    found = header or _find_map(path)
    if found is None:
        raise InputError(
            f"SAFIR listmode needs its crystal map, but there is not exactly one beside "
            f"{path.name!r}; put one into the same folder or give it as header"
        )
    return SafirListmode(path, found)
