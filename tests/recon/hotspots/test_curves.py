from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots.curves import _sensitivity_at, roc_band
from recon.hotspots.statistics import roc


def scores(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, n // 5, n)
    y = (rng.random(n) < 0.5).astype(int)
    return y, np.round(y + rng.standard_normal(n), 1), patient  # rounded: ties


@pytest.mark.parametrize("seed", range(5))
def test_staircase_agrees_with_trying_every_threshold(seed: int) -> None:
    y, p, _ = scores(60, seed)
    alarms, hits, _ = roc(y, p)
    grid = np.linspace(0, 1, 21)
    slow = [
        max(
            (
                (p >= t)[y > 0].mean()
                for t in (*p, np.inf)
                if (p >= t)[y == 0].mean() <= x + 1e-12
            ),
            default=0.0,
        )
        for x in grid
    ]
    assert _sensitivity_at(grid, alarms, hits) == pytest.approx(slow)


def test_band_holds_the_curve_and_rises() -> None:
    y, p, patient = scores(400, 1)
    band = roc_band(y, p, patient, n_draws=200)
    alarms, hits, _ = roc(y, p)
    curve = _sensitivity_at(band["false_positive"], alarms, hits)
    assert (band["low"] <= curve).all()
    assert (curve <= band["high"]).all()
    for side in ("low", "high"):
        assert (np.diff(band[side]) >= 0).all()
        assert band[side][-1] == 1.0
    assert (band["high"] - band["low"])[50] > 0.01


def test_band_is_wider_when_the_hotspots_of_a_patient_are_alike() -> None:
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(40), 10)
    y = patient % 2
    p = y + rng.standard_normal(40)[patient] + 0.3 * rng.standard_normal(400)
    by_patient = roc_band(y, p, patient, n_draws=200)
    by_hotspot = roc_band(y, p, np.arange(400), n_draws=200)
    wide, narrow = (float((b["high"] - b["low"]).mean()) for b in (by_patient, by_hotspot))
    assert wide > 1.5 * narrow  # ten alike hotspots count as little more than one


def test_same_seed_same_band() -> None:
    one, two = (roc_band(*scores(100, 4), n_draws=20)["low"] for _ in range(2))
    assert np.array_equal(one, two)


def test_refuses_one_class() -> None:
    with pytest.raises(InputError, match="judged on both classes"):
        roc_band([1, 1], [0.2, 0.4], ["a", "b"])
