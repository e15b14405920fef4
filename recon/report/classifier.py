"""The report on classifiers: what context gives, how sure that is, and what would fool."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from recon.report import classifier_figures as figures
from recon.report.classifier_figures import NAMES, plain
from recon.report.html import Picture, Report, Section, Table

MODELS = ("base", "context")


def build_classifier_report(result: Mapping[str, Any]) -> Report:
    """Turn an evaluation into the report's text, tables and figures.

    Parameters
    ----------
    result
        From :func:`recon.hotspots.evaluate.evaluate`; ``label_noise`` from
        :func:`~recon.hotspots.evaluate.sweep_label_noise` if there is one.
    """
    data, plan = result["data"], result["plan"]
    kind = next(iter(result["models"]))
    tag = _tag(data)
    nested = "nested" if plan["tune"] else "settings fixed beforehand"
    return Report(
        title="Hotspots with and without context",
        subtitle=(
            f"{data['n_hotspots']} hotspots of {data['n_patients']} patients, "
            f"{data['n_malignant']} malignant; {plan['n_repeats']} x {plan['n_folds']} folds, "
            f"{nested}, seed {plan['seed']}; figures show the {plain(kind)}."
        ),
        findings=[origin_sentence(data), *_finding_sentences(result, kind)],
        notes=_notes(data),
        sections=[
            _merit_section(result, kind, tag),
            _change_section(result, kind, tag),
            _importance_section(result, kind, tag),
            _reliability_section(result, kind, tag),
            *_model_sections(result, tag),
            _baseline_section(result, tag),
            *_noise_section(result, tag),
            _table_section(data, tag),
            _provenance_section(result),
        ],
    )


def _tag(data: Mapping[str, Any]) -> str:
    n = data["n_simulated"]
    if n == data["n_hotspots"]:
        return " (simulated)"
    return f" ({n} of {data['n_hotspots']} hotspots simulated)" if n else ""


def origin_sentence(data: Mapping[str, Any]) -> str:
    """Say how much of a table is simulated."""
    n, n_all = data["n_simulated"], data["n_hotspots"]
    if n == n_all:
        return (
            "Simulated: no hotspot of this table was ever in a patient. What the figures say "
            "of the method they do not say of patients."
        )
    if n:
        return f"{n} of {n_all} hotspots are simulated: figures mix them with measured ones."
    return "The table calls none of its hotspots simulated."


def _signed(gain: Mapping[str, float]) -> str:
    return f"{gain['value']:+.3f} (95 %: {gain['low']:+.3f} to {gain['high']:+.3f})"


def _finding_sentences(result: Mapping[str, Any], kind: str) -> list[str]:
    by = result["models"][kind]
    honest = by["by_patient"]
    gain, test = honest["comparison"]["auc_gain"], honest["comparison"]["nadeau_bengio"]
    changes = honest["comparison"]["reclassified"]
    n_right, n_wrong = count_changes(changes["table"])
    sure = "does not hold zero" if gain["low"] > 0 or gain["high"] < 0 else "holds zero"
    sentences = [
        f"{plain(kind).capitalize()}, patients kept together: AUC {honest['base']['auc']:.3f} "
        f"for the hotspot alone, {honest['context']['auc']:.3f} with context; gain "
        f"{_signed(gain)} by drawing whole patients: the interval {sure}. Nadeau-Bengio's test "
        f"over the folds: p = {_p_value(test)}.",
        f"Context changes {changes['changed']:.1%} of the calls at 0.5: {n_right} put right, "
        f"{n_wrong} spoilt.",
    ]
    if "by_hotspot" in by:
        leaking = by["by_hotspot"]["comparison"]["auc_gain"]
        sentences.append(
            f"If hotspots of one patient lay in training and test, the gain would read "
            f"{_signed(leaking)}: that figure leaks and is shown as a warning only."
        )
    return sentences


def _p_value(test: Mapping[str, Any]) -> str:
    return "n/a" if test["p"] is None else f"{test['p']:.2g}"


def count_changes(table: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Count the calls put right and the calls spoilt in a reclassification table."""
    right = sum(row["n"] for row in table if row["to"] == row["truth"])
    return right, sum(row["n"] for row in table) - right


def _notes(data: Mapping[str, Any]) -> list[str]:
    notes = [*data["notes"]]
    if "reader_kappa" not in data:
        notes.append(
            "The labels of two readers are not in the table: their agreement is unknown."
        )
    return notes


