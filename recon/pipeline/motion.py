"""Motion for files and reports: the analysis, its files, and the mu-map's pose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from listmode.errors import InputError
from listmode.formats.petsird import PetsirdListmode
from listmode.motion import CtFit, MotionResult, analyse_motion, fit_to_ct
from listmode.motion.analyse import MuMap
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows
from recon.corrections.randoms import estimate_randoms
from recon.image import Volume
from recon.io.tables import save_json, save_table
from recon.motion import (
    Poses,
    poses_from_changes,
    poses_from_movements,
    whole_body_moves,
)
from recon.motion.registration import register_rigid
from recon.osem import OsemSettings
from recon.pipeline.images import choose_grid
from recon.reconstruct import reconstruct
from recon.scatter_loop import spread_part
from recon.sensitivity import compute_sensitivity
from recon.settings import GridSettings, Settings

SHORT_VOXEL_MM = 8.0  # of the short images that are registered
SHORT_EVENTS = 4_000_000
SHORT_OSEM = OsemSettings(
    n_iterations=2, n_subsets=5, psf_fwhm_mm=0.0, n_sensitivity_pairs=4_000_000
)
BLADDER_MM = 75.0  # radius about the bladder that registration leaves out: it fills
LEAST_MU_SHIFT_MM = 1.0  # smaller shifts of the mu-map change nothing that can be seen


def analyse(
    listmode: Listmode,
    *,
    mu: Volume | None = None,
    settings: Settings | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> MotionResult:
    """Find when and how far the patient moved and choose windows; see ``analyse_motion``.

    With a mu-map it is also asked whether the windows fit it, and windows that fit are
    preferred; not so if the time of the map is known, for then it follows the patient.
    """
    wanted = settings or Settings()
    return analyse_motion(
        listmode, settings=wanted.motion, mu_map=None if mu is None else _mu_arrays(mu),
        is_mu_fixed=wanted.corrections.mu_time_s is None, threads=threads, progress=progress,
    )  # fmt: skip


def _mu_arrays(mu: Volume) -> MuMap:
    x, y, z = (np.asarray(mu.grid.axis_mm(axis), np.float64) for axis in range(3))
    return np.asarray(mu.values, np.float64), (x, y, z)


def ct_fit(
    motion: MotionResult,
    mu: Volume | None,
    windows: Windows | None = None,
    moved_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> CtFit | None:
    """Say how windows lie to the mu-map; ``None`` if the analysis was made without one.

    Parameters
    ----------
    motion
        What was found, with the mu-map.
    mu
        The mu-map as it was given.
    windows
        Those of the image; those of the analysis if not given.
    moved_mm
        How far the map was moved since to follow the patient, mm.
    """
    if mu is None:
        return None
    kept = windows if windows is not None else motion.selection.windows
    return fit_to_ct(motion, kept, _mu_arrays(mu), moved_mm=moved_mm)


def motion_to_dict(
    listmode: Listmode,
    motion: MotionResult,
    windows: Windows | None = None,
    fit: CtFit | None = None,
) -> dict[str, Any]:
    """Give motion.json: changes, windows kept, time left out, clock zero, and who chose.

    Parameters
    ----------
    listmode
        The scan, for its clock and hash.
    motion
        What was found.
    windows
        Windows of the user's own choice; ``None`` for those of the analysis.
    fit
        How the kept windows lie to the mu-map, where there is one.
    """
    kept = windows if windows is not None else motion.selection.windows
    return {
        "stillpet": metadata.version("stillpet"),
        "scan": dict(listmode.provenance),
        "clock_zero": listmode.clock_zero,
        "scan_s": [listmode.start_ms / 1000.0, listmode.stop_ms / 1000.0],
        "chosen_by": "stillpet" if windows is None else "user",
        "windows_kept_s": [[a / 1000.0, b / 1000.0] for a, b in kept],
        **motion.to_dict(),
        "ct_fit": None if fit is None else fit.to_dict(),
    }


def save_motion(
    folder: Path,
    listmode: Listmode,
    motion: MotionResult,
    windows: Windows | None = None,
    fit: CtFit | None = None,
) -> None:
    """Write motion.json and motion.tsv (the trace: one row a window).

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    save_json(folder / "motion.json", motion_to_dict(listmode, motion, windows, fit))
    kept = windows if windows is not None else motion.selection.windows
    trace = motion.trace
    columns = ("start_s", "stop_s", "x_mm", "y_mm", "z_mm", "x_error_mm", "y_error_mm",
               "z_error_mm", "n_events", "kept")  # fmt: skip
    middle = trace.time_ms.astype(np.int64)
    rows = zip(
        (trace.edges_ms[:-1] / 1000.0).tolist(),
        (trace.edges_ms[1:] / 1000.0).tolist(),
        trace.displacement_mm.tolist(),
        trace.standard_error_mm.tolist(),
        trace.counts.tolist(),
        kept.covers(middle).tolist(),
        strict=True,
    )
    save_table(
        folder / "motion.tsv",
        columns,
        [
            (start, stop, *place, *(e if math.isfinite(e) else None for e in error), n, is_kept)
            for start, stop, place, error, n, is_kept in rows
        ],
    )


