"""The commands on tables of hotspots: make one, learn from it, apply what was learnt, judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from listmode.errors import InputError
from recon.cli import console
from recon.cli.options import (
    RESEARCH,
    AsJson,
    OutDir,
    Threads,
    count_threads,
    make_folder,
)
from recon.hotspots.cases import Cases
from recon.hotspots.classify import classify as give_probabilities
from recon.hotspots.classify import train as train_classifier
from recon.hotspots.cohort import generate_cohort
from recon.hotspots.context import join_patients
from recon.hotspots.crossval import Plan
from recon.hotspots.evaluate import describe_cases, estimate_seconds, sweep_label_noise
from recon.hotspots.evaluate import evaluate as judge
from recon.hotspots.models import FEATURE_SETS, GRIDS, Kind
from recon.io.cohorts import (
    KeptParts,
    load_cases,
    load_classifier,
    load_cohort_settings,
    save_cases,
    save_classifier,
    save_probabilities,
)
from recon.io.tables import save_json
from recon.report.classifier import build_classifier_report, count_changes, origin_sentence
from recon.report.html import save_report

app = typer.Typer()

TableFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="TABLE.csv...",
        help="Tables of cases (docs/classifier.md); several are joined, one patient in one "
        "table.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed, the same result.")]
Features = Annotated[str, typer.Option("--features", help=f"One of {', '.join(FEATURE_SETS)}.")]
Without = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="FEATURE", help="Leave a feature of the set out; may be "
                 "given several times.", show_default=False),
]  # fmt: skip


def _load(paths: Sequence[Path]) -> Cases:
    tables = [load_cases(path) for path in paths]
    return tables[0] if len(tables) == 1 else join_patients(tables)


def _kind(name: str) -> Kind:
    for kind in get_args(Kind):
        if name == kind:
            return kind  # type: ignore[no-any-return]
    raise InputError(
        f"a model must be one of {', '.join(get_args(Kind))}, but it is {name!r}; choose one "
        "of these"
    )


def _ready(out: Path) -> Path:
    """Make sure that a file can be written before work begins."""
    make_folder(out.parent)
    if out.is_dir():
        raise InputError(
            f"-o must name the file to write, but {out.name!r} is a folder; give a file name"
        )
    return out


def _table_lines(about: dict[str, Any]) -> list[str]:
    lines = [
        f"{about['n_hotspots']} hotspots of {about['n_patients']} patients, "
        f"{about['n_malignant']} called malignant",
        origin_sentence(about),
    ]
    if "reader_kappa" in about:
        lines.append(f"agreement of the two readers: Cohen's kappa {about['reader_kappa']:.3f}")
    return lines + list(about["notes"])


@app.command(epilog=RESEARCH)
def cohort(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE.csv", help="The table to write.")
    ] = Path("out/cohort.csv"),
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE.toml", help="Other parameters than the frozen "
                     "ones that come with stillpet.", show_default=False),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Simulate a cohort of patients with hotspots, labels of two readers and known truth.

    Writes one table of cases. Its column origin says that it is simulated.
    """
    with console.session(as_json=as_json) as run:
        path = _ready(out)
        cases = generate_cohort(load_cohort_settings(settings_file), seed)
        save_cases(path, cases)
        about = describe_cases(cases)
        run.finish(
            {"file": path.name, "seed": seed, **about},
            [*_table_lines(about), f"wrote {path}"],
        )


@app.command(epilog=RESEARCH)
def train(
    tables: TableFiles,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE.json", help="The classifier to write.")
    ] = Path("out/model.json"),
    model: Annotated[
        str, typer.Option("--model", help=f"One of {', '.join(GRIDS)}.")
    ] = "random_forest",
    features: Features = "context",
    without: Without = None,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="Choose settings by folds over patients; "
                           "else the defaults.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a classifier on tables of labelled cases.

    Writes plain JSON: numbers, the schema, the hash of the training data and the version.
    Nothing in it runs when it is loaded.
    """
    with console.session(as_json=as_json) as run:
        path = _ready(out)
        cases = _load(tables)
        classifier = train_classifier(
            cases, kind=_kind(model), feature_set=features, without=without or (), tune=tune,
            seed=seed, version=metadata.version("stillpet"),
        )  # fmt: skip
        save_classifier(path, classifier)
        about = {
            "file": path.name,
            "kind": classifier.fitted.kind,
            "params": dict(classifier.fitted.params),
            "features": list(classifier.features),
            **classifier.about,
        }
        chosen = ", ".join(f"{k} {v:g}" for k, v in classifier.fitted.params.items())
        run.finish(
            about,
            [
                *_table_lines(describe_cases(cases)),
                f"{model} ({chosen}) on {', '.join(classifier.features)}",
                f"wrote {path}",
            ],
        )


@app.command(epilog=RESEARCH)
def classify(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.json", help="From stillpet train.",
                             show_default=False)
    ],
    tables: TableFiles,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE.csv", help="The table to write.")
    ] = Path("out/probabilities.csv"),
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Give each hotspot its probability of being malignant.

    Labels in the tables are not read. Writes one row a hotspot, in the order of the tables.
    """
    with console.session(as_json=as_json) as run:
        path = _ready(out)
        classifier, cases = load_classifier(model), _load(tables)
        probability = give_probabilities(classifier, cases, threads=count_threads(threads))
        save_probabilities(path, cases, probability)
        notes = [*cases.notes, *_doubts(classifier.about, cases)]
        rows: list[dict[str, Any]] = [
            {
                "patient": str(cases.patient[k]),
                "hotspot": str(cases.details["hotspot"][k]),
                "tissue": str(cases.tissue[k]),
                "location": str(cases.location[k]),
                "suv_max": float(cases.numbers["suv_max"][k]),
                "probability": float(probability[k]),
            }
            for k in range(len(cases))
        ]
        lines = [
            f"{row['probability']:.2f}  {row['patient']} {row['hotspot']}  {row['tissue']}, "
            f"{row['location']}, SUVmax {row['suv_max']:.3g}"
            for row in sorted(rows, key=lambda row: -row["probability"])[:20]
        ]
        run.finish(
            {"file": path.name, "model": classifier.about, "notes": notes, "hotspots": rows},
            [f"{len(rows)} hotspots, likeliest first", *lines, *notes, f"wrote {path}"],
        )


