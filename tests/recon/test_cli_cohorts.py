from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recon.cli import app
from recon.hotspots.cases import Cases
from recon.hotspots.classify import classify
from recon.hotspots.crossval import cross_validate
from recon.image import Volume
from recon.io.cohorts import KeptParts, load_cases, load_classifier, save_cases
from recon.io.nifti import save_volume
from recon.io.tables import load_hotspots, save_hotspots
from recon.pipeline.labels import LabelMap, save_labels
from recon.report import figures
from tests.recon.hotspots.bodies import BLOCK_GRID, BLOCK_NAMES, blocks
from tests.recon.hotspots.tables import simple

COMMANDS = ("cases", "cohort", "train", "classify", "evaluate")
QUICK = ("--model", "decision_tree", "--repeats", 1, "--folds", 3, "--threads", 1)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 40)  # what is tested does not hang on the resolution


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cohorts") / "table.csv"
    save_cases(path, simple())
    return path


@pytest.fixture(scope="module")
def model(table: Path) -> Path:
    path = table.with_name("model.json")
    assert _call("train", table, "-o", path, "--model", "decision_tree").exit_code == 0
    return path


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _json(*arguments: object) -> Any:
    result = _call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _refused(message: str, *arguments: object) -> None:
    """The command ends with 2, says why on standard error, and shows no traceback."""
    result = _call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_says_that_it_is_for_research(command: str) -> None:
    result = _call(command, "--help")
    assert result.exit_code == 0
    assert "For research. Not a medical device." in " ".join(result.stdout.split())
    assert "--json" in result.stdout
    assert "--out" in result.stdout


# ---- a cohort, a classifier, probabilities


def test_a_cohort_is_one_table_that_says_that_it_is_simulated(tmp_path: Path) -> None:
    first = _json("cohort", "-o", tmp_path / "new" / "a.csv", "--seed", 3)
    _json("cohort", "-o", tmp_path / "b.csv", "--seed", 3)
    _json("cohort", "-o", tmp_path / "c.csv", "--seed", 4)
    a, b, c = (tmp_path / name for name in ("new/a.csv", "b.csv", "c.csv"))
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()
    cases = load_cases(a)
    assert cases.n_simulated == len(cases) == first["n_simulated"] == 563
    assert first["sha256"] == cases.digest
    assert 0.8 < first["reader_kappa"] < 1.0
    assert "Simulated: no hotspot" in _call("cohort", "-o", b).stdout


def test_classify_gives_what_the_function_gives(
    table: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    content = _json("classify", model, table, "-o", out)
    wanted = classify(load_classifier(model), load_cases(table))
    assert [row["probability"] for row in content["hotspots"]] == wanted.tolist()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["probability"]) for row in rows] == pytest.approx(wanted, abs=1e-6)
    assert [row["patient"] for row in rows] == simple().patient.tolist()
    assert rows[0]["suv_max_se"] == ""
    assert any("learnt from this very table" in note for note in content["notes"])


def test_classify_does_not_read_labels_and_warns_of_simulated_training(
    table: Path, tmp_path: Path
) -> None:
    _call("cohort", "-o", tmp_path / "c.csv")
    about = _json("train", tmp_path / "c.csv", "-o", tmp_path / "m.json", "--model",
                  "logistic_regression")  # fmt: skip
    assert about["n_simulated"] == 563
    blank = load_cases(table).with_malignant(np.full(len(load_cases(table)), -1))
    save_cases(tmp_path / "blank.csv", blank)
    content = _json("classify", tmp_path / "m.json", tmp_path / "blank.csv", "-o",
                    tmp_path / "p.csv")  # fmt: skip
    assert any("563 of them simulated: it has not been" in note for note in content["notes"])
    assert not any("this very table" in note for note in content["notes"])


