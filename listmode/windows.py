"""Half-open intervals of scan time, and unions of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from listmode.errors import InputError

I64 = NDArray[np.int64]


def _frozen_int64(values: ArrayLike) -> I64:
    array = np.array(values, dtype=np.int64, ndmin=1)  # a copy: nobody else can change it
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Windows:
    """A union of half-open time windows ``[start, stop)`` on the scan clock.

    The clock counts milliseconds from tick zero of the listmode stream (the first time tag's
    own zero, not the first event). Windows ascend, do not overlap and are not empty; windows
    may adjoin.

    Parameters
    ----------
    start_ms, stop_ms
        Starts and stops. Shape (n_windows,), int64, ms.

    Raises
    ------
    InputError
        If a window is empty or reversed, or if windows overlap or do not ascend.

    Examples
    --------
    >>> Windows([0, 20_000], [10_000, 30_000]).duration_s
    20.0
    """

    start_ms: I64
    stop_ms: I64

    def __init__(self, start_ms: ArrayLike, stop_ms: ArrayLike) -> None:
        start, stop = _frozen_int64(start_ms), _frozen_int64(stop_ms)
        object.__setattr__(self, "start_ms", start)
        object.__setattr__(self, "stop_ms", stop)
        if start.ndim != 1 or start.shape != stop.shape:
            raise InputError(
                f"each window needs one start and one stop, but there are {start.size} starts "
                f"and {stop.size} stops; give them in pairs"
            )
        if (bad := np.flatnonzero(stop <= start)).size:
            k = int(bad[0])
            raise InputError(
                f"a window must stop after it starts, but window {k} runs from "
                f"{start[k]} ms to {stop[k]} ms; exchange or correct its ends"
            )
        if (bad := np.flatnonzero(start[1:] < stop[:-1])).size:
            k = int(bad[0])
            raise InputError(
                f"windows must ascend without overlap, but window {k} "
                f"({start[k]}-{stop[k]} ms) and window {k + 1} "
                f"({start[k + 1]}-{stop[k + 1]} ms) do not; join or reorder them"
            )

    @classmethod
    def parse(cls, text: str) -> Windows:
        """Read windows from text such as ``"0-120,600-1200"`` (seconds from tick zero).

        Raises
        ------
        InputError
            If the text is not a comma-separated list of ``start-stop`` pairs in seconds, or if
            the windows break the rules of this class.

        Examples
        --------
        >>> str(Windows.parse("0-120,600-1200"))
        '0-120,600-1200 s'
        """
        starts: list[int] = []
        stops: list[int] = []
        for part in text.split(","):
            ends = part.strip().split("-")
            try:
                start_s, stop_s = (float(end) for end in ends)
                if not (math.isfinite(start_s) and math.isfinite(stop_s)):
                    raise ValueError
            except ValueError:
                raise InputError(
                    "windows must read like '0-120,600-1200' (seconds from tick zero), but "
                    f"{part.strip()!r} does not; write start-stop pairs joined by commas"
                ) from None
            starts.append(round(start_s * 1000))
            stops.append(round(stop_s * 1000))
        return cls(starts, stops)

    @classmethod
    def empty(cls) -> Windows:
        """Return the union of no windows."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def from_mask(cls, mask: ArrayLike, edges_ms: ArrayLike) -> Windows:
        """Join the intervals between ``edges_ms`` where ``mask`` is true into windows.

        Parameters
        ----------
        mask
            Shape (n,).
        edges_ms
            Ascending edges of the n intervals. Shape (n + 1,), ms.
        """
        edges = np.asarray(edges_ms, dtype=np.int64)
        padded = np.concatenate(([False], np.asarray(mask, dtype=bool), [False]))
        change = np.flatnonzero(padded[1:] != padded[:-1])
        return cls(edges[change[::2]], edges[change[1::2]])

    def __len__(self) -> int:
        return int(self.start_ms.size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.start_ms.tolist(), self.stop_ms.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Windows):
            return NotImplemented
        return np.array_equal(self.start_ms, other.start_ms) and np.array_equal(
            self.stop_ms, other.stop_ms
        )

    def __hash__(self) -> int:
        return hash((self.start_ms.tobytes(), self.stop_ms.tobytes()))

    def __str__(self) -> str:
        return ",".join(f"{a / 1000:g}-{b / 1000:g}" for a, b in self) + " s"

    def __repr__(self) -> str:
        return f"Windows({self.start_ms.tolist()}, {self.stop_ms.tolist()})"

    @property
    def duration_s(self) -> float:
        """Total length, s."""
        return float((self.stop_ms - self.start_ms).sum()) / 1000.0

    def merged(self) -> Windows:
        """Return the same union with adjoining windows joined."""
        if not len(self):
            return self
        keep = np.concatenate(([True], self.start_ms[1:] > self.stop_ms[:-1]))
        last = np.concatenate((keep[1:], [True]))
        return Windows(self.start_ms[keep], self.stop_ms[last])

    def union(self, other: Windows) -> Windows:
        """Return the time in either; overlapping and adjoining windows are joined."""
        edges = np.unique(
            np.concatenate((self.start_ms, self.stop_ms, other.start_ms, other.stop_ms))
        )
        if edges.size == 0:
            return Windows.empty()
        return Windows.from_mask(self.covers(edges[:-1]) | other.covers(edges[:-1]), edges)

    def intersection(self, other: Windows) -> Windows:
        """Return the time in both; adjoining windows are joined."""
        edges = np.unique(
            np.concatenate((self.start_ms, self.stop_ms, other.start_ms, other.stop_ms))
        )
        if edges.size == 0:
            return Windows.empty()
        return Windows.from_mask(self.covers(edges[:-1]) & other.covers(edges[:-1]), edges)

    def complement(self, start_ms: int, stop_ms: int) -> Windows:
        """Return the time of ``[start_ms, stop_ms)`` that is in no window."""
        inside = self.intersection(Windows([start_ms], [stop_ms]))
        edges = np.concatenate(([start_ms], np.ravel([*inside]), [stop_ms])).astype(np.int64)
        starts, stops = edges[::2], edges[1::2]
        keep = stops > starts
        return Windows(starts[keep], stops[keep])

    def cut(self, length_ms: int) -> Windows:
        """Cut each window into pieces of at most ``length_ms``; the last piece is the rest."""
        starts = [s for a, b in self for s in range(a, b, length_ms)]
        stops = [min(s + length_ms, b) for a, b in self for s in range(a, b, length_ms)]
        return Windows(np.array(starts, np.int64), np.array(stops, np.int64))

    def covers(self, time_ms: ArrayLike) -> NDArray[np.bool_]:
        """Say for each time (ms) whether it lies in a window."""
        time = np.asarray(time_ms, dtype=np.int64)
        if not len(self):
            return np.zeros(time.shape, dtype=bool)
        k = np.searchsorted(self.start_ms, time, side="right") - 1
        return np.asarray((k >= 0) & (time < self.stop_ms[np.maximum(k, 0)]))

    def decayed_duration_s(self, half_life_s: float) -> float:
        """Integrate the decay factor over the windows.

        Parameters
        ----------
        half_life_s
            Half-life, s; ``inf`` for no decay.

        Returns
        -------
        float
            The integral of ``2**(-t / half_life)`` dt over the windows, with t from tick zero,
            s. Counts divided by it are counts per second of the activity at tick zero.
        """
        if math.isinf(half_life_s):
            return self.duration_s
        rate = math.log(2.0) / half_life_s  # per s
        start, stop = self.start_ms / 1000.0, self.stop_ms / 1000.0
        return float((np.exp(-rate * start) * -np.expm1(-rate * (stop - start)) / rate).sum())
