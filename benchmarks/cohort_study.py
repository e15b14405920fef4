"""A hundred simulated cohorts: figures of merit, controls and the worked example.

    python -m benchmarks.cohort_study --cohorts 100 --workers 2 --out out/cohort_study

One line of JSON a cohort goes to ``cohorts.jsonl`` as soon as it is done, so a stopped run goes
on where it was; ``--table`` prints the tables of docs/classifier.md from what is there. Forests
use their default settings, fixed beforehand; folds are 1 x 5, patients together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from recon.hotspots.cases import Cases, add_context
from recon.hotspots.classify import classify, train
from recon.hotspots.cohort import generate_cohort
from recon.hotspots.crossval import OutOfFold, Plan, cross_validate
from recon.hotspots.evaluate import baselines, compare, summarise
from recon.hotspots.models import CONTEXT_FEATURES, FEATURE_SETS, Kind
from recon.io.cohorts import load_cohort_settings

FOREST: Kind = "random_forest"
N_WITH_IMPORTANCE = 20
EXAMPLE_SUV_MAX = 7.2
EXAMPLE_PRIMARY = 11.9  # median of intermediate risk: 10.1186/s13550-021-00869-5
EXAMPLE_REFERENCE = 1.2


def noise_context(cases: Cases, rng: np.random.Generator) -> Cases:
    """Replace every context feature by pure noise that is constant within a patient."""
    _, owner = np.unique(cases.patient, return_inverse=True)
    noise = np.exp(rng.standard_normal((len(CONTEXT_FEATURES), int(owner.max()) + 1)))
    columns = zip(CONTEXT_FEATURES, noise, strict=True)
    return cases.with_numbers(**{name: values[owner] for name, values in columns})


def exchanged_context(cases: Cases, rng: np.random.Generator) -> Cases:
    """Give every patient's hotspots the context of another patient's."""
    names, owner = np.unique(cases.patient, return_inverse=True)
    cycle = rng.permutation(len(names))
    donor = np.empty_like(cycle)
    donor[cycle] = np.roll(cycle, 1)  # one cycle through all: nobody keeps the own context
    rows = np.array([rng.choice(np.flatnonzero(owner == donor[k])) for k in owner])
    return cases.with_numbers(**{name: cases.numbers[name][rows] for name in CONTEXT_FEATURES})


def solitary_focus(tissue: str, location: str) -> Cases:
    """The worked example: one iliac focus, SUVmax 7.2, nothing else but a small primary."""
    return add_context(
        patient=["example"],
        tissue=[tissue],
        location=[location],
        suv_max=[EXAMPLE_SUV_MAX],
        primary_suv_max=[EXAMPLE_PRIMARY],
        reference_suv_max=[EXAMPLE_REFERENCE],
    )


def run(cases: Cases, features: str, seed: int, n_perm: int = 0, **options: Any) -> OutOfFold:
    plan = Plan(n_repeats=1, tune=False, seed=seed, **options)
    return cross_validate(cases, FOREST, FEATURE_SETS[features], plan, n_permutations=n_perm)


def leakage(cases: Cases, noise: Cases, seed: int) -> dict[str, float]:
    """AUC under folds that part patients: what knowing the patient is worth."""
    return {
        name: summarise(cases, run(table, features, seed, by_patient=False))["auc"]
        for name, table, features in (
            ("base", cases, "base"),
            ("context", cases, "context"),
            ("noise_context", noise, "context"),
        )
    }


def study_cohort(seed: int) -> dict[str, Any]:
    """Everything that is reported of one cohort."""
    cases = generate_cohort(load_cohort_settings(), seed)
    rng = np.random.default_rng((seed, 1))
    n_perm = 5 if seed < N_WITH_IMPORTANCE else 0
    base, context = run(cases, "base", seed), run(cases, "context", seed, n_perm)
    shuffled = cases.with_malignant(rng.permutation(cases.malignant))
    noise, exchanged = noise_context(cases, rng), exchanged_context(cases, rng)
    record: dict[str, Any] = {
        "seed": seed,
        "base": summarise(cases, base),
        "context": summarise(cases, context),
        "comparison": compare(cases, base, context, Plan(n_repeats=1), n_draws=500),
        "shuffled_labels_auc": summarise(shuffled, run(shuffled, "context", seed))["auc"],
        "noise_context_auc": summarise(cases, run(noise, "context", seed))["auc"],
        "exchanged_context_auc": summarise(cases, run(exchanged, "context", seed))["auc"],
        "baselines": baselines(cases),
        "example": {},
    }
    trained = {name: train(cases, feature_set=name, seed=seed) for name in ("base", "context")}
    for tissue, location in (("bone", "pelvis"), ("lymph_node", "common_iliac")):
        focus = solitary_focus(tissue, location)
        record["example"][tissue] = {
            name: float(classify(model, focus, threads=1)[0]) for name, model in trained.items()
        }
    record["by_hotspot"] = leakage(cases, noise, seed)
    return record


def spread(values: Any) -> str:
    x = np.asarray(values, dtype=float)
    low, high = np.quantile(x, (0.025, 0.975))
    return f"{x.mean():.3f} ± {x.std(ddof=1):.3f} ({low:.3f} to {high:.3f})"


def tables(records: list[dict[str, Any]]) -> str:
    """The tables of docs/classifier.md."""
    parts = (_merit, _gain, _controls, _example, _importance)
    return "\n\n".join("\n".join(part(records)) for part in parts)


def _merit(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"Simulated. {len(records)} cohorts; mean ± SD (2.5 % to 97.5 % of cohorts).",
        "",
        "| simulated | published, base / context | base | context |",
        "|---|---|---|---|",
    ]
    for name, published, path in (
        ("AUC", "0.91 / 0.96", ("auc",)),
        ("sensitivity", "0.85 / 0.91", ("at_half", "sensitivity")),
        ("specificity", "0.79 / 0.86", ("at_half", "specificity")),
        ("AUC bone", "— / 0.92", ("auc_by_tissue", "bone")),
        ("AUC lymph node", "— / 0.95", ("auc_by_tissue", "lymph_node")),
        ("accuracy bone", "0.783 / 0.865", ("accuracy_by_tissue", "bone")),
        ("accuracy lymph node", "0.888 / 0.936", ("accuracy_by_tissue", "lymph_node")),
        ("Brier score", "—", ("calibration", "brier")),
        ("calibration slope (1 is right)", "—", ("calibration", "slope")),
        ("patients with an error", "—", ("patients_with_an_error",)),
    ):
        cells = [
            spread([_at(r[model], path) for r in records]) for model in ("base", "context")
        ]
        lines.append(f"| {name} | {published} | {' | '.join(cells)} |")
    return lines


def _at(value: Any, path: tuple[str, ...]) -> float:
    for key in path:
        value = value[key]
    return float(value)


def _gain(records: list[dict[str, Any]]) -> list[str]:
    gain = [r["context"]["auc"] - r["base"]["auc"] for r in records]
    changed = [r["comparison"]["reclassified"]["changed"] for r in records]
    covers = np.mean([r["comparison"]["auc_gain"]["low"] > 0 for r in records])
    lines = [
        "| simulated | |",
        "|---|---|",
        f"| gain in AUC by context | {spread(gain)} |",
        f"| gain positive | {np.mean(np.array(gain) > 0):.0%} of cohorts |",
        f"| patient bootstrap excludes 0 | {covers:.0%} of cohorts |",
        f"| reclassified (published 15 %) | {spread(changed)} |",
    ]
    for tissue in ("lymph_node", "bone"):
        for start, end in (("malignant", "benign"), ("benign", "malignant")):
            n = [
                sum(
                    x["n"]
                    for x in r["comparison"]["reclassified"]["table"]
                    if (x["tissue"], x["from"], x["to"]) == (tissue, start, end)
                )
                for r in records
            ]
            lines.append(f"| {tissue}, {start} to {end} | {np.mean(n):.1f} hotspots a cohort |")
    for name, key in (("SUVmax", "suv_max_auc"), ("the tissue", "tissue_alone_auc")):
        lines.append(
            f"| AUC of {name} alone | {spread([r['baselines'][key] for r in records])} |"
        )
    return lines


def _controls(records: list[dict[str, Any]]) -> list[str]:
    shuffled = np.array([r["shuffled_labels_auc"] for r in records])
    error = shuffled.std(ddof=1) / np.sqrt(shuffled.size)
    lines = [
        "| control, simulated | |",
        "|---|---|",
        f"| labels shuffled: AUC | {spread(shuffled)}; error of the mean {error:.3f} |",
    ]
    for name, key in (
        ("noise as context", "noise"),
        ("another patient's context", "exchanged"),
    ):
        d = [r[f"{key}_context_auc"] - r["base"]["auc"] for r in records]
        lines.append(f"| {name}: gain by patient | {spread(d)} |")
    leaky = [r["by_hotspot"] for r in records if "by_hotspot" in r]
    for name, key in (("noise as", "noise_context"), ("real", "context")):
        d = [r[key] - r["base"] for r in leaky]
        lines.append(f"| {name} context: gain by hotspot, leaking | {spread(d)} |")
    return [*lines, f"| cohorts judged by hotspot | {len(leaky)} |"]


def _example(records: list[dict[str, Any]]) -> list[str]:
    lines = ["| worked example, simulated | bone (pelvis) | lymph node (common iliac) |"]
    lines.append("|---|---|---|")
    both = [[r["example"][tissue] for r in records] for tissue in ("bone", "lymph_node")]
    base = [np.array([e["base"] for e in one]) for one in both]
    context = [np.array([e["context"] for e in one]) for one in both]
    for name, is_so in (
        ("base calls it malignant", [b >= 0.5 for b in base]),
        ("context lowers the probability", [c < b for b, c in zip(base, context, strict=True)]),
        ("context ends below 0.5", [c < 0.5 for c in context]),
        (
            "lowers it and ends below 0.5",
            [(c < b) & (c < 0.5) for b, c in zip(base, context, strict=True)],
        ),
    ):
        lines.append(f"| {name} | {' | '.join(f'{s.mean():.0%}' for s in is_so)} |")
    for name, values in (("base", base), ("context", context)):
        lines.append(f"| probability, {name} | {' | '.join(spread(v) for v in values)} |")
    return lines


def _importance(records: list[dict[str, Any]]) -> list[str]:
    weighed = [r["context"]["importance"] for r in records if "importance" in r["context"]]
    lines = [
        f"| permutation importance, simulated, {len(weighed)} cohorts | AUC lost |",
        "|---|---|",
    ]
    names = list(weighed[0]) if weighed else []
    names.sort(key=lambda name: -float(np.mean([w[name] for w in weighed])))
    return lines + [f"| {name} | {spread([w[name] for w in weighed])} |" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/cohort_study"))
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cohorts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    if not options.table:
        done = {record["seed"] for record in records}
        waiting = [seed for seed in range(options.cohorts) if seed not in done]
        with (
            multiprocessing.get_context("spawn").Pool(options.workers) as pool,
            path.open("a") as file,
        ):
            for record in pool.imap_unordered(study_cohort, waiting):
                file.write(json.dumps(record) + "\n")
                file.flush()
                records.append(record)
                print(f"cohort {record['seed']} done, {len(records)} in all", flush=True)
    print(tables(records))


if __name__ == "__main__":
    main()
