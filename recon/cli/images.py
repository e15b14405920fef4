"""The commands that take images to other tools, and a CT to a mu-map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from listmode.errors import InputError
from recon.cli import console
from recon.cli.options import RESEARCH, AsJson, OutDir, make_folder
from recon.hotspots.segment import FractionOfMax, Segmentation, find_hotspots
from recon.image import Volume
from recon.io.bids import save_bids
from recon.io.interfile import SUFFIXES, Flavour, save_interfile
from recon.io.nifti import load_volume, save_volume
from recon.io.scan_facts import ScanFacts, load_facts
from recon.pipeline.images import to_suv

if TYPE_CHECKING:
    from recon.io.dicom_tags import Identity
    from recon.io.mu import Placement

app = typer.Typer()

TARGETS = ("dicom", "bids", "interfile")
NO_ATTENUATION = (
    "the image does not say that it was corrected for attenuation: viewers may refuse an SUV"
)


@contextmanager
def _dicom_extra() -> Iterator[None]:
    """Say how to get the libraries that only DICOM needs.

    Raises
    ------
    InputError
        If they are not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("pydicom", "highdicom"):
            raise
        raise InputError(
            f"DICOM needs pydicom and highdicom, but {error.name} is not installed; install "
            "them with: pip install 'stillpet[dicom]'"
        ) from None


def _stem(image: Path) -> str:
    return image.name.removesuffix(".gz").removesuffix(".nii")


def _facts(
    image: Path,
    start: datetime | None,
    dose_mbq: float | None,
    injection_time_s: float | None,
    weight_kg: float | None,
) -> ScanFacts:
    """Read the facts beside an image; what the command line says wins."""
    facts = load_facts(image, start)
    said: dict[str, Any] = {
        "injected_activity_bq": None if dose_mbq is None else dose_mbq * 1e6,
        "injection_time_s": injection_time_s,
        "patient_weight_kg": weight_kg,
    }
    given = {name: value for name, value in said.items() if value is not None}
    return replace(facts, protocol=replace(facts.protocol, **given))


def _identity(*, is_identified: bool, **person: str | None) -> Identity | None:
    """Make the patient's identity, which is written only where it is asked for twice."""
    from recon.io.dicom_tags import Identity

    if is_identified:
        return Identity(**{name: text or "" for name, text in person.items()})
    if any(text is not None for text in person.values()):
        raise InputError(
            "who the patient is goes into a series with --identified only, but it was given "
            "without; add --identified or leave it out"
        )
    return None


def _hotspots(volume: Volume, facts: ScanFacts) -> Segmentation:
    suv = to_suv(volume, facts.protocol)
    return find_hotspots(suv or volume, threshold=FractionOfMax())


