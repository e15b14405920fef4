"""The main job on one scan: motion, windows, images, hotspots, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from listmode.formats.info import describe
from listmode.motion import MotionResult
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows
from recon.hotspots.features import HotspotTable
from recon.image import Volume
from recon.io.nifti import resample_to, save_volume
from recon.io.poses import save_poses
from recon.io.tables import save_hotspots, save_json
from recon.motion import Poses
from recon.pipeline.images import (
    Reconstruction,
    check_events,
    choose_grid,
    reconstruct_scan,
    to_suv,
)
from recon.pipeline.labels import LabelMap
from recon.pipeline.measure import measure_image, without_ends
from recon.pipeline.motion import (
    analyse,
    ct_fit,
    find_poses,
    fit_mu,
    fit_notes,
    motion_to_dict,
    register_poses,
    save_motion,
)
from recon.report.build import Story, build_report
from recon.report.html import save_report
from recon.sensitivity import Sensitivity
from recon.settings import BootstrapSettings, Settings
from recon.suv import SUV_WORDS, SuvBy, suv_factor

RATE_MS = 2000  # time over which the report's count rates are averaged
LIVER = "liver"
NO_BOOTSTRAP = BootstrapSettings()


@dataclass(frozen=True, eq=False)
class RunResult:
    """What the main job found and wrote.

    Parameters
    ----------
    motion
        Changes, trace and selection.
    windows
        The windows of the still image.
    full, still
        Images of all and of the kept time; the same one where all was kept.
    corrected
        Motion-corrected image of all the time, in the reference pose; ``None`` where nobody
        moved or it was not wanted.
    poses
        Where the patient lay.
    hotspots_full, hotspots_still
        Their tables.
    notes
        What was not done, and warnings.
    files
        Names of what was written.
    about
        Motion and provenance as JSON values.
    """

    motion: MotionResult
    windows: Windows
    full: Reconstruction
    still: Reconstruction
    corrected: Reconstruction | None
    poses: Poses
    hotspots_full: HotspotTable
    hotspots_still: HotspotTable
    notes: tuple[str, ...]
    files: tuple[str, ...]
    about: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Give the run as JSON values."""
        return {
            **self.about,
            "full": self.full.to_dict(),
            "still": self.still.to_dict(),
            "corrected": None if self.corrected is None else self.corrected.to_dict(),
            "poses": self.poses.to_dict(),
            "n_hotspots": {"full": len(self.hotspots_full), "still": len(self.hotspots_still)},
            "notes": list(self.notes),
            "files": list(self.files),
        }


