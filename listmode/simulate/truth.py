"""What a simulated scan is expected to hold, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.simulate.motion import PatientMotion
from listmode.simulate.shapes import Phantom
from listmode.source import ScanProtocol

F32 = NDArray[np.float32]

TRUE, SCATTER, RANDOM = 0, 1, 2


@dataclass(frozen=True)
class CountBudget:
    """Expected events of a scan, with everything that thins them already in.

    Parameters
    ----------
    trues, scatter, randoms, delayeds
        Expected events in the scan.
    duration_s
        Length of the scan, s.
    activity_bq
        Mean activity in the phantom during the scan, decayed, Bq.
    singles_hz
        Mean rate of singles of the whole detector, its own radioactivity included, 1/s.
    standard_error
        Relative standard errors of trues, scatter and randoms, from the run's own statistics.
    """

    trues: float
    scatter: float
    randoms: float
    delayeds: float
    duration_s: float
    activity_bq: float
    singles_hz: float
    standard_error: tuple[float, float, float]

    @property
    def prompts(self) -> float:
        """Expected prompts."""
        return self.trues + self.scatter + self.randoms

    @property
    def prompts_hz(self) -> float:
        """Prompts per second."""
        return self.prompts / self.duration_s

    @property
    def scatter_fraction(self) -> float:
        """Scatter over scatter plus trues."""
        both = self.trues + self.scatter
        return self.scatter / both if both else 0.0

    @property
    def nec_hz(self) -> float:
        """Noise-equivalent count rate with a noise-free randoms estimate, 1/s."""
        return self.trues**2 / self.prompts / self.duration_s if self.prompts else 0.0


@dataclass(frozen=True, eq=False)
class SimulationTruth:
    """What a simulated scan was made from.

    Parameters
    ----------
    scanner
        Scanner's name and mode.
    seed
        Seed of every random number.
    phantom, motion, protocol
        As simulated; the phantom in the activity of the dose, so that its arrays are the truth.
    duration_s
        Length of the scan, s.
    n_trues, n_scatter, n_randoms, n_delayeds
        Events in the scan.
    crystal_efficiency
        Relative efficiencies. Shape (n_crystals,), float32.
    """

    scanner: str
    seed: int
    phantom: Phantom
    motion: PatientMotion
    protocol: ScanProtocol
    duration_s: float
    n_trues: int
    n_scatter: int
    n_randoms: int
    n_delayeds: int
    crystal_efficiency: F32

    @property
    def shifts(self) -> list[dict[str, object]]:
        """Steps of the patient: ``time_s``, ``shift_mm``."""
        return self.motion.shifts

    @property
    def filling_ml_min(self) -> float:
        """How fast the bladder filled, mL/min."""
        return self.phantom.filling_ml_min
