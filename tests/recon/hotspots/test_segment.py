from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from listmode.errors import InputError
from recon.hotspots.segment import (
    Absolute,
    FixedSuv,
    FractionOfMax,
    Segmentation,
    Threshold,
    UserMask,
    find_hotspots,
)
from recon.image import Grid, Unit, Volume


def volume_of(values: Any, unit: Unit = "SUV", voxel_mm: float = 4.0) -> Volume:
    values = np.asarray(values)
    return Volume(values, Grid.centred(values.shape, voxel_mm), unit)


def line(*values: float) -> Volume:
    """A row of voxels along x."""
    return volume_of(np.array(values, np.float32).reshape(-1, 1, 1), voxel_mm=10.0)


def mask_of(segmentation: Segmentation) -> list[int]:
    return [int(number) for number in segmentation.mask.values.ravel()]


def noise(seed: int, shape: tuple[int, int, int] = (9, 8, 7)) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(1, np.prod(shape) + 1)).reshape(shape).astype(np.float32)


def blob(
    shape: tuple[int, int, int], centre: tuple[float, ...], fwhm: float, height: float
) -> NDArray[np.float64]:
    """A Gaussian in voxel units."""
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    r2 = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
    return np.asarray(height * np.exp(-4 * np.log(2) * r2 / fwhm**2))


def test_threshold_value_itself_belongs_to_the_hotspot() -> None:
    assert mask_of(find_hotspots(line(3.9, 4.0, 5.0, 3.9), threshold=FixedSuv(4.0))) == [
        0,
        1,
        1,
        0,
    ]


def test_touching_hotspots_part_below_the_saddle_ratio_and_not_at_it() -> None:
    rule, ratio = FixedSuv(4.0), 0.75
    wide = line(0, 10, 6.0, 8, 0)  # saddle 0.75 x lower peak, exact in binary
    deep = line(0, 10, 5.9, 8, 0)
    one = find_hotspots(wide, threshold=rule, saddle_ratio=ratio)
    two = find_hotspots(deep, threshold=rule, saddle_ratio=ratio)
    assert mask_of(one) == [0, 1, 1, 1, 0]
    assert mask_of(two) == [0, 1, 1, 2, 0]


def test_flank_of_a_hot_organ_is_no_hotspot_of_its_own() -> None:
    """Between 41 % of 30 and the floor lies a shell that a fixed floor would call a hotspot."""
    found = find_hotspots(line(1, 4, 8, 30, 9, 5, 1), threshold=FractionOfMax(0.41, floor=2.5))
    assert mask_of(found) == [0, 0, 0, 1, 0, 0, 0]
    assert found.threshold[0] == pytest.approx(12.3)


def test_small_focus_beside_a_hot_organ_is_found_with_its_own_threshold() -> None:
    found = find_hotspots(line(1, 6, 2, 9, 30, 9, 1), threshold=FractionOfMax(0.41, floor=2.5))
    assert mask_of(found) == [0, 2, 0, 0, 1, 0, 0]
    assert found.threshold[1] == pytest.approx(0.41 * 6)


def test_peaks_that_their_common_contour_parts_are_two() -> None:
    """The saddle (4.0) is high against the lower peak (5) but below 41 % of the higher."""
    found = find_hotspots(line(0, 10, 4.0, 5, 0), threshold=FractionOfMax(0.41, floor=2.5))
    assert mask_of(found) == [0, 1, 0, 2, 0]


def test_hotspots_are_numbered_from_the_hottest_down() -> None:
    found = find_hotspots(line(5, 0, 9, 0, 7), threshold=FixedSuv(4.0))
    assert mask_of(found) == [3, 0, 1, 0, 2]


def test_equally_hot_ones_are_numbered_in_voxel_order() -> None:
    found = find_hotspots(line(7, 0, 9, 0, 7), threshold=FixedSuv(4.0))
    assert mask_of(found) == [2, 0, 1, 0, 3]


def test_a_plateau_is_one_hotspot() -> None:
    values = np.zeros((7, 7, 3), np.float32)
    values[1, 1:6] = values[5, 1:6] = values[1:6, 3] = 8.0
    assert find_hotspots(volume_of(values), threshold=FixedSuv(4.0)).n_hotspots == 1


