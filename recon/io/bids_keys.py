"""The PET-BIDS keys that say where, when and how an image was made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from typing import Any

UNKNOWN_START = datetime(2000, 1, 1, 12)  # a scanner's clock has no time zone
"""Stands for tick zero where the date is unknown or not to be told; differences stay exact."""


def making_keys(
    provenance: Mapping[str, Any],
    *,
    start: datetime | None = None,
    mode_of_administration: str = "bolus",
    manufacturer: str = "unknown",
) -> dict[str, Any]:
    """Give the keys that PET-BIDS wants beside dose, frames and decay correction.

    Parameters
    ----------
    provenance
        Of the volume; says on which scanner and how it was reconstructed.
    start
        Wall-clock time of tick zero; without it a fictional one, which is said to be.
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
    scanner = f"{provenance.get('scanner', 'unknown')} {provenance.get('scanner_mode', '')}"
    has_mu = provenance.get("has_attenuation")
    return {
        "Manufacturer": manufacturer,
        "ManufacturersModelName": scanner.strip(),
        "TimeZero": (start or UNKNOWN_START).strftime("%H:%M:%S"),
        "TimeZeroIsFictional": start is None,
        "ModeOfAdministration": mode_of_administration,
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "AttenuationCorrection": "mu-map at 511 keV" if has_mu else "none",
        "ReconMethodImplementationVersion": f"stillpet {metadata.version('stillpet')}",
        **_recon_keys(provenance.get("osem")),
    }


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
