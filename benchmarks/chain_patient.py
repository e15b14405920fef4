"""One simulated PSMA patient through the whole chain: listmode, windows, images, cases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain_simulation import (
    ChainPlan,
    Patient,
    Scans,
    chain_grid,
    simulate_patient,
)
from listmode.errors import InputError
from listmode.motion import MotionResult, analyse_motion
from listmode.simulate.motion import PatientMotion
from listmode.source import Listmode
from listmode.windows import Windows
from recon.hotspots.cases import SIMULATED
from recon.hotspots.context import Described, describe_patient
from recon.hotspots.features import HotspotTable, measure_hotspots
from recon.hotspots.match import match_foci
from recon.hotspots.segment import FractionOfMax, find_hotspots
from recon.hotspots.symmetry import find_mid_sagittal, reference_uptake
from recon.image import Volume
from recon.motion import Poses, poses_from_changes
from recon.pipeline.images import reconstruct_scan, to_suv
from recon.pipeline.labels import LabelMap
from recon.pipeline.measure import without_ends
from recon.pipeline.motion import fit_mu
from recon.sensitivity import Sensitivity
from recon.settings import Settings

F64 = NDArray[np.float64]

STILL_SCAN, ALL_MINUTES, STILL_WINDOWS, CORRECTED = CONDITIONS = (
    "never moved",
    "moved, all minutes",
    "moved, still windows",
    "moved, corrected",
)
SAME_POSE_MM = 2.0  # poses nearer than this are one


def run_patient(patient: Patient, plan: ChainPlan, threads: int = 1) -> dict[str, Any]:
    """Take a patient through every condition.

    Returns
    -------
    dict
        JSON values: the truth, the motion, and for each condition the foci and the cases. Two
        runs give the same.
    """
    scans = simulate_patient(patient, plan, threads)
    found = analyse_motion(scans.moving, threads=threads)
    record: dict[str, Any] = {
        "patient": patient.code,
        "seed": patient.seed,
        **patient.about,
        "n_prompts": [scans.still.n_events("prompts"), scans.moving.n_events("prompts")],
        "shifts": patient.motion.shifts,
        "motion": judge_windows(patient.motion, found, plan),
        "foci": [
            {
                "region": focus.place.region,
                "diameter_mm": focus.diameter_mm,
                "suv_max": float(patient.cases.numbers["suv_max"][k]),
                "tissue": str(patient.cases.tissue[k]),
                "location": str(patient.cases.location[k]),
                "malignant": int(patient.cases.malignant[k]),
            }
            for k, focus in enumerate(patient.foci)
        ],
        "truth_cases": patient.cases.to_csv(),
        "conditions": {},
    }
    for name, image, labels, poses in _images(patient, scans, found, plan, threads):
        record["conditions"][name] = read_image(patient, image, labels, poses, plan)
    return record


def _images(
    patient: Patient, scans: Scans, found: MotionResult, plan: ChainPlan, threads: int
) -> Iterator[tuple[str, Volume, LabelMap, F64]]:
    """Reconstruct every condition; labels and poses are those that the image shows."""
    settings, everything, still = _settings(plan), scans.still.extent, np.zeros((1, 3))

    def image(
        listmode: Listmode,
        windows: Windows,
        mu: Volume,
        sensitivity: Sensitivity | None = None,
        poses: Poses | None = None,
    ) -> tuple[Volume, Sensitivity]:
        done = reconstruct_scan(
            listmode, windows, grid=chain_grid(plan), mu=mu, settings=settings,
            sensitivity=sensitivity, poses=poses, threads=threads,
        )  # fmt: skip
        suv = to_suv(done.volume, listmode.protocol)
        assert suv is not None
        return without_ends(suv, done.sensitivity, settings.hotspots.min_sensitivity), (
            done.sensitivity
        )

    volume, sensitivity = image(scans.still, everything, scans.mu)
    yield STILL_SCAN, volume, scans.labels, still
    volume, _ = image(scans.moving, everything, scans.mu, sensitivity)
    yield ALL_MINUTES, volume, scans.labels, poses_in(patient.motion, everything)
    windows = found.selection.windows
    mu = fit_mu(found, windows, scans.mu, 0.0).mu
    assert mu is not None
    volume, _ = image(scans.moving, windows, mu, sensitivity if mu is scans.mu else None)
    moved = replace(scans.labels, volume=replace(scans.labels.volume, grid=mu.grid))
    yield STILL_WINDOWS, volume, moved, poses_in(patient.motion, windows)
    poses = poses_from_changes(found.changes, everything, reference_s=0.0)
    volume, _ = image(
        scans.moving, everything, scans.mu, None if poses.is_moving else sensitivity, poses
    )
    yield CORRECTED, volume, scans.labels, still


def _settings(plan: ChainPlan) -> Settings:
    settings = Settings()
    return replace(
        settings,
        osem=replace(
            settings.osem,
            n_iterations=plan.n_iterations,
            post_filter_fwhm_mm=plan.filter_fwhm_mm,
            n_sensitivity_pairs=plan.n_sensitivity_pairs,
        ),
        corrections=replace(settings.corrections, scatter=False, randoms=False),
    )


def poses_in(motion: PatientMotion, windows: Windows, least_share: float = 0.03) -> F64:
    """Give the true displacements that hold some share of the windows. Shape (n, 3), mm."""
    time_s = np.concatenate([np.arange(a + 500, b, 1000) for a, b in windows]) / 1000.0
    poses, n = np.unique(motion.displacement_mm(time_s), axis=0, return_counts=True)
    return np.asarray(poses[n >= least_share * n.sum()])


def judge_windows(
    motion: PatientMotion, found: MotionResult, plan: ChainPlan
) -> dict[str, Any]:
    """Compare the chosen windows with the true states of the patient.

    ``purity`` is the share of the chosen time that lies within 2 mm of its commonest pose,
    ``coverage`` the time in that pose over that of the longest state. The choice is right if
    they reach 0.99 and 0.9.
    """
    windows = found.selection.windows
    share = _time_by_pose(motion, windows)
    longest = max(_time_by_pose(motion, Windows([0], [round(1000 * plan.duration_s)])))
    purity, coverage = max(share) / sum(share), max(share) / longest
    return {
        "reference": found.reference,
        "found": [
            {"time_s": float(c.time_s), "shift_mm": [float(v) for v in c.shift_mm]}
            for c in found.changes.items
        ],
        "windows_ms": [[a, b] for a, b in windows],
        "retained": found.selection.retained,
        "purity": purity,
        "coverage": coverage,
        "is_right": purity >= 0.99 and coverage >= 0.9,
    }


def _time_by_pose(motion: PatientMotion, windows: Windows) -> list[float]:
    """Seconds in each true pose, poses within 2 mm of each other as one."""
    time_s = np.concatenate([np.arange(a + 50, b, 100) for a, b in windows]) / 1000.0
    poses, n = np.unique(motion.displacement_mm(time_s), axis=0, return_counts=True)
    return [
        float(n[np.linalg.norm(poses - pose, axis=1) <= SAME_POSE_MM].sum()) / 10.0
        for pose in poses
    ]


def read_image(
    patient: Patient, volume: Volume, labels: LabelMap, poses_mm: F64, plan: ChainPlan
) -> dict[str, Any]:
    """Find, measure and describe the hotspots of an image, and match them with the truth."""
    here = labels.on(volume.grid)
    segmentation = find_hotspots(
        volume,
        threshold=FractionOfMax(plan.fraction, plan.floor_suv),
        labels=here.volume,
        label_names=here.names,
        physiological=here.physiological,
        min_volume_ml=plan.min_volume_ml,
    )
    table = measure_hotspots(volume, segmentation)
    references = reference_uptake(
        volume, segmentation, find_mid_sagittal(volume),
        labels=here.volume, label_names=here.names,
    )  # fmt: skip
    try:
        described: Described | None = describe_patient(
            table, references, patient=patient.code, origin=SIMULATED
        )
    except InputError:
        described = None  # no hotspot in bone or lymph node
    centre = np.array([focus.place.centre_mm for focus in patient.foci])
    reach = np.array([focus.diameter_mm / 2.0 + plan.match_mm for focus in patient.foci])
    peaks = [(r.peak_x_mm, r.peak_y_mm, r.peak_z_mm) for r in table]
    match = match_foci(peaks, centre[:, None, :] + poses_mm, reach)
    return _reading(table, described, match)


def _reading(
    table: HotspotTable, described: Described | None, match: NDArray[np.int64]
) -> dict[str, Any]:
    ids = () if described is None else described.hotspot_id
    case_of = {hotspot: row for row, hotspot in enumerate(ids)}
    foci = []
    for row in match.tolist():
        hotspot = None if row < 0 else table.rows[row]
        foci.append(
            {
                "case": -1 if hotspot is None else case_of.get(hotspot.id, -1),
                "suv_max": None if hotspot is None else _number(hotspot.suv_max),
                "suv_peak": None if hotspot is None else _number(hotspot.suv_peak),
                "label": None if hotspot is None else hotspot.label,
            }
        )
    return {
        "n_hotspots": len(table),
        "n_cases": len(ids),
        "foci": foci,
        "cases": "" if described is None else described.cases.to_csv(),
    }


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
