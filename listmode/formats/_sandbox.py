"""Let a child process open an untrusted HDF5 or ROOT file before this process does.

The HDF5 library is large and written in C: a forged file may crash it, make it allocate without
bound or never return. The child (``_sandbox_child``) walks through the file under limits of
memory and time; only a file that it survives is opened here. Event data are not read in the
child but their first chunks, so the cost is that of starting a process, about 0.1 s a file, and
reading is not slower.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

from listmode.errors import InputError

Kind = Literal["hdf5", "root"]

MAX_BYTES = 1 << 30
MAX_CPU_S = 5
MAX_WALL_S = 60.0  # a slow network disk, or a machine with much else to do
_CHILD = Path(__file__).with_name("_sandbox_child.py")
_REFUSED = 3
_N_REMEMBERED = 1024
_walked: dict[tuple[int, ...], None] = {}  # files that were walked through, or written here


def _identity(path: Path) -> tuple[int, ...]:
    """Tell one content of one file from another, as ``make`` and ``rsync`` do."""
    s = path.stat()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns


def trust(path: Path) -> None:
    """Note a file that this process has written itself: it need not be walked through."""
    while len(_walked) >= _N_REMEMBERED:
        del _walked[next(iter(_walked))]
    _walked[_identity(path)] = None


def check_in_child(path: str | Path, kind: Kind) -> None:
    """Have a child process walk through a file, once for each content of it.

    Parameters
    ----------
    path
        The file.
    kind
        The library that opens it: ``"hdf5"`` (h5py) or ``"root"`` (uproot).

    Raises
    ------
    InputError
        If the child crashes, needs more than 1 GiB of memory beyond its start or 5 s of
        processor time (60 s in all), or finds the file to be damaged or to lead elsewhere.
    """
    path = Path(path)
    try:
        identity = _identity(path)
    except OSError:
        return  # no such file: for the reader to say
    if identity in _walked:
        return
    found = _walk(path, kind)
    if found:
        raise InputError(
            f"{path.name!r} must be a whole {kind.upper()} file that leads to no other file, "
            f"but a trial in a process apart found {found}; copy or write it again"
        )
    trust(path)


def _walk(path: Path, kind: Kind) -> str:
    """Give what is wrong with a file, or nothing."""
    command = [
        sys.executable, "-I", str(_CHILD), kind, str(path.resolve()), str(MAX_BYTES),
        str(MAX_CPU_S),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAX_WALL_S,
            check=False,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "HDF5_USE_FILE_LOCKING": "FALSE"},
        )
    except subprocess.TimeoutExpired:
        return f"no end within {MAX_WALL_S:g} s"
    if done.returncode == 0:
        return ""
    if done.returncode == _REFUSED:
        return done.stdout.decode("utf-8", "replace")[:200]
    return f"a crash: {_reason(done.returncode, done.stderr)}"


def _reason(code: int, stderr: bytes) -> str:
    if code < 0:
        name = signal.strsignal(-code) or "unknown"
        return f"signal {-code}, {name}"
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"exit {code} {' '.join(last)[:120]}".strip()
