"""Time and error of the sensitivity image of the full Quadra in UHS, with attenuation.

    python -m benchmarks.bench_sensitivity --threads 2 --pairs 48000000

165 x 165 x 322 voxels of 3.3 mm, the pregnant phantom's mu-map. Prints wall and processor
seconds, and the stated error: of the 16 mm voxels from eight independent batches, before
interpolation smooths it.
"""

from __future__ import annotations

import argparse
import time

from listmode.formats.scanner_file import load_scanner
from listmode.simulate.phantom import pregnant_phantom
from recon.image import Grid, Volume
from recon.sensitivity import DEFAULT_N_PAIRS, compute_sensitivity


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the sensitivity image.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=DEFAULT_N_PAIRS)
    args = parser.parse_args()
    scanner, grid = load_scanner("quadra", "UHS"), Grid.centred((165, 165, 322), 3.3)
    mu = Volume(
        pregnant_phantom().sample_mu(*(grid.axis_mm(k) for k in range(3))), grid, "1/cm"
    )
    compute_sensitivity(scanner, Grid.centred((9, 9, 9), 3.3), mu=mu, n_pairs=8)  # compile
    wall, cpu = time.perf_counter(), time.process_time()
    image = compute_sensitivity(scanner, grid, mu=mu, n_pairs=args.pairs, threads=args.threads)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{args.pairs:,} pairs, {args.threads} threads: {wall:.1f} s, {cpu:.1f} s of processor "
        f"time; stated error {100 * image.relative_error:.2f} %"
    )


if __name__ == "__main__":
    main()
