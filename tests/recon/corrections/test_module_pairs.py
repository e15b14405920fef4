"""Efficiencies by pair of modules in the model: per pair, and summed over all LORs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from listmode.events import EventBatch
from listmode.scanner import Scanner, TofModel
from recon.corrections.acceptance import PartnerSample, partners
from recon.corrections.normalisation import pair_efficiency
from recon.image import Grid
from recon.projector import back
from recon.sensitivity import compute_sensitivity
from tests.listmode.test_module_pairs import tables
from tests.oracles import all_pairs, exhaustive_rates, small_scanner

GRID = Grid.centred((17, 17, 19), 8.0)


def scanner_with_tables(*, has_factors: bool = True) -> Scanner:
    scanner = small_scanner(tof=TofModel(5, 200.0, 220.0))
    return replace(
        scanner, module_pairs=tables(scanner.n_crystals, n_elements=4, has_factors=has_factors)
    )


def expected_rates(scanner: Scanner, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give tables at the mean of the geometric rates, or those of pairs in coincidence."""
    pairs = scanner.module_pairs
    assert pairs is not None
    plain = replace(scanner, module_pairs=None)
    group = pairs.group[pairs.crystal_module[b], pairs.crystal_module[a]]
    if pairs.factor is None:
        return np.asarray(exhaustive_rates(plain, a, b) * (group >= 0))
    factor = pairs.factor[group, pairs.crystal_element[b], pairs.crystal_element[a]]
    factor = np.where(group >= 0, factor, 0.0)
    one, two = np.triu_indices(scanner.n_crystals, 1)
    normal = scanner.crystal_normal
    good = (normal[one] * normal[two]).sum(axis=1) < 0
    good &= pairs.groups(one, two) >= 0
    geometric = exhaustive_rates(plain, one[good], two[good]).mean()
    return np.asarray(factor * geometric / pairs.factors(one[good], two[good]).mean())


@pytest.mark.parametrize("has_factors", [True, False])
def test_rate_of_a_pair_is_by_its_table(has_factors: bool) -> None:
    scanner = scanner_with_tables(has_factors=has_factors)
    rng = np.random.default_rng(1)
    efficiency = rng.uniform(0.5, 1.5, scanner.n_crystals).astype(np.float32)
    a, b = all_pairs(replace(scanner, module_pairs=None))
    got = pair_efficiency(scanner, a, b, efficiency)
    expected = expected_rates(scanner, a, b) * efficiency[a] * efficiency[b]
    assert np.array_equal(got == 0.0, expected == 0.0)
    # the mean by geometry is that of a sample, the pattern is exact
    scale = got.sum(dtype=np.float64) / expected.sum()
    assert scale == pytest.approx(1.0, abs=0.01 if has_factors else 1e-5)
    np.testing.assert_allclose(got, scale * expected, rtol=1e-5)
    assert np.array_equal(got, pair_efficiency(scanner, b, a, efficiency))


@pytest.mark.slow
@pytest.mark.parametrize("has_factors", [True, False])
def test_sensitivity_counts_every_pair_by_its_table(has_factors: bool) -> None:
    scanner = scanner_with_tables(has_factors=has_factors)
    a, b = all_pairs(scanner)
    pairs = EventBatch(a.astype(np.uint32), b.astype(np.uint32), np.zeros(a.size, np.int16))
    rates = expected_rates(scanner, a, b).astype(np.float32)
    truth = back(rates, GRID, scanner, pairs, tof=False, dtype=np.float64)
    got = compute_sensitivity(scanner, GRID, n_pairs=4_000_000, coarse_mm=8.0)
    body = (slice(3, 14), slice(3, 14), slice(2, 17))
    ratio = got.values[body] / truth[body]
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    pattern_error = (ratio / ratio.mean()).std()
    assert pattern_error < max(3 * got.relative_error, 0.01)
    without = compute_sensitivity(
        replace(scanner, module_pairs=None), GRID, n_pairs=400_000, coarse_mm=8.0
    )
    change = got.values[body] / without.values[body]
    # So the tables matter here, in total and in pattern: by far more than what is left above.
    assert change.mean() < 0.75
    assert (change / change.mean()).std() > 3 * pattern_error


def test_partners_of_a_crystal_are_those_whose_modules_coincide() -> None:
    scanner = scanner_with_tables(has_factors=False)
    found = partners(scanner)
    assert isinstance(found, PartnerSample)
    assert scanner.module_pairs is not None
    for k in (0, 17, 300):
        good = scanner.accepts(np.full(found.partner.size, k), found.partner)
        assert np.array_equal(found.accepted[k], good & (found.partner != k))
