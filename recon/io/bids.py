"""Write an image into a folder tree that PET-BIDS tools accept."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from listmode.errors import InputError
from recon.image import Volume
from recon.io import files, sidecar
from recon.io.nifti import save_volume
from recon.io.scan_facts import ScanFacts, check_pet

BIDS_VERSION = "1.10.0"

README = """\
PET images reconstructed by stillpet from listmode data. {purpose}

TimeZero is tick zero of the listmode stream; activity is decay-corrected to it. An image may be
made from a union of time windows: FrameDuration is then the time that was used, and the key
"stillpet" of the sidecar lists the windows.
"""


def bids_keys(
    volume: Volume,
    facts: ScanFacts,
    *,
    mode_of_administration: str = "bolus",
    manufacturer: str = "unknown",
) -> dict[str, Any]:
    """Give the PET-BIDS keys that the plain sidecar of an image does not have.

    Parameters
    ----------
    volume
        Its provenance says how it was reconstructed.
    facts
        Times.
    mode_of_administration, manufacturer
        What no listmode file says.

    Returns
    -------
    dict
        JSON values. What nobody measured is ``"n/a"``, as PET-BIDS wants it for FDG.

    Notes
    -----
    BIDS specification 1.10, Positron Emission Tomography; Norgaard et al., Scientific Data
    2022;9:65, doi 10.1038/s41597-022-01164-1.
    """
    about = volume.provenance
    scanner = f"{about.get('scanner', 'unknown')} {about.get('scanner_mode', '')}".strip()
    attenuation = "mu-map at 511 keV" if about.get("has_attenuation") else "none"
    keys: dict[str, Any] = {
        "Manufacturer": manufacturer,
        "ManufacturersModelName": scanner,
        "TimeZero": facts.zero.strftime("%H:%M:%S"),
        "ModeOfAdministration": mode_of_administration,
        "TracerRadionuclide": sidecar.nuclide(facts.protocol.half_life_s) or "unknown",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "AttenuationCorrection": attenuation,
        "ReconMethodImplementationVersion": f"stillpet {metadata.version('stillpet')}",
        **_recon_keys(about.get("osem")),
    }
    if facts.start is None:
        keys["TimeZeroIsFictional"] = True
    return keys


def _recon_keys(osem: dict[str, Any] | None) -> dict[str, Any]:
    if osem is None:
        return {
            "ReconMethodName": "unknown",
            "ReconMethodParameterLabels": ["none"],
            "ReconFilterType": "none",
        }
    filter_mm = float(osem.get("post_filter_fwhm_mm", 0.0))
    keys: dict[str, Any] = {
        "ReconMethodName": "listmode TOF-OSEM" if osem.get("use_tof") else "listmode OSEM",
        "ReconMethodParameterLabels": ["iterations", "subsets", "psf_fwhm"],
        "ReconMethodParameterUnits": ["none", "none", "mm"],
        "ReconMethodParameterValues": [
            osem["n_iterations"], osem["n_subsets"], osem.get("psf_fwhm_mm", 0.0),
        ],
        "ReconFilterType": "Gaussian" if filter_mm else "none",
    }  # fmt: skip
    return keys | ({"ReconFilterSize": filter_mm} if filter_mm else {})


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
        See :func:`bids_keys`.

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
    keys = bids_keys(
        volume,
        facts,
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
