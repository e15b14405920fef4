"""Poses from what is known of a scan's motion: found shifts, or a sampled course."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError
from listmode.motion import Change, Changes
from listmode.windows import Windows
from recon.motion.poses import Poses, invert, overlap, span_ms

F64 = NDArray[np.float64]

MAX_POSES = 64  # each takes a copy of the crystals' positions: 3 MB for a long scanner
WHOLE_BODY = ("whole-body shift",)
JOIN_S = 10.0
NORMAL_95 = 1.959964  # half width of a 95 % interval in standard errors


def poses_from_changes(
    changes: Changes,
    extent: Windows,
    *,
    reference_s: float | None = None,
    kinds: Sequence[str] = WHOLE_BODY,
) -> Poses:
    """Turn the shifts of a scan into poses, one for each state between two of them.

    Local events move a part of the body only, and filling is no change of pose: neither
    makes one. Changes that lie nearer together than the trace can tell apart (10 s, or two of
    its windows) and point the same way are one move, of the whole body if one of them is: a
    step inside a long window is found as two. The errors of shifts between a state and the
    reference add up.

    Parameters
    ----------
    changes
        From :func:`listmode.motion.analyse_motion`.
    extent
        The time to cover.
    reference_s
        Scan time whose pose is the reference, s; that of the mu-map. The first state if
        ``None``.
    kinds
        Classes of change that move the whole body.
    """
    moves = [_joined(group) for group in whole_body_moves(changes, kinds)]
    edge = [span_ms(extent)[0], *(round(m.time_s * 1000) for m in moves), span_ms(extent)[1]]
    parts, states = [], []
    for k, (start, stop) in enumerate(pairwise(edge)):
        if stop > start and len(part := overlap(extent, Windows([start], [stop]))):
            parts.append(part)
            states.append(k)
    shift = np.array([m.shift_mm for m in moves]).reshape(-1, 3)
    interval = np.array([m.shift_interval_mm for m in moves]).reshape(-1, 3, 2)
    error = np.diff(interval)[..., 0] / 2 / NORMAL_95
    place, variance = (
        np.concatenate((np.zeros((1, 3)), np.cumsum(step, axis=0)))
        for step in (shift, error**2)
    )
    first = Poses.from_shifts(place[states], parts)
    state = states[0 if reference_s is None else first.at(reference_s)]
    return Poses.from_shifts(
        place[states] - place[state],
        parts,
        np.sqrt(np.abs(variance[states] - variance[state])),
        "trace",
    )


def whole_body_moves(changes: Changes, kinds: Sequence[str] = WHOLE_BODY) -> list[list[Change]]:
    """Group changes that are one move; give the groups that move the whole body."""
    step_s = np.diff(changes.time_s)
    join_s = max(JOIN_S, 2.0 * float(np.median(step_s)) if step_s.size else 0.0)
    groups: list[list[Change]] = []
    for change in changes.items:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and change.time_s - last.time_s < join_s
            and np.dot(change.shift_mm, last.shift_mm) > 0
        ):
            groups[-1].append(change)
        else:
            groups.append([change])
    return [group for group in groups if any(change.kind in kinds for change in group)]


def _joined(group: list[Change]) -> Change:
    """Add up the shifts of one move; its time is that which is known best."""
    if len(group) == 1:
        return group[0]
    best = min(group, key=lambda c: c.time_interval_s[1] - c.time_interval_s[0])
    shift = np.sum([c.shift_mm for c in group], axis=0)
    half = np.array([np.diff(c.shift_interval_mm)[:, 0] / 2 for c in group])
    reach = np.sqrt((half**2).sum(axis=0))
    x, y, z = shift.tolist()
    interval = tuple(zip((shift - reach).tolist(), (shift + reach).tolist(), strict=True))
    return replace(best, shift_mm=(x, y, z), shift_interval_mm=interval)


def poses_from_samples(
    time_s: ArrayLike,
    scanner_from_reference: F64,
    extent: Windows,
    *,
    covariance: F64 | None = None,
    tolerance_mm: float = 0.5,
    source: str = "samples",
) -> Poses:
    """Turn a sampled course, such as that of a tracking camera, into a few poses.

    A sample holds until the next one. Samples that agree within the tolerance become one pose.

    Parameters
    ----------
    time_s
        Ascending times on the scan clock. Shape (n,), s.
    scanner_from_reference
        Rigid transforms. Shape (n, 4, 4), mm.
    extent
        The time to cover.
    covariance
        See :class:`Poses`. Shape (n, 6, 6); zeros if ``None``.
    tolerance_mm
        See :meth:`Poses.merged`.

    Raises
    ------
    InputError
        If times do not ascend, the first comes after the scan's start, or more than
        ``MAX_POSES`` poses remain.
    """
    time_ms = np.rint(np.asarray(time_s, np.float64) * 1000).astype(np.int64)
    start, stop = span_ms(extent)
    if (bad := np.flatnonzero(np.diff(time_ms) <= 0)).size:
        raise InputError(
            "poses must ascend in time by whole ms, but that of row "
            f"{int(bad[0]) + 2} ({time_ms[bad[0] + 1] / 1000:g} s) does not come after the "
            "one before; sort them, and remove doubles"
        )
    if time_ms[0] > start:
        raise InputError(
            "the first pose must not come after the start of the time to cover "
            f"({start / 1000:g} s from tick zero), but it comes at {time_ms[0] / 1000:g} s; "
            "give the pose at the start too"
        )
    edge = np.append(time_ms, max(stop, int(time_ms[-1]) + 1))
    keep, parts = [], []
    for k, (a, b) in enumerate(pairwise(edge.tolist())):
        if len(part := overlap(extent, Windows([a], [b]))):
            keep.append(k)
            parts.append(part)
    spread = np.zeros((len(edge) - 1, 6, 6)) if covariance is None else covariance
    poses = Poses(scanner_from_reference[keep], tuple(parts), spread[keep], source)
    poses = poses.merged(tolerance_mm)
    if len(poses) > MAX_POSES:
        raise InputError(
            f"at most {MAX_POSES} poses can be told apart in one image, but {len(poses)} "
            f"remain at a tolerance of {tolerance_mm:g} mm; allow a larger one"
        )
    return poses


def poses_from_movements(
    bed: Sequence[tuple[int, F64]],
    gantry: Sequence[tuple[int, F64]],
    extent: Windows,
    *,
    tolerance_mm: float = 0.5,
) -> Poses:
    """Turn recorded moves of the bed and the gantry into poses.

    A move holds until the next one of its kind; before the first one bed and gantry stand at
    the reference. The patient goes with the bed, and the detector with the gantry.

    Parameters
    ----------
    bed
        When, ms, and the bed's transform from its reference position. Shape (3, 4), mm.
    gantry
        When, ms, and the transforms of the parts of the detector. Shape (n_parts, 3, 4), mm.
    extent
        The time to cover.
    tolerance_mm
        See :meth:`Poses.merged`: a bed that moves steadily comes in small steps.

    Raises
    ------
    InputError
        If parts of the detector move apart, or as :func:`poses_from_samples`.
    """
    for time_ms, transforms in gantry:
        if np.abs(transforms - transforms[:1]).max() > 1e-4:
            raise InputError(
                "all parts of the detector must move together to be one pose, but at "
                f"{time_ms / 1000:g} s they move apart; use only the time before it"
            )
    start = span_ms(extent)[0]
    moves = [(time, move[0]) for time, move in gantry]
    times = sorted({start, *(t for t, _ in bed), *(t for t, _ in moves)})
    matrix = np.stack([invert(_latest(moves, t)) @ _latest(bed, t) for t in times])
    return poses_from_samples(
        np.array(times) / 1000.0, matrix, extent, tolerance_mm=tolerance_mm,
        source="bed and gantry",
    )  # fmt: skip


def _latest(moves: Sequence[tuple[int, F64]], time_ms: int) -> F64:
    """Give the transform that holds at a time: the last one up to then. Shape (4, 4)."""
    matrix = np.eye(4)
    for at, move in moves:
        if at <= time_ms:
            matrix[:3] = move
    return matrix
