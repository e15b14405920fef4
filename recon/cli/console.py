"""What the command line shows: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from listmode.errors import InputError
from listmode.progress import Stage

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class _RateColumn(ProgressColumn):
    """Units per second, with a prefix where the number is large."""

    def render(self, task: Task) -> Text:
        """Draw the column."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(format_rate(speed, str(task.fields["unit"])), style="cyan")


def format_rate(per_second: float, unit: str) -> str:
    """Write a rate with three digits and a prefix.

    Examples
    --------
    >>> format_rate(5_230_000.0, "events")
    '5.23 M events/s'
    """
    for factor, prefix in ((1e9, "G "), (1e6, "M "), (1e3, "k ")):
        if per_second >= factor:
            return f"{per_second / factor:.3g} {prefix}{unit}/s"
    return f"{per_second:.3g} {unit}/s"


class _BarStage:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, n: int) -> None:
        """Count ``n`` more units as done."""
        self._progress.advance(self._task, n)


class Bars:
    """Progress bars with rates; a :class:`listmode.progress.Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "events") -> Iterator[Stage]:
        """Open a stage of ``total`` units."""
        self._progress.start()
        task = self._progress.add_task(name, total=max(total, 1), unit=unit)
        try:
            yield _BarStage(self._progress, task)
        finally:
            self._progress.stop_task(task)


class Session:
    """One run of a command: its progress, its messages and its one result.

    Attributes
    ----------
    progress
        Hand it to whatever takes long.
    """

    def __init__(self, progress: Bars, console: Console, *, as_json: bool) -> None:
        self.progress = progress
        self._console = console
        self._as_json = as_json
        self._start = time.monotonic()
        self._output = ""

    def say(self, line: str) -> None:
        """Tell the user something while work goes on (standard error)."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self, result: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Set the result: one JSON document, or lines to read. It appears when all is done."""
        if self._as_json:
            self._output = json.dumps(result, indent=2, allow_nan=False) + "\n"
        else:
            self._output = "".join(f"{line}\n" for line in lines)

    def close(self) -> None:
        """Write the result to standard output, where nothing else ever goes."""
        sys.stdout.write(self._output)
        sys.stdout.flush()
        self.say(f"done in {time.monotonic() - self._start:.1f} s")


@contextmanager
def session(*, as_json: bool) -> Iterator[Session]:
    """Run a command: bars on standard error, bad input to exit code 2, Ctrl-C to 130.

    Raises
    ------
    typer.Exit
        With the exit code, after the message has been shown.
    """
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        console=console,
        redirect_stdout=False,  # standard output belongs to the result
        redirect_stderr=False,
    )
    run = Session(Bars(bars), console, as_json=as_json)
    try:
        try:
            yield run
        finally:
            if bars.live.is_started:  # not where no stage began
                bars.stop()
        run.close()
    except InputError as error:
        console.print(f"stillpet: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        console.print("stillpet: interrupted; files under their final names are complete")
        raise typer.Exit(EXIT_INTERRUPTED) from None
