"""Least squares of steps in a drifting trace: the arithmetic under change detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from listmode.motion.wander import AxisNoise, estimate_noise

F64 = NDArray[np.float64]

# Growth rates q / V0 tried for the filling law, 1/min: none (a straight line) to 15 mL/min
# from 25 mL. The best one is refined: left at a factor of two, a step's size is off by 0.2 mm.
GROWTH_PER_MIN = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


# A template on a filling bladder is no surer than a patient's wander of 0.1 mm in 5 min.
LEAST_WANDER_MM2_S = 0.1**2 / 300.0


@dataclass(frozen=True, eq=False)
class Series:
    """A trace made ready for fitting: finite rows only.

    Parameters
    ----------
    time_s
        Middle of each window from the scan's start, s. Shape (n,).
    value_mm
        Displacements, mm. Shape (n, 3).
    weight
        Inverse variances, 1/mm^2. Shape (n, 3).
    """

    time_s: F64
    value_mm: F64
    weight: F64

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass(frozen=True, eq=False)
class StepFit:
    """A joint fit of steps and a trend.

    ``shift_mm`` and ``error_mm`` have shape (n_steps, 3); ``trend_mm`` (the trend and the
    wander, if noise was given, without the steps) and ``fitted_mm`` shape (n, 3); ``misfit`` is
    the weighted sum of squares. The errors include that the growth rate was fitted.
    """

    growth: float
    shift_mm: F64
    error_mm: F64
    trend_mm: F64
    fitted_mm: F64
    misfit: float


def trend_basis(time_s: F64, growth: float) -> F64:
    """Give the columns 1 and the displacement of a filling bladder's centre.

    A bladder that keeps its shape and its caudal end moves its centre by its own size, which
    goes with the cube root of a volume that grows linearly: 3 ((1 + growth t)^(1/3) - 1) /
    growth, in minutes; without growth a straight line. Shape (n, 2).
    """
    minutes = time_s / 60.0
    shape = 3.0 * (np.cbrt(1.0 + growth * minutes) - 1.0) / growth if growth > 1e-6 else minutes
    return np.stack((np.ones_like(minutes), shape), axis=1)


def _columns(series: Series, growth: float, steps_s: list[float]) -> F64:
    steps = [(series.time_s >= s).astype(float) for s in steps_s]
    return np.column_stack((trend_basis(series.time_s, growth), *steps))


def fit_steps(
    series: Series, steps_s: list[float], growth: float, noise: list[AxisNoise] | None = None
) -> StepFit:
    """Fit steps at given times together with the trend of one growth rate.

    Parameters
    ----------
    series
        The trace.
    steps_s, growth
        Times of the steps, s, and the growth rate of the trend, 1/min.
    noise
        Of each axis, as :func:`noise_of` gives it; the series' weights alone if left out.
    """
    columns = _columns(series, growth, steps_s)
    k = len(steps_s)
    shift, variance = np.zeros((k, 3)), np.zeros((k, 3))
    trend, fitted = np.empty_like(series.value_mm), np.empty_like(series.value_mm)
    bend = _bend(series.time_s, growth)
    leverage, information, misfit = np.zeros((k, 3)), 0.0, 0.0
    for axis in range(3):
        y = series.value_mm[:, axis]
        own = (
            noise[axis] if noise else AxisNoise(series.weight[:, axis], np.diff(series.time_s))
        )
        weighed = own.solve(columns)
        normal = columns.T @ weighed
        inverse = np.linalg.pinv(normal)
        solution = inverse @ (weighed.T @ y)
        shift[:, axis] = solution[2:]
        variance[:, axis] = np.maximum(np.diag(inverse)[2:], 0.0)
        trend[:, axis] = columns[:, :2] @ solution[:2]
        fitted[:, axis] = columns @ solution
        left = y - fitted[:, axis]
        misfit += float(left @ own.solve(left))
        walk = own.walk(left)
        trend[:, axis] += walk
        fitted[:, axis] += walk
        # The growth rate is shared by the axes: what its column takes from each of them.
        slope = solution[1] * bend
        cross = weighed.T @ slope
        answer = inverse @ cross
        leverage[:, axis] = answer[2:]
        information += float(slope @ own.solve(slope) - cross @ answer)
    if information > 0:
        variance += leverage**2 / information
    return StepFit(growth, shift, np.sqrt(variance), trend, fitted, misfit)


def _bend(time_s: F64, growth: float) -> F64:
    """Give the derivative of the trend's second column with the growth rate. Shape (n,)."""
    low, high = max(growth - 1e-3, 0.0), growth + 1e-3
    return np.asarray(
        (trend_basis(time_s, high)[:, 1] - trend_basis(time_s, low)[:, 1]) / (high - low)
    )


def noise_of(series: Series, steps_s: list[float], growth: float) -> list[AxisNoise]:
    """Find each axis' noise and wander beside the trend and the steps."""
    columns = _columns(series, growth, steps_s)
    return [
        estimate_noise(
            series.time_s,
            series.value_mm[:, a],
            series.weight[:, a],
            columns,
            LEAST_WANDER_MM2_S,
        )
        for a in range(3)
    ]


