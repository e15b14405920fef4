"""Where data from outside the project lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def outside_data() -> Path:
    """Give the folder of outside data, or skip with a reason."""
    default = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("STILLPET_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no outside data at {folder}; set STILLPET_DATA")
    return folder
