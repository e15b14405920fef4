"""Findings in plain words, the same in the report and at the terminal."""

from __future__ import annotations

import numpy as np

from listmode.motion import MotionResult
from listmode.motion.changes import Change
from listmode.motion.select import Selection
from recon.report.figures import ChangeMark
from recon.report.html import Table

DIRECTIONS = (
    ("to the patient's left", "to the patient's right"),
    ("to the back", "to the front"),
    ("towards the head", "towards the feet"),
)


def direction(shift_mm: tuple[float, float, float]) -> str:
    """Name the direction of a shift by its largest component.

    Examples
    --------
    >>> direction((0.2, -0.4, 13.1))
    'towards the head'
    """
    axis = int(np.argmax(np.abs(shift_mm)))
    return DIRECTIONS[axis][0 if shift_mm[axis] >= 0 else 1]


def is_motion(change: Change) -> bool:
    """Say whether a change moved the patient, not something inside."""
    return change.kind != "local event"


def motion_sentences(motion: MotionResult, clock_zero: str) -> list[str]:
    """Say when, how far and how surely the patient moved."""
    changes = motion.changes
    reference = motion.trace.reference
    lines = []
    if not changes.items:
        lines.append(
            f"No change of position was found in the trace of the {reference} (threshold for "
            f"{changes.false_alarms_per_20h:g} false alarm in 20 h of scanning)."
        )
    lines += [_change_sentence(change, reference, clock_zero) for change in changes.items]
    if changes.filling_ml_min is not None:
        error = changes.filling_error_ml_min
        sure = f" ± {error:.1f}" if error is not None and np.isfinite(error) else ""
        lines.append(
            f"The bladder filled by {changes.filling_ml_min:.1f}{sure} mL/min (one standard "
            "error); this is told apart from a shift."
        )
    return lines


def _change_sentence(change: Change, reference: str, clock_zero: str) -> str:
    who = "The patient moved" if is_motion(change) else f"Only the {reference} moved"
    axes = ", ".join(
        f"{name} {value:+.1f} ({low:+.1f} to {high:+.1f})"
        for name, value, (low, high) in zip(
            "xyz", change.shift_mm, change.shift_interval_mm, strict=True
        )
    )
    low_s, high_s = change.time_interval_s
    return (
        f"{who} by {change.length_mm:.1f} mm, mainly {direction(change.shift_mm)}, at "
        f"{change.time_s:.1f} s from {clock_zero} (95 % interval {low_s:.1f} to "
        f"{high_s:.1f} s). Shift in mm with 95 % intervals: {axes}. "
        f"Class: {change.kind}; {change.reason}."
    )


def motion_notes(motion: MotionResult) -> list[str]:
    """Give what must be known before the findings are believed."""
    notes = [motion.note, motion.changes.note]
    return [note for note in dict.fromkeys(notes) if note]


def change_marks(motion: MotionResult) -> list[ChangeMark]:
    """Mark the changes in the figure of the trace."""
    return [
        ChangeMark(
            change.time_s,
            change.time_interval_s,
            f"{change.kind}, {change.length_mm:.1f} mm",
            is_motion(change),
        )
        for change in motion.changes.items
    ]


def change_table(motion: MotionResult) -> Table:
    """List the changes with their intervals."""
    rows = [
        [
            change.kind,
            f"{change.time_s:.1f} ({change.time_interval_s[0]:.1f}-"
            f"{change.time_interval_s[1]:.1f})",
            *(
                f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
                for value, (low, high) in zip(
                    change.shift_mm, change.shift_interval_mm, strict=True
                )
            ),
            f"{change.statistic:.0f} (> {motion.changes.threshold:.1f})",
        ]
        for change in motion.changes.items
    ]
    return Table(
        ["change", "time (s)", "x, left (mm)", "y, back (mm)", "z, head (mm)", "statistic"],
        rows,
        caption="Changes of position, with 95 % intervals.",
    )


def alternative_table(selection: Selection) -> Table:
    """List the choice and its alternatives with what each costs and gains."""
    rows = [
        [
            "chosen" if choice is selection.chosen else "",
            str(choice.windows),
            f"{choice.retained:.1%}",
            f"{choice.noise:.2f}",
            f"{choice.peak:.1%}",
            f"{choice.max_displacement_mm:.1f}",
            f"{choice.score:.3f}",
        ]
        for choice in dict.fromkeys((selection.chosen, *selection.alternatives[:5]))
    ]
    return Table(
        ["", "windows", "counts kept", "noise", "peak kept", "displacement (mm)", "score J"],
        rows,
        caption="What each choice costs in noise (relative to the whole scan) and keeps of a "
        f"small feature's peak (FWHM {selection.feature_fwhm_mm:g} mm).",
        text_columns=frozenset({0, 1}),
    )


def left_out(selection: Selection) -> list[tuple[tuple[int, int], str]]:
    """List the time that was left out, in ms, each with its reason."""
    return [((gap.start_ms, gap.stop_ms), gap.reason) for gap in selection.left_out]