def run_scan(
    listmode: Listmode,
    folder: Path,
    *,
    mu: Volume | None = None,
    labels: LabelMap | None = None,
    windows: Windows | None = None,
    settings: Settings | None = None,
    correct_motion: bool = True,
    register: bool = False,
    threads: int = 2,
    cache_dir: Path | None = None,
    resume_dir: Path | None = None,
    progress: Progress = SILENT,
    say: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Do the main job on a scan and write everything it makes into a folder.

    Parameters
    ----------
    listmode
        The scan.
    folder
        Where the files go; it exists.
    mu, labels
        Attenuation and organs on any grid.
    windows
        Windows of the user's own choice; those of the motion analysis if not given.
    settings
        Of all stages.
    correct_motion
        Also reconstruct all the time with the found shifts of the whole body corrected.
    register
        Look for turns as well, by registration of short images of the states.
    threads, cache_dir, progress
        As everywhere.
    resume_dir
        Folder that keeps the states of the iterations; the caller removes it at the end.
    say
        Receives a line about each stage that is done.

    Raises
    ------
    InputError
        If windows, mu-map or label map do not fit the scan, or a file cannot be written.
    """
    wanted = settings or Settings()
    if windows is not None:
        check_events(listmode, windows)
    grid = choose_grid(listmode.scanner, wanted.grid)
    motion = analyse(listmode, mu=mu, settings=wanted, threads=threads, progress=progress)
    chosen = windows if windows is not None else motion.selection.windows
    pose = fit_mu(motion, chosen, mu, wanted.corrections.mu_time_s)
    fit = ct_fit(motion, mu, chosen, pose.moved_mm)
    save_motion(folder, listmode, motion, windows, fit)
    say(f"windows kept: {chosen}, counted from {listmode.clock_zero}")

    def image_of(
        part: Windows,
        name: str,
        matter: Volume | None,
        sensitivity: Sensitivity | None,
        poses: Poses | None = None,
    ) -> Reconstruction:
        is_resampled = name == "still"  # the image whose hotspots are listed first
        done = reconstruct_scan(
            listmode, part, grid=grid, mu=matter, threads=threads, resume_dir=resume_dir,
            settings=wanted if is_resampled else replace(wanted, bootstrap=NO_BOOTSTRAP),
            sensitivity=sensitivity, poses=poses, cache_dir=cache_dir, progress=progress,
        )  # fmt: skip
        path = folder / f"{name}.nii.gz"
        save_volume(path, done.volume, protocol=listmode.protocol, windows=part)
        say(f"{path.name} is written")
        return done

    full = image_of(listmode.extent, "full", mu, None)
    still = image_of(chosen, "still", pose.mu, full.sensitivity if pose.mu is mu else None)
    poses, unmoved = find_poses(listmode, motion, wanted.corrections.mu_time_s)
    if register and poses.is_moving:
        is_bladder = motion.reference == "bladder"
        poses = register_poses(
            listmode, poses, threads=threads, progress=progress,
            bladder_mm=motion.trace.reference_mm if is_bladder else None,
        )  # fmt: skip
    save_poses(folder / "poses.csv", poses)
    images = {"full": full, "still": still}
    if correct_motion and poses.is_moving:
        images["corrected"] = image_of(listmode.extent, "corrected", mu, None, poses)
    by = wanted.hotspots.suv_by
    factor = suv_factor(listmode.protocol, by)
    shown = {
        name: to_suv(done.volume, listmode.protocol, by) or done.volume
        for name, done in images.items()
    }
    searched = {
        name: without_ends(volume, full.sensitivity, wanted.hotspots.min_sensitivity)
        for name, volume in shown.items()
    }
    tables = {
        name: measure_image(
            volume,
            labels=labels,
            settings=wanted.hotspots,
            suv_per_bq_ml=factor,
            replicates=images[name].replicates,
        )
        for name, volume in searched.items()
    }
    more_files = save_deviation(folder, "still", listmode, still)
    save_hotspots(folder / "hotspots.csv", tables["still"])
    save_hotspots(folder / "hotspots_full.csv", tables["full"])
    if "corrected" in tables:
        save_hotspots(folder / "hotspots_corrected.csv", tables["corrected"])
    notes = (
        *_scan_notes(listmode, by), *full.notes, *fit_notes(pose, fit), *unmoved,
        *tables["still"].notes,
    )  # fmt: skip
    about = motion_to_dict(listmode, motion, windows, fit)
    result = RunResult(
        motion=motion,
        windows=chosen,
        full=full,
        still=still,
        corrected=images.get("corrected"),
        poses=poses,
        hotspots_full=tables["full"],
        hotspots_still=tables["still"],
        notes=notes,
        files=("report.html", *(f"{name}.nii.gz" for name in images), "motion.json",
               "motion.tsv", "poses.csv", "hotspots.csv", "hotspots_full.csv",
               *(["hotspots_corrected.csv"] if "corrected" in images else []), *more_files,
               "summary.json"),
        about=about,
    )  # fmt: skip
    save_json(folder / "summary.json", result.to_dict())
    story = _story(
        listmode, result, shown, mu=pose.mu, labels=labels, settings=wanted,
        is_user_choice=windows is not None,
    )  # fmt: skip
    save_report(folder / "report.html", build_report(story))
    return result


def save_deviation(
    folder: Path, name: str, listmode: Listmode, done: Reconstruction
) -> tuple[str, ...]:
    """Write the standard deviation image, where there are replicates; give its name."""
    if done.replicates is None:
        return ()
    deviation = done.replicates.standard_deviation()
    about = {**done.volume.provenance, **deviation.provenance}
    path = folder / f"{name}_sd.nii.gz"
    save_volume(
        path, replace(deviation, provenance=about), protocol=listmode.protocol,
        windows=done.windows,
    )  # fmt: skip
    return (path.name,)


def save_uncertainty(
    folder: Path, name: str, listmode: Listmode, done: Reconstruction, settings: Settings
) -> None:
    """Write the standard deviation image and the hotspots with their intervals, if any."""
    if not save_deviation(folder, name, listmode, done):
        return
    by = settings.hotspots.suv_by
    table = measure_image(
        to_suv(done.volume, listmode.protocol, by) or done.volume,
        settings=settings.hotspots,
        suv_per_bq_ml=suv_factor(listmode.protocol, by),
        replicates=done.replicates,
    )
    save_hotspots(folder / f"{name}_hotspots.csv", table)


def _scan_notes(listmode: Listmode, by: SuvBy) -> list[str]:
    notes = [f"The file: {defect}" for defect in listmode.defects]
    if not listmode.is_complete:
        notes.append("The file is not complete: what follows rests on the part that is there.")
    if listmode.protocol.suv_per_bq_ml is None:
        notes.append(
            "The file knows no injected activity or no weight: values are in Bq/mL, not SUV."
        )
    elif by != "weight":
        is_known = suv_factor(listmode.protocol, by) is not None
        lacking = "The file lacks height or sex: values are in Bq/mL, not "
        notes.append(("Values are " if is_known else lacking) + SUV_WORDS[by] + ".")
    return notes


def _story(
    listmode: Listmode,
    result: RunResult,
    shown: dict[str, Volume],
    *,
    mu: Volume | None,
    labels: LabelMap | None,
    settings: Settings,
    is_user_choice: bool,
) -> Story:
    full = shown["full"]
    info = describe(listmode, bin_ms=RATE_MS)
    rates = [("prompts", info.prompts_hz)]
    if info.n_delayeds:
        rates.append(("delayeds", info.delayeds_hz))
    scanner = listmode.scanner
    is_all = result.windows.merged() == listmode.extent
    top = settings.report.suv_max
    if full.unit != "SUV":
        top = float(np.quantile(full.values, 0.9999)) or 1.0
    provenance = {
        "stillpet": metadata.version("stillpet"),
        **listmode.provenance,
        "scanner_sha256": scanner.digest,
        "windows_ms": [[a, b] for a, b in result.windows],
        "protocol": asdict(listmode.protocol),
    }
    return Story(
        scanner=f"{scanner.name} {scanner.mode}".strip(),
        clock_zero=listmode.clock_zero,
        protocol=listmode.protocol,
        extent=listmode.extent,
        motion=result.motion,
        windows=result.windows,
        is_user_choice=is_user_choice,
        full=full,
        still=None if is_all else shown["still"],
        mu=None if mu is None else resample_to(mu, full.grid),
        liver=None if labels is None else labels.on(full.grid).region(LIVER),
        n_prompts=(result.full.n_prompts, result.still.n_prompts),
        hotspots_full=result.hotspots_full,
        hotspots_still=result.hotspots_still,
        rate_time_s=info.rate_start_s + RATE_MS / 2000.0,
        rates=rates,
        scale_max=top,
        n_slices=settings.report.n_slices,
        notes=result.notes,
        provenance=provenance,
        settings=settings.to_dict(),
        corrected=shown.get("corrected"),
        corrected_shift_mm=_shift_to(result.poses, result.windows),
    )


def _shift_to(poses: Poses, windows: Windows) -> tuple[float, float, float]:
    """Give the mean shift of the kept windows from the reference, x, y, z, mm."""
    kept = poses.within(windows)
    time_s = [part.duration_s for part in kept.windows]
    mean = np.average(kept.scanner_from_reference[:, :3, 3], axis=0, weights=time_s)
    x, y, z = (float(value) for value in mean)
    return x, y, z
