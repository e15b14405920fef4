"""Simulated PSMA patients: who they are, how they move, and their scans and CT."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from listmode.formats.scanner_file import load_scanner
from listmode.scanner import Scanner
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.phantom import Phantom
from listmode.simulate.protocols import Dose
from listmode.simulate.psma import Focus, draw_places, psma_phantom, sphere_recovery
from listmode.source import Listmode
from recon.hotspots.cases import Cases
from recon.image import Grid, Volume
from recon.pipeline.demo import truth_images
from recon.pipeline.labels import LabelMap


@dataclass(frozen=True)
class ChainPlan:
    """How a patient is simulated and read; fixed before the first run of the study.

    Parameters
    ----------
    duration_s, count_fraction
        Length of the scan and share of its counts.
    voxel_mm, n_iterations, filter_fwhm_mm, n_sensitivity_pairs
        Of the reconstruction.
    image_fwhm_mm
        Resolution of the images; a focus's concentration is the cohort's SUVmax over the peak
        that this blur leaves of it.
    bone_diameter_mm, node_diameter_mm
        Least and largest size of foci.
    shift_mm
        Least and largest size of a shift.
    floor_suv, fraction, min_volume_ml
        Rule that finds hotspots.
    label_reach_mm
        Soft tissue this near to a region counts as that region.
    match_mm
        A focus is found by a hotspot whose peak lies this near to its surface.
    """

    duration_s: float = 600.0
    count_fraction: float = 0.015
    voxel_mm: float = 4.0
    n_iterations: int = 2
    filter_fwhm_mm: float = 6.0
    n_sensitivity_pairs: int = 8_000_000
    image_fwhm_mm: float = 6.5
    bone_diameter_mm: tuple[float, float] = (10.0, 16.0)
    node_diameter_mm: tuple[float, float] = (8.0, 14.0)
    shift_mm: tuple[float, float] = (8.0, 25.0)
    floor_suv: float = 2.5
    fraction: float = 0.41
    min_volume_ml: float = 0.3
    label_reach_mm: float = 10.0
    match_mm: float = 5.0


@dataclass(frozen=True, eq=False)
class Patient:
    """What is simulated: the rows of the cohort and what was drawn for them."""

    code: str
    seed: int
    cases: Cases
    foci: tuple[Focus, ...]
    phantom: Phantom
    motion: PatientMotion
    about: dict[str, Any] = field(default_factory=dict)


def half_quadra() -> Scanner:
    """Give the lower two of the Quadra's four units of rings: 530 mm, all pairs accepted."""
    whole = load_scanner("quadra-UHS")
    assert whole.layout is not None
    layout = replace(whole.layout, n_units=2)
    kept = whole.crystal_ring < layout.n_rings
    position = whole.crystal_position_mm[kept].copy()
    position[:, 2] -= (position[:, 2].min() + position[:, 2].max()) / 2.0
    return replace(
        whole,
        name="quadra-half",
        crystal_position_mm=position,
        crystal_normal=whole.crystal_normal[kept],
        crystal_ring=whole.crystal_ring[kept],
        crystal_transaxial=whole.crystal_transaxial[kept],
        crystal_profile=whole.crystal_profile[kept],
        n_rings=layout.n_rings,
        max_ring_difference=layout.n_rings - 1,
        layout=layout,
    )


def chain_grid(plan: ChainPlan) -> Grid:
    """Give the image grid: the body with room for its shifts."""
    size = (360.0, 280.0, 528.0)
    across, deep, along = (round(mm / plan.voxel_mm) for mm in size)
    return Grid.centred((across, deep, along), plan.voxel_mm)


