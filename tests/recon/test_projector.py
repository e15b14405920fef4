"""Projectors against a dense matrix, analytic truths and their laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.scanner import Scanner, TofModel
from recon import _kernels
from recon.image import Grid
from recon.projector import RayModel, TaskPlan, back, forward, tof_share
from tests.oracles import (
    central_events,
    dense_matrix,
    ellipsoid_chord,
    ellipsoid_span,
    ellipsoid_volume,
    small_scanner,
    some_events,
    tof_weight,
)

NO_TOF = TofModel(1, 1000.0, float("inf"))
TINY = Grid((5, 6, 7), (11.0, 9.0, 10.0), (-25.0, -20.0, -35.0))
ODD = Grid.centred((33, 30, 37), (4.0, 4.5, 4.0))


def _tiny_case(tof: TofModel) -> tuple[Scanner, EventBatch]:
    scanner = small_scanner(tof=tof, n_units=5)
    return scanner, central_events(scanner, 45, 5, 25.0)


@pytest.mark.kernel
@pytest.mark.parametrize("tof", [TofModel(13, 100.0, 200.0), NO_TOF], ids=["tof", "no tof"])
def test_agrees_with_the_dense_matrix(tof: TofModel) -> None:
    scanner, events = _tiny_case(tof)
    matrix = dense_matrix(TINY, scanner, events, 3.0).reshape(len(events), -1)
    assert (matrix.sum(axis=1) > 0).mean() > 0.9
    rng = np.random.default_rng(1)
    x, y = rng.random(TINY.shape), rng.random(len(events))
    got = forward(x, TINY, scanner, events, dtype=np.float64)
    scale = matrix.sum(axis=1).max()
    np.testing.assert_allclose(got, matrix @ x.ravel(), atol=5e-4 * scale)
    image = back(y, TINY, scanner, events, dtype=np.float64)
    np.testing.assert_allclose(image.ravel(), matrix.T @ y, atol=5e-4 * (matrix.T @ y).max())


@pytest.mark.kernel
@pytest.mark.parametrize("nz", [1, 5, 7, 8, 9, 15, 16, 21])
def test_taking_an_image_out_of_its_slabs_is_the_transpose_of_filling_them(nz: int) -> None:
    """Planes that two slabs share go to both places, and come back as their sum."""
    rays = RayModel.make(Grid.centred((4, 3, nz), 5.0), small_scanner(), dtype=np.float64)
    rng = np.random.default_rng(nz)
    x, y = rng.random(rays.shape), rng.random(rays.zeros().size)
    padded = rays.pad(x)
    assert padded @ y == pytest.approx((x * rays.crop(y, threads=2)).sum())
    shared = rays.crop(rays.pad(np.ones(rays.shape)))
    assert set(np.unique(shared)) <= {1.0, 2.0}
    assert (shared[..., 7::8] == 2).all()
    lanes = np.zeros((padded.size, 3))
    rays.fill(lanes, 1, x)
    np.testing.assert_array_equal(lanes[:, 1], padded)
    assert not lanes[:, [0, 2]].any()


@pytest.mark.kernel
def test_every_principal_axis_occurs_in_the_dense_matrix_test() -> None:
    scanner, events = _tiny_case(NO_TOF)
    a = TINY.voxel_index(scanner.crystal_position_mm[events.crystal_a])
    b = TINY.voxel_index(scanner.crystal_position_mm[events.crystal_b])
    axes = [_kernels.principal_axis(*step) for step in b - a]
    assert set(axes) == {0, 1, 2}
    assert axes == np.argmax(np.abs(b - a), axis=1).tolist()


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("step", "axis"),
    [((2, 2, 2), 0), ((-2, 2, 1), 0), ((1, -2, 2), 1), ((1, 1, 2), 2), ((2, 1, -2), 0)],
)
def test_of_equal_steps_the_first_axis_is_the_principal_one(
    step: tuple[float, float, float], axis: int
) -> None:
    assert _kernels.principal_axis(*step) == axis


@pytest.mark.kernel
@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("tof", [TofModel(13, 100.0, 200.0), NO_TOF], ids=["tof", "no tof"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_forward_and_back_are_adjoint(
    dtype: type[np.floating[Any]], limit: float, tof: TofModel, seed: int
) -> None:
    scanner = small_scanner(tof=tof)
    events = some_events(scanner, 500, seed)
    rng = np.random.default_rng(seed)
    x = rng.random(ODD.shape).astype(dtype)
    y = rng.random(len(events)).astype(dtype)
    left = np.vdot(forward(x, ODD, scanner, events, dtype=dtype).astype(np.float64), y)
    right = np.vdot(x, back(y, ODD, scanner, events, dtype=dtype).astype(np.float64))
    assert left > 0
    assert abs(left / right - 1) < limit


@given(st.floats(-310, 310), st.floats(60, 400), st.sampled_from([(33, 143.231), (165, 28.65)]))
@settings(deadline=None)
def test_tof_bins_add_up_to_one_within_the_window(
    s_mm: float, fwhm_ps: float, bins: tuple[int, float]
) -> None:
    tof = TofModel(*bins, fwhm_ps)
    if abs(s_mm) + 3 * tof.sigma_mm > tof.window_ps * 0.299792458 / 4:
        return
    share = tof_share(s_mm - tof.bin_centre_mm(), tof.bin_width_mm, tof.sigma_mm, 3.0)
    assert share.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("s_mm", [0.0, 5.0, 10.7, 30.0, 54.0, 60.0])
def test_the_share_of_a_bin_agrees_with_counting(s_mm: float) -> None:
    got = tof_share(np.array(s_mm), 21.47, 14.5, 3.0)
    assert float(got) == pytest.approx(tof_weight(s_mm, 21.47, 14.5, 3.0), abs=2e-5)


@pytest.mark.parametrize("bins", [(33, 143.231), (165, 28.65)])
def test_projections_of_all_tof_bins_add_up_to_the_one_without_tof(
    bins: tuple[int, float],
) -> None:
    # A line 820 mm long; everything in the image is within 310 mm of its middle.
    tof = TofModel(*bins, 228.0)
    scanner = small_scanner(
        tof=tof, radius_mm=410.0, n_blocks=38, fov_radius_mm=250.0, pitch_mm=16.0
    )
    grid = Grid.centred((30, 30, 20), 7.0)
    rng = np.random.default_rng(4)
    x = rng.random(grid.shape).astype(np.float32)
    one = some_events(scanner, 2000, 8)
    total = np.zeros(len(one))
    for k in range(tof.n_bins):
        bin_k = EventBatch(one.crystal_a, one.crystal_b, np.full(len(one), k, np.int16))
        total += forward(x, grid, scanner, bin_k)
    middle = (
        scanner.crystal_position_mm[one.crystal_a] + scanner.crystal_position_mm[one.crystal_b]
    ) / 2
    # Farthest corner of the image from each LOR's middle, mm.
    corner = np.abs(middle) + np.array([105.0, 105.0, 70.0])
    near = np.linalg.norm(corner, axis=1) < 310
    assert near.sum() > 20
    plain = forward(x, grid, scanner, one, tof=False)
    np.testing.assert_allclose(total[near], plain[near], rtol=1e-4)


def test_without_tof_the_window_still_cuts_the_ends_of_long_lines() -> None:
    tof = TofModel(33, 143.231, 228.0)
    distance = np.array([0.0, 310.0, 354.4, 398.5])
    share = tof_share(distance, 33 * tof.bin_width_mm, tof.sigma_mm, 3.0)
    np.testing.assert_allclose(share, [1, 1, 0.5, 0], atol=5e-3)


def test_a_projected_ellipsoid_is_its_chord() -> None:
    scanner = small_scanner(tof=NO_TOF, n_units=4)
    grid = Grid.centred((100, 100, 100), 1.0)
    centre, semi = (6.0, -9.0, 8.0), (42.0, 33.0, 38.0)
    x = ellipsoid_volume(grid, centre, semi)
    events = some_events(scanner, 4000, 6)
    a = scanner.crystal_position_mm[events.crystal_a].astype(np.float64)
    b = scanner.crystal_position_mm[events.crystal_b].astype(np.float64)
    truth = ellipsoid_chord(a, b, centre, semi)
    got = forward(x, grid, scanner, events)
    assert got.sum() == pytest.approx(truth.sum(), rel=1e-3)
    long = truth > 0.6 * truth.max()  # others graze the rim, where voxels are coarse
    assert long.sum() > 100
    assert np.linalg.norm((got - truth)[long]) < 2e-3 * np.linalg.norm(truth[long])
    np.testing.assert_allclose(got[long], truth[long], rtol=5e-3)


def test_a_projected_ellipsoid_with_tof_is_its_chord_weighed_by_the_kernel() -> None:
    scanner = small_scanner(n_units=4)
    grid = Grid.centred((100, 100, 100), 1.0)
    centre, semi = (6.0, -9.0, 8.0), (42.0, 33.0, 38.0)
    events = some_events(scanner, 2000, 7)
    a = scanner.crystal_position_mm[events.crystal_a].astype(np.float64)
    b = scanner.crystal_position_mm[events.crystal_b].astype(np.float64)
    first, last = ellipsoid_span(a, b, centre, semi)
    length = np.linalg.norm(b - a, axis=1)
    tof = scanner.tof
    centre_mm = (events.tof_bin - (tof.n_bins - 1) / 2) * tof.bin_width_mm
    share = first[:, None] + (last - first)[:, None] * (np.arange(400) + 0.5) / 400
    s = (share - 0.5) * length[:, None] - centre_mm[:, None]
    kernel = tof_share(s, tof.bin_width_mm, tof.sigma_mm, 3.0).mean(axis=1)
    truth = (last - first) * length * kernel
    got = forward(ellipsoid_volume(grid, centre, semi), grid, scanner, events)
    chord = (last - first) * length
    long = (chord > 0.6 * chord.max()) & (truth > 0.1 * truth.max())
    assert long.sum() > 50
    assert np.linalg.norm((got - truth)[long]) < 5e-3 * np.linalg.norm(truth[long])


def test_a_positive_tof_bin_sees_what_is_near_crystal_b() -> None:
    scanner = small_scanner()
    grid = Grid.centred((40, 40, 30), 4.0)
    for a, b in ((451, 483), (458, 489)):  # opposite each other in the middle ring
        near_b = np.zeros(grid.shape)
        target = 0.25 * scanner.crystal_position_mm[a] + 0.75 * scanner.crystal_position_mm[b]
        i, j, k = np.round(grid.voxel_index(target)).astype(int)
        near_b[i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3] = 1
        events = EventBatch(
            np.full(2, a, np.uint32), np.full(2, b, np.uint32), np.array([3, 9], np.int16)
        )
        early, late = forward(near_b, grid, scanner, events)
        assert late > 50 * early


def test_a_voxel_that_only_one_crystal_pair_meets_lies_where_it_was_put() -> None:
    # An asymmetric object made from crystal positions alone: sign and place of x, y and z.
    scanner = small_scanner(n_units=4)
    grid = Grid((31, 37, 41), (4.0, 4.0, 4.0), (-58.0, -70.0, -75.0))
    point = np.array([22.0, -34.0, 41.0])
    p = scanner.crystal_position_mm.astype(np.float64)
    rng = np.random.default_rng(2)
    # Pairs that pass within 2 mm of the point, with the TOF bin of its place.
    a, b = rng.integers(0, len(p), (2, 2_000_000))
    d = p[b] - p[a]
    length = np.linalg.norm(d, axis=1)
    good = (length > 120) & (a != b)
    a, b, d, length = a[good], b[good], d[good], length[good]
    along = ((point - p[a]) * d).sum(1) / length
    miss = np.linalg.norm(p[a] + (along / length)[:, None] * d - point, axis=1)
    hit = miss < 2.0
    a, b, along, length = a[hit], b[hit], along[hit], length[hit]
    tof = scanner.tof
    k = np.round((along - length / 2) / tof.bin_width_mm + (tof.n_bins - 1) / 2).astype(int)
    fits = (k >= 0) & (k < tof.n_bins)
    events = EventBatch.from_pairs(a[fits], b[fits], k[fits], tof.n_bins)
    assert len(events) > 100
    image = back(np.ones(len(events)), grid, scanner, events)
    peak = grid.point_mm(np.unravel_index(int(image.argmax()), grid.shape))
    np.testing.assert_allclose(peak, point, atol=4.0)


@pytest.mark.parametrize("tof", [True, False])
def test_the_same_bits_come_out_at_any_number_of_threads(tof: bool) -> None:
    scanner = small_scanner(radius_mm=200.0, tof=TofModel(33, 50.0, 60.0), fov_radius_mm=180.0)
    grid = Grid.centred((90, 90, 120), 2.0)
    events = some_events(scanner, 20_000, 9)
    weights = np.random.default_rng(3).random(len(events)).astype(np.float32)
    plan = TaskPlan(RayModel.make(grid, scanner, tof=tof))
    assert plan.n_images == (1 if tof else 4)
    images = [
        back(weights, grid, scanner, events, tof=tof, threads=threads) for threads in (1, 2, 4)
    ]
    assert images[0].max() > 0
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_tasks_that_run_together_touch_no_voxel_in_common() -> None:
    scanner = small_scanner(radius_mm=200.0, tof=TofModel(33, 50.0, 60.0), fov_radius_mm=180.0)
    grid = Grid.centred((40, 90, 120), 2.0)
    events = some_events(scanner, 20_000, 9)
    rays = RayModel.make(grid, scanner)
    plan = TaskPlan(rays)
    bucket = plan.bucket(events, 1)
    task = bucket // (plan.n_buckets // plan.n_tasks)
    touched = {}
    for t in np.unique(task[bucket >= 0]).tolist():
        some = np.flatnonzero((task == t) & (bucket >= 0))
        part = EventBatch(events.crystal_a[some], events.crystal_b[some], events.tof_bin[some])
        touched[t] = back(np.ones(some.size), grid, scanner, part) > 0
    later = plan._later_neighbours
    n_free = 0
    for t, voxels in touched.items():
        for u, others in touched.items():
            if u > t and u not in later[t] and t not in later[u]:
                n_free += 1
                assert not (voxels & others).any(), (t, u)
    assert n_free > 0


def test_an_image_of_the_wrong_shape_is_refused() -> None:
    scanner = small_scanner()
    with pytest.raises(InputError, match=r"image to project must have the shape \(5, 6, 7\)"):
        forward(np.zeros((5, 6, 6)), TINY, scanner, some_events(scanner, 3, 1))


def test_weights_that_do_not_fit_the_events_are_refused() -> None:
    scanner = small_scanner()
    with pytest.raises(InputError, match=r"weights of events must have the shape \(3,\)"):
        back(np.zeros(4), TINY, scanner, some_events(scanner, 3, 1))


@pytest.mark.parametrize(("crystal", "tof_bin"), [(10_000, 3), (5, 13), (5, -1)])
def test_events_of_another_scanner_are_refused(crystal: int, tof_bin: int) -> None:
    scanner = small_scanner()
    events = EventBatch(
        np.array([1], np.uint32), np.array([crystal], np.uint32), np.array([tof_bin], np.int16)
    )
    with pytest.raises(InputError, match="events must name crystals below"):
        forward(np.zeros(TINY.shape), TINY, scanner, events)


def test_no_events_project_to_nothing() -> None:
    scanner = small_scanner()
    assert forward(np.ones(TINY.shape), TINY, scanner, EventBatch.empty()).shape == (0,)
    assert not back(np.zeros(0), TINY, scanner, EventBatch.empty()).any()
