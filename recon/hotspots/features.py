"""Measure hotspots: uptake, size and place, one row a hotspot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from listmode.errors import InputError
from listmode.windows import Windows
from recon.hotspots import _kernels
from recon.hotspots.rows import read_rows
from recon.hotspots.segment import Segmentation
from recon.hotspots.shape import measure_shape
from recon.image import Volume

F64 = NDArray[np.float64]

SCHEMA = "stillpet-hotspots-2"

PEAK_RADIUS_MM = 6.2  # IBSI local intensity peak: a sphere of 1 mL (10.48550/arXiv.1612.07003)

FEW_MINUTES_S = 600.0
FEW_MINUTES_NOTE = (
    "SUVmax comes from {minutes:.3g} min of data: the fewer minutes, the noisier it is and the "
    "higher it reads (in one phantom +30 % at 1 min, +5 % at 5 min; PMC3417317); compare "
    "SUVpeak or SUVmean between images of different duration"
)


@dataclass(frozen=True, kw_only=True)
class Hotspot:
    """One hotspot. NaN where a value is not known; mm in the scanner frame unless RAS is said.

    Parameters
    ----------
    id
        1 is the hottest.
    x_mm, y_mm, z_mm
        Centroid weighted by activity.
    ras_x_mm, ras_y_mm
        The same in NIfTI's RAS+ (z is common to both).
    peak_x_mm, peak_y_mm, peak_z_mm
        Centre of the hottest voxel.
    suv_max, suv_mean, suv_sd
        Over the hotspot's voxels; the population standard deviation, as IBSI has it.
    suv_peak
        IBSI local intensity peak: mean of the voxels, in the hotspot or not, whose centres lie
        within 6.2 mm of the hottest voxel's; of equally hot voxels the one with the highest.
    suv_peak_global
        IBSI global intensity peak: the highest such mean over all voxels of the hotspot.
    max_bq_ml, peak_bq_ml, mean_bq_ml
        As above, in Bq/mL.
    skewness, kurtosis
        Of the hotspot's voxel values; kurtosis is 0 for a normal distribution, both are 0 for
        equal values.
    volume_ml
        Number of voxels times the voxel's volume (metabolic tumour volume).
    tlg_g
        Total lesion glycolysis: SUVmean (g/mL) times volume.
    mesh_volume_ml, surface_mm2, sphericity, max_diameter_mm
        See :class:`~recon.hotspots.shape.Shape`.
    com_shift_mm
        Distance between the centroids with and without weighting by activity.
    nearest_mm
        Distance to the nearest other centroid.
    threshold_suv, threshold_bq_ml
        Lower limit of the hotspot.
    label, label_fraction
        Region of the label map with most of its voxels, and the share of them.
    is_physiological
        Whether that region takes up tracer in health.
    is_at_edge
        Whether it touches the edge of the image, and may be cut.
    n_voxels
        Number of voxels.
    duration_s
        Time that the image was made from.
    suv_max_se, suv_max_low, suv_max_high
        Standard error and interval of SUVmax, where the reconstruction was repeated with
        resampled events; NaN otherwise.
    """

    id: int
    x_mm: float
    y_mm: float
    z_mm: float
    ras_x_mm: float
    ras_y_mm: float
    peak_x_mm: float
    peak_y_mm: float
    peak_z_mm: float
    suv_max: float
    suv_peak: float
    suv_peak_global: float
    suv_mean: float
    suv_sd: float
    max_bq_ml: float
    peak_bq_ml: float
    mean_bq_ml: float
    skewness: float
    kurtosis: float
    volume_ml: float
    tlg_g: float
    mesh_volume_ml: float
    surface_mm2: float
    sphericity: float
    max_diameter_mm: float
    com_shift_mm: float
    nearest_mm: float
    threshold_suv: float
    threshold_bq_ml: float
    label: str
    label_fraction: float
    is_physiological: bool
    is_at_edge: bool
    n_voxels: int
    duration_s: float
    suv_max_se: float = math.nan
    suv_max_low: float = math.nan
    suv_max_high: float = math.nan


COLUMNS = tuple(field.name for field in fields(Hotspot))


@dataclass(frozen=True)
class HotspotTable:
    """One row a hotspot, hottest first, and what has to be said about all of them.

    Parameters
    ----------
    rows
        The hotspots.
    method
        How they were found.
    notes
        Warnings for whoever reads the numbers.
    """

    rows: tuple[Hotspot, ...]
    method: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Hotspot]:
        return iter(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, units in the names."""
        return COLUMNS

    def column(self, name: str) -> NDArray[Any]:
        """Give one column as an array. Shape (n_hotspots,)."""
        return np.array([getattr(row, name) for row in self.rows])

    @property
    def dissemination_mm(self) -> float:
        """Largest distance between two hotspots, mm; NaN for fewer than two.

        Cottereau et al., Annals of Oncology 2020 (10.1016/j.annonc.2019.10.012).
        """
        points = np.array([(row.x_mm, row.y_mm, row.z_mm) for row in self.rows])
        return float(pdist(points).max()) if len(self.rows) > 1 else math.nan

    def with_uncertainty(self, se: ArrayLike, low: ArrayLike, high: ArrayLike) -> HotspotTable:
        """Return the table with the uncertainty of each SUVmax.

        Parameters
        ----------
        se, low, high
            Standard error and ends of the interval, NaN where unknown. Shape (n_hotspots,),
            g/mL.

        Raises
        ------
        InputError
            If there is not one value a hotspot.
        """
        columns = [np.asarray(column, dtype=np.float64) for column in (se, low, high)]
        if any(column.shape != (len(self),) for column in columns):
            raise InputError(
                f"each hotspot ({len(self)}) needs one standard error and one interval, but "
                f"their shapes are {', '.join(str(c.shape) for c in columns)}; measure them on "
                "the hotspots of this table"
            )
        rows = tuple(
            replace(row, suv_max_se=s, suv_max_low=a, suv_max_high=b)
            for row, s, a, b in zip(self.rows, *(c.tolist() for c in columns), strict=True)
        )
        return HotspotTable(rows, self.method, self.notes)

    def without_physiological(self) -> HotspotTable:
        """Return the rows that no healthy organ explains; ids stay as they are."""
        rows = tuple(row for row in self.rows if not row.is_physiological)
        return HotspotTable(rows, self.method, self.notes)

    def to_csv(self) -> str:
        """Write the table as CSV text: one header line, unknown values left empty.

        Numbers have six significant digits. :func:`recon.io.tables.save_hotspots` puts the text
        into a file.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow([_cell(getattr(row, name)) for name in self.columns])
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str, name: str = "table") -> HotspotTable:
        """Read what :meth:`to_csv` wrote; columns may come in any order.

        Raises
        ------
        InputError
            If columns are missing or unknown, or a cell does not hold what its column says.
        """
        found = read_rows(
            text, COLUMNS, name=name, schema=SCHEMA, advice="write it with this version"
        )
        rows = [_parsed(cells, name, line) for line, cells in enumerate(found, start=2)]
        return cls(tuple(rows))


def _cell(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


_KINDS = {field.name: str(field.type) for field in fields(Hotspot)}


def _parsed(cells: Mapping[str, str], name: str, line: int) -> Hotspot:
    values: dict[str, Any] = {}
    for column, text in cells.items():
        kind = _KINDS[column]
        try:
            if kind == "str":
                values[column] = text
            elif kind == "bool":
                values[column] = {"true": True, "false": False}[text]
            elif kind == "int":
                values[column] = int(text)
            else:
                values[column] = float(text) if text else math.nan
        except (ValueError, KeyError):
            raise InputError(
                f"{name}, line {line}: {column} must hold a {kind}, but it holds {text!r}; "
                "correct that cell"
            ) from None
    return Hotspot(**values)


def measure_hotspots(
    volume: Volume,
    segmentation: Segmentation,
    *,
    suv_per_bq_ml: float | None = None,
    windows: Windows | None = None,
) -> HotspotTable:
    """Measure each hotspot of a segmentation.

    Parameters
    ----------
    volume
        SUV or Bq/mL, on the segmentation's grid.
    segmentation
        From :func:`~recon.hotspots.segment.find_hotspots`, of this image or of another one on
        the same grid (a still image's hotspots measured in the full image).
    suv_per_bq_ml
        Factor from Bq/mL to SUV. Without it SUV columns of a Bq/mL volume are unknown, and
        Bq/mL columns of an SUV volume.
    windows
        The time the image was made from; without it ``provenance["windows_ms"]``.

    Returns
    -------
    HotspotTable
        As many rows as the segmentation has hotspots, in its order.

    Raises
    ------
    InputError
        If the unit or the grid is another one.

    Notes
    -----
    Definitions: IBSI reference manual (Zwanenburg et al., 10.48550/arXiv.1612.07003),
    intensity-based statistics and local intensity; they are tested against its digital phantom.
    """
    if volume.unit not in ("SUV", "Bq/mL"):
        raise InputError(
            f"hotspots are measured in SUV or Bq/mL, but the volume is in {volume.unit!r}; "
            "give the activity image"
        )
    if segmentation.mask.grid != volume.grid:
        raise InputError(
            f"the segmentation must lie on the volume's grid, {volume.grid}, but it lies on "
            f"{segmentation.mask.grid}; segment this volume or resample it"
        )
    duration_s = _duration_s(volume, windows)
    notes = [f"{n} candidates left out: {why}" for why, n in segmentation.n_dropped.items()]
    if duration_s <= FEW_MINUTES_S:
        notes.append(FEW_MINUTES_NOTE.format(minutes=duration_s / 60.0))
    to_suv, to_bq_ml = _factors(volume, suv_per_bq_ml)
    measured = [
        _measure(volume, index, to_suv, to_bq_ml) for index in _voxels_by_hotspot(segmentation)
    ]
    _add_nearest(measured)
    rows = []
    for number, row in enumerate(measured, start=1):
        level = float(segmentation.threshold[number - 1])
        rows.append(
            Hotspot(
                id=number,
                **row,
                threshold_suv=level * to_suv,
                threshold_bq_ml=level * to_bq_ml,
                label=segmentation.region[number - 1],
                label_fraction=float(segmentation.region_fraction[number - 1]),
                is_physiological=segmentation.is_physiological[number - 1],
                duration_s=duration_s,
            )
        )
    return HotspotTable(tuple(rows), segmentation.method, tuple(notes))


@dataclass(frozen=True)
class CtFeatures:
    """Mean, maximum and population standard deviation of the CT in a hotspot, HU."""

    hu_mean: float
    hu_max: float
    hu_sd: float


def measure_ct(ct: Volume, segmentation: Segmentation) -> tuple[CtFeatures, ...]:
    """Measure the CT in each hotspot.

    Parameters
    ----------
    ct
        In HU (unit ``"1"``), on the segmentation's grid.

    Raises
    ------
    InputError
        If the grid is another one, or the values cannot be HU.
    """
    if ct.grid != segmentation.mask.grid:
        raise InputError(
            f"the CT must lie on the segmentation's grid, {segmentation.mask.grid}, but it "
            f"lies on {ct.grid}; bring it there with recon.io.nifti.resample_to"
        )
    low = float(ct.values.min())
    if ct.unit != "1" or not -2048.0 <= low < -200.0:
        raise InputError(
            f"a CT must be in HU (air -1000, unit '1'), but its least value is {low:g} and its "
            f"unit {ct.unit!r}; give the CT itself, not a mu-map"
        )
    found = []
    for index in _voxels_by_hotspot(segmentation):
        hu = ct.values[tuple(index.T)].astype(np.float64)
        found.append(CtFeatures(float(hu.mean()), float(hu.max()), float(hu.std())))
    return tuple(found)


def _add_nearest(measured: list[dict[str, Any]]) -> None:
    """Add to each row the distance to the nearest other centroid."""
    nearest = np.full(len(measured), math.nan)
    if len(measured) > 1:
        points = np.array([(row["x_mm"], row["y_mm"], row["z_mm"]) for row in measured])
        distance, _ = KDTree(points).query(points, k=2)
        nearest = np.asarray(distance)[:, 1]
    for row, distance_mm in zip(measured, nearest, strict=True):
        row["nearest_mm"] = float(distance_mm)


def _duration_s(volume: Volume, windows: Windows | None) -> float:
    if windows is not None:
        return windows.duration_s
    pairs = volume.provenance.get("windows_ms")
    if not pairs:
        return math.nan
    return math.fsum(stop - start for start, stop in pairs) / 1000.0


def _factors(volume: Volume, suv_per_bq_ml: float | None) -> tuple[float, float]:
    """Give the factors from the volume's unit to SUV and to Bq/mL."""
    known = suv_per_bq_ml if suv_per_bq_ml else math.nan
    return (1.0, 1.0 / known) if volume.unit == "SUV" else (known, 1.0)


def _voxels_by_hotspot(segmentation: Segmentation) -> Iterator[NDArray[np.int64]]:
    """Yield the voxel indices of each hotspot in turn. Shape (n, 3), int64."""
    mask = segmentation.mask.values
    inside = np.flatnonzero(mask)
    number = mask.ravel()[inside]
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(1, segmentation.n_hotspots + 2))
    for k in range(segmentation.n_hotspots):
        flat = inside[order[ends[k] : ends[k + 1]]]
        yield np.stack(np.unravel_index(flat, mask.shape), axis=1).astype(np.int64)