@dataclass(frozen=True, eq=False)
class MuPose:
    """The mu-map for the kept windows, and what has to be said about its pose."""

    mu: Volume | None
    notes: tuple[str, ...] = ()
    is_guess: bool = False  # the notes say where the map may lie: a match knows better
    moved_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


def fit_mu(
    motion: MotionResult, windows: Windows, mu: Volume | None, mu_time_s: float | None
) -> MuPose:
    """Bring the mu-map into the pose of the kept windows, or warn that it is in another.

    The pose is that of the found whole-body shifts, averaged over the windows. The map moves
    as a whole, the table with it.

    Parameters
    ----------
    motion
        What was found.
    windows
        The kept windows.
    mu
        Attenuation; ``None`` gives ``None``.
    mu_time_s
        Scan time whose pose the map shows; ``None`` if that is not known.
    """
    if mu is None:
        return MuPose(None)
    seconds = np.concatenate(
        [np.arange(a, b, 1000.0) for a, b in windows]
    ) / 1000.0  # fmt: skip
    of = motion.trace.edges_ms[0] / 1000.0 if mu_time_s is None else mu_time_s
    shift = motion.changes.motion_mm(seconds).mean(axis=0)
    shift = shift - motion.changes.motion_mm(np.array([of]))[0]
    distance = float(np.linalg.norm(shift))
    if distance < LEAST_MU_SHIFT_MM:
        return MuPose(mu)
    place = ", ".join(f"{value:+.1f}" for value in shift)
    if mu_time_s is None:
        return MuPose(
            mu,
            (
                f"The kept windows lie {distance:.1f} mm (x, y, z: {place} mm) from the pose "
                "at the start of the scan: if the mu-map shows that pose, attenuation is "
                "corrected in the wrong place; --mu-time 0 lets the map follow.",
            ),
            is_guess=True,
        )
    x, y, z = (float(o + d) for o, d in zip(mu.grid.origin_mm, shift, strict=True))
    moved = Volume(
        mu.values,
        replace(mu.grid, origin_mm=(x, y, z)),
        mu.unit,
        {**mu.provenance, "moved_mm": [float(value) for value in shift]},
    )
    return MuPose(
        moved,
        (
            f"For the still image the mu-map (of the pose at {mu_time_s:g} s) was moved by "
            f"{distance:.1f} mm (x, y, z: {place} mm) to where the patient lay.",
        ),
        moved_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
    )


def fit_notes(pose: MuPose, fit: CtFit | None) -> tuple[str, ...]:
    """Say how the kept windows lie to the mu-map, and how wrong SUVs are if they do not fit."""
    if fit is None:
        return pose.notes
    measured = [f"{text[0].upper()}{text[1:]}." for text in (fit.note, fit.warning) if text]
    return (*(() if pose.is_guess and all(fit.is_determinable) else pose.notes), *measured)


