"""Results as lines for a person at a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from listmode.formats.info import Info
from listmode.motion import MotionResult
from listmode.source import Listmode
from recon.hotspots.features import COLUMNS, HotspotTable
from recon.pipeline.benchmark import BenchmarkRow
from recon.pipeline.demo import SimulatedScan
from recon.pipeline.images import CostEstimate, Reconstruction
from recon.pipeline.scan import RunResult
from recon.report import words


def info_lines(info: Info) -> list[str]:
    """Write what a file holds."""
    protocol = info.protocol
    seconds = max(info.held_s, 1e-3)
    tof = "no TOF" if info.tof_fwhm_ps is None else f"{info.tof_fwhm_ps:.4g} ps TOF"
    lines = [
        f"format      {info.format_name}",
        f"sha256      {info.sha256}",
        f"scanner     {info.scanner_name} {info.mode}".rstrip()
        + f", {info.n_crystals:,} crystals, {info.n_tof_bins} TOF bins, {tof}",
        f"time        {info.start_ms / 1000:g}-{info.stop_ms / 1000:g} s, {info.held_s:g} s "
        f"held; zero is {info.clock_zero}",
    ]
    for name, n, in_time in (
        ("prompts", info.n_prompts, info.n_prompts_in_time),
        ("delayeds", info.n_delayeds, info.n_delayeds_in_time),
    ):
        outside = f", {n - in_time:,} of them outside of all time" if n != in_time else ""
        lines.append(f"{name:<12}{n:,} ({in_time / seconds / 1000.0:.4g} kcps){outside}")
    lines += [f"tags        {name}: {n:,}" for name, n in info.tags.items()]
    if protocol.injected_activity_bq is not None:
        lines.append(
            f"injected    {protocol.injected_activity_bq / 1e6:.4g} MBq {protocol.tracer}"
        )
    if protocol.patient_weight_kg is not None:
        lines.append(f"weight      {protocol.patient_weight_kg:g} kg")
    if protocol.suv_per_bq_ml is None:
        lines.append("SUV         not known: the file lacks injected activity or weight")
    if protocol.count_fraction < 1.0:
        lines.append(f"thinned     to {protocol.count_fraction:.4g} of the counts")
    lines.append(f"complete    {'yes' if info.is_complete else 'NO'}")
    lines += [f"note        {note}" for note in info.notes]
    lines += [f"defect      {defect}" for defect in info.defects]
    return lines


def motion_lines(motion: MotionResult, clock_zero: str) -> list[str]:
    """Write what moved, which windows are kept and what is left out."""
    selection = motion.selection
    lines = [*words.motion_sentences(motion, clock_zero)]
    lines.append(f"windows kept: {selection.windows} (seconds from {clock_zero})")
    lines += [
        f"left out {a / 1000:g}-{b / 1000:g} s: {why}"
        for (a, b), why in words.left_out(selection)
    ]
    return lines + words.motion_notes(motion)


def cost_line(cost: CostEstimate) -> str:
    """Say what a reconstruction will take."""
    return (
        f"about {cost.memory_bytes / 1e9:.2g} GB of memory and {cost.seconds:.0f} s for "
        f"{cost.n_events / 1e6:.3g} M events on {cost.n_voxels / 1e6:.3g} M voxels"
    )


def image_lines(listmode: Listmode, done: Reconstruction, path: Path) -> list[str]:
    """Write what an image was made from."""
    volume = done.volume
    lines = [
        f"{path.name}: {volume.grid.shape} voxels of {volume.grid.voxel_mm[0]:g} mm, "
        f"{volume.unit} decay-corrected to {listmode.clock_zero}",
        f"windows {done.windows} (seconds from {listmode.clock_zero}), "
        f"{done.n_prompts:,} prompts",
    ]
    for name, n in (("randoms", done.n_randoms), ("scatter", done.n_scatter)):
        if n is not None:
            lines.append(f"{name}: {n:,.0f} expected ({n / done.n_prompts:.1%} of the prompts)")
    factor = listmode.protocol.suv_per_bq_ml
    lines.append("SUV is not known" if factor is None else f"SUV = Bq/mL × {factor:.6g}")
    return lines + list(done.notes)


def hotspot_dict(table: HotspotTable) -> dict[str, Any]:
    """Give a hotspot table as JSON values; unknown numbers are None."""
    return {
        "method": table.method,
        "notes": list(table.notes),
        "hotspots": [
            {name: _plain(getattr(row, name)) for name in COLUMNS} for row in table.rows
        ],
    }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def hotspot_lines(table: HotspotTable) -> list[str]:
    """Write the hottest rows of a table."""
    is_suv = bool(table.rows) and math.isfinite(table.rows[0].suv_max)
    unit = "SUV" if is_suv else "Bq/mL"
    lines = [f"{len(table)} hotspots, {table.method}; hottest first, {unit} and mm"]
    for row in table.rows[:20]:
        top, peak = (row.suv_max, row.suv_peak) if is_suv else (row.max_bq_ml, row.peak_bq_ml)
        kind = " (physiological)" if row.is_physiological else ""
        lines.append(
            f"{row.id:4d}  max {top:9.4g}  peak {peak:9.4g}  {row.volume_ml:8.2f} mL  at "
            f"({row.x_mm:7.1f}, {row.y_mm:7.1f}, {row.z_mm:7.1f})  {row.label}{kind}"
        )
    return lines + list(table.notes)


def run_lines(run: RunResult, clock_zero: str, folder: Path) -> list[str]:
    """Write what the main job found."""
    lines = motion_lines(run.motion, clock_zero)
    if run.windows != run.motion.selection.windows:
        lines.append(f"windows of your choice: {run.windows}")
    kept = run.still.n_prompts / max(run.full.n_prompts, 1)
    lines.append(
        f"prompts kept: {run.still.n_prompts:,} of {run.full.n_prompts:,} ({kept:.1%})"
    )
    lines += [*hotspot_lines(run.hotspots_still), *run.notes]
    return [*dict.fromkeys(lines), f"open {folder / 'report.html'}"]


def simulation_lines(scan: SimulatedScan, folder: Path) -> list[str]:
    """Write what was simulated."""
    truth = scan.truth
    moves = "; ".join(f"{s['shift_mm']} mm at {s['time_s']} s" for s in truth.shifts)
    return [
        f"{folder / scan.path.name}: {truth.n_trues:,} trues, {truth.n_scatter:,} scattered, "
        f"{truth.n_randoms:,} randoms, {truth.n_delayeds:,} delayeds in {truth.duration_s:g} s",
        f"shifts (left, back, head): {moves or 'none'}; "
        f"filling {truth.filling_ml_min:g} mL/min",
    ]


def bench_lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Write benchmark rows as a table."""
    lines = [f"{'what':<44}{'M events/s':>12}{'ratio':>10}  compared with"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            f"{row.name:<44}{row.events_per_s / 1e6:>12.3g}{ratio:>10}  {row.compared_with}"
        )
    return lines