@given(st.integers(0, 10**6), st.sampled_from([6, 18, 26]), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_without_parting_it_finds_the_connected_regions(
    seed: int, connectivity: int, level: float
) -> None:
    values = noise(seed)
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    threshold = float(level * values.max())
    found = find_hotspots(
        volume_of(values),
        threshold=Absolute(threshold),
        saddle_ratio=0.0,
        min_volume_ml=0.0,
        connectivity=connectivity,
    )
    wanted, n = ndimage.label(values >= threshold, structure)
    assert found.n_hotspots == n
    pairs = set(zip(wanted.ravel().tolist(), mask_of(found), strict=True))
    assert len(pairs) == n + 1  # one to one


@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.floats(0.2, 0.9))
@settings(max_examples=40, deadline=None)
def test_parting_moves_no_voxel_in_or_out(seed: int, ratio: float, level: float) -> None:
    values = noise(seed)
    found = find_hotspots(
        volume_of(values),
        threshold=Absolute(level * float(values.max())),
        saddle_ratio=ratio,
        min_volume_ml=0.0,
    )
    inside = values >= np.float32(level * float(values.max()))
    assert np.array_equal(found.mask.values > 0, inside)


@given(
    st.integers(0, 10**6),
    st.sampled_from([FractionOfMax(0.5, floor=300.0), Absolute(350.0)]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.permutations(range(3)),
)
@settings(max_examples=40, deadline=None)
def test_mirrored_and_turned_image_gives_the_mirrored_and_turned_hotspots(
    seed: int, threshold: Threshold, mirror: tuple[bool, ...], order: list[int]
) -> None:
    values = noise(seed)
    flip = tuple(slice(None, None, -1 if m else 1) for m in mirror)
    turned = np.ascontiguousarray(values[flip].transpose(order))
    plain = find_hotspots(volume_of(values), threshold=threshold, min_volume_ml=0.0)
    other = find_hotspots(volume_of(turned), threshold=threshold, min_volume_ml=0.0)
    assert np.array_equal(plain.mask.values[flip].transpose(order), other.mask.values)
    assert np.array_equal(plain.threshold, other.threshold)


@given(st.integers(0, 10**6), st.floats(0.3, 0.9))
@settings(max_examples=40, deadline=None)
def test_every_hotspot_holds_its_peak_and_ends_at_its_fraction(
    seed: int, fraction: float
) -> None:
    values = noise(seed)
    found = find_hotspots(
        volume_of(values), threshold=FractionOfMax(fraction, floor=250.0), min_volume_ml=0.0
    )
    for k in range(found.n_hotspots):
        inside = values[found.mask.values == k + 1]
        assert inside.max() >= 250.0
        assert found.threshold[k] == pytest.approx(fraction * inside.max())
        assert inside.min() >= np.float32(found.threshold[k])


def test_two_touching_gaussians_part_in_the_middle() -> None:
    shape = (32, 20, 20)
    values = blob(shape, (10, 10, 10), 6, 10) + blob(shape, (18, 10, 10), 6, 8)
    found = find_hotspots(volume_of(values.astype(np.float32)), threshold=FixedSuv(2.5))
    assert found.n_hotspots == 2
    assert found.mask.values[10, 10, 10] == 1
    assert found.mask.values[18, 10, 10] == 2
    row = found.mask.values[:, 10, 10]
    assert (np.flatnonzero(row == 1).max(), np.flatnonzero(row == 2).min()) == (14, 15)


@pytest.mark.stats
def test_noise_makes_no_hotspots_of_one_sphere() -> None:
    """One uniform sphere of 8 voxels' radius with 8 % noise stays one hotspot.

    Seed 7, twenty images. A bump is parted off if a saddle lies 30 % (over 3 SD of smoothed
    noise) below its peak; none in twenty by seed, false-alarm rate nil since it is fixed.
    """
    rng = np.random.default_rng(7)
    shape = (24, 24, 24)
    grid = np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij")
    sphere = 8.0 * (sum(g**2 for g in grid) <= 64.0)
    for _ in range(20):
        grain = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
        values = ndimage.gaussian_filter(sphere, 0.8) * (1 + 0.08 * grain / grain.std())
        found = find_hotspots(volume_of(values.astype(np.float32)), threshold=FractionOfMax())
        assert found.n_hotspots == 1


def test_small_ones_are_left_out_and_counted() -> None:
    found = find_hotspots(
        line(9, 9, 0, 8, 0), threshold=FixedSuv(4.0), min_volume_ml=2.0
    )  # a voxel has 1 mL
    assert mask_of(found) == [1, 1, 0, 0, 0]
    assert found.n_dropped == {"smaller than the least volume": 1}


def test_low_peaks_are_left_out_and_counted() -> None:
    found = find_hotspots(line(9, 0, 2, 0, 0), threshold=FractionOfMax(0.41, floor=4.0))
    assert found.n_dropped == {"peak below the floor": 1}


def test_no_hotspot_is_an_answer() -> None:
    found = find_hotspots(line(1, 1, 1), threshold=FixedSuv(4.0))
    assert found.n_hotspots == 0
    assert mask_of(found) == [0, 0, 0]


def labelled(*values: int) -> Volume:
    return Volume(
        np.array(values, np.int32).reshape(-1, 1, 1),
        Grid.centred((len(values), 1, 1), 10.0),
        "label",
    )


def test_physiological_uptake_is_flagged_and_stays() -> None:
    found = find_hotspots(
        line(9, 9, 0, 8, 0, 7),
        threshold=FixedSuv(4.0),
        labels=labelled(4, 4, 4, 2, 2, 0),
        label_names={4: "Urinary bladder", 2: "femur"},
    )
    assert found.region == ("Urinary bladder", "femur", "")
    assert found.is_physiological == (True, False, False)


def test_a_name_without_a_side_calls_both_sides_physiological() -> None:
    found = find_hotspots(
        line(9, 9, 0, 8, 0, 7),
        threshold=FixedSuv(4.0),
        labels=labelled(4, 4, 4, 2, 2, 3),
        label_names={4: "adrenal_gland_left", 2: "kidney_right", 3: "hip_left"},
        physiological=("adrenal_gland", "kidney_left"),
    )
    assert found.is_physiological == (True, False, False)


def test_region_is_where_most_voxels_lie() -> None:
    found = find_hotspots(
        line(6, 9, 8, 7, 0), threshold=FixedSuv(4.0), labels=labelled(5, 9, 9, 9, 0)
    )
    assert found.region == ("label_9",)
    assert found.region_fraction.tolist() == [0.75]


def test_user_mask_keeps_each_label_as_one_hotspot() -> None:
    found = find_hotspots(
        line(1, 2, 0, 5, 5), threshold=UserMask(labelled(7, 7, 0, 3, 0)), min_volume_ml=0.0
    )
    assert mask_of(found) == [2, 2, 0, 1, 0]
    assert np.isnan(found.threshold).all()


def test_suv_threshold_on_activity_needs_the_factor() -> None:
    image = volume_of(np.full((2, 2, 2), 8000.0, np.float32), "Bq/mL")
    assert find_hotspots(image, threshold=FixedSuv(4.0), suv_per_bq_ml=1e-3).n_hotspots == 1
    with pytest.raises(InputError, match="needs the injected activity and the weight"):
        find_hotspots(image, threshold=FixedSuv(4.0))


def test_without_suv_the_floor_is_the_fraction_of_the_whole_maximum() -> None:
    values = np.array([100, 0, 42, 0, 40, 0], np.float32).reshape(-1, 1, 1)
    image = volume_of(values, "Bq/mL", 10.0)
    assert mask_of(find_hotspots(image, threshold=FractionOfMax(0.41))) == [1, 0, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"threshold": FixedSuv(0.0)}, "threshold must be a positive number, but it is 0"),
        ({"threshold": Absolute(float("nan"))}, "but it is nan"),
        ({"threshold": FractionOfMax(0.41, floor=-1.0)}, "but it is -1"),
        ({"threshold": FractionOfMax(41.0)}, "must lie between 0 and 1, but it is 41"),
        ({"threshold": FixedSuv(), "connectivity": 8}, "6, 18 or 26 neighbours, but it is 8"),
        ({"threshold": FixedSuv(), "saddle_ratio": 1.5}, "saddle ratio.*1.5"),
        ({"threshold": FixedSuv(), "min_volume_ml": -1.0}, "must not be negative"),
        ({"threshold": FixedSuv(), "labels": line(1, 2, 3)}, "must hold labels"),
        ({"threshold": FixedSuv(), "labels": labelled(1, 2)}, "must lie on the volume's grid"),
        ({"threshold": FixedSuv(), "labels": labelled(1, -2, 0)}, "from 0 up, but its least"),
        ({"threshold": UserMask(labelled(1, 2))}, "user mask must lie on the volume's grid"),
    ],
)
def test_refuses_what_cannot_be_used(options: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match=found):
        find_hotspots(line(1, 9, 1), **options)


def test_refuses_a_mu_map() -> None:
    with pytest.raises(InputError, match="found in SUV or Bq/mL, but the volume is in '1/cm'"):
        find_hotspots(volume_of(np.ones((2, 2, 2), np.float32), "1/cm"), threshold=FixedSuv())