@app.command(epilog=RESEARCH)
def export(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE.nii.gz", help="An image made by stillpet, or any "
                             "NIfTI image with a PET-BIDS sidecar.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option("--to", help=f"{', '.join(TARGETS)}.", show_default=False)
    ],
    out: OutDir = Path("out"),
    subject: Annotated[
        str, typer.Option(help="Code of the patient: letters and digits, never a name.")
    ] = "anonymous",
    session: Annotated[
        str | None, typer.Option(help="BIDS: label of the session.", show_default=False)
    ] = None,
    reconstruction: Annotated[
        str | None, typer.Option(help="BIDS: label of the reconstruction.", show_default=False)
    ] = None,
    manufacturer: Annotated[
        str, typer.Option(help="BIDS: of the scanner.")
    ] = "unknown",
    flavour: Annotated[
        str, typer.Option(help="Interfile: for stir or castor, whose axes differ.")
    ] = "stir",
    start: Annotated[
        datetime | None,
        typer.Option(help="Local time of tick zero. Without it dates are fiction, and only "
                     "differences of time are true.", show_default=False),
    ] = None,
    dose_mbq: Annotated[
        float | None, typer.Option(help="Injected activity, MBq.", show_default="the sidecar's")
    ] = None,
    injection_time_s: Annotated[
        float | None,
        typer.Option(help="Time of injection, s from tick zero; negative before it.",
                     show_default="the sidecar's"),
    ] = None,
    weight_kg: Annotated[
        float | None, typer.Option(help="Weight, kg.", show_default="the sidecar's")
    ] = None,
    position: Annotated[
        str, typer.Option(help="DICOM: how the patient lay: HFS, HFP, FFS or FFP.")
    ] = "HFS",
    hotspots: Annotated[
        Path | None,
        typer.Option("--hotspots", metavar="FILE.nii.gz", help="DICOM: write these regions as "
                     "a segmentation too, one number a hotspot.", show_default=False),
    ] = None,
    find: Annotated[
        bool, typer.Option("--find-hotspots", help="DICOM: find hotspots (41 % of each "
                           "maximum, from SUV 2.5) and write them as a segmentation too.")
    ] = False,
    identified: Annotated[
        bool, typer.Option("--identified", help="DICOM: write who the patient is, as given.")
    ] = False,
    patient_name: Annotated[
        str | None, typer.Option(metavar="FAMILY^GIVEN", help="With --identified.",
                                 show_default=False)
    ] = None,
    patient_id: Annotated[
        str | None, typer.Option(help="With --identified.", show_default=False)
    ] = None,
    birth_date: Annotated[
        str | None, typer.Option(metavar="YYYYMMDD", help="With --identified.",
                                 show_default=False)
    ] = None,
    accession_number: Annotated[
        str | None, typer.Option(help="With --identified.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write an image for other tools: a DICOM PET series, a PET-BIDS tree, or Interfile.

    DICOM: the folder NAME_dicom and, with hotspots, NAME_seg.dcm. BIDS: the tree below the
    output folder. Interfile: a header and raw floats. No person is named unless --identified
    asks for it. See docs/images.md.
    """
    with console.session(as_json=as_json) as run:
        if to not in TARGETS:
            raise InputError(
                f"--to must be one of {', '.join(TARGETS)}, but it is {to!r}; choose one"
            )
        volume = load_volume(image)
        folder = make_folder(out)
        if to == "interfile":
            path = _to_interfile(image, volume, folder, flavour)
            run.finish({"files": [path.name]}, [f"{path.name} is written for {flavour}"])
            return
        facts = _facts(image, start, dose_mbq, injection_time_s, weight_kg)
        if to == "bids":
            path = save_bids(
                folder, volume, facts, subject=subject, session=session,
                reconstruction=reconstruction, manufacturer=manufacturer,
            )  # fmt: skip
            name = path.relative_to(folder).as_posix()
            run.finish({"files": [name]}, [f"{name} is written"])
            return
        with _dicom_extra():
            identity = _identity(
                is_identified=identified, patient_name=patient_name, patient_id=patient_id,
                birth_date=birth_date, accession_number=accession_number,
            )  # fmt: skip
            files = _to_dicom(
                _stem(image), volume, facts, folder, identity, position, subject,
                hotspots=None if hotspots is None else load_volume(hotspots, "label"),
                find=find, run=run,
            )  # fmt: skip
        factor = facts.protocol.suv_per_bq_ml
        lines = [f"{name} is written" for name in files] + [f"SUV = Bq/mL × {factor:.6g}"]
        notes = [] if volume.provenance.get("has_attenuation") else [NO_ATTENUATION]
        run.finish({"files": files, "suv_per_bq_ml": factor, "notes": notes}, lines + notes)


def _to_interfile(image: Path, volume: Volume, folder: Path, flavour: str) -> Path:
    header_suffix, _ = SUFFIXES.get(flavour, (".hv", ""))
    path = folder / (_stem(image) + header_suffix)
    facts = load_facts(image) if volume.unit in ("Bq/mL", "SUV") else None
    kind: Flavour = flavour  # type: ignore[assignment]  # save_interfile refuses others
    save_interfile(path, volume, kind, facts)
    return path


def _to_dicom(
    stem: str,
    volume: Volume,
    facts: ScanFacts,
    folder: Path,
    identity: Identity | None,
    position: str,
    subject: str,
    *,
    hotspots: Volume | None,
    find: bool,
    run: console.Session,
) -> list[str]:
    from recon.io.dicom import save_dicom
    from recon.io.dicom_seg import save_seg
    from recon.io.dicom_tags import SeriesPlace

    series = folder / f"{stem}_dicom"
    place = SeriesPlace(patient_position=position, subject=subject)
    save_dicom(series, volume, facts, identity=identity, place=place, progress=run.progress)
    if hotspots is None and not find:
        return [series.name]
    path = folder / f"{stem}_seg.dcm"
    if hotspots is not None:
        save_seg(path, hotspots, series, method="user mask")
    else:
        found = _hotspots(volume, facts)
        save_seg(path, found.mask, series, regions=found.region, method=found.method)
    return [series.name, path.name]


@app.command(epilog=RESEARCH)
def mu(
    ct: Annotated[
        Path, typer.Argument(metavar="CT_FOLDER", help="A CT series, one DICOM file a slice.",
                             show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="MU.nii.gz", help="The mu-map to make.")
    ] = Path("mu.nii.gz"),
    pet: Annotated[
        Path | None,
        typer.Option("--pet", metavar="FOLDER", help="The vendor's PET series of the scan: its "
                     "middle is taken for the scanner's centre.", show_default=False),
    ] = None,
    centre_mm: Annotated[
        str | None,
        typer.Option("--centre-mm", metavar="X,Y,Z", help="Or the scanner's centre in the CT's "
                     "patient coordinates (DICOM LPS).", show_default=False),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="IMAGE.nii.gz", help="Use the grid of this image.",
                     show_default=False),
    ] = None,
    voxel_mm: Annotated[
        float, typer.Option(help="Without --like: voxels that cover the CT, mm.")
    ] = 3.3,
    fwhm_mm: Annotated[
        float, typer.Option(help="PET resolution to which the CT is smoothed, mm.")
    ] = 4.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a mu-map at 511 keV of a CT, for --mu of other commands.

    Says what is doubtful: the tube's spectrum, contrast agent, a truncated CT, another frame of
    reference. The patient's name goes nowhere.
    """
    with console.session(as_json=as_json) as run, _dicom_extra():
        from recon.io.mu import load_ct, make_mu

        grid = None if like is None else load_volume(like).grid
        placement = _placement(pet, centre_mm)
        volume, notes = make_mu(
            load_ct(ct, run.progress), placement, grid=grid, voxel_mm=voxel_mm,
            fwhm_mm=fwhm_mm, progress=run.progress,
        )  # fmt: skip
        save_volume(out, volume)
        about = {"file": out.name, "shape": list(volume.grid.shape), "notes": list(notes)}
        lines = [f"{out.name}: {volume.grid.shape} voxels of {volume.grid.voxel_mm[0]:g} mm"]
        run.finish(about, lines + [f"note: {note}" for note in notes])


def _placement(pet: Path | None, centre_mm: str | None) -> Placement:
    from recon.io.mu import Placement, read_placement

    if (pet is None) == (centre_mm is None):
        raise InputError(
            "the place of the PET scanner must be given once, by --pet or by --centre-mm, but "
            f"{'both are' if pet else 'none is'} given; a CT does not say where the scanner is"
        )
    if pet is not None:
        return read_placement(pet)
    try:
        x, y, z = (float(text) for text in str(centre_mm).split(","))
    except ValueError:
        raise InputError(
            f"--centre-mm must be three numbers, but it is {centre_mm!r}; write X,Y,Z in mm"
        ) from None
    return Placement((x, y, z))
