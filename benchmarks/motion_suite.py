"""A seeded set of simulated scans on which ways to find motion are tuned, and then judged.

``python -m benchmarks.motion_suite run DIR`` draws the scans event by event
(:mod:`benchmarks.motion_events`), follows the bladder in each, and keeps the traces; killed, it
goes on where it was. ``... again DIR`` fits the sizes of the found changes anew. ``... score
DIR`` tunes every detector on the tuning set, judges it on the test set, and writes the table.
``--scale 1`` is the whole set: 628 scans with a step of 3 mm or more, 157 with a smaller one,
126 h without motion, and 120 scans with other kinds of motion.

The seeds of both sets were fixed before anything was tuned; the test set's traces are judged
once, with the settings that the tuning set chose.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._kernels_motion import sum_inside
from benchmarks.motion_baselines import (
    DETECTORS,
    Options,
    Positions,
    alarms,
    positions,
    shift_at,
)
from benchmarks.motion_events import MotionCase, Pools, draw_scan, make_pools, start_bladder
from benchmarks.motion_figures import NEAR_S, STEPS, STILL, figure_table, figures
from listmode.errors import InputError
from listmode.motion.bladder import Bladder
from listmode.motion.changes import Changes, find_changes, measure_steps
from listmode.motion.region import RegionEvents
from listmode.motion.trace import MotionTrace, follow_bladder

F64 = NDArray[np.float64]

FIRST_SEED = {"tuning": 100_000, "test": 900_000}
SHARE = {"tuning": 0.25, "test": 1.0}  # of the test set's numbers
# The first tenth of each kind was looked at while the analysis was mended: it is not judged.
LOOKED_AT = {"tuning": 0.0, "test": 0.1}
# 628 shifts of 3 mm or more with two missed at most: 99 % are found, with 95 % confidence.
NUMBERS = {
    "step": 628,
    "small step": 157,
    "filling": 126,
    "breathing": 126,
    "wander": 126,
    "ramp": 30,
    "several": 30,
    "rotation": 30,
    "fetal": 30,
}
# One core at 2.5 GHz: what every scan takes, and what the full counts take on top.
SECONDS_PER_SCAN, SECONDS_PER_FULL_SCAN = 1.5, 21.0


def _direction(rng: np.random.Generator, length_mm: float) -> tuple[float, float, float]:
    v = rng.standard_normal(3)
    x, y, z = (length_mm * v / np.linalg.norm(v)).tolist()
    return x, y, z


def draw_case(kind: str, seed: int) -> MotionCase:
    """Draw one scan's description; the same seed, the same scan."""
    rng = np.random.default_rng(seed)
    filling = float(rng.uniform(0.0, 15.0 if kind == "filling" else 9.0))
    common: dict[str, Any] = {
        "suv": float(np.exp(rng.uniform(math.log(6.0), math.log(30.0)))),
        "volume_ml": float(rng.uniform(50.0, 300.0)),
        "filling_ml_min": 0.0 if kind == "breathing" else filling,
        "breathing_mm": 0.0 if kind == "filling" else float(rng.uniform(0.0, 1.5)),
        "wander_mm": float(rng.uniform(0.0, 1.0))
        if kind not in ("filling", "breathing")
        else 0.0,
        "counts": float(np.exp(rng.uniform(math.log(0.05), 0.0))),
    }
    at = float(rng.uniform(60.0, 1140.0))
    least, most = (0.5, 3.0) if kind == "small step" else (3.0, 20.0)
    size = float(np.exp(rng.uniform(math.log(least), math.log(most))))
    large = float(rng.uniform(3.0, 20.0))
    own: dict[str, Any] = {}
    if kind in STEPS:
        own = {"steps": ((at, _direction(rng, size)),)}
    elif kind == "ramp":
        own = {
            "steps": ((at, _direction(rng, large)),),
            "ramp_s": float(rng.uniform(0.5, 20.0)),
        }
    elif kind == "several":
        times = np.sort(rng.uniform(60.0, 1140.0, int(rng.integers(2, 5))))
        own = {"steps": tuple((float(t), _direction(rng, large / 2)) for t in times)}
    elif kind == "rotation":
        axis = _direction(rng, 1.0)
        own = {"turn_deg": float(rng.uniform(1.0, 4.0)), "turn_axis": axis, "turn_s": at}
    elif kind == "fetal":
        # Fetal parts move by 10-20 mm; the bladder beneath gives way by a fraction of that.
        own = {"local_steps": ((at, _direction(rng, float(rng.uniform(2.0, 8.0)))),)}
    return MotionCase(kind=kind, seed=seed, **common, **own)


