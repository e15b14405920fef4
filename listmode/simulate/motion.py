"""How the patient moves during a simulated scan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError

F64 = NDArray[np.float64]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class PatientMotion:
    """Displacement of the whole patient, in the scanner's frame, from the pose at tick zero.

    Parameters
    ----------
    step_time_s
        When steps start, ascending, s.
    step_mm
        What each step adds (x, y, z), mm.
    ramp_s
        How long a step lasts, s; 0 is instantaneous.
    breathing_mm, breathing_period_s
        Amplitude along z (half of peak to peak), mm, and period, s.
    wander_mm, wander_seed
        Slow drift: standard deviation of a random walk along each axis after 300 s, mm, and
        the seed of its course.

    Raises
    ------
    InputError
        If steps and times differ in number, times do not ascend or a duration is not positive.

    Examples
    --------
    >>> moved = PatientMotion((600.0,), ((0.0, 0.0, 13.0),))
    >>> moved.displacement_mm([599.9, 600.1])[:, 2].tolist()
    [0.0, 13.0]
    """

    step_time_s: tuple[float, ...] = ()
    step_mm: tuple[Vector, ...] = ()
    ramp_s: float = 0.0
    breathing_mm: float = 0.0
    breathing_period_s: float = 4.0
    wander_mm: float = 0.0
    wander_seed: int = 0

    def __post_init__(self) -> None:
        if len(self.step_time_s) != len(self.step_mm):
            raise InputError(
                f"each step needs a time and a displacement, but there are "
                f"{len(self.step_time_s)} times and {len(self.step_mm)} displacements; "
                "give them in pairs"
            )
        if any(
            b <= a for a, b in zip(self.step_time_s[:-1], self.step_time_s[1:], strict=True)
        ):
            raise InputError(
                f"steps must ascend in time, but they come at {self.step_time_s} s; sort them"
            )
        if self.ramp_s < 0.0 or not self.breathing_period_s > 0.0:
            raise InputError(
                "a ramp must not be negative and a breath must last some time, but they are "
                f"{self.ramp_s:g} s and {self.breathing_period_s:g} s; correct them"
            )

    def displacement_mm(self, time_s: ArrayLike) -> F64:
        """Give the displacement at times (n,), s. Shape (n, 3), float64, mm."""
        time = np.array(time_s, dtype=np.float64, ndmin=1)
        out = np.zeros((time.size, 3))
        for start, step in zip(self.step_time_s, self.step_mm, strict=True):
            if self.ramp_s > 0.0:
                share = np.clip((time - start) / self.ramp_s, 0.0, 1.0)
            else:
                share = (time >= start).astype(np.float64)
            out += share[:, None] * np.asarray(step)
        if self.breathing_mm:
            phase = 2.0 * math.pi * time / self.breathing_period_s
            out[:, 2] += self.breathing_mm * np.sin(phase)
        if self.wander_mm:
            out += self._wander(time)
        return out

    def _wander(self, time: F64) -> F64:
        knot_s = 10.0
        n = max(1, math.ceil(float(time.max()) / knot_s)) + 1
        rng = np.random.Generator(np.random.Philox(self.wander_seed))
        # one row a knot, so that a longer scan has the same beginning
        steps = rng.normal(size=(n, 3)) * self.wander_mm * math.sqrt(knot_s / 300.0)
        walk = np.concatenate((np.zeros((1, 3)), np.cumsum(steps, axis=0)))
        at = np.arange(n + 1) * knot_s
        return np.stack([np.interp(time, at, walk[:, axis]) for axis in range(3)], axis=1)

    @property
    def shifts(self) -> list[dict[str, object]]:
        """The steps as JSON values: ``time_s`` and ``shift_mm`` [x, y, z]."""
        return [
            {"time_s": float(t), "shift_mm": [float(v) for v in step]}
            for t, step in zip(self.step_time_s, self.step_mm, strict=True)
        ]


STILL = PatientMotion()
"""A patient who does not move."""
