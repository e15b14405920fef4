"""How the bladder's volume grows: blocks of time and a straight line through them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.motion.region import RegionEvents, aligned_image
from listmode.motion.template import (
    BlurredEllipsoid,
    EllipsoidFit,
    amplitudes,
    poisson_weight,
)

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

BLOCK_S = 60.0
SCALES = np.exp(np.linspace(math.log(0.55), math.log(1.7), 25))  # sizes tried, of the template


@dataclass(frozen=True, eq=False)
class Filling:
    """Volume of the bladder over time.

    Parameters
    ----------
    time_s, volume_ml, standard_error_ml
        Middle of each block of time, the volume in it and its standard error. Shape (n,).
    volume_at_zero_ml
        Volume at tick zero by the straight line through the blocks, mL.
    rate_ml_min, rate_error_ml_min
        Its slope and standard error, mL/min; the error is ``inf`` with one block.
    reference_ml
        Volume of the template, mL.
    """

    time_s: F64
    volume_ml: F64
    standard_error_ml: F64
    volume_at_zero_ml: float
    rate_ml_min: float
    rate_error_ml_min: float
    reference_ml: float

    def volume_at(self, time_s: F64) -> F64:
        """Volume by the straight line, mL; never below a fifth of the template's."""
        line = self.volume_at_zero_ml + self.rate_ml_min * np.asarray(time_s) / 60.0
        return np.asarray(np.clip(line, 0.2 * self.reference_ml, 5.0 * self.reference_ml))

    def scale_at(self, time_s: F64) -> F64:
        """Size relative to the template: the cube root of the volumes' ratio."""
        return np.asarray((self.volume_at(time_s) / self.reference_ml) ** (1.0 / 3.0))

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        error = self.rate_error_ml_min
        return {
            "time_s": self.time_s.tolist(),
            "volume_ml": self.volume_ml.tolist(),
            "standard_error_ml": self.standard_error_ml.tolist(),
            "volume_at_zero_ml": self.volume_at_zero_ml,
            "rate_ml_min": self.rate_ml_min,
            "rate_error_ml_min": error if math.isfinite(error) else None,
        }


def fit_filling(
    events: RegionEvents, edges_ms: I64, place_mm: F64, fit: EllipsoidFit
) -> Filling:
    """Fit the bladder's volume in blocks of time and a straight line through them.

    In each block the template's ellipsoid, moved to where the bladder was, is scaled until it
    fits the events best; excess and background are free, so that neither decay nor a change of
    concentration looks like a change of size.

    Parameters
    ----------
    events
        Of the bladder's surroundings.
    edges_ms, place_mm
        Windows and the bladder's centre in each. Shapes (n + 1,) and (n, 3).
    fit
        The template's ellipsoid.

    Notes
    -----
    Volume grows linearly in time (van de Beek et al. 2019, 10.1016/j.ijrobp.2019.06.849).
    """
    middle_s = (edges_ms[:-1] + edges_ms[1:]) / 2000.0
    start_s = edges_ms[0] / 1000.0
    n_blocks = max(int((edges_ms[-1] / 1000.0 - start_s) / BLOCK_S), 1)
    length_s = (edges_ms[-1] / 1000.0 - start_s) / n_blocks
    block = np.minimum(((middle_s - start_s) / length_s).astype(int), n_blocks - 1)
    half = fit.semi_axis_mm * 1.25 + np.array([30.0, 30.0, 15.0])
    axes, images = aligned_image(
        events, edges_ms, place_mm - fit.centre_mm, fit.centre_mm, half, block
    )
    model = BlurredEllipsoid(axes, events.covariance, events.direction_share)
    drawn = [model.draw(fit.semi_axis_mm * s, fit.centre_mm) for s in SCALES]
    rows = [(_scale(image, drawn), k) for k, image in enumerate(images) if image.sum() >= 200]
    good = [(scale, error, k) for (scale, error), k in rows if math.isfinite(error)]
    volume = np.array([fit.volume_ml * scale**3 for scale, _, _ in good])
    error_ml = np.array([3.0 * fit.volume_ml * scale**2 * e for scale, e, _ in good])
    time_s = np.array([start_s + (k + 0.5) * length_s for _, _, k in good])
    at_zero, rate, rate_error = _line(time_s / 60.0, volume, error_ml, fit.volume_ml)
    return Filling(time_s, volume, error_ml, at_zero, rate, rate_error, fit.volume_ml)


def _scale(image: F64, drawn: list[F64]) -> tuple[float, float]:
    """Give the size that fits best and its standard error; ``inf`` if none does."""
    weight = poisson_weight(image)
    misfit = np.empty(len(drawn))
    for i, shape in enumerate(drawn):
        excess, background = amplitudes(shape, image, weight)
        misfit[i] = (weight * (image - excess * shape - background) ** 2).sum()
    best = int(np.argmin(misfit))
    if best in (0, len(drawn) - 1):
        return float(SCALES[best]), math.inf
    near = slice(max(best - 2, 0), best + 3)
    x = np.log(SCALES[near])
    a, b, _ = np.polyfit(x, misfit[near], 2)
    if not a > 0:
        return float(SCALES[best]), math.inf
    scale = math.exp(float(np.clip(-b / (2 * a), x[0], x[-1])))
    return scale, scale / math.sqrt(a)  # chi2 rises by 1 at one standard error


def _line(
    time_min: F64, volume: F64, error: F64, default_ml: float
) -> tuple[float, float, float]:
    """Weighted straight line: value at zero, slope, and the slope's standard error."""
    if len(volume) < 3:
        return (float(volume.mean()) if len(volume) else default_ml), 0.0, math.inf
    w = 1.0 / error**2
    mean = (w * time_min).sum() / w.sum()
    spread = (w * (time_min - mean) ** 2).sum()
    level = (w * volume).sum() / w.sum()
    slope = (w * (time_min - mean) * volume).sum() / spread
    left = volume - level - slope * (time_min - mean)
    excess = max(float((w * left**2).sum()) / (len(volume) - 2), 1.0)
    return float(level - slope * mean), float(slope), math.sqrt(excess / float(spread))
