"""The state of a reconstruction on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

MAX_SHARE = 0.03  # of the time may go into writing states
VERSION = 1  # of what the bytes of a state mean; a new one makes old states unknown
DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class State:
    """What an algorithm needs to go on.

    Parameters
    ----------
    step
        Updates that are done.
    numbers
        Counters, JSON values.
    arrays
        Images by name, float32, any shape.
    """

    step: int
    numbers: Mapping[str, int | float]
    arrays: Mapping[str, F32]


@dataclass(eq=False)
class Checkpoint:
    """One reconstruction's state in one file, replaced as a whole.

    A state is written under another name and renamed, and ends with a digest of itself: after a
    kill there is the old state or the new one. A damaged state counts as none. A full disk
    costs the resume, never the reconstruction.

    Parameters
    ----------
    folder
        Where the file is; made if need be.
    key
        SHA-256 over everything that the updates depend on; see :func:`digest`. It names the
        file, so a changed setting never meets an old state.
    max_share
        Share of the time that writing may take: of updates faster than that allows, some
        leave no state.
    """

    folder: Path
    key: str
    max_share: float = MAX_SHARE
    write_s: float = field(default=0.0, init=False)
    _begun_s: float = field(default_factory=time.perf_counter, init=False)

    @property
    def path(self) -> Path:
        """The file of the state."""
        return self.folder / f"state-{self.key[:32]}"

    def load(self) -> State | None:
        """Read the last state; ``None`` if there is none, or none that is whole."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        body = memoryview(content)[:-DIGEST_BYTES]
        mark = hashlib.sha256(self.key.encode())
        mark.update(body)
        if mark.digest() != content[-DIGEST_BYTES:]:
            return None
        at = content.index(b"\n") + 1
        about = json.loads(content[:at])
        arrays: dict[str, F32] = {}
        for name, shape in about["arrays"].items():
            n = int(np.prod(shape))
            arrays[name] = np.frombuffer(body, np.float32, n, at).reshape(shape)
            at += 4 * n
        return State(about["step"], about["numbers"], arrays)

    def save(self, state: State, *, is_last: bool = False) -> None:
        """Write a state, unless that would cost too much of the time; the last one always."""
        now = time.perf_counter()
        # What the next state will take is what they took so far, on average.
        if not is_last and self.write_s > self.max_share * (now - self._begun_s):
            return
        arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in state.arrays.items()}
        head = {
            "step": state.step,
            "numbers": dict(state.numbers),
            "arrays": {name: a.shape for name, a in arrays.items()},
        }
        parts = [memoryview(json.dumps(head).encode() + b"\n")]
        parts += [a.reshape(-1).view(np.uint8).data for a in arrays.values()]
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        mark = hashlib.sha256(self.key.encode())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                for part in parts:
                    file.write(part)
                    mark.update(part)
                file.write(mark.digest())
            partial.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
        self.write_s += time.perf_counter() - now


def digest(parts: Iterable[str | NDArray[Any] | None]) -> str:
    """Hash texts and arrays, in order, with the shape and type of each array.

    Returns
    -------
    str
        SHA-256 as hexadecimal text.
    """
    h = hashlib.sha256(str(VERSION).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f"\n{part.dtype.str} {part.shape}\n".encode())
            h.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            h.update(f"\n{part}\n".encode())
    return h.hexdigest()
