"""The report of a run: what was found, in words first, then the evidence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from listmode.motion import MotionResult
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.hotspots.features import Hotspot, HotspotTable
from recon.image import Volume
from recon.report import figures, words
from recon.report.html import Picture, Report, Section, Table
from recon.report.measures import (
    ProfileWidths,
    axial_profile,
    coefficient_of_variation,
    measure_profile,
)

F64 = NDArray[np.float64]

CORRECTED = "motion-corrected"
MAX_ROWS = 30  # hotspots in the report's table; the CSV has all of them
SUV_MAX_NOTE = (
    "An image from fewer minutes is noisier, and its SUVmax, being the maximum of a noisy "
    "image, reads higher: compare SUVpeak or SUVmean between the two columns."
)


@dataclass(frozen=True, eq=False)
class Story:
    """Everything the report tells of.

    Parameters
    ----------
    scanner
        Name and mode.
    clock_zero
        What the scan calls zero.
    protocol
        What was injected.
    extent
        The whole scan.
    motion
        What was found.
    windows
        The windows kept.
    is_user_choice
        Whether the user chose the windows.
    full, still
        Images of all and of the kept time in one unit, on one grid; ``still`` is ``None`` where
        the whole scan was kept.
    mu
        Attenuation on the same grid, 1/cm.
    liver
        Voxels of the liver, for the noise. Shape ``grid.shape``.
    n_prompts
        Events of the whole scan and of the kept windows.
    hotspots_full, hotspots_still
        Tables of both images.
    rate_time_s, rates
        Count rates over the scan.
    scale_max
        Upper end of the grey scale in the images' unit.
    n_slices
        Most hotspots that are shown in slices.
    notes
        What was not done, and other warnings.
    provenance, settings
        What makes the run reproducible: hashes and versions, never a path or a name.
    corrected
        Motion-corrected image of all the time, in the reference pose, on the same grid.
    corrected_shift_mm
        How far the kept windows lie from that pose, x, y, z, mm.
    """

    scanner: str
    clock_zero: str
    protocol: ScanProtocol
    extent: Windows
    motion: MotionResult
    windows: Windows
    is_user_choice: bool
    full: Volume
    still: Volume | None
    mu: Volume | None
    liver: NDArray[np.bool_] | None
    n_prompts: tuple[int, int]
    hotspots_full: HotspotTable
    hotspots_still: HotspotTable
    rate_time_s: F64
    rates: Sequence[tuple[str, F64]]
    scale_max: float
    n_slices: int
    notes: Sequence[str]
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    corrected: Volume | None = None
    corrected_shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def compared(self) -> list[tuple[str, Volume]]:
        """What is shown, and the motion-corrected image beside it where there is one."""
        more = [] if self.corrected is None else [(CORRECTED, self.corrected)]
        return [*self.shown, *more]

    @property
    def shown(self) -> list[tuple[str, Volume]]:
        """Name and image of what is compared."""
        images = [("full scan", self.full)]
        return images if self.still is None else [*images, ("still windows", self.still)]

    @property
    def best(self) -> Volume:
        """The image that the run ends with."""
        return self.full if self.still is None else self.still


def build_report(story: Story) -> Report:
    """Turn a run into the report's text, tables and figures."""
    return Report(
        title="Still frames",
        subtitle=_subtitle(story),
        findings=[
            *words.motion_sentences(story.motion, story.clock_zero),
            *_window_sentences(story),
            *_width_sentences(story),
        ],
        notes=[*story.notes, *words.motion_notes(story.motion)],
        sections=[
            _motion_section(story),
            _images_section(story),
            *_bladder_section(story),
            _slices_section(story),
            _noise_section(story),
            _hotspot_section(story),
            _provenance_section(story),
        ],
    )


def _subtitle(story: Story) -> str:
    start_s, stop_s = story.extent.start_ms[0] / 1000.0, story.extent.stop_ms[-1] / 1000.0
    parts = [f"{story.scanner}, {(stop_s - start_s) / 60.0:.3g} min of listmode"]
    if story.protocol.injected_activity_bq:
        tracer = story.protocol.tracer
        parts.append(
            f"{story.protocol.injected_activity_bq / 1e6:.3g} MBq"
            + (f" {tracer}" if tracer != "unknown" else "")
        )
    if story.protocol.count_fraction < 1.0:
        parts.append(
            f"{story.protocol.count_fraction:.3g} of the protocol's counts (thinned file)"
        )
    parts.append(f"times are seconds from {story.clock_zero}")
    return "; ".join(parts) + "."


