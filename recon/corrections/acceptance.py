"""Which crystals coincide with which: sums over all accepted partners, without listing them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.scanner import Scanner

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SAME_PLACE_MM = 1e-2
N_PARTNERS = 512  # sampled for each crystal of an irregular scanner


@dataclass(frozen=True, eq=False)
class RingTable:
    """A scanner whose rings are copies of one another along z.

    Parameters
    ----------
    crystal
        Crystal number by ring and place. Shape (n_rows, n_places), int64.
    row_low, row_count
        First ring that each ring coincides with, and how many. Shape (n_rows,), int64.
    fan
        Whether two places coincide. Shape (n_places, n_places), bool.
    """

    crystal: I64
    row_low: I64
    row_count: I64
    fan: NDArray[np.bool_]

    def sum_partners(self, values: F64) -> F64:
        """Add up ``values`` over the accepted partners of each crystal. Shape (n_crystals,)."""
        total = np.zeros((self.crystal.shape[0] + 1, self.crystal.shape[1]))
        np.cumsum(values[self.crystal], axis=0, out=total[1:])
        rows = total[self.row_low + self.row_count] - total[self.row_low]
        out = np.empty(values.shape)
        out[self.crystal] = rows @ self.fan.astype(np.float64)
        return out


@dataclass(frozen=True, eq=False)
class PartnerSample:
    """A sample of each crystal's partners, for scanners without equal rings.

    Parameters
    ----------
    partner
        Crystal numbers. Shape (n_partners,), int64.
    accepted
        Whether a crystal coincides with a partner. Shape (n_crystals, n_partners), bool.
    """

    partner: I64
    accepted: NDArray[np.bool_]

    def sum_partners(self, values: F64) -> F64:
        """Estimate the sum of ``values`` over the accepted partners of each crystal."""
        share = len(values) / self.partner.size
        return np.asarray(self.accepted @ values[self.partner]) * share


def find_rings(scanner: Scanner) -> RingTable | None:
    """Lay the crystals out by ring and place, if all rings are alike.

    Returns
    -------
    RingTable or None
        ``None`` if a ring lacks a crystal or lies turned or shifted against the others, or if
        pairs of modules decide what coincides.
    """
    if scanner.module_pairs is not None:
        return None
    slots, row = np.unique(scanner.crystal_ring, return_inverse=True)
    places, place = np.unique(scanner.crystal_transaxial, return_inverse=True)
    if slots.size * places.size != scanner.n_crystals:
        return None
    crystal = np.full((slots.size, places.size), -1, np.int64)
    crystal[row, place] = np.arange(scanner.n_crystals)
    if (crystal < 0).any():
        return None
    across = scanner.crystal_position_mm[crystal, :2]
    if np.abs(across - across[:1]).max() > SAME_PLACE_MM:
        return None
    low = np.searchsorted(slots, slots - scanner.max_ring_difference)
    high = np.searchsorted(slots, slots + scanner.max_ring_difference, side="right")
    one, other = (i.ravel() for i in np.meshgrid(crystal[0], crystal[0], indexing="ij"))
    fan = scanner.accepts(one, other) & (one != other)
    n = places.size
    return RingTable(
        crystal, low.astype(np.int64), (high - low).astype(np.int64), fan.reshape(n, n)
    )


def partners(scanner: Scanner) -> RingTable | PartnerSample:
    """Give the way to sum over partners: exact for equal rings, sampled otherwise."""
    if (rings := find_rings(scanner)) is not None:
        return rings
    n = scanner.n_crystals
    rng = np.random.default_rng(20240301)
    chosen = rng.permutation(n)[: min(n, N_PARTNERS)].astype(np.int64)
    accepted = np.empty((n, chosen.size), bool)
    everyone = np.arange(n)
    for k, other in enumerate(chosen.tolist()):
        accepted[:, k] = scanner.accepts(everyone, np.full(n, other)) & (everyone != other)
    return PartnerSample(chosen, accepted)
