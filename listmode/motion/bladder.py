"""Where the bladder is: the best of three candidates, or none."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, maximum_filter

from listmode.histogram import Histogram
from listmode.motion.template import (
    BlurredEllipsoid,
    EllipsoidFit,
    blur_covariance,
    fit_ellipsoid,
)
from listmode.scanner import FWHM_PER_SIGMA

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class BladderSettings:
    """What a bladder looks like.

    Parameters
    ----------
    caudal_share
        Share of the body's length, from its caudal end, that is searched.
    whole_body_mm
        A shorter body in the field of view is searched along its whole length.
    midline_mm
        Largest distance from the body's midline, mm.
    volume_ml
        Smallest and largest volume, mL. Bladders hold 50-300 mL in a scan; more when full.
    min_contrast
        Smallest excess over background of most likely positions. Below 1 the position is
        worth little and a bowel loop or an iliac vessel looks alike.
    min_peak
        Smallest height of the smoothed peak over what is around it: a corner of the body makes
        a flat hill of 1.3.
    max_axis_ratio
        Longest over shortest semi-axis: a bladder is compact.
    min_significance
        Smallest excess counts over their own Poisson error.
    """

    caudal_share: float = 0.4
    whole_body_mm: float = 500.0
    midline_mm: float = 50.0
    volume_ml: tuple[float, float] = (20.0, 800.0)
    min_contrast: float = 1.0
    min_peak: float = 1.6
    max_axis_ratio: float = 3.0
    min_significance: float = 20.0


@dataclass(frozen=True)
class Bladder:
    """A blurred ellipsoid of activity in the histo-image.

    Parameters
    ----------
    centre_mm, semi_axis_mm
        Of the ellipsoid, x, y, z in the scanner frame, mm.
    volume_ml
        Its volume, mL.
    contrast
        Excess over background of most likely positions.
    excess_counts
        Prompts of the ellipsoid above the background in the whole scan.
    score
        Contrast times volume, mL: what candidates are ranked by.
    objections
        Why it is not taken for a bladder; empty if it may be one.
    """

    centre_mm: tuple[float, float, float]
    semi_axis_mm: tuple[float, float, float]
    volume_ml: float
    contrast: float
    excess_counts: float
    score: float
    objections: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BladderSearch:
    """The outcome of a search: the best candidate or none, and the three best with reasons."""

    best: Bladder | None
    candidates: tuple[Bladder, ...]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "found": self.best is not None,
            "best": None if self.best is None else self.best.to_dict(),
            "candidates": [c.to_dict() for c in self.candidates],
            "note": self.note,
        }


def locate_bladder(
    histogram: Histogram, settings: BladderSettings | None = None
) -> BladderSearch:
    """Find the bladder in a histo-image, or say that there is none.

    Local maxima of the smoothed histo-image in the caudal part of the body, near its midline,
    are grown to regions; the three of most contrast times volume are fitted with a blurred
    ellipsoid and judged. A search never guesses: without an acceptable candidate there is no
    bladder, and motion is then followed by the whole body.

    Parameters
    ----------
    histogram
        From :func:`listmode.histogram.accumulate`.
    settings
        What a bladder looks like.
    """
    rules = settings or BladderSettings()
    if not histogram.has_tof:
        return BladderSearch(
            None,
            (),
            "no bladder: without TOF, events do not tell where on a line they began",
        )
    counts = histogram.image / np.maximum(histogram.sensitivity, 0.05).astype(np.float32)
    if not counts.any():
        return BladderSearch(None, (), "no bladder: the scan holds no events")
    smooth, body = _smooth(counts.astype(np.float32), histogram)
    regions = _grow_candidates(smooth, histogram, body, rules)
    found = [_judge(_fit(counts, histogram, r), r, body, histogram, rules) for r in regions]
    found = _unlike(sorted(found, key=lambda b: (bool(b.objections), -b.score)))[:3]
    if not found or found[0].objections:
        why = "; ".join(found[0].objections) if found else "nothing stands out near the midline"
        return BladderSearch(None, tuple(found), f"no bladder: {why}")
    best = found[0]
    x, y, z = best.centre_mm
    return BladderSearch(
        best,
        tuple(found),
        f"bladder of {best.volume_ml:.0f} mL at x {x:.0f}, y {y:.0f}, z {z:.0f} mm, "
        f"{best.contrast:.1f} times its background",
    )


@dataclass(frozen=True)
class _Body:
    first_z: int
    last_z: int
    midline_mm: float
    level: float  # typical counts of a voxel in the body


def _smooth(
    counts: NDArray[np.float32], histogram: Histogram
) -> tuple[NDArray[np.float32], _Body]:
    """Smooth by 8 mm FWHM, or by more until the body's noise is below a fifth of its level."""
    for fwhm_mm in (8.0, 12.0, 18.0, 26.0):
        sigma = fwhm_mm / FWHM_PER_SIGMA / histogram.voxel_mm
        smooth = gaussian_filter(counts, sigma, truncate=3.0)
        body = _body(smooth, histogram)
        # A Gaussian averages over (2 sqrt(pi) sigma)^3 voxels.
        if body.level * (2.0 * np.sqrt(np.pi) * sigma) ** 3 >= 25.0:
            break
    return smooth, body


