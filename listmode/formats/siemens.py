"""Siemens 32-bit listmode of the Biograph mMR: PETLINK words and their Interfile header.

A word is a tag (bit 31 set; time tags have top bits 100 and count ms) or an event: bit 30 tells
prompts (1) from delayeds (0), the rest is an address in a span-1 sinogram. The layout is that
of STIR's reader (CListRecordECAT8_32bit, stir_ecat_common, ProjDataInfoCylindricalNoArcCorr).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _kernels
from listmode.formats._mapped import MappedListmode, is_file, map_file
from listmode.formats.scanner_file import load_scanner
from listmode.source import F18_BRANCHING, F18_HALF_LIFE_S, I64, ScanProtocol, Stream

I32 = NDArray[np.int32]

N_TANGENTIAL, N_VIEWS, N_SLOTS = 344, 252, 504
N_RINGS, MAX_RING_DIFFERENCE, SLOTS_PER_BLOCK = 64, 60, 9
_MAX_JUMP_MS = 600_000  # a clock that goes on after a longer pause is not one scan
_MAX_HEADER_BYTES = 1 << 18


@cache
def transaxial_pairs() -> tuple[I32, I32]:
    """Give the two crystals around the ring of each (view, tangential) address.

    Returns
    -------
    pair_0, pair_1
        Number of the crystal among the 448 real ones of a ring, -1 (in both) if a slot of the
        pair holds no crystal. Shape (252 * 344,), int32.

    Notes
    -----
    Slots ``v + floor(t / 2)`` and ``v - ceil(t / 2) + 252`` modulo 504 for view v and
    tangential position t (STIR, ProjDataInfoCylindricalNoArcCorr). The first of the nine slots
    of a block is empty.
    """
    view, tangential = np.meshgrid(
        np.arange(N_VIEWS), np.arange(N_TANGENTIAL) - N_TANGENTIAL // 2, indexing="ij"
    )
    slot_0 = (view + (tangential >> 1)) % N_SLOTS
    slot_1 = (view - ((tangential + 1) >> 1) + N_SLOTS // 2) % N_SLOTS
    empty = (slot_0 % SLOTS_PER_BLOCK == 0) | (slot_1 % SLOTS_PER_BLOCK == 0)
    pairs = []
    for slot in (slot_0, slot_1):
        crystal = slot // SLOTS_PER_BLOCK * (SLOTS_PER_BLOCK - 1) + slot % SLOTS_PER_BLOCK - 1
        pairs.append(_frozen(np.where(empty, -1, crystal).ravel()))
    return pairs[0], pairs[1]


def _frozen(values: NDArray[np.integer]) -> I32:
    array: I32 = values.astype(np.int32)
    array.setflags(write=False)
    return array


@cache
def plane_rings() -> tuple[I32, I32]:
    """Give the rings of the first and the second crystal of each plane.

    Returns
    -------
    ring_0, ring_1
        Shape (4084,), int32.

    Notes
    -----
    Planes go by segment, ``ring_1 - ring_0`` = 0, -1, +1, -2, +2, ... (STIR,
    ``ecat::find_segment_sequence``), and within a segment by rising z.
    """
    ring_0: list[int] = []
    ring_1: list[int] = []
    for k in range(2 * MAX_RING_DIFFERENCE + 1):
        difference = (k + 1) // 2 * (-1 if k % 2 else 1)
        low = np.arange(N_RINGS - abs(difference))
        ring_0.extend(low + max(-difference, 0))
        ring_1.extend(low + max(difference, 0))
    return _frozen(np.array(ring_0)), _frozen(np.array(ring_1))


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Give the crystals of transaxial addresses and the first ones of planes, two in one."""
    n_around = N_SLOTS // SLOTS_PER_BLOCK * (SLOTS_PER_BLOCK - 1)
    pair = [crystal.astype(np.uint32) for crystal in transaxial_pairs()]  # -1: all bits set
    start = [ring.astype(np.uint32) * np.uint32(n_around) for ring in plane_rings()]
    half, all_bits = np.uint32(16), np.uint32(0xFFFF)
    both, starts = ((low & all_bits) | (high << half) for low, high in (pair, start))
    return both, starts


