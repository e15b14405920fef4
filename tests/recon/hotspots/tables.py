"""Small tables of cases for tests of classifiers."""

from __future__ import annotations

import numpy as np

from recon.hotspots.cases import Cases, add_context
from recon.hotspots.cohort import CohortSettings
from recon.io.cohorts import load_cohort_settings


def settings() -> CohortSettings:
    return load_cohort_settings()


def simple(n_patients: int = 30, n_each: int = 4, seed: int = 0) -> Cases:
    """Malignant hotspots are hotter; every patient has both kinds."""
    rng = np.random.default_rng(seed)
    patient = np.repeat([f"P{k:02d}" for k in range(n_patients)], n_each)
    malignant = np.tile(np.arange(n_each) % 2, n_patients)
    tissue = rng.choice(["bone", "lymph_node"], patient.size)
    location = np.where(tissue == "bone", "spine", "common_iliac")
    suv = np.exp(np.where(malignant, 2.4, 1.6) + 0.5 * rng.standard_normal(patient.size))
    reference = np.where(rng.random(patient.size) < 0.2, np.nan, 1.0)
    return add_context(
        patient=patient,
        tissue=tissue,
        location=location,
        suv_max=suv,
        primary_suv_max=np.full(patient.size, 12.0),
        reference_suv_max=reference,
        labels={"malignant": malignant, "reader_1": malignant, "reader_2": malignant},
    )
