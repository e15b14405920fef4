"""Find hotspots: which voxels belong to which focus of uptake."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from recon.hotspots import _kernels
from recon.hotspots.places import plain_name, without_side
from recon.image import Volume

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

PHYSIOLOGICAL = frozenset(
    {
        "adrenal_gland",
        "bladder",
        "blood",
        "blood_pool",
        "bowel",
        "brain",
        "colon",
        "duodenum",
        "fetal_brain",
        "fetal_heart",
        "fetus",
        "gallbladder",
        "heart",
        "kidney",
        "kidney_left",
        "kidney_right",
        "kidneys",
        "lacrimal_gland",
        "left_kidney",
        "liver",
        "myocardium",
        "pancreas",
        "parotid_gland",
        "placenta",
        "right_kidney",
        "salivary_glands",
        "small_bowel",
        "spleen",
        "stomach",
        "submandibular_gland",
        "thyroid_gland",
        "tonsils",
        "ureter",
        "urinary_bladder",
        "uterus",
    }
)
"""Names of label-map regions whose uptake is expected in a healthy body (FDG or PSMA)."""

DEFAULT_FLOOR_SUV = 2.5


@dataclass(frozen=True)
class FixedSuv:
    """All voxels at or above one SUV (4.0 for FDG lesions: EANM; 2.5 is common too)."""

    suv: float = 4.0


@dataclass(frozen=True)
class FractionOfMax:
    """Around each peak the voxels at or above a fraction of that peak.

    Parameters
    ----------
    fraction
        41 % to 50 % of the maximum (EANM procedure guideline 2.0: Boellaard et al., 2015,
        10.1007/s00259-014-2961-x).
    floor
        A peak must reach it, in the volume's unit; ``None`` means SUV 2.5, and where no SUV is
        known the same fraction of the volume's maximum.
    """

    fraction: float = 0.41
    floor: float | None = None


@dataclass(frozen=True)
class Absolute:
    """All voxels at or above one value in the volume's own unit."""

    value: float


@dataclass(frozen=True, eq=False)
class UserMask:
    """Voxels that the user marked: each label value above zero is one hotspot."""

    mask: Volume


