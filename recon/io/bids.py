"""Write an image into a folder tree that PET-BIDS tools accept."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from listmode.errors import InputError
from recon.image import Volume
from recon.io import files, sidecar
from recon.io.bids_keys import making_keys
from recon.io.nifti import save_volume
from recon.io.scan_facts import ScanFacts, check_pet

BIDS_VERSION = "1.10.0"

README = """\
PET images reconstructed by stillpet from listmode data. {purpose}

TimeZero is tick zero of the listmode stream; activity is decay-corrected to it. An image may be
made from a union of time windows: FrameDuration is then the time that was used, and the key
"stillpet" of the sidecar lists the windows.
"""


def save_bids(
    folder: Path,
    volume: Volume,
    facts: ScanFacts,
    *,
    subject: str,
    session: str | None = None,
    reconstruction: str | None = None,
    mode_of_administration: str = "bolus",
    manufacturer: str = "unknown",
) -> Path:
    """Write an image and its sidecar where PET-BIDS wants them.

    Parameters
    ----------
    folder
        Root of the dataset; ``dataset_description.json`` and ``README`` are written where they
        are not there yet.
    volume, facts
        As for a DICOM series: Bq/mL, with dose, injection time and weight.
    subject, session, reconstruction
        Labels: letters and digits. Never a patient's name.
    mode_of_administration, manufacturer
        See :func:`~recon.io.bids_keys.making_keys`.

    Returns
    -------
    Path
        The image: ``sub-X[/ses-Y]/pet/sub-X[_ses-Y]_trc-FDG[_rec-Z]_pet.nii.gz``.

    Raises
    ------
    InputError
        If a label has other signs, something that an SUV needs is unknown, or the system
        refuses to write.
    """
    check_pet(volume, facts)
    entities = {"sub": subject, "ses": session}
    tracer = re.sub(r"[^0-9a-zA-Z]", "", facts.protocol.tracer) or None
    named = entities | {"trc": tracer, "rec": reconstruction}
    for entity, label in named.items():
        if label is not None and not re.fullmatch(r"[0-9a-zA-Z]+", label):
            raise InputError(
                f"a BIDS label must have letters and digits only, but {entity}-{label} has "
                "others or none; choose another"
            )
    keys = making_keys(
        volume.provenance,
        start=facts.start,
        mode_of_administration=mode_of_administration,
        manufacturer=manufacturer,
    )
    place = folder.joinpath(*_parts(entities), "pet")
    path = place / ("_".join([*_parts(named), "pet"]) + ".nii.gz")
    files.make_folders(place)
    _describe(folder)
    save_volume(path, volume, protocol=facts.protocol, windows=facts.windows, bids=keys)
    return path


def _parts(entities: dict[str, str | None]) -> list[str]:
    return [f"{entity}-{label}" for entity, label in entities.items() if label is not None]


def _describe(folder: Path) -> None:
    version = metadata.version("stillpet")
    description = {
        "Name": "PET images by stillpet",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "stillpet", "Version": version}],
    }
    contents = {
        folder / "dataset_description.json": sidecar.encode(description),
        folder / "README": README.format(purpose=sidecar.PURPOSE).encode(),
    }
    files.write_whole({path: c for path, c in contents.items() if not path.exists()})
