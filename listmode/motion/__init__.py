"""Where the patient was, when that changed, and which minutes to keep."""

from __future__ import annotations

from listmode.motion.analyse import MotionResult, MotionSettings, analyse_motion, fit_to_ct
from listmode.motion.bladder import Bladder, BladderSearch, BladderSettings, locate_bladder
from listmode.motion.changes import Change, Changes, ChangeSettings, find_changes
from listmode.motion.ct_match import CtFit, CtMatch, attenuation_error, match_mu_map
from listmode.motion.live import Alert, LiveSettings, LiveWatch, watch
from listmode.motion.select import Choice, LeftOut, Selection, select_windows
from listmode.motion.trace import MotionTrace, TraceSettings, trace_position

__all__ = [
    "Alert",
    "Bladder",
    "BladderSearch",
    "BladderSettings",
    "Change",
    "ChangeSettings",
    "Changes",
    "Choice",
    "CtFit",
    "CtMatch",
    "LeftOut",
    "LiveSettings",
    "LiveWatch",
    "MotionResult",
    "MotionSettings",
    "MotionTrace",
    "Selection",
    "TraceSettings",
    "analyse_motion",
    "attenuation_error",
    "find_changes",
    "fit_to_ct",
    "locate_bladder",
    "match_mu_map",
    "select_windows",
    "trace_position",
    "watch",
]
