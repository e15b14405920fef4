"""What a reconstruction will take, told before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from recon.events_store import BYTES_PER_EVENT, MEMORY_BYTES
from recon.image import Grid
from recon.osem import OsemSettings

N_IMAGES = 6  # padded image and correction, image, sensitivity, blurred image, one to spare
EVENTS_PER_S_AND_THREAD = 2.5e6  # of an update at 3.3 mm on the cores it was written on


@dataclass(frozen=True)
class Cost:
    """What a reconstruction will take, told before it runs."""

    memory_bytes: int
    scratch_bytes: int
    seconds: float


def estimate_cost(n_events: int, grid: Grid, settings: OsemSettings, threads: int = 2) -> Cost:
    """Estimate memory, scratch space on disk and time of a reconstruction.

    Parameters
    ----------
    n_events
        Prompts in the windows.

    Returns
    -------
    Cost
        Bytes and seconds; without the sensitivity image, which is kept between runs.
    """
    columns = n_events * BYTES_PER_EVENT
    spilled = columns > MEMORY_BYTES
    image_bytes = 4 * grid.n_voxels
    rate = EVENTS_PER_S_AND_THREAD * max(threads, 1) * min(1.0, grid.voxel_mm[0] / 3.3)
    n_updates = settings.n_iterations * settings.n_subsets
    per_update_s = 8e-8 * grid.n_voxels / max(threads, 1)
    seconds = n_events * (settings.n_iterations / rate + 1.5e-7) + n_updates * per_update_s
    memory = N_IMAGES * image_bytes + (0 if spilled else columns) + (400 << 20)
    return Cost(memory, columns if spilled else 0, seconds)
