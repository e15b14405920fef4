"""Growing columns of an HDF5 listmode file, and what may go into them."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import _hdf5_layout as layout
from listmode.scanner import Scanner
from listmode.source import I64, Stream

U8 = NDArray[np.uint8]


class GrowingColumn:
    """One growing dataset.

    Parameters
    ----------
    group, name, dtype, unit
        Where it is made, and what it holds.
    chunk
        Values a chunk.
    is_live
        Whether parts of chunks may be written. Such a chunk is written again when it grows, so
        it has no checksum: a torn write would make it wrong for values stored long before.
        What was never written reads as the largest value or -1.
    """

    def __init__(
        self, group: h5py.Group, name: str, dtype: str, chunk: int, unit: str, *, is_live: bool
    ) -> None:
        self.dataset = group.create_dataset(
            name,
            shape=(0,),
            maxshape=(None,),
            dtype=dtype,
            chunks=(chunk,),
            fletcher32=not is_live,
            fillvalue=np.array(-1).astype(dtype) if is_live else None,
        )
        self.dataset.attrs["unit"] = unit
        self._chunk = chunk
        self.chunk_bytes = chunk * self.dataset.dtype.itemsize
        self._pending: list[NDArray[Any]] = []
        self.n_pending = 0

    def append(self, values: NDArray[Any]) -> None:
        """Take values to write later."""
        self._pending.append(np.array(values, dtype=self.dataset.dtype))
        self.n_pending += len(values)

    def write_whole_chunks(self) -> bool:
        """Write what fills chunks, so that no chunk is ever written twice; say if any did."""
        if self.n_pending < self._chunk:
            return False
        self.write(self.n_pending - self.n_pending % self._chunk)
        return True

    def write(self, n: int | None = None) -> None:
        """Write the first ``n`` waiting values, or all."""
        values = np.concatenate(self._pending) if self._pending else np.empty(0)
        n = len(values) if n is None else n
        if n:
            start = len(self.dataset)
            self.dataset.resize((start + n,))
            self.dataset[start:] = values[:n]
        self._pending = [values[n:]]
        self.n_pending = len(values) - n


class StreamColumns:
    """The columns and the tick index of one stream."""

    def __init__(self, group: h5py.Group, *, has_truth: bool, is_live: bool = False) -> None:
        columns = dict(layout.COLUMNS) | ({"truth": layout.TRUTH_DTYPE} if has_truth else {})
        n_events = layout.LIVE_CHUNK_EVENTS if is_live else layout.CHUNK_EVENTS
        self.columns = {
            name: GrowingColumn(group, name, dtype, n_events, "1", is_live=is_live)
            for name, dtype in columns.items()
        }
        self.ticks = GrowingColumn(
            group, "tick_offset", layout.TICK_DTYPE, layout.CHUNK_TICKS, "events",
            is_live=is_live,
        )  # fmt: skip
        self.ticks.append(np.zeros(1, np.int64))
        self.n_events = 0
        self.n_ticks = 0

    def append(self, batch: EventBatch, n_per_tick: I64, truth: U8 | None) -> None:
        """Take the events of the next ticks."""
        arrays: dict[str, NDArray[Any]] = {
            "crystal_a": batch.crystal_a,
            "crystal_b": batch.crystal_b,
            "tof_bin": batch.tof_bin,
        }
        if truth is not None:
            arrays["truth"] = truth
        for name, values in arrays.items():
            self.columns[name].append(values)
        self.ticks.append(self.n_events + np.cumsum(n_per_tick, dtype=np.int64))
        self.n_events += len(batch)
        self.n_ticks += len(n_per_tick)

    def write_whole_chunks(self) -> bool:
        """Write what fills chunks; say whether anything was written."""
        wrote = [column.write_whole_chunks() for column in self.all()]
        return any(wrote)

    def all(self) -> tuple[GrowingColumn, ...]:
        """Give all columns, the tick index last."""
        return (*self.columns.values(), self.ticks)

    def pad(self, n_ticks: int) -> None:
        """Add empty ticks up to a number of them."""
        self.ticks.append(np.full(n_ticks - self.n_ticks, self.n_events, np.int64))
        self.n_ticks = n_ticks


def check_efficiency(scanner: Scanner, crystal_efficiency: NDArray[np.float32] | None) -> None:
    """Refuse efficiencies that are not one a crystal.

    Raises
    ------
    InputError
        If their number is wrong.
    """
    if crystal_efficiency is not None and crystal_efficiency.shape != (scanner.n_crystals,):
        raise InputError(
            f"crystal efficiencies must be one a crystal ({scanner.n_crystals}), but their "
            f"shape is {crystal_efficiency.shape}; give one number a crystal"
        )


def check_append(
    scanner: Scanner,
    stream: Stream,
    batch: EventBatch,
    n_per_tick: I64,
    truth: U8 | None,
    *,
    has_truth: bool,
) -> None:
    """Refuse events that do not fit their ticks, the scanner or the file.

    Raises
    ------
    InputError
        If counts and events disagree or an event does not fit the scanner.
    """
    if n_per_tick.sum() != len(batch) or (n_per_tick < 0).any():
        raise InputError(
            f"the counts of the ticks must add up to the events, but {n_per_tick.sum()} "
            f"are counted and {len(batch)} are given; count the events of each tick"
        )
    has_truth = has_truth and stream == "prompts"
    if has_truth != (truth is not None) or (truth is not None and len(truth) != len(batch)):
        raise InputError(
            f"truth must be given for {'every event' if has_truth else 'no event'} of "
            f"{stream}, but it is given for {0 if truth is None else len(truth)} of "
            f"{len(batch)}; open the writer with has_truth to store it for prompts"
        )
    if not len(batch):
        return
    top, n = int(batch.crystal_b.max()), scanner.n_crystals
    if top >= n:
        raise InputError(
            f"crystal numbers must be below {n} for scanner {scanner.name!r}, but "
            f"one is {top}; write the file with the scanner of its events"
        )
    low, high = int(batch.tof_bin.min()), int(batch.tof_bin.max())
    if low < 0 or high >= scanner.tof.n_bins:
        raise InputError(
            f"TOF bins must lie in 0-{scanner.tof.n_bins - 1} for scanner "
            f"{scanner.name!r}, but they reach from {low} to {high}; "
            "write the file with the scanner of its events"
        )
