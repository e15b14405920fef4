"""Count rates over time as a small plot of text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from listmode.formats.info import Info

F64 = NDArray[np.float64]

N_COLUMNS = 64
N_ROWS = 6
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def rate_lines(info: Info) -> list[str]:
    """Draw the rates of prompts and, if there are any, of delayeds.

    Each column is the mean over its share of the scan; time that the file does not hold stays
    empty below a dotted line.

    Parameters
    ----------
    info
        What is in the file.
    """
    lines = _plot("prompts", info, info.prompts_hz)
    if info.n_delayeds_in_time:
        lines += ["", *_plot("delayeds", info, info.delayeds_hz)]
    return lines


def _plot(name: str, info: Info, rate_hz: F64) -> list[str]:
    means_hz = _columns(rate_hz)
    held = np.isfinite(means_hz)
    top_hz = float(np.max(means_hz[held], initial=0.0))
    eighths = np.zeros(len(means_hz), np.int64)
    if top_hz > 0.0:
        eighths[held] = np.rint(means_hz[held] / top_hz * 8 * N_ROWS).astype(np.int64)
        eighths[held & (means_hz > 0)] = np.maximum(eighths[held & (means_hz > 0)], 1)
    label = f"{_short(top_hz)} |"
    lines = [f"{name} over time, counts per second; from 0 to {_short(top_hz)}"]
    for row in reversed(range(N_ROWS)):
        bars = "".join(_EIGHTHS[level] for level in np.clip(eighths - 8 * row, 0, 8))
        side = label if row == N_ROWS - 1 else "|"
        lines.append(f"{side:>10}{bars}".rstrip())
    ground = "".join("-" if h else "." for h in held)
    lines.append(f"{'0 +':>10}{ground}")
    start, stop = f"{info.start_ms / 1000:g}", f"{info.stop_ms / 1000:g} s"
    lines.append(f"{'':10}{start}{stop:>{max(len(means_hz) - len(start), len(stop) + 1)}}")
    return lines


def _columns(rate_hz: F64) -> F64:
    """Give the mean rate of each column of the plot; NaN where nothing is held."""
    n = min(N_COLUMNS, len(rate_hz))
    edges = np.linspace(0, len(rate_hz), n + 1).round().astype(np.int64)
    return np.array(
        [
            part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan
            for part in np.split(rate_hz, edges[1:-1])
        ]
    )


def _short(rate_hz: float) -> str:
    for factor, prefix in ((1e6, "M"), (1e3, "k")):
        if rate_hz >= factor:
            return f"{rate_hz / factor:.3g} {prefix}"
    return f"{rate_hz:.3g}"
