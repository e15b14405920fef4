"""Parts of a GATE tree become records of events: crystals, tick, TOF bin and truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats._gate_map import (
    LEVELS,
    GateMap,
    NearestCrystal,
    crystals_by_ids,
    number_by_ids,
)
from listmode.formats._mapped import MAX_TICKS

I64 = NDArray[np.int64]
Table = NDArray[Any]

TRUE, SCATTERED, RANDOM = 0, 1, 2
_N_CHECKED = 4096  # places of each part that are held against the ids
_MAX_MISFIT = 0.01  # share of ids whose place lies elsewhere, above which the map is wrong
RECORD = np.dtype(
    [("tick", "<i4"), ("a", "<u4"), ("b", "<u4"), ("tof_bin", "<i2"), ("truth", "u1")]
)
REASONS = (
    "no crystal",
    "a time that is no number or beyond 12 h",
    "one crystal twice",
    "a time difference outside the TOF bins",
)
"""Why a coincidence is left out, in the order in which it is asked."""


class GateDecoder:
    """Turns parts of a tree into records.

    Parameters
    ----------
    gate
        Scanner, and how its crystals are found.
    names
        Our names of the branches that are there.
    offset_s
        By how much the second photon comes later, s (delayed pairs).
    """

    def __init__(self, gate: GateMap, names: set[str], offset_s: float) -> None:
        self._gate = gate
        self._offset_s = offset_s
        self._has_place = {"x", "y", "z"} <= names
        self._has_truth = {"event", "compton"} <= names
        self._has_rayleigh = "rayleigh" in names
        self._nearest = NearestCrystal(gate.scanner, gate.max_distance_mm)
        self._by_ids = crystals_by_ids(gate) if gate.crystals == "ids" else None

    def decode(self, columns: Mapping[str, NDArray[Any]]) -> tuple[Table, I64]:
        """Give the records of a part, and how many of its entries were left out for what."""
        one, two = (self._crystal(columns, k) for k in "12")
        unit_s = self._gate.time_unit_s
        times_s = [columns[f"time{k}"].astype(np.float64) * unit_s for k in "12"]
        tick = np.floor(times_s[0] * 1000.0)
        bins = self._tof_bin(times_s[0] - (times_s[1] - self._offset_s))
        has_time = np.isfinite(tick) & np.isfinite(times_s[1]) & (np.abs(tick) < MAX_TICKS)
        reasons = [
            (one < 0) | (two < 0),
            ~has_time,
            one == two,
            ~((bins >= 0) & (bins < self._gate.scanner.tof.n_bins)),
        ]
        bad = np.zeros(len(one), bool)
        left_out = np.zeros(len(reasons), np.int64)
        for k, reason in enumerate(reasons):
            left_out[k] = int((reason & ~bad).sum())
            bad |= reason
        good = ~bad
        batch = EventBatch.from_pairs(
            one[good], two[good], bins[good].astype(np.int64), self._gate.scanner.tof.n_bins
        )
        table = np.empty(len(batch), RECORD)
        table["tick"] = tick[good].astype(np.int32)
        table["a"], table["b"] = batch.crystal_a, batch.crystal_b
        table["tof_bin"] = batch.tof_bin
        table["truth"] = self._truth(columns)[good]
        return table, left_out

    def _tof_bin(self, difference_s: NDArray[np.float64]) -> NDArray[np.float64]:
        tof = self._gate.scanner.tof
        if not tof.has_tof:
            return np.zeros(len(difference_s))
        with np.errstate(invalid="ignore", over="ignore"):
            return np.round(difference_s * 1e12 / tof.bin_width_ps + (tof.n_bins - 1) / 2.0)

    def _place_mm(self, columns: Mapping[str, NDArray[Any]], k: str) -> NDArray[np.float64]:
        place = np.stack([columns[f"{axis}{k}"] for axis in "xyz"], axis=1).astype(np.float64)
        affine = self._gate.scanner_from_gate
        return np.asarray(place @ affine[:, :3].T + affine[:, 3])

    def _crystal(self, columns: Mapping[str, NDArray[Any]], k: str) -> I64:
        if self._by_ids is None:
            return self._nearest.find(self._place_mm(columns, k))
        zeros = np.zeros(len(columns[f"time{k}"]), np.int64)
        ids = {level: columns.get(f"{level}{k}", zeros) for level in LEVELS}
        crystal = number_by_ids(self._gate, self._by_ids, ids)
        if self._has_place:
            sample = {name: values[:_N_CHECKED] for name, values in columns.items()}
            self._check_places(self._place_mm(sample, k), crystal[:_N_CHECKED])
        return crystal

    def _check_places(self, place_mm: NDArray[np.float64], crystal: I64) -> None:
        """Refuse ids whose crystals lie elsewhere than the interactions.

        Raises
        ------
        InputError
            If more than 1 % lie too far away.
        """
        known = (crystal >= 0) & np.isfinite(place_mm).all(axis=1)
        if not known.any():
            return
        far = self._nearest.distance_mm(place_mm[known], crystal[known])
        share = float((far > self._gate.max_distance_mm).mean())
        if share > _MAX_MISFIT:
            raise InputError(
                "GATE's ids must name the crystals in which the photons interacted, but "
                f"{share:.0%} of the places lie more than {self._gate.max_distance_mm:g} mm "
                "from the crystal so named; correct first_transaxial, sense or the levels in "
                "the map file, or its scanner"
            )

    def _truth(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        truth = np.full(len(columns["time1"]), TRUE, np.uint8)
        if self._has_truth:
            scatterings = columns["compton1"] + columns["compton2"]
            if self._has_rayleigh:
                scatterings = scatterings + columns["rayleigh1"] + columns["rayleigh2"]
            truth[scatterings > 0] = SCATTERED
            truth[columns["event1"] != columns["event2"]] = RANDOM
        return truth
