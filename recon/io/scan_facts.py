"""What a viewer needs beside the voxels: who got what and when, and which time was used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from listmode.errors import InputError
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Volume
from recon.io import sidecar
from recon.io.bids_keys import UNKNOWN_START
from recon.io.nifti import read_sidecar


@dataclass(frozen=True)
class ScanFacts:
    """What was injected, which time was used, and when on the wall clock.

    Parameters
    ----------
    protocol
        Activity, weight and times on the scan clock.
    windows
        The time that the image was made from.
    start
        Wall-clock time of tick zero, local and without zone; ``None`` if it is unknown or not
        to be told. :data:`UNKNOWN_START` then stands for it: dates are fiction, differences
        exact.
    """

    protocol: ScanProtocol
    windows: Windows
    start: datetime | None = None

    @property
    def zero(self) -> datetime:
        """The wall-clock time that stands for tick zero."""
        return self.start or UNKNOWN_START

    def at(self, time_s: float) -> datetime:
        """Turn seconds on the scan clock into wall-clock time, to the microsecond."""
        return self.zero + timedelta(microseconds=round(time_s * 1e6))

    @property
    def decay_factor(self) -> float:
        """Factor that took the mean activity in the windows back to tick zero."""
        half_life_s = self.protocol.half_life_s
        return self.windows.duration_s / self.windows.decayed_duration_s(half_life_s)

    @property
    def reference_time_s(self) -> float:
        """Time after tick zero at which the activity equals its mean over the windows, s.

        Notes
        -----
        ``2**(t / T)`` is :attr:`decay_factor`. For one window it is its start plus the average
        count rate time that DICOM PS3.3, C.8.9.4 describes for ``FrameReferenceTime``.
        """
        return self.protocol.half_life_s * math.log2(self.decay_factor)


def load_facts(path: Path, start: datetime | None = None) -> ScanFacts:
    """Read from an image's sidecar what was injected and which time was used.

    Images of stillpet say it in full; of a foreign PET-BIDS sidecar its own keys are used.

    Parameters
    ----------
    path
        The NIfTI file.
    start
        Wall-clock time of tick zero, if it is known and may be told.

    Raises
    ------
    InputError
        If the sidecar is damaged or does not say which time was used.
    """
    about = read_sidecar(path)
    own = about.get(sidecar.OWN_KEY)
    own = own if isinstance(own, dict) else {}
    try:
        protocol = _protocol(about, own)
        windows = _windows(about, own)
    except (TypeError, ValueError, KeyError, IndexError):
        raise InputError(
            f"{sidecar.sidecar_path(path).name} must say in numbers what was injected and "
            "which time was used, but a value cannot be used; write the image with this version"
        ) from None
    if not len(windows):
        raise InputError(
            f"{sidecar.sidecar_path(path).name} must say which time the image was made from, "
            "but it does not; add FrameTimesStart and FrameDuration in s"
        )
    return ScanFacts(protocol, windows, start)


def _protocol(about: Mapping[str, Any], own: Mapping[str, Any]) -> ScanProtocol:
    known = own.get("protocol") or (own.get("provenance") or {}).get("protocol")
    if known:
        names = {field.name for field in fields(ScanProtocol)}
        return ScanProtocol(**{name: known[name] for name in names & set(known)})
    zero = float(about.get("ImageDecayCorrectionTime", 0.0))
    injected, injection = about.get("InjectedRadioactivity"), about.get("InjectionStart")
    scale = {"MBq": 1e6, "kBq": 1e3, "Bq": 1.0}[about.get("InjectedRadioactivityUnits", "MBq")]
    weight = about.get("BodyWeight")
    protocol = ScanProtocol(
        tracer=str(about.get("TracerName", "unknown")),
        injected_activity_bq=None if injected is None else float(injected) * scale,
        injection_time_s=None if injection is None else float(injection) - zero,
        patient_weight_kg=None if weight is None else float(weight),
    )
    half_life_s = about.get("RadionuclideHalfLife") or sidecar.HALF_LIFE_S.get(
        str(about.get("TracerRadionuclide"))
    )
    return (
        protocol if half_life_s is None else replace(protocol, half_life_s=float(half_life_s))
    )


def _windows(about: Mapping[str, Any], own: Mapping[str, Any]) -> Windows:
    pairs = own.get("windows_s")
    if pairs is None:
        zero = float(about.get("ImageDecayCorrectionTime", 0.0))
        starts = about.get("FrameTimesStart", [])
        pairs = [
            (start - zero, start - zero + duration)
            for start, duration in zip(starts, about.get("FrameDuration", []), strict=True)
        ]
    ms = [(round(a * 1000.0), round(b * 1000.0)) for a, b in pairs]
    return Windows([a for a, _ in ms], [b for _, b in ms])


def check_pet(volume: Volume, facts: ScanFacts) -> None:
    """Refuse what cannot become a PET image with an SUV.

    Raises
    ------
    InputError
        If the volume is not in Bq/mL, dose, time of injection or weight is unknown, or the
        windows start before tick zero.
    """
    protocol = facts.protocol
    if volume.unit != "Bq/mL":
        raise InputError(
            f"a PET image must be in Bq/mL, but this volume is in {volume.unit!r}; give the "
            "activity image of a reconstruction"
        )
    if not (protocol.injected_activity_bq or 0.0) > 0.0:
        raise InputError(
            "the injected activity must be known and positive for an SUV, but the image's "
            "sidecar does not say it; give it with --dose-mbq"
        )
    if protocol.injection_time_s is None:
        raise InputError(
            "the time of injection must be known for an SUV, but the image's sidecar does not "
            "say it; give it with --injection-time-s, seconds from tick zero (before it: "
            "negative)"
        )
    if not (protocol.patient_weight_kg or 0.0) > 0.0:
        raise InputError(
            "the weight must be known and positive for an SUV, but the image's sidecar does "
            "not say it; give it with --weight-kg"
        )
    if facts.windows.start_ms[0] < 0:
        raise InputError(
            "windows must not start before tick zero, to which the activity is corrected, but "
            f"the first starts at {facts.windows.start_ms[0] / 1000:g} s; leave that time out"
        )
