"""The count rates of a scan over time as a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from listmode.formats.info import Info
from recon.report.figures import FULL_COLOUR, RC, STILL_COLOUR, png_bytes


def draw_rates(info: Info) -> bytes:
    """Draw the rates of prompts and delayeds; time that the file does not hold is hatched.

    Parameters
    ----------
    info
        What is in the file.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    ax: Any = figure.subplots()
    edges_s = np.append(info.rate_start_s, info.stop_ms / 1000.0)
    top_hz = 0.0
    for name, rate_hz, colour in (
        ("prompts", info.prompts_hz, STILL_COLOUR),
        ("delayeds", info.delayeds_hz, FULL_COLOUR),
    ):
        if name == "delayeds" and not info.n_delayeds_in_time:
            continue
        ax.stairs(rate_hz / 1000.0, edges_s, color=colour, lw=1.2, baseline=None, label=name)
        top_hz = max(top_hz, float(np.nanmax(rate_hz, initial=0.0)))
    missing = ~np.isfinite(info.prompts_hz)
    for k, i in enumerate(np.flatnonzero(missing)):
        ax.axvspan(
            edges_s[i], edges_s[i + 1], facecolor="none", edgecolor="#bbbbbb", hatch="///",
            lw=0, label=None if k else "not in the file",
        )  # fmt: skip
    ax.set_xlim(edges_s[0], edges_s[-1])
    ax.set_ylim(0.0, 1.08 * top_hz / 1000.0 if top_hz else 1.0)
    ax.set_xlabel(f"time (s from {info.clock_zero})", fontsize=RC["font"])
    ax.set_ylabel("count rate (kcps)", fontsize=RC["font"])
    bin_s = float(np.median(np.diff(edges_s)))
    scanner = f"{info.scanner_name} {info.mode}".strip()
    title = f"{scanner}, {info.format_name}; bins of {bin_s:g} s"
    ax.set_title(title, loc="left", fontsize=RC["font"])
    ax.grid(axis="y", color="#dddddd", lw=0.5)
    ax.tick_params(labelsize=RC["small"])
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper",
                  fontsize=RC["small"], frameon=False)  # fmt: skip
    return png_bytes(figure)
