"""Turn PETSIRD's efficiencies by pair of modules (SGID tables) into ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.module_pairs import MAX_FACTORS, ModulePairs

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_MAX_MODULES = 8192  # a table of their pairs takes 256 MB


@dataclass
class Modules:
    """One type of detector module: where its crystals are.

    ``centre_mm`` and ``normal`` have shape (n_crystals, 3); crystals are numbered
    ``element + n_elements * module``, as PETSIRD numbers detection bins.
    """

    centre_mm: F64
    normal: F64
    size_mm: tuple[float, float, float]
    pitch_mm: tuple[float, float]
    n_modules: int
    n_elements: int


def cell(table: Any, i: int, j: int) -> Any:
    """Give an entry of a lower-triangular table; ``None`` where the file has none."""
    if table is None or i >= len(table) or j >= len(table[i]):
        return None
    return table[i][j]


def known_pairs(
    table: Mapping[str, Any], types: list[Modules], n_energy: I64, notes: list[str]
) -> ModulePairs | None:
    """Give the efficiencies by pair of modules; ``None`` if the file says nothing by them.

    Parameters
    ----------
    table
        The header's ``detectionEfficiencies``.
    types, n_energy
        Module types, and the number of energy bins of each.
    notes
        What was found is told here, and tables that do not fit are left out.
    """
    if not (table.get("modulePairSGIDLUT") or table.get("modulePairEfficienciesVectors")):
        return None
    try:
        pairs = _PairTables(types, n_energy)
        for i in range(len(types)):
            for j in range(i + 1):
                pairs.add(
                    i, j,
                    cell(table.get("modulePairSGIDLUT"), i, j),
                    cell(table.get("modulePairEfficienciesVectors"), i, j),
                )  # fmt: skip
        return pairs.join(notes)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        notes.append(
            "the efficiencies of pairs of modules (SGID tables) are left out: they do not fit "
            f"the scanner ({error!s:.80})"
        )
        return None


class _PairTables:
    """Collects the tables of pairs of module types; modules and groups get numbers over all.

    Group 0 is that of pairs of modules for which the file states no factors: what is absent
    is 1.
    """

    def __init__(self, types: list[Modules], n_energy: I64) -> None:
        self._types = types
        self._n_energy = [int(n) for n in n_energy]
        self._first = np.concatenate(([0], np.cumsum([m.n_modules for m in types])))
        n_modules = int(self._first[-1])
        if n_modules > _MAX_MODULES:
            raise ValueError(f"{n_modules} modules, more than {_MAX_MODULES}")
        self._group = np.full((n_modules, n_modules), -1, np.int32)
        self._largest = max(m.n_elements for m in types)
        self._factors: list[F32] = []
        self._n_groups = 1
        self._used: list[F32] = []

    def add(self, i: int, j: int, groups: Any, tables: Any) -> None:
        """Take the tables of module types i and j, with ``j <= i``."""
        one, two = self._types[i], self._types[j]
        lut = _lookup_table(groups, (one.n_modules, two.n_modules))
        if lut is not None and tables:
            shape = (one.n_elements, two.n_elements)
            some = _group_factors(tables, shape, (self._n_energy[i], self._n_energy[j]))
            if lut.max() >= len(some):
                raise ValueError(f"group {lut.max()} of {len(some)}")
            self._used.append(some[np.unique(lut[lut >= 0])].ravel())
            if (self._n_groups + len(some)) * self._largest**2 > MAX_FACTORS:
                raise ValueError(f"{len(some)} groups of {self._largest}² pairs of crystals")
            padded = np.zeros((len(some), self._largest, self._largest), np.float32)
            padded[:, : shape[0], : shape[1]] = some
            self._factors.append(padded)
            lut = np.where(lut >= 0, lut + self._n_groups, -1)
            self._n_groups += len(some)
        elif lut is not None:
            lut = np.where(lut >= 0, 0, -1)
        rows, columns = (slice(self._first[k], self._first[k + 1]) for k in (i, j))
        self._group[rows, columns] = 0 if lut is None else lut

    def join(self, notes: list[str]) -> ModulePairs | None:
        """Give one table for all types; ``None`` if it has one factor for all pairs."""
        n_pairs = len(self._group) * (len(self._group) + 1) // 2
        n_apart = sum(int((row[: k + 1] < 0).sum()) for k, row in enumerate(self._group))
        if n_apart:
            notes.append(
                f"{n_apart} of {n_pairs} pairs of modules are never in coincidence: they count "
                "in no sensitivity"
            )
        values = np.concatenate(self._used) if self._used else np.ones(1, np.float32)
        has_factors = bool(values.size) and not np.allclose(values, values[0])
        if has_factors:
            notes.append(
                "the efficiencies of pairs of crystals by pair of modules (SGID tables, "
                f"{values.min():.3g}-{values.max():.3g}) take the place of solid angle, "
                "incidence and stopping, relative to their mean"
            )
        if not n_apart and not has_factors:
            return None
        ones = np.ones((1, self._largest, self._largest), np.float32)
        return ModulePairs(
            crystal_module=np.repeat(
                np.arange(len(self._group)),
                np.repeat([m.n_elements for m in self._types], np.diff(self._first)),
            ),
            crystal_element=np.concatenate(
                [np.tile(np.arange(m.n_elements), m.n_modules) for m in self._types]
            ),
            group=self._group,
            factor=np.concatenate((ones, *self._factors)) if has_factors else None,
        )


def _lookup_table(stored: Any, shape: tuple[int, int]) -> I32 | None:
    """Give the group of each pair of modules; rows of one type may end at the diagonal."""
    if stored is None or not len(stored):
        return None
    if len(stored) != shape[0]:
        raise ValueError(f"groups for {len(stored)} of {shape[0]} modules")
    lut = np.full(shape, -1, np.int32)
    for k, row in enumerate(stored):
        values = np.ravel(row)[: shape[1]]
        if values.size < min(k + 1, shape[1]):
            raise ValueError(f"groups for {values.size} partners of module {k}")
        lut[k, : values.size] = np.clip(values, -1, MAX_FACTORS)
    return lut


def _group_factors(tables: Any, shape: tuple[int, int], n_energy: tuple[int, int]) -> F32:
    """Give the factors of each group, the mean over energy bins: (n_groups, *shape)."""
    n_groups = max(int(entry["sgid"]) for entry in tables) + 1
    if not 0 < n_groups <= len(tables) or n_groups * math.prod(shape) > MAX_FACTORS:
        raise ValueError(f"{len(tables)} tables for {n_groups} groups")
    factors = np.zeros((n_groups, *shape), np.float32)
    for entry in tables:
        values = np.asarray(entry["values"], np.float64)
        by_energy = values.reshape(shape[0], n_energy[0], shape[1], n_energy[1])
        factors[int(entry["sgid"])] = by_energy.mean(axis=(1, 3))
    if not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError("a factor is negative or no number")
    return factors
