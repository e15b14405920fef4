"""Scatter as an additive term: simulated single scatter, scaled to the LORs beside the body."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode
from listmode.windows import Windows
from recon.corrections import _kernels
from recon.corrections.additive import AdditiveModel
from recon.corrections.normalisation import pair_efficiency
from recon.corrections.scatter_grid import (
    DEFAULT,
    CoarseBody,
    ScatterSettings,
    coarse_body,
)
from recon.corrections.scatter_table import ScatterTable, expected_scatter_table
from recon.image import Volume
from recon.projector import run_in_parts

__all__ = ["ScatterModel", "ScatterSettings", "estimate_scatter", "expected_scatter_table"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BATCH = 1 << 18  # events looked at in one go


@dataclass(frozen=True, eq=False)
class ScatterModel:
    """Expected scatter in one scan's windows.

    Parameters
    ----------
    table
        Single scatter as simulated.
    crystal_efficiency
        Relative efficiency of each crystal; ``None`` for ones.
    decays_s
        ``D`` of ARCHITECTURE.md: branching times count fraction times decayed duration, s.
    segment_z_mm, segment_scale
        Scale at axial places of the LOR's midpoint, linear between them. Shape (n,), float64.
    tail_scale, tail_scale_error
        The global scale and its standard error; the error is NaN if the tails did not set it.
    total
        Expected scatter in the windows, counts.
    fraction
        ``total`` over prompts without randoms (over prompts where no randoms were given).
    notes
        What to tell the reader.
    threads
        Python threads for :meth:`expected`; the bits do not depend on it.
    """

    table: ScatterTable
    crystal_efficiency: F32 | None
    decays_s: float
    segment_z_mm: F64
    segment_scale: F64
    tail_scale: float
    tail_scale_error: float
    total: float
    fraction: float
    notes: tuple[str, ...] = ()
    threads: int = 2

    def expected(self, batch: EventBatch) -> F32:
        """Give the expected scatter in each event's own LOR and TOF bin.

        Parameters
        ----------
        batch
            Events of the scan's scanner.

        Returns
        -------
        ndarray
            Counts in the windows. Shape (n_events,), float32.
        """
        counts = _unscaled(self.table, batch, self.crystal_efficiency, self.threads)
        return self._scaled(counts, batch)

    def expected_ratio(self, batch: EventBatch) -> F32:
        """Give the expected scatter over each pair's efficiency; see ``RatioModel``."""
        return self._scaled(self.table.evaluate(batch, threads=1), batch)

    def _scaled(self, counts: F32, batch: EventBatch) -> F32:
        counts *= self.decays_s
        counts *= self.scale_at(_middle_z_mm(self.table.scanner, batch))
        return counts

    def scale_at(self, z_mm: F32) -> F32:
        """Give the scale for LORs whose midpoints lie at ``z_mm``. Shape as given."""
        return np.interp(z_mm, self.segment_z_mm, self.segment_scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """A random sample of accepted pairs and TOF bins; ``weight`` of them stand behind each."""

    batch: EventBatch
    weight: float
    is_tail: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Tails:
    """Counts beside the body by axial segment: measured, random, and scattered as simulated."""

    edges_mm: F64
    prompts: F64
    prompts_variance: F64
    randoms: F64
    simulated: F64

    def scale(self) -> tuple[F64, F64]:
        """Give each segment's scale and standard error (inf where nothing is expected)."""
        return _ratio(self.prompts - self.randoms, self.prompts_variance, self.simulated)

    def global_scale(self) -> tuple[float, float]:
        """Give the scale of all segments together and its standard error."""
        scale, error = _ratio(
            np.atleast_1d((self.prompts - self.randoms).sum()),
            np.atleast_1d(self.prompts_variance.sum()),
            np.atleast_1d(self.simulated.sum()),
        )
        return float(scale[0]), float(error[0])


def estimate_scatter(
    listmode: Listmode,
    windows: Windows,
    *,
    image: Volume,
    mu: Volume,
    randoms: AdditiveModel | None,
    settings: ScatterSettings = DEFAULT,
    threads: int = 2,
    progress: Progress = SILENT,
) -> ScatterModel:
    """Estimate the scatter in a union of windows from an image of the same windows.

    Single scatter is simulated in absolute units; what it lacks (multiple scatter, matter
    outside the mu-map) comes from a scale that makes it meet prompts less randoms on the LORs
    that miss the body, by axial segment as far as their counts allow.

    Parameters
    ----------
    listmode, windows
        The scan and the windows that the image was made from.
    image
        Activity at tick zero, Bq/mL, on any grid.
    mu
        Attenuation at 511 keV, 1/cm, on any grid.
    randoms
        Expected randoms in the windows; ``None`` if the scan has none.
    settings
        See :class:`ScatterSettings`.
    threads
        Python threads; the bits do not depend on it.
    progress
        Told the scatter points.

    Returns
    -------
    ScatterModel
        An additive term for the reconstruction.

    Raises
    ------
    InputError
        If a unit is wrong, image and mu-map hold nothing in the same place, or the windows
        reach outside the scan.

    Notes
    -----
    Scaling to the tails: Watson (2000), doi 10.1109/23.873028. A segment's scale is the mean of
    its own and the global one, weighted by their variances, the global one's with the spread
    that segments are expected to have.
    """
    scanner, protocol = listmode.scanner, listmode.protocol
    body = coarse_body(image, mu, settings)
    table = expected_scatter_table(
        scanner, image=image, mu=mu, settings=settings, body=body, threads=threads,
        progress=progress,
    )  # fmt: skip
    decays_s = protocol.branching * protocol.count_fraction
    decays_s *= (
        windows.decayed_duration_s(protocol.half_life_s)
        if listmode.live is None
        else listmode.live.decayed_live_s(windows, protocol.half_life_s)
    )
    pairs = _sample_pairs(scanner, body, settings, threads)
    efficiency = listmode.crystal_efficiency
    simulated = _unscaled(table, pairs.batch, efficiency, threads).astype(np.float64)
    simulated *= decays_s * pairs.weight
    expected_randoms = np.zeros(len(pairs.batch))
    if randoms is not None:
        expected_randoms = randoms.expected(pairs.batch).astype(np.float64) * pairs.weight
    tails = _measure_tails(
        listmode, windows, body, pairs, simulated, expected_randoms, settings, threads
    )
    scale, error, notes = _choose_scale(tails, settings)
    segment_z_mm, segment_scale = _segment_scales(tails, scale, error, settings)
    z_mm = _middle_z_mm(scanner, pairs.batch)
    total = float((simulated * np.interp(z_mm, segment_z_mm, segment_scale)).sum())
    measured = listmode.count(windows) - float(expected_randoms.sum())
    return ScatterModel(
        table=table,
        crystal_efficiency=efficiency,
        decays_s=decays_s,
        segment_z_mm=segment_z_mm,
        segment_scale=segment_scale,
        tail_scale=scale,
        tail_scale_error=error,
        total=total,
        fraction=total / measured if measured > 0 else math.nan,
        notes=notes,
        threads=threads,
    )


def _unscaled(
    table: ScatterTable, batch: EventBatch, crystal_efficiency: F32 | None, threads: int
) -> F32:
    """Give single scatter in each event's LOR and TOF bin, counts per second of ``D``."""
    counts = table.evaluate(batch, threads=threads)

    def part(some: slice) -> None:
        counts[some] *= pair_efficiency(
            table.scanner, batch.crystal_a[some], batch.crystal_b[some], crystal_efficiency
        )

    run_in_parts(part, len(batch), threads)
    return counts


def _middle_z_mm(scanner: Scanner, batch: EventBatch) -> F32:
    z_mm = np.ascontiguousarray(scanner.crystal_position_mm[:, 2])
    return np.asarray((z_mm[batch.crystal_a] + z_mm[batch.crystal_b]) / 2, dtype=np.float32)


def _misses_body(
    scanner: Scanner, batch: EventBatch, body: CoarseBody, threads: int
) -> NDArray[np.bool_]:
    """Say for each event whether its LOR misses the body."""
    missed = np.empty(len(batch), np.uint8)
    ends = (body.grid.voxel_index(scanner.crystal_position_mm)).astype(np.float32)
    mask = body.body.astype(np.uint8)

    def work(some: slice) -> None:
        _kernels.miss_mask(
            ends, batch.crystal_a[some], batch.crystal_b[some], mask, missed[some]
        )

    run_in_parts(work, len(batch), threads)
    return missed.astype(bool)


def _sample_pairs(
    scanner: Scanner, body: CoarseBody, settings: ScatterSettings, threads: int
) -> _Pairs:
    """Draw pairs of crystals and TOF bins evenly and keep what the scanner accepts."""
    rng = np.random.default_rng(settings.seed)
    n = scanner.n_crystals
    a = rng.integers(0, n, settings.n_pairs)
    b = (a + rng.integers(1, n, settings.n_pairs)) % n
    keep = scanner.accepts(a, b)
    a, b = a[keep], b[keep]
    tof_bin = rng.integers(0, scanner.tof.n_bins, a.size)
    batch = EventBatch.from_pairs(a, b, tof_bin, scanner.tof.n_bins)
    weight = n * (n - 1) / 2 * scanner.tof.n_bins / settings.n_pairs
    return _Pairs(batch, weight, _misses_body(scanner, batch, body, threads))


def _tail_events(
    listmode: Listmode, windows: Windows, settings: ScatterSettings
) -> tuple[float, Iterator[EventBatch]]:
    """Give batches spread evenly over the windows, and how many events each of theirs is."""
    slices = [
        (first, min(first + BATCH, stop))
        for start, stop in listmode.event_slices(windows).tolist()
        for first in range(start, stop, BATCH)
    ]
    n_all = sum(stop - start for start, stop in slices)
    n_take = max(1, settings.max_tail_events // BATCH)
    if n_take < len(slices):
        picks = np.linspace(0, len(slices) - 1, n_take).round().astype(np.int64)
        slices = [slices[i] for i in np.unique(picks).tolist()]
    n_taken = sum(stop - start for start, stop in slices)
    factor = n_all / n_taken if n_taken else 1.0
    return factor, (listmode.read("prompts", start, stop) for start, stop in slices)


def _measure_tails(
    listmode: Listmode,
    windows: Windows,
    body: CoarseBody,
    pairs: _Pairs,
    simulated: F64,
    randoms: F64,
    settings: ScatterSettings,
    threads: int,
) -> _Tails:
    scanner = listmode.scanner
    z_mm = scanner.crystal_position_mm[:, 2]
    edges = np.linspace(float(z_mm.min()), float(z_mm.max()), settings.n_segments + 1)

    def by_segment(batch: EventBatch, weights: F64 | None = None) -> F64:
        middle = np.clip(_middle_z_mm(scanner, batch), edges[0], edges[-1])
        return np.histogram(middle, edges, weights=weights)[0].astype(np.float64)

    factor, batches = _tail_events(listmode, windows, settings)
    counts = np.zeros(settings.n_segments)
    for batch in batches:
        missed = np.flatnonzero(_misses_body(scanner, batch, body, threads))
        counts += by_segment(_take(batch, missed))
    tail = np.flatnonzero(pairs.is_tail)
    tail_pairs = _take(pairs.batch, tail)
    return _Tails(
        edges_mm=edges,
        prompts=counts * factor,
        prompts_variance=counts * factor**2,
        randoms=by_segment(tail_pairs, randoms[tail]),
        simulated=by_segment(tail_pairs, simulated[tail]),
    )


def _take(batch: EventBatch, index: NDArray[np.intp]) -> EventBatch:
    return EventBatch(batch.crystal_a[index], batch.crystal_b[index], batch.tof_bin[index])


def _ratio(counts: F64, variance: F64, simulated: F64) -> tuple[F64, F64]:
    known = simulated > 0
    safe = np.where(known, simulated, 1.0)
    scale = np.where(known, counts / safe, 1.0)
    return scale, np.where(known, np.sqrt(np.maximum(variance, 1.0)) / safe, np.inf)


def _choose_scale(
    tails: _Tails, settings: ScatterSettings
) -> tuple[float, float, tuple[str, ...]]:
    """Take the tails' scale if it is known well enough, else the fallback with a note."""
    scale, error = tails.global_scale()
    if settings.scale_to_tails and scale > 0 and error <= settings.max_tail_error * scale:
        return scale, error, ()
    if not settings.scale_to_tails:
        why = "the settings switch the tails off"
    elif not tails.simulated.sum() > 0:
        why = "no LOR in the field of view misses the body"
    else:
        why = f"the LORs beside the body give {scale:.2f} with a standard error of {error:.2f}"
    note = f"scatter is the simulation times {settings.fallback_scale:g}, because {why}"
    return settings.fallback_scale, math.nan, (note,)


def _segment_scales(
    tails: _Tails, scale: float, error: float, settings: ScatterSettings
) -> tuple[F64, F64]:
    """Give axial places and their scales: each segment's own drawn towards the global one."""
    middle = (tails.edges_mm[:-1] + tails.edges_mm[1:]) / 2
    if math.isnan(error):
        return middle, np.full(middle.shape, scale)
    own, own_error = tails.scale()
    spread = settings.segment_spread * scale
    weight = spread**2 / (spread**2 + np.minimum(own_error, 1e6) ** 2)
    return middle, scale + weight * (own - scale)
