"""Attenuation against analytic chords."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from recon.corrections.attenuation import attenuation_factors
from recon.image import Grid, Volume
from tests.oracles import ellipsoid_chord, ellipsoid_volume, small_scanner, some_events

CENTRE, SEMI = (6.0, -9.0, 8.0), (42.0, 33.0, 38.0)


def test_factors_are_those_of_analytic_chords_in_either_order_of_the_pair() -> None:
    scanner = small_scanner(n_units=4)
    grid = Grid.centred((70, 70, 70), 2.0)
    mu = Volume((0.096 * ellipsoid_volume(grid, CENTRE, SEMI)).astype(np.float32), grid, "1/cm")
    events = some_events(scanner, 4000, 2)
    p = scanner.crystal_position_mm.astype(np.float64)
    a, b = events.crystal_a, events.crystal_b
    chord = ellipsoid_chord(p[a], p[b], CENTRE, SEMI)
    got = attenuation_factors(mu, scanner, a, b)
    assert np.abs(got - np.exp(-0.0096 * chord)).mean() < 1e-3
    clear = chord > 45  # others may graze the rim, where voxels are coarse
    assert clear.sum() > 100
    np.testing.assert_allclose(got[clear], np.exp(-0.0096 * chord)[clear], atol=0.006)
    assert got.min() < 0.55
    np.testing.assert_allclose(attenuation_factors(mu, scanner, b, a), got, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        (0.096, "1", "must be in 1/cm at 511 keV, but this volume is in '1'"),
        (9.6, "1/cm", "must lie between 0 and 2 per cm"),
        (-0.1, "1/cm", "must lie between 0 and 2 per cm"),
        (0.0, "1/cm", "must hold some matter, but every voxel of this one is 0"),
    ],
)
def test_what_is_no_mu_map_is_refused(values: float, unit: str, message: str) -> None:
    grid = Grid.centred((4, 4, 4), 10.0)
    mu = Volume(np.full(grid.shape, values, np.float32), grid, unit)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        attenuation_factors(mu, small_scanner(), np.array([1]), np.array([40]))
