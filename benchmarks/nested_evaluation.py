"""The whole nested evaluation of one simulated cohort: every model, both kinds of fold.

    python -m benchmarks.nested_evaluation --repeats 10 --threads 2 --out out/nested.json

Prints the figures of docs/classifier.md with the time they took.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from recon.hotspots.cohort import generate_cohort
from recon.hotspots.crossval import Plan
from recon.hotspots.evaluate import evaluate, sweep_label_noise
from recon.io.cohorts import load_cohort_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the cohort")
    parser.add_argument("--out", type=Path, default=Path("out/nested.json"))
    options = parser.parse_args()
    cases = generate_cohort(load_cohort_settings(), options.seed)
    wall, cpu = time.perf_counter(), time.process_time()
    result = evaluate(cases, plan=Plan(n_repeats=options.repeats), threads=options.threads)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    result["label_noise"] = sweep_label_noise(cases)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result))
    print(
        f"Simulated. Cohort {options.seed}, {options.repeats} x 5 nested folds: {wall:.0f} s on"
    )
    print(f"{options.threads} threads, {cpu:.0f} s of processor time.\n")
    print(
        "| model | folds | AUC base | AUC context | gain (95 %, patients drawn) | p | Brier "
        "| slope | reclassified |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, by in result["models"].items():
        for folds, judged in by.items():
            base, context, both = judged["base"], judged["context"], judged["comparison"]
            gain = both["auc_gain"]
            print(
                f"| {kind} | {folds} | {base['auc']:.3f} | {context['auc']:.3f} | "
                f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}) | "
                f"{both['nadeau_bengio']['p']:.2g} | {context['calibration']['brier']:.3f} | "
                f"{context['calibration']['slope']:.2f} | "
                f"{both['reclassified']['changed']:.1%} |"
            )
    print("\n| labels flipped in training | AUC base | AUC context |\n|---|---|---|")
    for row in result["label_noise"]:
        print(f"| {row['rate']:.0%} | {row['auc_base']:.3f} | {row['auc_context']:.3f} |")
    print("\n", json.dumps(result["baselines"], indent=1))


if __name__ == "__main__":
    main()
