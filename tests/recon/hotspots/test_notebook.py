"""The notebook on hotspots runs whole and shows what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.notebook
def test_the_hotspots_notebook_runs() -> None:
    nbclient = pytest.importorskip("nbclient")
    read: Any = nbformat.read  # untyped in some versions of nbformat
    notebook = read(ROOT / "notebooks" / "04_hotspots_and_context.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    shown = "".join(str(output.get("text", "")) for output in outputs)
    assert "Simulated: no hotspot of this table was ever in a patient" in shown
    assert "that figure leaks and is shown as a warning only" in shown
    assert "P1,bone,pelvis,2,,left,simulated" in shown  # the focus, its side, where it is from
    assert "always the commoner class" in shown
    assert "context  probability 0.0" in shown  # the solitary focus
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 8
