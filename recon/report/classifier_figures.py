"""Figures of the report on classifiers, drawn from the values of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from recon.report.figures import FULL_COLOUR, RC, STILL_COLOUR, _style, png_bytes

COLOURS = {"base": FULL_COLOUR, "context": STILL_COLOUR}
NAMES = {"base": "hotspot alone", "context": "with context"}
RIGHT_COLOUR, WRONG_COLOUR, SAME_COLOUR = "#1f5c99", "#c2410c", "#b8b8b8"
BLOCK_COLOUR = "#6b4c9a"


_WORDS = {
    "suv_max": "SUVmax of the hotspot",
    "primary_suv_max": "SUVmax of the primary",
    "reference_suv_max": "SUVmax of the reference",
    "n_lymph_node": "number in lymph nodes",
    "n_bone": "number in bone",
    "scan_suv_max": "highest SUVmax of the scan",
    "scan_suv_max_others": "highest SUVmax of the others",
    "region_suv_mean": "mean SUVmax in the region",
    "region_suv_mean_others": "mean SUVmax of the region's others",
    "hu_mean": "CT mean",
    "hu_max": "CT maximum",
    "hu_sd": "CT standard deviation",
}


def plain(name: str) -> str:
    """Write a feature's, a tissue's or a model's name as words."""
    return _WORDS.get(name, name.replace("_", " "))


def _titled(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x, fontsize=RC["font"])
    ax.set_ylabel(y, fontsize=RC["font"])
    ax.grid(color="#e8e8e8", lw=0.5)
    ax.set_axisbelow(True)
    _style(ax)


def draw_roc(cases: Mapping[str, Any], summaries: Mapping[str, Any], *, tag: str) -> bytes:
    """Draw the ROC curves of both models with their bands, and where calls at 0.5 lie.

    Parameters
    ----------
    cases
        ``cases`` of an evaluation.
    summaries
        ``base`` and ``context`` of the same classifier.
    tag
        What must not be forgotten about the data, for the title.
    """
    figure = Figure(figsize=(5.4, 5.2), layout="constrained")
    ax = figure.subplots()
    for name, colour in COLOURS.items():
        band, rates = cases[name]["roc_band"], summaries[name]["at_half"]
        ax.fill_between(
            band["false_positive"], band["low"], band["high"],
            step="post", color=colour, alpha=0.16, lw=0,
        )  # fmt: skip
        ax.plot(
            *cases[name]["roc"], color=colour, lw=1.6, drawstyle="steps-post",
            label=f"{NAMES[name]}, AUC {summaries[name]['auc']:.3f}",
        )  # fmt: skip
        ax.plot(
            1.0 - rates["specificity"], rates["sensitivity"], "o", color=colour, ms=7,
            mec="white", zorder=5,
        )  # fmt: skip
    ax.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=":")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.legend(loc="lower right", fontsize=RC["font"], frameon=False)
    _titled(ax, f"ROC{tag}", "1 - specificity", "sensitivity")
    return png_bytes(figure)


def draw_probabilities(cases: Mapping[str, Any], *, tag: str) -> bytes:
    """Draw the probability of each hotspot without and with context, changed calls in colour.

    Parameters
    ----------
    cases
        ``cases`` of an evaluation.
    tag
        As for :func:`draw_roc`.
    """
    truth, tissue = np.array(cases["malignant"]) > 0, np.array(cases["tissue"])
    base, context = (np.array(cases[name]["probability"]) for name in ("base", "context"))
    tissues = [t for t in ("bone", "lymph_node") if (tissue == t).any()]
    figure = Figure(figsize=(10.0, 3.1 * len(tissues) + 0.5), layout="constrained")
    axes: Any = figure.subplots(len(tissues), 2, sharey=True, squeeze=False)
    for row, name in zip(axes, tissues, strict=True):
        for ax, is_malignant in zip(row, (False, True), strict=True):
            mine = (tissue == name) & (truth == is_malignant)
            counts = _draw_changes(ax, base[mine], context[mine], is_malignant=is_malignant)
            kind = "malignant" if is_malignant else "benign"
            _titled(
                ax,
                f"{plain(name)}, {kind}{tag}\n{counts}",
                "hotspots, by probability alone",
                "probability of malignancy",
            )
    handles = [
        Line2D([], [], marker="o", ls="", mfc="white", mec="#777777", ms=4),
        Line2D([], [], marker="o", ls="-", color=SAME_COLOUR, ms=4),
        Line2D([], [], marker="o", ls="-", color=RIGHT_COLOUR, ms=4),
        Line2D([], [], marker="o", ls="-", color=WRONG_COLOUR, ms=4),
    ]
    words = ["hotspot alone", "with context, same call", "call put right", "call spoilt"]
    figure.legend(handles, words, loc="outside lower center", ncols=4, fontsize=RC["font"],
                  frameon=False)  # fmt: skip
    return png_bytes(figure)