def find_poses(
    listmode: Listmode, motion: MotionResult, mu_time_s: float | None = None
) -> tuple[Poses, tuple[str, ...]]:
    """Turn the found shifts of the whole body into poses, and say what else was found.

    Parameters
    ----------
    listmode
        The scan.
    motion
        What was found.
    mu_time_s
        Scan time whose pose the mu-map shows: the reference. The first state if ``None``.

    Returns
    -------
    poses
        One a state.
    notes
        Changes that are not corrected, and why.
    """
    kinds = ["whole-body shift"]
    if motion.reference == "whole body":  # then what was followed is what moved
        kinds.append("unclassified")
    poses = poses_from_changes(
        motion.changes, listmode.extent, reference_s=mu_time_s, kinds=kinds
    )
    corrected = [c for group in whole_body_moves(motion.changes, kinds) for c in group]
    notes = []
    for change in motion.changes.items:
        if change in corrected:
            continue
        why = (
            f"it is a local event ({change.reason})"
            if change.kind == "local event"
            else "whether the whole body moved could not be seen; if it did, give it to "
            "stillpet recon with --poses"
        )
        notes.append(
            f"The change at {change.time_s:.0f} s ({change.length_mm:.1f} mm) is not "
            f"motion-corrected: {why}."
        )
    return poses, tuple(notes)


def recorded_poses(listmode: Listmode, windows: Windows) -> Poses:
    """Give the poses that follow from the moves of bed and gantry that a file holds.

    Raises
    ------
    InputError
        If the file's format holds none, or they cannot be used.
    """
    if not isinstance(listmode, PetsirdListmode):
        raise InputError(
            "moves of the bed must be in a PETSIRD file, but this file is of the format "
            f"{listmode.provenance.get('format', 'unknown')!r}; give the poses as a CSV file"
        )
    bed, gantry = (
        [
            (int(block["timeInterval"]["start"]), np.asarray(block[name], np.float64))
            for block in listmode.blocks(kind)
        ]
        for kind, name in (
            ("BedMovementTimeBlock", "transform"), ("GantryMovementTimeBlock", "transforms"),
        )
    )  # fmt: skip
    return poses_from_movements(bed, gantry, windows)


def register_poses(
    listmode: Listmode,
    poses: Poses,
    *,
    bladder_mm: ArrayLike | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
) -> Poses:
    """Find turns as well as shifts: register a short image of each pose to that at rest.

    The images are not corrected for attenuation, so that nothing in them stays with the
    mu-map; randoms are taken out where the file has delayed events.

    Parameters
    ----------
    listmode
        The scan.
    poses
        When the patient lay still, from the trace. One of them is the reference; its windows
        give the fixed image.
    bladder_mm
        Middle of the bladder in the fixed image, x, y, z, mm: it fills, and is left out.

    Returns
    -------
    Poses
        With the same windows.

    Raises
    ------
    InputError
        If no pose is the reference, or one holds too little to register.
    """
    at_rest = (poses.scanner_from_reference == np.eye(4)).all(axis=(1, 2))
    if not at_rest.any():
        raise InputError(
            "registration needs a pose that is the reference, but all "
            f"{len(poses)} differ from it; make one the reference with Poses.relative_to"
        )
    grid = choose_grid(listmode.scanner, GridSettings(voxel_mm=SHORT_VOXEL_MM))
    sensitivity = compute_sensitivity(
        listmode.scanner, grid, crystal_efficiency=listmode.crystal_efficiency,
        n_pairs=SHORT_OSEM.n_sensitivity_pairs, threads=threads, progress=progress,
    )  # fmt: skip

    def image_of(part: Windows) -> Volume:
        some = spread_part(listmode, part, SHORT_EVENTS)
        randoms = [estimate_randoms(listmode, some)] if listmode.n_events("delayeds") else []
        return reconstruct(
            listmode, some, grid=grid, settings=SHORT_OSEM, additive=randoms,
            sensitivity=sensitivity, threads=threads, progress=progress,
        )  # fmt: skip

    keep = np.ones(grid.shape, bool)
    if bladder_mm is not None:
        middle = np.asarray(bladder_mm, np.float64)
        place = [grid.axis_mm(axis) - middle[axis] for axis in range(3)]
        x, y, z = np.meshgrid(*place, indexing="ij", sparse=True)
        keep = x**2 + y**2 + z**2 > BLADDER_MM**2
    fixed = image_of(poses.windows[int(np.argmax(at_rest))])
    matrix, covariance = poses.scanner_from_reference.copy(), poses.covariance.copy()
    for k in np.flatnonzero(~at_rest).tolist():
        moving = image_of(poses.windows[k])
        fit = register_rigid(fixed, moving, keep=keep, weight=sensitivity.values)
        matrix[k], covariance[k] = fit.moving_from_fixed, fit.covariance
    return Poses(matrix, poses.windows, covariance, "registration")