class SiemensListmode(MappedListmode):
    """A Siemens mMR listmode file, open for reading.

    Events before the first time tag belong to no tick: they are in no window, and ``defects``
    counts them. Without TOF every event has bin 0.

    Attributes
    ----------
    tags
        Prompts, delayeds and tags in the file, before anything is left out.

    Parameters
    ----------
    path
        The file of words.
    header
        Its Interfile header.

    Raises
    ------
    InputError
        If the header is no such header or describes another scanner, or there is no time tag.
    """

    format_name = "Siemens 32-bit listmode"

    def __init__(self, path: str | Path, header: str | Path) -> None:
        super().__init__(Path(path))
        keys = _read_header(Path(header))
        _check_header(keys, Path(header).name)
        self.scanner = load_scanner("mmr")
        self.protocol = _protocol(keys)
        self.crystal_efficiency = None
        self.clock_zero = "time tag 0 of the listmode stream"
        start = _count(keys, "data offset in bytes") // 4
        self._words: NDArray[np.uint32] = map_file(self._path, "<u4")[start:]
        self._pair, self._plane_start = _tables()
        found = np.zeros(9, np.int64)
        _kernels.survey_siemens(self._words, _MAX_JUMP_MS, found)
        if found[5] < 0:
            raise InputError(
                f"a Siemens listmode file must hold time tags, but {self._path.name!r} has "
                f"none in {self._words.size} words; it is truncated or another format"
            )
        self.start_ms, self.stop_ms = int(found[5]), int(found[6]) + 1
        self._check_length()
        self._hold(None)
        self.tags: Mapping[str, int] = {
            "prompts": int(found[0]),
            "delayeds": int(found[1]),
            "time tags": int(found[2]),
            "other tags": int(found[3]),
            "events before the first time tag": int(found[4]),
        }
        rejected = self._index()
        self.is_complete = True
        self.notes = ("each 1 ms tick holds the events after its time tag",)
        self.defects = tuple(self._find_defects(keys, found, rejected))

    def _index(self) -> I64:
        n_ticks = self.stop_ms - self.start_ms
        self._word_at = np.zeros(n_ticks + 1, np.int64)
        prompts, delayeds = np.zeros(n_ticks + 1, np.int64), np.zeros(n_ticks + 1, np.int64)
        rejected = np.zeros(2, np.int64)
        _kernels.index_siemens(
            self._words, _MAX_JUMP_MS, self.start_ms, self._pair != _kernels.NO_CRYSTAL,
            self._plane_start.size, self._word_at, prompts, delayeds, rejected,
        )  # fmt: skip
        for offset in (prompts, delayeds):
            offset.setflags(write=False)
        self._offset = {"prompts": prompts, "delayeds": delayeds}
        return rejected

    def _find_defects(self, keys: Mapping[str, str], found: I64, rejected: I64) -> list[str]:
        defects = []
        if found[4]:
            defects.append(
                f"{found[4]} events before the first time tag have no time and are in no window"
            )
        if found[7]:
            defects.append(f"{found[7]} time tags go back or jump more than 10 min: ignored")
        if rejected[0]:
            defects.append(f"{rejected[0]} events name a slot without crystal: left out")
        if rejected[1]:
            defects.append(f"{rejected[1]} events lie outside the sinogram: left out")
        table = [int(n) for n in re.findall(r"\d{1,18}", keys.get("segment table", ""))]
        plane = int(found[8]) // (N_TANGENTIAL * N_VIEWS)
        n_planes = self._plane_start.size
        if table and plane >= sum(table):
            defects.append(
                f"the header's segment table ({len(table)} segments, {sum(table)} planes) is "
                f"not that of the events: they name plane {plane} of the {n_planes} "
                "of a span-1 sinogram with ring differences up to 60"
            )
        extra = self._path.stat().st_size % 4
        announced = _count(keys, "total listmode word counts")
        if extra:
            defects.append(f"truncated: the last {extra} bytes are no whole word")
        if announced > self._words.size:
            defects.append(
                f"truncated: the header announces {announced} words, the file holds "
                f"{self._words.size}"
            )
        self.is_complete = not extra and announced <= self._words.size
        return defects

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""
        offset = self._offset[stream]
        stop_event = min(stop_event, int(offset[-1]))
        n = max(stop_event - start_event, 0)
        a, b = np.empty(n, np.uint32), np.empty(n, np.uint32)
        if n:
            tick = int(np.searchsorted(offset, start_event, side="right")) - 1
            _kernels.decode_siemens(
                self._words, int(self._word_at[tick]), start_event - int(offset[tick]),
                stream == "prompts", self._pair, self._plane_start, a, b,
            )  # fmt: skip
        return EventBatch(a, b, np.zeros(n, np.int16))


def _read_header(path: Path) -> dict[str, str]:
    """Read an Interfile header's keys, in small letters and without their marks."""
    try:
        text = path.read_bytes()[:_MAX_HEADER_BYTES].decode("latin-1")
    except OSError as error:
        raise InputError(
            f"a Siemens listmode header must be readable, but {path.name!r} is not: "
            f"{error.strerror}; check its path"
        ) from None
    keys = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":=")
        if separator:
            keys[key.strip().lstrip("!%").strip().lower()] = value.strip()
    return keys


def _count(keys: Mapping[str, str], key: str) -> int:
    """Read a count of the header, 0 if it has none."""
    text = keys.get(key) or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 2.0**62:
        raise InputError(
            f"the header's {key!r} must be a count, but it is {text[:20]!r}; correct that line"
        )
    return int(value)