def _body(smooth: NDArray[np.float32], histogram: Histogram) -> _Body:
    """Find the body's ends along z and its midline: the middle of what is well above zero."""
    profile = smooth.sum(axis=(0, 1))
    inside = np.flatnonzero(profile > 0.25 * np.percentile(profile[profile > 0], 90))
    part = smooth[:, :, inside[0] : inside[-1] + 1]
    level = float(np.percentile(part[part > 0.2 * np.percentile(part, 99)], 30))
    across = np.flatnonzero((part > 0.5 * level).sum(axis=(1, 2)) > 0.02 * part[0].size)
    x = histogram.centre_mm(0)
    middle = float((x[across[0]] + x[across[-1]]) / 2) if across.size else 0.0
    return _Body(int(inside[0]), int(inside[-1]), middle, level)


@dataclass(frozen=True, eq=False)
class _Region:
    """A hill of the smoothed histo-image: its place, size, height and what is around it."""

    centre_mm: F64
    semi_axis_mm: F64
    n_voxels: int
    height: float
    low: float

    @property
    def score(self) -> float:
        """Contrast times volume."""
        return self.n_voxels * self.height / self.low


def _grow_candidates(
    smooth: NDArray[np.float32], histogram: Histogram, body: _Body, rules: BladderSettings
) -> list[_Region]:
    """Give centre and semi-axes (mm) of the regions of most contrast times volume."""
    voxel = histogram.voxel_mm
    n_z = body.last_z - body.first_z + 1
    whole = n_z * voxel >= rules.whole_body_mm
    last = body.first_z + round(n_z * rules.caudal_share) if whole else body.last_z
    x = histogram.centre_mm(0)
    near = np.flatnonzero(np.abs(x - body.midline_mm) <= rules.midline_mm + 20.0)
    part = smooth[near[0] : near[-1] + 1, :, body.first_z : last + 1]
    peak = (part == maximum_filter(part, size=round(32.0 / voxel))) & (part > 1.3 * body.level)
    places = np.argwhere(peak)
    places = places[np.argsort(-part[peak], kind="stable")][:8]
    regions = []
    for place in places + np.array([near[0], 0, body.first_z]):
        box = tuple(
            slice(max(int(i - 100.0 / voxel), 0), int(i + 100.0 / voxel) + 1) for i in place
        )
        around = smooth[box]
        height = float(smooth[tuple(place)])
        low = float(np.median(around[around > 0.3 * body.level]))
        labels, _ = label(around > low + 0.45 * (height - low))
        own = tuple(int(i - s.start) for i, s in zip(place, box, strict=True))
        index = np.argwhere(labels == labels[own])
        if labels[own] == 0 or len(index) < 8:
            continue
        start = [s.start for s in box]
        centre = histogram.lower_mm + (index.mean(axis=0) + start + 0.5) * voxel
        semi = np.sqrt(5.0 * np.maximum(index.var(axis=0), 1.0)) * voxel
        regions.append(_Region(centre, semi, len(index), height, max(low, 1e-6)))
    regions.sort(key=lambda r: -r.score)
    return _distinct(regions)[:4]


