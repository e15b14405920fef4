"""Random coincidences from the delayed stream, smoothed by a model of the singles rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.source import Listmode
from listmode.windows import Windows
from recon.corrections.acceptance import PartnerSample, RingTable, partners
from recon.corrections.normalisation import crystal_weight
from recon.motion import Poses, join

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

N_ROUNDS = 40
CELL_MM = 33.0  # axial length of the patches that share a singles rate: a block of the Quadra
N_CELLS_AROUND = 38
MIN_DELAYEDS = 100_000  # about 100 a patch: fewer make a poor pattern
PRIOR_COUNTS = 100.0  # a crystal's own factor is trusted like a prior of 10 %


@dataclass(frozen=True, eq=False)
class RandomsModel:
    """Expected randoms of each pair: the product of two crystals' factors.

    Parameters
    ----------
    factor
        Square root of counts: a pair's randoms in the windows, all TOF bins together, are the
        product of its crystals' factors. Shape (n_crystals,), float32.
    n_tof_bins
        Randoms are spread evenly over these.
    total
        Expected randoms of all accepted pairs in the windows.
    singles_hz
        Singles rate of each crystal that explains them, 1/s. Shape (n_crystals,), float32.
    """

    factor: F32
    n_tof_bins: int
    total: float
    singles_hz: F32

    def expected(self, batch: EventBatch) -> F32:
        """Give the expected randoms in each event's LOR and TOF bin; see AdditiveModel."""
        product = self.factor[batch.crystal_a] * self.factor[batch.crystal_b]
        return np.asarray(product / np.float32(self.n_tof_bins), np.float32)


def estimate_randoms(
    listmode: Listmode,
    windows: Windows,
    *,
    progress: Progress = SILENT,
) -> RandomsModel:
    """Estimate randoms from the delayed events of a union of windows.

    Randoms of a pair are ``2 tau S_a S_b`` times duration (Oliver, Rafecas, PLoS One 2016;11:
    e0162096, doi 10.1371/journal.pone.0162096). Singles rates are products of the crystal's
    efficiency, one rate for each patch of the detector and a factor of the crystal itself.
    Patches are found by fixed-point iteration on fan sums over all accepted partners (Casey,
    Hoffman, J Comput Assist Tomogr 1986;10:845-850, doi 10.1097/00004728-198609000-00026); the
    crystal's own factor is a mean of its fan sum and 1, with the weight of
    ``PRIOR_COUNTS`` on the latter. So noise falls with the counts of a fan or patch, not of an
    LOR, and the total stays that of the delayeds.

    Parameters
    ----------
    listmode
        Scan with a delayed stream.
    windows
        Which time.

    Raises
    ------
    InputError
        If the scan has no delayed stream, or a window lies outside it.
    """
    if not listmode.n_events("delayeds"):
        raise InputError(
            "randoms are estimated from delayed events, but this scan holds none; leave "
            "randoms out or give singles rates"
        )
    scanner = listmode.scanner
    fan = np.zeros(scanner.n_crystals, np.int64)
    with progress.stage("randoms", listmode.count(windows, "delayeds")) as stage:
        for batch in listmode.events(windows, "delayeds"):
            for column in (batch.crystal_a, batch.crystal_b):
                fan += np.bincount(column, minlength=scanner.n_crystals)
            stage.advance(len(batch))
    weight = crystal_weight(scanner, listmode.crystal_efficiency).astype(np.float64)
    table = partners(scanner)
    factor = _fit(fan, weight, _patches(scanner), table)
    seconds = windows.duration_s * listmode.protocol.count_fraction
    return _model(scanner, factor, seconds, table)


