"""Feed a reader with damaged files: no crash, no hang, no flood, no wrong promise.

``python -m benchmarks.fuzz_readers --reader petsird --cases 100000 --seed 1`` damages a small
file again and again and reads it. A worker process compiles the reader once and forks itself
for each batch, so that nothing that a case leaves behind lasts: a case may take 5 s of
processor time and 1 GB of memory beyond the fork's start. The state is kept after each batch,
and the same command goes on where it was. ``--boundscheck`` lets each kernel check its indices.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from tests.fuzz_readers import SEEDS, read_all, run_case

MAX_SECONDS = 5.0
MAX_BYTES = 1_000_000_000
MAX_WALL_S = 120.0  # of one case, however busy the machine is
BATCH = 2_000
_ROOT = Path(__file__).parents[1]
_GUARDED = ("hdf5", "gate")
_OUTCOMES = ("", "refused", "whole", "partial")  # by the byte that a fork notes
_STOPPED = "stopped by the sandbox"

Finding = dict[str, str | int]


@dataclass
class State:
    """How far a run is and what it found; ``seconds`` are of processor time."""

    reader: str
    seed: int
    done: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class Worker:
    """Runs cases of one reader in forks of this process (Linux).

    Parameters
    ----------
    reader
        A key of ``tests.fuzz_readers.SEEDS``.
    seed
        Of all cases.
    folder
        Where the small files lie; best in memory.
    """

    def __init__(self, reader: str, seed: int, folder: Path) -> None:
        self._seed = seed
        self._made = SEEDS[reader](folder)
        self._is_guarded = reader in _GUARDED
        assert read_all(self._made) == "whole" or reader in ("safir", "siemens")  # compiles
        gc.collect()
        gc.freeze()  # forks need not look through what lives on

    def run(self, first: int, last: int) -> tuple[Counter[str], list[Finding]]:
        """Run cases ``[first, last)``; count the outcomes, and give findings.

        HDF5 and ROOT may end a fork: a library crashes or hangs over some files, and the
        reader's own child process is there to take that. Such a case runs once more with that
        child, and must be refused.
        """
        outcomes: Counter[str] = Counter()
        findings: list[Finding] = []
        case = first
        while case < last:
            n_done, code, counts, found = self._fork(case, last)
            outcomes += counts
            findings += found
            case += n_done
            if not code:
                break
            if self._is_guarded:
                _, code, counts, _ = self._fork(case, case + 1, is_sandboxed=True)
                code = 0 if counts == {"refused": 1} else code or 1
            if code:
                findings.append({"case": case, "code": code, "text": "it ended its process"})
            else:
                outcomes[_STOPPED] += 1
            case += 1
        return outcomes, findings

    def _fork(
        self, first: int, last: int, *, is_sandboxed: bool = False
    ) -> tuple[int, int, Counter[str], list[Finding]]:
        """Run cases in a fork; give how many it ended, its exit code, and what it found."""
        size = 8 + last - first
        with tempfile.TemporaryFile() as told, mmap.mmap(-1, size) as noted:
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    self._run_here(first, last, noted, told, is_sandboxed=is_sandboxed)
                    code = 0
                os._exit(code)
            code = _wait(pid, noted)
            told.seek(0)
            found = [json.loads(line) for line in told]
            n_done = int.from_bytes(noted[:8], "little")
            counts = Counter(_OUTCOMES[k] for k in noted[8 : 8 + n_done] if k)
        return n_done, code, counts, found

    def _run_here(
        self, first: int, last: int, noted: mmap.mmap, told: IO[bytes], *, is_sandboxed: bool
    ) -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in range(first, last):
            noted[:8] = (case - first).to_bytes(8, "little")
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # its signal ends the process
            try:
                rng = np.random.default_rng([self._seed, case])
                outcome = run_case(self._made, rng, is_sandboxed=is_sandboxed)
                noted[8 + case - first] = _OUTCOMES.index(outcome)
            except Exception as error:
                found: Finding = {"case": case, "code": 1, "text": _where(error)}
                told.write(json.dumps(found).encode() + b"\n")
                told.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
        noted[:8] = (last - first).to_bytes(8, "little")


def _wait(pid: int, noted: mmap.mmap) -> int:
    """Wait for a fork and give its exit code; end it if one case takes too long."""
    case, since = noted[:8], time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if noted[:8] != case:
            case, since = noted[:8], time.monotonic()
        elif time.monotonic() - since > MAX_WALL_S:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _where(error: BaseException) -> str:
    import traceback

    lines = traceback.format_exception(error)
    return "".join(lines)[-1500:]


def serve(reader: str, seed: int, first: int, last: int) -> None:
    """Run cases in batches, and print one line of JSON after each."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its folder goes with it
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as name:
        worker = Worker(reader, seed, Path(name))
        while first < last:
            start = sum(os.times()[:4])
            end = min(first + BATCH, last)
            outcomes, findings = worker.run(first, end)
            seconds = sum(os.times()[:4]) - start
            line = {"done": end, "seconds": seconds, "outcomes": outcomes, "findings": findings}
            print(json.dumps(line), flush=True)
            first = end


