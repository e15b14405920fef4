from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.histogram import Histogram, accumulate
from listmode.motion import analyse_motion, fit_to_ct
from listmode.motion.ct_match import (
    Axes,
    CtMatch,
    attenuation_error,
    fit_of_windows,
    match_mu_map,
)
from listmode.motion.select import select_windows
from listmode.scanner import Scanner
from listmode.simulate.generate import gather
from listmode.simulate.motion import PatientMotion
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.simulate.simulation import Simulation
from listmode.source import Listmode
from listmode.windows import Windows
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode
from tests.listmode.motion.test_changes import made_trace
from tests.listmode.motion.test_select import changes_at

F64 = NDArray[np.float64]
SHIFT_MM = (5.0, -8.0, 20.0)


@pytest.fixture(scope="module")
def mu_map() -> tuple[F64, Axes]:
    """Of the phantom where it lies before it moves, on 6 mm voxels."""
    x, y, z = (np.arange(-half, half + 0.1, 6.0) for half in (240.0, 200.0, 520.0))
    mu = pregnant_phantom(filling_ml_min=0.0).sample_mu(x, y, z)
    return np.asarray(mu, dtype=np.float64), (x, y, z)


@pytest.fixture(scope="module")
def shifted_scan(quadra: Scanner) -> Listmode:
    """Two minutes at a twentieth of the low-dose counts, with photon transport."""
    simulation = Simulation(
        scanner=quadra,
        phantom=pregnant_phantom(filling_ml_min=0.0),
        dose=LOW_DOSE_FDG,
        motion=PatientMotion((0.0,), (SHIFT_MM,)),
        seed=77,
        count_fraction=0.05,
        duration_s=120.0,
        threads=1,
        table_events=60_000,
    )
    return gather(simulation)[0]


@pytest.fixture(scope="module")
def shifted(shifted_scan: Listmode) -> Histogram:
    return accumulate(shifted_scan, threads=1)


@pytest.mark.slow
def test_a_shift_of_20_mm_against_the_ct_is_told_within_its_error(
    shifted: Histogram, mu_map: tuple[F64, Axes]
) -> None:
    """The truth is the photon simulator's; 2 mm or two standard errors are allowed."""
    match = match_mu_map(shifted, *mu_map)
    assert match.is_determinable == (True, True, True)
    for axis in range(3):
        allowed = max(2.0, 2.0 * match.standard_error_mm[axis])
        assert abs(match.shift_mm[axis] - SHIFT_MM[axis]) <= allowed
        assert match.standard_error_mm[axis] <= 5.0
    assert match.note.startswith("the patient lies off the CT by x +")
    assert match.to_dict()["n_slabs"] == match.n_slabs >= 3


@pytest.mark.slow
def test_too_few_counts_and_an_empty_map_are_not_determinable(
    quadra: Scanner, mu_map: tuple[F64, Axes]
) -> None:
    few = make_listmode(quadra, MadeUpScan(duration_s=0.5, seed=61))
    match = match_mu_map(accumulate(few), *mu_map)
    assert match.is_determinable == (False, False, False)
    assert "not determinable with so few counts" in match.note
    assert match.to_dict()["shift_mm"] == [None, None, None]
    scan = accumulate(make_listmode(quadra, MadeUpScan(duration_s=10.0, seed=62)))
    empty = match_mu_map(scan, np.zeros_like(mu_map[0]), mu_map[1])
    assert "shows no body" in empty.note
    without = match_mu_map(replace(scan, has_tof=False), *mu_map)
    assert "without TOF" in without.note


def test_a_mu_map_needs_its_own_axes(quadra: Scanner, mu_map: tuple[F64, Axes]) -> None:
    scan = accumulate(make_listmode(quadra, MadeUpScan(duration_s=0.5, seed=63)))
    with pytest.raises(InputError, match="a mu-map needs one place a voxel"):
        match_mu_map(scan, mu_map[0][1:], mu_map[1])


@pytest.mark.slow
def test_the_expected_error_grows_with_the_misfit(mu_map: tuple[F64, Axes]) -> None:
    none = attenuation_error(*mu_map, (0.0, 0.0, 0.0))
    some = attenuation_error(*mu_map, (0.0, 0.0, 10.0))
    more = attenuation_error(*mu_map, (0.0, 0.0, 20.0))
    assert none == (0.0, 0.0)
    assert 0.0 < some[0] < more[0]
    assert 0.02 < some[1] < more[1] < 1.0


