"""The commands about listmode files: look into one, check it, make new ones from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.convert import (
    convert_listmode,
    files_of,
    repair_listmode,
    thin_listmode,
    what_is_lost,
)
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.info import describe
from listmode.formats.validate import validate_listmode
from listmode.source import Listmode
from listmode.windows import Windows
from recon.cli import console, text
from recon.cli.options import RESEARCH, AsJson, KeepIn, ScanFile, make_folder
from recon.cli.rates import rate_lines
from recon.io.files import write_whole
from recon.io.tables import save_json
from recon.report.rate_figure import draw_rates

app = typer.Typer()

EXIT_FAULTS = 1
_BYTES = {".petsird": (1, 20), ".cdh": (16, 0)}  # of an event and of a tick, about
_HDF5_BYTES = (10, 16)

NewFile = Annotated[
    Path, typer.Argument(metavar="OUT", help="The file to make.", show_default=False)
]
Header = Annotated[
    Path | None,
    typer.Option(
        "--header",
        metavar="FILE",
        help="What the format keeps beside the events, if it is not found by itself: Siemens "
        "header, SAFIR crystal map, GATE scanner map (.toml).",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files of that name.")]


@app.command(epilog=RESEARCH)
def info(
    file: ScanFile, out: KeepIn = None, header: Header = None, as_json: AsJson = False
) -> None:
    """Say what a listmode file holds: scanner, counts, rates, tags, dose, defects, clock zero.

    Draws the count rates over time. With ``-o`` it writes info.json and rates.png.
    """
    with (
        console.session(as_json=as_json) as run,
        open_listmode(file, header=header) as listmode,
    ):
        result = describe(listmode)
        if out is not None:
            folder = make_folder(out)
            save_json(folder / "info.json", result.to_dict())
            write_whole({folder / "rates.png": draw_rates(result)})
        run.finish(result.to_dict(), [*text.info_lines(result), "", *rate_lines(result)])


@app.command(epilog=RESEARCH)
def convert(
    file: ScanFile,
    out: NewFile,
    header: Header = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a scan in another format: .h5 or .hdf5 (ours), .petsird or .cdh (CASToR).

    Says what the new format has no place for. Formats and what each keeps: docs/formats.md.
    """
    with console.session(as_json=as_json) as run:
        made = files_of(out)
        _refuse_to_replace(made, force=force, source=file)
        with open_listmode(file, header=header) as listmode:
            lost = what_is_lost(listmode, out)
            for line in lost:
                run.say(f"not kept: {line}")
            run.say(_size_line(listmode, listmode.extent, out))
            convert_listmode(listmode, out, progress=run.progress)
            result = _new_file(listmode, made, listmode.extent)
            lines = [*_new_lines(result), *(f"not kept    {line}" for line in lost)]
        run.finish(result | {"not_kept": list(lost)}, lines)


@app.command(epilog=RESEARCH)
def cut(
    file: ScanFile,
    out: NewFile,
    windows: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="A-B,C-D",
            help="The time to keep: seconds from tick zero, any union, such as 0-120,600-1200.",
            show_default=False,
        ),
    ],
    header: Header = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the events of some windows to a new HDF5 file that keeps the clock.

    The same windows mean the same in both files and give the same image, bit by bit.
    """
    with console.session(as_json=as_json) as run:
        _check_new(out, file, force=force)
        kept = Windows.parse(windows)
        with open_listmode(file, header=header) as listmode:
            listmode.check_windows(kept)
            run.say(_size_line(listmode, kept, out))
            cut_listmode(listmode, kept, out, progress=run.progress)
            result = _new_file(listmode, [out], kept.merged())
        run.finish(result, _new_lines(result))


@app.command(epilog=RESEARCH)
def thin(
    file: ScanFile,
    out: NewFile,
    fraction: Annotated[
        float,
        typer.Option("--fraction", help="Share of the events to keep, in (0, 1].",
                     show_default=False),
    ],
    seed: Annotated[int, typer.Option(help="The same seed keeps the same events.")] = 1,
    header: Header = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Keep each event by chance: a new HDF5 file with the counts of a lower dose.

    The counts are those of a lower dose, their make-up is not: randoms fall with the square
    of the activity and the crystals' own background (LSO, LYSO) not at all, but thinning takes
    the same share of all. Less time at the same dose is what it imitates exactly.
    """
    with console.session(as_json=as_json) as run:
        _check_new(out, file, force=force)
        with open_listmode(file, header=header) as listmode:
            thin_listmode(listmode, out, fraction, seed, progress=run.progress)
            extent = listmode.extent
        with open_listmode(out) as thinned:
            result = _new_file(thinned, [out], extent)
            note = thinned.notes[-1]
            share = thinned.protocol.count_fraction
        run.finish(
            result | {"count_fraction": share, "note": note},
            [*_new_lines(result), f"fraction    {share:.6g} of all", f"note        {note}"],
        )


