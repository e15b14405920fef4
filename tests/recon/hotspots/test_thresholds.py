from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots.thresholds import blood_threshold, liver_threshold
from recon.image import Grid, Volume

GRID = Grid.centred((40, 30, 30), 4.0)
NAMES = {1: "liver", 2: "aorta", 3: "spleen"}


def organs(liver_mm: float = 60.0) -> tuple[Volume, Volume]:
    x, y, z = np.meshgrid(*(GRID.axis_mm(k) for k in range(3)), indexing="ij")
    labels = np.zeros(GRID.shape, np.int32)
    labels[(abs(x) < liver_mm) & (abs(y) < liver_mm / 2) & (abs(z) < liver_mm / 2)] = 1
    labels[(abs(x - 70) < 9) & (abs(y) < 9)] = 2
    rng = np.random.default_rng(11)
    suv = np.where(labels == 1, np.where(x < 0, 2.0, 5.0), np.where(labels == 2, 1.6, 0.5))
    suv = suv + np.where(labels > 0, 0.1, 0.0) * rng.standard_normal(GRID.shape)
    return Volume(suv.astype(np.float32), GRID, "SUV"), Volume(labels, GRID, "label")


@pytest.mark.stats
def test_percist_reads_the_right_lobe() -> None:
    """The left half holds SUV 5 and must not count. Seed 11; sphere of about 220 voxels.

    1.5 x 2.0 + 2 x 0.1 = 3.2 with a standard error of 1.5 x 0.1/sqrt(220) + 2 x 0.1/sqrt(440),
    0.02 in all; 0.1 is five of them, false-alarm rate below 1e-6.
    """
    volume, labels = organs()
    threshold = liver_threshold(volume, labels, NAMES, tracer="FDG")
    assert threshold.value == pytest.approx(3.2, abs=0.1)


@pytest.mark.stats
def test_blood_pool_is_measured_deep_inside_the_aorta() -> None:
    """2 x 1.6 + 2 x 0.1 = 3.4; about 9 voxels, standard error 0.09; seed 11, five of them."""
    volume, labels = organs()
    assert blood_threshold(volume, labels, NAMES).value == pytest.approx(3.4, abs=0.45)


def test_refuses_the_liver_rule_where_the_liver_is_hot() -> None:
    volume, labels = organs()
    for tracer in ("[18F]PSMA-1007", "PSMA 1007 F-18".replace(" ", "")):
        with pytest.raises(InputError, match="a liver that is not hot itself"):
            liver_threshold(volume, labels, NAMES, tracer=tracer)


def test_refuses_a_liver_too_small_for_the_sphere() -> None:
    volume, labels = organs(liver_mm=20.0)
    with pytest.raises(InputError, match="must hold a sphere of 30 mm"):
        liver_threshold(volume, labels, NAMES, tracer="FDG")


def test_refuses_a_map_without_the_organ() -> None:
    volume, labels = organs()
    with pytest.raises(InputError, match="a region called liver, but it has spleen"):
        liver_threshold(volume, labels, {3: "spleen"}, tracer="FDG")


def test_refuses_another_grid() -> None:
    volume, _ = organs()
    small = Volume(np.ones((2, 2, 2), np.int32), Grid.centred((2, 2, 2), 4.0), "label")
    with pytest.raises(InputError, match="label map must lie on the volume's grid"):
        liver_threshold(volume, small, NAMES, tracer="FDG")