def _distinct(regions: list[_Region]) -> list[_Region]:
    """Drop regions whose centre lies within a better one."""
    kept: list[_Region] = []
    for region in regions:
        distance = [
            np.linalg.norm((region.centre_mm - k.centre_mm) / k.semi_axis_mm) for k in kept
        ]
        if all(d > 1.0 for d in distance):
            kept.append(region)
    return kept


def _unlike(found: list[Bladder]) -> list[Bladder]:
    """Drop candidates that were fitted to the same thing as a better one."""
    kept: list[Bladder] = []
    for one in found:
        place = np.array(one.centre_mm)
        if all(np.linalg.norm(place - k.centre_mm) > min(k.semi_axis_mm) for k in kept):
            kept.append(one)
    return kept


def _fit(counts: NDArray[Any], histogram: Histogram, region: _Region) -> EllipsoidFit:
    """Fit a blurred ellipsoid around a grown region."""
    centre, semi = region.centre_mm, region.semi_axis_mm
    half = semi + 40.0
    low = np.floor((centre - half - histogram.lower_mm) / histogram.voxel_mm).astype(int)
    high = np.ceil((centre + half - histogram.lower_mm) / histogram.voxel_mm).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, histogram.image.shape)
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    x, y, z = (histogram.centre_mm(i)[part[i]] for i in range(3))
    covariance = blur_covariance(histogram.blur_along_mm)
    share = np.full(len(covariance), 1.0 / len(covariance))
    model = BlurredEllipsoid((x, y, z), covariance, share)
    start = np.maximum(semi - 8.0, 12.0)
    return fit_ellipsoid(
        np.asarray(counts[part], dtype=np.float64), model, semi_axis_mm=start, centre_mm=centre
    )


def _judge(
    fit: EllipsoidFit,
    region: _Region,
    body: _Body,
    histogram: Histogram,
    rules: BladderSettings,
) -> Bladder:
    """Turn a fit into a candidate with the reasons that speak against it."""
    n_voxels = fit.volume_ml * 1000.0 / histogram.voxel_mm**3
    z_bin = int((fit.centre_mm[2] - histogram.lower_mm[2]) / histogram.voxel_mm)
    seen = float(histogram.sensitivity[np.clip(z_bin, 0, len(histogram.sensitivity) - 1)])
    # Beside the body there is nothing, which makes no contrast: what is around it counts.
    contrast = fit.excess / max(fit.background, 0.5 * region.low, 1e-9)
    peak = region.height / region.low
    excess = fit.excess * n_voxels * seen
    noise = np.sqrt(max((fit.excess + fit.background) * n_voxels * seen, 1.0))
    off = abs(float(fit.centre_mm[0]) - body.midline_mm)
    ratio = float(fit.semi_axis_mm.max() / fit.semi_axis_mm.min())
    low, high = rules.volume_ml
    checks = (
        (low <= fit.volume_ml <= high, f"volume {fit.volume_ml:.0f} mL"),
        (off <= rules.midline_mm, f"{off:.0f} mm off the midline"),
        (contrast >= rules.min_contrast, f"{contrast:.2f} times its background"),
        (peak >= rules.min_peak, f"a peak of {peak:.2f} times what is around it"),
        (not fit.is_at_limit, "no ellipsoid fits it"),
        (ratio <= rules.max_axis_ratio, f"not compact, axes {ratio:.1f} to 1"),
        (
            excess >= rules.min_significance * noise,
            f"{excess / noise:.1f} sigma of counts",
        ),
    )
    cx, cy, cz = fit.centre_mm.tolist()
    ax, ay, az = fit.semi_axis_mm.tolist()
    return Bladder(
        centre_mm=(cx, cy, cz),
        semi_axis_mm=(ax, ay, az),
        volume_ml=fit.volume_ml,
        contrast=contrast,
        excess_counts=excess,
        score=contrast * fit.volume_ml,
        objections=tuple(reason for holds, reason in checks if not holds),
    )
