from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats import open_listmode
from listmode.formats.live import LiveListmodeWriter
from listmode.memory import MemoryListmode
from listmode.motion.live import Alert, LiveSettings, LiveWatch, watch
from listmode.scanner import Scanner
from tests.listmode.motion.synthetic import MadeUpScan, make_listmode, step

F64 = NDArray[np.float64]
QUICK = LiveSettings(learn_s=20.0, trail_s=20.0, relearn_s=40.0)


def replay(scan: MemoryListmode, path: Path, writer_is_ready: threading.Event) -> None:
    """Write a scan into a live file by the second, twenty times faster than it was."""
    offset = scan.prompts_offset
    empty = EventBatch.empty()
    with LiveListmodeWriter(
        path, scanner=scan.scanner, protocol=scan.protocol, flush_every_s=0.0
    ) as writer:
        for start in range(0, scan.stop_ms, 1000):
            stop = min(start + 1000, scan.stop_ms)
            batch = scan.read("prompts", int(offset[start]), int(offset[stop]))
            writer.append("delayeds", empty, np.zeros(stop - start, np.int64))
            writer.append("prompts", batch, np.diff(offset[start : stop + 1]))
            writer_is_ready.set()
            time.sleep(0.05)


@pytest.mark.slow
def test_a_shift_alarms_within_five_seconds_while_the_file_grows(
    quadra: Scanner, tmp_path: Path
) -> None:
    """A bladder at SUV 14 that fills by 5 mL/min; 10 mm at 61.4 s of scan time."""
    scan = MadeUpScan(
        duration_s=70.0,
        background_hz=1500.0,
        filling_ml_min=5.0,
        body_move=step(61.4, (0.0, 6.0, 8.0)),
        seed=51,
    )
    ready = threading.Event()
    path = tmp_path / "growing.h5"
    thread = threading.Thread(target=replay, args=(make_listmode(quadra, scan), path, ready))
    thread.start()
    try:
        assert ready.wait(30.0)
        with open_listmode(path) as listmode:
            alerts: list[Alert] = []
            partly = False
            for follower, new in watch(listmode, settings=QUICK, poll_s=0.05, threads=1):
                alerts += new
                partly = partly or not listmode.is_complete
                assert follower.is_watching
    finally:
        thread.join()
    assert partly  # it did read the file while it grew
    (alert,) = alerts
    assert 61.4 < alert.time_s <= 61.4 + 5.0
    assert np.abs(np.subtract(alert.shift_mm, (0.0, 6.0, 8.0))).max() < 2.0
    assert alert.to_dict()["time_s"] == alert.time_s


@pytest.mark.slow
@pytest.mark.stats
def test_filling_and_small_shifts_do_not_alarm_and_later_shifts_do(quadra: Scanner) -> None:
    """Seed 52; 15 mL/min from 60 mL, a 3 mm shift, then 12 mm back and forth. By noise alone an
    alarm in the 90 s has a probability below 1e-6."""

    def path(time_s: F64) -> F64:
        small, back, forth = (
            step(t, (0.0, 0.0, mm))(time_s)
            for t, mm in ((45.0, 3.0), (65.0, -12.0), (80.0, 12.0))
        )
        return np.asarray(small + back + forth)

    scan = MadeUpScan(
        duration_s=90.0,
        background_hz=1500.0,
        volume_ml=60.0,
        filling_ml_min=15.0,
        body_move=path,
        seed=52,
    )
    whole = LiveWatch(make_listmode(quadra, scan), QUICK, threads=1)
    alerts = whole.update()
    delays = [a.time_s - t for a, t in zip(alerts, (65.0, 80.0), strict=True)]
    assert all(2.0 <= d <= 5.0 for d in delays)
    assert whole.update() == ()


def test_without_a_bladder_there_is_no_watch_and_it_is_said(quadra: Scanner) -> None:
    scan = MadeUpScan(duration_s=25.0, bladder_hz=0.0, background_hz=1500.0, seed=53)
    follower = LiveWatch(make_listmode(quadra, scan), QUICK, threads=1)
    assert follower.update() == ()
    assert not follower.is_watching
    assert follower.note.startswith("no bladder")


def test_a_watch_needs_time_to_learn() -> None:
    with pytest.raises(InputError, match="a watch needs a positive time to learn"):
        LiveSettings(learn_s=0.0)
