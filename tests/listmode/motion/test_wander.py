"""Noise with memory: its algebra, what is read from a trace, and steps beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.motion.changes import find_changes
from listmode.motion.refine import refine_by_events
from listmode.motion.region import RegionEvents
from listmode.motion.solve import solve_places
from listmode.motion.steps import (
    Series,
    best_fit,
    fit_steps,
    gain_beside_wander,
    noise_of,
    trend_basis,
)
from listmode.motion.template import EllipsoidFit, blur_covariance, build_template
from listmode.motion.trace import FollowedBladder, MotionTrace
from listmode.motion.wander import AxisNoise, estimate_noise
from listmode.windows import Windows
from tests.listmode.motion.test_changes import SIGMA, made_trace

F64 = NDArray[np.float64]


def dense(weight: F64, gap_s: F64, walk: float) -> F64:
    """The covariance written out: two windows share the walk up to the earlier one."""
    at = np.concatenate(([0.0], np.cumsum(gap_s)))
    return np.asarray(np.diag(1.0 / weight) + walk * np.minimum(at[:, None], at[None, :]))


@pytest.mark.parametrize("walk", [0.0, 0.003, 2.0])
def test_the_covariance_is_the_one_written_out(walk: float) -> None:
    rng = np.random.default_rng(3)
    weight, gap_s = rng.uniform(1.0, 9.0, 40), rng.uniform(0.5, 3.0, 39)
    noise, whole = AxisNoise(weight, gap_s, walk), dense(weight, gap_s, walk)
    values = rng.standard_normal((40, 3))
    assert np.allclose(noise.solve(values), np.linalg.solve(whole, values))
    assert np.allclose(noise.solve(values[:, 0]), np.linalg.solve(whole, values[:, 0]))
    assert noise.log_determinant == pytest.approx(np.linalg.slogdet(whole)[1])
    steps = np.tril(np.ones((40, 40)))  # a column a step
    information = np.diag(steps.T @ np.linalg.solve(whole, steps))
    assert np.allclose(noise.step_information, information)
    # The best guess of the walk: its covariance with the trace times the inverse of the whole.
    guess = (whole - np.diag(1.0 / weight)) @ np.linalg.solve(whole, values[:, 0])
    assert np.allclose(noise.walk(values[:, 0]), guess)


@pytest.mark.stats
@pytest.mark.parametrize("wander_mm", [0.0, 0.3, 1.0])
def test_the_wander_of_a_trace_is_read_from_it(wander_mm: float) -> None:
    """20 traces, seed 11, 20 min by the second, noise of 0.4 mm. The mean of the logarithms of
    what is read is off by less than a quarter; none is read as 0.15 mm at most."""
    rng = np.random.default_rng(11)
    time = np.arange(1200.0) + 0.5
    read, inflation = [], []
    for _ in range(20):
        walk = np.cumsum(rng.standard_normal(1200)) * wander_mm / np.sqrt(300.0)
        place = rng.normal(0.0, 0.4, 1200) + walk
        noise = estimate_noise(time, place, np.full(1200, 1 / 0.16), trend_basis(time, 0.0))
        read.append(np.sqrt(300.0 * noise.walk_mm2_s))
        inflation.append(1.0 / (0.16 * noise.weight[0]))
    if wander_mm == 0.0:
        assert np.median(read) < 0.15
    else:
        assert abs(np.log(np.maximum(read, 1e-3)).mean() - np.log(wander_mm)) < 0.25
    assert np.mean(inflation) == pytest.approx(1.0, abs=0.05)


def test_noise_larger_than_stated_is_seen_and_smaller_is_not_believed() -> None:
    rng = np.random.default_rng(12)
    time = np.arange(600.0)
    columns = trend_basis(time, 0.0)
    for truth, seen in ((0.8, 0.8), (0.2, 0.4)):
        noise = estimate_noise(time, rng.normal(0, truth, 600), np.full(600, 1 / 0.16), columns)
        assert 1.0 / np.sqrt(noise.weight[0]) == pytest.approx(seen, rel=0.08)


def test_columns_that_say_the_same_twice_change_nothing() -> None:
    rng = np.random.default_rng(13)
    time = np.arange(300.0)
    value = rng.normal(0.0, 0.4, 300) + np.cumsum(rng.normal(0.0, 0.05, 300))
    columns = trend_basis(time, 0.0)
    twice = np.column_stack((columns, columns[:, 0], np.zeros(300)))
    once, again = (
        estimate_noise(time, value, np.full(300, 1 / 0.16), c) for c in (columns, twice)
    )
    assert again.walk_mm2_s == pytest.approx(once.walk_mm2_s)
    assert again.weight == pytest.approx(once.weight)


@pytest.mark.slow
@pytest.mark.stats
def test_sizes_of_steps_keep_their_intervals_while_the_patient_wanders() -> None:
    """80 traces, seeds 4000-4079: 240 intervals of 95 %. At that coverage 217 or fewer hold the
    truth with a chance of 1e-3; by the trace's own errors alone fewer than half did."""
    rng = np.random.default_rng(8)
    covered, square, bound = 0, [], []
    for seed in range(4000, 4080):
        at, wander_mm = float(rng.uniform(120.0, 1080.0)), float(rng.uniform(0.0, 1.0))
        u = rng.standard_normal(3)
        shift = tuple(rng.uniform(5.0, 15.0) * u / np.linalg.norm(u))
        trace = made_trace(
            seed=seed, steps=((at, shift),), wander_mm=wander_mm, filling_ml_min=4.0
        )
        (change,) = (c for c in find_changes(trace).items if abs(c.time_s - at) < 5.0)
        for value, (low, high), true in zip(
            change.shift_mm, change.shift_interval_mm, shift, strict=True
        ):
            covered += low <= true <= high
            square.append((value - true) ** 2)
        gap_s = np.diff(trace.time_ms / 1e3)
        series = Series(
            trace.time_ms / 1e3, trace.displacement_mm, np.tile(SIGMA**-2, (1200, 1))
        )
        known = [AxisNoise(series.weight[:, a], gap_s, wander_mm**2 / 300.0) for a in range(3)]
        bound.append((best_fit(series, [at], known).error_mm[0] ** 2).mean())
    assert covered >= 218
    assert np.sqrt(np.mean(square)) < 1.3 * np.sqrt(np.mean(bound))


