"""Kill a reconstruction at random moments, start it again, and compare the image's bytes.

    python -m benchmarks.resume_study --kills 30              # again and again until it ends
    python -m benchmarks.resume_study --kills 30 --each 1     # once a trial: 30 results

A small scan is reconstructed through the command line (400 updates; penalised or replicates on
request); each trial is killed with SIGKILL at a random moment between its start and the time a
whole run takes, again and again until it ends by itself, or as often as ``--each`` says, and
must leave the same bytes. The seed of the moments is fixed; what they hit depends on the
machine, so the last line says how many kills hit what.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.recon.scans import write_scan

OUT = Path("out/resume_study")
START = "from recon.cli import main; main()"
SETTINGS = "[osem]\nn_iterations = 80\nn_subsets = 5\nn_sensitivity_pairs = 400000\n"


def command(folder: Path, more: list[str]) -> list[str]:
    return [
        sys.executable, "-c", START, "recon", str(OUT / "scan.h5"), "-o", str(folder),
        "--settings", str(OUT / "settings.toml"), "--voxel-mm", "4", "--threads", "1", *more,
    ]  # fmt: skip


def start(folder: Path, more: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(folder, more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of the images; sidecars hold the seconds that the run took."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--each", type=int, default=0, help="kills of a trial; 0: no limit")
    parser.add_argument("--more", nargs="*", default=[], help="options such as bootstrap=8")
    given = parser.parse_args()
    more = [word for text in given.more for word in f"--{text}".split("=")]
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    write_scan(OUT / "scan.h5", seconds=30, dead_s=None)
    (OUT / "settings.toml").write_text(SETTINGS, "utf-8")
    start(OUT / "whole", more).wait()  # compiles
    shutil.rmtree(OUT / "whole")
    begun = time.monotonic()
    if start(OUT / "whole", more).wait():
        raise SystemExit("the undisturbed run has failed")
    seconds = time.monotonic() - begun
    whole = contents(OUT / "whole")
    rng = np.random.default_rng(20240607)
    n_killed = n_same = n_trials = n_resumed = 0
    while n_killed < given.kills:
        folder = OUT / f"trial{n_trials}"
        before = n_killed
        while True:
            process = start(folder, more)
            try:
                process.wait(timeout=float(rng.uniform(0.1 * seconds, seconds)))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                n_killed += 1
                n_resumed += any((folder / ".stillpet-resume").glob("state-*"))
                if n_killed < given.kills and n_killed - before != given.each:
                    continue
                process = start(folder, more)
                process.wait()
            break
        same = process.returncode == 0 and contents(folder) == whole
        left = (folder / ".stillpet-resume").exists()
        n_trials += 1
        n_same += same and not left
        verdict = "same bits" if same else "DIFFERENT"
        rest = ", states left behind" if left else ""
        print(f"trial {n_trials}: {verdict}, {n_killed} kills so far{rest}", flush=True)
        shutil.rmtree(folder)
    print(
        f"a whole run takes {seconds:.1f} s; {n_killed} kills, {n_resumed} of them left a "
        f"state; {n_same} of {n_trials} trials ended with the same bits"
    )
    if n_same != n_trials:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