def make_patient(cohort: Cases, code: str, seed: int, plan: ChainPlan) -> Patient:
    """Give a patient of a cohort a body, foci of some size at some place, and a motion.

    Raises
    ------
    InputError
        If a location of the phantom has fewer places than the patient has hotspots there.
    """
    rng = np.random.default_rng(seed)
    cases = cohort.take(cohort.patient == code)
    places = draw_places(cases.tissue.tolist(), cases.location.tolist(), rng)
    foci = []
    for i, place in enumerate(places):
        is_bone = cases.tissue[i] == "bone"
        sizes_mm = plan.bone_diameter_mm if is_bone else plan.node_diameter_mm
        size_mm = float(rng.uniform(*sizes_mm))
        suv = float(cases.numbers["suv_max"][i]) / sphere_recovery(size_mm, plan.image_fwhm_mm)
        foci.append(Focus(place, size_mm, suv, float(cases.numbers["reference_suv_max"][i])))
    references = cases.numbers["reference_suv_max"][cases.location == "spine"]
    known = references[np.isfinite(references)]
    primary = float(cases.numbers["primary_suv_max"][0])
    about = {
        "bladder_suv": float(rng.uniform(10.0, 30.0)),
        "bladder_ml": float(rng.uniform(100.0, 200.0)),
        "filling_ml_min": float(rng.uniform(0.0, 5.0)),
    }
    phantom = psma_phantom(
        foci,
        primary_suv=primary / sphere_recovery(20.0, plan.image_fwhm_mm),
        bone_suv=float(np.median(known)) if known.size else 1.0,
        **about,
    )
    return Patient(code, seed, cases, tuple(foci), phantom, draw_motion(rng, plan), about)


def draw_motion(rng: np.random.Generator, plan: ChainPlan) -> PatientMotion:
    """Draw one or two shifts, mostly along the axis, a sixth of the scan from all others."""
    gap = plan.duration_s / 6.0
    n = int(rng.integers(1, 3))
    while True:
        times = np.sort(rng.uniform(gap, plan.duration_s - gap, n))
        direction = rng.normal(0.0, (0.3, 0.3, 0.0), (n, 3))
        direction[:, 2] = rng.choice((-1.0, 1.0), n)
        steps = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        steps *= rng.uniform(*plan.shift_mm, (n, 1))
        end = np.linalg.norm(np.cumsum(steps, axis=0), axis=1)
        if (np.diff(times) >= gap).all() and (end <= plan.shift_mm[1]).all():
            return PatientMotion(
                tuple(times.tolist()), tuple((x, y, z) for x, y, z in steps.tolist())
            )


@dataclass(frozen=True, eq=False)
class Scans:
    """A patient's two scans and his CT: attenuation and organs at tick zero."""

    still: Listmode
    moving: Listmode
    mu: Volume
    labels: LabelMap


def simulate_patient(patient: Patient, plan: ChainPlan, threads: int = 1) -> Scans:
    """Simulate the patient twice, still and moving; no scatter and no randoms in either."""
    scanner = half_quadra()
    dose = Dose("psma", 3.0e6, 0.0, 3600.0, plan.duration_s, "F-18 PSMA")
    (still, _), (moving, truth) = (
        simulate_in_memory(
            scanner=scanner, phantom=patient.phantom, dose=dose, motion=motion,
            seed=2 * patient.seed + k, count_fraction=plan.count_fraction, scatter="off",
            with_randoms=False, threads=threads,
        )
        for k, motion in enumerate((STILL, patient.motion))
    )  # fmt: skip
    _, mu, labels = truth_images(truth.phantom, chain_grid(plan))
    return Scans(still, moving, mu, widen(labels, plan.label_reach_mm))


def widen(labels: LabelMap, reach_mm: float, filler: str = "soft_tissue") -> LabelMap:
    """Give soft tissue to the nearest named region within reach, as a reader would.

    Parameters
    ----------
    labels
        A label map.
    reach_mm
        How far a region reaches beyond its surface, mm.
    filler
        Name of the tissue that is given away.
    """
    values = labels.volume.values
    number = next(n for n, name in labels.names.items() if name == filler)
    is_free = (values == number) | (values == 0)
    distance, nearest = ndimage.distance_transform_edt(
        is_free, sampling=labels.volume.grid.voxel_mm, return_indices=True
    )
    wide = np.where((values == number) & (distance <= reach_mm), values[tuple(nearest)], values)
    return replace(labels, volume=replace(labels.volume, values=wide))
