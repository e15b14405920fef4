"""Search for files that break a reader, led by the code they reach (atheris, Linux).

``python -m benchmarks.fuzz_atheris --reader petsird --seconds 300`` needs the extra ``fuzz``.
Our own modules are instrumented, so that a mutation that reaches new lines is kept and goes on;
kernels run compiled and with bounds checks. It starts from the small files of
``tests.fuzz_readers``. What breaks is written beside the corpus and shown again by
``--show FILE``. libFuzzer ends a case that takes 5 s or 1 GB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

MAX_SECONDS = 5
MAX_MB = 2048  # libFuzzer counts the whole process: 1 GB beyond its start


def _prepare() -> None:
    """Have kernels check their indices, with a cache of their own."""
    os.environ.setdefault("NUMBA_BOUNDSCHECK", "1")
    folder = Path(tempfile.gettempdir()) / "stillpet-fuzz-boundscheck"
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))


def fuzz(reader: str, target: str, seconds: int, out: Path) -> None:
    """Fuzz one file of a reader for a time; libFuzzer ends the process.

    Parameters
    ----------
    reader
        A key of ``tests.fuzz_readers.SEEDS``.
    target
        Name of the file to damage, such as ``"scan.cdh"``; empty for the one that is opened.
    seconds
        How long.
    out
        Folder of the corpus and of what breaks.
    """
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    kernels = ["listmode.formats._kernels"]  # numba compiles their bytecode as it is
    with atheris.instrument_imports(
        include=["listmode.formats", "listmode.scanner"], exclude=kernels
    ):
        from tests.fuzz_readers import SEEDS, read_all

    fast = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=fast if fast.is_dir() else None))
    seed = SEEDS[reader](folder)
    path = next((p for p in seed.targets if p.name == target), seed.opened)
    read_all(seed)  # compiles
    corpus = out / f"{reader}-{path.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "whole").write_bytes(seed.whole[path])

    def run_one(data: bytes) -> None:
        path.write_bytes(data)
        read_all(seed)

    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_MB}", f"-artifact_prefix={out}/{reader}-{path.name}-",
        f"-max_len={2 * len(seed.whole[path])}", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    atheris.Setup(arguments, run_one)
    atheris.Fuzz()


def show(reader: str, target: str, found: Path) -> None:
    """Read one stored file and let what breaks come out."""
    from tests.fuzz_readers import SEEDS, read_all

    with tempfile.TemporaryDirectory() as name:
        seed = SEEDS[reader](Path(name))
        path = next((p for p in seed.targets if p.name == target), seed.opened)
        path.write_bytes(found.read_bytes())
        print(read_all(seed))


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", required=True)
    parser.add_argument("--target", default="", help="which file of the scan to damage")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "atheris")
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    _prepare()
    if options.show is not None:
        show(options.reader, options.target, options.show)
    else:
        fuzz(options.reader, options.target, options.seconds, options.out)


if __name__ == "__main__":
    main()
