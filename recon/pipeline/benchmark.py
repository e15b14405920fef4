"""Find the benchmarks of a source checkout and run them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from listmode.errors import InputError
from listmode.progress import SILENT, Progress

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class BenchmarkRow:
    """One measured rate.

    Parameters
    ----------
    name
        What ran, and its size.
    events_per_s
        Median rate.
    ratio
        Rate over that of ``compared_with``, measured alternately in the same run.
    compared_with
        What the ratio compares with; empty without a ratio.
    """

    name: str
    events_per_s: float
    ratio: float | None = None
    compared_with: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give the row as JSON values."""
        return asdict(self)


Suite = Callable[..., list[BenchmarkRow]]


def load_suite(root: Path = ROOT) -> Suite:
    """Import the benchmark suite from a source checkout; see :func:`load_module`."""
    return cast("Suite", load_module("suite", root).run_suite)


def load_module(name: str, root: Path = ROOT) -> Any:
    """Import a module of ``benchmarks/`` from a source checkout.

    Raises
    ------
    InputError
        If stillpet does not run from a source checkout.
    """
    folder = root / "benchmarks"
    if not (folder / "suite.py").is_file():
        raise InputError(
            "benchmarks run from a source checkout, which holds the baseline they compare "
            "with, but stillpet is installed without it; clone the project and install it "
            "with 'pip install -e .'"
        )
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["benchmarks"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"benchmarks.{name}")


def run_benchmarks(
    *, threads: int = 2, is_quick: bool = False, progress: Progress = SILENT
) -> list[BenchmarkRow]:
    """Measure events per second on this machine.

    Parameters
    ----------
    threads
        Threads of both sides of each comparison.
    is_quick
        Fewer events and rounds.

    Raises
    ------
    InputError
        If stillpet does not run from a source checkout.
    """
    return load_suite()(threads=threads, is_quick=is_quick, progress=progress)
