"""Damaged files: a clean error or a correct partial read, never a crash, a hang or a flood.

Mutations are drawn from a fixed seed; ``STILLPET_FUZZ`` sets their number a reader (100 here;
100,000 for an offline run). HDF5 is read in a process apart, since its library may crash.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.castor import write_castor
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.petsird_writer import write_petsird
from tests.listmode.formats import test_safir, test_siemens
from tests.strategies import random_scan

N_MUTATIONS = int(os.environ.get("STILLPET_FUZZ", "100"))
MAX_SECONDS = 5.0
MAX_BYTES = 1 << 30


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file as disks and cables do: flips, cuts, repeats, holes and huge lengths."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(out)))
        length = int(min(rng.geometric(0.02), len(out) - at))
        kind = rng.integers(7)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            out[at : at + 10] = b"\xff" * 9 + b"\x01"  # a length of 2**63 or more
        else:
            out[at : at + length] = bytes(length)
        if not out:
            return b"\x00"
    return bytes(out)


def read_whole(path: Path) -> bool:
    """Read all of a file; say whether it could be opened."""
    try:
        with open_listmode(path) as source:
            for stream in ("prompts", "delayeds"):
                assert source.tick_offset(stream)[-1] >= 0
                n = sum(len(b) for b in source.events(stream=stream))
                assert n == source.count(source.extent, stream)
    except InputError:
        return False
    return True


def make_petsird(folder: Path) -> Path:
    """Write a small PETSIRD file."""
    write_petsird(random_scan(1, n_prompts=60, n_delayeds=10), folder / "scan.petsird")
    return folder / "scan.petsird"


def make_siemens(folder: Path) -> Path:
    """Write a small Siemens file."""
    return test_siemens.small_scan(folder)[0]


def make_siemens_header(folder: Path) -> Path:
    """Write a small Siemens file and give its header."""
    test_siemens.small_scan(folder)
    return folder / "scan.l.hdr"


def make_castor(folder: Path) -> Path:
    """Write a small CASToR scan as another program would, and give its events."""
    write_castor(random_scan(1, n_prompts=60, n_delayeds=10), folder / "scan.cdh")
    (folder / "scan.stillpet.json").unlink()
    return folder / "scan.cdf"


def make_castor_header(folder: Path) -> Path:
    """Write a small CASToR scan and give its header."""
    return make_castor(folder).with_suffix(".cdh")


def make_castor_table(folder: Path) -> Path:
    """Write a small CASToR scan and give its look-up table."""
    return make_castor(folder).with_suffix(".lut")


def make_castor_sidecar(folder: Path) -> Path:
    """Write a small CASToR scan with its sidecar and give that."""
    write_castor(random_scan(1, n_prompts=60, n_delayeds=10), folder / "scan.cdh")
    return folder / "scan.stillpet.json"


def make_safir(folder: Path) -> Path:
    """Write a small SAFIR file."""
    return test_safir.write_scan(folder, test_safir.WORDS)


def make_safir_map(folder: Path) -> Path:
    """Write a small SAFIR file and give its crystal map."""
    test_safir.write_scan(folder, test_safir.WORDS)
    return folder / "map.txt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "target"),
    [
        (make_petsird, "scan.petsird"),
        (make_siemens, "scan.l"),
        (make_siemens_header, "scan.l"),
        (make_castor, "scan.cdh"),
        (make_castor_header, "scan.cdh"),
        (make_castor_table, "scan.cdh"),
        (make_castor_sidecar, "scan.cdh"),
        (make_safir, "scan.safir"),
        (make_safir_map, "scan.safir"),
    ],
)
def test_damaged_files_end_cleanly(
    tmp_path: Path, make: Callable[[Path], Path], target: str
) -> None:
    path = make(tmp_path)
    whole = path.read_bytes()
    assert read_whole(tmp_path / target)  # compiles
    rng = np.random.default_rng(20240501)
    n_opened = 0
    tracemalloc.start()
    try:
        for _ in range(N_MUTATIONS):
            path.write_bytes(mutate(whole, rng))
            tracemalloc.reset_peak()
            start = time.process_time()
            n_opened += read_whole(tmp_path / target)
            assert time.process_time() - start < MAX_SECONDS
            assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    assert n_opened < N_MUTATIONS
    if make is not make_castor_sidecar:  # hardly any damage leaves packed text readable
        assert n_opened > 0  # the damage goes deeper than the signature


HDF5 = """
import sys
from pathlib import Path
import numpy as np
from tests.listmode.formats.test_robustness import mutate, read_whole
path, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
whole = path.read_bytes()
# most bytes are events, whose damage checksums find: aim at the rest of the file
parts = np.flatnonzero(np.frombuffer(whole, np.uint8))
for k in range(first, last):
    rng = np.random.default_rng(k)
    data = bytearray(whole)
    for at in rng.choice(parts, int(rng.integers(1, 4))):
        data[at] ^= 1 << int(rng.integers(8))
    if k % 4 == 0:
        data = mutate(whole, rng)
    damaged = path.with_name(f"{k}.h5")
    damaged.write_bytes(data)
    print(k, read_whole(damaged), flush=True)
    damaged.unlink()
"""


@pytest.mark.slow
def test_damaged_hdf5_ends_cleanly(tmp_path: Path) -> None:
    cut_listmode(random_scan(1), random_scan(1).extent, tmp_path / "scan.h5")
    done = subprocess.run(
        [sys.executable, "-c", HDF5, str(tmp_path / "scan.h5"), "0", str(N_MUTATIONS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        timeout=MAX_SECONDS * N_MUTATIONS,
    )
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[-2000:])
    outcomes = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(outcomes) == N_MUTATIONS
    assert set(outcomes) <= {"True", "False"}  # and it read whole before it was damaged:
    assert read_whole(tmp_path / "scan.h5")