def _window_sentences(story: Story) -> list[str]:
    total, kept = story.n_prompts
    if story.still is None:
        return [f"The whole scan is used: {total:,} prompts."]
    who = "Windows given by the user" if story.is_user_choice else "Windows kept"
    return [
        f"{who}: {story.windows} ({story.windows.duration_s / 60.0:.3g} of "
        f"{story.extent.duration_s / 60.0:.3g} min), {kept:,} of {total:,} prompts "
        f"({kept / max(total, 1):.1%})."
    ]


def bladder_centre(story: Story) -> tuple[float, float, float] | None:
    """Give the bladder's place in the kept windows, scanner frame, mm; ``None`` without one."""
    trace = story.motion.trace
    if trace.reference != "bladder":
        return None
    inside = story.windows.covers(trace.time_ms.astype(np.int64))
    moved = trace.displacement_mm[inside & np.isfinite(trace.displacement_mm).all(axis=1)]
    if not len(moved):
        return None
    x, y, z = (float(c) for c in trace.reference_mm + np.median(moved, axis=0))
    return x, y, z


def _bladder_profiles(story: Story) -> list[tuple[str, F64, F64, ProfileWidths | None]]:
    centre = bladder_centre(story)
    if centre is None:
        return []
    found = []
    for name, volume in story.compared:
        x, y, z = _in_image(story, name, centre)
        z_mm, profile = axial_profile(volume, (x, y, z))
        found.append((name, z_mm, profile, measure_profile(z_mm, profile)))
    return found