def intensity_peaks(volume: Volume, index: NDArray[np.int64]) -> tuple[float, float]:
    """Give the IBSI local and global intensity peak of a region.

    Parameters
    ----------
    volume
        Any unit; voxels outside of the region count too, those outside of the image do not.
    index
        Voxels of the region. Shape (n, 3), int64.

    Returns
    -------
    tuple
        Local and global peak, in the volume's unit.
    """
    values = np.asarray(volume.values, dtype=np.float32)
    mean = np.empty(len(index))
    voxel_mm = np.array(volume.grid.voxel_mm)
    _kernels.sphere_means(values, np.ascontiguousarray(index), voxel_mm, PEAK_RADIUS_MM, mean)
    inside = values[tuple(index.T)]
    return float(mean[inside == inside.max()].max()), float(mean.max())


def _measure(
    volume: Volume, index: NDArray[np.int64], to_suv: float, to_bq_ml: float
) -> dict[str, Any]:
    grid = volume.grid
    values = volume.values[tuple(index.T)].astype(np.float64)
    mean, top = float(values.mean()), float(values.max())
    local, overall = intensity_peaks(volume, index)
    shape = measure_shape(index, grid.voxel_mm)
    weight = np.clip(values, 0.0, None)
    if not weight.sum() > 0.0:
        weight = np.ones_like(values)
    points = grid.point_mm(index)
    centroid = weight @ points / weight.sum()
    x, y, z = (float(c) for c in centroid)
    px, py, pz = (float(c) for c in points[int(np.argmax(values))])
    volume_ml = len(index) * grid.voxel_ml
    return {
        "x_mm": x,
        "y_mm": y,
        "z_mm": z,
        "ras_x_mm": -x,
        "ras_y_mm": -y,
        "peak_x_mm": px,
        "peak_y_mm": py,
        "peak_z_mm": pz,
        "suv_max": top * to_suv,
        "suv_peak": local * to_suv,
        "suv_peak_global": overall * to_suv,
        "suv_mean": mean * to_suv,
        "suv_sd": float(values.std()) * to_suv,
        "max_bq_ml": top * to_bq_ml,
        "peak_bq_ml": local * to_bq_ml,
        "mean_bq_ml": mean * to_bq_ml,
        "skewness": _moment(values, 3),
        "kurtosis": _moment(values, 4) - 3.0 if top > values.min() else 0.0,
        "mesh_volume_ml": shape.mesh_volume_ml,
        "surface_mm2": shape.surface_mm2,
        "sphericity": shape.sphericity,
        "max_diameter_mm": shape.max_diameter_mm,
        "com_shift_mm": float(np.linalg.norm(centroid - points.mean(axis=0))),
        "volume_ml": volume_ml,
        "tlg_g": mean * to_suv * volume_ml,
        "is_at_edge": bool(((index == 0) | (index == np.array(grid.shape) - 1)).any()),
        "n_voxels": len(index),
    }


def _moment(values: F64, order: int) -> float:
    """Give a central moment over the power of the standard deviation; 0 for equal values."""
    deviation = values - values.mean()
    variance = float((deviation**2).mean())
    if not variance > 0.0 or values.min() == values.max():
        return 0.0
    return float((deviation**order).mean() / variance ** (order / 2.0))
