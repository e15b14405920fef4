"""Say in words what PETSIRD blocks hold that a listmode source has no place for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Block = Mapping[str, Any]


def describe_blocks(kind: str, blocks: Sequence[Block]) -> str:
    """Sum up blocks of one kind: what they say that a reader of images must know.

    Parameters
    ----------
    kind
        Name of the block's record in the schema.
    blocks
        Decoded blocks; see :meth:`listmode.formats.petsird.PetsirdListmode.blocks`.

    Returns
    -------
    str
        Text to follow "n blocks of KIND are not carried", with its own punctuation; empty for
        an unknown kind and for blocks whose values are not finite.
    """
    summary = {
        "BedMovementTimeBlock": _moves,
        "GantryMovementTimeBlock": _moves,
        "DeadTimeTimeBlock": _dead_time,
        "ExternalSignalTimeBlock": _signals,
        "SinglesHistogramTimeBlock": _singles,
    }.get(kind)
    if summary is None or not blocks:
        return ""
    try:
        return summary(blocks)
    except (KeyError, TypeError, ValueError):
        return ""


def _moves(blocks: Sequence[Block]) -> str:
    """How far the patient's bed or the detector was from its first place."""
    moved = []
    for k in range(len(_matrices(blocks[0]))):
        poses = np.array([_matrices(block)[k] for block in blocks if len(_matrices(block)) > k])
        moved.append(float(np.linalg.norm(poses[:, :, 3] - poses[0, :, 3], axis=1).max()))
    if not moved or not np.isfinite(moved).all():
        return ""
    if max(moved) == 0.0:
        return "; none of them moves"
    return f": they move by up to {max(moved):.1f} mm, and events stay where they were recorded"


def _matrices(block: Block) -> F64:
    """Give the rigid transformations of a block. Shape (n, 3, 4)."""
    stored = block["transform"] if "transform" in block else block["transforms"]
    return np.asarray(stored, np.float64).reshape(-1, 3, 4)


def numbers(value: Any) -> F64:
    """Give all numbers of nested lists of arrays. Shape (n,), float64."""
    if isinstance(value, np.ndarray | int | float):
        return np.ravel(np.asarray(value, np.float64))
    parts = [numbers(part) for part in value or ()]
    return np.concatenate(parts) if parts else np.zeros(0)


def _dead_time(blocks: Sequence[Block]) -> str:
    alive = [block["aliveTimeFractions"] for block in blocks]
    pairs = numbers([part.get("modulePairAliveTimeFractions") for part in alive])
    if not pairs.size or not np.isfinite(pairs).all():
        return ""
    return (
        f": pairs of modules are alive for {pairs.min():.3f}-{pairs.max():.3f} of the time "
        f"(mean {pairs.mean():.3f}); activities are corrected for the mean of all pairs, not "
        "for their differences"
    )


def _signals(blocks: Sequence[Block]) -> str:
    values = numbers([block["signalValues"] for block in blocks])
    signals = {int(block["signalID"]) for block in blocks}
    if not values.size or not np.isfinite(values).all():
        return ""
    extent = f"{values.min():g} to {values.max():g}"
    return f": {values.size} values of {len(signals)} signals, {extent}"


def _singles(blocks: Sequence[Block]) -> str:
    counts = numbers([block["singlesPerSinglesUnitHistogram"] for block in blocks])
    seconds = sum(
        int(block["timeInterval"]["stop"]) - int(block["timeInterval"]["start"])
        for block in blocks
    ) / 1000.0  # fmt: skip
    if not counts.size or not seconds > 0 or not np.isfinite(counts).all():
        return ""
    return f": {counts.sum() / seconds:.3g} singles/s in all"
