"""The notebooks run whole, from public functions only, and are stored without outputs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def _read(path: Path) -> Any:
    read: Any = nbformat.read  # untyped in some versions of nbformat
    return read(path, as_version=4)


def _code(path: Path) -> list[str]:
    return [cell.source for cell in _read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    for cell in _read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_defines_no_function_and_uses_no_private_name(path: Path) -> None:
    for source in _code(path):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names)


@pytest.mark.slow
@pytest.mark.notebook
def test_the_still_frames_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 % of the counts and in 8 mm voxels, so that it ends in a minute or two."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("STILLPET_COUNT_FRACTION", "0.01")
    monkeypatch.setenv("STILLPET_VOXEL_MM", "8.0")
    notebook = _read(FOLDER / "01_still_frames.ipynb")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )  # fmt: skip
    client.execute()
    shown = "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/markdown", ""))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "The patient moved by" in shown
    assert "mainly towards the head" in shown
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
