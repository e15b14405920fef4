"""Figures of the report, drawn from arrays and returned as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from recon.image import Grid

Image = NDArray[np.float32] | NDArray[np.int32]
F64 = NDArray[np.float64]

FULL_COLOUR = "#b4551d"
STILL_COLOUR = "#1f5c99"
CORRECTED_COLOUR = "#3b7a57"
KEPT_COLOUR = "#d6e6d3"
AXIS_COLOURS = ("#8a6d1f", "#3b7a57", "#1f5c99")
AXIS_NAMES = ("x, to the patient's left", "y, to the back", "z, to the head")
DPI = 110
RC = {"font": 8.5, "small": 7.5}


@dataclass(frozen=True)
class ChangeMark:
    """One change of position for a figure: when, and between which times it surely lies."""

    time_s: float
    interval_s: tuple[float, float]
    name: str
    is_motion: bool = True


@dataclass(frozen=True)
class Plane:
    """How a plane of the scanner frame is shown: axis to the right, axis upwards.

    ``flip_up`` is true where the scanner's axis points down the picture.
    """

    name: str
    right_axis: int
    up_axis: int
    through_axis: int
    letters: tuple[str, str, str, str]  # at the left, right, top and bottom edge
    flip_up: bool = False


# Radiological convention: coronal seen from the front, sagittal from the patient's left, axial
# from the feet. In the scanner frame +x is left, +y back, +z head (head first, supine).
CORONAL = Plane("coronal", 0, 2, 1, ("R", "L", "H", "F"))
SAGITTAL = Plane("sagittal", 1, 2, 0, ("A", "P", "H", "F"))
AXIAL = Plane("axial", 0, 1, 2, ("R", "L", "A", "P"), flip_up=True)


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG without time stamps, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None}
    )
    return buffer.getvalue()


def _style(ax: Axes) -> None:
    ax.tick_params(labelsize=RC["small"], length=3, color="#777777", labelcolor="#333333")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#999999")


def draw_trace(
    time_s: F64,
    displacement_mm: F64,
    standard_error_mm: F64,
    windows_s: Sequence[tuple[float, float]],
    changes: Sequence[ChangeMark] = (),
    *,
    clock_zero: str = "tick zero",
    title: str = "Displacement",
) -> bytes:
    """Draw the displacement trace along the three axes with the chosen windows shaded.

    Parameters
    ----------
    time_s
        Middle of each point, s from tick zero. Shape (n,).
    displacement_mm, standard_error_mm
        Displacement and its standard error along x, y, z. Shape (n, 3), mm. Points that are
        not finite are left out.
    windows_s
        Chosen windows, s.
    changes
        Changes to mark.
    clock_zero
        What the scan calls zero, for the time axis.
    title
        Heading of the figure.
    """
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    axes: Any = figure.subplots(3, 1, sharex=True, sharey=True)
    limit = _displacement_limit(displacement_mm)
    for i, ax in enumerate(axes):
        for k, (a, b) in enumerate(windows_s):
            ax.axvspan(
                a,
                b,
                color=KEPT_COLOUR,
                lw=0,
                zorder=0,
                label="windows kept (shaded)" if not k + i else None,
            )
        for change in changes:
            style: Any = "-" if change.is_motion else ":"
            ax.axvline(change.time_s, color="#a01818", lw=1.0, ls=style)
            ax.axvspan(*change.interval_s, color="#a01818", alpha=0.25, lw=0)
        good = np.isfinite(displacement_mm[:, i]) & np.isfinite(standard_error_mm[:, i])
        t, d, e = time_s[good], displacement_mm[good, i], standard_error_mm[good, i]
        ax.fill_between(t, d - e, d + e, color=AXIS_COLOURS[i], alpha=0.25, lw=0)
        ax.plot(t, d, ".", ms=2.2, color=AXIS_COLOURS[i])
        ax.set_ylabel(f"{'xyz'[i]} (mm)", fontsize=RC["font"])
        ax.set_title(
            AXIS_NAMES[i], loc="right", fontsize=RC["small"], color=AXIS_COLOURS[i], pad=2
        )
        ax.set_ylim(*limit)
        ax.grid(axis="y", color="#dddddd", lw=0.5)
        _style(ax)
    if len(windows_s):
        axes[0].legend(loc="upper left", fontsize=RC["small"], frameon=False)
    axes[0].set_xlim(float(time_s[0]), float(time_s[-1])) if time_s.size > 1 else None
    for change in changes:
        axes[0].annotate(
            change.name, (change.time_s, 1.02), xycoords=("data", "axes fraction"),
            ha="center", va="bottom", fontsize=RC["small"], color="#a01818",
        )  # fmt: skip
    axes[-1].set_xlabel(f"seconds from {clock_zero}", fontsize=RC["font"])
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return png_bytes(figure)


def _displacement_limit(displacement_mm: F64) -> tuple[float, float]:
    """Range of the trace axes: robust against single noisy points, at least -4 to 4 mm."""
    finite = displacement_mm[np.isfinite(displacement_mm)]
    if not finite.size:
        return -4.0, 4.0
    low, high = np.percentile(finite, [0.5, 99.5])
    margin = 0.12 * max(high - low, 4.0)
    return min(float(low - margin), -4.0), max(float(high + margin), 4.0)


def body_box(
    mu: Image | None, grid: Grid, *, threshold: float = 0.05, margin_mm: float = 20.0
) -> tuple[slice, slice, slice]:
    """Find the part of a grid that holds the body, by its mu-map; the whole grid without one.

    Parameters
    ----------
    mu
        Attenuation, 1/cm. Shape ``grid.shape``.
    grid
        Its grid.
    threshold
        Voxels above it are body, 1/cm (half of water).
    margin_mm
        Added on each side, mm.
    """
    whole = tuple(slice(0, n) for n in grid.shape)
    if mu is None or not (mu > threshold).any():
        return whole[0], whole[1], whole[2]
    body = mu > threshold
    parts = []
    for axis in range(3):
        where = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(margin_mm / grid.voxel_mm[axis])
        low, high = max(int(where[0]) - margin, 0), int(where[-1]) + 1 + margin
        parts.append(slice(low, min(high, grid.shape[axis])))
    return parts[0], parts[1], parts[2]


def _extent(
    grid: Grid, plane: Plane, box: tuple[slice, slice, slice]
) -> tuple[float, float, float, float]:
    """Edges of the shown box, mm: left, right, bottom, top."""
    edges = []
    for axis in (plane.right_axis, plane.up_axis):
        half = grid.voxel_mm[axis] / 2
        first = grid.origin_mm[axis] + box[axis].start * grid.voxel_mm[axis] - half
        last = grid.origin_mm[axis] + box[axis].stop * grid.voxel_mm[axis] - half
        edges.append((first, last))
    (left, right), (low, high) = edges
    return (left, right, high, low) if plane.flip_up else (left, right, low, high)


def _show(
    ax: Axes,
    picture: Image,
    grid: Grid,
    plane: Plane,
    box: tuple[slice, slice, slice],
    **how: Any,
) -> Any:
    """Show a picture indexed [right, up] in mm, true to scale."""
    rows = picture.T  # imshow wants [up, right]
    extent = _extent(grid, plane, box)
    origin: Any = "upper" if plane.flip_up else "lower"
    image = ax.imshow(rows, origin=origin, extent=extent, aspect="equal", **how)
    ax.tick_params(labelsize=RC["small"], length=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(100))
    return image


def _letters(ax: Axes, plane: Plane, colour: str) -> None:
    left, right, top, bottom = plane.letters
    for text, x, y, ha, va in (
        (left, 0.015, 0.5, "left", "center"),
        (right, 0.985, 0.5, "right", "center"),
        (top, 0.5, 0.99, "center", "top"),
        (bottom, 0.5, 0.01, "center", "bottom"),
    ):
        ax.text(
            x, y, text, transform=ax.transAxes, ha=ha, va=va, color=colour,
            fontsize=RC["font"], fontweight="bold",
        )  # fmt: skip


def draw_mips(
    images: Sequence[tuple[str, Image]],
    grid: Grid,
    *,
    unit: str,
    scale_max: float,
    box: tuple[slice, slice, slice] | None = None,
) -> bytes:
    """Draw coronal and sagittal maximum intensity projections side by side on one scale.

    Grey is inverted (dark is high), as the clinic reads PET; the patient stands upright, seen
    from the front (coronal) and from the left (sagittal).

    Parameters
    ----------
    images
        Names and values, for example of the full scan and of the still windows. Each of shape
        ``grid.shape``.
    grid
        Their grid.
    unit
        Unit of the values, for the colour bar.
    scale_max
        Upper end of the one scale.
    box
        Part of the grid to show.
    """
    shown = box or body_box(None, grid)
    views = [(plane, *image) for plane in (CORONAL, SAGITTAL) for image in images]
    width = [
        (shown[p.right_axis].stop - shown[p.right_axis].start) * grid.voxel_mm[0]
        for p, *_ in views
    ]
    height = (shown[2].stop - shown[2].start) * grid.voxel_mm[2]
    inches_per_mm = min(13.0 / sum(width), 6.5 / height)
    figure = Figure(
        figsize=(sum(width) * inches_per_mm + 3.4, height * inches_per_mm + 1.1),
        layout="constrained",
    )
    axes: Any = figure.subplots(1, len(views), width_ratios=width, squeeze=False)[0]
    picture: Any = None
    for ax, (plane, name, values) in zip(axes, views, strict=True):
        mip = values[shown].max(axis=plane.through_axis)
        picture = _show(
            ax, mip, grid, plane, shown, cmap="gray_r", vmin=0.0, vmax=scale_max,
            interpolation="bilinear",
        )  # fmt: skip
        _letters(ax, plane, "#a01818")
        ax.set_title(f"{name}\n{plane.name}", fontsize=RC["font"])
        ax.set_xlabel(f"{'xyz'[plane.right_axis]} (mm)", fontsize=RC["small"])
    axes[0].set_ylabel("z (mm)", fontsize=RC["small"])
    bar = figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01, extend="max")
    bar.set_label(unit, fontsize=RC["font"])
    bar.ax.tick_params(labelsize=RC["small"])
    return png_bytes(figure)


def draw_fused(
    rows: Sequence[tuple[str, Image]],
    mu: Image | None,
    grid: Grid,
    points: Sequence[tuple[str, tuple[float, float, float]]],
    *,
    unit: str,
    scale_max: float,
    box: tuple[slice, slice, slice] | None = None,
) -> bytes:
    """Draw axial slices through points, PET in colour over the mu-map in grey.

    Parameters
    ----------
    rows
        One row of slices each: name and values. Shape ``grid.shape``.
    mu
        Attenuation on the same grid, 1/cm; slices are of PET alone without it.
    grid
        The grid.
    points
        Name and place (scanner frame, mm) of each column.
    unit, scale_max, box
        As for :func:`draw_mips`.

    Notes
    -----
    Seen from the feet: the patient's right is at the left of the picture, the front on top.
    """
    shown = box or body_box(None, grid)
    width, height = ((shown[a].stop - shown[a].start) * grid.voxel_mm[a] for a in (0, 1))
    column = min(2.6, 12.0 / max(len(points), 1))
    figure = Figure(
        figsize=(
            column * len(points) + 1.0,
            (column * height / width + 0.45) * len(rows) + 0.3,
        ),
        layout="constrained",
    )
    axes: Any = figure.subplots(len(rows), len(points), squeeze=False, sharex=True, sharey=True)
    picture: Any = None
    for (row_name, values), row in zip(rows, axes, strict=True):
        for (name, place), ax in zip(points, row, strict=True):
            k = int(np.clip(np.rint(grid.voxel_index(place)[2]), 0, grid.shape[2] - 1))
            here = (shown[0], shown[1], k)
            if mu is not None:
                _show(
                    ax, mu[here], grid, AXIAL, shown, cmap="gray", vmin=0.0, vmax=0.17,
                    interpolation="bilinear",
                )  # fmt: skip
            pet = values[here]
            alpha = None if mu is None else np.clip(pet.T / (0.6 * scale_max), 0.0, 0.85)
            picture = _show(
                ax, pet, grid, AXIAL, shown, cmap="inferno" if mu is not None else "gray_r",
                vmin=0.0, vmax=scale_max, alpha=alpha, interpolation="bilinear",
            )  # fmt: skip
            ax.plot(*place[:2], "o", mfc="none", mec="#33cc66", ms=20, mew=0.8)
            _letters(ax, AXIAL, "#ffffff" if mu is not None else "#a01818")
            ax.set_title(
                name.replace(", ", "\n") + f"\nz = {grid.point_mm((0, 0, k))[2]:.0f} mm",
                fontsize=RC["small"],
            )
        row[0].set_ylabel(f"{row_name}\ny (mm)", fontsize=RC["small"])
    bar = figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01, extend="max")
    bar.set_label(unit, fontsize=RC["font"])
    bar.ax.tick_params(labelsize=RC["small"])
    return png_bytes(figure)


def draw_closeup(
    images: Sequence[tuple[str, Image]],
    grid: Grid,
    centre_mm: tuple[float, float, float],
    *,
    unit: str,
    half_mm: float = 80.0,
) -> bytes:
    """Draw coronal and sagittal slices through a place, scaled to the brightest of them.

    Where a whole-body scale saturates, the walls of a hot organ are seen here.

    Parameters
    ----------
    images
        Names and values. Shape ``grid.shape``.
    grid
        Their grid.
    centre_mm
        Middle of the slices in the scanner frame, mm.
    unit
        Unit of the values.
    half_mm
        Half width of the pictures, mm.
    """
    low = np.rint(grid.voxel_index(np.asarray(centre_mm) - half_mm)).astype(int)
    high = np.rint(grid.voxel_index(np.asarray(centre_mm) + half_mm)).astype(int) + 1
    shape = np.asarray(grid.shape)
    low, high = np.clip(low, 0, shape - 1), np.clip(high, 1, shape)
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    at = np.clip(np.rint(grid.voxel_index(centre_mm)).astype(int), 0, shape - 1)
    views = [(plane, *image) for plane in (CORONAL, SAGITTAL) for image in images]
    top = max(float(values[box].max()) for _, values in images) or 1.0
    figure = Figure(figsize=(2.7 * len(views) + 1.0, 3.4), layout="constrained")
    axes: Any = figure.subplots(1, len(views), squeeze=False)[0]
    picture: Any = None
    for ax, (plane, name, values) in zip(axes, views, strict=True):
        cut: list[Any] = list(box)
        cut[plane.through_axis] = int(at[plane.through_axis])
        picture = _show(
            ax, values[tuple(cut)], grid, plane, box, cmap="gray_r", vmin=0.0, vmax=top,
            interpolation="bilinear",
        )  # fmt: skip
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MultipleLocator(50))
        _letters(ax, plane, "#a01818")
        ax.set_title(f"{name}\n{plane.name} slice", fontsize=RC["font"])
        ax.set_xlabel(f"{'xyz'[plane.right_axis]} (mm)", fontsize=RC["small"])
    axes[0].set_ylabel("z (mm)", fontsize=RC["small"])
    bar = figure.colorbar(picture, ax=axes, fraction=0.03, pad=0.01)
    bar.set_label(unit, fontsize=RC["font"])
    bar.ax.tick_params(labelsize=RC["small"])
    return png_bytes(figure)


def draw_profiles(
    z_mm: F64,
    profiles: Sequence[tuple[str, F64]],
    *,
    ylabel: str,
    title: str,
) -> bytes:
    """Draw axial profiles over each other, z to the right (towards the head).

    Parameters
    ----------
    z_mm
        Slice centres. Shape (n,), mm.
    profiles
        Name and values of each, in order full scan, still windows, motion-corrected. Shape
        (n,).
    ylabel, title
        What the values are, and of what.
    """
    figure = Figure(figsize=(6.2, 3.3), layout="constrained")
    ax = figure.subplots()
    colours = (FULL_COLOUR, STILL_COLOUR, CORRECTED_COLOUR)
    for (name, values), colour in zip(profiles, colours, strict=False):
        ax.plot(z_mm, values, drawstyle="steps-mid", color=colour, lw=1.6, label=name)
    ax.set_xlabel("z (mm), to the head", fontsize=RC["font"])
    ax.set_ylabel(ylabel, fontsize=RC["font"])
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_ylim(bottom=min(0.0, *(float(v.min()) for _, v in profiles)))
    ax.grid(color="#e4e4e4", lw=0.5)
    ax.legend(fontsize=RC["small"], frameon=False)
    _style(ax)
    return png_bytes(figure)


def draw_rates(
    time_s: F64, rates: Sequence[tuple[str, F64]], *, clock_zero: str = "tick zero"
) -> bytes:
    """Draw count rates over the scan.

    Parameters
    ----------
    time_s
        Middle of each interval. Shape (n,), s.
    rates
        Name and events per second of each stream. Shape (n,).
    clock_zero
        What the scan calls zero.
    """
    figure = Figure(figsize=(6.2, 2.6), layout="constrained")
    ax = figure.subplots()
    for (name, values), colour in zip(rates, (STILL_COLOUR, FULL_COLOUR), strict=False):
        ax.plot(time_s, values / 1000.0, color=colour, lw=1.0, label=name)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(f"seconds from {clock_zero}", fontsize=RC["font"])
    ax.set_ylabel("kcps", fontsize=RC["font"])
    ax.grid(color="#e4e4e4", lw=0.5)
    ax.legend(fontsize=RC["small"], frameon=False)
    _style(ax)
    return png_bytes(figure)
