from __future__ import annotations

import math

import numpy as np
import pytest

from listmode.errors import InputError
from recon.hotspots.segment import FixedSuv, Segmentation, find_hotspots
from recon.hotspots.symmetry import MidPlane, find_mid_sagittal, reference_uptake
from recon.image import Grid, Volume
from tests.recon.hotspots.bodies import GRID, ball, body

STRAIGHT = MidPlane((1.0, 0.0, 0.0), 0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("about_z", "about_y", "offset_mm"),
    [(0.0, 0.0, 0.0), (5.0, 0.0, 8.0), (-4.0, 6.0, -15.0), (8.0, -7.0, 5.0)],
)
def test_finds_the_plane_of_a_tilted_body_within_a_degree_and_two_mm(
    about_z: float, about_y: float, offset_mm: float
) -> None:
    """Liver on one side, bladder, 15 % noise a voxel (seed 5)."""
    volume, _ = body(math.radians(about_z), math.radians(about_y), offset_mm, seed=5)
    plane = find_mid_sagittal(volume)
    a, b = math.radians(about_z), math.radians(about_y)
    wanted = np.array([math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), math.sin(b)])
    cosine = float(np.clip(np.dot(plane.normal, wanted), -1.0, 1.0))
    assert math.degrees(math.acos(cosine)) <= 1.0
    assert abs(float(plane.distance_mm(wanted * offset_mm))) <= 2.0


def test_mirror_of_the_mirror_is_the_point() -> None:
    plane = MidPlane((0.8, 0.6, 0.0), 12.0, 1.0)
    points = np.random.default_rng(3).normal(size=(20, 3)) * 100
    np.testing.assert_allclose(plane.mirror(plane.mirror(points)), points, atol=1e-9)
    np.testing.assert_allclose(
        plane.distance_mm(plane.mirror(points)), -plane.distance_mm(points)
    )


def with_focus(
    *centres: tuple[float, float, float], radius: float = 12.0
) -> tuple[Volume, Segmentation]:
    volume, at = body()
    values = volume.values.copy()
    for centre in centres:
        values[ball(at, centre, radius)] = 9.0
    values[ball(at, (0, -30, -140), 31)] = 0.7  # no bladder here
    volume = Volume(values, GRID, "SUV")
    return volume, find_hotspots(volume, threshold=FixedSuv(4.0))


def test_reference_of_a_hip_is_the_other_hip_within_five_percent() -> None:
    volume, found = with_focus((90.0, 10.0, -120.0))
    (reference,) = reference_uptake(volume, found, STRAIGHT)
    assert reference.source == "other side"
    assert reference.value == pytest.approx(1.3, rel=0.05)


def test_reference_is_found_in_a_tilted_body() -> None:
    a, b = math.radians(5.0), math.radians(-4.0)
    volume, at = body(a, b, 10.0)
    values = volume.values.copy()
    values[ball(at, (0, -30, -140), 31)] = 0.7
    values[ball(at, (90, 10, -120), 12)] = 9.0
    volume = Volume(values, GRID, "SUV")
    found = find_hotspots(volume, threshold=FixedSuv(4.0))
    normal = (math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), math.sin(b))
    (reference,) = reference_uptake(volume, found, MidPlane(normal, 10.0, 1.0))
    assert reference.value == pytest.approx(1.3, rel=0.05)


def test_reference_is_missing_where_the_other_side_is_hot_too() -> None:
    volume, found = with_focus((90.0, 10.0, -120.0), (-90.0, 10.0, -120.0))
    references = reference_uptake(volume, found, STRAIGHT)
    assert [r.source for r in references] == ["missing", "missing"]
    assert math.isnan(references[0].value)
    assert references[0].reason == "its place is a hotspot itself"


def test_reference_on_the_midline_is_the_next_level() -> None:
    volume, found = with_focus((0.0, 0.0, 0.0), radius=10.0)
    (reference,) = reference_uptake(volume, found, STRAIGHT)
    assert reference.source == "next level"
    assert reference.value == pytest.approx(0.7, rel=0.05)


def spine() -> tuple[Volume, dict[int, str]]:
    """Five vertebrae of 24 mm behind one another on the midline, at v = 50 mm."""
    _, at = body()
    labels = np.zeros(GRID.shape, np.int32)
    names = {}
    for k in range(5):
        z = at[..., 2] - (-60 + 30 * k)
        inside = (np.abs(at[..., 0]) < 20) & (np.abs(at[..., 1] - 50) < 16) & (np.abs(z) < 12)
        labels[inside] = k + 1
        names[k + 1] = f"vertebrae_L{5 - k}"
    return Volume(labels, GRID, "label"), names


