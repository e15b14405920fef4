"""Feed a reader with damaged files: no crash, no hang, no flood, no wrong promise.

``python -m benchmarks.fuzz_readers --reader petsird --cases 100000 --seed 1`` damages a small
file again and again and reads it. Batches run in child processes: a case may take 5 s of
processor time and 1 GB of memory beyond the child's start. The state is kept after each batch,
and the same command goes on where it was. ``--boundscheck`` lets each kernel check its indices.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

MAX_SECONDS = 5.0
MAX_BYTES = 1_000_000_000
MAX_WALL_S = 120.0
BATCH = 2_000
_ROOT = Path(__file__).parents[1]


@dataclass
class State:
    """How far a run is and what it found."""

    reader: str
    seed: int
    done: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    findings: list[dict[str, str | int]] = field(default_factory=list)


def run_batch(
    reader: str, seed: int, first: int, last: int, mark: Path, *, is_sandboxed: bool = False
) -> None:
    """Run cases ``[first, last)`` in this process, noting each before it begins.

    Outcomes and findings go to stdout as JSON.
    """
    import resource
    import signal

    from tests.fuzz_readers import SEEDS, read_all, run_case

    fast = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as name,
        mark.open("r+b") as file,
        mmap.mmap(file.fileno(), 8) as noted,
    ):
        made = SEEDS[reader](Path(name))
        assert read_all(made) == "whole" or reader in ("safir", "siemens")  # compiles
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
        outcomes: Counter[str] = Counter()
        findings = []
        for case in range(first, last):
            noted[:] = case.to_bytes(8, "little")
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # its signal ends the process
            try:
                rng = np.random.default_rng([seed, case])
                outcomes[run_case(made, rng, is_sandboxed=is_sandboxed)] += 1
            except Exception as error:
                findings.append({"case": case, "code": 1, "text": _where(error)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps({"outcomes": outcomes, "findings": findings}))


def _where(error: BaseException) -> str:
    import traceback

    lines = traceback.format_exception(error)
    return "".join(lines)[-1500:]


def _child(
    state: State, cases: tuple[int, int], mark: Path, *, boundscheck: bool, is_sandboxed: bool
) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", "--reader", state.reader]
    command += ["--seed", str(state.seed), "--batch", *map(str, cases), str(mark)]
    command += ["--sandboxed"] * is_sandboxed
    extra = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    if boundscheck:  # a cache of its own: the cache does not know of the check
        folder = Path(tempfile.gettempdir()) / "stillpet-fuzz-boundscheck"
        extra |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(folder)}
    try:
        done = subprocess.run(
            command, cwd=_ROOT, env=os.environ | extra, capture_output=True, text=True,
            check=False, timeout=MAX_WALL_S + (cases[1] - cases[0]) * 0.1,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, "", "the batch did not end"
    return done.returncode, done.stdout, done.stderr


def _run_child(
    state: State, cases: tuple[int, int], *, boundscheck: bool, is_sandboxed: bool = False
) -> tuple[int, str, int]:
    """Run cases in a child; give its exit code, what it says, and the case it was at."""
    with tempfile.NamedTemporaryFile() as mark:
        mark.write(cases[0].to_bytes(8, "little"))
        mark.flush()
        code, text, stderr = _child(
            state, cases, Path(mark.name), boundscheck=boundscheck, is_sandboxed=is_sandboxed
        )
        mark.seek(0)
        return code, stderr[-1500:] if code else text, int.from_bytes(mark.read(8), "little")


def advance(state: State, last: int, *, boundscheck: bool = False) -> None:
    """Run the next batch of a run, up to case ``last`` or to a case that ends the process.

    HDF5 and ROOT may end it: a library crashes or hangs over some files, and the reader's own
    child process is there to take that. Such a case runs once more with that child, and must
    be refused.
    """
    start = time.perf_counter()
    code, text, case = _run_child(state, (state.done, last), boundscheck=boundscheck)
    if code:
        if case > state.done:  # count again what went well before it
            advance(state, case, boundscheck=boundscheck)
        last = case + 1
        if state.reader in ("hdf5", "gate"):
            code, text, _ = _run_child(
                state, (case, last), boundscheck=boundscheck, is_sandboxed=True
            )
            is_taken = code == 0 and json.loads(text)["outcomes"] == {"refused": 1}
            text = '{"outcomes": {"stopped by the sandbox": 1}, "findings": []}'
            code = 0 if is_taken else code or 1
    if code:
        state.findings.append({"case": case, "code": code, "text": text})
    else:
        found = json.loads(text)
        for key, n in found["outcomes"].items():
            state.outcomes[key] = state.outcomes.get(key, 0) + n
        state.findings += found["findings"]
    state.done = last
    state.seconds += time.perf_counter() - start


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
    """
    state = State(reader, seed)
    if state_path is not None and state_path.is_file():
        state = State(**json.loads(state_path.read_text("utf-8")))
    while state.done < n_cases and len(state.findings) < max_findings:
        advance(state, min(state.done + BATCH, n_cases), boundscheck=boundscheck)
        if state_path is not None:
            part = state_path.with_suffix(".part")
            part.write_text(json.dumps(asdict(state), indent=1), "utf-8")
            part.replace(state_path)
        tell(state)
    return state


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
    parser.add_argument("--batch", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--sandboxed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        first, last, mark = options.batch
        run_batch(
            options.reader, options.seed, int(first), int(last), Path(mark),
            is_sandboxed=options.sandboxed,
        )  # fmt: skip
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
