from __future__ import annotations

import pytest

from listmode.formats.scanner_file import load_scanner
from listmode.memory import MemoryListmode
from listmode.scanner import Scanner
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode, step


@pytest.fixture(scope="session")
def quadra() -> Scanner:
    return load_scanner("quadra", "UHS")


@pytest.fixture(scope="session")
def moved_scan() -> MadeUpScan:
    """Everything moves by (2, 0, 13) mm at 71.3 s while the bladder fills."""
    return MadeUpScan(
        duration_s=150.0, filling_ml_min=5.0, body_move=step(71.3, (2.0, 0.0, 13.0)), seed=11
    )


@pytest.fixture(scope="session")
def moved_listmode(quadra: Scanner, moved_scan: MadeUpScan) -> MemoryListmode:
    return make_listmode(quadra, moved_scan)