def run(
    reader: str, n_cases: int, seed: int, *, state_path: Path | None = None,
    boundscheck: bool = False, tell: Callable[[State], None] = lambda _: None,
    max_findings: int = 20,
) -> State:  # fmt: skip
    """Run cases of a reader, going on from a stored state.

    Parameters
    ----------
    reader
        A key of ``tests.fuzz_readers.SEEDS``.
    n_cases, seed
        Cases ``0 .. n_cases`` of this seed.
    state_path
        Where to keep the state; it is not kept if this is not given.
    max_findings
        Stop after so many.

    Raises
    ------
    RuntimeError
        If the worker itself ends.
    """
    state = State(reader, seed)
    if state_path is not None and state_path.is_file():
        state = State(**json.loads(state_path.read_text("utf-8")))
    if state.done >= n_cases:
        return state
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.fuzz_readers",
        "--reader",
        reader,
    ]
    command += ["--seed", str(seed), "--serve", str(state.done), str(n_cases)]
    extra = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    if boundscheck:  # a cache of its own: the cache does not know of the check
        folder = Path(tempfile.gettempdir()) / "stillpet-fuzz-boundscheck"
        extra |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(folder)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=_ROOT, env=os.environ | extra, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        ) as worker,
    ):  # fmt: skip
        assert worker.stdout is not None
        for line in worker.stdout:
            _add(state, json.loads(line))
            if state_path is not None:
                part = state_path.with_suffix(".part")
                part.write_text(json.dumps(asdict(state), indent=1), "utf-8")
                part.replace(state_path)
            tell(state)
            if len(state.findings) >= max_findings:
                worker.terminate()
                return state
        if worker.wait() or state.done < n_cases:
            errors.seek(0)
            raise RuntimeError(f"the worker ended after {state.done} cases: {errors.read()}")
    return state


def _add(state: State, batch: dict[str, object]) -> None:
    state.done = int(str(batch["done"]))
    state.seconds += float(str(batch["seconds"]))
    outcomes, findings = batch["outcomes"], batch["findings"]
    assert isinstance(outcomes, dict)
    assert isinstance(findings, list)
    for key, n in outcomes.items():
        state.outcomes[key] = state.outcomes.get(key, 0) + n
    state.findings += findings


def _tell(state: State) -> None:
    print(
        f"{state.reader}: {state.done} cases, {state.done / state.seconds:.0f}/s, "
        f"{state.outcomes}, {len(state.findings)} findings",
        flush=True,
    )


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", required=True)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the states; resumes from there")
    parser.add_argument("--boundscheck", action="store_true")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.reader, options.seed, *options.serve)
        return 0
    path = None
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        kind = "-boundscheck" if options.boundscheck else ""
        path = options.out / f"{options.reader}-{options.seed}{kind}.json"
    state = run(
        options.reader, options.cases, options.seed, state_path=path,
        boundscheck=options.boundscheck, tell=_tell,
    )  # fmt: skip
    for found in state.findings:
        print(f"case {found['case']} (exit {found['code']}): {found['text']}")
    return 1 if state.findings else 0


if __name__ == "__main__":
    sys.exit(main())
