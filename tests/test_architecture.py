"""The rooms of ARCHITECTURE.md, read from the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = {
    "listmode": [
        "errors",
        "_kernels",
        "windows",
        "module_pairs",
        "scanner",
        "events",
        "progress",
        "source",
        "memory",
        "formats",
        "histogram",
        "motion",
        "simulate",
    ],
    "recon": [
        "image",
        "suv",
        "_kernels_vectors",
        "_kernels",
        "_kernels_bootstrap",
        "_kernels_prior",
        "projector",
        "motion",
        "corrections",
        "sensitivity",
        "psf",
        "events_order",
        "events_store",
        "checkpoint",
        "osem",
        "reconstruct",
        "cost",
        "penalty",
        "bootstrap",
        "gates",
        "scatter_loop",
        "hotspots",
        "io",
        "settings",
        "report",
        "pipeline",
        "cli",
    ],
}
EDGE = ("formats", "io", "report", "settings", "cli")
FORBIDDEN_IN_KERNELS = ("listmode", "recon", "pathlib", "h5py", "nibabel")


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1]


def _imports(path: Path) -> set[str]:
    """Absolute names of what a module imports when it is loaded or called."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _rooms_imported(path: Path, package: str) -> set[str]:
    return {
        name.split(".")[1]
        for name in _imports(path)
        if name.startswith(f"{package}.") and len(name.split(".")) > 1
    }


def test_listmode_never_imports_recon() -> None:
    guilty = [
        str(path.relative_to(ROOT))
        for path in _sources("listmode")
        if any(name.split(".")[0] == "recon" for name in _imports(path))
    ]
    assert guilty == []


@pytest.mark.parametrize("package", ["listmode", "recon"])
def test_every_module_has_its_place_in_the_list(package: str) -> None:
    rooms = {_room(path) for path in _sources(package)} - {"__init__"}
    assert rooms <= set(ORDER[package])


@pytest.mark.parametrize("package", ["listmode", "recon"])
def test_a_module_imports_only_what_stands_above_it(package: str) -> None:
    rank = {room: i for i, room in enumerate(ORDER[package])}
    guilty = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in _sources(package)
        if _room(path) != "__init__"
        for other in _rooms_imported(path, package)
        if other in rank and rank[other] > rank[_room(path)]
    ]
    assert guilty == []


@pytest.mark.parametrize("package", ["listmode", "recon"])
def test_kernels_know_no_project_types_and_no_files(package: str) -> None:
    guilty = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _sources(package)
        if path.name.startswith("_kernels")
        for name in _imports(path)
        if name.split(".")[0] in FORBIDDEN_IN_KERNELS and "_kernels" not in name
    ]
    assert guilty == []


def _opens_files(path: Path) -> list[int]:
    """Lines that open a file: the builtin, a method of a path, or a library's reader."""
    openers = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "File"}
    lines = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            f = node.func
            name = f.id if isinstance(f, ast.Name) else getattr(f, "attr", "")
            if name in openers:
                lines.append(node.lineno)
    return lines


# Caches, spilled events and kept states are files nobody but their own module reads.
OWN_SCRATCH = {"recon/sensitivity.py", "recon/events_order.py", "recon/checkpoint.py"}


@pytest.mark.parametrize("package", ["listmode", "recon"])
def test_only_the_edge_opens_files(package: str) -> None:
    guilty = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in _sources(package)
        if _room(path) not in EDGE and str(path.relative_to(ROOT)) not in OWN_SCRATCH
        for line in _opens_files(path)
    ]
    assert guilty == []


def test_the_room_table_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    missing = [
        f"{package}/{room}"
        for package, rooms in ORDER.items()
        for room in rooms
        if f"`{room}.py`" not in text and f"`{room}/`" not in text
    ]
    assert missing == []
