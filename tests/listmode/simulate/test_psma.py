"""The PSMA phantom: places that fit, names that say where they are, uptake as asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

from listmode.errors import InputError
from listmode.simulate.psma import (
    BODY,
    BODY_SUV,
    REGIONS,
    Focus,
    Place,
    draw_places,
    psma_phantom,
    sphere_recovery,
)
from listmode.simulate.shapes import Shape
from recon.hotspots.places import place_of

Bool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def _inside(shape: Shape, points: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Bool:
    u = np.abs((points - shape.centre_mm) / shape.semi_mm)
    if shape.kind == "ellipsoid":
        return np.asarray((u**2).sum(axis=1) <= 1.0)
    if shape.kind == "cylinder":
        return np.asarray((u[:, 0] ** 2 + u[:, 1] ** 2 <= 1.0) & (u[:, 2] <= 1.0))
    return np.asarray((u <= 1.0).all(axis=1))


def test_regions_and_organs_lie_in_the_body_and_apart_even_when_the_bladder_is_full() -> None:
    phantom = psma_phantom([], bladder_ml=200.0, filling_ml_min=5.0)
    axes = [np.arange(-a, a + 1, 3.0) for a in (172.0, 118.0, 268.0)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    n_owners = np.zeros(len(points), int)
    for shape in phantom.shapes:
        if shape.name != BODY:
            n_owners += _inside(phantom.shape_at(shape.name, 600.0), points)
    assert n_owners.max() == 1
    assert n_owners[~_inside(phantom[BODY], points)].max() == 0


def test_the_name_of_each_region_says_its_tissue_and_location() -> None:
    for name, region in REGIONS.items():
        place = place_of(name)
        assert (place.tissue, place.location) == (region.tissue, region.location)


def test_places_are_drawn_once_each_and_mirror_images_stay_free_while_they_can() -> None:
    rng = np.random.default_rng(3)
    places = draw_places(["bone"] * 10, ["thorax"] * 10, rng)  # 20 places, 10 on each side
    folded = [(abs(p.centre_mm[0]), *p.centre_mm[1:]) for p in places]
    assert min(math.dist(a, b) for i, a in enumerate(folded) for b in folded[:i]) > 20.0
    more = draw_places(["bone"] * 20, ["thorax"] * 20, rng)
    distance = [
        math.dist(a.centre_mm, b.centre_mm) for i, a in enumerate(more) for b in more[:i]
    ]
    assert min(distance) > 20.0


def test_too_many_foci_for_a_location_are_refused() -> None:
    with pytest.raises(InputError, match="has 4 for bone in lower_extremity"):
        draw_places(["bone"] * 5, ["lower_extremity"] * 5, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["rib_left_9", "femur_right"])
def test_a_focus_that_reaches_out_of_its_region_is_refused(name: str) -> None:
    x, y, z = REGIONS[name].centre_mm
    fits = Focus(Place(name, (x, y, z)), 16.0, 10.0)
    psma_phantom([fits])
    with pytest.raises(InputError, match=f"reaches out of '{name}'"):
        psma_phantom([Focus(Place(name, (x + 7.0, y, z)), 16.0, 10.0)])


def test_a_focus_has_its_uptake_and_the_other_side_its_reference() -> None:
    region = REGIONS["lymph_nodes_common_iliac_left"]
    x, y, z = region.centre_mm
    focus = Focus(Place("lymph_nodes_common_iliac_left", (x, y, z)), 10.0, 7.5, 1.4)
    phantom = psma_phantom([focus], primary_suv=12.0, bq_ml_per_suv=100.0)

    def suv_at(*place: float) -> float:
        values = phantom.sample_activity(*([v] for v in place), supersample=1)
        return float(values[0, 0, 0]) / 100.0

    assert suv_at(x, y, z) == pytest.approx(7.5)
    assert suv_at(-x, y, z) == pytest.approx(1.4)
    assert suv_at(x, y, z + 20.0) == pytest.approx(BODY_SUV)
    assert suv_at(8.0, -12.0, -198.0) == pytest.approx(12.0)


def test_a_place_that_holds_a_focus_itself_is_no_reference() -> None:
    foci = []
    for side in ("left", "right"):
        x, y, z = REGIONS[f"hip_{side}"].centre_mm
        foci.append(Focus(Place(f"hip_{side}", (x, y, z + 14.0)), 12.0, 5.0, 1.0))
    names = [shape.name for shape in psma_phantom(foci).shapes]
    assert not [name for name in names if name.startswith("reference")]


@pytest.mark.parametrize(("diameter_mm", "fwhm_mm"), [(8.0, 6.5), (16.0, 6.5), (10.0, 10.0)])
def test_recovery_is_the_gaussian_integrated_over_the_sphere(
    diameter_mm: float, fwhm_mm: float
) -> None:
    sigma = fwhm_mm / math.sqrt(8.0 * math.log(2.0))

    def shell(r: float) -> float:
        density = math.exp(-(r**2) / (2.0 * sigma**2)) / (sigma * math.sqrt(2.0 * math.pi)) ** 3
        return 4.0 * math.pi * r**2 * density

    expected = integrate.quad(shell, 0.0, diameter_mm / 2.0)[0]
    assert sphere_recovery(diameter_mm, fwhm_mm) == pytest.approx(expected, rel=1e-9)