def suite_cases(which: str, scale: float) -> list[MotionCase]:
    """List the scans of a set; a smaller scale keeps the first ones of each kind."""
    cases = []
    for k, (kind, number) in enumerate(NUMBERS.items()):
        first = FIRST_SEED[which] + 10_000 * k + round(number * LOOKED_AT[which])
        n = max(round(number * scale * SHARE[which]), 1)
        cases += [draw_case(kind, first + i) for i in range(n)]
    return cases


def centroid_trace(events: RegionEvents, start: Bladder, window_ms: int) -> MotionTrace:
    """Follow the mean position in a fixed region, as the published methods do."""
    centre, semi = np.array(start.centre_mm), np.array(start.semi_axis_mm)
    reach = 1.6 * semi + 8.0
    start_ms, stop_ms = int(events.windows.start_ms[0]), int(events.windows.stop_ms[-1])
    edges = np.arange(start_ms, stop_ms + 1, window_ms, dtype=np.int64)
    n = len(edges) - 1
    total = np.zeros((n, 4))
    sum_inside(events.time_ms, events.point_mm, centre, reach, start_ms, window_ms, total)
    counts = total[:, 3].astype(np.int64)
    place = total[:, :3] / np.maximum(counts, 1)[:, None]
    place[counts == 0] = np.nan
    return MotionTrace(
        edges_ms=edges,
        displacement_mm=place - np.nanmedian(place, axis=0),
        standard_error_mm=np.repeat(
            (15.0 / np.sqrt(np.maximum(counts, 1)))[:, None], 3, axis=1
        ),
        counts=counts,
        reference_mm=np.nanmedian(place, axis=0),
        reference="centroid",
        scale=np.ones(n),
    )


def run_case(pools: Pools, case: MotionCase) -> dict[str, Any]:
    """Draw and follow one scan; give what is kept of it as plain values."""
    begin = time.thread_time()
    events, start = draw_scan(pools, case), start_bladder(case)
    followed = follow_bladder(events, start, threads=1)
    changes = find_changes(followed.trace, followed=followed)
    trace = followed.trace
    error = (
        trace.displacement_mm + trace.reference_mm - case.bladder_place_mm(trace.time_ms / 1e3)
    )
    return {
        "case": asdict(case),
        "truth": [[t, d.tolist()] for t, d in case.true_changes()],
        "changes": [c.to_dict() for c in changes.items],
        "filling_ml_min": changes.filling_ml_min,
        "n_events": len(events),
        **_trace_figures(trace, error, case, changes),
        "trace": _lists(trace),
        "centroid": _lists(centroid_trace(events, start, 1000)),
        "cpu_s": round(time.thread_time() - begin, 2),
    }


def _trace_figures(
    trace: MotionTrace, error: F64, case: MotionCase, changes: Changes
) -> dict[str, Any]:
    """Errors of the trace about the truth, with its mean (the template's centre) taken out."""
    clean = np.isfinite(error).all(axis=1)
    for t, _ in case.true_changes():
        clean &= np.abs(trace.time_ms / 1e3 - t) > 2.0 + case.ramp_s + trace.window_ms / 2e3
    if clean.sum() < 20:
        return {"window_s": trace.window_ms / 1000.0}
    left = error[clean] - error[clean].mean(axis=0)
    se = trace.standard_error_mm[clean]
    blocks = np.array_split(left, 6)
    return {
        "window_s": trace.window_ms / 1000.0,
        "standard_error_mm": np.median(se, axis=0).tolist(),
        "rms_mm": np.sqrt((left**2).mean(axis=0)).tolist(),
        "pull_sd": (left / se).std(axis=0).tolist(),
        "drift_mm": np.ptp([b.mean(axis=0) for b in blocks], axis=0).tolist(),
        "noise_inflation": list(changes.noise_inflation),
    }


