"""Options that several commands share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from listmode.errors import InputError

RESEARCH = "For research. Not a medical device."

ScanFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A listmode file: stillpet HDF5, PETSIRD, Siemens 32-bit, CASToR (of these two "
        "the header or the data file beside it), SAFIR or GATE ROOT.",
        show_default=False,
    ),
]
OutDir = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for what is written.")
]
KeepIn = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--out",
        metavar="DIR",
        help="Folder in which to keep the result as JSON as well.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output, nothing else."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads; all cores if not given. The result has the same bits at any number.",
        show_default=False,
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE.toml",
        help="Settings of all stages, one TOML table each; options given here win over it.",
        show_default=False,
    ),
]
WindowsText = Annotated[
    str | None,
    typer.Option(
        "--windows",
        metavar="A-B,C-D",
        help="Use these windows: seconds from the stream's tick zero, any union, for example "
        "'0-120,600-1200'.",
        show_default=False,
    ),
]
MuFile = Annotated[
    Path | None,
    typer.Option(
        "--mu",
        metavar="FILE.nii.gz",
        help="Attenuation map in 1/cm at 511 keV, as NIfTI in the scanner's frame. Without "
        "it nothing is corrected for attenuation or scatter.",
        show_default=False,
    ),
]
MuTime = Annotated[
    float | None,
    typer.Option(
        "--mu-time",
        metavar="SECONDS",
        help="Scan time whose pose the mu-map shows (0 for a CT just before the scan): the map "
        "then follows the patient into the kept windows.",
        show_default=False,
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE.nii.gz",
        help="Label map (NIfTI); the names of its numbers in FILE.tsv beside it, with the "
        "columns label, name, physiological.",
        show_default=False,
    ),
]
VoxelMm = Annotated[
    float | None, typer.Option("--voxel-mm", help="Voxel size, mm.", show_default="3.3")
]
Iterations = Annotated[
    int | None, typer.Option("--iterations", min=1, help="OSEM iterations.", show_default=False)
]
Subsets = Annotated[
    int | None, typer.Option("--subsets", min=1, help="OSEM subsets.", show_default=False)
]
PsfMm = Annotated[
    float | None,
    typer.Option(
        "--psf-mm", min=0.0, help="FWHM of the resolution model, mm; 0 for none.",
        show_default=False,
    ),
]  # fmt: skip
FilterMm = Annotated[
    float | None,
    typer.Option(
        "--filter-mm", min=0.0, help="FWHM of the Gaussian filter afterwards, mm; 0 for none.",
        show_default=False,
    ),
]  # fmt: skip
UseScatter = Annotated[
    bool, typer.Option("--scatter/--no-scatter", help="Correct for scatter (needs --mu).")
]
UseRandoms = Annotated[
    bool, typer.Option("--randoms/--no-randoms", help="Correct for randoms.")
]
CorrectMotion = Annotated[
    bool,
    typer.Option(
        "--correct-motion/--no-correct-motion",
        help="Also reconstruct all minutes with the found shifts of the whole body corrected.",
    ),
]
Register = Annotated[
    bool,
    typer.Option(
        "--register/--no-register",
        help="Look for turns of the body too, by registration of short images of the states "
        "between its shifts.",
    ),
]
PosesFile = Annotated[
    Path | None,
    typer.Option(
        "--poses",
        metavar="FILE.csv",
        help="Correct for this motion: time_s, x_mm, y_mm, z_mm and, if the patient turned, "
        "rx_deg, ry_deg, rz_deg or qw, qx, qy, qz; a row holds until the next one. 'bed' for "
        "the moves of bed and gantry that a PETSIRD file holds.",
        show_default=False,
    ),
]
Penalty = Annotated[
    float | None,
    typer.Option(
        "--penalty",
        metavar="STRENGTH",
        min=0.0,
        help="Penalised likelihood instead of OSEM: strength of the relative difference prior, "
        "for few counts; 0.003 (sharp) to 0.02 (smooth) is usual.",
        show_default=False,
    ),
]
BootstrapN = Annotated[
    int | None,
    typer.Option(
        "--bootstrap",
        metavar="N",
        min=0,
        help="Also reconstruct N replicates of resampled events (a multiple of 8; 24 is "
        "usual): a standard deviation image, and the interval of each hotspot's SUVmax.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Keep the state of the iterations in the output folder until the end, and go on "
        "from it after a kill.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Keep sensitivity images here and use them again.",
        show_default=False,
    ),
]


@contextmanager
def resuming(folder: Path, *, is_wanted: bool) -> Iterator[Path | None]:
    """Give the folder of the states, and remove it once all is written."""
    states = folder / ".stillpet-resume" if is_wanted else None
    yield states
    if states is not None:
        shutil.rmtree(states, ignore_errors=True)


def count_threads(threads: int | None) -> int:
    """Give the number of threads to use: as asked, or one a core that may be used."""
    if threads is not None:
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_folder(folder: Path) -> Path:
    """Make the output folder, and find out early that it cannot be written to.

    Raises
    ------
    InputError
        If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".stillpet-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the output folder must be writable, but {folder.name!r} is not "
            f"({error.strerror}); choose another with -o"
        ) from None
    return folder
