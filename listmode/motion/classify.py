"""What kind of change it was: the whole body, or something inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from listmode.motion.steps import Series, fit_steps
from listmode.motion.trace import MotionTrace

F64 = NDArray[np.float64]
ChangeClass = Literal["whole-body shift", "local event", "unclassified"]

MAX_ERROR_MM = 3.0  # a slab's axis that is followed worse than this in a window tells nothing
SIGMAS = 3.0  # how far a share must lie from none, or from the whole, to decide


def classify(
    times_s: list[float], shift_mm: F64, bodies: Mapping[str, MotionTrace] | None
) -> list[tuple[ChangeClass, str]]:
    """Compare each change with the steps of the body's slabs at the same times.

    A shift of the whole body is seen by every slab; the fetus or a bowel loop that pushes the
    bladder is not. The measure is the share of the bladder's shift that the slabs share,
    weighted by their errors.

    Parameters
    ----------
    times_s, shift_mm
        The changes. Shapes (n,) and (n, 3).
    bodies
        Traces of body slabs, from :func:`listmode.motion.body.follow_body`; the bladder is
        not part of them.

    Returns
    -------
    list
        Class and reason of each change.
    """
    if not times_s:
        return []
    shares = [_shares(trace, times_s, shift_mm) for trace in (bodies or {}).values()]
    names = list(bodies or {})
    result: list[tuple[ChangeClass, str]] = []
    for k in range(len(times_s)):
        usable = [(n, s[k]) for n, s in zip(names, shares, strict=True) if np.isfinite(s[k][1])]
        result.append(_decide(usable))
    return result


def _decide(usable: list[tuple[str, tuple[float, float]]]) -> tuple[ChangeClass, str]:
    if not usable:
        return "unclassified", "no other part of the body could be followed"
    weight = np.array([1.0 / error**2 for _, (_, error) in usable])
    share = float((weight * [value for _, (value, _) in usable]).sum() / weight.sum())
    error = float(1.0 / np.sqrt(weight.sum()))
    where = ", ".join(f"{name} {100 * s:.0f} ± {100 * e:.0f} %" for name, (s, e) in usable)
    text = f"the body took part with {100 * share:.0f} ± {100 * error:.0f} % of it ({where})"
    if share > 0.5 and share > SIGMAS * error:
        return "whole-body shift", text
    if share < 0.5 and share < 1.0 - SIGMAS * error:
        return "local event", text
    return "unclassified", text


def _shares(
    trace: MotionTrace, times_s: list[float], shift_mm: F64
) -> list[tuple[float, float]]:
    """Give the share of each change's shift that a slab shows, with its standard error."""
    good = np.isfinite(trace.displacement_mm) & np.isfinite(trace.standard_error_mm)
    time = trace.time_ms / 1000.0
    good &= np.median(trace.standard_error_mm, axis=0)[None, :] <= MAX_ERROR_MM
    good &= (np.abs(time[:, None] - np.asarray(times_s)[None, :]).min(axis=1) > 2.0)[:, None]
    if good.any(axis=1).sum() < 2 * len(times_s) + 4:
        return [(np.nan, np.inf)] * len(times_s)
    series = Series(
        time,
        np.where(good, trace.displacement_mm, 0.0),
        np.where(good, 1.0 / np.where(good, trace.standard_error_mm, 1.0) ** 2, 0.0),
    )
    fit = fit_steps(series, times_s, 0.0)
    # Lack of fit (breathing, mixing of neighbours) widens the errors.
    n_free = np.maximum(good.sum(axis=0) - 2 - len(times_s), 1)
    left = (series.weight * (series.value_mm - fit.fitted_mm) ** 2).sum(axis=0) / n_free
    variance = fit.error_mm**2 * np.maximum(left, 1.0)
    variance[fit.error_mm == 0.0] = np.inf
    result = []
    for k in range(len(times_s)):
        s = shift_mm[k]
        information = (s**2 / variance[k]).sum()
        if information > 0:
            share = (s * fit.shift_mm[k] / variance[k]).sum() / information
            result.append((float(share), float(1.0 / np.sqrt(information))))
        else:
            result.append((np.nan, np.inf))
    return result
