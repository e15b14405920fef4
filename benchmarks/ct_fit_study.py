"""What a misfit to the CT does to a lesion at the lung base, and what the fit saves.

``python -m benchmarks.ct_fit_study`` simulates the pregnant phantom with photon transport: the
patient leaves the CT's pose by 20 mm after 40 % of the scan, so that the longest stretch does
not fit the CT. The windows are chosen twice, without and with the mu-map, and each choice is
reconstructed twice from the same events: with the mu-map as it lies and with the mu-map where
the patient truly lay. The ratio of the two is the error by the misfit, nearly without noise.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from listmode.formats.scanner_file import load_scanner
from listmode.motion import MotionResult, analyse_motion, fit_to_ct
from listmode.simulate.generate import simulate_in_memory
from listmode.simulate.motion import PatientMotion
from listmode.simulate.phantom import pregnant_phantom
from listmode.simulate.protocols import LOW_DOSE_FDG
from listmode.source import Listmode
from listmode.windows import Windows
from recon.image import Grid, Volume
from recon.pipeline import choose_grid, reconstruct_scan
from recon.settings import GridSettings, Settings

LESION_MM, RADIUS_MM = (-92.0, 0.0, 96.0), 8.0  # "lung_base_lesion" of the phantom
SHIFT_MM = 20.0
VOXEL_MM = 8.0
MU_GRID = Grid((81, 67, 173), (6.0, 6.0, 6.0), (-240.0, -198.0, -516.0))


def simulate(seed: int, share: float, duration_s: float) -> tuple[Listmode, PatientMotion]:
    """Make a scan whose patient leaves the CT's pose after 40 % of the time."""
    motion = PatientMotion((0.4 * duration_s,), ((0.0, 0.0, SHIFT_MM),))
    listmode, _ = simulate_in_memory(
        scanner=load_scanner("quadra", "UHS"), phantom=pregnant_phantom(filling_ml_min=0.0),
        dose=LOW_DOSE_FDG, motion=motion, seed=seed, count_fraction=share,
        duration_s=duration_s, threads=1,
    )  # fmt: skip
    return listmode, motion


def mu_at(z_mm: float) -> Volume:
    """Give the attenuation of the patient moved along z."""
    axes = [MU_GRID.axis_mm(axis) for axis in range(3)]
    mu = pregnant_phantom(filling_ml_min=0.0).sample_mu(*axes, shift_mm=(0.0, 0.0, z_mm))
    return Volume(np.asarray(mu, np.float32), MU_GRID, "1/cm")


def lesion_mean(listmode: Listmode, windows: Windows, mu: Volume, z_mm: float) -> float:
    """Reconstruct the whole field and average over the moved lesion."""
    grid = choose_grid(listmode.scanner, GridSettings(voxel_mm=VOXEL_MM))
    settings = Settings()
    settings = replace(
        settings,
        osem=replace(settings.osem, n_iterations=2, n_subsets=5, n_sensitivity_pairs=2_000_000),
        corrections=replace(settings.corrections, scatter=False),
    )
    done = reconstruct_scan(listmode, windows, grid=grid, mu=mu, settings=settings, threads=1)
    x, y, z = (
        grid.axis_mm(axis) - at
        for axis, at in enumerate((LESION_MM[0], LESION_MM[1], LESION_MM[2] + z_mm))
    )
    far = x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2
    return float(done.volume.values[far <= RADIUS_MM**2].mean())


def main() -> None:
    """Run the study and print one line of Markdown a choice of windows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.02, help="of the low-dose counts")
    parser.add_argument("--duration-s", type=float, default=300.0)
    options = parser.parse_args()
    listmode, motion = simulate(options.seed, options.share, options.duration_s)
    lying = mu_at(0.0)
    x, y, z = (np.asarray(MU_GRID.axis_mm(axis), np.float64) for axis in range(3))
    mu_map = np.asarray(lying.values, np.float64), (x, y, z)
    plain = analyse_motion(listmode, threads=1)
    aware = analyse_motion(listmode, mu_map=mu_map, threads=1)
    print("| windows chosen | kept | off the CT, told | true | lesion's error |")
    print("|---|---|---|---|---|")
    results: list[tuple[str, MotionResult]] = [("without the CT", plain), ("with it", aware)]
    for name, result in results:
        kept = result.selection.windows
        middle = np.concatenate([np.arange(a, b, 1000) for a, b in kept]) / 1000.0
        true = float(motion.displacement_mm(middle)[:, 2].mean())
        fit = fit_to_ct(aware, kept, mu_map)
        assert fit is not None
        found = lesion_mean(listmode, kept, lying, true)
        right = lesion_mean(listmode, kept, mu_at(true), true)
        told = "not determinable"
        if fit.is_determinable[2]:
            told = f"{fit.shift_mm[2]:.1f} ± {fit.standard_error_mm[2]:.1f} mm"
        print(
            f"| {name} | {kept} | {told} | {true:.1f} mm | {100 * (found / right - 1):+.1f} % |"
        )


if __name__ == "__main__":
    main()
