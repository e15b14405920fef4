"""GATE ROOT coincidences, with the truth that only a simulation knows.

ROOT files are read by uproot (the ``gate`` extra). They are decoded once, in parts, into a
scratch file of 15 bytes an event, from which events are then read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats._gate_decode import (
    RANDOM,
    REASONS,
    RECORD,
    SCATTERED,
    TRUE,
    GateDecoder,
    Table,
)
from listmode.formats._gate_map import LEVELS, GateMap, load_gate_map
from listmode.formats._mapped import MappedListmode
from listmode.formats._sandbox import check_in_child
from listmode.source import ScanProtocol, Stream

_PART_ENTRIES = 1 << 17


class GateListmode(MappedListmode):
    """GATE coincidences, open for reading.

    A coincidence is random if its photons come from two decays (``eventID``), else scattered if
    one of them scattered in the phantom (``comptonPhantom``, ``RayleighPhantom``), else true.

    Attributes
    ----------
    tags
        Coincidences in the file, and the prompts among them by origin.

    Parameters
    ----------
    path
        The ROOT file.
    gate
        Scanner, and how its crystals are found.

    Raises
    ------
    InputError
        If uproot is missing, a tree or branch is missing, or the file is damaged.
    """

    format_name = "GATE ROOT"

    def __init__(self, path: str | Path, gate: GateMap) -> None:
        super().__init__(Path(path))
        self._gate = gate
        self.scanner, self.protocol = gate.scanner, ScanProtocol()
        self.crystal_efficiency = None
        self.clock_zero = "time 0 of the GATE simulation"
        self.is_complete = True
        self._defects: list[str] = []
        self._notes = ["energies and places of the source are not kept"]
        self._has_truth = True
        self._n_entries: dict[Stream, int] = {"prompts": 0, "delayeds": 0}
        self._scratch: dict[Stream, Table] = {}
        self._decode()
        self._make_index()
        self.notes, self.defects = tuple(self._notes), tuple(self._defects)

    # ---- decoding

    def _decode(self) -> None:
        uproot = _import_uproot()
        try:
            with uproot.open(
                self._path, handler=uproot.MemmapSource, object_cache=None, array_cache=None
            ) as file:
                trees = {k.partition(";")[0]: k for k, v in file.classnames().items()
                         if v == "TTree"}  # fmt: skip
                if self._gate.prompts_tree not in trees:
                    raise InputError(
                        f"a GATE file must hold the tree {self._gate.prompts_tree!r}, but "
                        f"{self._path.name!r} has {', '.join(sorted(trees)) or 'none'}; name "
                        "the tree in the map file ([trees] prompts)"
                    )
                self._decode_tree("prompts", file[trees[self._gate.prompts_tree]])
                if self._gate.delayeds_tree in trees:
                    self._decode_tree("delayeds", file[trees[self._gate.delayeds_tree]])
        except InputError:
            raise
        except Exception as error:  # uproot meets damage with many kinds of them
            raise InputError(
                f"{self._path.name!r} must be a whole ROOT file, but it cannot be decoded "
                f"({type(error).__name__}: {error!s:.100}); copy or write it again"
            ) from None

    def _decode_tree(self, stream: Stream, tree: Any) -> None:
        names = self._branches(set(tree.keys()), stream)
        n = self._n_entries[stream] = int(tree.num_entries)
        # Delayed pairs come later by the offset; without it their TOF is that of prompts.
        offset_s = self._gate.delayed_offset_s if stream == "delayeds" else 0.0
        decoder = GateDecoder(self._gate, set(names), offset_s)
        wanted = [f"{name}{k}" for name in names.values() for k in "12"]
        n_kept, n_left_out = 0, np.zeros(len(REASONS), np.int64)
        with tempfile.TemporaryFile() as file:  # its map outlives it
            for first in range(0, n, _PART_ENTRIES):
                last = min(first + _PART_ENTRIES, n)
                part = tree.arrays(wanted, entry_start=first, entry_stop=last, library="np")
                columns = {
                    f"{ours}{k}": part[f"{name}{k}"]
                    for ours, name in names.items()
                    for k in "12"
                }
                table, left_out = decoder.decode(columns)
                file.write(table.tobytes())
                n_kept += len(table)
                n_left_out += left_out
            file.flush()
            self._scratch[stream] = _in_order(file, n_kept, stream, self._notes)
        self._defects += [
            f"{count} {stream} have {why}: left out"
            for count, why in zip(n_left_out.tolist(), REASONS, strict=True)
            if count
        ]

    def _branches(self, there: set[str], stream: Stream) -> dict[str, str]:
        """Choose the branches to read: what we call them, and their names."""
        gate = self._gate
        place = ("x", "y", "z")
        needed = ["time", *(place if gate.crystals == "nearest" else LEVELS)]
        wished = ["event", "compton", "rayleigh", *place]
        names = {}
        for ours in dict.fromkeys([*needed, *wished]):
            name = gate.branches[ours]
            if {f"{name}1", f"{name}2"} <= there:
                names[ours] = name
            elif ours in LEVELS and gate.repeats[ours] == (1, 1):
                continue  # a level that is not repeated needs no number
            elif ours in needed:
                raise InputError(
                    f"to give events their crystals, a GATE tree must have the branches "
                    f"{name}1 and {name}2, but that of the {stream} in {self._path.name!r} has "
                    "not; have GATE write them, or choose 'nearest' or 'ids' in the map file"
                )
        if stream == "prompts":
            self._has_truth = {"event", "compton"} <= set(names)
            if not self._has_truth:
                self._notes.append("the file does not tell trues, scatter and randoms apart")
            elif "rayleigh" not in names:
                self._notes.append("scatter is told by Compton scattering alone")
        return names

    # ---- the clock and the index

    def _make_index(self) -> None:
        tables = [table for table in self._scratch.values() if len(table)]
        if not tables:
            raise InputError(
                f"a GATE file must hold at least one coincidence that fits the scanner, but "
                f"{self._path.name!r} has {sum(self._n_entries.values())} of which none does"
                f"{'; '.join(['', *self._defects])}; check scanner and map file"
            )
        self.start_ms = min(int(table["tick"][0]) for table in tables)
        self.stop_ms = max(int(table["tick"][-1]) for table in tables) + 1
        self._check_length()
        self._hold(None)
        for stream in ("prompts", "delayeds"):
            if stream not in self._scratch:
                self._scratch[stream] = np.empty(0, RECORD)
            ticks, counts = np.unique(self._scratch[stream]["tick"], return_counts=True)
            self._set_ticks(stream, ticks.astype(np.int64) - self.start_ms, counts)
        tags = {str(stream): n for stream, n in self._n_entries.items()}
        if self._has_truth:
            n = np.bincount(self._scratch["prompts"]["truth"], minlength=3)
            tags |= {"trues": int(n[TRUE]), "scattered": int(n[SCATTERED]),
                     "randoms": int(n[RANDOM])}  # fmt: skip
        self.tags: Mapping[str, int] = tags

    def read(self, stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        """Read events ``[start_event, stop_event)`` of a stream."""
        part = self._scratch[stream][start_event:stop_event]
        return EventBatch(part["a"], part["b"], part["tof_bin"])

    def read_truth(self, start_event: int, stop_event: int) -> NDArray[np.uint8] | None:
        """Read where prompts came from (0 true, 1 scattered, 2 random), if the file says."""
        if not self._has_truth:
            return None
        truth: NDArray[np.uint8] = self._scratch["prompts"]["truth"][start_event:stop_event]
        return truth.copy()


def _in_order(file: Any, n: int, stream: Stream, notes: list[str]) -> Table:
    """Map the records; sort them by tick where GATE did not write them so."""
    if n == 0:
        return np.empty(0, RECORD)
    table = np.memmap(file, RECORD, mode="r+", shape=(n,))
    if (np.diff(table["tick"]) < 0).any():
        table[:] = table[np.argsort(table["tick"], kind="stable")]
        notes.append(f"the {stream} were not in order of time: sorted")
    return table.view(np.ndarray)


def _import_uproot() -> Any:
    try:
        return import_module("uproot")
    except ImportError:
        raise InputError(
            "to read ROOT files, the package uproot must be installed, but it is not; install "
            "it with: pip install 'stillpet[gate]'"
        ) from None


def _find_map(path: Path) -> Path | None:
    own = path.with_suffix(".gate.toml")
    if own.is_file():
        return own
    maps = sorted(path.parent.glob("*.gate.toml"))
    return maps[0] if len(maps) == 1 else None


def recognise(path: Path, head: bytes) -> bool:
    """Say whether a file is a ROOT file."""
    del path
    return head.startswith(b"root")


def open_file(path: Path, header: Path | None) -> GateListmode:
    """Open GATE coincidences; their map file is given as header or lies beside them.

    Raises
    ------
    InputError
        If there is not exactly one map file, or uproot is missing.
    """
    found = header or _find_map(path)
    if found is None:
        raise InputError(
            f"GATE coincidences need a map file that names the scanner, but beside "
            f"{path.name!r} there is neither {path.with_suffix('.gate.toml').name!r} nor one "
            'other *.gate.toml; write one (scanner = "vision600" may be all) or give it as '
            "header"
        )
    gate = load_gate_map(found)
    _import_uproot()
    check_in_child(path, "root")
    return GateListmode(path, gate)
