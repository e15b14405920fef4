"""Round trips through the formats we write: are events and images the same, bit by bit?

    python -m benchmarks.bench_formats --events 10000000

makes a scan of a Quadra with prompts and delayeds, sends it from HDF5 through PETSIRD and
through CASToR back to HDF5, compares every event, tick and window, and reconstructs the same
two windows from each of the five files. It ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.convert import convert_listmode, files_of
from listmode.formats.hdf5 import ListmodeWriter
from listmode.formats.scanner_file import load_scanner
from listmode.scanner import Scanner
from listmode.source import Listmode, ScanProtocol, Stream
from listmode.windows import Windows
from recon.image import Grid
from recon.osem import OsemSettings
from recon.reconstruct import reconstruct

STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")
N_SECONDS = 60
DELAYED_SHARE = 0.2
PROTOCOL = ScanProtocol(
    tracer="FDG",
    injected_activity_bq=22.0e6,
    injection_time_s=-3600.0,
    patient_weight_kg=73.5,
    count_fraction=0.25,
)


def accepted_events(rng: np.random.Generator, scanner: Scanner, n_events: int) -> EventBatch:
    """Draw random pairs that the scanner accepts, with any TOF bin."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    n = 0
    while n < n_events:
        one, two = rng.integers(0, scanner.n_crystals, (2, 2 * n_events))
        good = scanner.accepts(one, two)
        parts.append((one[good], two[good]))
        n += int(good.sum())
    one, two = (np.concatenate([p[i] for p in parts])[:n_events] for i in (0, 1))
    tof_bin = rng.integers(0, scanner.tof.n_bins, n_events)
    return EventBatch.from_pairs(one, two, tof_bin, scanner.tof.n_bins)


def write_scan(path: Path, n_events: int, seed: int) -> None:
    """Write a scan of a minute, second by second."""
    scanner, rng = load_scanner("quadra"), np.random.default_rng(seed)
    efficiency = rng.uniform(0.8, 1.2, scanner.n_crystals).astype(np.float32)
    per_second = rng.multinomial(n_events, np.full(N_SECONDS, 1.0 / N_SECONDS))
    with ListmodeWriter(
        path, scanner=scanner, protocol=PROTOCOL, crystal_efficiency=efficiency
    ) as writer:
        for n in per_second.tolist():
            n_delayeds = round(n * DELAYED_SHARE)
            for stream, n_stream in zip(STREAMS, (n - n_delayeds, n_delayeds), strict=True):
                ticks = rng.multinomial(n_stream, np.full(1000, 1e-3))
                writer.append(stream, accepted_events(rng, scanner, n_stream), ticks)


def _digests(scan: Listmode, stream: Stream) -> Iterator[str]:
    """Give a hash of each million events, in order."""
    for batch in scan.events(scan.extent, stream):
        h = hashlib.sha256()
        for column in (batch.crystal_a, batch.crystal_b, batch.tof_bin):
            h.update(column.tobytes())
        yield h.hexdigest()


def _efficiency(scan: Listmode) -> bytes:
    return b"" if scan.crystal_efficiency is None else scan.crystal_efficiency.tobytes()


def differences(one: Listmode, other: Listmode) -> list[str]:
    """Name everything that two files do not have in common."""
    found = [
        name
        for name, is_same in (
            ("scanner", one.scanner.digest == other.scanner.digest),
            ("protocol", one.protocol == other.protocol),
            ("efficiencies", _efficiency(one) == _efficiency(other)),
            ("time held", one.extent == other.extent),
        )
        if not is_same
    ]
    for stream in STREAMS:
        if not np.array_equal(one.tick_offset(stream), other.tick_offset(stream)):
            found.append(f"ticks of {stream}")
        pairs = zip_longest(_digests(one, stream), _digests(other, stream))
        if any(a != b for a, b in pairs):
            found.append(f"events of {stream}")
    return found


def image_digest(scan: Listmode) -> str:
    """Reconstruct two windows on a coarse grid; give the hash of the voxels."""
    volume = reconstruct(
        scan,
        Windows([10_000, 40_000], [20_000, 45_000]),
        grid=Grid.centred((40, 40, 66), 16.0),
        settings=OsemSettings(n_iterations=1, n_subsets=4, n_sensitivity_pairs=200_000),
        threads=1,
    )
    assert float(volume.values.max()) > 0.0
    return hashlib.sha256(volume.values.tobytes()).hexdigest()


def run(n_events: int, seed: int, folder: Path) -> dict[str, object]:
    """Make the round trips and compare."""
    write_scan(folder / "scan.h5", n_events, seed)
    trips = [("scan.h5", "scan.petsird"), ("scan.petsird", "from_petsird.h5"),
             ("scan.h5", "scan.cdh"), ("scan.cdh", "from_castor.h5")]  # fmt: skip
    rows = []
    for source, target in trips:
        start = time.perf_counter()
        with open_listmode(folder / source) as scan:
            convert_listmode(scan, folder / target)
        seconds = time.perf_counter() - start
        n_bytes = sum(p.stat().st_size for p in files_of(folder / target))
        rows.append({"from": source, "to": target, "events_per_s": n_events / seconds,
                     "bytes_per_event": n_bytes / n_events})  # fmt: skip
    names = ["scan.h5", *(target for _, target in trips)]
    found: dict[str, list[str]] = {}
    images = {}
    with open_listmode(folder / "scan.h5") as one:
        for name in names:
            with open_listmode(folder / name) as other:
                found[name] = differences(one, other)
                images[name] = image_digest(other)
    return {
        "n_events": n_events,
        "trips": rows,
        "differences": found,
        "image_sha256": images,
        "is_exact": not any(found.values()) and len(set(images.values())) == 1,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.events, options.seed, Path(folder))
    print(json.dumps(result, indent=2))
    return 0 if result["is_exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
