"""A breathing signal from axial profiles, and gates of its phase as windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, hilbert, sosfiltfilt

from listmode.errors import InputError
from listmode.histogram import Histogram
from listmode.motion.body import body_extent_mm
from listmode.windows import Windows

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BAND_HZ = (0.1, 0.5)  # 6 to 30 breaths a minute
SLAB = (0.15, 0.65)  # thorax and abdomen, shares of the body's length from its cranial end
SMOOTH_MM = 8.0  # standard deviation by which the mean profile is smoothed
LEAST_RATIO = 3.0  # power in the breath's band over what noise alone has there
MIN_BREATHS = 8


@dataclass(frozen=True, eq=False)
class Respiration:
    """Breathing over time.

    Parameters
    ----------
    edges_ms
        Ends of the samples on the scan clock; they adjoin. Shape (n + 1,), int64.
    signal
        Displacement of thorax and abdomen along z within the breathing band, mm, as the
        profile tells it: less than the diaphragm's, for much of the profile does not move.
        Shape (n,).
    phase_rad
        Phase of the breath in [0, 2 pi), 0 at the most cranial place. Shape (n,).
    rate_hz
        The commonest frequency, Hz.
    power_ratio
        Power at it over that of noise alone; below ``LEAST_RATIO`` there is no breathing to
        be seen.
    note
        In words.
    """

    edges_ms: I64
    signal: F64
    phase_rad: F64
    rate_hz: float
    power_ratio: float
    note: str

    @property
    def is_usable(self) -> bool:
        """Whether there is a breathing signal at all."""
        return self.power_ratio >= LEAST_RATIO

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "rate_hz": self.rate_hz,
            "power_ratio": self.power_ratio,
            "is_usable": self.is_usable,
            "note": self.note,
        }


def find_respiration(histogram: Histogram) -> Respiration:
    """Follow the axial profile of thorax and abdomen, and keep what is in the breathing band.

    Each slice's profile is projected on minus the slope of the mean log profile, the direction
    in which a small axial shift changes it: the score of a shift, whose noise is known.

    Parameters
    ----------
    histogram
        From :func:`listmode.histogram.accumulate`, with slices of at most a second.

    Raises
    ------
    InputError
        If the slices are too long for breathing, or the scan holds fewer than eight breaths.

    Notes
    -----
    Power in the respiratory band over noise as measure of a usable signal: Walker et al. 2018
    (PMC6318161). Phase from the analytic signal (Gabor 1946, 10.1049/ji-3-2.1946.0074).
    """
    slice_s = histogram.slice_ms / 1000.0
    if slice_s > 1.0:
        raise InputError(
            "breathing is seen in slices of at most 1000 ms, but these last "
            f"{histogram.slice_ms} ms; accumulate again with slice_ms=500"
        )
    if histogram.n_slices * slice_s * BAND_HZ[0] * 2.0 < MIN_BREATHS:
        raise InputError(
            f"a breathing signal needs about {MIN_BREATHS} breaths, but the scan lasts "
            f"{histogram.n_slices * slice_s:g} s; use a longer one"
        )
    shift, error = _shifts(histogram)
    band = butter(2, BAND_HZ, btype="bandpass", fs=1.0 / slice_s, output="sos")
    signal = np.asarray(sosfiltfilt(band, shift))
    frequency = np.fft.rfftfreq(len(shift), slice_s)
    power = np.abs(np.fft.rfft(shift - shift.mean())) ** 2 / len(shift)
    # A breath wanders in rate: its power is collected over a fiftieth of a hertz.
    width = max(round(0.02 * len(shift) * slice_s), 1)
    power = np.convolve(power, np.ones(width) / width, mode="same")
    inside = (frequency >= BAND_HZ[0]) & (frequency <= BAND_HZ[1])
    outside = frequency > BAND_HZ[1] + 0.1
    best = int(np.argmax(np.where(inside, power, 0.0)))
    floor = float(np.median(power[outside])) if outside.any() else float(np.mean(error**2))
    ratio = float(power[best] / max(floor, 1e-12)) if np.isfinite(floor) else 0.0
    phase = np.mod(np.angle(hilbert(signal)), 2.0 * math.pi)
    rate = float(frequency[best])
    seen = "breathing" if ratio >= LEAST_RATIO else "no breathing to be seen"
    edges = np.append(
        histogram.slice_start_ms, histogram.slice_start_ms[-1] + histogram.slice_ms
    )
    return Respiration(
        edges_ms=edges.astype(np.int64),
        signal=signal,
        phase_rad=np.asarray(phase),
        rate_hz=rate,
        power_ratio=ratio,
        note=f"{seen}: {60 * rate:.0f} a minute, {ratio:.1f} times the noise's power",
    )


def _shifts(histogram: Histogram) -> tuple[F64, F64]:
    """Score each slice's profile for an axial shift, mm, with its standard error."""
    low, high = body_extent_mm(histogram)
    z = histogram.centre_mm(2)
    first, last = high - SLAB[1] * (high - low), high - SLAB[0] * (high - low)
    inside = (z >= first) & (z <= last)
    rows = histogram.z_profile[:, inside].astype(np.float64)
    total = rows.sum(axis=1)
    if not total.any():
        return np.zeros(len(rows)), np.full(len(rows), math.inf)
    mean = gaussian_filter1d(rows.sum(axis=0), SMOOTH_MM / histogram.voxel_mm)
    mean = np.maximum(mean, 1e-3 * mean.max())
    score = -np.gradient(np.log(mean), histogram.voxel_mm)
    share = mean / mean.sum()
    score -= share @ score
    information = max(float(share @ score**2), 1e-12)
    n = np.maximum(total, 1.0)
    return np.asarray(rows @ score / n / information), np.asarray(
        1.0 / np.sqrt(n * information)
    )


def gate_by_phase(respiration: Respiration, n_gates: int) -> tuple[Windows, ...]:
    """Cut the scan into gates of equal time by the phase of the breath.

    Parameters
    ----------
    respiration
        From :func:`find_respiration`.
    n_gates
        Number of gates, at least 2.

    Returns
    -------
    tuple of Windows
        One union of windows a gate, in order of phase; together they cover the scan once.

    Raises
    ------
    InputError
        If there are fewer than two gates or no breathing to gate by.

    Examples
    --------
    ``for windows in gate_by_phase(respiration, 6): reconstruct(listmode, windows, ...)``
    """
    if n_gates < 2:
        raise InputError(f"gating needs at least 2 gates, but {n_gates} was asked for; give 4")
    if not respiration.is_usable:
        raise InputError(
            f"gating needs a breathing signal, but there is {respiration.note}; use all"
        )
    # By rank, so that gates hold equal time though a breath lingers at its end.
    order = np.argsort(respiration.phase_rad, kind="stable")
    gate = np.empty(len(order), np.int64)
    gate[order] = np.arange(len(order)) * n_gates // len(order)
    return tuple(
        Windows.from_mask(gate == g, respiration.edges_ms).merged() for g in range(n_gates)
    )