@app.command(epilog=RESEARCH)
def validate(file: ScanFile, header: Header = None, as_json: AsJson = False) -> None:
    """Read a whole file and check every promise of its format.

    Structure, units, tick index, checksums, order of pairs, crystals and TOF bins in range,
    counts that agree. Exit code 0: sound. 1: it opens and has faults, one line each. 2: it
    cannot be opened.
    """
    with console.session(as_json=as_json) as run:
        found = validate_listmode(file, header=header, progress=run.progress)
        lines = [
            f"format      {found.format_name}",
            f"prompts     {found.n_prompts:,}",
            f"delayeds    {found.n_delayeds:,}",
            *(f"inherited   {defect}" for defect in found.inherited_defects),
            *(f"fault       {fault}" for fault in found.faults),
            "sound" if found.is_sound else f"NOT SOUND: {len(found.faults)} faults",
        ]
        run.finish(found.to_dict(), lines)
    if not found.is_sound:
        raise typer.Exit(EXIT_FAULTS)


@app.command(epilog=RESEARCH)
def repair(file: ScanFile, out: NewFile, force: Force = False, as_json: AsJson = False) -> None:
    """Save what can be read of a damaged or unfinished HDF5 file into a new, finished one.

    Also for what a killed writer left: .NAME.*.part, or a live file. Ticks with an event that
    cannot be read are left out as a whole, and the new file says which time it holds.
    """
    with console.session(as_json=as_json) as run:
        _check_new(out, file, force=force)
        held = repair_listmode(file, out, progress=run.progress)
        with open_listmode(out) as saved:
            result = _new_file(saved, [out], held)
            note = saved.notes[-1]
        run.finish(result | {"note": note}, [*_new_lines(result), f"note        {note}"])


def _check_new(out: Path, source: Path, *, force: bool) -> None:
    if out.suffix.lower() not in (".h5", ".hdf5"):
        raise InputError(
            f"this command writes HDF5, so the new name must end in .h5 or .hdf5, but it is "
            f"{out.name!r}; convert the result to another format"
        )
    _refuse_to_replace([out], force=force, source=source)


def _refuse_to_replace(made: Iterable[Path], *, force: bool, source: Path) -> None:
    """Refuse to write over the scan itself, and over any file without ``--force``."""
    for path in made:
        if not path.exists():
            continue
        if source.exists() and path.samefile(source):
            raise InputError(
                f"the new file must not be the scan itself, but both are {path.name!r}; "
                "choose another name"
            )
        if not path.is_file():
            raise InputError(
                f"the new file must be a regular file, but {path.name!r} is a folder, a pipe "
                "or a device; choose another name"
            )
        if not force:
            raise InputError(
                f"a new file must not be there yet, but {path.name!r} is; choose another name "
                "or add --force to replace it"
            )


def _size_line(listmode: Listmode, held: Windows, out: Path) -> str:
    """Say before the work how much there will be to write."""
    n_events = listmode.count(held) + listmode.count(held, "delayeds")
    n_ticks = int(held.stop_ms[-1] - held.start_ms[0])
    per_event, per_tick = _BYTES.get(out.suffix.lower(), _HDF5_BYTES)
    if out.suffix.lower() == ".petsird":  # its numbers take a byte for every seven bits
        per_event += round(2 * math.log2(listmode.scanner.n_crystals) / 7)
    n_bytes = n_events * per_event + n_ticks * per_tick
    return f"about {n_bytes / 1e6:.3g} MB to write for {n_events / 1e6:.3g} M events"


def _new_file(listmode: Listmode, made: Iterable[Path], held: Windows) -> dict[str, Any]:
    spans = [[start / 1000, stop / 1000] for start, stop in held]
    return {
        "files": [path.name for path in made],
        "n_prompts": listmode.count(held),
        "n_delayeds": listmode.count(held, "delayeds"),
        "windows_s": spans,
        "held_s": held.duration_s,
    }


def _new_lines(result: dict[str, Any]) -> list[str]:
    spans = ",".join(f"{start:g}-{stop:g}" for start, stop in result["windows_s"])
    return [
        f"written     {', '.join(result['files'])}",
        f"time        {spans} s, {result['held_s']:g} s held",
        f"prompts     {result['n_prompts']:,}",
        f"delayeds    {result['n_delayeds']:,}",
    ]
