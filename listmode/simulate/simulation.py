"""A scan that is ready to be generated: rates, bounds and tables, and its slices of events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.scanner import Scanner
from listmode.simulate import _kernels
from listmode.simulate.detector import (
    F32,
    F64,
    I64,
    U64,
    Detector,
    draw_crystal_efficiency,
    make_detector,
    make_state,
)
from listmode.simulate.motion import STILL, PatientMotion
from listmode.simulate.protocols import Dose
from listmode.simulate.shapes import Phantom
from listmode.simulate.sources import (
    EVERYWHERE,
    N_COS,
    N_PHI,
    Body,
    Pieces,
    Proposal,
    cut_pieces,
    make_alias,
    make_body,
    make_proposal,
)
from listmode.simulate.transport import Tracks, smooth_singles, track_decays, track_part
from listmode.simulate.truth import RANDOM, SCATTER, TRUE, CountBudget
from listmode.source import ScanProtocol
from listmode.windows import Windows

I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
ScatterMode = Literal["table", "direct", "off"]
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
Events = tuple[I32, I32, I32, I16]  # tick, crystal a, crystal b, TOF bin

JITTER_MM, JITTER_PS = 10.0, 40.0  # far below the width of scatter, far above a crystal
N_SINGLES_DECAYS, N_PILOT_DECAYS, N_PILOT_LINES = 1_600_000, 160_000, 400_000
PILOT_KEY = 1 << 30  # beyond every slice's number
TABLE_EVENTS = 250_000  # of scatter, in all tables of a scan
STATE_MS = 600_000  # a table of scatter serves at most this long: 50 mL at 5 mL/min


@dataclass(frozen=True, eq=False)
class Slice:
    """Events of consecutive ticks."""

    prompts: EventBatch
    truth: NDArray[np.uint8]
    prompts_per_tick: I64
    delayeds: EventBatch
    delayeds_per_tick: I64


@dataclass(frozen=True, eq=False)
class ScatterState:
    """A stretch of the scan with one table of scatter."""

    start_ms: int
    stop_ms: int
    tracks: Tracks
    per_decay: float  # scattered coincidences per decay of the positive activity


@dataclass(frozen=True)
class Simulation:
    """A scan that is ready to be generated, slice by slice.

    Parameters
    ----------
    scanner, phantom, dose, motion
        What is measured. A phantom in SUV takes its scale from the dose.
    seed
        Seed of every random number: same seed, same scan, at any number of threads.
    count_fraction
        Share of all coincidences that is kept, randoms and delayeds included.
    scatter
        ``"table"`` draws from pools of followed photons with jitter, ``"direct"`` follows the
        photons of every event, ``"off"`` leaves scatter out.
    with_randoms
        Whether there are randoms and a delayed stream.
    emission_box_mm
        Only decays in this box ((x0, x1), (y0, y1), (z0, z1)) of the unmoved patient give
        trues and scatter; randoms stay those of the whole body.
    duration_s
        Length, if not the dose's, s.
    threads
        Number of threads.
    table_events
        Scattered events in all tables together, at most.

    Raises
    ------
    InputError
        If the scanner has no blocks, the phantom no activity or no room in the bore, or a
        number is out of range.
    """

    scanner: Scanner
    phantom: Phantom
    dose: Dose
    motion: PatientMotion = STILL
    seed: int = 0
    count_fraction: float = 1.0
    scatter: ScatterMode = "table"
    with_randoms: bool = True
    emission_box_mm: Box | None = None
    duration_s: float | None = None
    threads: int = 2
    table_events: int = TABLE_EVENTS

    def __post_init__(self) -> None:
        protocol = self.dose.scan_protocol(self.phantom.weight_kg, self.count_fraction)
        scale = protocol.suv_per_bq_ml
        assert scale is not None
        object.__setattr__(self, "phantom", self.phantom.with_suv_scale(1.0 / scale))
        if not self.phantom.activity_bq() > 0.0:
            raise InputError(
                f"a phantom must hold activity, but {self.phantom.name!r} holds none; "
                "give a shape an activity"
            )
        if self.n_ticks < 1:
            raise InputError(
                f"a scan must last at least 1 ms, but it lasts {self.duration_s} s; "
                "give a longer duration"
            )
        if self.scatter not in ("table", "direct", "off"):
            raise InputError(
                f"scatter must be 'table', 'direct' or 'off', but it is {self.scatter!r}; "
                "choose one of these"
            )
        self._check_room()

    def _check_room(self) -> None:
        front = float(self.detector.blocks[0])
        rows = self.phantom.geometry(self.n_ticks / 1000.0)
        reach = np.hypot(
            np.abs(rows[:, 1]) + 1.0 / rows[:, 4], np.abs(rows[:, 2]) + 1.0 / rows[:, 5]
        )
        round_shapes = rows[:, 0] < 2
        reach[round_shapes] = (
            np.hypot(rows[:, 1], rows[:, 2]) + 1.0 / rows[:, 4:6].min(axis=1)
        )[round_shapes]
        if (bad := np.flatnonzero(reach + self._largest_shift_mm >= front)).size:
            raise InputError(
                f"a phantom must stay inside the scanner's bore (radius {front:g} mm), but "
                f"shape {self.phantom.shapes[bad[0]].name!r} reaches {reach[bad[0]]:.0f} mm "
                f"and moves by up to {self._largest_shift_mm:.0f} mm; make it smaller"
            )

    # ---- what does not change during the scan

    @property
    def n_ticks(self) -> int:
        """Length of the scan, ms."""
        return round(1000 * (self.duration_s or self.dose.duration_s))

    @cached_property
    def protocol(self) -> ScanProtocol:
        """The protocol that the file states."""
        return self.dose.scan_protocol(self.phantom.weight_kg, self.count_fraction)

    @cached_property
    def detector(self) -> Detector:
        """The scanner's blocks."""
        return make_detector(self.scanner)

    @cached_property
    def efficiency(self) -> F32:
        """Relative crystal efficiencies. Shape (n_crystals,), float32."""
        return draw_crystal_efficiency(self.scanner, self.seed)

    @property
    def _box(self) -> F64:
        return EVERYWHERE if self.emission_box_mm is None else np.ravel(self.emission_box_mm)

    @cached_property
    def _coarse_shift_mm(self) -> F64:
        """Displacement at 2000 even times. Shape (2000, 3), float64, mm."""
        time = (np.arange(2000) + 0.5) / 2000 * self.n_ticks / 1000.0
        return self.motion.displacement_mm(time)

    @cached_property
    def _largest_shift_mm(self) -> float:
        return float(np.abs(self._coarse_shift_mm).max()) + 1.0

    def _body(self, time_s: float) -> Body:
        return make_body(self.phantom, time_s, self._largest_shift_mm)

    def _decays(self, start_ms: int, stop_ms: int) -> float:
        """Integrate kept decays per Bq at tick zero over [start, stop), s."""
        window = Windows([start_ms], [stop_ms])
        protocol = self.protocol
        seconds = window.decayed_duration_s(protocol.half_life_s)
        return seconds * protocol.branching * protocol.count_fraction

    # ---- trues

    @cached_property
    def _proposal(self) -> Proposal:
        body = self._body(0.0)
        shifts = self._coarse_shift_mm
        ends = np.unique(
            np.round(np.stack((shifts.min(axis=0), shifts.max(axis=0))), 1), axis=0
        )
        return make_proposal(
            self.detector, body, self._box, list(ends), self.seed, self.threads
        )

    def _lines(self, body: Body) -> tuple[Pieces, F64]:
        """Give the pieces to draw decays from and their proposals per Bq and decay."""
        pieces = cut_pieces(body, self._proposal.grid, self._box)
        top = float(self.efficiency.max()) * self.scanner.window_efficiency
        return pieces, pieces.bq * self._proposal.cell_bound[pieces.cell] * top**2

    def _make_trues(self, body: Body, decays: float, shift_mm: F64, key: int) -> Events:
        """Make trues out of ``decays`` per Bq at tick zero, evenly over the rows of shifts."""
        pieces, rate = self._lines(body)
        n_proposals = _generator(self.seed, 9, key).poisson(rate * decays)
        state = make_state(self.seed, 6, key)
        p, d = self._proposal, self.detector
        room = int(n_proposals.sum()) // 2 + 1000
        while True:
            out = _room(room)
            n_out = _kernels.generate_trues(
                state.copy(), n_proposals, shift_mm, pieces.box_mm, pieces.source, pieces.cell,
                *body.activity, N_PHI, N_COS, p.cos_max, p.bound, p.accept, p.other,
                *body.attenuation, d.blocks, d.block_cos_sin, d.reach_mm, *d.acceptance, d.tof,
                self.efficiency, self.efficiency.max(), d.positron, d.acollinearity_rad, *out,
            )  # fmt: skip
            if n_out >= 0:
                return _cut(out, n_out)
            room *= 2

    # ---- scatter

    @cached_property
    def scatter_states(self) -> tuple[ScatterState, ...]:
        """The tables of scatter, one a stretch between steps of the patient."""
        if self.scatter == "off":
            return ()
        steps = {round(1000 * t) for t in self.motion.step_time_s}
        edges = sorted({0, self.n_ticks} | {t for t in steps if 0 < t < self.n_ticks})
        stretches = [
            (int(a), int(b))
            for start, stop in pairwise(edges)
            for a, b in Windows([start], [stop]).cut(STATE_MS)
        ]
        return tuple(self._scatter_state(i, a, b) for i, (a, b) in enumerate(stretches))

    def _scatter_state(self, number: int, start_ms: int, stop_ms: int) -> ScatterState:
        body = self._body((start_ms + stop_ms) / 2000.0)
        time = np.linspace(start_ms, stop_ms, 200, endpoint=False) / 1000.0
        shift = self.motion.displacement_mm(time)

        def track(n_decays: int, key: int) -> Tracks:
            return track_decays(
                self.detector, body, self._box, shift, n_decays,
                (self.seed, 2, number, key), self.threads,
            )  # fmt: skip

        pilot = track(N_PILOT_DECAYS, 0)
        per_decay = max(pilot.n_scatter, 1) / pilot.n_decays
        expected = per_decay * self._scatter_decays(body, start_ms, stop_ms)
        share = self.table_events * (stop_ms - start_ms) / self.n_ticks
        wanted = min(share, max(2.0 * expected, 2000.0))
        if self.scatter == "direct" or wanted <= pilot.n_scatter:
            tracks = pilot
        else:
            tracks = track(int(wanted / per_decay), 1)
        return ScatterState(start_ms, stop_ms, tracks, tracks.n_scatter / tracks.n_decays)

    def _scatter_decays(self, body: Body, start_ms: int, stop_ms: int) -> float:
        """Give the decays whose photons pass the energy window, if they are stopped."""
        w = self.scanner.window_efficiency
        return float(body.source_bq.sum()) * self._decays(start_ms, stop_ms) * w * w

    def _make_scatter(
        self, body: Body, start_ms: int, stop_ms: int, shift_mm: F64, key: int
    ) -> Events:
        parts = [_room(0)]
        rng = _generator(self.seed, 3, key)
        top = float(self.efficiency.max())
        d = self.detector
        for number, state in enumerate(self.scatter_states):
            a, b = max(start_ms, state.start_ms), min(stop_ms, state.stop_ms)
            if a >= b:
                continue
            decays = self._scatter_decays(body, a, b) * top * top
            seed = (self.seed, 4, key, number)
            rows = np.ascontiguousarray(shift_mm[a - start_ms : b - start_ms])
            if self.scatter == "direct":
                t = track_part(d, body, self._box, rows, int(rng.poisson(decays)), seed)
                out = _room(t.n_scatter)
                n_out = _kernels.blur_scatter(
                    make_state(*seed, 1), b - a, t.tick, t.crystal_a, t.crystal_b, t.tof_ps,
                    d.tof, self.efficiency, top, *out,
                )  # fmt: skip
            else:
                n = int(rng.poisson(decays * state.per_decay))
                out = _room(n if state.tracks.n_scatter else 0)
                n_out = _kernels.resample_scatter(
                    make_state(*seed), len(out[0]), b - a, state.tracks.crystal_a,
                    state.tracks.crystal_b, state.tracks.tof_ps, JITTER_MM, JITTER_PS,
                    *d.acceptance[:2], d.ring_z, *d.acceptance[2:], d.blocks,
                    d.block_cos_sin, d.tof, self.efficiency, top, *out,
                )  # fmt: skip
            part = _cut(out, n_out)
            parts.append((part[0] + np.int32(a - start_ms), *part[1:]))
        return _join(parts)

    # ---- randoms

    @cached_property
    def _singles(self) -> tuple[F64, float, float]:
        """Give the body's share by crystal and its rate at tick zero, and the background, 1/s.

        Rates are of all coincidences' singles: not thinned by the count fraction.
        """
        middle_s = self.n_ticks / 2000.0
        body = self._body(middle_s)
        singles = self.count_singles(N_SINGLES_DECAYS)
        share = smooth_singles(self.detector, singles) * self.efficiency
        per_decay = 2.0 * float(singles.sum()) / N_SINGLES_DECAYS
        rate = (
            body.source_bq.sum() * self.protocol.branching * per_decay
            * self.scanner.window_efficiency * share.sum()
        )  # fmt: skip
        return share / share.sum(), float(rate), self.scanner.background_singles_hz

    def count_singles(self, n_decays: int) -> I64:
        """Count in each crystal one photon of each of ``n_decays`` decays at mid-scan.

        Neither the energy window's nor the crystals' efficiency is in it. Shape (n_crystals,),
        int64.
        """
        body = self._body(self.n_ticks / 2000.0)
        return track_decays(
            self.detector, body, EVERYWHERE, self._coarse_shift_mm, n_decays, (self.seed, 5),
            self.threads,
        ).singles  # fmt: skip

    @cached_property
    def _singles_alias(self) -> tuple[tuple[F64, I32], tuple[F64, I32]]:
        share = self._singles[0]
        return make_alias(share), make_alias(self.efficiency.astype(np.float64))

    def singles_hz(self, time_ms: int) -> tuple[float, float]:
        """Give the singles of the body and of the crystals themselves at a time, 1/s."""
        _, body, background = self._singles
        return body * 2.0 ** (-time_ms / 1000.0 / self.protocol.half_life_s), background

    def crystal_singles_hz(self, time_ms: int) -> F64:
        """Give each crystal's rate of singles at a time, 1/s. Shape (n_crystals,), float64."""
        body, background = self.singles_hz(time_ms)
        own = self.efficiency / self.efficiency.sum(dtype=np.float64)
        return np.asarray(self._singles[0] * body + own * background)

    def _pairs(self, start_ms: int, stop_ms: int) -> tuple[float, float]:
        """Give expected chance pairs before the acceptance and the body's share of singles."""
        body, background = self.singles_hz((start_ms + stop_ms) // 2)
        total = body + background
        seconds = (stop_ms - start_ms) / 1000.0
        window_s = self.scanner.tof.window_ps * 1e-12
        n = 0.5 * window_s * total**2 * seconds * self.protocol.count_fraction
        return n, body / total if total > 0 else 0.0

    def _make_randoms(self, n: int, n_ticks: int, body_share: float, state: U64) -> Events:
        body, own = self._singles_alias
        out = _room(n)
        n_out = _kernels.generate_randoms(
            state, n, n_ticks, body_share, *body, *own, *self.detector.acceptance,
            self.scanner.tof.n_bins, *out,
        )  # fmt: skip
        return _cut(out, n_out)

    # ---- what is expected

    @cached_property
    def budget(self) -> CountBudget:
        """Expected events of the scan."""
        n_parts = 20
        edges = np.linspace(0, self.n_ticks, n_parts + 1).astype(int)
        trues = scatter = randoms = activity = singles = 0.0
        share, error = self._true_share
        kept, kept_error = self._random_share if self.with_randoms else (0.0, 0.0)
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if b <= a:
                continue
            time_s = (a + b) / 2000.0
            body = self._body(time_s)
            decay = 2.0 ** (-time_s / self.protocol.half_life_s)
            trues += share * self._lines(body)[1].sum() * self._decays(a, b)
            for state in self.scatter_states:
                if state.start_ms <= time_s * 1000 < state.stop_ms:
                    scatter += state.per_decay * self._scatter_decays(body, a, b)
            pairs = self._pairs(a, b)[0] if self.with_randoms else 0.0
            randoms += pairs * kept
            activity += self.phantom.activity_bq(time_s) * decay * (b - a) / self.n_ticks
            if self.with_randoms:
                singles += sum(self.singles_hz((a + b) // 2)) * (b - a) / self.n_ticks
        n_scatter = sum(s.tracks.n_scatter for s in self.scatter_states)
        return CountBudget(
            float(trues), scatter, randoms, randoms, self.n_ticks / 1000.0, activity, singles,
            (error, 1.0 / math.sqrt(max(n_scatter, 1)), kept_error),
        )  # fmt: skip

    @cached_property
    def _true_share(self) -> tuple[float, float]:
        """Give the share of proposals that become trues, and its relative standard error."""
        body = self._body(self.n_ticks / 2000.0)
        total = float(self._lines(body)[1].sum())
        if not total > 0.0:
            return 0.0, 0.0
        events = self._make_trues(body, N_PILOT_LINES / total, self._coarse_shift_mm, PILOT_KEY)
        return len(events[0]) / N_PILOT_LINES, 1.0 / math.sqrt(max(len(events[0]), 1))

    @cached_property
    def _random_share(self) -> tuple[float, float]:
        _, share = self._pairs(0, self.n_ticks)
        n = len(self._make_randoms(N_PILOT_LINES, 1, share, make_state(self.seed, 7))[0])
        return n / N_PILOT_LINES, 1.0 / math.sqrt(max(n, 1))

    @cached_property
    def slice_ms(self) -> int:
        """Length of a slice: at most 10 s, 2 million events or an eighth of the scan."""
        by_counts = 2e6 / max(self.budget.prompts_hz, 1e-9) * 1000.0
        return int(max(1.0, min(10_000.0, max(by_counts, 250.0), self.n_ticks / 8.0)))

    # ---- events

    def make_slice(self, number: int) -> Slice:
        """Generate slice ``number``; any number of them may be made at the same time."""
        start_ms = number * self.slice_ms
        stop_ms = min(self.n_ticks, start_ms + self.slice_ms)
        n_ticks = stop_ms - start_ms
        time_s = (start_ms + stop_ms) / 2000.0
        body = self._body(time_s)
        shift = self.motion.displacement_mm((np.arange(start_ms, stop_ms) + 0.5) / 1000.0)
        rng = _generator(self.seed, 8, number)
        decays = self._decays(start_ms, stop_ms)
        parts = [self._make_trues(body, decays, shift, number)]
        parts.append(self._make_scatter(body, start_ms, stop_ms, shift, number))
        delayeds = _room(0)
        if self.with_randoms:
            pairs, share = self._pairs(start_ms, stop_ms)
            n_prompt, n_delayed = (int(n) for n in rng.poisson(pairs, size=2))
            parts.append(
                self._make_randoms(n_prompt, n_ticks, share, make_state(self.seed, 10, number))
            )
            delayeds = self._make_randoms(
                n_delayed, n_ticks, share, make_state(self.seed, 11, number)
            )
        else:
            parts.append(_room(0))
        label = np.repeat(
            np.array([TRUE, SCATTER, RANDOM], np.uint8), [len(part[0]) for part in parts]
        )
        prompts, truth, n_prompts = _in_order(
            _join(parts), label, n_ticks, make_state(self.seed, 12, number)
        )
        late, _, n_late = _in_order(
            delayeds, np.zeros(len(delayeds[0]), np.uint8), n_ticks,
            make_state(self.seed, 13, number),
        )  # fmt: skip
        return Slice(prompts, truth, n_prompts, late, n_late)

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return -(-self.n_ticks // self.slice_ms)

    def prepare(self) -> None:
        """Compute everything that slices share, before threads ask for it."""
        _ = self.budget, self.slice_ms


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence(seed[0], spawn_key=seed[1:]))
    )


def _room(n: int) -> Events:
    return (
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.int16),
    )


def _cut(events: Events, n: int) -> Events:
    tick, a, b, k = events
    return tick[:n].copy(), a[:n].copy(), b[:n].copy(), k[:n].copy()


def _join(parts: list[Events]) -> Events:
    tick, a, b = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 2))
    return tick, a, b, np.concatenate([part[3] for part in parts])


def _in_order(
    events: Events, label: NDArray[np.uint8], n_ticks: int, state: U64
) -> tuple[EventBatch, NDArray[np.uint8], I64]:
    n = len(events[0])
    a, b = np.empty(n, np.uint32), np.empty(n, np.uint32)
    k, truth = np.empty(n, np.int16), np.empty(n, np.uint8)
    n_per_tick = np.zeros(n_ticks, np.int64)
    _kernels.sort_by_tick(state, *events, label, n_per_tick, a, b, k, truth)
    return EventBatch(a, b, k), truth, n_per_tick