def _at(values: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if key not in values:
            return None
        values = values[key]
    return float(values)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


_MERITS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AUC", ("auc",)),
    ("AUC, bone", ("auc_by_tissue", "bone")),
    ("AUC, lymph node", ("auc_by_tissue", "lymph_node")),
    ("sensitivity at 0.5", ("at_half", "sensitivity")),
    ("specificity at 0.5", ("at_half", "specificity")),
    ("accuracy at 0.5", ("at_half", "accuracy")),
    ("accuracy at 0.5, bone", ("accuracy_by_tissue", "bone")),
    ("accuracy at 0.5, lymph node", ("accuracy_by_tissue", "lymph_node")),
    ("sensitivity at the inner Youden threshold", ("at_youden", "sensitivity")),
    ("specificity at the inner Youden threshold", ("at_youden", "specificity")),
    ("Brier score", ("calibration", "brier")),
    ("calibration slope (1 is right)", ("calibration", "slope")),
    ("calibration intercept (0 is right)", ("calibration", "intercept")),
    ("patients with an error", ("patients_with_an_error",)),
)


def _merit_section(result: Mapping[str, Any], kind: str, tag: str) -> Section:
    honest = result["models"][kind]["by_patient"]
    rows = [
        [words, *(_number(_at(honest[name], path)) for name in MODELS)]
        for words, path in _MERITS
        if result["plan"]["tune"] or "at_youden" not in path
    ]
    png = figures.draw_roc(result["cases"], honest, tag=tag)
    return Section(
        "With and without context",
        figures=[
            Picture(
                png,
                "ROC curves of the hotspot alone and with context",
                "Out-of-fold probabilities, mean over the repeats; bands hold the middle 95 % "
                "of curves when whole patients are drawn anew; dots are calls at 0.5. The AUC "
                "in the legend is the mean over repeats.",
            )
        ],
        tables=[
            Table(
                ["figure of merit", *(NAMES[name] for name in MODELS)],
                rows,
                caption=f"{plain(kind).capitalize()}, patients kept together{tag}.",
            )
        ],
    )


def _change_section(result: Mapping[str, Any], kind: str, tag: str) -> Section:
    changes = result["models"][kind]["by_patient"]["comparison"]["reclassified"]
    rows = [
        [plain(r["tissue"]), r["truth"], r["from"], r["to"], str(r["n"])]
        for r in changes["table"]
    ]
    return Section(
        "Each hotspot",
        figures=[
            Picture(
                figures.draw_probabilities(result["cases"], tag=tag),
                "Probability of each hotspot without and with context, by tissue and truth",
                "One column a hotspot, in the order of its probability alone. A line leads "
                "from there to the probability with context; calls that cross 0.5 are in "
                "colour.",
            )
        ],
        tables=[
            Table(
                ["tissue", "truth", "call alone", "call with context", "hotspots"],
                rows,
                caption=(
                    f"Calls that context changes{tag}: {changes['changed']:.1%} of all; net "
                    f"reclassification improvement {changes['nri']:+.3f}."
                ),
                text_columns=frozenset({0, 1, 2, 3}),
            )
        ],
    )


def _importance_section(result: Mapping[str, Any], kind: str, tag: str) -> Section:
    honest = result["models"][kind]["by_patient"]
    title = "What the classifiers rest on"
    if "importance" not in honest["base"]:
        return Section(title, text=["Importances were not asked for."])
    return Section(
        title,
        figures=[
            Picture(
                figures.draw_importance(honest, tag=tag),
                "Permutation importance of single features and of all context at once",
                "AUC lost on held-out hotspots when one feature, or the whole block of "
                "context, is dealt anew among them. A feature that others can stand in for "
                "loses little; the block can lose more than context gains, because a model "
                "that trusts it is misled.",
            )
        ],
    )


def _reliability_section(result: Mapping[str, Any], kind: str, tag: str) -> Section:
    return Section(
        "Can the probabilities be taken at their word?",
        figures=[
            Picture(
                figures.draw_reliability(result["cases"], tag=tag),
                "Reliability curves of both models",
                f"{plain(kind).capitalize()}: eight bins of as many hotspots each; intervals "
                "by drawing whole patients. On the dotted line a probability is what it says; "
                "a curve steeper than it belongs to a model that is not sure enough.",
            )
        ],
    )


