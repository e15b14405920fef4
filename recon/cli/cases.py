"""The command that makes a patient's table of cases from an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, get_args

import typer

from listmode.errors import InputError
from recon.cli import console
from recon.cli.options import (
    RESEARCH,
    AsJson,
    LabelsFile,
    MuFile,
    OutDir,
    SettingsFile,
    make_folder,
)
from recon.io.cohorts import save_cases
from recon.io.nifti import load_volume
from recon.io.tables import load_hotspots, save_hotspots
from recon.pipeline import measure
from recon.pipeline.cases import CaseOptions, ImageCases, Organ, describe_image
from recon.pipeline.labels import load_labels
from recon.settings import load_settings

app = typer.Typer()


@app.command(epilog=RESEARCH)
def cases(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE.nii.gz", help="An image made by stillpet, or any "
                             "NIfTI image in SUV with its unit in a sidecar.",
                             show_default=False)
    ],
    labels: LabelsFile = None,
    patient: Annotated[
        str, typer.Option("--patient", metavar="CODE", help="A code, never a name.")
    ] = "P1",
    out: OutDir = Path("out"),
    mu: MuFile = None,
    ct: Annotated[
        Path | None, typer.Option("--ct", metavar="FILE.nii.gz", help="CT in HU, in the "
                                  "scanner's frame.", show_default=False)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="FILE.nii.gz", help="Measure these regions instead: "
                     "each number above zero is one hotspot.", show_default=False),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option("--uncertainty", metavar="HOTSPOTS.csv", help="Hotspots of this image "
                     "with suv_max_se, from a run with --bootstrap: it travels along.",
                     show_default=False),
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Keep what reaches this fraction of each maximum.",
                                   show_default="0.41")
    ] = None,
    suv: Annotated[
        float | None, typer.Option(help="Keep what reaches this SUV instead.",
                                   show_default=False)
    ] = None,
    organ: Annotated[
        str | None, typer.Option("--organ", help="Take the threshold from the liver (PERCIST) "
                                 "or the blood instead.", show_default=False)
    ] = None,
    tracer: Annotated[
        str | None, typer.Option(help="For the liver's rule; else as the sidecar says.",
                                 show_default=False)
    ] = None,
    primary_suv_max: Annotated[
        float | None, typer.Option(min=0.0, help="Of the primary tumour, if the image does not "
                                   "show it.", show_default=False)
    ] = None,
    physiological: Annotated[
        list[int] | None,
        typer.Option("--physiological", metavar="ID", help="Leave this hotspot out; may be "
                     "given several times. Its id is in hotspots.csv.", show_default=False),
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="The scan was simulated: say so in the table.")
    ] = False,
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make the table of cases of one patient from an image and a label map with names.

    Writes cases.csv (hotspots in bone and lymph nodes with their context, labels empty, ready
    for stillpet classify or for readers) and hotspots.csv (every hotspot).
    """
    with console.session(as_json=as_json) as run:
        if labels is None:
            raise InputError(
                "cases need to know bone from lymph node, but no label map was given; give "
                "--labels with its table of names"
            )
        options = CaseOptions(
            patient=patient,
            settings=measure.choose_rule(
                load_settings(settings_file).hotspots, fraction=fraction, suv=suv
            ),
            organ=_organ(organ, fraction, suv, mask),
            tracer=tracer,
            primary_suv_max=primary_suv_max,
            excluded=frozenset(physiological or ()),
            is_simulated=simulated,
        )
        folder = make_folder(out)
        found = describe_image(
            image,
            load_labels(labels),
            options,
            mu=None if mu is None else load_volume(mu, "1/cm"),
            ct=None if ct is None else load_volume(ct, "1"),
            mask=None if mask is None else load_volume(mask, "label"),
            uncertainty=None if uncertainty is None else load_hotspots(uncertainty),
            progress=run.progress,
        )
        save_cases(folder / "cases.csv", found.described.cases)
        save_hotspots(folder / "hotspots.csv", found.table)
        run.finish(found.to_dict(), _case_lines(found, folder))


def _organ(name: str | None, *others: object) -> Organ | None:
    if name is None:
        return None
    if any(other is not None for other in others):
        raise InputError(
            "one rule must say where a hotspot ends, but --organ and another one were given; "
            "give one of them"
        )
    for organ in get_args(Organ):
        if name == organ:
            return organ  # type: ignore[no-any-return]
    raise InputError(f"an organ must be liver or blood, but it is {name!r}; give one of them")


def _case_lines(found: ImageCases, folder: Path) -> list[str]:
    """Write the cases of one patient, and why other hotspots are none."""
    cases = found.described.cases
    lines = [f"{len(cases)} cases of {len(found.table)} hotspots, {found.table.method}"]
    for k, number in enumerate(found.described.hotspot_id):
        reference = cases.numbers["reference_suv_max"][k]
        beside = "no reference" if math.isnan(reference) else f"reference {reference:.3g}"
        lines.append(
            f"{number:4d}  SUVmax {cases.numbers['suv_max'][k]:.3g}, {beside}  "
            f"{cases.tissue[k]}, {cases.location[k]} {cases.details['level'][k]} "
            f"{cases.details['side'][k]}".rstrip()
        )
    lines += [f"{number:4d}  left out: {why}" for number, why in found.described.left_out]
    notes = [*found.table.notes, *cases.notes]
    return [*lines, *notes, f"wrote {folder / 'cases.csv'} and {folder / 'hotspots.csv'}"]