def test_the_gain_beside_wander_is_the_drop_of_the_misfit() -> None:
    trace = made_trace(seed=22, duration_s=120, wander_mm=2.0)
    series = Series(trace.time_ms / 1e3, trace.displacement_mm, np.tile(SIGMA**-2, (120, 1)))
    noise = noise_of(series, [], 0.05)
    base = fit_steps(series, [], 0.05, noise).misfit
    gain = gain_beside_wander(series, noise, 0.05)
    for i in (20, 57, 101):
        at = float(series.time_s[i])
        assert gain[i] == pytest.approx(base - fit_steps(series, [at], 0.05, noise).misfit)


def test_wander_is_found_beside_a_step_and_not_made_of_it() -> None:
    trace = made_trace(seed=21, steps=((600.0, (0.0, 0.0, 12.0)),))
    weight = np.tile(SIGMA**-2, (1200, 1))
    series = Series(trace.time_ms / 1e3, trace.displacement_mm, weight)
    with_step = noise_of(series, [600.0], 0.0)
    assert all(np.sqrt(300.0 * n.walk_mm2_s) < 0.15 for n in with_step)
    assert np.sqrt(300.0 * noise_of(series, [], 0.0)[2].walk_mm2_s) > 1.0


def followed_with(weight_per_mm: float) -> tuple[FollowedBladder, Series]:
    """A bladder of contrast 1.5 that shifts by 5 mm at 100 s, read with events that weigh more
    towards one side, as a tilt that was fitted makes them."""
    rng = np.random.default_rng(5)
    covariance = blur_covariance(14.5)
    low, high = np.full(3, -110.0), np.full(3, 110.0)
    n, semi = 1_500_000, np.array([38.0, 30.0, 31.0])
    ball = rng.standard_normal((int(1.5 * n * 4.19 * semi.prod() / 220.0**3), 3))
    ball *= (rng.random(len(ball)) ** (1 / 3) / np.linalg.norm(ball, axis=1))[:, None]
    time_s = rng.random(n + len(ball)) * 200.0
    direction = rng.integers(0, len(covariance), n + len(ball)).astype(np.uint8)
    place = np.concatenate((low + rng.random((n, 3)) * (high - low), ball * semi))
    place[n:] += (time_s[n:] >= 100.0)[:, None] * np.array([0.0, 4.0, 3.0])
    root = np.linalg.cholesky(covariance)
    place[n:] += np.einsum("nij,nj->ni", root[direction[n:]], rng.standard_normal(ball.shape))
    order = np.argsort(time_s, kind="stable")
    events = RegionEvents(
        time_ms=(1000.0 * time_s[order]).astype(np.int32),
        point_mm=np.ascontiguousarray(place[order], np.float32),
        direction=direction[order],
        weight=np.exp(weight_per_mm * place[order, 1]).astype(np.float32),
        covariance=covariance,
        lower_mm=low,
        upper_mm=high,
        windows=Windows([0], [200_000]),
    )
    template = build_template(semi, 1.5, covariance)
    edges = np.arange(0, 200_001, 10_000, dtype=np.int64)
    n_windows = len(edges) - 1
    read = solve_places(
        events, template, edges, np.zeros((n_windows, 3)), np.ones(n_windows), 2
    )  # fmt: skip
    trace = MotionTrace(
        edges, read.place, read.error, read.counts, np.zeros(3), "bladder", np.ones(n_windows)
    )
    fit = EllipsoidFit(np.zeros(3), semi, 1.5, 1.0, 1.0)
    series = Series(trace.time_ms / 1e3, read.place, 1.0 / read.error**2)
    return FollowedBladder(trace, events, template, fit, np.zeros(3)), series


@pytest.mark.slow
def test_the_time_of_a_step_is_asked_with_the_weights_of_the_trace() -> None:
    """Unweighed, the time came out at the end of what was looked at, 20 s away."""
    followed, series = followed_with(0.005)
    fit = best_fit(series, [100.0])
    when = refine_by_events(followed, series, fit, 0, 103.0, 0.0, 200.0, 2.0)[0]
    assert abs(when - 100.0) < 2.0
    even = replace(followed.events, weight=np.ones(len(followed.events), np.float32))
    unweighed = replace(followed, events=even)
    assert abs(refine_by_events(unweighed, series, fit, 0, 103.0, 0.0, 200.0, 2.0)[0] - 100) > 5
