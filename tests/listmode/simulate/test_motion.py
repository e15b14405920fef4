"""The patient's motion and the dose."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.phantom import point_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG, STANDARD, Dose, load_dose


def test_a_still_patient_does_not_move() -> None:
    assert not STILL.displacement_mm(np.arange(5.0)).any()


def test_steps_add_up() -> None:
    motion = PatientMotion((10.0, 20.0), ((0.0, 0.0, 13.0), (1.0, -2.0, -3.0)))
    at = motion.displacement_mm([9.999, 10.0, 25.0])
    assert at.tolist() == [[0, 0, 0], [0, 0, 13], [1, -2, 10]]
    assert motion.shifts[0] == {"time_s": 10.0, "shift_mm": [0.0, 0.0, 13.0]}


def test_a_ramp_is_half_way_at_half_time() -> None:
    motion = PatientMotion((10.0,), ((0.0, 0.0, 13.0),), ramp_s=2.0)
    assert motion.displacement_mm([11.0])[0, 2] == pytest.approx(6.5)


def test_breathing_swings_along_the_axis() -> None:
    z = PatientMotion(breathing_mm=1.5, breathing_period_s=4.0).displacement_mm(
        np.arange(0, 400, 0.01)
    )
    assert z[:, 2].max() == pytest.approx(1.5, rel=1e-3)
    assert z[:, 2].mean() == pytest.approx(0.0, abs=1e-6)
    assert not z[:, :2].any()


@pytest.mark.stats
def test_wander_spreads_like_a_random_walk_and_repeats() -> None:
    """400 seeded courses; 5 sigma of the standard deviation: false alarms 6e-7."""
    ends = [
        PatientMotion(wander_mm=1.0, wander_seed=k).displacement_mm([300.0])[0, 2]
        for k in range(400)
    ]
    assert np.std(ends) == pytest.approx(1.0, abs=5 / np.sqrt(2 * 400))
    motion = PatientMotion(wander_mm=1.0, wander_seed=7)
    early = motion.displacement_mm([0.0, 33.0])
    assert early.tolist() == motion.displacement_mm([0.0, 33.0, 900.0])[:2].tolist()
    assert not early[0].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step_time_s": (1.0,)}, "each step needs a time and a displacement, but there are 1"),
        (
            {"step_time_s": (2.0, 1.0), "step_mm": ((0, 0, 1), (0, 0, 1))},
            "steps must ascend in time",
        ),
        ({"breathing_period_s": 0.0}, "a breath must last some time"),
    ],
)
def test_impossible_motion_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PatientMotion(**wrong)  # type: ignore[arg-type]


def test_low_dose_has_a_floor() -> None:
    assert LOW_DOSE_FDG.injected_bq(40.0) == 15e6
    assert LOW_DOSE_FDG.injected_bq(74.0) == pytest.approx(22.2e6)
    assert STANDARD.injected_bq(70.0) == pytest.approx(210e6)
    assert load_dose("standard") is STANDARD


def test_the_protocol_carries_uptake_and_count_fraction() -> None:
    protocol = LOW_DOSE_FDG.scan_protocol(74.0, 0.1)
    assert protocol.count_fraction == 0.1
    assert protocol.injection_time_s == -3600.0
    # exp(-ln 2 60 / 109.77) = 0.6846
    assert protocol.activity_at_zero_bq == pytest.approx(22.2e6 * 0.6846, rel=1e-3)


def test_a_dose_in_a_phantom_is_the_phantom_s_activity() -> None:
    phantom = point_phantom(activity_bq=5e5)
    dose = Dose.in_phantom(phantom, 10.0)
    assert dose.scan_protocol(1.0).activity_at_zero_bq == pytest.approx(5e5)


def test_a_dose_needs_activity_and_a_known_name() -> None:
    with pytest.raises(InputError, match="must have activity and duration"):
        Dose("nothing", 0.0)
    with pytest.raises(InputError, match="must be one of low-dose-fdg, standard, but 'high'"):
        load_dose("high")
