"""Several unions of windows, such as gates of a signal, reconstructed from one reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.source import Listmode
from listmode.windows import Windows
from recon.corrections.additive import AdditiveModel
from recon.events_order import count_keys, make_keys, order_events
from recon.events_store import CHUNK, MEMORY_BYTES, AdditivePerEvent, EventsStore, add_term
from recon.image import Grid, Volume
from recon.motion import Poses
from recon.osem import Algorithm, OsemSettings, osem, run
from recon.projector import RayModel, TaskPlan, check_events
from recon.reconstruct import additive_terms, prepare
from recon.sensitivity import Sensitivity, compute_sensitivity

I32 = NDArray[np.int32]


def reconstruct_gates(
    listmode: Listmode,
    gates: Sequence[Windows],
    *,
    grid: Grid,
    mu: Volume | None = None,
    settings: OsemSettings | None = None,
    additive: Sequence[Sequence[AdditiveModel]] = (),
    sensitivity: Sensitivity | None = None,
    algorithm: Algorithm = osem,
    threads: int = 2,
    cache_dir: Path | None = None,
    progress: Progress = SILENT,
) -> list[Volume]:
    """Reconstruct each gate; the file is read and ordered once for all of them.

    Parameters
    ----------
    listmode
        The scan.
    gates
        Disjoint unions of windows; time that is in none is left out.
    additive
        Randoms and scatter of each gate; none if empty.
    grid, mu, settings, sensitivity, algorithm, threads, cache_dir, progress
        As for :func:`recon.reconstruct.reconstruct`; the sensitivity serves all gates.

    Returns
    -------
    list of Volume
        Bq/mL at tick zero, one a gate: the bits of each gate reconstructed alone.

    Raises
    ------
    InputError
        If gates overlap, a gate is empty or holds no events, additive models are not given for
        each, or as for :func:`recon.reconstruct.reconstruct`.
    """
    settings = settings or OsemSettings()
    _check(listmode, gates, additive)
    if sensitivity is None:
        sensitivity = compute_sensitivity(
            listmode.scanner, grid, mu=mu, crystal_efficiency=listmode.crystal_efficiency,
            n_pairs=settings.n_sensitivity_pairs, threads=threads, cache_dir=cache_dir,
            progress=progress,
        )  # fmt: skip
    rays = RayModel.make(grid, listmode.scanner, tof=settings.use_tof, n_sigma=settings.n_sigma)
    terms: list[AdditivePerEvent | None] = [None] * len(gates)
    for k, models in enumerate(additive):
        terms[k] = additive_terms(listmode, models, mu, Poses.still(gates[k]), threads)[0]
    sorting = Sorting(listmode, gates, TaskPlan(rays), settings.n_subsets, threads)
    stores = sorting.store(terms, progress=progress)
    images = []
    try:
        for k, (gate, store) in enumerate(zip(gates, stores, strict=True)):
            with prepare(
                listmode, gate, grid=grid, mu=mu, settings=settings,
                additive=additive[k] if additive else (), sensitivity=sensitivity,
                store=store, threads=threads, progress=progress,
            ) as problem:  # fmt: skip
                images.append(run(problem, algorithm))
    finally:
        for store in stores:
            store.close()
    return images


def _check(
    listmode: Listmode, gates: Sequence[Windows], additive: Sequence[Sequence[AdditiveModel]]
) -> None:
    for k, gate in enumerate(gates):
        if not listmode.count(gate):
            raise InputError(
                f"each gate must hold events, but gate {k} ({gate}) holds none; leave it out"
            )
    pieces = sorted((start, stop, k) for k, gate in enumerate(gates) for start, stop in gate)
    for (_, stop, one), (start, _, other) in pairwise(pieces):
        if start < stop:
            raise InputError(
                f"gates must not overlap, but gates {one} and {other} both hold "
                f"{start / 1000:g} s; cut one of them"
            )
    if additive and len(additive) != len(gates):
        raise InputError(
            f"each of the {len(gates)} gates needs its own randoms and scatter, but they are "
            f"given for {len(additive)}; estimate them for the windows of each"
        )


@dataclass(frozen=True, eq=False)
class Sorting:
    """How the events of all gates are read in order of time and put into their stores."""

    listmode: Listmode
    gates: Sequence[Windows]
    plan: TaskPlan
    n_subsets: int
    threads: int

    def batches(self) -> Iterator[tuple[EventBatch, int, I32]]:
        """Yield batches, their gate, and keys of gate, subset and bucket, -1 outside."""
        number = [0] * len(self.gates)
        pieces = sorted((a, b, gate) for gate, part in enumerate(self.gates) for a, b in part)
        for start, stop, gate in pieces:
            for batch in self.listmode.events(Windows([start], [stop]), chunk=CHUNK):
                check_events(self.listmode.scanner, batch)
                bucket = self.plan.bucket(batch, self.threads)
                key = make_keys(bucket, number[gate], self.n_subsets, self.plan.n_buckets)
                key[key >= 0] += np.int32(gate * self.n_subsets * self.plan.n_buckets)
                number[gate] += len(batch)
                yield batch, gate, key

    def store(
        self, terms: Sequence[AdditivePerEvent | None], progress: Progress = SILENT
    ) -> list[EventsStore]:
        """Read each event twice, as for one union, however many gates there are."""
        n_rows = len(self.gates) * self.n_subsets
        counts = np.zeros(n_rows * self.plan.n_buckets, np.int64)
        n_events, n_outside = [0] * len(self.gates), [0] * len(self.gates)
        total = sum(self.listmode.count(gate) for gate in self.gates)
        with progress.stage("sorting events", 2 * total) as stage:
            for _, gate, key in self.batches():
                inside, n_missed = count_keys(key, counts.size)
                counts += inside
                n_events[gate] += key.size
                n_outside[gate] += n_missed
                stage.advance(key.size)
            first = np.concatenate(([0], np.cumsum(counts)))
            keyed = ((batch, key) for batch, _, key in self.batches())
            folder, columns = order_events(keyed, first, MEMORY_BYTES, stage.advance)
        n_crystals, per_gate = self.listmode.scanner.n_crystals, counts.size // len(self.gates)
        for gate, term in enumerate(terms):
            own = slice(first[gate * per_gate], first[(gate + 1) * per_gate])
            add_term([column[own] for column in columns], n_crystals, term, progress=progress)
        edges = np.arange(n_rows)[:, None] * self.plan.n_buckets + self.plan.task_buckets
        for column in columns:
            column.setflags(write=False)
        offset = first[edges].reshape(len(self.gates), self.n_subsets, -1)
        return [
            EventsStore(
                self.plan, self.n_subsets, columns[0], columns[1], columns[2], columns[3],
                offset[gate], n_events[gate], n_outside[gate],
                folder if gate == len(self.gates) - 1 else None,
            )
            for gate in range(len(self.gates))
        ]  # fmt: skip