def _check_header(keys: Mapping[str, str], name: str) -> None:
    expected = {
        "lm event and tag words format (bits)": 32,
        "number of projections": N_TANGENTIAL,
        "number of views": N_VIEWS,
        "number of rings": N_RINGS,
        "maximum ring difference": MAX_RING_DIFFERENCE,
        "number of tof time bins": 1,
    }
    for key, value in expected.items():
        text = keys.get(key)
        if text is None:
            raise InputError(
                f"a Siemens listmode header must have the key {key!r}, but {name!r} has not; "
                "give the header of the listmode file"
            )
        if text != str(value):
            raise InputError(
                f"only the word layout of the Siemens mMR is public ({key} = {value}), but "
                f"{name!r} says {text[:20]!r}; convert the scan to PETSIRD and open that"
            )


def _protocol(keys: Mapping[str, str]) -> ScanProtocol:
    def number(key: str) -> float | None:
        try:
            value = float(keys[key])
        except (KeyError, ValueError):
            return None
        return value if np.isfinite(value) and value > 0 else None

    return ScanProtocol(
        tracer=keys.get("radiopharmaceutical") or "unknown",
        half_life_s=number("isotope gamma halflife (sec)") or F18_HALF_LIFE_S,
        branching=number("isotope branching factor") or F18_BRANCHING,
        injected_activity_bq=number("tracer activity at time of injection (bq)"),
        injection_time_s=_injection_time_s(keys),
    )


def _injection_time_s(keys: Mapping[str, str]) -> float | None:
    """Give injection less study time, s; the study's time is that of the first tag."""
    times = []
    for what in ("tracer injection", "study"):
        date = keys.get(f"{what} date (yyyy:mm:dd)", "")
        key = f"{what} time (hh:mm:ss gmt+00:00)"
        try:
            times.append(datetime.strptime(f"{date} {keys.get(key)}", "%Y:%m:%d %H:%M:%S"))
        except ValueError:
            return None
    return (times[0] - times[1]).total_seconds()


def _looks_like_words(head: bytes) -> bool:
    """Say whether all events of the first words lie in the sinogram and a tag is among them."""
    words = np.frombuffer(head[: len(head) // 4 * 4], "<u4")
    events = words[words < 0x80000000]
    tags = words[(words >= 0x80000000) & (words < 0xA0000000)]
    limit = N_TANGENTIAL * N_VIEWS * len(plane_rings()[0])
    return bool(
        events.size >= 32 and tags.size and ((events & 0x3FFFFFFF) < limit).all()
        and (np.diff(tags.astype(np.int64)) >= 0).all()
    )  # fmt: skip


def _is_header(head: bytes) -> bool:
    text = head.decode("latin-1").lower()
    return text.lstrip().startswith("!interfile") and "petlink" in text


def _find_header(path: Path) -> Path | None:
    """Find the header in the same folder that names a data file."""
    for other in sorted(path.parent.iterdir()):
        if other == path or not other.is_file() or other.stat().st_size > _MAX_HEADER_BYTES:
            continue
        with other.open("rb") as file:
            if not _is_header(file.read(4096)):
                continue
        if _read_header(other).get("name of data file") == path.name:
            return other
    return None


def _is_wrapped(path: Path, head: bytes) -> bool:
    """Say whether a file is a ``.ptd`` (words, then DICOM) or begins as DICOM."""
    return path.suffix.lower() == ".ptd" or head[128:132] == b"DICM"


def recognise(path: Path, head: bytes) -> bool:
    """Say whether a file is Siemens listmode: a header, its words, or words in DICOM."""
    if _is_header(head) or _looks_like_words(head) or _is_wrapped(path, head):
        return True
    try:
        return _find_header(path) is not None
    except OSError:
        return False


def open_file(path: Path, header: Path | None) -> SiemensListmode:
    """Open Siemens listmode by its data file or its header.

    Raises
    ------
    InputError
        If data or header is missing, or the words are wrapped in DICOM (``.ptd``).
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if _is_wrapped(path, head) and header is None:
        raise InputError(
            "listmode must not be wrapped in DICOM, as in Siemens .ptd files, whose word "
            f"layout is not public, but {path.name!r} is; export the scan to PETSIRD, or give "
            "a 32-bit mMR file with header"
        )
    is_header = _is_header(head)
    if is_header:
        data = path.parent / Path(_read_header(path).get("name of data file", "")).name
        if data == path.parent or not is_file(data):
            raise InputError(
                f"a listmode header must name its data file beside it, but {path.name!r} names "
                f"{data.name!r}, which is not there; put the data file into the same folder"
            )
        return SiemensListmode(data, path)
    found = header or _find_header(path)
    if found is None:
        raise InputError(
            f"Siemens listmode needs its header, but no header beside {path.name!r} names it; "
            "put the header into the same folder or give it as header"
        )
    return SiemensListmode(path, found)
