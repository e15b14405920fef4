"""What the analysis itself found in the suite's test scans, against what was asked of it.

:mod:`benchmarks.motion_suite` compares ways to find changes by one score; here the answers of
``find_changes`` are judged as a user gets them, with its own settings: times, shifts, intervals
and filling rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.motion.changes import make_series
from listmode.motion.steps import fit_steps
from listmode.motion.trace import MotionTrace
from listmode.motion.wander import AxisNoise

F64 = NDArray[np.float64]
Line = dict[str, Any]

NEAR_S = 5.0  # a change this near the truth is the step's
STEPS = ("step", "small step")
STILL = ("filling", "breathing", "wander")
OTHERS = ("ramp", "several", "rotation", "fetal")
WANDER_S = 300.0  # a case's wander is the random walk's standard deviation after this time
GROWTH = 0.05  # 1/min, for the bound: a bladder of 100 mL that fills by 5 mL/min


@dataclass(frozen=True, eq=False)
class StepAnswer:
    """One scan with a step, and the change that answers it, if there is one.

    ``sigma_mm`` is the standard error of one second of the trace along the step, and
    ``bound_mm`` the least error of the step's vector that a trace of these standard errors and
    the patient's true wander allow, with the trend and its growth fitted.
    """

    size_mm: float
    sigma_mm: float
    bound_mm: float
    filling_ml_min: float
    time_error_s: float | None = None
    error_mm: float = math.nan
    is_time_covered: bool = False
    is_shift_covered: tuple[bool, ...] = ()

    @property
    def is_found(self) -> bool:
        return self.time_error_s is not None


def answer(line: Line, trace: MotionTrace) -> StepAnswer:
    """Compare a scan's answer with its step."""
    at, shift = line["truth"][0]
    case, size = line["case"], math.dist((0.0, 0.0, 0.0), shift)
    series = make_series(trace, np.ones(3))
    error = np.sqrt(np.median(1.0 / series.weight, axis=0) * trace.window_ms / 1000.0)
    along = np.asarray(shift) / max(size, 1e-9)
    gap_s, wander = np.diff(series.time_s), case["wander_mm"] ** 2 / WANDER_S
    noise = [AxisNoise(series.weight[:, axis], gap_s, wander) for axis in range(3)]
    bound = fit_steps(series, [at], GROWTH, noise).error_mm[0]
    plain = StepAnswer(
        size_mm=size,
        sigma_mm=float(np.linalg.norm(along * error)),
        bound_mm=float(np.linalg.norm(bound)),
        filling_ml_min=float(case["filling_ml_min"]),
    )
    near = [c for c in line["changes"] if abs(c["time_s"] - at) <= NEAR_S]
    if not near:
        return plain
    best = min(near, key=lambda c: abs(c["time_s"] - at))
    low, high = best["time_interval_s"]
    return StepAnswer(
        plain.size_mm, plain.sigma_mm, plain.bound_mm, plain.filling_ml_min,
        time_error_s=best["time_s"] - at,
        error_mm=math.dist(best["shift_mm"], shift),
        is_time_covered=low <= at <= high,
        is_shift_covered=tuple(
            a <= s <= b for s, (a, b) in zip(shift, best["shift_interval_mm"], strict=True)
        ),
    )  # fmt: skip


def false_alarms(lines: list[Line]) -> tuple[int, float]:
    """Count the changes found in scans without motion, and the hours of these."""
    still = [line for line in lines if line["case"]["kind"] in STILL]
    hours = sum(line["case"]["duration_s"] for line in still) / 3600.0
    return sum(len(line["changes"]) for line in still), hours


def filling_hits(lines: list[Line]) -> tuple[int, int]:
    """Count the filling rates of 2 mL/min or more that were read within 20 %; of how many."""
    wanted = [line for line in lines if line["case"]["filling_ml_min"] >= 2.0]
    hits = [
        line["filling_ml_min"] is not None
        and abs(line["filling_ml_min"] / line["case"]["filling_ml_min"] - 1.0) <= 0.2
        for line in wanted
    ]
    return sum(hits), len(hits)