def best_fit(
    series: Series, steps_s: list[float], noise: list[AxisNoise] | None = None
) -> StepFit:
    """Fit steps at given times with the growth rate that fits best.

    The best of the rates tried is refined between its neighbours.
    """
    fits = [fit_steps(series, steps_s, g, noise) for g in GROWTH_PER_MIN]
    best = int(np.argmin([f.misfit for f in fits]))
    low = GROWTH_PER_MIN[max(best - 1, 0)]
    high = GROWTH_PER_MIN[min(best + 1, len(GROWTH_PER_MIN) - 1)]
    found = minimize_scalar(
        lambda g: fit_steps(series, steps_s, float(g), noise).misfit,
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-3 * high},
    )
    refined = fit_steps(series, steps_s, float(found.x), noise)
    return min(refined, fits[best], key=lambda f: f.misfit)


def scan_statistic(
    series: Series, steps_s: list[float], base_misfit: float, *, growth: float = 0.0
) -> F64:
    """Give the drop of the misfit by one more step at the start of each window.

    The growth rates of :data:`GROWTH_PER_MIN` and ``growth``, that of the base fit, are tried.

    The drop is twice the log-likelihood ratio for Gaussian errors, over the three axes and
    with the trend fitted anew with and without the step; it is distributed like the largest
    of many chi-squared variables of three degrees of freedom. Shape (n,); zero where a step
    cannot be told from the trend.
    """
    best = np.full(len(series), np.inf)
    for rate in sorted({*GROWTH_PER_MIN, growth}):
        columns = _columns(series, rate, steps_s)
        left = np.zeros(len(series))
        for axis in range(3):
            root = np.sqrt(series.weight[:, axis])
            q, _ = np.linalg.qr(root[:, None] * columns)
            y = root * series.value_mm[:, axis]
            y = y - q @ (q.T @ y)
            # A step at window i is one from i on: its products are reverse cumulative sums.
            along = np.cumsum((root * y)[::-1])[::-1]
            own = np.cumsum((root**2)[::-1])[::-1]
            shadow = np.cumsum((root[:, None] * q)[::-1], axis=0)[::-1]
            norm = own - (shadow**2).sum(axis=1)
            usable = norm > 1e-6 * own
            gain = np.where(usable, along**2 / np.where(usable, norm, 1.0), 0.0)
            left += float(y @ y) - gain
        best = np.minimum(best, left)
    return np.asarray(np.maximum(base_misfit - best, 0.0))


def gain_beside_wander(series: Series, noise: list[AxisNoise], growth: float) -> F64:
    """Give the drop of the misfit by one step at the start of each window, beside the wander.

    As :func:`scan_statistic`, but with the covariance of each axis: a walk that came to the
    same place by itself is no step. Shape (n,); zero where a step cannot be told.
    """
    columns = trend_basis(series.time_s, growth)
    total = np.zeros(len(series))
    for axis, own in enumerate(noise):
        weighed = own.solve(columns)
        inverse = np.linalg.pinv(columns.T @ weighed)
        left = series.value_mm[:, axis]
        left = left - columns @ (inverse @ (weighed.T @ left))
        along = np.cumsum(own.solve(left)[::-1])[::-1]
        shadow = np.cumsum(weighed[::-1], axis=0)[::-1]
        norm = own.step_information - np.einsum("ij,jk,ik->i", shadow, inverse, shadow)
        usable = norm > 1e-6 * norm.max()
        total += np.where(usable, along**2 / np.where(usable, norm, 1.0), 0.0)
    return total


def contrast_mm(
    series: Series, residual_mm: F64, reach_s: float, borders_s: list[float]
) -> F64:
    """Give the two-sided contrast at the start of each window.

    The mean of what the trend leaves in the ``reach_s`` after that time less that before it,
    each cut at the nearest known step. Shape (n, 3), mm; zero where a side is empty.
    """
    time = series.time_s
    half = np.diff(time, append=2 * time[-1] - time[-2]) / 2.0 if len(time) > 1 else np.ones(1)
    edge = time - half
    borders = np.array([-np.inf, *sorted(borders_s), np.inf])
    at = np.searchsorted(borders, edge, side="right")
    low = np.searchsorted(time, np.maximum(edge - reach_s, borders[at - 1]))
    high = np.searchsorted(
        time, np.minimum(edge + reach_s, borders[np.minimum(at, len(borders) - 1)])
    )
    index = np.arange(len(time))
    result = np.zeros((len(time), 3))
    for axis in range(3):
        w = np.concatenate(([0.0], np.cumsum(series.weight[:, axis])))
        wy = np.concatenate(([0.0], np.cumsum(series.weight[:, axis] * residual_mm[:, axis])))
        before, after = w[index] - w[low], w[high] - w[index]
        usable = (before > 0) & (after > 0)
        mean_after = (wy[high] - wy[index]) / np.where(usable, after, 1.0)
        mean_before = (wy[index] - wy[low]) / np.where(usable, before, 1.0)
        result[:, axis] = np.where(usable, mean_after - mean_before, 0.0)
    return result
