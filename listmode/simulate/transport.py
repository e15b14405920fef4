"""Photon Monte Carlo runs: singles, and pools of scattered coincidences."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from listmode.simulate import _kernels
from listmode.simulate.detector import Detector, make_state
from listmode.simulate.shapes import F64
from listmode.simulate.sources import Body, make_alias

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
N_TASKS = 16


@dataclass(frozen=True, eq=False)
class Tracks:
    """What became of a number of decays, followed one by one.

    Crystal efficiencies and the energy window's efficiency for photons that did not scatter
    are left out; each is one factor a photon.

    Parameters
    ----------
    n_decays
        Decays drawn from the positive activity.
    tick
        Row of the displacement table. Shape (n_scatter,), int32.
    crystal_a, crystal_b
        Scattered coincidences, ``crystal_a < crystal_b``. Shape (n_scatter,), int32.
    tof_ps
        Difference of arrival times without timing blur, ps. Shape (n_scatter,), float64.
    singles
        Photons found in each crystal when one photon a decay is followed. Shape (n_crystals,),
        int64.
    n_by_scatters
        Accepted coincidences by the number of scatters of either photon. Shape (4, 4), int64.
    """

    n_decays: int
    tick: I32
    crystal_a: I32
    crystal_b: I32
    tof_ps: F64
    singles: I64
    n_by_scatters: I64

    @property
    def n_scatter(self) -> int:
        """Accepted coincidences with at least one scatter."""
        return len(self.tick)

    @property
    def n_trues(self) -> int:
        """Accepted coincidences without scatter."""
        return int(self.n_by_scatters[0, 0])


def track_decays(
    detector: Detector,
    body: Body,
    box: F64,
    shift_mm: F64,
    n_decays: int,
    seed: tuple[int, ...],
    threads: int,
) -> Tracks:
    """Follow decays, shared evenly over the rows of ``shift_mm`` (n_rows, 3).

    The same bits come out at any number of threads.
    """
    n_tasks = max(1, min(N_TASKS, n_decays // 5000))
    edges = np.linspace(0, n_decays, n_tasks + 1).astype(int)

    def run(i: int) -> Tracks:
        return track_part(
            detector, body, box, shift_mm, int(edges[i + 1] - edges[i]), (*seed, i)
        )

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(run, range(n_tasks)))
    return Tracks(
        n_decays=n_decays,
        tick=np.concatenate([p.tick for p in parts]),
        crystal_a=np.concatenate([p.crystal_a for p in parts]),
        crystal_b=np.concatenate([p.crystal_b for p in parts]),
        tof_ps=np.concatenate([p.tof_ps for p in parts]),
        singles=np.sum([p.singles for p in parts], axis=0),
        n_by_scatters=np.sum([p.n_by_scatters for p in parts], axis=0),
    )


def track_part(
    detector: Detector,
    body: Body,
    box: F64,
    shift_mm: F64,
    n_decays: int,
    seed: tuple[int, ...],
) -> Tracks:
    """Follow decays in one task; see :func:`track_decays`."""
    alias = make_alias(body.source_bq)
    room = n_decays // 16 + 1000
    while True:
        tick, a, b = (np.empty(room, np.int32) for _ in range(3))
        tof_ps = np.empty(room)
        singles = np.zeros(detector.scanner.n_crystals, np.int64)
        n_by_scatters = np.zeros((4, 4), np.int64)
        n = _kernels.track_decays(
            make_state(*seed), n_decays, shift_mm, box, *alias, *body.activity,
            *body.attenuation, body.mu_max, body.bounds, detector.blocks,
            detector.block_cos_sin, detector.energy, *detector.acceptance, detector.positron,
            detector.acollinearity_rad, singles, n_by_scatters, tick, a, b, tof_ps,
        )  # fmt: skip
        if n >= 0:
            break
        room *= 4
    return Tracks(
        n_decays, tick[:n].copy(), a[:n].copy(), b[:n].copy(), tof_ps[:n].copy(), singles,
        n_by_scatters,
    )  # fmt: skip


def smooth_singles(detector: Detector, singles: I64) -> F64:
    """Give each crystal its share of the singles, from a noisy count.

    The share is a product of ring, block and place within the block, which is where singles of
    a body vary; each factor's noise is far below the crystals' own.

    Returns
    -------
    ndarray
        Sums to 1. Shape (n_crystals,), float64.
    """
    layout = detector.scanner.layout
    assert layout is not None
    counts = singles.reshape(-1, layout.n_blocks, layout.n_crystals).astype(np.float64)
    ring = counts.sum(axis=(1, 2))
    width = np.hanning(9)[1:-1]
    ring = np.convolve(ring, width, "same") / np.convolve(np.ones_like(ring), width, "same")
    block, place = counts.sum(axis=(0, 2)), counts.sum(axis=(0, 1))
    share = ring[:, None, None] * block[None, :, None] * place[None, None, :]
    total = share.sum()
    return (share / total if total > 0 else np.full(share.shape, 1.0 / share.size)).ravel()