def _in_image(
    story: Story, name: str, place_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Give where a place of the kept windows lies in an image with a pose of its own."""
    if name != CORRECTED:
        return place_mm
    x, y, z = (p - s for p, s in zip(place_mm, story.corrected_shift_mm, strict=True))
    return x, y, z


def _in_place(story: Story, name: str, volume: Volume) -> NDArray[np.float32]:
    """Give an image's values with the patient where he lay in the kept windows."""
    values = np.asarray(volume.values, np.float32)
    if name != CORRECTED:
        return values
    step = np.asarray(story.corrected_shift_mm) / volume.grid.voxel_mm
    return np.asarray(ndimage.shift(values, step, order=1), np.float32)


def _width_sentences(story: Story) -> list[str]:
    widths = {name: w for name, _, _, w in _bladder_profiles(story) if w is not None}
    if "full scan" not in widths or len(widths) == 1:
        return []
    full = widths["full scan"]
    corrected = widths.get(CORRECTED)
    sentences = []
    if corrected is not None:
        sentences.append(
            "In the motion-corrected image of all minutes the bladder measures "
            f"{corrected.rms_mm:.1f} mm along z (RMS, background removed), in the uncorrected "
            f"one {full.rms_mm:.1f} mm."
        )
    if (still := widths.get("still windows")) is None:
        return sentences
    change = full.rms_mm / still.rms_mm - 1.0
    return [
        *sentences,
        f"Along z the bladder measures {full.rms_mm:.1f} mm (RMS, background removed) in the "
        f"full scan and {still.rms_mm:.1f} mm in the still windows ({change:+.0%} in the full "
        "scan).",
    ]


def _motion_section(story: Story) -> Section:
    trace, selection = story.motion.trace, story.motion.selection
    png = figures.draw_trace(
        trace.time_ms / 1000.0,
        trace.displacement_mm,
        trace.standard_error_mm,
        [(a / 1000.0, b / 1000.0) for a, b in story.windows],
        words.change_marks(story.motion),
        clock_zero=story.clock_zero,
        title=f"Displacement of the {trace.reference}",
    )
    rates = figures.draw_rates(story.rate_time_s, story.rates, clock_zero=story.clock_zero)
    chosen = Table(
        ["left out (s)", "reason"],
        [[f"{a / 1000:g}-{b / 1000:g}", why] for (a, b), why in words.left_out(selection)],
        caption="Time that was left out, and why.",
        text_columns=frozenset({0, 1}),
    )
    tables = [words.change_table(story.motion)]
    if chosen.rows and not story.is_user_choice:
        tables.append(chosen)
    if selection.alternatives:
        tables.append(words.alternative_table(selection))
    return Section(
        "Motion",
        figures=[
            Picture(
                png,
                f"Displacement of the {trace.reference} over time along x, y and z",
                f"Displacement of the {trace.reference} in windows of "
                f"{trace.window_ms / 1000:g} s with one standard error; windows kept are "
                "shaded, changes are marked in red. A slow rise of a filling bladder is not a "
                "change of position of the patient.",
            ),
            Picture(rates, "Count rates over time", "Count rates of the file."),
        ],
        tables=[table for table in tables if table.rows],
    )


def _images_section(story: Story) -> Section:
    grid = story.full.grid
    box = figures.body_box(None if story.mu is None else story.mu.values, grid)
    png = figures.draw_mips(
        [(name, v.values) for name, v in story.compared],
        grid,
        unit=story.full.unit,
        scale_max=story.scale_max,
        box=box,
    )
    return Section(
        "Images",
        figures=[
            Picture(
                png,
                "Maximum intensity projections, coronal and sagittal",
                "Maximum intensity projections, coronal (seen from the front) and sagittal "
                f"(from the left), on one scale from 0 to {story.scale_max:.3g} "
                f"{story.full.unit}, decay-corrected to {story.clock_zero}. R, L, A, P, H, F: "
                "right, left, front, back, head, feet. The axes are the scanner's, in mm."
                + _pose_words(story),
            )
        ],
    )


def _pose_words(story: Story) -> str:
    if story.corrected is None:
        return ""
    place = ", ".join(f"{value:+.1f}" for value in story.corrected_shift_mm)
    return (
        " The motion-corrected image shows the patient in the pose of the mu-map (without one "
        f"in the first pose), from which the kept windows lie {place} mm (x, y, z)."
    )


def _bladder_section(story: Story) -> list[Section]:
    profiles = _bladder_profiles(story)
    if not profiles:
        return []
    z_mm = profiles[0][1]
    offset_mm = {CORRECTED: story.corrected_shift_mm[2]}
    png = figures.draw_profiles(
        z_mm,
        [
            (name, np.interp(z_mm, z + offset_mm.get(name, 0.0), values))
            for name, z, values, _ in profiles
        ],
        ylabel=f"{story.full.unit} × mL / mm",
        title="The bladder along z, integrated over x and y",
    )
    centre = bladder_centre(story)
    assert centre is not None
    closeup = figures.draw_closeup(
        [(name, _in_place(story, name, v)) for name, v in story.compared],
        story.full.grid,
        centre,
        unit=story.full.unit,
    )
    rows = [
        [name, *(f"{v:.1f}" for v in (w.centre_mm, w.rms_mm, w.lower_edge_mm, w.upper_edge_mm))]
        for name, _, _, w in profiles
        if w is not None
    ]
    return [
        Section(
            "The bladder",
            text=[
                "A shift in the middle of the scan shows the bladder twice: its RMS width and "
                "the widths of its walls grow, while the width at half maximum hardly does."
            ],
            figures=[
                Picture(
                    closeup,
                    "Coronal and sagittal slices through the bladder",
                    "Slices through the bladder on a scale of their own, which does not "
                    "saturate: a doubled bladder has grey rims at both ends."
                    + (
                        ""
                        if story.corrected is None
                        else " For this picture the motion-corrected image is moved to where "
                        "the patient lay in the kept windows."
                    ),
                ),
                Picture(
                    png, "Axial profile of the bladder", "Cylinder of 60 mm radius along z."
                ),
            ],
            tables=[
                Table(
                    [
                        "image",
                        "centre z (mm)",
                        "RMS width (mm)",
                        "caudal wall 20-80 % (mm)",
                        "cranial wall 20-80 % (mm)",
                    ],
                    rows,
                )
            ],
        )
    ]


def _slice_points(story: Story) -> list[tuple[str, tuple[float, float, float]]]:
    points = []
    centre = bladder_centre(story)
    if centre is not None:
        points.append(("bladder", centre))
    wanted = [row for row in story.hotspots_still if not row.is_physiological]
    points += [
        (
            f"hotspot {row.id}" + (f", {row.label}" if row.label else ""),
            (row.peak_x_mm, row.peak_y_mm, row.peak_z_mm),
        )
        for row in wanted[: story.n_slices]
    ]
    return points


def _slices_section(story: Story) -> Section:
    points = _slice_points(story)
    grid = story.full.grid
    if not points:
        return Section("Axial slices", text=["Nothing was found to show slices through."])
    mu = None if story.mu is None else story.mu.values
    png = figures.draw_fused(
        [(name, v.values) for name, v in story.shown],
        mu,
        grid,
        points,
        unit=story.full.unit,
        scale_max=story.scale_max,
        box=figures.body_box(mu, grid),
    )
    over = (
        "PET in colour over the mu-map in grey" if mu is not None else "PET alone (no mu-map)"
    )
    return Section(
        "Axial slices",
        figures=[
            Picture(
                png,
                "Axial slices through the bladder and the hotspots",
                f"{over}, seen from the feet: the patient's right is on the left. Circles mark "
                "the bladder and the hotspots that no healthy organ explains, hottest first.",
            )
        ],
    )


def _noise_section(story: Story) -> Section:
    rows = []
    used = {"full scan": 0, "still windows": 1, CORRECTED: 0}
    for name, volume in story.compared:
        n = story.n_prompts[used[name]]
        windows = (story.extent, story.windows)[used[name]]
        noise = None
        if story.liver is not None:
            noise = coefficient_of_variation(volume, story.liver)
        rows.append(
            [
                name,
                f"{windows.duration_s / 60.0:.3g}",
                f"{n:,}",
                f"{n / story.n_prompts[0]:.1%}",
                "n/a" if noise is None else f"{noise[0]:.3g}",
                "n/a" if noise is None else f"{noise[1]:.1%}",
            ]
        )
    text = [] if story.liver is not None else ["No label map names a liver: its noise is n/a."]
    return Section(
        "Counts and noise",
        text=text,
        tables=[
            Table(
                [
                    "image",
                    "minutes",
                    "prompts",
                    "kept",
                    f"liver mean ({story.full.unit})",
                    "liver coefficient of variation",
                ],
                rows,
            )
        ],
    )


def match_hotspots(
    still: HotspotTable, full: HotspotTable, *, reach_mm: float = 25.0
) -> list[tuple[Hotspot, Hotspot | None]]:
    """Find for each hotspot of the still image the one of the full image that it is.

    The nearest centroid within ``reach_mm`` counts, the hottest first, each only once.
    """
    free = list(full.rows)
    pairs: list[tuple[Hotspot, Hotspot | None]] = []
    for row in still:
        here = np.array([row.x_mm, row.y_mm, row.z_mm])
        distances = [
            float(np.linalg.norm(here - (other.x_mm, other.y_mm, other.z_mm))) for other in free
        ]
        k = int(np.argmin(distances)) if distances else -1
        if k >= 0 and distances[k] <= reach_mm:
            pairs.append((row, free.pop(k)))
        else:
            pairs.append((row, None))
    return pairs


def _hotspot_section(story: Story) -> Section:
    is_suv = story.full.unit == "SUV"
    names = ("suv_max", "suv_peak", "suv_mean") if is_suv else (
        "max_bq_ml", "peak_bq_ml", "mean_bq_ml"
    )  # fmt: skip
    pairs = match_hotspots(story.hotspots_still, story.hotspots_full)
    rows = []
    for still, full in pairs[:MAX_ROWS]:
        numbers = []
        for name in (*names, "volume_ml"):
            numbers.append("-" if full is None else _number(getattr(full, name)))
            if story.still is not None:
                numbers.append(_number(getattr(still, name)))
        place = f"{still.x_mm:.0f}, {still.y_mm:.0f}, {still.z_mm:.0f}"
        kind = "physiological" if still.is_physiological else ""
        rows.append([str(still.id), still.label or "-", kind, place, *numbers])
    columns = ["id", "label", "", "x, y, z (mm)"]
    quantities = ("SUVmax", "SUVpeak", "SUVmean") if is_suv else (
        "max (Bq/mL)", "peak (Bq/mL)", "mean (Bq/mL)"
    )  # fmt: skip
    for quantity in (*quantities, "volume (mL)"):
        if story.still is None:
            columns.append(quantity)
        else:
            columns += [f"{quantity} full", "still"]
    text = [SUV_MAX_NOTE] if story.still is not None else []
    if len(pairs) > MAX_ROWS:
        text.append(f"The first {MAX_ROWS} of {len(pairs)} hotspots; hotspots.csv has all.")
    text += [story.hotspots_still.method and f"Segmentation: {story.hotspots_still.method}."]
    return Section(
        "Hotspots",
        text=[line for line in text if line],
        tables=[Table(columns, rows, text_columns=frozenset({1, 2}))] if rows else [],
    )


def _number(value: float) -> str:
    return (
        "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    )


def _provenance_section(story: Story) -> Section:
    content = {"provenance": story.provenance, "settings": story.settings}
    return Section(
        "Settings and provenance",
        text=["The listmode file is named by its SHA-256 only."],
        code=json.dumps(content, indent=1, default=str, ensure_ascii=False),
    )
