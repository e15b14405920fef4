"""What ``stillpet motion --live`` and ``stillpet bench motion`` do."""

from __future__ import annotations

from pathlib import Path

from listmode.formats import open_listmode
from listmode.motion.live import Alert, watch
from recon.cli.console import Session
from recon.io.tables import save_json
from recon.pipeline.benchmark import load_module


def follow_live(run: Session, file: Path, folder: Path, *, threads: int, idle_s: float) -> None:
    """Watch a growing file until it is finished, or nothing comes any more; tell each alert.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    alerts: list[Alert] = []
    note = ""
    with open_listmode(file) as listmode:
        seen_ms = listmode.start_ms
        for follower, new in watch(listmode, idle_s=idle_s, threads=threads):
            seen_ms = follower.seen_ms
            if follower.note != note:
                note = follower.note
                run.say(f"{seen_ms / 1000:.0f} s: {note}")
            for alert in new:
                alerts.append(alert)
                run.say(_line(alert))
        result = {
            "clock_zero": listmode.clock_zero,
            "is_complete": listmode.is_complete,
            "seen_s": seen_ms / 1000.0,
            "note": note,
            "alerts": [a.to_dict() for a in alerts],
        }
    save_json(folder / "alerts.json", result)
    lines = [_line(a) for a in alerts] or ["no alert"]
    run.finish(result, [*lines, f"watched {seen_ms / 1000:.0f} s; {note}"])


def _line(alert: Alert) -> str:
    x, y, z = alert.shift_mm
    return (
        f"ALERT at {alert.time_s:.0f} s: the patient moved by {alert.length_mm:.0f} mm "
        f"(x {x:+.0f}, y {y:+.0f}, z {z:+.0f}); stillpet motion confirms it after the scan"
    )


def run_motion_suite(run: Session, folder: Path, *, scale: float) -> None:
    """Draw what is missing of the motion suite, tune and judge every detector.

    Raises
    ------
    InputError
        If stillpet does not run from a source checkout.
    """
    suite = load_module("motion_suite")
    suite.run(folder, scale, say=run.say)
    results = suite.score(folder)
    run.finish({"results": results}, list(suite.table(results)))
