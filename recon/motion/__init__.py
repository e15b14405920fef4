"""Where the patient lay during the scan, and what that makes of the detector."""

from recon.motion.courses import (
    MAX_POSES,
    poses_from_changes,
    poses_from_movements,
    poses_from_samples,
    whole_body_moves,
)
from recon.motion.detector import move_rays, move_scanner, move_volume
from recon.motion.poses import Poses, invert, join, rigid

__all__ = [
    "MAX_POSES",
    "Poses",
    "invert",
    "join",
    "move_rays",
    "move_scanner",
    "move_volume",
    "poses_from_changes",
    "poses_from_movements",
    "poses_from_samples",
    "rigid",
    "whole_body_moves",
]