def _lists(trace: MotionTrace) -> dict[str, Any]:
    return {
        "window_ms": trace.window_ms,
        "stop_ms": int(trace.edges_ms[-1]),
        "displacement_mm": _plain(trace.displacement_mm),
        "standard_error_mm": _plain(trace.standard_error_mm),
        "counts": trace.counts.tolist(),
        "reference": trace.reference,
    }


def _plain(values: F64) -> list[list[float | None]]:
    return [[round(v, 4) if math.isfinite(v) else None for v in row] for row in values.tolist()]


def again(folder: Path) -> None:
    """Fit the sizes of the found changes anew from kept traces and times; nothing is drawn.

    For after a change of that fit alone.
    """
    for which in FIRST_SEED:
        lines = read_lines(folder / f"{which}.jsonl")
        for line in lines:
            times = [(c["time_s"], *c["time_interval_s"]) for c in line["changes"]]
            found = measure_steps(own_trace(line), times) if times else []
            line["changes"] = [c.to_dict() for c in found]
        part = folder / f".{which}.jsonl.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        part.rename(folder / f"{which}.jsonl")


def load_trace(kept: dict[str, Any]) -> MotionTrace:
    """Make a trace of what :func:`run_case` kept."""
    place = np.array(kept["displacement_mm"], dtype=np.float64)
    error = np.array(kept["standard_error_mm"], dtype=np.float64)  # None becomes NaN
    edges = kept["window_ms"] * np.arange(len(place) + 1, dtype=np.int64)
    edges[-1] = kept["stop_ms"]
    return MotionTrace(
        edges_ms=edges,
        displacement_mm=place,
        standard_error_mm=np.where(np.isfinite(error), error, np.inf),
        counts=np.array(kept["counts"], dtype=np.int64),
        reference_mm=np.zeros(3),
        reference=kept["reference"],
        scale=np.ones(len(place)),
    )


