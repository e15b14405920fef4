"""What a reconstruction will take, told before it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from listmode.events import EventBatch
from listmode.scanner import Scanner
from recon import _kernels
from recon.events_order import BYTES_PER_EVENT
from recon.events_store import MEMORY_BYTES
from recon.image import Grid
from recon.osem import OsemSettings
from recon.projector import RayModel, TaskPlan, run_in_threads

# What each stage costs, in rays: the time that one ray of :func:`measure_rays_per_s` takes on
# all threads together. From the stages of benchmarks/full_scan_study.py, of 2e7 and 3.5e8
# events (Quadra, 3.3 mm voxels, two threads); few events lie further apart and take up to a
# fifth more each. Scatter includes the coarse images that it is estimated from.
RAYS_PER_EVENT_AND_UPDATE = 0.8
RAYS_PER_EVENT_SORTED = 1.0
RAYS_PER_EVENT_WITH_ADDITIVE = 1.95
RAYS_PER_VOXEL_AND_UPDATE = 0.145
RAYS_PER_SENSITIVITY_PAIR = 2.4
RAYS_OF_SENSITIVITY = 1.8e7  # its guide near surfaces
RAYS_OF_SCATTER = 1.0e8
USUAL_RAYS_PER_S = 1e7  # where nothing can be measured
OWN_BYTES = 620 << 20  # interpreter, libraries, detector, batches in flight
N_IMAGES = 6  # padded image and correction, image, sensitivity, blurred image, one to spare

TRIAL_VOXEL_MM = 3.3
TRIAL_VOXELS = 165
TRIAL_PAIRS = 1 << 21
N_TRIALS = 5


@dataclass(frozen=True)
class Cost:
    """What a reconstruction will take, told before it runs.

    Parameters
    ----------
    memory_bytes
        Peak of the process's own memory.
    scratch_bytes
        Temporary file of ordered events; 0 where they fit into memory.
    seconds
        Of the whole reconstruction, sensitivity and scatter included.
    """

    memory_bytes: int
    scratch_bytes: int
    seconds: float


def measure_rays_per_s(scanner: Scanner, threads: int = 2) -> float:
    """Measure how many rays this machine updates in a second, in about a second.

    Random pairs of crystals whose line of response meets a box in the middle of the detector,
    ordered as events are. With a smaller box or fewer pairs the rate swings by a factor of two.

    Parameters
    ----------
    scanner
        Whose crystals, and timing.
    threads
        Python threads.

    Returns
    -------
    float
        Median rate of all threads together, 1/s.
    """
    grid = Grid.centred((TRIAL_VOXELS,) * 3, TRIAL_VOXEL_MM)
    rays = RayModel.make(grid, scanner)
    rng = np.random.default_rng(1)
    pairs = np.sort(rng.integers(0, scanner.n_crystals, (TRIAL_PAIRS, 2)), axis=1)
    a, b = pairs[pairs[:, 0] < pairs[:, 1]].astype(np.uint32).T
    middle = np.full(a.size, scanner.tof.n_bins // 2, np.int16)
    events = EventBatch(np.ascontiguousarray(a), np.ascontiguousarray(b), middle)
    bucket = TaskPlan(rays).bucket(events, threads)
    order = np.argsort(bucket, kind="stable")[np.count_nonzero(bucket < 0) :]
    if not order.size:  # a detector that looks past its own middle
        return USUAL_RAYS_PER_S
    a, b, middle = events.crystal_a[order], events.crystal_b[order], middle[order]
    additive = np.full(order.size, 0.1, np.float32)
    image = rays.pad(np.ones(grid.shape, np.float32))
    corrections = [rays.zeros() for _ in range(threads)]
    edges = np.linspace(0, order.size, threads + 1).astype(int).tolist()

    def work(k: int) -> None:
        _kernels.update(
            image, corrections[k], rays.shape, rays.ends, rays.voxel_mm, a, b, middle, additive,
            rays.tof_centre_mm, rays.table, rays.per_mm, rays.reach_mm, edges[k], edges[k + 1],
        )  # fmt: skip

    seconds = []
    for _ in range(N_TRIALS + 1):  # the first one loads the compiled code
        begun = time.perf_counter()
        run_in_threads(work, range(threads), threads)
        seconds.append(time.perf_counter() - begun)
    return order.size / float(np.median(seconds[1:]))


def estimate_cost(
    n_events: int,
    grid: Grid,
    settings: OsemSettings,
    *,
    rays_per_s: float = USUAL_RAYS_PER_S,
    has_additive: bool = True,
    has_scatter: bool = True,
    has_sensitivity: bool = False,
) -> Cost:
    """Estimate memory, scratch space on disk and time of a reconstruction.

    Parameters
    ----------
    n_events
        Prompts in the windows.
    grid, settings
        Of the image.
    rays_per_s
        From :func:`measure_rays_per_s`, of this machine.
    has_additive, has_scatter
        Whether randoms or scatter are corrected for; whether scatter is.
    has_sensitivity
        Whether the sensitivity image is there already.

    Returns
    -------
    Cost
        Bytes and seconds of the whole reconstruction.
    """
    columns = n_events * BYTES_PER_EVENT
    spilled = columns > MEMORY_BYTES
    planes = max(3.3 / grid.voxel_mm[0], 1.0)  # a ray crosses more, smaller voxels
    per_event = RAYS_PER_EVENT_SORTED + has_additive * RAYS_PER_EVENT_WITH_ADDITIVE
    per_event += settings.n_iterations * RAYS_PER_EVENT_AND_UPDATE * planes
    n_updates = settings.n_iterations * settings.n_subsets
    rays = n_events * per_event + n_updates * grid.n_voxels * RAYS_PER_VOXEL_AND_UPDATE
    rays += has_scatter * RAYS_OF_SCATTER
    if not has_sensitivity:
        rays += settings.n_sensitivity_pairs * RAYS_PER_SENSITIVITY_PAIR + RAYS_OF_SENSITIVITY
    memory = N_IMAGES * 4 * grid.n_voxels + (0 if spilled else columns) + OWN_BYTES
    return Cost(memory, columns if spilled else 0, rays / rays_per_s)