def _model_sections(result: Mapping[str, Any], tag: str) -> list[Section]:
    models = result["models"]
    folds_of = {"by_patient": "patients together", "by_hotspot": "hotspots free (leaks)"}
    rows = []
    for kind, by in models.items():
        for folds, judged in by.items():
            both = judged["comparison"]
            rows.append(
                [
                    plain(kind),
                    folds_of[folds],
                    *(_number(judged[name]["auc"]) for name in MODELS),
                    _signed(both["auc_gain"]),
                    _p_value(both["nadeau_bengio"]),
                    f"{both['reclassified']['changed']:.1%}",
                ]
            )
    table = Table(
        ["model", "folds", *(f"AUC {NAMES[n]}" for n in MODELS), "gain", "p", "changed"],
        rows,
        caption=(
            f"Every classifier{tag}. AUCs are means over the repeats; the gain is of the "
            "probabilities averaged over them, with 95 % by drawing patients; p is "
            "Nadeau-Bengio's."
        ),
        text_columns=frozenset({0, 1}),
    )
    if not all("by_hotspot" in by for by in models.values()):
        return [Section("All classifiers", tables=[table])]
    picture = Picture(
        figures.draw_leakage(models, tag=tag),
        "Gain by context of every classifier under both kinds of fold",
        "Folds that part the hotspots of a patient let the training see him: context names the "
        "patient, and the gain grows without any skill for the next patient.",
    )
    return [Section("All classifiers, and the leakage", figures=[picture], tables=[table])]


def _baseline_section(result: Mapping[str, Any], tag: str) -> Section:
    base = result["baselines"]
    rows = [
        ["always the commoner class", "accuracy", _number(base["majority_accuracy"])],
        *(
            [f"always the commoner class, {plain(tissue)}", "accuracy", _number(share)]
            for tissue, share in base["majority_accuracy_by_tissue"].items()
        ),
        ["the tissue alone", "AUC", _number(base["tissue_alone_auc"])],
        ["SUVmax alone", "AUC", _number(base["suv_max_auc"])],
    ]
    for name, rates in base.items():
        if name.startswith("suv_max_from_"):
            cut = name.rpartition("_")[2]
            rows += [[f"SUVmax from {cut}", what, _number(v)] for what, v in rates.items()]
    return Section(
        "What needs no training",
        tables=[
            Table(
                ["rule", "figure", "value"],
                rows,
                caption=f"Baselines{tag}.",
                text_columns=frozenset({0, 1}),
            )
        ],
    )


def _noise_section(result: Mapping[str, Any], tag: str) -> list[Section]:
    rows = result.get("label_noise")
    if not rows:
        return []
    cells = [
        [f"{r['rate']:.0%}", *(_number(r[f"auc_{name}"]) for name in MODELS)] for r in rows
    ]
    return [
        Section(
            "If labels are wrong",
            text=[
                "A share of the labels is flipped in training; judged is by the labels of the "
                "table. Settings are fixed, folds are by patient."
            ],
            figures=[
                Picture(
                    figures.draw_label_noise(rows, tag=tag),
                    "AUC against label noise",
                    "AUC of both models against the share of training labels flipped.",
                )
            ],
            tables=[
                Table(
                    ["labels flipped", *(f"AUC {NAMES[name]}" for name in MODELS)],
                    cells,
                    caption=f"Label noise in training{tag}.",
                )
            ],
        )
    ]


def _table_section(data: Mapping[str, Any], tag: str) -> Section:
    n = data["n_hotspots"]
    tissues = [
        [plain(tissue), str(benign), str(malignant), str(benign + malignant)]
        for tissue, (benign, malignant) in data["n_by_tissue"].items()
    ]
    columns = []
    for name, column in data["columns"].items():
        quartiles = column["quartiles"]
        known = ["n/a"] * 3 if quartiles is None else [f"{value:.3g}" for value in quartiles]
        columns.append([name, f"{column['n_known']} ({column['n_known'] / n:.0%})", *known])
    text = []
    if "reader_kappa" in data:
        text.append(
            f"Two readers labelled {data['n_read_twice']} hotspots and differ on "
            f"{data['n_readers_differ']}: Cohen's kappa {data['reader_kappa']:.3f}. The "
            "consensus is what is learnt and judged by."
        )
    return Section(
        "The table",
        text=text,
        tables=[
            Table(["tissue", "benign", "malignant", "all"], tissues, caption=f"Hotspots{tag}."),
            Table(
                ["column", "known", "lower quartile", "median", "upper quartile"], columns,
                caption=f"Columns{tag}; SUV in g/mL, CT in HU. Missing values take the median "
                "of the training folds, and a flag says so.",
            ),
        ],
    )  # fmt: skip


def _provenance_section(result: Mapping[str, Any]) -> Section:
    kept = {name: result[name] for name in ("plan", "features")}
    kept["table_sha256"] = result["data"]["sha256"]
    return Section(
        "Settings and provenance",
        text=["The table is named by its SHA-256 only."],
        code=json.dumps(kept, indent=1),
    )
