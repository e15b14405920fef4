"""How fast each format is read, in events a second, on files of 10 million events.

``run_bench_read`` measures all in one process, alternately; it gives medians of events a second
of the one thread's own processor time, so that other work on the machine does not count, and of
the wall clock beside it. The official PETSIRD library takes part in the same rounds, on the
first part of the scan.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.petsird_writer import write_petsird
from listmode.formats.safir import SIGNATURE
from listmode.formats.scanner_file import load_scanner
from listmode.formats.siemens import transaxial_pairs
from listmode.memory import MemoryListmode
from listmode.source import Listmode, ScanProtocol
from listmode.windows import Windows

N_TICKS = 30_000
_SIEMENS_HEADER = """!INTERFILE:=
%SMS-MI header name space:=PETLINK bin address
name of data file := siemens.l
number of rings:=64
%number of TOF time bins:=1
%LM event and tag words format (bits):=32
%maximum ring difference:=60
%number of projections:=344
%number of views:=252
"""


def make_scan(n_events: int, seed: int = 1) -> MemoryListmode:
    """Make random pairs of a Quadra at a steady rate."""
    scanner = load_scanner("quadra")
    rng = np.random.default_rng(seed)
    first = rng.integers(0, scanner.n_crystals, n_events)
    second = (first + rng.integers(1, scanner.n_crystals, n_events)) % scanner.n_crystals
    tof_bin = rng.integers(0, scanner.tof.n_bins, n_events)
    counts = rng.multinomial(n_events, np.full(N_TICKS, 1.0 / N_TICKS))
    return MemoryListmode(
        scanner=scanner,
        protocol=ScanProtocol(),
        prompts=EventBatch.from_pairs(first, second, tof_bin, scanner.tof.n_bins),
        prompts_offset=np.concatenate(([0], np.cumsum(counts))),
    )


def _with_tags(events: NDArray[np.uint64], tag: int) -> NDArray[np.uint64]:
    """Put a time tag before each of ``N_TICKS`` equal parts."""
    parts = np.array_split(events, N_TICKS)
    tags = np.arange(N_TICKS, dtype=np.uint64) | np.uint64(tag)
    return np.concatenate([np.concatenate(([t], p)) for t, p in zip(tags, parts, strict=True)])


def write_siemens(folder: Path, n_events: int) -> Path:
    """Write random prompts of an mMR."""
    rng = np.random.default_rng(2)
    pairs = np.flatnonzero(transaxial_pairs()[0] >= 0)
    address = rng.integers(0, 4084, n_events) * (344 * 252) + rng.choice(pairs, n_events)
    words = _with_tags(address.astype(np.uint64) | np.uint64(0x40000000), 0x80000000)
    words.astype("<u4").tofile(folder / "siemens.l")
    (folder / "siemens.l.hdr").write_text(_SIEMENS_HEADER)
    return folder / "siemens.l"


def write_safir(folder: Path, n_events: int) -> Path:
    """Write random prompts of 91 rings of 180 crystals."""
    rng = np.random.default_rng(3)
    rings = rng.integers(0, 91, (2, n_events), dtype=np.uint64)
    around = rng.integers(0, 90, (2, n_events), dtype=np.uint64)
    around[1] += np.uint64(90)
    words = rings[0] | rings[1] << np.uint64(8)
    words |= around[0] << np.uint64(16) | around[1] << np.uint64(32)
    tagged = _with_tags(words, 1 << 63)
    (folder / "safir.clm").write_bytes(SIGNATURE.ljust(32, b"\0") + tagged.tobytes())
    lines = ["#ring det x y z"]
    for ring in range(91):
        for k in range(180):
            angle = 2 * np.pi * k / 180
            x, y = 63 * np.cos(angle), 63 * np.sin(angle)
            lines.append(f"{ring} {k} {x:.3f} {y:.3f} {2.2 * ring:.3f}")
    (folder / "map.txt").write_text("\n".join(lines))
    return folder / "safir.clm"


def read_all(source: Listmode) -> int:
    """Read every prompt."""
    return sum(len(batch) for batch in source.events())


def _rates(n_events: int, work: Callable[[], int]) -> tuple[float, float]:
    """Measure events a second of processor time and of the wall clock."""
    wall, start = time.perf_counter(), time.thread_time()
    assert work() == n_events
    return n_events / (time.thread_time() - start), n_events / (time.perf_counter() - wall)


def _read_officially(path: Path) -> int:
    import petsird

    with petsird.BinaryPETSIRDReader(str(path)) as reader:
        reader.read_header()
        return sum(len(b.value.prompt_events[0][0]) for b in reader.read_time_blocks())


def run_bench_read(n_events: int = 10_000_000, n_repeats: int = 5) -> dict[str, float]:
    """Measure reading.

    Returns
    -------
    dict
        Events/s of one thread's processor time: ``hdf5_open_and_read`` (a fresh open, so
        checksums are made), ``petsird_decode`` (events of an open file),
        ``petsird_open_and_read`` (header, index and events), ``petsird_window`` (1 s windows),
        ``siemens``, ``safir``, ``petsird_official``; the same by the wall clock with ``_wall``
        at the end; ``petsird_ratio``, the median of decode over official of each round.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = make_scan(n_events)
        cut_listmode(scan, scan.extent, folder / "scan.h5")
        write_petsird(scan, folder / "scan.petsird")
        paths = {
            "hdf5": folder / "scan.h5",
            "petsird": folder / "scan.petsird",
            "siemens": write_siemens(folder, n_events),
            "safir": write_safir(folder, n_events),
        }
        opened = {key: open_listmode(path) for key, path in paths.items()}
        for source in opened.values():  # compiles, and fills the cache of the file system
            assert read_all(source) == n_events

        def fresh(key: str) -> Callable[[], int]:
            return lambda: read_all(open_listmode(paths[key]))

        def by_windows() -> int:
            edges = range(0, N_TICKS, 1000)
            source = opened["petsird"]
            windows = [Windows([a], [a + 1000]) for a in edges]
            return sum(len(b) for w in windows for b in source.events(w))

        works: dict[str, Callable[[], int]] = {
            "hdf5_open_and_read": fresh("hdf5"),
            "petsird_decode": lambda: read_all(opened["petsird"]),
            "petsird_open_and_read": fresh("petsird"),
            "petsird_window": by_windows,
            "siemens": lambda: read_all(opened["siemens"]),
            "safir": lambda: read_all(opened["safir"]),
        }
        cut_listmode(scan, Windows([0], [N_TICKS // 40]), folder / "part.h5")
        with open_listmode(folder / "part.h5") as part:
            write_petsird(part, folder / "part.petsird")
            n_part = part.n_events()
        works["petsird_official"] = lambda: _read_officially(folder / "part.petsird")
        cpu: dict[str, list[float]] = {key: [] for key in works}
        wall: dict[str, list[float]] = {key: [] for key in works}
        for _ in range(n_repeats):
            for key, work in works.items():
                rates = _rates(n_part if key == "petsird_official" else n_events, work)
                cpu[key].append(rates[0])
                wall[key].append(rates[1])
        result = {key: median(values) for key, values in cpu.items()}
        result |= {f"{key}_wall": median(values) for key, values in wall.items()}
        pairs = zip(cpu["petsird_decode"], cpu["petsird_official"], strict=True)
        result["petsird_ratio"] = median(ours / theirs for ours, theirs in pairs)
    return result


if __name__ == "__main__":
    for key, value in run_bench_read().items():
        text = (
            f"{value:10.0f} x" if key.endswith("ratio") else f"{value / 1e6:10.2f} M events/s"
        )
        print(f"{key:28s} {text}")
