"""Put events in order of their keys, in memory or, if they are too many, in files.

Events scattered over files as large as a scan would have each page of them written again and
again: five times as much as there is. So they go by groups of neighbouring keys, each a run of
the files: first every event behind the last one of its group, in order of time; then each group
by itself, in memory, in order of its keys.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from recon import _kernels

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Columns = list[NDArray[Any]]
Folder = tempfile.TemporaryDirectory[str]

T = TypeVar("T")

BYTES_PER_EVENT = 14
TYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.uint32),
    np.dtype(np.uint32),
    np.dtype(np.int16),
    np.dtype(np.float32),
)
_KEY: np.dtype[Any] = np.dtype(np.int32)  # waits where the additive term will be
_SORTERS = 2  # groups in memory at a time, each twice


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Make the next item in another thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def make_keys(bucket: I32, number: int, n_subsets: int, n_buckets: int) -> I32:
    """Give subset and bucket of events as one number, -1 for those in no bucket.

    Event ``number + k`` of a union belongs to subset ``(number + k) % n_subsets``.
    """
    subset = np.roll(np.arange(n_subsets, dtype=np.int32), -(number % n_subsets))
    key = np.tile(subset, -(-bucket.size // n_subsets))[: bucket.size]
    key *= np.int32(n_buckets)
    key += bucket
    key[bucket < 0] = -1
    return key


def count_keys(key: I32, n_keys: int) -> tuple[I64, int]:
    """Count the events of each key, and those of none."""
    counts = np.bincount(key + np.int32(1), minlength=n_keys + 1)
    return counts[1:].astype(np.int64), int(counts[0])


def order_events(
    keyed: Iterator[tuple[EventBatch, I32]],
    first: I64,
    memory_bytes: int,
    advance: Callable[[int], None],
) -> tuple[Folder | None, Columns]:
    """Order events by key, those of one key in the order in which they come.

    Parameters
    ----------
    keyed
        Batches and the keys of their events, -1 for those that are left out.
    first
        Place of the first event of each key, and the number of all. Shape (n_keys + 1,).
    memory_bytes
        Columns larger than this go to files, which take about as much memory to fill.
    advance
        Receives numbers of events done, those left out included.

    Returns
    -------
    folder
        Of the files; ``None`` in memory.
    columns
        Crystals a and b, TOF bins, and room for the additive term. Each of shape (n,).

    Raises
    ------
    InputError
        If the disk is full.
    """
    n = int(first[-1])
    if n * BYTES_PER_EVENT > memory_bytes:
        return _order_in_files(keyed, first, memory_bytes, advance)
    columns: Columns = [np.empty(n, t) for t in TYPES]
    cursor = first[:-1].copy()
    for batch, key in ahead(keyed):
        _place(key, cursor, (batch.crystal_a, batch.crystal_b, batch.tof_bin), columns[:3])
        advance(key.size)
    return None, columns


def _place(
    bucket: I32, cursor: I64, columns: Sequence[NDArray[Any]], out: Sequence[NDArray[Any]]
) -> None:
    """Copy columns behind the cursor of each event's bucket, which moves on."""
    moved = cursor
    for column, new in zip(columns, out, strict=True):
        moved = cursor.copy()
        _kernels.place_column(bucket, moved, column, new)
    cursor[:] = moved


def _order_in_files(
    keyed: Iterator[tuple[EventBatch, I32]],
    first: I64,
    memory_bytes: int,
    advance: Callable[[int], None],
) -> tuple[Folder, Columns]:
    n = int(first[-1])
    folder = tempfile.TemporaryDirectory(prefix="stillpet-", ignore_cleanup_errors=True)
    paths = [Path(folder.name) / f"column{k}" for k in range(len(TYPES))]
    edges = _group_edges(first, memory_bytes // (2 * _SORTERS * BYTES_PER_EVENT))
    try:
        n_left = _append_to_groups(keyed, first[edges], edges, paths, advance)

        def sort(g: int) -> int:
            _sort_group(first[edges[g] : edges[g + 1] + 1], int(edges[g]), paths)
            return int(first[edges[g + 1]] - first[edges[g]])

        done = 0
        with ThreadPoolExecutor(_SORTERS) as pool:
            for size in pool.map(sort, range(len(edges) - 1)):
                before, done = done, done + size
                advance(n_left * done // n - n_left * before // n)
        columns = [
            np.memmap(path, t, "r+", shape=(n,)).view(np.ndarray)
            for path, t in zip(paths, TYPES, strict=True)
        ]
    except OSError as error:
        folder.cleanup()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place, gigabytes = str(Path(folder.name).parent), n * BYTES_PER_EVENT / 1e9
        raise InputError(
            f"the folder for temporary files, {place!r}, must have room for {gigabytes:.1f} GB "
            "of ordered events, but its disk is full; make room or name another one in TMPDIR"
        ) from None
    except BaseException:
        folder.cleanup()
        raise
    return folder, columns


def _group_edges(first: I64, n_most: int) -> I64:
    """Cut the keys into groups of at most ``n_most`` events, or one key."""
    edges, n_keys = [0], len(first) - 1
    while edges[-1] < n_keys:
        reach = int(np.searchsorted(first, first[edges[-1]] + n_most, side="right")) - 1
        edges.append(min(max(reach, edges[-1] + 1), n_keys))
    return np.array(edges, np.int64)


def _append_to_groups(
    keyed: Iterator[tuple[EventBatch, I32]],
    place: I64,
    edges: I64,
    paths: Sequence[Path],
    advance: Callable[[int], None],
) -> int:
    """Write events and keys behind those of their group; give what is left to advance."""
    n_groups = len(edges) - 1
    group_of = np.repeat(np.arange(n_groups, dtype=np.int32), np.diff(edges))
    group_of = np.append(group_of, np.int32(-1))  # which key -1 finds
    at, n_left = place[:-1].copy(), 0
    files = [path.open("wb", buffering=0) for path in paths]
    try:
        for batch, key in ahead(keyed):
            group = group_of[key]
            counts, _ = count_keys(group, n_groups)
            cuts = np.concatenate(([0], np.cumsum(counts)))
            parts = [np.empty(int(cuts[-1]), t) for t in (*TYPES[:3], _KEY)]
            columns = (batch.crystal_a, batch.crystal_b, batch.tof_bin, key)
            _place(group, cuts[:-1].copy(), columns, parts)
            for g in np.flatnonzero(counts).tolist():
                for file, part in zip(files, parts, strict=True):
                    _write(file, part[cuts[g] : cuts[g + 1]], int(at[g]))
            at += counts
            advance(key.size // 2)  # the other half when its group is sorted
            n_left += key.size - key.size // 2
    finally:
        for file in files:
            file.close()
    return n_left


def _sort_group(first: I64, key_0: int, paths: Sequence[Path]) -> None:
    """Order one group's run of the files by key."""
    start, n = int(first[0]), int(first[-1] - first[0])
    if not n:
        return
    a, b, tof_bin, key = (
        np.fromfile(path, t, n, offset=start * t.itemsize)
        for path, t in zip(paths, (*TYPES[:3], _KEY), strict=True)
    )
    columns = [np.empty(n, t) for t in TYPES[:3]]
    key -= np.int32(key_0)
    _place(key, first[:-1] - start, (a, b, tof_bin), columns)
    for path, column in zip(paths[:3], columns, strict=True):
        with path.open("r+b", buffering=0) as file:
            _write(file, column, start)


def _write(file: Any, values: NDArray[Any], at: int) -> None:
    file.seek(at * values.itemsize)
    left = values.data.cast("B")
    while left:
        left = left[file.write(left) :]
