"""One self-contained HTML page from text, tables and PNG figures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path

import jinja2

from recon.io import files


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows, in words for those who cannot see it and as a caption."""

    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells as text; columns named in ``text_columns`` are set flush left."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Section:
    """A headed part of the page."""

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    code: str = ""


@dataclass(frozen=True)
class Report:
    """The whole page: what was found first, in words, then the evidence."""

    title: str
    subtitle: str
    findings: Sequence[str]
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def render_html(report: Report) -> str:
    """Render a report as one HTML page that loads nothing from anywhere."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    source = (resources.files("recon") / "report" / "report.html").read_text("utf-8")
    return environment.from_string(source).render(
        report=report, version=metadata.version("stillpet")
    )


def save_report(path: Path, report: Report) -> None:
    """Write a report; the file appears whole or not at all.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    files.write_whole({path: render_html(report).encode("utf-8")})
