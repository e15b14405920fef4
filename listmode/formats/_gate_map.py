"""The map file of a GATE simulation: which scanner it is, and which crystal is which."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from listmode.errors import InputError
from listmode.formats.scanner_file import load_scanner
from listmode.scanner import Scanner

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

LEVELS = ("rsector", "module", "submodule", "crystal")
_N_CANDIDATES = 8  # nearest centres of which the nearest axis is taken
_MAX_MAP_BYTES = 1 << 16
_IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))

BRANCHES: Mapping[str, str] = {
    "time": "time",
    "event": "eventID",
    "compton": "comptonPhantom",
    "rayleigh": "RayleighPhantom",
    "x": "globalPosX",
    "y": "globalPosY",
    "z": "globalPosZ",
    "rsector": "rsectorID",
    "module": "moduleID",
    "submodule": "submoduleID",
    "crystal": "crystalID",
}
"""What we call a branch and what GATE 9 does; 1 or 2 follows for the two photons."""


@dataclass(frozen=True)
class GateMap:
    """What a GATE ROOT file does not say of itself.

    Attributes
    ----------
    scanner
        The scanner whose crystals the events get.
    crystals
        ``"nearest"``: by the places of the interactions; ``"ids"``: by GATE's copy numbers.
    max_distance_mm
        An interaction farther than this from the axis of every crystal belongs to none.
    scanner_from_gate
        Rows of the affine map from GATE's world to the scanner frame, mm. Shape (3, 4).
    repeats
        For ``"ids"``: how often each level of the cylindricalPET system is repeated around the
        ring and along the axis, around first in its copy numbers.
    first_transaxial, sense
        For ``"ids"``: place around the ring of GATE's first crystal, counted over real crystals
        in the order of our slots, and +1 if GATE counts around as we do, else -1.
    prompts_tree, delayeds_tree, delayed_offset_s
        Names of the trees, and by how much the second photon of a delayed pair comes later.
    branches
        Names of the branches without the 1 or 2 at their end.
    time_unit_s
        Unit of the times, s.
    """

    scanner: Scanner
    crystals: str = "nearest"
    max_distance_mm: float = 0.0
    scanner_from_gate: F64 = field(default_factory=lambda: np.array(_IDENTITY))
    repeats: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    first_transaxial: int = 0
    sense: int = 1
    prompts_tree: str = "Coincidences"
    delayeds_tree: str = "delay"
    delayed_offset_s: float = 0.0
    branches: Mapping[str, str] = field(default_factory=lambda: dict(BRANCHES))
    time_unit_s: float = 1.0


def load_gate_map(path: Path) -> GateMap:
    """Read a map file; ``docs/formats.md`` lists its keys.

    Raises
    ------
    InputError
        If it cannot be read, or a key is unknown, missing or of the wrong kind.
    """
    try:
        if path.stat().st_size > _MAX_MAP_BYTES:
            raise ValueError("more than 64 KiB")
        table = tomllib.loads(path.read_text("utf-8"))
        return _map_of(table, path.parent)
    except OSError as error:
        raise InputError(
            f"a GATE map must be readable, but {path.name!r} is not: {error.strerror}; "
            "check its path"
        ) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "a GATE map must be TOML with the keys of docs/formats.md, but "
            f"{path.name!r} is not: {error!s:.200}; correct it"
        ) from None


def _map_of(table: dict[str, Any], folder: Path) -> GateMap:
    _only_known(table, {"scanner", "crystals", "max_distance_mm", "scanner_from_gate", "ids",
                        "trees", "branches", "time_unit_s"})  # fmt: skip
    name = str(table["scanner"])
    scanner = load_scanner(folder / name if name.endswith(".toml") else name)
    ids, trees = dict(table.get("ids", {})), dict(table.get("trees", {}))
    _only_known(ids, {*LEVELS, "first_transaxial", "sense"})
    _only_known(trees, {"prompts", "delayeds", "delayed_offset_s"})
    branches = dict(table.get("branches", {}))
    _only_known(branches, set(BRANCHES))
    crystals = str(table.get("crystals", "ids" if ids else "nearest"))
    if crystals not in ("nearest", "ids"):
        raise ValueError(f"crystals is {crystals!r}, neither 'nearest' nor 'ids'")
    affine = np.array(table.get("scanner_from_gate", _IDENTITY), np.float64)
    if affine.shape != (3, 4) or not np.isfinite(affine).all():
        raise ValueError("scanner_from_gate must be three rows of four numbers")
    sense = int(ids.pop("sense", 1))
    if sense not in (-1, 1):
        raise ValueError(f"sense is {sense}, neither 1 nor -1")
    default_mm = float(np.hypot(*scanner.crystal_pitch_mm)) / 2.0
    return GateMap(
        scanner=scanner,
        crystals=crystals,
        max_distance_mm=_positive(table.get("max_distance_mm", default_mm), "max_distance_mm"),
        scanner_from_gate=affine,
        first_transaxial=int(ids.pop("first_transaxial", 0)),
        sense=sense,
        repeats={level: _repeats(ids.get(level, [1, 1]), level) for level in LEVELS},
        prompts_tree=str(trees.get("prompts", "Coincidences")),
        delayeds_tree=str(trees.get("delayeds", "delay")),
        delayed_offset_s=float(trees.get("delayed_offset_s", 0.0)),
        branches=dict(BRANCHES) | {k: str(v) for k, v in branches.items()},
        time_unit_s=_positive(table.get("time_unit_s", 1.0), "time_unit_s"),
    )


def _only_known(table: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"it has {unknown[0]!r}, which is none of {', '.join(sorted(known))}")


def _positive(value: Any, name: str) -> float:
    number = float(value)
    if not 0.0 < number < np.inf:
        raise ValueError(f"{name} must be positive, but it is {value!r}")
    return number


def _repeats(value: Any, level: str) -> tuple[int, int]:
    around, along = (int(n) for n in value)
    if not (1 <= around <= 100_000 and 1 <= along <= 100_000):
        raise ValueError(f"{level} must be repeated 1-100000 times, but it has {value!r}")
    return around, along


def crystals_by_ids(gate: GateMap) -> I64:
    """Give the crystal of each place of GATE's system.

    Returns
    -------
    ndarray
        Crystal of ring r and place p around it, both counted over real crystals.
        Shape (n_rings, n_around), int64.

    Raises
    ------
    InputError
        If the numbers of crystals do not agree with the scanner's.
    """
    scanner = gate.scanner
    n_around, n_along = np.prod([gate.repeats[level] for level in LEVELS], axis=0)
    rings, ring = np.unique(scanner.crystal_ring, return_inverse=True)
    places, place = np.unique(scanner.crystal_transaxial, return_inverse=True)
    found = (len(places), len(rings))
    if found != (n_around, n_along) or scanner.n_crystals != n_around * n_along:
        raise InputError(
            f"the levels of a GATE map must make up the scanner's {found[0]} crystals around "
            f"and {found[1]} along the axis, but they make {n_around} and {n_along}; correct "
            "[ids] or the scanner"
        )
    table = np.empty((n_along, n_around), np.int64)
    place_of_gate = (gate.sense * (place - gate.first_transaxial)) % n_around
    table[ring, place_of_gate] = np.arange(scanner.n_crystals)
    return table


def number_by_ids(gate: GateMap, table: I64, ids: Mapping[str, I64]) -> I64:
    """Turn copy numbers into crystals; -1 for numbers that the system does not have.

    Parameters
    ----------
    gate, table
        The map, and what :func:`crystals_by_ids` gives for it.
    ids
        Copy numbers of each level. Shape (n,) each.

    Notes
    -----
    Copy numbers of a repeated box rise around the ring first (GATE users' guide, cubic array
    repeater: x, then y, then z), so number k of a level with m around is place k mod m around
    and k div m along.
    """
    around = np.zeros(len(ids["rsector"]), np.int64)
    along, good = around.copy(), np.ones(len(around), bool)
    for level in LEVELS:
        n_around, n_along = gate.repeats[level]
        number = ids[level].astype(np.int64)
        good &= (number >= 0) & (number < n_around * n_along)
        around = around * n_around + number % n_around
        along = along * n_along + number // n_around
    crystal = np.full(len(good), -1, np.int64)
    crystal[good] = table[along[good], around[good]]
    return crystal


class NearestCrystal:
    """Finds the crystal whose long axis is nearest to a place."""

    def __init__(self, scanner: Scanner, max_distance_mm: float) -> None:
        self._centre_mm = scanner.crystal_position_mm.astype(np.float64)
        self._normal = scanner.crystal_normal.astype(np.float64)
        self._length_mm = scanner.crystal_size_mm[2]
        self._max_distance_mm = max_distance_mm
        self._half_pitch_mm = min(scanner.crystal_pitch_mm) / 2.0
        self._tree = cKDTree(self._centre_mm)
        self._k = min(_N_CANDIDATES, scanner.n_crystals)

    def find(self, place_mm: F64) -> I64:
        """Give the crystal of each place, -1 if none is near enough.

        A photon interacts anywhere along a crystal, so the distance that counts is the one
        across the crystal's axis; along it, a crystal's length either way is near enough.

        Parameters
        ----------
        place_mm
            Scanner frame, mm. Shape (n, 3).
        """
        good = np.isfinite(place_mm).all(axis=1)
        found = np.full(len(place_mm), -1, np.int64)
        if not good.any():
            return found
        place = place_mm[good]
        crystal = np.asarray(self._tree.query(place)[1], np.int64)
        distance_mm = self._distance_mm(place, crystal)
        # Within half a pitch of an axis a place lies in that crystal's own cell. Elsewhere
        # the nearest centre may be another crystal's: blocks are tilted against each other.
        doubtful = np.flatnonzero(distance_mm > self._half_pitch_mm)
        if doubtful.size:
            near = np.asarray(self._tree.query(place[doubtful], k=self._k)[1], np.int64)
            distances_mm = self._distance_mm(place[doubtful, None, :], near)
            best = distances_mm.argmin(axis=1)
            rows = np.arange(len(best))
            crystal[doubtful] = near[rows, best]
            distance_mm[doubtful] = distances_mm[rows, best]
        found[good] = np.where(distance_mm <= self._max_distance_mm, crystal, -1)
        return found

    def distance_mm(self, place_mm: F64, crystal: I64) -> F64:
        """Give how far places are from the axes of given crystals; inf beyond their ends."""
        return self._distance_mm(place_mm, crystal)

    def _distance_mm(self, place_mm: F64, crystal: NDArray[np.signedinteger]) -> F64:
        offset = place_mm - self._centre_mm[crystal]
        along = (offset * self._normal[crystal]).sum(axis=-1)
        across2 = (offset**2).sum(axis=-1) - along**2
        distance: F64 = np.sqrt(np.maximum(across2, 0.0))
        distance[np.abs(along) > self._length_mm] = np.inf
        return distance
