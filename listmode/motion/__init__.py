"""Where the patient was, when that changed, and which minutes to keep."""

from __future__ import annotations

from listmode.motion.analyse import MotionResult, MotionSettings, analyse_motion
from listmode.motion.bladder import Bladder, BladderSearch, BladderSettings, locate_bladder
from listmode.motion.changes import Change, Changes, ChangeSettings, find_changes
from listmode.motion.select import Choice, LeftOut, Selection, select_windows
from listmode.motion.trace import MotionTrace, TraceSettings, trace_position

__all__ = [
    "Bladder",
    "BladderSearch",
    "BladderSettings",
    "Change",
    "ChangeSettings",
    "Changes",
    "Choice",
    "LeftOut",
    "MotionResult",
    "MotionSettings",
    "MotionTrace",
    "Selection",
    "TraceSettings",
    "analyse_motion",
    "find_changes",
    "locate_bladder",
    "select_windows",
    "trace_position",
]
