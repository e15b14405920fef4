"""Columns of coincidence events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError

U32 = NDArray[np.uint32]
I16 = NDArray[np.int16]


def _column(values: NDArray[np.generic], dtype: type[np.generic]) -> NDArray[np.generic]:
    """Give the values as a read-only C-contiguous column, copying only if that is needed."""
    column = np.ascontiguousarray(values, dtype=dtype).view()
    column.setflags(write=False)
    return column


@dataclass(frozen=True, eq=False)
class EventBatch:
    """A run of coincidence events of one stream (prompts or delayeds), in order of time.

    An event names its two crystals with ``crystal_a < crystal_b``. The sign of TOF is stated
    here and holds everywhere: ``tof_bin`` rises with ``tof_ps = t_a - t_b``, the arrival time
    at crystal a less that at crystal b. A later arrival at a puts the annihilation nearer to
    b, at the distance ``c/2 * tof_ps`` from the LOR's midpoint towards crystal b. Bin centres
    lie symmetrically about zero: bin ``k`` of ``n`` has its centre at
    ``(k - (n - 1) / 2) * bin_width_ps``. A scanner without TOF has one bin, number 0.

    Parameters
    ----------
    crystal_a, crystal_b
        Crystal numbers of the scanner. Shape (n_events,), uint32.
    tof_bin
        TOF bin numbers, from 0. Shape (n_events,), int16.

    Raises
    ------
    InputError
        If the columns differ in length or a pair is not in canonical order.
    """

    crystal_a: U32
    crystal_b: U32
    tof_bin: I16

    def __post_init__(self) -> None:
        object.__setattr__(self, "crystal_a", _column(self.crystal_a, np.uint32))
        object.__setattr__(self, "crystal_b", _column(self.crystal_b, np.uint32))
        object.__setattr__(self, "tof_bin", _column(self.tof_bin, np.int16))
        sizes = (self.crystal_a.size, self.crystal_b.size, self.tof_bin.size)
        if len(set(sizes)) != 1:
            raise InputError(
                f"event columns must have one length, but crystal_a, crystal_b and tof_bin "
                f"have {sizes[0]}, {sizes[1]} and {sizes[2]} entries; cut them alike"
            )
        if (bad := np.flatnonzero(self.crystal_a >= self.crystal_b)).size:
            i = int(bad[0])
            raise InputError(
                "crystal pairs must be ordered crystal_a < crystal_b, but event "
                f"{i} of the batch is ({self.crystal_a[i]}, {self.crystal_b[i]}); "
                "make the batch with EventBatch.from_pairs"
            )

    def __len__(self) -> int:
        return int(self.crystal_a.size)

    @classmethod
    def from_pairs(
        cls,
        crystal_1: NDArray[np.integer],
        crystal_2: NDArray[np.integer],
        tof_bin: NDArray[np.integer],
        n_tof_bins: int,
    ) -> EventBatch:
        """Order each pair canonically, mirroring the TOF bin of each pair that is exchanged.

        Parameters
        ----------
        crystal_1, crystal_2
            Crystal numbers in any order. Shape (n_events,).
        tof_bin
            TOF bins that rise with ``t_1 - t_2``. Shape (n_events,).
        n_tof_bins
            Number of TOF bins of the scanner.
        """
        swap = crystal_1 > crystal_2
        return cls(
            np.where(swap, crystal_2, crystal_1).astype(np.uint32),
            np.where(swap, crystal_1, crystal_2).astype(np.uint32),
            np.where(swap, n_tof_bins - 1 - tof_bin, tof_bin).astype(np.int16),
        )

    @classmethod
    def empty(cls) -> EventBatch:
        """Return a batch of no events."""
        return cls(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.int16))