def test_windows_that_fit_the_ct_are_preferred_at_up_to_twice_the_noise() -> None:
    trace = made_trace(seed=1)
    changes = changes_at(trace, (480.0, -20.0))
    longest = select_windows(trace, changes)
    assert str(longest.windows) == "482-1200 s"
    fits = select_windows(trace, changes, offset_mm=np.zeros(3))
    assert str(fits.windows) == "0-478 s"
    each = changes.motion_mm(trace.time_ms / 1000.0)
    assert str(select_windows(trace, changes, offset_mm=each).windows) == "0-478 s"
    unknown = np.array([0.0, 0.0, np.nan])
    assert select_windows(trace, changes, offset_mm=unknown).windows == longest.windows
    too_short = changes_at(trace, (200.0, -20.0))
    assert str(select_windows(trace, too_short, offset_mm=np.zeros(3)).windows) == "202-1200 s"


def test_offsets_must_fit_the_trace() -> None:
    trace = made_trace(seed=1)
    with pytest.raises(InputError, match="offsets from the mu-map must be three numbers"):
        select_windows(trace, changes_at(trace, (500.0, 13.0)), offset_mm=np.zeros((7, 3)))


@pytest.mark.slow
def test_the_analysis_says_how_the_windows_lie_to_the_ct(
    quadra: Scanner, mu_map: tuple[F64, Axes]
) -> None:
    """A box of activity is no pregnant woman: what matters is that the answer is carried on."""
    listmode = make_listmode(quadra, MadeUpScan(duration_s=20.0, seed=64))
    result = analyse_motion(listmode, mu_map=mu_map)
    assert result.ct_match is not None
    assert result.ct_offset_mm is not None
    assert result.ct_offset_mm.shape == (result.trace.n_windows, 3)
    assert result.to_dict()["ct_match"] == result.ct_match.to_dict()
    follows = analyse_motion(listmode, mu_map=mu_map, is_mu_fixed=False)
    assert follows.ct_match == result.ct_match
    assert follows.ct_warning == ""
    assert analyse_motion(listmode).ct_match is None


@pytest.mark.slow
def test_windows_off_the_ct_are_told_with_the_error_of_suvs(
    shifted_scan: Listmode, mu_map: tuple[F64, Axes]
) -> None:
    """The whole scan lies off; a mu-map that was moved along fits."""
    result = analyse_motion(shifted_scan, mu_map=mu_map, threads=1)
    off = fit_to_ct(result, Windows.parse("0-60"), mu_map)
    assert off is not None
    assert off.is_determinable == (True, True, True)
    for axis in range(3):
        allowed = max(2.0, 2.0 * off.standard_error_mm[axis])
        assert abs(off.shift_mm[axis] - SHIFT_MM[axis]) <= allowed
    assert off.suv_error is not None
    assert "SUVs err by" in off.warning
    assert off.to_dict()["suv_error_median_95"] == list(off.suv_error)
    moved = fit_to_ct(result, Windows.parse("0-60"), mu_map, moved_mm=SHIFT_MM)
    assert moved is not None
    assert moved.warning == ""
    assert moved.suv_error is None


def test_an_axis_that_cannot_be_told_is_said_so_and_warns_of_nothing(
    mu_map: tuple[F64, Axes],
) -> None:
    match = CtMatch((1.0, 0.0, 9.0), (1.5, math.inf, 2.0), 5, "")
    fit = fit_of_windows(match, np.array([1.0, np.nan, 9.0]), *mu_map, fit_mm=5.0)
    assert "x +1.0 ± 1.5 mm, y not determinable, z +9.0 ± 2.0 mm" in fit.note
    assert "+1, +0, +9 mm" in fit.warning
    assert fit.to_dict()["shift_mm"] == [1.0, None, 9.0]
    near = fit_of_windows(match, np.array([1.0, np.nan, 4.0]), *mu_map, fit_mm=5.0)
    assert near.warning == ""
    unsure = CtMatch((0.0, 0.0, 0.0), (math.inf,) * 3, 2, "fit to the CT: not determinable")
    none = fit_of_windows(unsure, np.full(3, np.nan), *mu_map, fit_mm=5.0)
    assert (none.note, none.warning) == (unsure.note, "")


def test_an_analysis_without_a_map_says_nothing_of_a_fit(quadra: Scanner) -> None:
    listmode = make_listmode(quadra, MadeUpScan(duration_s=4.0, seed=65))
    result = analyse_motion(listmode)
    z = np.arange(3.0)
    assert fit_to_ct(result, listmode.extent, (np.zeros((3, 3, 3)), (z, z, z))) is None
