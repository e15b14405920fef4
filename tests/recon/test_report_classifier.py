from __future__ import annotations

import copy
import functools
import io
from typing import Any

import numpy as np
import pytest
from matplotlib import image as mpl_image
from numpy.typing import NDArray

from recon.hotspots.crossval import Plan
from recon.hotspots.evaluate import evaluate
from recon.report import classifier_figures, figures
from recon.report.classifier import (
    build_classifier_report,
    count_changes,
    origin_sentence,
)
from recon.report.html import render_html
from tests.recon.hotspots.tables import simple


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 60)  # what is tested does not hang on the resolution


@functools.cache
def _evaluated() -> dict[str, Any]:
    return evaluate(
        simple(), kinds=("logistic_regression",), plan=Plan(1, 3, tune=False), n_permutations=1
    )


def result() -> dict[str, Any]:
    return copy.deepcopy(_evaluated())


def share(png: bytes, colour: str) -> float:
    """Share of the pixels that have nearly a colour."""
    pixels: NDArray[np.float32] = mpl_image.imread(io.BytesIO(png), format="png")[..., :3]
    wanted = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return float((np.abs(pixels - wanted).max(axis=-1) < 0.08).mean())


def drawn(base: list[float], context: list[float], malignant: list[int]) -> tuple[float, float]:
    """How much of a figure is in the colours of calls put right and of calls spoilt."""
    cases = {
        "malignant": malignant,
        "tissue": ["bone"] * len(base),
        "base": {"probability": base},
        "context": {"probability": context},
    }
    png = classifier_figures.draw_probabilities(cases, tag="")
    right, wrong = classifier_figures.RIGHT_COLOUR, classifier_figures.WRONG_COLOUR
    return share(png, right), share(png, wrong)


def test_calls_put_right_and_spoilt_have_their_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "DPI", 110)
    truth, sure, doubtful = [0, 1] * 5, [0.1, 0.9] * 5, [0.3, 0.7] * 5
    wrong = [0.9, 0.1] * 5
    same, righted, spoilt = (
        drawn(*each, truth) for each in ((sure, doubtful), (wrong, sure), (sure, wrong))
    )
    assert righted[0] > 2.0 * same[0]
    assert righted[1] == pytest.approx(same[1], rel=0.3)  # the legend has both colours
    assert spoilt[1] > 2.0 * same[1]
    assert spoilt[0] == pytest.approx(same[0], rel=0.3)


def test_changes_are_counted_by_hand() -> None:
    table = [
        {"truth": "benign", "from": "malignant", "to": "benign", "n": 5},
        {"truth": "benign", "from": "benign", "to": "malignant", "n": 2},
        {"truth": "malignant", "from": "benign", "to": "malignant", "n": 4},
    ]
    assert count_changes(table) == (9, 2)


@pytest.mark.parametrize(
    ("n_simulated", "sentence", "tag"),
    [
        (120, "Simulated: no hotspot", "(simulated)"),
        (7, "7 of 120 hotspots are simulated", "(7 of 120 hotspots simulated)"),
        (0, "calls none of its hotspots simulated", ""),
    ],
)
def test_report_says_how_much_is_simulated(n_simulated: int, sentence: str, tag: str) -> None:
    evaluated = result()
    evaluated["data"]["n_simulated"] = n_simulated
    assert sentence in origin_sentence(evaluated["data"])
    report = build_classifier_report(evaluated)
    assert sentence in report.findings[0]
    captions = [table.caption for section in report.sections for table in section.tables]
    assert all(tag in caption for caption in captions)
    assert tag or not any("simulated" in caption for caption in captions)


def test_unknown_agreement_and_p_are_told() -> None:
    evaluated = result()
    del evaluated["data"]["reader_kappa"]
    comparison = evaluated["models"]["logistic_regression"]["by_patient"]["comparison"]
    comparison["nadeau_bengio"]["p"] = None
    html = render_html(build_classifier_report(evaluated))
    assert "their agreement is unknown" in html
    assert "p = n/a" in html


def test_an_interval_that_holds_zero_is_said_to() -> None:
    evaluated = result()
    gain = evaluated["models"]["logistic_regression"]["by_patient"]["comparison"]["auc_gain"]
    gain |= {"value": 0.01, "low": -0.01, "high": 0.03}
    findings = " ".join(build_classifier_report(evaluated).findings)
    assert "+0.010 (95 %: -0.010 to +0.030)" in findings
    assert "the interval holds zero" in findings


def test_a_tissue_of_one_class_has_no_auc_and_the_report_stands() -> None:
    evaluated = result()
    for judged in evaluated["models"]["logistic_regression"]["by_patient"].values():
        if "auc_by_tissue" in judged:
            del judged["auc_by_tissue"]["bone"]
    html = render_html(build_classifier_report(evaluated))
    assert "AUC, bone" in html
    assert "<td>n/a</td>" in html