Threshold = FixedSuv | FractionOfMax | Absolute | UserMask


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Which voxels belong to which hotspot.

    Parameters
    ----------
    mask
        Hotspot number of each voxel, 0 for none; 1 has the highest maximum, ties in voxel
        order.
    threshold
        Lower limit of each hotspot in the volume's unit; NaN for a user's mask.
        Shape (n_hotspots,), float64.
    region
        Name of the label-map region that holds most of each hotspot's voxels, or "".
    region_fraction
        Share of the hotspot's voxels in that region. Shape (n_hotspots,), float64.
    is_physiological
        Whether that region takes up tracer in health.
    method
        The rule in words, for reports.
    n_dropped
        How many candidates were left out, by reason.
    """

    mask: Volume
    threshold: NDArray[np.float64]
    region: tuple[str, ...]
    region_fraction: NDArray[np.float64]
    is_physiological: tuple[bool, ...]
    method: str
    n_dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def n_hotspots(self) -> int:
        """Number of hotspots."""
        return len(self.region)


def find_hotspots(
    volume: Volume,
    *,
    threshold: Threshold,
    labels: Volume | None = None,
    label_names: Mapping[int, str] | None = None,
    physiological: Collection[str] = PHYSIOLOGICAL,
    suv_per_bq_ml: float | None = None,
    min_volume_ml: float = 0.1,
    saddle_ratio: float = 0.7,
    connectivity: int = 26,
) -> Segmentation:
    """Find the hotspots of a volume, part touching ones, and flag physiological uptake.

    Voxels are flooded from the hottest down: each joins the basin of its highest neighbour, so
    every basin has one peak. Where two basins meet, they stay apart if the saddle is below
    ``saddle_ratio`` times the lower peak, and are one hotspot otherwise (a noise bump). The
    result does not depend on threads, platform or order of labels.

    Parameters
    ----------
    volume
        SUV or Bq/mL.
    threshold
        The rule that says where a hotspot ends.
    labels, label_names
        Label map on the same grid, and the name of each label value. Values without a name
        are called ``label_7``.
    physiological
        Names of regions with expected uptake; one without a side names both. Hotspots in them
        are flagged, not dropped.
    suv_per_bq_ml
        Factor from Bq/mL to SUV; needed for an SUV threshold on a Bq/mL volume.
    min_volume_ml
        Smaller candidates are left out and counted.
    saddle_ratio
        0 never parts touching hotspots, 1 parts at every dent.
    connectivity
        6, 18 or 26 neighbours.

    Returns
    -------
    Segmentation
        Possibly of no hotspot at all.

    Raises
    ------
    InputError
        If the unit, a threshold, the label map or an option cannot be used.

    Examples
    --------
    >>> from recon.image import Grid
    >>> values = np.zeros((9, 9, 9), np.float32)
    >>> values[3:6, 3:6, 3:6] = 8.0
    >>> volume = Volume(values, Grid.centred((9, 9, 9), 4.0), "SUV")
    >>> find_hotspots(volume, threshold=FixedSuv(4.0)).n_hotspots
    1
    """
    _check_options(volume, saddle_ratio, connectivity, min_volume_ml)
    if labels is not None:
        _check_labels(volume, labels, "label map")
    n_dropped = {}
    if isinstance(threshold, UserMask):
        _check_labels(volume, threshold.mask, "user mask")
        mask, level = _from_user(threshold.mask)
        method = "user mask"
    else:
        fraction, value, method = _levels(volume, threshold, suv_per_bq_ml)
        mask, level, n_dropped["peak below the floor"] = _flooded(
            volume, fraction, value, saddle_ratio, connectivity
        )
    mask, level, n_dropped["smaller than the least volume"] = _numbered(
        volume, mask, level, min_volume_ml
    )
    region, region_fraction = _regions(mask, level.size, labels, label_names or {})
    expected = {plain_name(name) for name in physiological}
    return Segmentation(
        mask=Volume(mask, volume.grid, "label", {"segmentation": method}),
        threshold=level,
        region=region,
        region_fraction=region_fraction,
        is_physiological=tuple(
            plain_name(name) in expected or without_side(name) in expected for name in region
        ),
        method=method,
        n_dropped=MappingProxyType({reason: n for reason, n in n_dropped.items() if n}),
    )


def _check_options(
    volume: Volume, saddle_ratio: float, connectivity: int, min_volume_ml: float
) -> None:
    if volume.unit not in ("SUV", "Bq/mL"):
        raise InputError(
            f"hotspots are found in SUV or Bq/mL, but the volume is in {volume.unit!r}; give "
            "the activity image"
        )
    if connectivity not in (6, 18, 26):
        raise InputError(
            f"connectivity must be 6, 18 or 26 neighbours, but it is {connectivity}; "
            "26 is usual"
        )
    if not 0.0 <= saddle_ratio <= 1.0:
        raise InputError(
            f"the saddle ratio must lie between 0 and 1, but it is {saddle_ratio:g}; "
            "0.7 is a start"
        )
    if not min_volume_ml >= 0.0:
        raise InputError(
            f"the least volume must not be negative, but it is {min_volume_ml:g} mL; "
            "give 0 to keep all"
        )


def _check_labels(volume: Volume, labels: Volume, what: str) -> None:
    if labels.unit != "label":
        raise InputError(
            f"a {what} must hold labels, but it is in {labels.unit!r}; load it as labels"
        )
    if labels.grid != volume.grid:
        raise InputError(
            f"the {what} must lie on the volume's grid, {volume.grid}, but it lies on "
            f"{labels.grid}; bring it there with recon.io.nifti.resample_to"
        )
    if int(labels.values.min()) < 0:
        raise InputError(
            f"the {what} must hold labels from 0 up, but its least is "
            f"{int(labels.values.min())}; give each region a positive number"
        )


def _levels(
    volume: Volume, threshold: FixedSuv | FractionOfMax | Absolute, suv_per_bq_ml: float | None
) -> tuple[float, float, str]:
    """Turn a rule into (fraction of the peak, least value of a peak, words)."""
    if isinstance(threshold, FractionOfMax):
        floor = threshold.floor
        if floor is None:
            floor = _default_floor(volume, threshold.fraction, suv_per_bq_ml)
        if not 0.0 < threshold.fraction < 1.0:
            raise InputError(
                "the fraction of the maximum must lie between 0 and 1, but it is "
                f"{threshold.fraction:g}; 0.41 and 0.5 are usual"
            )
        _check_positive(floor)
        words = (
            f"{threshold.fraction:.0%} of each maximum, peaks from {floor:.4g} {volume.unit}"
        )
        return threshold.fraction, floor, words
    if isinstance(threshold, Absolute):
        _check_positive(threshold.value)
        return 0.0, threshold.value, f"from {threshold.value:.4g} {volume.unit}"
    _check_positive(threshold.suv)
    if volume.unit == "SUV":
        return 0.0, threshold.suv, f"from SUV {threshold.suv:g}"
    if not suv_per_bq_ml:
        raise InputError(
            "a threshold in SUV needs the injected activity and the weight, but the volume is "
            "in Bq/mL and the factor is unknown; give both, or a threshold in Bq/mL"
        )
    return 0.0, threshold.suv / suv_per_bq_ml, f"from SUV {threshold.suv:g}"


def _default_floor(volume: Volume, fraction: float, suv_per_bq_ml: float | None) -> float:
    if volume.unit == "SUV":
        return DEFAULT_FLOOR_SUV
    if suv_per_bq_ml:
        return DEFAULT_FLOOR_SUV / suv_per_bq_ml
    return max(fraction * float(volume.values.max()), np.finfo(np.float32).tiny.item())


def _check_positive(value: float) -> None:
    if not (np.isfinite(value) and value > 0.0):
        raise InputError(
            f"a threshold must be a positive number, but it is {value:g}; give the least value "
            "that still belongs to a hotspot"
        )


def _offsets(connectivity: int) -> NDArray[np.int64]:
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    reach = np.abs(steps).sum(axis=1)
    most = {6: 1, 18: 2, 26: 3}[connectivity]
    return np.ascontiguousarray(steps[(reach >= 1) & (reach <= most)], dtype=np.int64)


def _flooded(
    volume: Volume, fraction: float, value: float, saddle_ratio: float, connectivity: int
) -> tuple[I32, NDArray[np.float64], int]:
    """Flood, then keep of each basin what lies at or above its level."""
    values = np.asarray(volume.values, dtype=np.float32)
    least = np.float32(value * fraction if fraction else value)
    candidates = np.flatnonzero(values.ravel() >= least)
    order = candidates[np.argsort(-values.ravel()[candidates], kind="stable")]
    basin = np.zeros(values.shape, np.int32)
    parent = np.zeros(order.size + 1, np.int32)
    peak = np.zeros(order.size + 1, np.float32)
    n = _kernels.flood(
        values, order, _offsets(connectivity), fraction, saddle_ratio, basin, parent, peak
    )
    parent, peak = parent[:n], peak[:n]
    while (parent != parent[parent]).any():
        parent = parent[parent]
    root = parent[basin]
    level = (
        np.maximum(fraction * peak.astype(np.float64), 0.0) if fraction else np.full(n, value)
    )
    is_kept = peak >= np.float32(value)
    is_kept[0] = False
    is_root = parent == np.arange(n)
    mask = np.where(is_kept[root] & (values >= level[root].astype(np.float32)), root, 0)
    return mask.astype(np.int32), level, int((is_root[1:] & ~is_kept[1:]).sum())


def _from_user(mask: Volume) -> tuple[I32, NDArray[np.float64]]:
    used = np.unique(mask.values)
    used = used[used > 0]
    number = np.searchsorted(used, mask.values) + 1
    drawn = np.where(mask.values > 0, number, 0).astype(np.int32)
    return drawn, np.full(used.size + 1, np.nan)


def _numbered(
    volume: Volume, mask: I32, level: NDArray[np.float64], min_volume_ml: float
) -> tuple[I32, NDArray[np.float64], int]:
    """Drop small hotspots and number the rest from the highest maximum down."""
    flat, values = mask.ravel(), volume.values.ravel()
    inside = np.flatnonzero(flat)
    n_voxels = np.bincount(flat[inside], minlength=level.size)
    maximum = np.full(level.size, -np.inf)
    np.maximum.at(maximum, flat[inside], values[inside])
    first = np.full(level.size, flat.size)
    hottest = inside[values[inside] == maximum[flat[inside]]]
    np.minimum.at(first, flat[hottest], hottest)
    found = np.flatnonzero(n_voxels)
    small = n_voxels[found] * volume.grid.voxel_ml < min_volume_ml * (1 - 1e-9)
    kept = found[~small]
    kept = kept[np.lexsort((first[kept], -maximum[kept]))]
    new = np.zeros(level.size, np.int32)
    new[kept] = np.arange(1, kept.size + 1)
    return new[mask], level[kept], int(small.sum())


def _regions(
    mask: I32, n_hotspots: int, labels: Volume | None, names: Mapping[int, str]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Name the region that holds most of each hotspot; ties go to the lower label."""
    if labels is None:
        return ("",) * n_hotspots, np.zeros(n_hotspots)
    inside = np.flatnonzero(mask.ravel())
    hotspot, label = mask.ravel()[inside], labels.values.ravel()[inside]
    region, share = [], np.zeros(n_hotspots)
    order = np.argsort(hotspot, kind="stable")
    ends = np.searchsorted(hotspot[order], np.arange(1, n_hotspots + 2))
    for k in range(n_hotspots):
        found, n = np.unique(label[order[ends[k] : ends[k + 1]]], return_counts=True)
        top = int(np.argmax(n))
        value = int(found[top])
        share[k] = n[top] / n.sum()
        region.append(names.get(value, f"label_{value}") if value else "")
    return tuple(region), share