def other_hits(lines: list[Line]) -> dict[str, list[int]]:
    """Count, by kind, the changes of 3 mm or more that were found, and how many there were.

    A ramp is found within its own length of its middle.
    """
    hits = {kind: [0, 0] for kind in OTHERS}
    for line in lines:
        case = line["case"]
        if case["kind"] not in OTHERS:
            continue
        reach = NEAR_S + case["ramp_s"] / 2.0
        for at, shift in line["truth"]:
            if math.dist((0.0, 0.0, 0.0), shift) >= 3.0:
                is_found = any(abs(c["time_s"] - at) <= reach for c in line["changes"])
                hits[case["kind"]][0] += is_found
                hits[case["kind"]][1] += 1
    return hits


def _of(hits: int, total: int) -> str:
    return f"{hits} of {total}" + (f" ({100 * hits / total:.1f} %)" if total else "")


def figures(lines: list[Line], load: Callable[[Line], MotionTrace]) -> dict[str, Any]:
    """Give the figures of a set of scans as plain values; ``load`` makes a scan's trace."""
    steps = [answer(x, load(x)) for x in lines if x["case"]["kind"] in STEPS]
    large = [s for s in steps if s.size_mm >= 3.0]
    hits = [s for s in large if s.is_found]
    clear = [s for s in large if s.size_mm >= 3.0 * s.sigma_mm]
    soon = [s for s in clear if s.time_error_s is not None and abs(s.time_error_s) <= 1.0]
    filled = [s for s in steps if s.size_mm >= 5.0 and s.filling_ml_min > 0.0]
    exact = [s for s in filled if s.error_mm <= 1.0]
    alarms, hours = false_alarms(lines)
    rms_mm = [
        float(np.sqrt(np.mean(np.square(v)))) if v else math.nan
        for v in ([s.error_mm for s in hits], [s.bound_mm for s in hits])
    ]
    axes = [covered for s in hits for covered in s.is_shift_covered]
    rates = filling_hits(lines)
    return {
        "large_found": [len(hits), len(large)],
        "false_alarms": [alarms, round(hours, 2)],
        "clear_in_1_s": [len(soon), len(clear)],
        "amplitude_rms_mm": rms_mm[0],
        "amplitude_bound_mm": rms_mm[1],
        "shift_covered": [sum(axes), len(axes)],
        "time_covered": [sum(s.is_time_covered for s in hits), len(hits)],
        "filling_and_5_mm_found": [sum(s.is_found for s in filled), len(filled)],
        "filling_and_5_mm_within_1_mm": [len(exact), len(filled)],
        "filling_rate_within_20_percent": list(rates),
        "others_found": other_hits(lines),
    }


def figure_table(f: dict[str, Any]) -> Iterator[str]:
    """Write the figures beside what was asked, as lines of Markdown."""
    alarms, hours = f["false_alarms"]
    most = max(0.3, 1.3 * f["amplitude_bound_mm"])
    yield "| what | wanted | found |"
    yield "|---|---|---|"
    yield f"| steps of 3 mm or more found | 99 % | {_of(*f['large_found'])} |"
    yield f"| false alarms | 1 in 20 h | {alarms} in {hours:g} h |"
    yield (
        "| time within 1 s, steps of 3 mm and 3 sigma or more | 95 % | "
        f"{_of(*f['clear_in_1_s'])} |"
    )
    yield (
        f"| RMS error of the shift, 3 mm or more | {most:.2f} mm | "
        f"{f['amplitude_rms_mm']:.2f} mm |"
    )
    yield f"| 95 % intervals of the shift, by axis | 92-98 % | {_of(*f['shift_covered'])} |"
    yield f"| 95 % intervals of the time | 92-98 % | {_of(*f['time_covered'])} |"
    yield (
        f"| filling and a shift of 5 mm or more: found | 95 % | "
        f"{_of(*f['filling_and_5_mm_found'])} |"
    )
    yield (
        f"| the same, shift within 1 mm | all found | "
        f"{_of(*f['filling_and_5_mm_within_1_mm'])} |"
    )
    yield (
        f"| filling rate of 2 mL/min or more within 20 % | all | "
        f"{_of(*f['filling_rate_within_20_percent'])} |"
    )
    for kind, hits in f["others_found"].items():
        yield f"| {kind}: changes of 3 mm or more found | - | {_of(*hits)} |"
