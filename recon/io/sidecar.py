"""The JSON sidecar of an image: PET-BIDS keys where they exist, our own below one key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from listmode.errors import InputError
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Volume
from recon.io.bids_keys import making_keys

OWN_KEY = "stillpet"
PURPOSE = "For research, not a medical device."

HALF_LIFE_S = {"F18": 6586.2, "Ga68": 4069.7, "C11": 1221.8, "Cu64": 45724.0, "Zr89": 282294.0}
"""By PET-BIDS name, s; Laboratoire National Henri Becquerel, Table of Radionuclides."""

_BIDS_UNITS = {"SUV": "g/mL", "1/cm": "1/cm", "1": "unitless"}


def sidecar_path(path: Path) -> Path:
    """Name the JSON file beside an image: ``still.nii.gz`` has ``still.json``."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def make_sidecar(
    volume: Volume,
    protocol: ScanProtocol | None = None,
    windows: Windows | None = None,
    bids: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a volume for whoever opens its image file without stillpet.

    Times count from the scan's tick zero, which is the zero of ``FrameTimesStart``, of
    ``InjectionStart`` and of the decay correction alike. A union of windows is one frame: it
    starts with the first window, ``FrameDuration`` is the time that was used, and ``stillpet``
    lists the windows.

    Parameters
    ----------
    volume
        The image.
    protocol, windows
        What was injected and which time was used, if the image comes from a scan; without them
        ``provenance["protocol"]`` (fields of :class:`~listmode.source.ScanProtocol`) and
        ``provenance["windows_ms"]`` (pairs) stand in if they are there.
    bids
        Further PET-BIDS keys that the caller knows (``TimeZero``, ``Manufacturer``, ...); they
        win.

    Returns
    -------
    dict
        JSON values. Unknown facts are left out, not guessed.

    Notes
    -----
    Key names and units: BIDS specification 1.10, Positron Emission Tomography.
    """
    sidecar: dict[str, Any] = {"Units": _BIDS_UNITS.get(volume.unit, volume.unit)}
    if volume.unit in ("Bq/mL", "SUV"):
        sidecar |= {"Modality": "PT", "DecayCorrected": True, "ImageDecayCorrectionTime": 0.0}
        sidecar |= {"ImageDecayCorrected": True, "ScanStart": 0.0}
        sidecar["AcquisitionMode"] = "list mode"
        sidecar |= making_keys(volume.provenance)
    if protocol is None:
        protocol = _protocol_from(volume.provenance)
    if windows is None:
        windows = _windows_from(volume.provenance)
    if protocol is not None:
        sidecar |= _protocol_keys(protocol)
    if windows is not None and len(windows):
        sidecar["FrameTimesStart"] = [windows.start_ms[0].item() / 1000.0]
        sidecar["FrameDuration"] = [windows.duration_s]
        if protocol is not None:
            factor = windows.duration_s / windows.decayed_duration_s(protocol.half_life_s)
            sidecar["DecayCorrectionFactor"] = [factor]
    sidecar |= bids or {}
    sidecar[OWN_KEY] = {
        "purpose": PURPOSE,
        "unit": volume.unit,
        "reference_time": "activity is corrected to tick zero of the listmode stream",
        "frame": "scanner frame in mm; NIfTI's RAS+ = diag(-1, -1, 1) x scanner frame",
        **({} if windows is None else {"windows_s": _pairs_s(windows)}),
        **({} if protocol is None else _own_protocol(protocol)),
        "provenance": dict(volume.provenance),
    }
    return sidecar


def _pairs_s(windows: Windows) -> list[list[float]]:
    return [[start / 1000.0, stop / 1000.0] for start, stop in windows]


def _protocol_keys(protocol: ScanProtocol) -> dict[str, Any]:
    """Give the PET-BIDS keys for what was injected into whom."""
    activity = protocol.injected_activity_bq
    keys: dict[str, Any] = {
        "TracerName": protocol.tracer,
        "TracerRadionuclide": nuclide(protocol.half_life_s) or "unknown",
        "RadionuclideHalfLife": protocol.half_life_s,  # not BIDS: DICOM's name
        "InjectedRadioactivity": None if activity is None else activity / 1e6,
        "InjectedRadioactivityUnits": None if activity is None else "MBq",
        "InjectionStart": protocol.injection_time_s,
        "BodyWeight": protocol.patient_weight_kg,  # not BIDS: needed for SUV
        "BodyWeightUnits": None if protocol.patient_weight_kg is None else "kg",
    }
    return {key: value for key, value in keys.items() if value is not None}


def _own_protocol(protocol: ScanProtocol) -> dict[str, Any]:
    """Give the protocol as it is, and the factor to SUV where it is known."""
    factor = protocol.suv_per_bq_ml
    return {
        "protocol": asdict(protocol),
        **({} if factor is None else {"suv_per_bq_ml": factor}),
    }


def nuclide(half_life_s: float) -> str | None:
    """Name the nuclide of a half-life as PET-BIDS does; ``None`` if it is none of ours."""
    return next(
        (n for n, t in HALF_LIFE_S.items() if math.isclose(t, half_life_s, rel_tol=5e-3)), None
    )


def _protocol_from(provenance: Mapping[str, Any]) -> ScanProtocol | None:
    fields = provenance.get("protocol")
    return ScanProtocol(**fields) if isinstance(fields, Mapping) else None


def _windows_from(provenance: Mapping[str, Any]) -> Windows | None:
    pairs = provenance.get("windows_ms")
    return Windows([p[0] for p in pairs], [p[1] for p in pairs]) if pairs else None


def encode(content: Mapping[str, Any]) -> bytes:
    """Write JSON the one way stillpet writes it: indented, UTF-8, a newline at the end.

    Raises
    ------
    InputError
        If a value is not JSON (an array, a path, NaN).
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a sidecar must hold JSON values only, but it does not: {error}; put numbers, "
            "text, lists and tables of those into the provenance"
        ) from None
    return (text + "\n").encode()


def decode(content: bytes, name: str) -> dict[str, Any]:
    """Read a sidecar.

    Raises
    ------
    InputError
        If it is not a JSON object.
    """
    try:
        value = json.loads(content)
    except ValueError as error:
        raise InputError(
            f"sidecar {name} must be JSON, but it is not: {error}; correct it or remove it"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"sidecar {name} must be a JSON object, but it is a {type(value).__name__}; "
            "correct it or remove it"
        )
    return value
