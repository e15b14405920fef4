"""From an image file with its label map to the cases of one patient."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from listmode.errors import InputError
from listmode.progress import SILENT, Progress
from recon.hotspots.context import Described, describe_patient
from recon.hotspots.features import Hotspot, HotspotTable, measure_ct, measure_hotspots
from recon.hotspots.segment import Threshold
from recon.hotspots.symmetry import MidPlane, Reference, find_mid_sagittal, reference_uptake
from recon.hotspots.thresholds import blood_threshold, liver_threshold
from recon.image import Volume
from recon.io.nifti import resample_to
from recon.io.sidecar import sidecar_path
from recon.io.tables import load_json
from recon.pipeline.labels import LabelMap
from recon.pipeline.measure import load_in_suv, segment_image
from recon.settings import HotspotSettings

Organ = Literal["liver", "blood"]


@dataclass(frozen=True)
class CaseOptions:
    """What a user can say about a patient and his image.

    Parameters
    ----------
    patient
        A code, never a name.
    settings
        The rule that ends a hotspot.
    organ
        ``"liver"`` (PERCIST) or ``"blood"`` takes the threshold from there instead.
    tracer
        For the liver's rule; without it the image's sidecar is asked.
    primary_suv_max
        SUVmax of the primary tumour if the image does not show it.
    excluded
        Hotspots that the user calls physiological.
    is_simulated
        Whether the scan was simulated.
    """

    patient: str
    settings: HotspotSettings = field(default_factory=HotspotSettings)
    organ: Organ | None = None
    tracer: str | None = None
    primary_suv_max: float | None = None
    excluded: Collection[int] = ()
    is_simulated: bool = False


@dataclass(frozen=True)
class ImageCases:
    """The cases of one image with all that they came from.

    Parameters
    ----------
    described
        Cases, and what was left out.
    table
        Every hotspot that was measured.
    references
        The same place in health, one a hotspot.
    plane
        The plane that parts left from right.
    """

    described: Described
    table: HotspotTable
    references: tuple[Reference, ...]
    plane: MidPlane

    def to_dict(self) -> dict[str, Any]:
        """Give what was found as JSON values."""
        cases = self.described.cases
        return {
            "patient": str(cases.patient[0]),
            "n_cases": len(cases),
            "n_hotspots": len(self.table),
            "method": self.table.method,
            "notes": [*self.table.notes, *cases.notes],
            "left_out": [{"hotspot": k, "why": why} for k, why in self.described.left_out],
            "references": [
                {
                    "hotspot": row.id,
                    "suv_max": None if reference.source == "missing" else reference.value,
                    "source": reference.source,
                    "reason": reference.reason,
                }
                for row, reference in zip(self.table, self.references, strict=True)
            ],
            "mid_sagittal_plane": {
                "normal": list(self.plane.normal),
                "offset_mm": self.plane.offset_mm,
                "likeness": self.plane.likeness,
            },
        }


def describe_image(
    path: Path,
    labels: LabelMap,
    options: CaseOptions,
    *,
    mu: Volume | None = None,
    ct: Volume | None = None,
    mask: Volume | None = None,
    uncertainty: HotspotTable | None = None,
    progress: Progress = SILENT,
) -> ImageCases:
    """Find, measure and describe the hotspots of one patient's image.

    Parameters
    ----------
    path
        An image in SUV, or in Bq/mL with the factor to SUV in its sidecar.
    labels
        Regions with names that tell bone, lymph node and place; on any grid.
    options
        What the user says.
    mu, ct, mask
        Mu-map for the references, CT in HU, regions to measure instead of searching; on any
        grid.
    uncertainty
        Hotspots of the same image with the uncertainty of their SUVmax; those with the same
        hottest voxel pass it on.

    Raises
    ------
    InputError
        If SUV is unknown, a map cannot be used, no hotspot is in bone or lymph node, or the
        uncertainty belongs to another image.
    """
    with progress.stage("describe hotspots", 4, "steps") as stage:
        volume, factor = load_in_suv(path)
        if volume.unit != "SUV":
            raise InputError(
                f"cases are described in SUV, but {path.name} is in {volume.unit} and its "
                "sidecar knows no factor; give injected activity and weight to the "
                "reconstruction"
            )
        here = labels.on(volume.grid)
        found = segment_image(
            volume,
            labels=here,
            mask=mask,
            threshold=_organ_threshold(path, volume, here, options),
            settings=options.settings,
            suv_per_bq_ml=factor,
        )
        stage.advance(1)
        table = measure_hotspots(volume, found, suv_per_bq_ml=factor)
        if uncertainty is not None:
            table = pass_on_uncertainty(uncertainty, table)
        stage.advance(1)
        plane = find_mid_sagittal(volume)
        stage.advance(1)
        references = reference_uptake(
            volume,
            found,
            plane,
            labels=here.volume,
            label_names=here.names,
            mu=None if mu is None else resample_to(mu, volume.grid),
        )
        described = describe_patient(
            table,
            references,
            patient=options.patient,
            primary_suv_max=options.primary_suv_max,
            excluded=options.excluded,
            ct=None if ct is None else measure_ct(resample_to(ct, volume.grid), found),
            origin="simulated" if options.is_simulated else "image",
        )
        stage.advance(1)
    return ImageCases(described, table, references, plane)


def pass_on_uncertainty(known: HotspotTable, table: HotspotTable) -> HotspotTable:
    """Give each hotspot the uncertainty that the same hottest voxel has in another table.

    Raises
    ------
    InputError
        If the tables share no hotspot with a known uncertainty.
    """
    sure = [row for row in known if not math.isnan(row.suv_max_se)]
    columns = np.full((3, len(table)), np.nan)
    for k, row in enumerate(table):
        same = next((other for other in sure if _is_same_peak(row, other)), None)
        if same is not None:
            columns[:, k] = same.suv_max_se, same.suv_max_low, same.suv_max_high
    if len(table) and np.isnan(columns[0]).all():
        raise InputError(
            "the uncertainty of SUVmax must come from hotspots of the same image, but of "
            f"{len(sure)} hotspots with a standard error none has its hottest voxel and SUVmax "
            "here; give the hotspots.csv that was written beside this image"
        )
    return table.with_uncertainty(*columns)


def _is_same_peak(a: Hotspot, b: Hotspot) -> bool:
    """Compare place and value of the hottest voxel to the six digits of a file."""
    here = (a.peak_x_mm, a.peak_y_mm, a.peak_z_mm)
    there = (b.peak_x_mm, b.peak_y_mm, b.peak_z_mm)
    return math.dist(here, there) < 0.1 and math.isclose(a.suv_max, b.suv_max, rel_tol=1e-4)


def _organ_threshold(
    path: Path, volume: Volume, labels: LabelMap, options: CaseOptions
) -> Threshold | None:
    if options.organ is None:
        return None
    if options.organ == "blood":
        return blood_threshold(volume, labels.volume, labels.names)
    tracer = options.tracer or _tracer(path)
    if not tracer:
        raise InputError(
            "the liver's rule needs to know the tracer, because PSMA-1007 makes the liver hot, "
            f"but the sidecar of {path.name} does not tell; give --tracer"
        )
    return liver_threshold(volume, labels.volume, labels.names, tracer=tracer)


def _tracer(path: Path) -> str:
    beside = sidecar_path(path)
    name = load_json(beside).get("TracerName", "") if beside.is_file() else ""
    return "" if name == "unknown" else str(name)
