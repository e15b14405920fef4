"""Watching a scan while it is acquired: an alert seconds after a large shift."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.histogram import accumulate
from listmode.motion.bladder import Bladder, locate_bladder
from listmode.motion.region import RegionEvents
from listmode.motion.solve import solve_places
from listmode.motion.trace import FollowedBladder, TraceSettings, collect_around, follow_bladder
from listmode.source import Listmode
from listmode.windows import Windows

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class LiveSettings:
    """When a scan under way alarms.

    Parameters
    ----------
    learn_s
        How much of the scan is seen before the watch begins, s: the bladder is looked for and
        the template made. Without a bladder they are tried again after as long.
    reach_s
        The mean position of so many latest seconds is compared, s.
    trail_s
        With the median position of so many seconds before them, s: a bladder that fills
        moves by less than 1 mm in that time.
    min_shift_mm
        Smallest distance that alarms, mm.
    n_sigmas
        And how many of its standard errors it must reach. Six of them are passed by noise
        once in 1e8 looks, of which a scan of 20 min has 1200.
    relearn_s
        The template is made anew after this long without an alert, s: it grows as it fills.
    """

    learn_s: float = 60.0
    reach_s: float = 3.0
    trail_s: float = 60.0
    min_shift_mm: float = 6.0
    n_sigmas: float = 6.0
    relearn_s: float = 240.0

    def __post_init__(self) -> None:
        if min(self.learn_s, self.reach_s, self.trail_s, self.min_shift_mm) <= 0:
            raise InputError(
                "a watch needs a positive time to learn, reach, trail and shift, but they are "
                f"{self.learn_s:g} s, {self.reach_s:g} s, {self.trail_s:g} s and "
                f"{self.min_shift_mm:g} mm; correct them"
            )


@dataclass(frozen=True)
class Alert:
    """A shift that was just seen; the full analysis confirms or withdraws it later.

    Parameters
    ----------
    time_s
        Scan time up to which events were looked at when the rule first held, s.
    shift_mm, standard_error_mm
        Displacement from where the bladder was before, x, y, z, and its error, mm.
    """

    time_s: float
    shift_mm: tuple[float, float, float]
    standard_error_mm: tuple[float, float, float]

    @property
    def length_mm(self) -> float:
        """Length of the shift, mm."""
        return float(np.linalg.norm(self.shift_mm))

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "time_s": self.time_s,
            "shift_mm": list(self.shift_mm),
            "standard_error_mm": list(self.standard_error_mm),
        }


class LiveWatch:
    """Follow the bladder of a growing scan, second by second.

    A one-sided rule of its own looks only back: the mean of the latest three seconds against
    the median of the minute before. It knows less than
    :func:`listmode.motion.changes.find_changes`, and answers within seconds.

    Parameters
    ----------
    listmode
        An open scan; :meth:`update` lets it read what was written since.
    settings
        When to alarm.
    threads
        Threads; the alerts do not depend on them, nor on how often ``update`` is called.

    Attributes
    ----------
    seen_ms
        Scan time up to which events were looked at.
    note
        What the watch rests on, in words.
    """

    def __init__(
        self, listmode: Listmode, settings: LiveSettings | None = None, *, threads: int = 2
    ) -> None:
        self._listmode = listmode
        self._rules = settings or LiveSettings()
        self._threads = threads
        self._followed: FollowedBladder | None = None
        self._bladder: Bladder | None = None
        self._learned_ms = listmode.start_ms
        self.seen_ms = listmode.start_ms
        self.note = "learning"
        self._clear(listmode.start_ms)

    @property
    def is_watching(self) -> bool:
        """Whether a bladder is followed: without one there are no alerts."""
        return self._followed is not None

    def _clear(self, at_ms: int) -> None:
        """Forget the positions before a time: they belong to another place."""
        self._known_since_ms = at_ms
        self._place = np.empty((0, 3))
        self._error = np.empty((0, 3))

    def update(self) -> tuple[Alert, ...]:
        """Read what is new, whole seconds of it, and give the alerts in it."""
        self._listmode.refresh()
        alerts: list[Alert] = []
        while self._step(alerts):
            pass
        return tuple(alerts)

    def _step(self, alerts: list[Alert]) -> bool:
        """Learn, or look at the next second; False if not enough of the scan is there."""
        new = (self._listmode.stop_ms - self.seen_ms) // 1000 * 1000
        if self._followed is None:
            need_ms = round(1000 * self._rules.learn_s)
            if new < need_ms:
                return False
            self._learn(self.seen_ms, self.seen_ms + need_ms)
            return True
        if not new:
            return False
        if self.seen_ms >= self._learned_ms + round(1000 * self._rules.relearn_s):
            self._relearn()
        # One second at a time: the alerts do not depend on how often there is a look.
        place, error = self._position(self.seen_ms)
        self._place = np.vstack((self._place, place))[-self._kept :]
        self._error = np.vstack((self._error, error))[-self._kept :]
        self.seen_ms += 1000
        if (alert := self._look()) is not None:
            alerts.append(alert)
            self._clear(self.seen_ms)
        return True

    @property
    def _kept(self) -> int:
        """How many seconds are remembered."""
        return round(self._rules.trail_s + self._rules.reach_s) + 1

    def _learn(self, start_ms: int, stop_ms: int) -> None:
        windows = Windows([start_ms], [stop_ms])
        search = locate_bladder(accumulate(self._listmode, windows, threads=self._threads))
        self.note = search.note
        self.seen_ms = self._learned_ms = stop_ms
        self._bladder = search.best
        if search.best is None:
            self._followed = None
            return
        self._follow(windows, search.best)
        followed = self._followed
        assert followed is not None
        place = followed.trace.displacement_mm + followed.trace.reference_mm
        self._known_since_ms = start_ms
        self._place, self._error = place, followed.trace.standard_error_mm
        if not np.isfinite(place).all(axis=1).any():
            self._followed = None
            self.note = "no bladder: too few events to follow it by the second"

    def _relearn(self) -> None:
        """Make the template anew from the latest seconds at this place, if they suffice."""
        start = max(self.seen_ms - round(1000 * self._rules.learn_s), self._known_since_ms)
        if self.seen_ms - start >= 500 * self._rules.learn_s and self._bladder is not None:
            at = self._last_place()
            x, y, z = at.tolist()
            self._follow(
                Windows([start], [self.seen_ms]), replace(self._bladder, centre_mm=(x, y, z))
            )
            self._learned_ms = self.seen_ms

    def _follow(self, windows: Windows, bladder: Bladder) -> None:
        events = self._collect(windows, bladder)
        settings = TraceSettings(window_ms=1000)
        self._followed = follow_bladder(
            events, bladder, settings=settings, threads=self._threads
        )

    def _collect(self, windows: Windows, bladder: Bladder) -> RegionEvents:
        return collect_around(self._listmode, bladder, windows=windows, threads=self._threads)

    def _last_place(self) -> F64:
        good = np.flatnonzero(np.isfinite(self._place).all(axis=1))
        if good.size:
            return np.asarray(np.median(self._place[good[-5:]], axis=0))
        assert self._followed is not None
        return self._followed.centre_mm

    def _position(self, start_ms: int) -> tuple[F64, F64]:
        """Solve one second, beginning at the last place. Shapes (1, 3)."""
        assert self._followed is not None
        assert self._bladder is not None
        at = self._last_place()
        x, y, z = at.tolist()
        events = self._collect(
            Windows([start_ms], [start_ms + 1000]),
            replace(self._bladder, centre_mm=(x, y, z)),
        )
        edges = np.array([start_ms, start_ms + 1000], dtype=np.int64)
        template = self._followed.template
        solved = solve_places(events, template, edges, at[None], np.ones(1), self._threads)
        return solved.place, solved.error

    def _look(self) -> Alert | None:
        """Apply the rule to the latest seconds: one side only, for there is no other yet."""
        rules = self._rules
        n_now, n_before = max(round(rules.reach_s), 1), max(round(rules.trail_s), 3)
        now = slice(-n_now, None)
        before = slice(-n_now - n_before, -n_now)
        finite = np.isfinite(np.hstack((self._place, self._error)))
        good: NDArray[np.bool_] = np.asarray(finite.all(axis=1))
        if len(self._place) < n_now or not good[now].all() or good[before].sum() < 5:
            return None
        old = self._place[before][good[before]]
        middle = np.median(old, axis=0)
        # The seconds' own scatter counts where it is larger than their errors say.
        spread = np.median(np.abs(old - middle), axis=0) / 0.6745
        noise = np.maximum(self._error[now].mean(axis=0), spread)
        # Each of the latest seconds must agree, so that one with a stray position does not.
        shift = self._place[now].mean(axis=0) - middle
        error = noise * np.sqrt(1.0 / n_now + 1.57 / len(old))  # 1.57: a median's variance
        length = float(np.linalg.norm(shift))
        along = shift / max(length, 1e-9)
        each = (self._place[now] - middle) @ along
        far_enough = length >= rules.min_shift_mm and (each > rules.min_shift_mm / 2.0).all()
        if not far_enough or length < rules.n_sigmas * float(
            np.sqrt((along * error) @ (along * error))
        ):
            return None
        (x, y, z), (ex, ey, ez) = shift.tolist(), error.tolist()
        return Alert(self.seen_ms / 1000.0, (x, y, z), (ex, ey, ez))


def watch(
    listmode: Listmode,
    *,
    settings: LiveSettings | None = None,
    poll_s: float = 0.5,
    idle_s: float = 30.0,
    threads: int = 2,
) -> Iterator[tuple[LiveWatch, tuple[Alert, ...]]]:
    """Follow a growing scan until it is complete, or nothing was added for some time.

    Parameters
    ----------
    listmode
        An open scan.
    settings
        When to alarm.
    poll_s, idle_s
        Wait between looks, and how long without anything new ends the watch, s.
    threads
        Threads.

    Yields
    ------
    tuple
        The watch and the new alerts, after every look that found something new.
    """
    follower = LiveWatch(listmode, settings, threads=threads)
    changed = time.monotonic()
    while True:
        before = follower.seen_ms
        stop_ms = listmode.stop_ms
        alerts = follower.update()
        if follower.seen_ms != before or listmode.stop_ms != stop_ms:
            changed = time.monotonic()
        if follower.seen_ms != before:
            yield follower, alerts
        if listmode.is_complete and listmode.stop_ms - follower.seen_ms < 1000:
            return
        if listmode.is_complete and not follower.is_watching and follower.seen_ms == before:
            return
        if time.monotonic() - changed > idle_s:
            return
        if follower.seen_ms == before:
            time.sleep(poll_s)
