"""How long work tells its caller how far it is; the command line draws bars from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One running stage of work."""

    def advance(self, n: int) -> None:
        """Count ``n`` more units as done."""


class Progress(Protocol):
    """Receives the stages of long work, one after another or nested."""

    def stage(
        self, name: str, total: int, unit: str = "events"
    ) -> AbstractContextManager[Stage]:
        """Open a stage of ``total`` units; the rate is shown in units per second."""


class _Silent:
    def advance(self, n: int) -> None:
        """Ignore it."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "events") -> Iterator[Stage]:
        """Ignore it."""
        del name, total, unit
        yield self


SILENT: Progress = _Silent()
"""Tells nobody anything: the default of every public function."""
