"""What a reader must do with a damaged file, and small files of each format to damage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _hdf5_layout, _yardl, open_listmode
from listmode.formats._sandbox_child import Refused, walk_hdf5
from listmode.formats.castor import write_castor
from listmode.formats.hdf5 import Hdf5Listmode, cut_listmode
from listmode.formats.petsird import PetsirdListmode
from listmode.formats.petsird_writer import write_petsird
from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import MAX_CRYSTALS
from listmode.source import Listmode, Stream
from tests import fuzz_mutations as mutations
from tests.strategies import joined, random_scan, same_events

Outcome = Literal["refused", "whole", "partial"]
Change = Callable[[bytes, np.random.Generator], bytes]

_STREAMS: tuple[Stream, ...] = ("prompts", "delayeds")
_CHUNK_EVENTS = 64


class WrongError(AssertionError):
    """A reader broke its promise."""


@dataclass
class Seed:
    """A small whole file (or group of files) and what may happen to it.

    ``targets`` are the files that a case damages, one of them each time, and the changes that
    fit them. ``truth`` holds the events of each stream, to compare with where the format
    promises that what it gives is true: a format with checksums (``chunk_events`` to a
    checksum) after every damage that does not mend them, others after a ``cut``.
    """

    opened: Path
    targets: dict[Path, list[Change]]
    chunk_events: int = 0
    truth: dict[Stream, EventBatch] = field(default_factory=dict)
    cuts: tuple[Change, ...] = (mutations.cut,)
    whole: dict[Path, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole = {path: path.read_bytes() for path in self.targets}


def make_hdf5(folder: Path) -> Seed:
    """Write a small stillpet file of several chunks."""
    scan = random_scan(1, n_prompts=300, n_delayeds=40, n_ticks=20, has_truth=True)
    path = folder / "scan.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_hdf5_layout, "CHUNK_EVENTS", _CHUNK_EVENTS)
        patch.setattr(_hdf5_layout, "CHUNK_TICKS", 8)
        cut_listmode(scan, scan.extent, path)
    flip: Change = mutations.flip_bits
    changes = [flip, flip, flip, mutations.damage_bytes, mutations.cut, mutations.damage_hdf5]
    return Seed(path, {path: changes}, chunk_events=_CHUNK_EVENTS, truth=_truth(scan))


def make_petsird(folder: Path) -> Seed:
    """Write a small PETSIRD file; many cases damage its blocks of events, not its header."""
    scan = random_scan(1, n_prompts=60, n_delayeds=10, n_ticks=8)
    path = folder / "scan.petsird"
    write_petsird(scan, path)
    _add_pair_tables(path)
    blocks = int(PetsirdListmode(path)._blocks[0, 3])
    changes: list[Change] = [mutations.flip_bits, mutations.damage_bytes, mutations.cut]
    changes += [mutations.damage_petsird_header]
    changes += [mutations.in_tail(c, blocks) for c in changes[:3]]
    return Seed(path, {path: changes}, truth=_truth(scan), cuts=(changes[2], changes[6]))


def _add_pair_tables(path: Path) -> None:
    """Give a PETSIRD header two groups of efficiencies by pair of modules."""
    raw = np.fromfile(path, np.uint8)
    schema, start = _yardl.read_preamble(raw)
    decoder = _yardl.Decoder(raw, start)
    header = decoder.value(schema.steps["header"])
    modules = header["scanner"]["scannerGeometry"]["replicatedModules"][0]
    n_modules = len(modules["transforms"])
    n_elements = len(modules["object"]["detectingElements"]["transforms"])
    tables = header["scanner"]["detectionEfficiencies"]
    lut = [[(a + b) % 3 - 1 for b in range(a + 1)] for a in range(n_modules)]
    values = np.linspace(0.5, 1.5, n_elements**2, dtype=np.float32).reshape((n_elements,) * 2)
    tables["modulePairSGIDLUT"] = [[lut]]
    groups = [{"values": values, "sgid": 0}, {"values": 2 * values, "sgid": 1}]
    tables["modulePairEfficienciesVectors"] = [[groups]]
    encoded = _yardl.encode(schema.steps["header"], header)
    data = raw.tobytes()
    path.write_bytes(data[:start] + encoded + data[decoder.offset :])


def make_siemens(folder: Path) -> Seed:
    """Write a small Siemens file with its header."""
    from tests.listmode.formats import test_siemens

    path = test_siemens.small_scan(folder)[0]
    words: list[Change] = [mutations.flip_bits, mutations.damage_bytes, mutations.cut]
    text: list[Change] = [mutations.damage_text, mutations.damage_bytes]
    return _with_own_truth(Seed(path, {path: words, folder / "scan.l.hdr": text}))


def make_safir(folder: Path) -> Seed:
    """Write a small SAFIR file with its crystal map."""
    from tests.listmode.formats import test_safir

    path = test_safir.write_scan(folder, test_safir.WORDS * 4)
    words: list[Change] = [mutations.flip_bits, mutations.damage_bytes, mutations.cut]
    text: list[Change] = [mutations.damage_text, mutations.damage_bytes]
    return _with_own_truth(Seed(path, {path: words, folder / "map.txt": text}))


def make_castor(folder: Path) -> Seed:
    """Write a small CASToR scan with all its files."""
    scan = random_scan(1, n_prompts=60, n_delayeds=10, n_ticks=8)
    write_castor(scan, folder / "scan.cdh")
    words: list[Change] = [mutations.flip_bits, mutations.damage_bytes, mutations.cut]
    text: list[Change] = [mutations.damage_text, mutations.damage_bytes]
    targets: dict[Path, list[Change]] = {
        folder / "scan.cdf": words,
        folder / "scan.cdh": text,
        folder / "scan.stillpet.json": text,
        folder / "scan_delayeds.cdf": words,
    }
    return Seed(folder / "scan.cdh", targets, truth=_truth(scan))


def make_castor_plain(folder: Path) -> Seed:
    """Write a small CASToR scan as another program would, without our sidecar."""
    scan = random_scan(1, n_prompts=60, n_delayeds=10, n_ticks=8)
    write_castor(scan, folder / "scan.cdh")
    (folder / "scan.stillpet.json").unlink()
    text: list[Change] = [mutations.damage_text, mutations.damage_bytes]
    words: list[Change] = [mutations.flip_bits, mutations.damage_bytes]
    targets: dict[Path, list[Change]] = {
        folder / "scan.cdf": [*words, mutations.cut],
        folder / "scan.cdh": text,
        folder / "scan.hscan": text,
        folder / "scan.lut": words,
    }
    return Seed(folder / "scan.cdh", targets, truth=_truth(scan))


def make_gate(folder: Path) -> Seed:
    """Write a small GATE file with its map; needs the extra ``gate``."""
    from tests.listmode.formats import test_gate
    from tests.toy_scan import toy

    levels = ("rsectorID", "moduleID", "submoduleID", "crystalID")  # not read, but slow to skip
    columns = {k: v for k, v in toy(1, n=40).columns.items() if not k.startswith(levels)}
    path = test_gate.write(folder, columns)
    words: list[Change] = [mutations.flip_bits, mutations.damage_bytes, mutations.cut]
    text: list[Change] = [mutations.damage_text, mutations.damage_bytes]
    targets = {path: words, folder / "scan.gate.toml": text}
    return _with_own_truth(Seed(path, targets))


def make_scanner(folder: Path) -> Seed:
    """Write a scanner description."""
    path = folder / "scanner.toml"
    path.write_text(_SCANNER, "utf-8")
    text: Change = mutations.damage_text
    changes = [text, text, text, mutations.damage_bytes]
    return Seed(path, {path: changes})


_SCANNER = """name = "small"
default_mode = "A"
modes = { A = 5, B = 3 }
[layout]
n_blocks = 8
n_crystals = 3
n_virtual = 1
n_units = 2
n_rings_per_unit = 3
n_gap_rings = 1
front_radius_mm = 100.0
first_block_deg = 5.0
[crystal]
size_mm = [4.0, 5.0, 20.0]
pitch_mm = [4.2, 5.2]
doi_mm = 7.0
stopping_per_mm = 0.083
window_efficiency = 0.9
background_singles_hz = 10.0
[energy]
window_kev = [435.0, 585.0]
resolution = 0.1
[tof]
n_bins = 5
bin_width_ps = 200.0
fwhm_ps = 300.0
[acceptance]
fov_radius_mm = 80.0
[profile]
transaxial = [0.9, 1.0, 0.9]
axial = [1.0, 1.0, 1.0]
"""

SEEDS: dict[str, Callable[[Path], Seed]] = {
    "hdf5": make_hdf5,
    "petsird": make_petsird,
    "siemens": make_siemens,
    "safir": make_safir,
    "castor": make_castor,
    "castor-plain": make_castor_plain,
    "scanner": make_scanner,
    "gate": make_gate,
}


def _truth(scan: MemoryListmode) -> dict[Stream, EventBatch]:
    return {"prompts": scan.prompts, "delayeds": scan.delayeds}


def _with_own_truth(seed: Seed) -> Seed:
    with open_listmode(seed.opened) as source:
        seed.truth = {s: joined(list(source.events(stream=s))) for s in _STREAMS}
    return seed


def run_case(seed: Seed, rng: np.random.Generator, *, is_sandboxed: bool = False) -> Outcome:
    """Damage one file of a seed, read it all, and put it back.

    HDF5 is walked through in this process, as the child process of the reader does, and ROOT is
    opened at once, since 100,000 children would take hours; ``is_sandboxed`` has the reader
    start its child.

    Raises
    ------
    WrongError
        If the reader gives what cannot be, or gives a part and says that it is the whole.
    """
    paths = list(seed.targets)
    path = paths[int(rng.integers(len(paths)))]
    change = seed.targets[path][int(rng.integers(len(seed.targets[path])))]
    damaged = change(seed.whole[path], rng)
    try:
        path.write_bytes(damaged)
        is_cut = change in seed.cuts and path == seed.opened
        return read_all(
            seed,
            is_true=is_cut or bool(seed.chunk_events and change is not mutations.damage_hdf5),
            is_cut=is_cut,
            is_sandboxed=is_sandboxed,
        )
    finally:
        path.write_bytes(seed.whole[path])


def read_all(
    seed: Seed, *, is_true: bool = False, is_cut: bool = False, is_sandboxed: bool = False
) -> Outcome:
    """Read all of a file as a program would, and hold the reader to its promises.

    ``is_true`` says that each event which is given must be one of the whole file, at its place.
    """
    try:
        if seed.opened.suffix == ".toml":
            return _read_scanner(seed.opened)
        opener = open_listmode if is_sandboxed else _open
        with opener(seed.opened) as source:
            return _read_streams(source, seed, is_true=is_true, is_cut=is_cut)
    except InputError as error:
        _check_message(str(error))
        return "refused"


def _open(path: Path) -> Listmode:
    if path.suffix == ".root":
        from listmode.formats._gate_map import load_gate_map
        from listmode.formats.gate import GateListmode

        return GateListmode(path, load_gate_map(path.with_name("scan.gate.toml")))
    if path.suffix != ".h5":
        return open_listmode(path)
    try:
        walk_hdf5(str(path))
    except Refused as found:
        raise InputError(f"a file must be whole, but it holds {found}; copy it again") from None
    except MemoryError:
        raise InputError("a file must be whole, but it is too large; copy it again") from None
    except Exception as error:  # what the child turns into a refusal
        raise InputError(f"a file must be whole, but {error!r:.80}; copy it again") from None
    return Hdf5Listmode(path)


def _check_message(text: str) -> None:
    if not (" must " in text or " need" in text or "only " in text) or len(text) > 2000:
        raise WrongError(f"an error must say what must hold, but this one says {text!r:.300}")


def _read_scanner(path: Path) -> Outcome:
    scanner = load_scanner(path)
    if not 2 <= scanner.n_crystals <= MAX_CRYSTALS or scanner.tof.n_bins < 1:
        raise WrongError(
            f"a scanner of {scanner.n_crystals} crystals, {scanner.tof.n_bins} bins"
        )
    return "whole"


def _read_streams(source: Listmode, seed: Seed, *, is_true: bool, is_cut: bool) -> Outcome:
    if source.stop_ms - source.start_ms > 13 * 3600 * 1000 or source.stop_ms <= source.start_ms:
        raise WrongError(f"a scan from {source.start_ms} to {source.stop_ms} ms")
    says_whole = source.is_complete and not source.defects
    is_whole = True
    for stream in _STREAMS:
        offset = source.tick_offset(stream)
        if len(offset) != source.stop_ms - source.start_ms + 1 or (np.diff(offset) < 0).any():
            raise WrongError(f"a tick index of {len(offset)} entries that does not ascend")
        batches, is_read = _read_events(source, stream, seed.chunk_events)
        is_whole &= is_read
        true = seed.truth[stream]
        for first, batch in batches:
            _check_range(source, batch)
            last = first + len(batch)
            part = EventBatch(
                true.crystal_a[first:last], true.crystal_b[first:last], true.tof_bin[first:last]
            )
            if is_true and not same_events(batch, part):
                raise WrongError(f"{stream} {first}-{last} differ from those of the whole file")
        n = sum(len(batch) for _, batch in batches)
        if is_cut and n < len(true) and says_whole and is_read:
            raise WrongError(f"{n} of {len(true)} {stream} of a cut file that says it is whole")
    return "whole" if is_whole and says_whole else "partial"


def _read_events(
    source: Listmode, stream: Stream, chunk_events: int
) -> tuple[list[tuple[int, EventBatch]], bool]:
    """Read a stream; where a checksum fails, what its other chunks hold."""
    n = source.count(source.extent, stream)
    try:
        batch = joined(list(source.events(stream=stream)))
        if len(batch) != n:
            raise WrongError(f"{len(batch)} events of {n} counted")
        return [(0, batch)], True
    except InputError as error:
        _check_message(str(error))
        if not chunk_events:
            raise
    batches = []
    for first in range(0, n, chunk_events):
        with contextlib.suppress(InputError):
            batches.append((first, source.read(stream, first, min(first + chunk_events, n))))
    return batches, False


def _check_range(source: Listmode, batch: EventBatch) -> None:
    if len(batch) and not (
        batch.crystal_b.max() < source.scanner.n_crystals
        and batch.tof_bin.min() >= 0
        and batch.tof_bin.max() < source.scanner.tof.n_bins
    ):
        raise WrongError("an event that names a crystal or TOF bin that the scanner has not")
