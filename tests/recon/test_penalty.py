"""The relative difference prior and the ascent to the penalised maximum."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from recon.image import Grid
from recon.osem import OsemSettings, Problem, osem, relative_change
from recon.penalty import Prior, RelativeDifference
from recon.projector import forward
from recon.reconstruct import prepare
from recon.settings import load_settings
from tests.oracles import dense_matrix
from tests.recon.test_osem import _small_case

F64 = NDArray[np.float64]
GRID = Grid((4, 3, 5), (2.0, 2.0, 3.0), (0.0, 0.0, 0.0))
seeds = st.integers(0, 2**32 - 1)


def _prior(gamma: float = 2.0, epsilon: float = 0.1, seed: int = 1) -> Prior:
    kappa = np.random.default_rng(seed).uniform(0.5, 2.0, GRID.shape)
    return Prior(GRID, kappa, gamma, epsilon)


def _image(seed: int) -> F64:
    return np.random.default_rng(seed).uniform(0.0, 4.0, GRID.shape)


def _slow_value(prior: Prior, image: F64) -> float:
    """Sum over all pairs of neighbours, straight from the formula."""
    voxel = np.array(prior.grid.voxel_mm)
    total = 0.0
    for a, b in itertools.combinations(np.ndindex(image.shape), 2):
        step = np.subtract(a, b)
        if np.abs(step).max() == 1:
            w = voxel.min() / np.linalg.norm(step * voxel)
            change = image[a] - image[b]
            below = image[a] + image[b] + prior.gamma * abs(change) + prior.epsilon
            total += w * float(prior.kappa[a] * prior.kappa[b]) * change**2 / below
    return total


@pytest.mark.kernel
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_value_is_that_of_the_formula(gamma: float) -> None:
    prior, image = _prior(gamma), _image(3)
    assert prior.value(image, 2) == pytest.approx(_slow_value(prior, image), rel=1e-12)


@pytest.mark.kernel
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_gradient_and_curvature_are_those_of_the_value(gamma: float) -> None:
    prior, image = _prior(gamma), _image(4) + 0.1
    slope, curvature = prior.slopes(image)
    h = 1e-5
    for voxel in np.ndindex(GRID.shape):
        step = np.zeros(GRID.shape)
        step[voxel] = h
        up, down = prior.value(image + step), prior.value(image - step)
        assert slope[voxel] == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-8)
        bend = (prior.slopes(image + step)[0] - prior.slopes(image - step)[0])[voxel]
        assert curvature[voxel] == pytest.approx(bend / (2 * h), rel=1e-5, abs=1e-8)


@given(seeds, seeds, st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0, 2.0, 10.0]))
def test_the_prior_is_convex(one: int, two: int, share: float, gamma: float) -> None:
    prior, a, b = _prior(gamma), _image(one), _image(two)
    between = prior.value(share * a + (1 - share) * b)
    chord = share * prior.value(a) + (1 - share) * prior.value(b)
    assert between <= chord * (1 + 1e-12) + 1e-12


@given(seeds, st.floats(0.01, 100.0))
def test_the_prior_scales_with_the_activity(seed: int, scale: float) -> None:
    image = _image(seed)
    prior = _prior(epsilon=1.0)
    scaled = replace(prior, epsilon=scale)
    assert scaled.value(scale * image) == pytest.approx(scale * prior.value(image), rel=1e-9)


def test_an_even_image_costs_nothing_and_an_edge_is_spared_by_gamma() -> None:
    even = np.full(GRID.shape, 3.0)
    assert _prior().value(even) == 0
    np.testing.assert_array_equal(_prior().slopes(even)[0], 0)
    edge = even.copy()
    edge[2:] = 30.0
    assert _prior(gamma=2.0).value(edge) < 0.5 * _prior(gamma=0.0).value(edge)


def test_a_voxel_of_no_weight_neither_pulls_nor_is_pulled() -> None:
    prior = _prior()
    prior.kappa[1, 1, 1] = 0
    image = _image(5)
    other = image.copy()
    other[1, 1, 1] = 100.0
    assert prior.value(image) == prior.value(other)
    np.testing.assert_array_equal(prior.slopes(image)[0], prior.slopes(other)[0])
    assert prior.slopes(other)[0][1, 1, 1] == 0


def test_slopes_have_the_same_bits_at_any_number_of_threads() -> None:
    image = np.random.default_rng(1).random((9, 7, 8)).astype(np.float32)
    prior = Prior(Grid.centred((9, 7, 8), 2.0), np.ones_like(image), 2.0, 0.1)
    one, four = prior.slopes(image, 1), prior.slopes(image, 4)
    np.testing.assert_array_equal(one[0], four[0])
    np.testing.assert_array_equal(one[1], four[1])


def _with_iterations(problem: Problem, n: int) -> Problem:
    return replace(problem, settings=replace(problem.settings, n_iterations=n))


@pytest.mark.slow
def test_the_ascent_ends_at_the_maximum_found_by_another_method() -> None:
    """A dense matrix and L-BFGS-B in double precision, on 3 x 3 x 4 voxels."""
    listmode = _small_case()[0]
    events = listmode.prompts
    part = EventBatch(events.crystal_a[:400], events.crystal_b[:400], events.tof_bin[:400])
    listmode = MemoryListmode(
        listmode.scanner, listmode.protocol, part, np.array([0, len(part)])
    )
    grid = Grid.centred((3, 3, 4), 20.0)
    penalty = RelativeDifference(0.3, epsilon_bq_ml=0.01, method="svrg", relaxation=0.02)
    settings = OsemSettings(n_iterations=60, n_subsets=4, psf_fwhm_mm=0.0,
                            n_sensitivity_pairs=200_000)  # fmt: skip
    with prepare(listmode, listmode.extent, grid=grid, settings=settings) as problem:
        *_, found = penalty(problem)
        expected = problem.expected_per_unit().astype(np.float64)
    prior = penalty.prior(grid, expected)
    matrix = dense_matrix(grid, listmode.scanner, listmode.prompts, 3.0)
    matrix = matrix.reshape(len(listmode.prompts), -1) * (expected > 0).ravel()
    matrix = matrix[matrix.sum(axis=1) > 0]

    def cost(x: F64) -> tuple[float, F64]:
        image = x.reshape(grid.shape)
        line = matrix @ x
        value = expected.ravel() @ x - np.log(line).sum() + prior.value(image)
        slope = expected.ravel() - matrix.T @ (1 / line) + prior.slopes(image)[0].ravel()
        return value, slope

    start = np.full(grid.n_voxels, float(found.values.mean()))
    best = minimize(cost, start, jac=True, method="L-BFGS-B",
                    bounds=[(1e-9, None)] * start.size,
                    options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9})  # fmt: skip
    # A tenth of a unit of likelihood is far inside the noise; the top is flat.
    assert cost(found.values.astype(np.float64).ravel())[0] - best.fun < 0.1
    assert relative_change(found.values, best.x.reshape(grid.shape)) < 0.05


def _objective(problem: Problem, penalty: RelativeDifference, image: F64, seen: F64) -> float:
    """Penalised likelihood, up to a constant, of the events that the grid can explain."""
    expected = problem.expected_per_unit().astype(np.float64)
    penalty_value = penalty.prior(problem.grid, expected).value(image)
    return float(np.log(seen[seen > 0]).sum() - (expected * image).sum() - penalty_value)


@pytest.mark.parametrize("psf_fwhm_mm", [0.0, 9.0])
def test_both_ways_climb_and_svrg_is_nearer_to_the_top(psf_fwhm_mm: float) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=12, n_subsets=4, psf_fwhm_mm=psf_fwhm_mm)
    with prepare(
        listmode, listmode.extent, grid=grid, settings=settings, sensitivity=sensitivity
    ) as problem:

        def heights(penalty: RelativeDifference, n: int = 12) -> F64:
            found = []
            for image in penalty(_with_iterations(problem, n)):
                sharp = problem.blur(np.asarray(image.values, np.float32))
                seen = forward(sharp, grid, listmode.scanner, listmode.prompts)
                values = image.values.astype(np.float64)
                found.append(_objective(problem, penalty, values, seen.astype(np.float64)))
            return np.array(found)

        top = heights(RelativeDifference(0.3, method="svrg", relaxation=0.3), 40).max()
        svrg, bsrem = (
            heights(RelativeDifference(0.3, method=m, relaxation=0.2))
            for m in ("svrg", "bsrem")
        )
    assert (np.diff(svrg) > 0).all()
    assert (np.diff(bsrem) > 0).all()
    left = (top - svrg[-1]) / (top - svrg[0]), (top - bsrem[-1]) / (top - bsrem[0])
    assert left[0] < 0.01
    assert left[0] < left[1] < 0.03


def test_the_first_iteration_is_osem_and_more_strength_is_smoother() -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=4, n_subsets=3)
    with prepare(
        listmode, listmode.extent, grid=grid, settings=settings, sensitivity=sensitivity
    ) as problem:
        plain = next(osem(problem))
        images = [list(RelativeDifference(s)(problem)) for s in (0.01, 0.1, 1.0)]
    np.testing.assert_allclose(images[0][0].values, plain.values, rtol=1e-4, atol=1e-6)
    roughness = [
        float(np.abs(np.diff(run[-1].values, axis=0)).sum() / run[-1].values.sum())
        for run in images
    ]
    assert roughness[0] > roughness[1] > roughness[2]


def test_an_image_is_zero_where_nothing_is_seen_and_never_negative() -> None:
    listmode, _, _ = _small_case()
    wide = Grid.centred((41, 41, 15), 10.0)
    settings = OsemSettings(n_iterations=3, n_subsets=3, n_sensitivity_pairs=100_000)
    with prepare(listmode, listmode.extent, grid=wide, settings=settings) as problem:
        *_, image = RelativeDifference(0.1)(problem)
        unseen = problem.expected_per_unit() == 0
    assert unseen.any()
    assert not image.values[unseen].any()
    assert image.values.min() >= 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": 0.0}, "needs a strength above 0"),
        ({"gamma": -1.0}, "gamma of 0 or more"),
        ({"epsilon_bq_ml": 0.0}, "epsilon above 0"),
        ({"method": "newton"}, "method must be svrg or bsrem, but it is 'newton'"),
        ({"first_step": 3.0}, r"first step must lie in \(0, 2\]"),
    ],
)
def test_impossible_penalties_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RelativeDifference(**wrong)


def test_the_settings_file_switches_to_the_penalty(tmp_path: Any) -> None:
    path = tmp_path / "penalty.toml"
    path.write_text('[penalty]\nstrength = 0.2\nmethod = "svrg"\n', "utf-8")
    assert load_settings(path).penalty == RelativeDifference(0.2, method="svrg")
    assert load_settings(None).penalty is None
    path.write_text("[penalty]\nstrenght = 0.2\n", "utf-8")
    with pytest.raises(InputError, match="did you mean 'strength'"):
        load_settings(path)
