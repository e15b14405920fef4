"""Hotspots of images and of image files, by the rules of the settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from listmode.errors import InputError
from recon.bootstrap import Replicates, max_interval
from recon.hotspots.features import HotspotTable, measure_hotspots
from recon.hotspots.segment import (
    PHYSIOLOGICAL,
    Absolute,
    FixedSuv,
    FractionOfMax,
    Segmentation,
    Threshold,
    UserMask,
    find_hotspots,
)
from recon.image import Volume
from recon.io.nifti import load_volume, resample_to
from recon.pipeline.labels import LabelMap
from recon.sensitivity import Sensitivity
from recon.settings import HotspotSettings
from recon.suv import SUV_WORDS, SuvBy

UNITLESS_FLOOR = 0.1  # of the largest value: seeds a hotspot where no SUV is known


def choose_rule(
    settings: HotspotSettings,
    *,
    fraction: float | None = None,
    suv: float | None = None,
    absolute: float | None = None,
) -> HotspotSettings:
    """Let one rule of the command line win over the settings.

    Raises
    ------
    InputError
        If more than one rule is given.
    """
    given: list[tuple[Any, float]] = [
        (rule, value)
        for rule, value in (("fraction", fraction), ("suv", suv), ("absolute", absolute))
        if value is not None
    ]
    if len(given) > 1:
        raise InputError(
            "one rule must say where a hotspot ends, but "
            f"{' and '.join(rule for rule, _ in given)} were given; give one of them"
        )
    for rule, value in given:
        settings = replace(settings, rule=rule, threshold=value)
    return settings


def _threshold(settings: HotspotSettings, mask: Volume | None, volume: Volume) -> Threshold:
    if mask is not None:
        return UserMask(mask)
    if settings.rule == "suv":
        return FixedSuv(settings.threshold)
    if settings.rule == "absolute":
        return Absolute(settings.threshold)
    if volume.unit == "SUV":
        return FractionOfMax(settings.threshold, settings.floor)
    return FractionOfMax(settings.threshold, UNITLESS_FLOOR * float(volume.values.max()))


def measure_image(
    volume: Volume,
    *,
    labels: LabelMap | None = None,
    mask: Volume | None = None,
    settings: HotspotSettings | None = None,
    suv_per_bq_ml: float | None = None,
    replicates: Replicates | None = None,
) -> HotspotTable:
    """Find the hotspots of an image and measure them.

    Parameters
    ----------
    volume
        SUV or Bq/mL.
    labels
        Organs, on any grid; without them no uptake is called physiological.
    mask
        Regions to measure instead of searching, on any grid.
    settings
        The rule.
    suv_per_bq_ml
        Factor to SUV, if known.
    replicates
        Of the same image; they give the standard error and the interval of each SUVmax.
    """
    segmentation = segment_image(
        volume, labels=labels, mask=mask, settings=settings, suv_per_bq_ml=suv_per_bq_ml
    )
    table = measure_hotspots(volume, segmentation, suv_per_bq_ml=suv_per_bq_ml)
    if replicates is None:
        return table
    regions = np.asarray(segmentation.mask.values, np.int32)
    maxima = replicates.maxima(regions) * (suv_per_bq_ml or math.nan)
    interval = max_interval(table.column("suv_max").astype(np.float64), maxima)
    return table.with_uncertainty(interval.se, interval.low, interval.high)


def segment_image(
    volume: Volume,
    *,
    labels: LabelMap | None = None,
    mask: Volume | None = None,
    threshold: Threshold | None = None,
    settings: HotspotSettings | None = None,
    suv_per_bq_ml: float | None = None,
) -> Segmentation:
    """Find the hotspots of an image by the settings' rule, or by a threshold of the caller.

    Parameters
    ----------
    volume, labels, mask, settings, suv_per_bq_ml
        As for :func:`measure_image`.
    threshold
        Wins over the settings' rule and the mask, for example the liver's.
    """
    wanted = settings or HotspotSettings()
    here = None if labels is None else labels.on(volume.grid)
    if mask is not None:
        mask = resample_to(mask, volume.grid)
    return find_hotspots(
        volume,
        threshold=threshold or _threshold(wanted, mask, volume),
        labels=None if here is None else here.volume,
        label_names=None if here is None else here.names,
        physiological=PHYSIOLOGICAL if here is None else here.physiological,
        suv_per_bq_ml=suv_per_bq_ml,
        min_volume_ml=wanted.min_volume_ml if volume.unit == "SUV" else 0.0,
    )


def find_in_file(
    path: Path,
    *,
    labels: LabelMap | None = None,
    mask: Volume | None = None,
    settings: HotspotSettings | None = None,
) -> HotspotTable:
    """Find and measure the hotspots of an image file, in SUV where its sidecar allows."""
    volume, factor = load_in_suv(path, (settings or HotspotSettings()).suv_by)
    return measure_image(
        volume, labels=labels, mask=mask, settings=settings, suv_per_bq_ml=factor
    )


def load_in_suv(path: Path, by: SuvBy = "weight") -> tuple[Volume, float | None]:
    """Read an image, in SUV where its sidecar allows, and the factor from Bq/mL if known.

    Raises
    ------
    InputError
        If the file cannot be read, or SUV by something other than weight is not known.
    """
    volume = load_volume(path)
    known = volume.provenance.get("suv_per_bq_ml_by", {})
    factor = volume.provenance.get("suv_per_bq_ml") if by == "weight" else known.get(by)
    if by != "weight" and factor is None:
        raise InputError(
            f"the sidecar of {path.name} must hold the factor of {SUV_WORDS[by]}, but it holds "
            f"{', '.join(known) or 'none'}; weight, height and sex must be in the listmode file"
        )
    if not isinstance(factor, float):
        return volume, None
    if volume.unit == "Bq/mL":
        volume = Volume(volume.values * factor, volume.grid, "SUV", volume.provenance)
    return volume, factor


def without_ends(volume: Volume, sensitivity: Sensitivity, share: float) -> Volume:
    """Blank the slices at the ends of the field of view where noise is all there is.

    Parameters
    ----------
    volume
        Any unit.
    sensitivity
        On the volume's voxels.
    share
        Of the best slice's mean sensitivity; slices below become 0.
    """
    mean = sensitivity.values.mean(axis=(0, 1), dtype=np.float64)
    is_seen = (mean >= share * mean.max()).astype(np.float32)
    return Volume(volume.values * is_seen, volume.grid, volume.unit, volume.provenance)
