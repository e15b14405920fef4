"""What is injected and how long is measured."""

from __future__ import annotations

from dataclasses import dataclass

from listmode.errors import InputError
from listmode.simulate.shapes import Phantom
from listmode.source import ScanProtocol


@dataclass(frozen=True)
class Dose:
    """An injection and a scan after it.

    Parameters
    ----------
    name
        Name of the protocol.
    activity_per_kg_bq
        Injected activity per kg of body weight, Bq/kg.
    floor_bq
        Least injected activity, Bq.
    uptake_s
        Time from injection to tick zero, s.
    duration_s
        Length of the scan, s.
    tracer
        Tracer's name.

    Raises
    ------
    InputError
        If nothing is injected, or nothing is measured.
    """

    name: str
    activity_per_kg_bq: float
    floor_bq: float = 0.0
    uptake_s: float = 3600.0
    duration_s: float = 600.0
    tracer: str = "F-18 FDG"

    def __post_init__(self) -> None:
        if not (max(self.activity_per_kg_bq, self.floor_bq) > 0.0 and self.duration_s > 0.0):
            raise InputError(
                f"dose {self.name!r} must have activity and duration, but it has "
                f"{self.activity_per_kg_bq:g} Bq/kg, a floor of {self.floor_bq:g} Bq and "
                f"{self.duration_s:g} s; correct it"
            )

    @classmethod
    def in_phantom(cls, phantom: Phantom, duration_s: float) -> Dose:
        """Describe a phantom that is filled at tick zero and weighs what it weighs."""
        return cls("phantom", 0.0, phantom.activity_bq(), 0.0, duration_s)

    def injected_bq(self, weight_kg: float) -> float:
        """Give the injected activity for a body weight, Bq."""
        return max(self.activity_per_kg_bq * weight_kg, self.floor_bq)

    def scan_protocol(self, weight_kg: float, count_fraction: float = 1.0) -> ScanProtocol:
        """Write the dose as a scan's protocol; the clock's zero is the start of the scan."""
        return ScanProtocol(
            tracer=self.tracer,
            injected_activity_bq=self.injected_bq(weight_kg),
            injection_time_s=-self.uptake_s,
            patient_weight_kg=weight_kg,
            count_fraction=count_fraction,
        )


LOW_DOSE_FDG = Dose("low-dose-fdg", 0.3e6, 15e6, 3600.0, 1200.0)
"""0.3 MBq/kg, at least 15 MBq, 60 min uptake, 20 min (Smith et al. 2024, EJNMMI Phys 11:45)."""
STANDARD = Dose("standard", 3.0e6, 0.0, 3600.0, 600.0)
"""3 MBq/kg, 60 min uptake, 10 min."""
DOSES = {dose.name: dose for dose in (LOW_DOSE_FDG, STANDARD)}


def load_dose(name: str) -> Dose:
    """Find a dose by its name.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in DOSES:
        raise InputError(
            f"a dose must be one of {', '.join(DOSES)}, but {name!r} was asked for; "
            "choose one of these"
        )
    return DOSES[name]