def test_training_gives_the_same_bytes_again_and_other_ones_with_another_seed(
    table: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _json("train", table, "-o", tmp_path / name, "--seed", seed, "--tune")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    about = json.loads(a)["about"]
    assert about["training_sha256"] == load_cases(table).digest
    assert about["version"]


def test_a_feature_can_be_left_out_and_ct_taken_in(table: Path, tmp_path: Path) -> None:
    cases = load_cases(table)
    missing = np.full(len(cases), np.nan)
    hu = {name: np.arange(len(cases)) + 100.0 for name in ("hu_mean", "hu_max", "hu_sd")}
    save_cases(tmp_path / "ct.csv", cases.with_numbers(primary_suv_max=missing, **hu))
    train = ("train", tmp_path / "ct.csv", "-o", tmp_path / "m.json", "--features",
             "context_ct")  # fmt: skip
    _refused("the table has none for primary_suv_max; leave it out (--without)", *train)
    about = _json(*train, "--without", "primary_suv_max")
    assert "hu_sd" in about["features"]
    assert "primary_suv_max" not in about["features"]
    _refused("can be left out, but colour is none", *train, "--without", "colour")


def test_tables_of_several_patients_are_joined(table: Path, tmp_path: Path) -> None:
    cases = load_cases(table)
    first = cases.patient < "P15"
    for name, rows in (("a.csv", first), ("b.csv", ~first)):
        save_cases(tmp_path / name, cases.take(rows))
    joined = (tmp_path / "a.csv", tmp_path / "b.csv")
    about = _json("train", *joined, "-o", tmp_path / "m.json", "--model", "decision_tree")
    assert about["training_sha256"] == cases.digest
    _refused("code of his own, but P00", "train", tmp_path / "a.csv", table, "-o",
             tmp_path / "m.json")  # fmt: skip


# ---- the evaluation and its report


@pytest.fixture(scope="module")
def judged(table: Path) -> tuple[Any, Path]:
    folder = table.with_name("evaluation")
    content = _json("evaluate", table, "-o", folder, *QUICK, "--permutations", 1, "--model",
                    "logistic_regression")  # fmt: skip
    return content, folder


@pytest.mark.slow
def test_evaluation_keeps_what_it_printed_and_holds_all_that_is_judged(
    judged: tuple[Any, Path],
) -> None:
    content, folder = judged
    assert json.loads((folder / "evaluation.json").read_text("utf-8")) == content
    assert {p.name for p in folder.iterdir()} == {"evaluation.json", "report.html"}
    assert list(content["models"]) == ["decision_tree", "logistic_regression"]
    assert set(content["models"]["decision_tree"]) == {"by_patient", "by_hotspot"}
    assert [row["rate"] for row in content["label_noise"]] == [0.0, 0.05, 0.1]
    assert content["data"]["reader_kappa"] == 1.0


@pytest.mark.slow
def test_report_is_self_contained_and_shows_every_figure(judged: tuple[Any, Path]) -> None:
    content, folder = judged
    html = (folder / "report.html").read_text("utf-8")
    assert not re.search(r"(src|href)=[\"'](?!data:)", html)
    assert "For research. Not a medical device." in html
    assert str(folder) not in html
    shown = (
        "ROC curves of the hotspot alone and with context",
        "Probability of each hotspot without and with context",
        "Permutation importance of single features and of all context at once",
        "Reliability curves of both models",
        "Gain by context of every classifier under both kinds of fold",
        "AUC against label noise",
    )
    assert all(f'alt="{words}' in html for words in shown)
    assert html.count("<img ") == len(shown)
    auc = content["models"]["decision_tree"]["by_patient"]["context"]["auc"]
    assert f"{auc:.3f}" in html
    assert "Cohen&#39;s kappa 1.000" in html
    assert content["data"]["sha256"] in html.replace("&#34;", '"')
    assert "calls none of its hotspots simulated" in html


@pytest.mark.slow
def test_report_on_a_simulated_cohort_says_so_in_every_table(tmp_path: Path) -> None:
    _call("cohort", "-o", tmp_path / "c.csv", "--seed", 1)
    result = _call("evaluate", tmp_path / "c.csv", "-o", tmp_path / "e", *QUICK, "--no-leakage",
                   "--no-tune", "--permutations", 0)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Simulated: no hotspot of this table" in result.stdout
    assert "about " in result.stderr
    html = (tmp_path / "e" / "report.html").read_text("utf-8")
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert len(captions) == html.count("<table>") >= 6
    assert all("(simulated)" in caption for caption in captions)
    assert "Importances were not asked for." in html
    assert "Youden" not in html  # without inner folds 0.5 is the only threshold
    assert "(leaks)" not in html


def test_an_interrupt_ends_with_130_and_leaves_nothing(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recon.cli.cohorts.judge", interrupted)
    result = _call("evaluate", table, "-o", tmp_path, *QUICK)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_bytes(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quick = (*QUICK, "--no-tune", "--permutations", 1)
    _json("evaluate", table, "-o", whole, *quick)
    calls = []

    def stops_at_the_third(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cross_validate(*arguments, **options)

    monkeypatch.setattr("recon.hotspots.evaluate.cross_validate", stops_at_the_third)
    assert _call("evaluate", table, "-o", parts, *quick).exit_code == 130
    assert [p.name for p in parts.iterdir()] == [".evaluation.parts.json"]
    result = _call("evaluate", table, "-o", parts, *quick)
    assert "going on where it was: decision_tree by_patient are done" in result.stderr
    assert len(calls) == 3 + 2 + 6  # by hotspot alone, and six for the label noise
    assert {p.name for p in parts.iterdir()} == {"evaluation.json", "report.html"}
    for name in ("evaluation.json", "report.html"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_parts_of_another_evaluation_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    KeptParts(path, {"seed": 1})["tree by_patient"] = {"judged": 1}
    assert dict(KeptParts(path, {"seed": 1})) == {"tree by_patient": {"judged": 1}}
    assert dict(KeptParts(path, {"seed": 2})) == {}
    path.write_text("{", "utf-8")
    assert dict(KeptParts(path, {"seed": 1})) == {}


# ---- bad tables, from the command line


def _one_class(cases: Cases) -> Cases:
    return cases.with_malignant(np.ones(len(cases)))


def _one_patient(cases: Cases) -> Cases:
    return cases.take(cases.patient == "P00")


def _unlabelled(cases: Cases) -> Cases:
    return cases.with_malignant(np.full(len(cases), -1))


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_one_class, "need malignant and benign hotspots, but all are malignant"),
        (_one_patient, "need several patients, but there is one"),
        (_unlabelled, "need the label of every hotspot, but row 0 has none"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    tmp_path: Path, command: str, change: Callable[[Cases], Cases], message: str
) -> None:
    save_cases(tmp_path / "t.csv", change(simple()))
    _refused(message, command, tmp_path / "t.csv", "-o", tmp_path / "out")


@pytest.mark.parametrize("command", ["train", "evaluate", "classify"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_bone", "bones", "t.csv must have the columns of stillpet-cases-2, but it lacks "
         "n_bone and has bones more"),
        ("reader_1,", "reader_1,age,", "lacks none and has age more"),
        ("lymph_node,common_iliac", "liver,common_iliac", "tissue must be one of bone, "
         "lymph_node, but the table has 'liver'"),
        ("bone,spine", "bone,skull", "location must be one of thorax, spine, pelvis"),
        ("bone,spine", "lymph_node,spine", "only a bone lies in spine, but row"),
        ("SUV", "nan", "suv_max must be a finite number, but row 0 holds nan"),
        ("SUV", "", "suv_max must be a finite number, but row 0"),
        ("SUV", "-3", "suv_max must not be negative or infinite, but row 0 holds -3"),
        ("SUV", "45000", "suv_max must be a body-weight SUV (g/mL), but its highest is 45000"),
        ("SUV", "7;2", "t.csv, line 2: suv_max must hold a number, but it holds '7;2'"),
        ("SUV", "7,2", "t.csv, line 2: a line must have as many cells as the header"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused(
    model: Path, tmp_path: Path, command: str, old: str, new: str, message: str
) -> None:
    text = simple().to_csv()
    if old == "SUV":  # that of the first hotspot
        old = f"{simple().numbers['suv_max'][0]:.6g}"
    assert old in text
    (tmp_path / "t.csv").write_text(text.replace(old, new, 1), "utf-8")
    before = (model,) if command == "classify" else ()
    _refused(message, command, *before, tmp_path / "t.csv", "-o", tmp_path / "out")


@pytest.mark.parametrize("command", ["train", "evaluate", "classify"])
def test_an_empty_table_is_refused(model: Path, tmp_path: Path, command: str) -> None:
    path = tmp_path / "t.csv"
    before = (model,) if command == "classify" else ()
    path.write_text(simple().to_csv().splitlines()[0] + "\n", "utf-8")
    _refused("at least one hotspot, but it is empty", command, *before, path, "-o",
             tmp_path / "out")  # fmt: skip
    path.write_text("", "utf-8")
    _refused("but it lacks hotspot, hu_max", command, *before, path, "-o", tmp_path / "out")


def test_suv_in_kbq_ml_is_doubted_aloud(model: Path, tmp_path: Path) -> None:
    cases = simple()
    save_cases(tmp_path / "t.csv", cases.with_numbers(suv_max=9.0 * cases.numbers["suv_max"]))
    for command in (("train", tmp_path / "t.csv"), ("classify", model, tmp_path / "t.csv")):
        result = _call(*command, "-o", tmp_path / "out.x")
        assert result.exit_code == 0
        assert "as kBq/mL it is common; check the unit" in " ".join(result.stdout.split())


def test_names_that_nobody_knows_are_refused(table: Path, model: Path, tmp_path: Path) -> None:
    for command in ("train", "evaluate"):
        _refused("a model must be one of random_forest", command, table, "--model", "oracle",
                 "-o", tmp_path / "o")  # fmt: skip
        _refused("a feature set must be one of base, context", command, table, "--features",
                 "all", "-o", tmp_path / "o")  # fmt: skip
    _refused("more.toml must be a readable file", "cohort", "--settings",
             tmp_path / "more.toml", "-o", tmp_path / "c.csv")  # fmt: skip
    _refused("none.csv must be a readable file", "classify", model, tmp_path / "none.csv", "-o",
             tmp_path / "p.csv")  # fmt: skip
    _refused("3 folds need as many", "evaluate",
             _saved(tmp_path / "two.csv", simple(2)), *QUICK, "-o", tmp_path / "o")  # fmt: skip


def _saved(path: Path, cases: Cases) -> Path:
    save_cases(path, cases)
    return path


def test_a_model_that_changed_since_is_refused(
    table: Path, model: Path, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.json"
    forged.write_text(model.read_text("utf-8").replace('"n_patients": 30', '"n_patients": 31'))
    _refused("do not match its hash", "classify", forged, table, "-o", tmp_path / "p.csv")
    _refused("must be a classifier in JSON", "classify", table, table, "-o", tmp_path / "p.csv")


def test_an_output_that_cannot_be_written_is_refused_before_work_begins(
    table: Path, tmp_path: Path
) -> None:
    _refused("-o must name the file to write", "train", table, "-o", tmp_path)
    (tmp_path / "file").write_text("in the way", "utf-8")
    _refused("the output folder must be writable", "cohort", "-o", tmp_path / "file" / "c.csv")
    _refused("the output folder must be writable", "evaluate", table, "-o", tmp_path / "file")


# ---- from an image to cases


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    volume, regions = blocks()
    save_volume(folder / "pet.nii.gz", volume)
    save_labels(folder / "organs.nii.gz", LabelMap(regions, BLOCK_NAMES))
    hu = np.where(volume.values > 4.0, 300.0, -900.0).astype(np.float32)
    save_volume(folder / "ct.nii.gz", Volume(hu, BLOCK_GRID, "1"))
    return folder / "pet.nii.gz"


def _cases(image: Path, out: Path, *more: object) -> tuple[object, ...]:
    labels = image.with_name("organs.nii.gz")
    return ("cases", image, "--labels", labels, "--suv", 4, "-o", out, *more)


def test_an_image_becomes_a_table_that_classify_takes(
    image: Path, model: Path, tmp_path: Path
) -> None:
    content = _json(*_cases(image, tmp_path, "--patient", "P007", "--ct",
                            image.with_name("ct.nii.gz"), "--simulated"))  # fmt: skip
    cases = load_cases(tmp_path / "cases.csv")
    assert cases.patient.tolist() == ["P007"] * 2
    assert cases.location.tolist() == ["pelvis", "common_iliac"]
    assert cases.details["side"].tolist() == ["left", "left"]
    assert cases.n_simulated == 2
    assert cases.numbers["hu_mean"].tolist() == [300.0, 300.0]
    assert cases.numbers["primary_suv_max"].tolist() == [14.0, 14.0]
    assert cases.numbers["reference_suv_max"][0] == pytest.approx(1.1)
    assert content["n_hotspots"] == 5
    assert {entry["why"] for entry in content["left_out"]} == {
        "physiological", "primary tumour", "neither bone nor lymph node: muscle",
    }  # fmt: skip
    assert content["mid_sagittal_plane"]["offset_mm"] == pytest.approx(0.0, abs=2.0)
    ids = {str(row.id) for row in load_hotspots(tmp_path / "hotspots.csv")}
    assert set(cases.details["hotspot"].tolist()) < ids
    rows = _json("classify", model, tmp_path / "cases.csv", "-o", tmp_path / "p.csv")[
        "hotspots"
    ]
    assert all(0.0 <= row["probability"] <= 1.0 for row in rows)
    assert len(rows) == 2


def test_an_image_in_bq_ml_gives_the_same_cases_where_its_factor_is_known(
    image: Path, tmp_path: Path
) -> None:
    assert _call(*_cases(image, tmp_path / "suv")).exit_code == 0
    activity = Volume(
        blocks()[0].values * np.float32(1e4), BLOCK_GRID, "Bq/mL", {"suv_per_bq_ml": 1e-4}
    )
    save_volume(image.with_name("bq.nii.gz"), activity)
    assert _call(*_cases(image.with_name("bq.nii.gz"), tmp_path / "bq")).exit_code == 0
    one, two = (load_cases(tmp_path / name / "cases.csv") for name in ("suv", "bq"))
    for name, column in one.numbers.items():
        assert two.numbers[name] == pytest.approx(column, rel=1e-5, nan_ok=True)


def test_the_user_calls_uptake_physiological_and_names_the_primary(
    image: Path, tmp_path: Path
) -> None:
    result = _call(*_cases(image, tmp_path, "--physiological", 3, "--primary-suv-max", 20))
    assert result.exit_code == 0, result.stderr
    assert "left out: physiological: the user says so" in result.stdout
    cases = load_cases(tmp_path / "cases.csv")
    assert cases.tissue.tolist() == ["lymph_node"]
    assert cases.numbers["primary_suv_max"].tolist() == [20.0]
    _refused("only hotspots 1 to 5 can be excluded, but 9", *_cases(image, tmp_path,
             "--physiological", 9))  # fmt: skip


def test_the_uncertainty_of_suv_max_travels_from_the_run_to_the_probabilities(
    image: Path, model: Path, tmp_path: Path
) -> None:
    assert _call(*_cases(image, tmp_path)).exit_code == 0
    table = load_hotspots(tmp_path / "hotspots.csv")
    se = 0.05 * table.column("suv_max")
    save_hotspots(tmp_path / "run.csv", table.with_uncertainty(se, 0 * se, 2 * se))
    known = ("--uncertainty", tmp_path / "run.csv")
    out = tmp_path / "again"
    assert _call(*_cases(image, out, *known, "--physiological", 1)).exit_code == 0
    cases = load_cases(out / "cases.csv")
    assert cases.numbers["suv_max_se"] == pytest.approx(0.05 * cases.numbers["suv_max"])
    assert load_hotspots(out / "hotspots.csv").column("suv_max_se") == pytest.approx(se)
    _call("classify", model, out / "cases.csv", "-o", out / "p.csv")
    assert "0.4" in (out / "p.csv").read_text("utf-8").splitlines()[1].split(",")
    save_hotspots(tmp_path / "none.csv", table)
    _refused("of 0 hotspots with a standard error none has its hottest voxel",
             *_cases(image, out, "--uncertainty", tmp_path / "none.csv"))  # fmt: skip


def test_thresholds_come_from_liver_and_blood(tmp_path: Path) -> None:
    volume, regions = blocks()
    values, labels = volume.values.copy(), regions.values.copy()
    liver, aorta = (
        (slice(1, 17), slice(4, 16), slice(30, 39)),
        (slice(22, 26), slice(10, 14), slice(30, 36)),
    )
    for k, (place, uptake) in enumerate(((liver, 2.0), (aorta, 1.6)), start=7):
        values[place], labels[place] = uptake, k
    save_volume(tmp_path / "pet.nii.gz", Volume(values, BLOCK_GRID, "SUV"))
    names = {**BLOCK_NAMES, 7: "liver", 8: "aorta"}
    save_labels(
        tmp_path / "organs.nii.gz", LabelMap(Volume(labels, BLOCK_GRID, "label"), names)
    )

    def call(*more: object) -> tuple[object, ...]:
        return ("cases", tmp_path / "pet.nii.gz", "--labels", tmp_path / "organs.nii.gz", "-o",
                tmp_path, *more)  # fmt: skip

    percist = _json(*call("--organ", "liver", "--tracer", "FDG"))
    assert percist["method"] == "from 3 SUV"  # 1.5 x 2 + 2 x 0
    assert _json(*call("--organ", "blood"))["method"] == "from 3.2 SUV"
    _refused("the tracer is 18F-PSMA-1007", *call("--organ", "liver", "--tracer",
             "18F-PSMA-1007"))  # fmt: skip
    _refused("the liver's rule needs to know the tracer", *call("--organ", "liver"))
    _refused("an organ must be liver or blood, but it is 'spleen'", *call("--organ", "spleen"))
    _refused("--organ and another one were given", *call("--organ", "blood", "--suv", 4))


def test_an_image_that_gives_no_cases_is_refused(image: Path, tmp_path: Path) -> None:
    _refused("no label map was given", "cases", image, "-o", tmp_path)
    activity = blocks()[0].values * np.float32(1e4)
    save_volume(tmp_path / "bq.nii.gz", Volume(activity, BLOCK_GRID, "Bq/mL"))
    labels = ("--labels", image.with_name("organs.nii.gz"), "-o", tmp_path / "out")
    _refused("bq.nii.gz is in Bq/mL and its sidecar knows no factor", "cases",
             tmp_path / "bq.nii.gz", *labels)  # fmt: skip
    _refused("in bone or lymph node, but all", *_cases(image, tmp_path, "--suv", 10))
    _refused("a CT must be in HU", "cases", image, *labels, "--ct", image)
