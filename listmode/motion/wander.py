"""A trace's noise: that of each window, and a slow wander that remembers where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

F64 = NDArray[np.float64]

# Wander tried, as its variance in a second over that of one window's noise: from what 20 min
# cannot show to what is no wander any more.
_RATIOS = 10.0 ** np.arange(-7.0, 0.1, 0.25)


@dataclass(frozen=True, eq=False)
class AxisNoise:
    """The covariance of one axis of a trace: windows' noise plus a random walk.

    Windows that follow each other share the walk, so the place before a step is best told by
    the windows near it. With ``R`` the covariance, a least-squares fit weighed with its inverse
    is the best linear one (Aitken 1936, 10.1017/S0370164600014346).

    Parameters
    ----------
    weight
        Inverse variances of the windows' own noise, 1/mm^2. Shape (n,).
    gap_s
        Time from each window to the next, s. Shape (n - 1,).
    walk_mm2_s
        Variance of the walk in a second, mm^2/s; 0 for none.
    """

    weight: F64
    gap_s: F64
    walk_mm2_s: float = 0.0

    @cached_property
    def _factor(self) -> F64 | None:
        """Cholesky factor of the walk's inverse covariance given the trace; None without."""
        if not (self.walk_mm2_s > 0.0 and len(self.weight) > 1):
            return None
        inverse = 1.0 / (self.walk_mm2_s * self.gap_s)  # of the steps of the walk
        banded = np.zeros((2, len(inverse)))
        banded[1] = self.weight[1:] + inverse
        banded[1, :-1] += inverse[1:]
        banded[0, 1:] = -inverse[1:]
        return np.asarray(cholesky_banded(banded, check_finite=False))

    def solve(self, values: F64) -> F64:
        """Give ``R^-1 values``. Shape as ``values``: (n,) or (n, k)."""
        weight = self.weight if values.ndim == 1 else self.weight[:, None]
        out = weight * values
        if self._factor is not None:
            # Woodbury: the walk starts at the first window, and has n - 1 places.
            inner = cho_solve_banded((self._factor, False), out[1:], check_finite=False)
            out[1:] -= weight[1:] * inner
        return np.asarray(out)

    def walk(self, residual_mm: F64) -> F64:
        """Give the walk that explains residuals best, 0 at the first window. Shape (n,)."""
        out = np.zeros(len(residual_mm))
        if self._factor is not None:
            out[1:] = cho_solve_banded(
                (self._factor, False), (self.weight * residual_mm)[1:], check_finite=False
            )
        return out

    @property
    def step_information(self) -> F64:
        """Give ``x^T R^-1 x`` of a step at each window, ``x`` being 1 from there on, (n,).

        By the recurrence from the last window to the first: what the walk explains of a step
        grows by a window's own part and by what it shares with those after it.
        """
        total = np.cumsum(self.weight[::-1])[::-1].copy()
        if self._factor is None:
            return np.asarray(total)
        w = self.weight[1:].tolist()
        inverse = (1.0 / (self.walk_mm2_s * self.gap_s)).tolist()
        n = len(w)
        own = [w[j] + inverse[j] + (inverse[j + 1] if j + 1 < n else 0.0) for j in range(n)]
        # Pivots of the elimination from the front and from the back, and the part of a step's
        # right-hand side that comes up from the windows behind.
        front = own.copy()
        for j in range(1, n):
            front[j] -= inverse[j] ** 2 / front[j - 1]
        back, behind = own.copy(), w.copy()
        for j in range(n - 2, -1, -1):
            back[j] -= inverse[j + 1] ** 2 / back[j + 1]
            behind[j] += inverse[j + 1] * behind[j + 1] / back[j + 1]
        diagonal = 1.0 / (np.array(front) + back - own)  # of the inverse
        part = self.weight[1:] * (2.0 * np.array(behind) - w) * diagonal
        explained = np.cumsum(part[::-1])[::-1]
        total[1:] -= explained
        total[0] -= explained[0]
        return np.asarray(total)

    @property
    def log_determinant(self) -> float:
        """Logarithm of the determinant of ``R``."""
        value = -float(np.log(self.weight).sum())
        if self._factor is not None:
            value += 2.0 * float(np.log(self._factor[1]).sum())
            value += float(np.log(self.walk_mm2_s * self.gap_s).sum())
        return value


def estimate_noise(
    time_s: F64, value_mm: F64, weight: F64, columns: F64, least_mm2_s: float = 0.0
) -> AxisNoise:
    """Find the noise and the wander of one axis from its trace.

    Restricted likelihood (Patterson and Thompson 1971, 10.1093/biomet/58.3.545): what the
    columns explain is taken out first. The wander is its posterior mean with a prior even in
    its logarithm: the most likely one alone makes intervals too short, most of all where the
    trace shows none. Windows are never taken for surer than they say.

    Parameters
    ----------
    time_s, value_mm
        Middles of the windows and places. Shape (n,).
    weight
        Inverse variances by the windows' own standard errors, 1/mm^2. Shape (n,).
    columns
        What may explain the places: trend and steps. Shape (n, k).
    least_mm2_s
        The least wander that is believed, mm^2/s.
    """
    gap_s = np.diff(time_s)
    basis, size, _ = np.linalg.svd(columns, full_matrices=False)
    columns = basis[:, size > 1e-9 * size[0]]  # a step at the very end is no column of its own
    n, k = columns.shape
    if n < k + 4:
        return AxisNoise(weight, gap_s, least_mm2_s)

    def criterion(walk_mm2_s: float) -> tuple[float, float]:
        noise = AxisNoise(weight, gap_s, walk_mm2_s)
        solved = noise.solve(columns)
        normal = columns.T @ solved
        solution = np.linalg.lstsq(normal, solved.T @ value_mm, rcond=None)[0]
        left = value_mm - columns @ solution
        misfit = float(left @ noise.solve(left))
        inflation = max(misfit / (n - k), 1.0)
        value = (n - k) * math.log(inflation) + misfit / inflation
        return value + noise.log_determinant + float(np.linalg.slogdet(normal)[1]), inflation

    tried = float(np.median(1.0 / weight)) * _RATIOS
    value = np.array([criterion(float(walk))[0] for walk in tried])
    likelihood = np.exp((value.min() - value) / 2.0)
    walk = max(float((likelihood * tried).sum() / likelihood.sum()), least_mm2_s)
    inflation = criterion(walk)[1]
    return AxisNoise(weight / inflation, gap_s, walk * inflation)
