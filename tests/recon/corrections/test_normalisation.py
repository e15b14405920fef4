"""Efficiency of crystal pairs."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from recon.corrections.normalisation import pair_efficiency
from tests.oracles import all_pairs, exhaustive_rates, small_scanner


def test_efficiencies_are_those_of_the_formula() -> None:
    scanner = small_scanner()
    a, b = all_pairs(scanner)
    got = pair_efficiency(scanner, a, b)
    np.testing.assert_allclose(got, exhaustive_rates(scanner, a, b), rtol=1e-5)


@pytest.mark.kernel
def test_the_efficiency_of_two_facing_crystals_by_hand() -> None:
    scanner = small_scanner()
    got = pair_efficiency(scanner, np.array([451]), np.array([483]))
    # Two cells of 64 mm², 214 mm apart and both 12 mm off their block's middle.
    r = np.hypot(214, 24)
    stop = 1 - np.exp(-0.083 * 20 * 0.95**2 / (214 / r))
    by_hand = 1e-3 / (2 * np.pi) * (64 * 214 / r) ** 2 / r**2 * stop**2
    assert float(got[0]) == pytest.approx(by_hand, rel=1e-4)


def test_measured_efficiencies_multiply_and_dead_crystals_count_nothing() -> None:
    scanner = small_scanner()
    a, b = all_pairs(scanner)
    rng = np.random.default_rng(1)
    efficiency = rng.random(scanner.n_crystals).astype(np.float32)
    efficiency[7] = 0
    got = pair_efficiency(scanner, a, b, efficiency)
    plain = pair_efficiency(scanner, a, b)
    np.testing.assert_allclose(got, plain * efficiency[a] * efficiency[b], rtol=1e-5)
    assert not got[a == 7].any()


def test_efficiencies_of_another_scanner_are_refused() -> None:
    with pytest.raises(InputError, match=r"must be 1024 numbers.*but their shape is \(3,\)"):
        pair_efficiency(small_scanner(), np.array([1]), np.array([2]), np.ones(3, np.float32))


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_impossible_efficiencies_are_refused(bad: float) -> None:
    efficiency = np.ones(1024, np.float32)
    efficiency[5] = bad
    with pytest.raises(InputError, match="finite and not negative, but crystal 5 has"):
        pair_efficiency(small_scanner(), np.array([1]), np.array([2]), efficiency)