def _doubts(about: Any, cases: Cases) -> list[str]:
    """Say why probabilities may mislead."""
    doubts = ["A probability is no diagnosis. " + RESEARCH]
    if about.get("n_simulated"):
        doubts.append(
            f"the classifier learnt from {about.get('n_hotspots')} hotspots, "
            f"{about['n_simulated']} of them simulated: it has not been validated on patients"
        )
    if about.get("training_sha256") == cases.digest:
        doubts.append(
            "the classifier learnt from this very table: its probabilities flatter; use "
            "stillpet evaluate"
        )
    return doubts


@app.command(epilog=RESEARCH)
def evaluate(
    tables: TableFiles,
    out: OutDir = Path("out/evaluation"),
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Judge this one; may be given several times. Figures show "
                     "the first. All if not given.", show_default=False),
    ] = None,
    features: Features = "context",
    without: Without = None,
    repeats: Annotated[int, typer.Option(min=1, help="Deal the folds so many times.")] = 10,
    folds: Annotated[int, typer.Option(min=2, help="Outer folds.")] = 5,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="Choose settings by inner folds (nested); "
                           "else the defaults.")
    ] = True,
    leakage: Annotated[
        bool, typer.Option("--leakage/--no-leakage", help="Show hotspot-level folds beside.")
    ] = True,
    permutations: Annotated[
        int, typer.Option(min=0, help="Deal each feature anew so often for its importance.")
    ] = 5,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Judge classifiers with and without context, so that nobody can be fooled.

    Patients stay together in every fold. Writes report.html and evaluation.json. The same
    command goes on where it was if it was stopped.
    """
    with console.session(as_json=as_json) as run:
        kinds = tuple(dict.fromkeys(_kind(name) for name in model or GRIDS))
        folder = make_folder(out)
        cases = _load(tables)
        plan = Plan(n_repeats=repeats, n_folds=folds, tune=tune, seed=seed)
        n_threads = count_threads(threads)
        kept = KeptParts(
            folder / ".evaluation.parts.json",
            {"table": cases.digest, "models": kinds, "plan": asdict(plan), "features": features,
             "without": sorted(without or ()), "permutations": permutations,
             "version": metadata.version("stillpet")},
        )  # fmt: skip
        seconds = estimate_seconds(
            cases, kinds, plan, both_folds=leakage, threads=n_threads
        )  # also refuses at once what cannot be judged
        run.say(f"about {seconds:.0f} s for {len(kinds)} models on {len(cases)} hotspots")
        if kept:
            run.say(f"going on where it was: {', '.join(kept)} are done")
        result = judge(
            cases, kinds=kinds, plan=plan, feature_set=features, without=without or (),
            both_folds=leakage, n_permutations=permutations, kept=kept, threads=n_threads,
            progress=run.progress,
        )  # fmt: skip
        result["label_noise"] = sweep_label_noise(
            cases, kind=kinds[0], plan=Plan(1, folds, tune=False, seed=seed),
            feature_set=features, without=without or (), threads=n_threads,
            progress=run.progress,
        )  # fmt: skip
        save_report(folder / "report.html", build_classifier_report(result))
        save_json(folder / "evaluation.json", result)
        kept.remove()
        run.finish(result, [*_judged_lines(result), f"open {folder / 'report.html'}"])


def _judged_lines(result: dict[str, Any]) -> list[str]:
    lines = _table_lines(result["data"])
    for kind, by in result["models"].items():
        for how, judged in by.items():
            both = judged["comparison"]
            gain, changes = both["auc_gain"], both["reclassified"]
            right, wrong = count_changes(changes["table"])
            lines.append(
                f"{kind:20s} {how:11s} AUC {judged['base']['auc']:.3f} alone, "
                f"{judged['context']['auc']:.3f} with context; gain {gain['value']:+.3f} "
                f"({gain['low']:+.3f} to {gain['high']:+.3f}); {changes['changed']:.1%} of "
                f"calls change: {right} put right, {wrong} spoilt"
            )
    return lines