def own_trace(line: dict[str, Any]) -> MotionTrace:
    """Make the bladder's trace of a kept scan."""
    return load_trace(line["trace"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the finished lines of a JSON-lines file; a line cut off by a kill is passed over."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def turns(cases: list[MotionCase]) -> list[float]:
    """Give each scan's place among those of its kind, from 0 to 1."""
    number = Counter(c.kind for c in cases)
    seen: Counter[str] = Counter()
    turns = []
    for case in cases:
        turns.append((seen[case.kind] + 0.5) / number[case.kind])
        seen[case.kind] += 1
    return turns


def run(
    folder: Path,
    scale: float,
    *,
    seconds: float = math.inf,
    threads: int = 2,
    say: Callable[[str], object] = print,
) -> int:
    """Draw what is not there yet, kinds and sets in turn; give how many are still missing.

    Each thread holds a scan of its own, up to 1.5 GB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pool_file = folder / "pools.npz"
    if not pool_file.is_file():
        say("asking the photon simulator for its pools: about a minute")
        make_pools().save(pool_file)
    pools = Pools.load(pool_file)
    begin = time.monotonic()
    todo: list[tuple[float, str, MotionCase]] = []
    for which in FIRST_SEED:
        done = {line["case"]["seed"] for line in read_lines(folder / f"{which}.jsonl")}
        cases = suite_cases(which, scale)
        left = [
            (at, c) for at, c in zip(turns(cases), cases, strict=True) if c.seed not in done
        ]
        cost_s = sum(SECONDS_PER_SCAN + c.counts * SECONDS_PER_FULL_SCAN for _, c in left)
        hours = cost_s / 3600.0
        say(f"{which}: {len(done)} scans done, {len(left)} to do, {hours:.2f} h of one core")
        todo += [(at, which, c) for at, c in left]
    # A run that is stopped early leaves the same share of every kind in both sets.
    todo.sort(key=lambda item: item[0])

    def make(case: MotionCase) -> dict[str, Any] | None:
        return None if time.monotonic() - begin > seconds else run_case(pools, case)

    missing = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            made = [pool.submit(make, case) for _, _, case in todo]
            for (_, which, _), line in zip(todo, (m.result() for m in made), strict=True):
                if line is None:
                    missing += 1
                    continue
                with (folder / f"{which}.jsonl").open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")
        finally:
            pool.shutdown(cancel_futures=True)
    return missing


@dataclass(frozen=True, eq=False)
class Scored:
    """One scan as a detector sees it."""

    line: dict[str, Any]
    place: Positions
    score: F64

    @property
    def is_still(self) -> bool:
        return not self.line["truth"]

    def near_truth(self, at_s: float) -> bool:
        reach = NEAR_S + self.line["case"]["ramp_s"] / 2.0 + self.place.window_s
        return any(abs(at_s - t) <= reach for t, _ in self.line["truth"])

    @property
    def best(self) -> float:
        """Largest score of a still scan, or near a change of a moved one."""
        if self.is_still:
            return float(self.score.max())
        near = [self.near_truth(t) for t in self.place.time_s]
        return float(self.score[near].max()) if any(near) else 0.0


def score_all(lines: list[dict[str, Any]], name: str, options: Options) -> list[Scored]:
    """Run one detector over scans: ours on our trace, the others on the centroid."""
    detector = DETECTORS[name.removesuffix(", on our trace")][0]
    is_own = name == "ours" or name.endswith(", on our trace")
    scored = []
    for line in lines:
        place = positions(load_trace(line["trace" if is_own else "centroid"]))
        scored.append(Scored(line, place, detector(place, **options)))
    return scored


def area_under_roc(scored: list[Scored], least_mm: float = 0.0) -> float:
    """Chance that a scan with a step scores above one without, ties half (Mann-Whitney)."""
    still = np.array([s.best for s in scored if s.is_still])
    steps = [s for s in scored if s.line["case"]["kind"] in STEPS]
    moved = np.array([s.best for s in steps if _length(s) >= least_mm])
    if not (still.size and moved.size):
        return math.nan
    above = (moved[:, None] > still[None, :]).mean()
    return float(above + 0.5 * (moved[:, None] == still[None, :]).mean())


def tune(lines: list[dict[str, Any]], name: str) -> tuple[Options, float]:
    """Choose of the eight settings the one of the largest area, and the alarm threshold.

    The threshold is the largest score of a still tuning scan, so that none of them alarms;
    ours keeps its own.
    """
    options = DETECTORS[name.removesuffix(", on our trace")][1]
    scored = [score_all(lines, name, each) for each in options]
    best = max(range(len(options)), key=lambda i: area_under_roc(scored[i]))
    threshold = max((s.best for s in scored[best] if s.is_still), default=0.0)
    return options[best], 1.0 if name == "ours" else threshold


def judge(lines: list[dict[str, Any]], name: str, options: Options, threshold: float) -> Any:
    """Judge one detector on the test set at its threshold."""
    scored = score_all(lines, name, options)
    still = [s for s in scored if s.is_still]
    hours = sum(s.line["case"]["duration_s"] for s in still) / 3600.0
    false = sum(len(alarms(s.place, s.score, threshold)) for s in still)
    steps = [s for s in scored if s.line["case"]["kind"] in STEPS]
    rows = [(s, *_found(s, threshold, is_ours=name == "ours")) for s in steps]
    large = [r for r in rows if _length(r[0]) >= 3.0]
    hits = [r for r in rows if r[1] is not None]
    return {
        "method": name,
        "settings": dict(options),
        "area": area_under_roc(scored),
        "area_3mm": area_under_roc(scored, 3.0),
        "found_3mm": [sum(r[1] is not None for r in large), len(large)],
        "found": [len(hits), len(rows)],
        "false_alarms": false,
        "still_hours": round(hours, 2),
        "time_error_s": _quantiles([abs(r[1]) for r in hits if r[1] is not None]),
        "amplitude_rms_mm": _rms([r[2] for r in hits if np.isfinite(r[2])]),
        "roc": _roc(steps, still, hours),
    }


def _length(s: Scored) -> float:
    return math.dist((0, 0, 0), s.line["truth"][0][1])


def _found(s: Scored, threshold: float, *, is_ours: bool) -> tuple[float | None, float]:
    """Time error and error of the length of the alarm that found a scan's step."""
    at, shift = s.line["truth"][0]
    near = [t for t in alarms(s.place, s.score, threshold) if s.near_truth(t)]
    if not near:
        return None, math.nan
    if is_ours and (fits := _fitted(s, at)) is not None:
        return fits
    first = near[0]
    return first - at, float(np.linalg.norm(shift_at(s.place, first) - shift))


def _fitted(s: Scored, at: float) -> tuple[float, float] | None:
    """Ours refines time and shift; that is its answer."""
    for c in s.line["changes"]:
        if s.near_truth(c["time_s"]):
            error = float(np.linalg.norm(np.subtract(c["shift_mm"], s.line["truth"][0][1])))
            return c["time_s"] - at, error
    return None


def _quantiles(values: list[float]) -> list[float]:
    return [float(np.quantile(values, q)) for q in (0.5, 0.95)] if values else []


def _rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else math.nan


def _roc(steps: list[Scored], still: list[Scored], hours: float) -> list[list[float]]:
    """Alarms an hour and share of steps found, at falling thresholds."""
    marks = sorted({s.best for s in [*steps, *still]}, reverse=True)
    return [
        [
            sum(s.best > m for s in still) / max(hours, 1e-9),
            float(np.mean([s.best > m for s in steps])) if steps else math.nan,
        ]
        for m in marks[:: max(len(marks) // 25, 1)]
    ]


METHODS = [
    *DETECTORS,
    "PELT (ruptures), on our trace",
    "adaptive (after Revilla 2022), on our trace",
]


def suite_lines(folder: Path, which: str) -> list[dict[str, Any]]:
    """Read the finished scans of a set; others that the file holds are passed over."""
    seeds = {case.seed for case in suite_cases(which, 1.0)}
    lines = read_lines(folder / f"{which}.jsonl")
    return [line for line in lines if line["case"]["seed"] in seeds]


def score(folder: Path) -> list[dict[str, Any]]:
    """Tune on the tuning set, judge on the test set, write ``scores.json``."""
    sets = {which: suite_lines(folder, which) for which in FIRST_SEED}
    for which, lines in sets.items():
        kinds = {line["case"]["kind"] for line in lines}
        if "step" not in kinds or not kinds & set(STILL):
            raise InputError(
                f"scoring needs scans with and without a step in the {which} set, but "
                f"{which}.jsonl in {folder} holds {len(lines)} scans of {sorted(kinds)}; "
                "run the suite first"
            )
    results = []
    for name in METHODS:
        options, threshold = tune(sets["tuning"], name)
        results.append(judge(sets["test"], name, options, threshold))
    part = folder / ".scores.json.part"
    part.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    part.rename(folder / "scores.json")
    return results


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Write the results as lines of Markdown."""
    yield (
        "| method | area under ROC, all steps | steps >= 3 mm | steps >= 3 mm found "
        "| all steps found | false alarms | time error, median / 95 % | amplitude RMS |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for r in results:
        time_s = " / ".join(f"{t:.2f}" for t in r["time_error_s"]) or "-"
        (a, b), (c, d) = r["found_3mm"], r["found"]
        areas = f"{r['area']:.3f} | {r['area_3mm']:.3f}"
        yield (
            f"| {r['method']} | {areas} | {a} of {b} | {c} of {d} | "
            f"{r['false_alarms']} in {r['still_hours']:g} h | {time_s} s | "
            f"{r['amplitude_rms_mm']:.2f} mm |"
        )


def main() -> None:
    """Run or score the suite from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "again", "score"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the whole set")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--threads", type=int, default=2, help="scans at a time")
    options = parser.parse_args()
    if options.what == "run":
        missing = run(
            options.folder, options.scale, seconds=options.seconds, threads=options.threads
        )
        print(f"{missing} scans missing; run again to go on" if missing else "complete")
    elif options.what == "again":
        again(options.folder)
    else:
        print("\n".join(table(score(options.folder))))
        found = figures(suite_lines(options.folder, "test"), own_trace)
        save = json.dumps(found, indent=1) + "\n"
        (options.folder / "figures.json").write_text(save, "utf-8")
        print("\n".join(["", *figure_table(found)]))


if __name__ == "__main__":
    main()
