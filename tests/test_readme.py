"""What README shows must exist."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_the_chain_in_python_imports_what_there_is() -> None:
    start = README.index("```python\n") + len("```python\n")
    tree = ast.parse(README[start : README.index("```", start)])
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_both_commands_and_the_disclaimer_are_shown() -> None:
    assert "make demo" in README
    assert "make test" in README
    assert "For research. Not a medical device." in README
