"""PETSIRD files (binary), all versions, decoded by the schema that each file carries.

Time lies in blocks: an event carries no time of its own and is put at the first tick of its
block. The scanner frame is the file's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _kernels, _yardl
from listmode.formats._live import live_fraction
from listmode.formats._mapped import MappedListmode, map_file
from listmode.formats._petsird_blocks import describe_blocks
from listmode.formats._petsird_scanner import build_detector, read_protocol
from listmode.formats._scanner_text import read_description
from listmode.source import I64, Stream

_RUN_EVENTS = 1 << 16
_MAX_DESCRIBED = 2_000  # blocks of a kind that are summed up when a file is opened
_MAX_LIVE = 20_000  # steps of live time; the last one holds on
_STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")
_BLOCK, _STREAM, _PAIR, _OFFSET, _N_RAW, _N_VALID = range(6)


class PetsirdListmode(MappedListmode):
    """A PETSIRD file, open for reading.

    Windows hold a time block if they hold its first millisecond. Pairs are put in canonical
    order; PETSIRD's TOF index rises with ``t_0 - t_1`` and goes along. Delayeds are a stream;
    singles, triples and energy bins of events are not carried. Neither are bed and gantry
    moves, dead time, singles' histograms and signals, but ``notes`` sums them up and
    :meth:`blocks` yields them.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If it is no PETSIRD file or is damaged so that not even part of it can be read.
    """

    format_name = "PETSIRD"

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        self._data = map_file(self._path, "<u1")
        schema, offset = _yardl.read_preamble(self._data)
        if schema.protocol != "PETSIRD" or not {"header", "timeBlocks"} <= set(schema.steps):
            raise InputError(
                f"a yardl file must hold PETSIRD data, but {self._path.name!r} holds "
                f"{schema.protocol[:40]!r}; choose another file"
            )
        decoder = _yardl.Decoder(self._data, offset)
        try:
            header: dict[str, Any] = decoder.value(schema.steps["header"])
        except _yardl.Truncated:
            raise InputError(
                f"{self._path.name!r} must hold a whole PETSIRD header, but it ends within it, "
                f"at byte {len(self._data)}; copy the file again"
            ) from None
        defects: list[str] = []
        self._detector = build_detector(header)
        self.scanner = self._detector.scanner
        self.crystal_efficiency = self._detector.crystal_efficiency
        self.protocol = read_protocol(header.get("exam"), defects)
        self.clock_zero = (
            "the PETSIRD clock's zero; events count at the start of their time block"
        )
        self._block_type = schema.steps["timeBlocks"]
        self._index(decoder.offset, defects)
        self._hold(None)
        self._restore(header)
        self.notes = (*self._detector.notes, *self._describe_blocks())
        self.live = live_fraction(self._some_blocks("DeadTimeTimeBlock", _MAX_LIVE))
        self.defects = tuple(defects)

    def _restore(self, header: dict[str, Any]) -> None:
        """Take our own description of the scan, if stillpet wrote the file."""
        efficiencies = header["scanner"].get("detectionEfficiencies") or {}
        ours = read_description(str(efficiencies.get("methodDescription", "")))
        if ours is None:
            return
        theirs = self.scanner
        if (ours.scanner.n_crystals, ours.scanner.tof.n_bins) != (
            theirs.n_crystals,
            theirs.tof.n_bins,
        ):
            raise InputError(
                f"{self._path.name!r} must describe one scanner, but its two "
                f"descriptions differ ({ours.scanner.n_crystals} and {theirs.n_crystals} "
                "crystals); write it again"
            )
        self.scanner, self.protocol = ours.scanner, ours.protocol
        self.crystal_efficiency = ours.crystal_efficiency
        self.clock_zero = ours.clock_zero
        self._hold(ours.coverage)

    def _index(self, offset: int, defects: list[str]) -> None:
        """Walk the file once: where are which events, and what is wrong."""
        program = _yardl.Program(self._block_type)
        d = self._detector
        bad = np.zeros(3, np.int64)
        blocks: list[I64] = []
        runs: list[I64] = []
        n_blocks, n_in_batch, n_rows = 0, 0, 1 << 12
        while True:
            some_blocks = np.empty((n_rows, 4), np.int64)
            some_runs = np.empty((n_rows, 6), np.int64)
            status, offset, n_in_batch, nb, nr = _kernels.index_yardl(
                self._data, offset, n_in_batch, program.nodes, program.links, program.root,
                d.n_energy, d.n_bins, d.n_tof, _RUN_EVENTS, some_blocks, some_runs, bad,
            )  # fmt: skip
            some_runs[:nr, _BLOCK] += n_blocks
            blocks.append(some_blocks[:nb])
            runs.append(some_runs[:nr])
            n_blocks += nb
            if status != _kernels.FULL:
                break
            n_rows = min(2 * n_rows, 1 << 22)
            if nb == 0 and n_rows == 1 << 22:
                raise self._damaged("one time block of too many lists of events", offset)
        self._blocks = np.concatenate(blocks)
        self.is_complete = status == _kernels.ENDED
        if status == _kernels.TRUNCATED:
            defects.append(
                f"truncated: the file ends within the time block that begins at byte {offset}; "
                f"the {n_blocks} whole blocks before it are read"
            )
        elif status == _kernels.DAMAGED:
            defects.append(
                f"damaged: the time block at byte {offset} does not follow the file's schema; "
                f"the {n_blocks} blocks before it are read, nothing after it"
            )
        for n, what in zip(
            bad.tolist(), ("an unknown crystal", "an unknown TOF bin", "one crystal twice"),
            strict=True,
        ):  # fmt: skip
            if n:
                defects.append(f"{n} events with {what} are left out")
        self._index_ticks(np.concatenate(runs), defects)

    def _index_ticks(self, runs: I64, defects: list[str]) -> None:
        events = self._blocks[:, 0] == self._event_tag()
        if not events.any():
            raise self._damaged("not one whole block of events", len(self._data))
        start, stop = self._blocks[:, 1].copy(), self._blocks[:, 2]
        self.start_ms = int(start[events].min())
        self.stop_ms = max(int(stop[events].max()), int(start[events].max()) + 1)
        self._check_length()
        if reversed_ := int((stop <= start)[events].sum()):
            defects.append(f"{reversed_} time blocks do not stop after they start")
        if late := int((np.diff(start[events]) < 0).sum()):
            defects.append(f"{late} time blocks start before the one before them; sorted")
        self._runs: dict[Stream, I64] = {}
        self._run_offset: dict[Stream, I64] = {}
        for number, stream in enumerate(_STREAMS):
            mine = runs[(runs[:, _STREAM] == number) & (runs[:, _N_VALID] > 0)]
            mine = mine[np.argsort(start[mine[:, _BLOCK]], kind="stable")]
            self._runs[stream] = np.ascontiguousarray(mine)
            self._run_offset[stream] = np.concatenate(([0], np.cumsum(mine[:, _N_VALID])))
            self._set_ticks(stream, start[mine[:, _BLOCK]] - self.start_ms, mine[:, _N_VALID])

    def _event_tag(self) -> int:
        names = [child.name for child in self._block_type.children]
        if "EventTimeBlock" not in names:
            raise self._damaged("a schema without event blocks", 0)
        return names.index("EventTimeBlock")

    def _damaged(self, found: str, offset: int) -> InputError:
        return InputError(
            f"{self._path.name!r} must hold time blocks of events, but it holds {found} (at "
            f"byte {offset}); copy the file again"
        )

    def _describe_blocks(self) -> list[str]:
        names = [child.name for child in self._block_type.children]
        counts = np.bincount(self._blocks[:, 0], minlength=len(names))
        length = np.diff(self._blocks[self._blocks[:, 0] == self._event_tag(), 1:3]).ravel()
        notes = [
            f"time blocks of {int(length.min())}-{int(length.max())} ms: events have no finer "
            "time"
        ]
        for name, n in zip(names, counts.tolist(), strict=True):
            if n and name != "EventTimeBlock":
                said = describe_blocks(name, self._some_blocks(name))
                notes.append(f"{n} blocks of {name} are not carried{said}")
        return notes

    def _some_blocks(self, kind: str, n_most: int = _MAX_DESCRIBED) -> list[dict[str, Any]]:
        """Decode the first blocks of a kind; none if one is damaged or the schema lacks it."""
        if kind not in [child.name for child in self._block_type.children]:
            return []
        try:
            return self._decode_blocks(kind, n_most)
        except (_yardl.Truncated, InputError):
            return []

    def blocks(self, kind: str) -> list[dict[str, Any]]:
        """Decode the blocks of a kind other than events, such as ``"BedMovementTimeBlock"``.

        Returns
        -------
        list of dict
            The fields of each block under their names in the schema; ``timeInterval`` holds
            ``start`` and ``stop`` in ms.

        Raises
        ------
        InputError
            If the file's schema knows no such kind.
        """
        names = [child.name for child in self._block_type.children]
        if kind not in names or kind == "EventTimeBlock":
            others = [name for name in names if name != "EventTimeBlock"]
            raise InputError(
                f"a kind of time block must be one of {', '.join(others)}, but {kind!r} was "
                "asked for; choose one of these"
            )
        return self._decode_blocks(kind, len(self._blocks))

    def _decode_blocks(self, kind: str, n_most: int) -> list[dict[str, Any]]:
        names = [child.name for child in self._block_type.children]
        chosen = self._blocks[self._blocks[:, 0] == names.index(kind)][:n_most]
        return [
            _yardl.Decoder(self._data, int(at)).value(self._block_type)[1]
            for at in chosen[:, 3]
        ]

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""
        offset = self._run_offset[stream]
        stop_event = min(stop_event, int(offset[-1]))
        n = max(stop_event - start_event, 0)
        a, b = np.empty(n, np.uint32), np.empty(n, np.uint32)
        tof = np.empty(n, np.int16)
        if n:
            first = int(np.searchsorted(offset, start_event, side="right")) - 1
            last = int(np.searchsorted(offset, stop_event, side="left"))
            d = self._detector
            _kernels.decode_yardl(
                self._data, self._runs[stream][first:last], start_event - int(offset[first]),
                len(d.n_bins), d.first_crystal, d.n_energy, d.n_bins, d.n_tof, d.has_tof,
                a, b, tof,
            )  # fmt: skip
        return EventBatch(a, b, tof)


def recognise(path: Path, head: bytes) -> bool:
    """Say whether a file is a yardl stream."""
    del path
    return head.startswith(_yardl.MAGIC)


def open_file(path: Path, header: Path | None) -> PetsirdListmode:
    """Open a PETSIRD file; its header is inside."""
    del header
    return PetsirdListmode(path)