def estimate_randoms_by_pose(
    listmode: Listmode, poses: Poses, *, progress: Progress = SILENT
) -> list[RandomsModel]:
    """Estimate the randoms in the windows of each pose; one model a pose.

    Their rate follows the clock and their pattern the detector, which a moving patient changes
    little: a pose with few delayed events takes the pattern of all the time at its own rate.

    Parameters
    ----------
    listmode
        Scan with a delayed stream.
    poses
        When each pose was taken.

    Raises
    ------
    InputError
        As :func:`estimate_randoms`.
    """
    n_delayeds = [listmode.count(part, "delayeds") for part in poses.windows]
    few = len(poses) > 1 and min(n_delayeds) < MIN_DELAYEDS
    every = estimate_randoms(listmode, join(poses.windows), progress=progress) if few else None
    models = []
    for part, n in zip(poses.windows, n_delayeds, strict=True):
        if every is None or n >= MIN_DELAYEDS:
            models.append(estimate_randoms(listmode, part, progress=progress))
            continue
        share = n / max(sum(n_delayeds), 1)
        longer = sum(other.duration_s for other in poses.windows) / part.duration_s
        models.append(
            replace(
                every,
                factor=every.factor * np.float32(math.sqrt(share)),
                total=every.total * share,
                singles_hz=every.singles_hz * np.float32(math.sqrt(share * longer)),
            )
        )
    return models


def randoms_from_singles(
    scanner: Scanner, singles_hz: F32, windows: Windows, count_fraction: float = 1.0
) -> RandomsModel:
    """Compute randoms as ``2 tau S_a S_b`` times duration from known singles rates.

    Parameters
    ----------
    singles_hz
        Singles rate of each crystal in the energy window, 1/s. Shape (n_crystals,).

    Raises
    ------
    InputError
        If there is not one rate a crystal.
    """
    if singles_hz.shape != (scanner.n_crystals,):
        raise InputError(
            f"singles rates must be {scanner.n_crystals} numbers, one a crystal of "
            f"{scanner.name!r}, but their shape is {singles_hz.shape}; use this scanner's"
        )
    seconds = windows.duration_s * count_fraction
    factor = singles_hz.astype(np.float64) * math.sqrt(scanner.tof.window_ps * 1e-12 * seconds)
    return _model(scanner, factor, seconds, partners(scanner))


def _model(
    scanner: Scanner, factor: F64, seconds: float, table: RingTable | PartnerSample
) -> RandomsModel:
    scale = math.sqrt(scanner.tof.window_ps * 1e-12 * seconds)
    return RandomsModel(
        factor.astype(np.float32),
        scanner.tof.n_bins,
        float(factor @ table.sum_partners(factor)) / 2.0,
        (factor / scale).astype(np.float32),
    )


def _patches(scanner: Scanner) -> I64:
    """Give each crystal the number of its patch. Shape (n_crystals,), int64."""
    x, y, z = scanner.crystal_position_mm.astype(np.float64).T
    angle = np.arctan2(y, x) / (2.0 * np.pi) + 0.5 / N_CELLS_AROUND
    around = np.floor((angle % 1.0) * N_CELLS_AROUND).astype(np.int64)
    along = np.floor((z - z.min() + 1e-3) / CELL_MM).astype(np.int64)
    _, patch = np.unique(along * N_CELLS_AROUND + around, return_inverse=True)
    return np.asarray(patch, np.int64)


def _fit(fan: I64, weight: F64, patch: I64, table: RingTable | PartnerSample) -> F64:
    """Find factors whose fan sums match: patch by patch, then crystal by crystal."""
    n_patches = int(patch.max()) + 1
    observed = np.bincount(patch, fan, n_patches)
    rate = np.full(n_patches, 1.0)
    for _ in range(N_ROUNDS):
        factor = weight * rate[patch]
        expected = np.bincount(patch, factor * table.sum_partners(factor), n_patches)
        rate *= np.sqrt(
            np.divide(observed, expected, out=np.zeros(n_patches), where=expected > 0)
        )
    own = np.ones(fan.size)
    for _ in range(3):
        factor = weight * rate[patch] * own
        expected_fan = factor * table.sum_partners(factor) / own
        own = (fan + PRIOR_COUNTS) / (expected_fan + PRIOR_COUNTS)
        factor = weight * rate[patch] * own
    total = float(factor @ table.sum_partners(factor))
    if total <= 0:
        return np.zeros(fan.size)
    return np.asarray(factor * math.sqrt(float(fan.sum()) / total))
