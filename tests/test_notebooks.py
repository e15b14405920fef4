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


SMALL = {  # a minute, not ten
    "STILLPET_COUNT_FRACTION": "0.005",
    "STILLPET_VOXEL_MM": "8.0",
    "STILLPET_SENSITIVITY_PAIRS": "1_000_000",
    "STILLPET_SCATTER_POINTS": "120",
    "STILLPET_TABLE_EVENTS": "60_000",
}
RUNS: dict[str, tuple[dict[str, str], tuple[str, ...], int]] = {
    "01_still_frames": (SMALL, ("The patient moved by", "mainly towards the head"), 3),
    "02_reconstruction": (
        {"STILLPET_REPLICATES": "8"},
        ("same bits: True", "95 % interval"),
        5,
    ),
    "03_motion": (SMALL, ("whole-body shift", "motion-corrected", "registration"), 2),
    "04_hotspots_and_context": (
        {},
        (
            "Simulated: no hotspot of this table was ever in a patient",
            "that figure leaks and is shown as a warning only",
            "P1,bone,pelvis,2,,left,simulated",  # the focus, its side, where it is from
            "always the commoner class",
            "context  probability 0.0",  # the solitary focus
        ),
        8,
    ),
}


def test_every_notebook_is_run() -> None:
    assert set(RUNS) == {path.stem for path in NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("name", RUNS)
def test_a_notebook_runs_and_shows_what_it_promises(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    environment, promised, n_pictures = RUNS[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    notebook = _read(FOLDER / f"{name}.ipynb")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )  # fmt: skip
    client.execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    shown = "".join(
        str(output.get("text", ""))
        + str(output.get("data", {}).get("text/markdown", ""))
        + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs
    )
    for words in promised:
        assert words in shown, shown[-3000:]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == n_pictures
