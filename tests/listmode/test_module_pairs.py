"""Efficiencies by pair of modules: looked up as PETSIRD says, kept by every file, checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.castor import write_castor
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.petsird_writer import write_petsird
from listmode.formats.validate import validate_listmode
from listmode.module_pairs import ModulePairs
from listmode.scanner import Scanner
from tests.strategies import random_scan, small_scanner


def tables(n_crystals: int, *, n_elements: int = 8, has_factors: bool = True) -> ModulePairs:
    """Make random tables of modules of equal size; a third of their pairs is apart."""
    rng = np.random.default_rng(5)
    n_modules, n_groups = n_crystals // n_elements, 6
    factor = rng.uniform(0.5, 2.0, (n_groups, n_elements, n_elements)).astype(np.float32)
    crystal = np.arange(n_crystals, dtype=np.int32)
    return ModulePairs(
        crystal_module=crystal // n_elements,
        crystal_element=crystal % n_elements,
        group=rng.integers(-3, n_groups, (n_modules, n_modules)).clip(-1).astype(np.int32),
        factor=factor if has_factors else None,
    )


def with_tables(scanner: Scanner, **how: Any) -> Scanner:
    return replace(scanner, module_pairs=tables(scanner.n_crystals, **how))


def test_factor_is_that_of_the_group_with_the_higher_crystal_first() -> None:
    pairs = tables(48)
    a, b = (i.ravel() for i in np.indices((48, 48)))
    got = pairs.factors(a, b)
    assert pairs.factor is not None
    for k, (one, two) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        high, low = max(one, two), min(one, two)
        group = int(pairs.group[high // 8, low // 8])
        expected = 0.0 if group < 0 else float(pairs.factor[group, high % 8, low % 8])
        assert got[k] == np.float32(expected)
    assert 0.2 < (got == 0.0).mean() < 0.6


def test_scanner_accepts_no_pair_whose_modules_are_apart() -> None:
    scanner = small_scanner()
    with_pairs = with_tables(scanner, has_factors=False)
    a, b = (i.ravel() for i in np.indices((scanner.n_crystals,) * 2))
    apart = with_pairs.module_pairs.groups(a, b) < 0  # type: ignore[union-attr]
    assert np.array_equal(with_pairs.accepts(a, b), scanner.accepts(a, b) & ~apart)
    assert apart.any()
    factors = with_pairs.module_pairs.factors(a, b)  # type: ignore[union-attr]
    assert np.array_equal(factors, ~apart)


def test_digest_tells_tables_apart_and_is_the_old_one_without_them() -> None:
    scanner = small_scanner()
    one, two = with_tables(scanner), with_tables(scanner, has_factors=False)
    assert len({scanner.digest, one.digest, two.digest}) == 3
    assert one.digest == with_tables(scanner).digest
    assert scanner.digest == replace(one, module_pairs=None).digest


@pytest.mark.parametrize("has_factors", [True, False])
@pytest.mark.parametrize("name", ["scan.h5", "scan.petsird", "scan.cdh"])
def test_tables_come_back_bit_by_bit(tmp_path: Path, name: str, has_factors: bool) -> None:
    scanner = with_tables(small_scanner(), has_factors=has_factors)
    scan = random_scan(1, scanner=scanner)
    if name.endswith(".h5"):
        cut_listmode(scan, scan.extent, tmp_path / name)
        assert validate_listmode(tmp_path / name).is_sound
    else:
        write = write_petsird if name.endswith("petsird") else write_castor
        write(scan, tmp_path / name)
    with open_listmode(tmp_path / name) as read:
        assert read.scanner.digest == scanner.digest
        kept = read.scanner.module_pairs
        assert kept is not None
        assert scanner.module_pairs is not None
        assert kept.digest == scanner.module_pairs.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crystal_module": np.full(48, 6)}, "it names modules up to 6 of 6"),
        ({"crystal_element": np.full(48, -1)}, "it names modules up to 5 of 6"),
        ({"crystal_element": np.full(48, 8)}, "group 5 and element 8 of"),
        ({"crystal_element": np.zeros(3)}, r"numbers of crystals are of shape \(48,\) and \(3"),
        ({"group": np.full((6, 6), 6)}, "it names group 6"),
        ({"group": np.zeros((6, 5))}, r"its groups are of shape \(6, 5\)"),
        ({"factor": np.zeros((6, 8))}, r"its factors are of shape \(6, 8\)"),
        ({"factor": np.full((6, 8, 8), np.nan)}, "a factor is negative or no number"),
        ({"factor": np.full((6, 8, 8), -1.0)}, "a factor is negative or no number"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"must fit its scanner, but .*{message}"):
        replace(tables(48), **change)


def test_scanner_with_tables_of_another_is_refused() -> None:
    scanner = small_scanner()
    with pytest.raises(InputError, match="of each of 144 crystals, but it names 48"):
        replace(scanner, module_pairs=tables(48))
