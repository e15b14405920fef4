"""Penalised likelihood for few counts: the relative difference prior and its ascent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from recon import _kernels_prior as _kernels
from recon.image import Grid, Volume
from recon.osem import Problem, correct, n_in_subset, progress_of
from recon.projector import run_in_threads

F32 = NDArray[np.float32]
Real = NDArray[np.floating[Any]]
Method = Literal["bsrem", "svrg"]

MAX_FACTOR = 1.5  # of an update; with 4 single voxels in air run away under SVRG


@dataclass(frozen=True)
class RelativeDifference:
    """Ascent of the likelihood less the relative difference prior; an algorithm of ``run``.

    Parameters
    ----------
    strength
        Weight of the prior, without unit. The prior is scaled by the counts per Bq/mL of the
        two voxels, so one value smooths alike at any voxel size, duration and place.
    gamma
        How much edges are spared: 0 is a quadratic prior relative to the activity; 2 is usual.
    epsilon_bq_ml
        Keeps the prior smooth where both voxels are empty, Bq/mL; far below the activities.
    method
        ``"bsrem"`` lets the steps fall; ``"svrg"`` takes the noise of the subsets off them, for
        one image a subset and a pass over the events every second iteration. BSREM is nearer to
        the maximum after up to ten passes, SVRG gets nearer in the end.
    first_step, relaxation
        Iteration ``k`` after the first uses the step ``first_step / (1 + relaxation (k - 1))``.

    Raises
    ------
    InputError
        If a number is out of range.

    Notes
    -----
    The penalty is ``sum w_jk kappa_j kappa_k (x_j - x_k)**2 / (x_j + x_k + gamma |x_j - x_k| +
    epsilon)`` over pairs of neighbours, w the inverse of their distance in units of the least
    voxel size (Nuyts et al., IEEE Trans Nucl Sci 2002;49:56-60, doi 10.1109/TNS.2002.998681);
    ``kappa_j**2 = strength * D (H's)_j``. Iteration 1 is OSEM. After it an update is
    ``x <- x + a P (g - p)`` with the gradients g of the likelihood, estimated from one subset,
    and p of the penalty, and ``P = x / (D H's + 2 x h)``, h the diagonal of its Hessian:
    the EM preconditioner and the prior's own like resistors in parallel (the curvature of a
    chequerboard is twice the diagonal's). No update changes a voxel by more than a factor of
    1.5: the ratio of an event that the image cannot explain yet has no bound. Before
    the first such update voxels are lifted to epsilon: a subset without an event near a voxel
    has left it at 0, where it would stay. Subsets: BSREM (Ahn, Fessler, IEEE Trans Med Imaging
    2003;22:613-626, doi 10.1109/TMI.2003.812251), or SVRG with the subset gradients of an
    anchor image (Twyman et al., IEEE Trans Med Imaging 2023;42:29-41, doi
    10.1109/TMI.2022.3203237).
    """

    strength: float = 0.01
    gamma: float = 2.0
    epsilon_bq_ml: float = 1.0
    method: Method = "bsrem"
    first_step: float = 1.0
    relaxation: float = 0.05

    def __post_init__(self) -> None:
        if not (self.strength > 0 and self.gamma >= 0 and self.epsilon_bq_ml > 0):
            raise InputError(
                "a relative difference prior needs a strength above 0, gamma of 0 or more and "
                f"epsilon above 0, but they are {self.strength:g}, {self.gamma:g} and "
                f"{self.epsilon_bq_ml:g} Bq/mL; 0.01, 2 and 1 are usual"
            )
        if self.method not in ("svrg", "bsrem"):
            raise InputError(
                f"the method must be svrg or bsrem, but it is {self.method!r}; choose one"
            )
        if not (0 < self.first_step <= 2 and self.relaxation >= 0):
            raise InputError(
                "the first step must lie in (0, 2] and the relaxation be 0 or more, but they "
                f"are {self.first_step:g} and {self.relaxation:g}; 1 and 0.05 are usual"
            )

    def __call__(self, problem: Problem) -> Iterator[Volume]:
        """Reconstruct; yield the image after each iteration."""
        return ascend(problem, self)

    def prior(self, grid: Grid, expected: Real) -> Prior:
        """Give the prior of a problem: ``expected`` is ``D H's``, counts per Bq/mL."""
        kappa = np.sqrt(self.strength * expected)
        return Prior(grid, kappa.astype(expected.dtype), self.gamma, self.epsilon_bq_ml)


@dataclass(frozen=True, eq=False)
class Prior:
    """The relative difference prior on a grid.

    Parameters
    ----------
    grid
        Gives the distances.
    kappa
        Weight of each voxel; a pair's is their product. 0 leaves a voxel out. Shape
        ``grid.shape``.
    gamma, epsilon
        See :class:`RelativeDifference`; epsilon in the image's unit.
    """

    grid: Grid
    kappa: Real
    gamma: float
    epsilon: float

    @property
    def weight(self) -> Real:
        """Inverse distance by steps along x, y, z, in units of the least voxel size."""
        unit = min(self.grid.voxel_mm)
        steps = np.stack(np.meshgrid(*[np.arange(2) * v / unit for v in self.grid.voxel_mm],
                                     indexing="ij"))  # fmt: skip
        distance = np.sqrt((steps**2).sum(axis=0))
        distance[0, 0, 0] = 1.0
        return np.asarray(1.0 / distance, self.kappa.dtype)

    def value(self, image: Real, threads: int = 2) -> float:
        """Give the penalty of an image of no negative value."""
        real = self.kappa.dtype.type
        parts = run_in_threads(
            lambda edge: _kernels.prior_value(
                image, self.kappa, self.weight, real(self.gamma), real(self.epsilon), *edge
            ),
            self._slabs(),
            threads,
        )
        return math.fsum(parts)

    def slopes(self, image: Real, threads: int = 2) -> tuple[Real, Real]:
        """Give gradient and diagonal of the Hessian, both of the image's shape."""
        image = np.ascontiguousarray(image, self.kappa.dtype)
        slope, curvature = np.empty_like(image), np.empty_like(image)
        real = self.kappa.dtype.type

        def work(edge: tuple[int, int]) -> None:
            _kernels.prior_slopes(
                image, self.kappa, self.weight, real(self.gamma), real(self.epsilon), *edge,
                slope, curvature,
            )  # fmt: skip

        run_in_threads(work, self._slabs(), threads)
        return slope, curvature

    def _slabs(self) -> list[tuple[int, int]]:
        return list(pairwise([*range(0, self.grid.shape[0], 4), self.grid.shape[0]]))


class _Anchor:
    """Back projections of all subsets at one image; they take its noise off later steps."""

    def __init__(self, problem: Problem, image: F32) -> None:
        self.image = image
        self.ratios = [_ratio(problem, k, image)[0] for k in range(problem.settings.n_subsets)]
        self.total = np.sum(self.ratios, axis=0, dtype=np.float32)


def _ratio(problem: Problem, subset: int, image: F32) -> tuple[F32, int]:
    """Give ``H' A'(1 / (A H x + c))`` over one subset, and its events left unexplained."""
    ratio, n = correct(problem.store, subset, problem.blur(image), problem.threads)
    return problem.blur(ratio), n


def ascend(problem: Problem, settings: RelativeDifference) -> Iterator[Volume]:
    """Reconstruct with a prior; yield the image after each iteration.

    Parameters
    ----------
    problem
        From :func:`recon.reconstruct.prepare`.
    settings
        Prior and steps.

    Yields
    ------
    Volume
        Bq/mL at tick zero; its provenance counts the events that neither the image nor the
        additive term could explain.
    """
    n_subsets, n_iterations = problem.settings.n_subsets, problem.settings.n_iterations
    expected = problem.expected_per_unit()
    prior = settings.prior(problem.grid, expected)
    image, before, step, n_unexplained = problem.first_image(expected), None, 0, 0
    anchor: _Anchor | None = None
    if (state := problem.state()) is not None:
        yield from problem.earlier(state)
        step, n_unexplained = state.step, int(state.numbers["n_unexplained"])
        image, before = state.arrays["image"], state.arrays.get("before")
        before = image if problem.settings.stop_change and step % n_subsets == 0 else before
        if "anchor" in state.arrays:
            anchor = _Anchor(problem, state.arrays["anchor"])
    while step < n_iterations * n_subsets:
        iteration = step // n_subsets
        n_unexplained = n_unexplained if step % n_subsets else 0
        if step == n_subsets:
            image = np.maximum(image, np.float32(settings.epsilon_bq_ml) * (expected > 0))
        if settings.method == "svrg" and step % n_subsets == 0 and iteration % 2 == 1:
            anchor = _Anchor(problem, image)
        with progress_of(problem, step) as stage:
            for subset in range(step % n_subsets, n_subsets):
                ratio, n = _ratio(problem, subset, image)
                if iteration == 0:
                    image = _em(image, ratio, expected, n_subsets)
                else:
                    ratio = _whole(ratio, subset, anchor, n_subsets)
                    size = settings.first_step / (1 + settings.relaxation * (iteration - 1))
                    image = _climb(image, ratio, expected, prior, size, problem.threads)
                n_unexplained += n
                step += 1
                problem.keep(step, n_unexplained, image=image, before=before,
                             anchor=None if anchor is None else anchor.image)  # fmt: skip
                stage.advance(n_in_subset(problem.store, subset))
        before = image if problem.settings.stop_change else None
        yield problem.iterate(image, step, n_unexplained)


def _em(image: F32, ratio: F32, expected: F32, n_subsets: int) -> F32:
    """Update by EM: the first iteration."""
    factor = np.divide(
        ratio * n_subsets, expected, out=np.zeros_like(ratio), where=expected > 0
    )
    return np.asarray(image * factor, np.float32)


def _whole(ratio: F32, subset: int, anchor: _Anchor | None, n_subsets: int) -> F32:
    """Estimate the whole scan's back projection of ratios from one subset's."""
    if anchor is None:
        return ratio * np.float32(n_subsets)
    return (ratio - anchor.ratios[subset]) * np.float32(n_subsets) + anchor.total


def _climb(
    image: F32, ratio: F32, expected: F32, prior: Prior, size: float, threads: int
) -> F32:
    """Take one preconditioned step; voxels where nothing is seen stay zero."""
    slope, curvature = prior.slopes(image, threads)
    below = expected + 2 * image * curvature
    change = np.divide(
        np.float32(size) * (ratio - expected - slope), below, out=np.zeros_like(image),
        where=expected > 0,
    )  # fmt: skip
    return np.asarray(image * np.clip(1 + change, 1 / MAX_FACTOR, MAX_FACTOR), np.float32)