def test_reference_in_the_spine_is_the_nearest_vertebra_without_hotspot() -> None:
    volume, at = body()
    labels, names = spine()
    values = np.where(labels.values > 0, labels.values * 0.5, np.minimum(volume.values, 2.0))
    values = values.astype(np.float32)
    values[ball(at, (0, 50, 0), 8)] = 9.0  # L3
    values[ball(at, (5, 50, 30), 8)] = 8.0  # L2
    hot = Volume(values, GRID, "SUV")
    found = find_hotspots(hot, threshold=FixedSuv(4.0), labels=labels, label_names=names)
    first, second = reference_uptake(hot, found, STRAIGHT, labels=labels, label_names=names)
    assert (first.source, second.source) == ("next vertebra", "next vertebra")
    assert first.value == pytest.approx(1.0)  # L4 is 30 mm away, L1 60 mm
    assert second.value == pytest.approx(2.5)  # L1


def test_reference_is_missing_where_every_vertebra_or_level_is_hot() -> None:
    labels, names = spine()
    hot = np.where(labels.values > 0, 9.0, 0.5).astype(np.float32)
    hot[:, :, ::7] = 0.5  # five hotspots, one a vertebra
    volume = Volume(hot, GRID, "SUV")
    found = find_hotspots(volume, threshold=FixedSuv(4.0), labels=labels, label_names=names)
    references = reference_uptake(volume, found, STRAIGHT, labels=labels, label_names=names)
    assert {r.reason for r in references} == {"no vertebra without a hotspot"}
    rod = np.full(GRID.shape, 0.5, np.float32)
    rod[49:51, 34:36, :] = 9.0
    volume = Volume(rod, GRID, "SUV")
    found = find_hotspots(volume, threshold=FixedSuv(4.0))
    (reference,) = reference_uptake(volume, found, STRAIGHT)
    assert reference.reason == "no level without a hotspot"


def test_reference_is_missing_where_tissue_or_attenuation_differ() -> None:
    volume, found = with_focus((90.0, 10.0, -120.0))
    _, at = body()
    hips = np.zeros(GRID.shape, np.int32)
    hips[ball(at, (90, 10, -120), 35)] = 1
    one_hip = Volume(hips, GRID, "label")
    names = {1: "hip_left"}
    labelled = find_hotspots(volume, threshold=FixedSuv(4.0), labels=one_hip, label_names=names)
    (r,) = reference_uptake(volume, labelled, STRAIGHT, labels=one_hip, label_names=names)
    assert r.reason == "its place is another kind of tissue"
    mu = Volume(np.where(hips > 0, 0.15, 0.096).astype(np.float32), GRID, "1/cm")
    (r,) = reference_uptake(volume, found, STRAIGHT, mu=mu)
    assert r.reason == "its place attenuates otherwise"
    both = Volume(
        np.where(ball(at, (-90, 10, -120), 35), 2, hips).astype(np.int32), GRID, "label"
    )
    names[2] = "hip_right"
    labelled = find_hotspots(volume, threshold=FixedSuv(4.0), labels=both, label_names=names)
    (r,) = reference_uptake(volume, labelled, STRAIGHT, labels=both, label_names=names)
    assert r.value == pytest.approx(1.3, rel=0.05)


def test_reference_is_missing_outside_of_the_image() -> None:
    volume, found = with_focus((90.0, 10.0, -120.0))
    far = MidPlane((1.0, 0.0, 0.0), 190.0, 1.0)
    (reference,) = reference_uptake(volume, found, far)
    assert reference.reason == "its place lies outside of the image"


def test_refuses_an_empty_image() -> None:
    with pytest.raises(InputError, match="needs an image with something in it"):
        find_mid_sagittal(Volume(np.zeros(GRID.shape, np.float32), GRID, "SUV"))


def test_refuses_another_grid() -> None:
    volume, found = with_focus((90.0, 10.0, -120.0))
    other = Grid.centred((4, 4, 4), 4.0)
    mu = Volume(np.ones(other.shape, np.float32), other, "1/cm")
    with pytest.raises(InputError, match="mu-map must lie on the volume's grid"):
        reference_uptake(volume, found, STRAIGHT, mu=mu)