def _draw_changes(ax: Axes, base: Any, context: Any, *, is_malignant: bool) -> str:
    """Draw one panel and say how many calls change in it."""
    order = np.argsort(base, kind="stable")
    base, context = base[order], context[order]
    x = np.arange(base.size)
    changed = (base >= 0.5) != (context >= 0.5)
    is_right = changed & ((context >= 0.5) == is_malignant)
    for pick, colour, width in (
        (~changed, SAME_COLOUR, 0.6),
        (is_right, RIGHT_COLOUR, 1.0),
        (changed & ~is_right, WRONG_COLOUR, 1.0),
    ):
        ax.vlines(x[pick], base[pick], context[pick], color=colour, lw=width)
        ax.plot(x[pick], context[pick], "o", color=colour, ms=2.6)
    ax.plot(x, base, "o", mfc="white", mec="#777777", mew=0.5, ms=2.2, zorder=1.9)
    ax.axhline(0.5, color="#333333", lw=0.8, ls="--")
    ax.set_ylim(-0.03, 1.03)
    return f"{base.size} hotspots, {changed.sum()} calls change, {is_right.sum()} rightly"


def draw_importance(summaries: Mapping[str, Any], *, tag: str) -> bytes:
    """Draw how much AUC is lost when a feature's values are dealt anew among hotspots.

    Parameters
    ----------
    summaries
        ``base`` and ``context`` of one classifier, with ``importance``.
    tag
        As for :func:`draw_roc`.
    """
    loss = {name: summaries[name]["importance"] for name in COLOURS}
    heights = [len(loss[name]) + 1 for name in COLOURS]
    figure = Figure(figsize=(7.0, 0.26 * sum(heights) + 1.3), layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    for ax, name in zip(axes, COLOURS, strict=True):
        names = sorted(loss[name], key=lambda feature: loss[name][feature])
        colours = [BLOCK_COLOUR if n == "all context" else COLOURS[name] for n in names]
        values = [loss[name][n] for n in names]
        spread = [summaries[name]["importance_sd"][n] for n in names]
        ax.barh([plain(n) for n in names], values, xerr=spread, color=colours, height=0.7,
                error_kw={"lw": 0.8, "ecolor": "#555555"})  # fmt: skip
        ax.axvline(0.0, color="#555555", lw=0.8)
        _titled(ax, f"{NAMES[name]}{tag}", "", "")
    axes[-1].set_xlabel("AUC lost, mean and SD over held-out folds", fontsize=RC["font"])
    return png_bytes(figure)


def draw_reliability(cases: Mapping[str, Any], *, tag: str) -> bytes:
    """Draw how many hotspots of like probability are malignant, with intervals by patient.

    Parameters
    ----------
    cases
        ``cases`` of an evaluation.
    tag
        As for :func:`draw_roc`.
    """
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    ax = figure.subplots()
    for name, colour in COLOURS.items():
        curve = {key: np.array(v) for key, v in cases[name]["reliability"].items()}
        error = np.abs(np.stack((curve["low"], curve["high"])) - curve["observed"])
        ax.errorbar(curve["predicted"], curve["observed"], yerr=error, color=colour, marker="o",
                    ms=4, lw=1.2, elinewidth=0.8, capsize=2, label=NAMES[name])  # fmt: skip
    ax.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=":")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.legend(loc="upper left", fontsize=RC["font"], frameon=False)
    _titled(ax, f"Reliability{tag}", "mean probability given", "share that is malignant")
    return png_bytes(figure)


def draw_leakage(models: Mapping[str, Any], *, tag: str) -> bytes:
    """Draw each classifier's gain by context, honest and with patients parted.

    Parameters
    ----------
    models
        ``models`` of an evaluation that has both kinds of fold.
    tag
        As for :func:`draw_roc`.
    """
    figure = Figure(figsize=(7.0, 0.5 * len(models) + 1.6), layout="constrained")
    ax = figure.subplots()
    for shift, folds, colour, marker, words in (
        (-0.13, "by_patient", STILL_COLOUR, "o", "patients kept together"),
        (0.13, "by_hotspot", WRONG_COLOUR, "s", "hotspots dealt freely (leaks)"),
    ):
        gains = [by[folds]["comparison"]["auc_gain"] for by in models.values()]
        value = np.array([gain["value"] for gain in gains])
        low, high = (np.array([gain[side] for gain in gains]) for side in ("low", "high"))
        ax.errorbar(value, np.arange(len(gains)) + shift, xerr=(value - low, high - value),
                    ls="", marker=marker, color=colour, ms=5, capsize=2, lw=1.2,
                    label=words)  # fmt: skip
    ax.set_yticks(range(len(models)), [plain(kind) for kind in models])
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.axvline(0.0, color="#555555", lw=0.8)
    _titled(ax, f"Gain in AUC by context{tag}", "gain in AUC, 95 % by drawing patients", "")
    figure.legend(loc="outside lower center", ncols=2, fontsize=RC["font"], frameon=False)
    return png_bytes(figure)


def draw_label_noise(rows: Sequence[Mapping[str, float]], *, tag: str) -> bytes:
    """Draw the AUC against the share of training labels that was flipped.

    Parameters
    ----------
    rows
        From :func:`recon.hotspots.evaluate.sweep_label_noise`.
    tag
        As for :func:`draw_roc`.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    ax = figure.subplots()
    for name, colour in COLOURS.items():
        ax.plot([100 * row["rate"] for row in rows], [row[f"auc_{name}"] for row in rows],
                "o-", color=colour, lw=1.4, ms=4, label=NAMES[name])  # fmt: skip
    ax.legend(fontsize=RC["font"], frameon=False)
    _titled(ax, f"Label noise{tag}", "training labels flipped (%)", "AUC by the true labels")
    return png_bytes(figure)
