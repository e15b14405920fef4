"""Which pairs of modules are in coincidence, and how efficient the crystals of a pair are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

MAX_FACTORS = 1 << 26  # 256 MB


@dataclass(frozen=True, eq=False)
class ModulePairs:
    """Efficiencies of crystal pairs by the modules in which they lie (PETSIRD's SGID tables).

    Module pairs that are alike by symmetry share a group, and with it one table of factors. All
    tables are read with the higher crystal number first.

    Parameters
    ----------
    crystal_module
        Module of each crystal, rising with its number. Shape (n_crystals,), int32.
    crystal_element
        Number of each crystal within its module. Shape (n_crystals,), int32.
    group
        Group of each pair of modules, -1 if it is never in coincidence: row by the module of
        the higher crystal number, column by that of the lower. Shape (n_modules, n_modules),
        int32.
    factor
        Relative efficiency by group, element of the higher and element of the lower crystal
        number. It is the whole geometric part of a pair's efficiency: solid angle, incidence
        and stopping. ``None`` if the file states none. Shape (n_groups, n_elements,
        n_elements), float32.

    Raises
    ------
    InputError
        If a number leads outside its table, or a factor is negative or not finite.
    """

    crystal_module: I32
    crystal_element: I32
    group: I32
    factor: F32 | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            kind = np.float32 if field.name == "factor" else np.int32
            array = np.array(value, dtype=kind, order="C")
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)
        if found := _fault(self):
            raise InputError(
                f"a table of module pairs must fit its scanner, but {found}; write the file "
                "again"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all tables."""
        h = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            h.update(b"none" if value is None else repr(value.shape).encode() + value.tobytes())
        return h.hexdigest()

    def groups(
        self, crystal_a: NDArray[np.integer], crystal_b: NDArray[np.integer]
    ) -> NDArray[np.int32]:
        """Give the group of each crystal pair, -1 if it is never in coincidence. Shape (n,)."""
        low, high = np.minimum(crystal_a, crystal_b), np.maximum(crystal_a, crystal_b)
        return np.asarray(self.group[self.crystal_module[high], self.crystal_module[low]])

    def factors(
        self, crystal_a: NDArray[np.integer], crystal_b: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Give the factor of each crystal pair, 0 if it is never in coincidence.

        Parameters
        ----------
        crystal_a, crystal_b
            Crystal numbers, in any order. Shape (n,).

        Returns
        -------
        ndarray
            Shape (n,), float32; ones and zeros where the file states no factors.
        """
        group = self.groups(crystal_a, crystal_b)
        if self.factor is None:
            return (group >= 0).astype(np.float32)
        low, high = np.minimum(crystal_a, crystal_b), np.maximum(crystal_a, crystal_b)
        found = self.factor[
            np.maximum(group, 0), self.crystal_element[high], self.crystal_element[low]
        ]
        return np.where(group >= 0, found, np.float32(0.0))


def _fault(pairs: ModulePairs) -> str:
    """Name the first thing that does not fit, or nothing."""
    module, element, group, factor = (getattr(pairs, field.name) for field in fields(pairs))
    if module.ndim != 1 or element.shape != module.shape or not module.size:
        return f"its numbers of crystals are of shape {module.shape} and {element.shape}"
    if group.ndim != 2 or group.shape[0] != group.shape[1] or not group.size:
        return f"its groups are of shape {group.shape}"
    if module.min() < 0 or module.max() >= len(group) or element.min() < 0:
        return f"it names modules up to {module.max()} of {len(group)}"
    if factor is None:
        return ""
    if factor.ndim != 3 or not 0 < factor.size <= MAX_FACTORS:
        return f"its factors are of shape {factor.shape}"
    if group.max() >= len(factor) or element.max() >= min(factor.shape[1:]):
        return f"it names group {group.max()} and element {element.max()} of {factor.shape}"
    if not (np.isfinite(factor) & (factor >= 0)).all():
        return "a factor is negative or no number"
    return ""
