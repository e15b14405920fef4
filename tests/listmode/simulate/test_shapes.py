"""Shapes, phantoms and what is sampled from them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.simulate import _kernels
from listmode.simulate.phantom import (
    asymmetric_phantom,
    cylinder_phantom,
    image_quality_phantom,
    pregnant_phantom,
    torso_phantom,
)
from listmode.simulate.shapes import Phantom, Shape
from listmode.simulate.sources import make_body

BALL = Shape("ball", "ball", "ellipsoid", (5.0, -10.0, 20.0), (30.0, 20.0, 40.0), 7.0, 0.1)


def _inside(shape: Shape, point: np.ndarray) -> np.ndarray:
    u = (point - np.array(shape.centre_mm)) / np.array(shape.semi_mm)
    if shape.kind == "ellipsoid":
        return np.asarray((u**2).sum(axis=-1) < 1)
    if shape.kind == "cylinder":
        return np.asarray(((u[..., :2] ** 2).sum(axis=-1) < 1) & (np.abs(u[..., 2]) < 1))
    return np.asarray((np.abs(u) < 1).all(axis=-1))


def test_a_line_through_the_middle_of_a_ball_sees_its_diameter() -> None:
    body = make_body(Phantom("ball", (BALL,)), 0.0)
    depth = _kernels.line_integral(
        *body.attenuation, 0.0, 0.0, 0.0, 5.0, -10.0, 20.0, 1.0, 0.0, 0.0
    )
    assert depth == pytest.approx(60.0 * 0.01, rel=1e-5)


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (3.0, -4.0, 9.0)])
def test_line_integrals_agree_with_a_march_along_the_line(
    shift: tuple[float, float, float],
) -> None:
    shapes = (
        Shape("rod", "rod", "cylinder", (0, 0, 0), (60, 40, 70), 1.0, 0.096),
        Shape("hole", "hole", "ellipsoid", (10, 5, -20), (20, 15, 30), 0.0, 0.02, "rod"),
        Shape("bed", "bed", "box", (0, 60, 0), (50, 8, 90), 0.0, 0.05, is_fixed=True),
    )
    phantom = Phantom("three", shapes)
    body = make_body(phantom, 0.0)
    rng = np.random.default_rng(3)
    way = np.arange(-250.0, 250.0, 0.02) + 0.01
    for _ in range(5):
        point = rng.uniform(-30, 30, 3)
        d = rng.normal(size=3)
        d /= np.linalg.norm(d)
        path = point + way[:, None] * d
        expected = sum(
            step * _inside(shape, path + (np.array(shift) if shape.is_fixed else 0.0)).sum()
            for shape, step in zip(shapes, phantom.mu_steps, strict=True)
        )
        depth = _kernels.line_integral(*body.attenuation, *shift, *point, *d)
        assert depth == pytest.approx(expected * 0.02, abs=1e-3)


def test_value_at_a_point_adds_the_shapes_around_it() -> None:
    phantom = asymmetric_phantom()
    body = make_body(phantom, 0.0)
    for point, mu in (((0, 0, 0), 0.0096), ((0, 0, 300), 0.0)):
        value = _kernels.value_at(*body.attenuation, 0.0, 0.0, 0.0, *(float(p) for p in point))
        assert value == pytest.approx(mu, rel=1e-5, abs=1e-9)


def test_sampled_activity_keeps_the_activity_of_the_shape() -> None:
    phantom = Phantom("ball", (BALL,))
    x, y, z = (np.arange(-60, 61, 4.0) for _ in range(3))
    values = phantom.sample_activity(x, y, z, supersample=4)
    assert values.dtype == np.float32
    assert values.shape == (31, 31, 31)
    assert values.sum() * 0.064 == pytest.approx(phantom.activity_bq(), rel=2e-3)


def test_the_patient_moves_and_the_table_does_not() -> None:
    phantom = pregnant_phantom()
    x, y, z = np.arange(-200, 201, 10.0), np.arange(-180, 140, 10.0), np.array([-10.0, 0.0])
    still = phantom.sample_mu(x, y, z)
    moved = phantom.sample_mu(x, y, z, shift_mm=(0.0, -30.0, 0.0))
    table = np.argmin(np.abs(y - 120.0))
    assert moved[20, table, 1] == pytest.approx(0.015)
    assert still[20, table, 1] == pytest.approx(0.015)
    assert moved[:, :-3].sum() == pytest.approx(still[:, 3:].sum(), rel=0.05)


@pytest.mark.parametrize("make", [pregnant_phantom, torso_phantom])
def test_every_piece_of_a_body_lies_in_its_parent_and_in_nothing_else(
    make: Callable[[], Phantom],
) -> None:
    phantom = make()
    rng = np.random.default_rng(5)
    for time_s in (0.0, 1200.0):
        now = {s.name: phantom.shape_at(s.name, time_s) for s in phantom.shapes}

        def ancestors(name: str) -> set[str]:
            parent = phantom[name].parent
            return set() if parent is None else {parent} | ancestors(parent)

        for name, shape in now.items():
            points = np.array(shape.centre_mm) + np.array(shape.semi_mm) * rng.uniform(
                -1, 1, (3000, 3)
            )
            points = points[_inside(shape, points)]
            for other, around in now.items():
                share = float(_inside(around, points).mean())
                if other in ancestors(name):
                    assert share == 1.0, f"{name} leaves {other} at {time_s} s"
                elif name != other and name not in ancestors(other):
                    assert share == 0.0, f"{name} meets {other} at {time_s} s"


def test_the_bladder_fills_from_its_caudal_end_at_its_concentration() -> None:
    phantom = pregnant_phantom(bladder_ml=148.0, filling_ml_min=5.0)
    before, after = (phantom.shape_at("bladder", t) for t in (0.0, 1200.0))
    assert before.volume_ml == pytest.approx(148.0, rel=1e-3)
    assert after.volume_ml == pytest.approx(248.0, rel=1e-3)
    low = [s.centre_mm[2] - s.semi_mm[2] for s in (before, after)]
    assert low[0] == pytest.approx(low[1])
    # 5 mL/min for 20 min: motion_and_hotspots' 7 mm for a sphere of 100 mL; here 148 mL
    assert 4.0 < after.centre_mm[2] - before.centre_mm[2] < 8.0
    gained = phantom.activity_bq(1200.0) - phantom.activity_bq(0.0)
    excess = (10.0 - 0.7) * phantom.bq_ml_per_suv
    assert gained == pytest.approx(100.0 * excess, rel=1e-3)
    x, y, z = np.arange(-60, 61, 3.0), np.arange(-110, 20, 3.0), np.arange(-330, -200, 3.0)
    grown = phantom.sample_activity(x, y, z, time_s=1200.0) - phantom.sample_activity(x, y, z)
    assert grown.sum() * 0.027 == pytest.approx(gained, rel=0.01)


def test_labels_name_organs_and_hotspots() -> None:
    phantom = pregnant_phantom()
    number = {name: i for i, name in phantom.labels.items()}
    for name in ("bladder", "hip_tumour", "fetal_ventricle", "iliac_node", "table"):
        shape = next(s for s in phantom.shapes if s.label == name)
        x, y, z = shape.centre_mm
        assert phantom.sample_labels([x], [y], [z])[0, 0, 0] == number[name]
    assert phantom.sample_labels([0.0], [-300.0], [0.0])[0, 0, 0] == 0
    hotspots = set(phantom.labels.values()) - phantom.physiological
    assert {"hip_tumour", "iliac_node", "bone_lesion", "lung_base_lesion"} <= hotspots
    tumour = phantom["hip_tumour"].centre_mm
    assert tumour[0] > 0, "the patient's left"
    assert tumour[1] < phantom["left_hip"].centre_mm[1], "ventral of the joint"


def test_the_pregnant_phantom_weighs_what_it_says() -> None:
    phantom = pregnant_phantom()
    outer = [s.volume_ml for s in phantom.shapes if s.parent is None and not s.is_fixed]
    assert sum(outer) / 1000.0 == pytest.approx(phantom.weight_kg, rel=0.03)


def test_the_image_quality_phantom_has_six_spheres_at_the_contrast() -> None:
    phantom = image_quality_phantom(background_bq_ml=5300.0, contrast=4.0)
    spheres = [s for s in phantom.shapes if s.name.startswith("sphere")]
    assert len(spheres) == 6
    x, y, z = spheres[5].centre_mm
    assert phantom.sample_activity([x], [y], [z])[0, 0, 0] == pytest.approx(4 * 5300.0)
    assert phantom.sample_activity([0.0], [0.0], [0.0])[0, 0, 0] == 0.0


def test_a_cylinder_has_the_activity_of_its_volume() -> None:
    phantom = cylinder_phantom(radius_mm=100, length_mm=200, activity_bq_ml=1000.0)
    assert phantom.activity_bq() == pytest.approx(math.pi * 100 * 100 * 200)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((BALL, BALL), "unique names and parents that come before them, but 'ball'"),
        (
            (Shape("a", "a", "box", (0, 0, 0), (1, 1, 0), 1.0, 0.0),),
            "sizes must be positive and values not negative, but 'a'",
        ),
    ],
)
def test_impossible_phantoms_are_refused(shapes: tuple[Shape, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Phantom("bad", shapes)


def test_a_shape_that_fills_must_exist() -> None:
    with pytest.raises(InputError, match="the shape that fills must be one of its shapes"):
        Phantom("bad", (BALL,), filling_shape="bladder")
