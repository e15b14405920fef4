"""Simulated PSMA patients through the whole chain: what motion costs and what comes back.

    python -m benchmarks.chain_study --patients 64 --out out/chain_study

Patients come from the frozen cohort generator and lie in the phantom of listmode.simulate.psma;
benchmarks/chain_patient.py takes each through every condition (about 50 s on one core, 1 GB).
One line of JSON a patient goes to ``patients.jsonl`` as soon as it is done, so a stopped or
killed run goes on where it was and ends with the same file; ``--table`` prints the tables of
docs/chain.md from what is there. Seeds were fixed before the first run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain_patient import run_patient
from benchmarks.chain_simulation import ChainPlan, Patient, make_patient
from benchmarks.chain_tables import tables, train_models
from listmode.errors import InputError
from recon.hotspots.cohort import generate_cohort
from recon.io.cohorts import load_cohort_settings

COHORT_SEED = 20270101  # of the patients; the pilot had another


def choose_patients(n: int, plan: ChainPlan) -> tuple[list[Patient], list[str]]:
    """Take the first patients of the cohort whose hotspots all find a place in the phantom.

    Returns
    -------
    tuple
        The patients, and why others before them were left out.
    """
    cohort = generate_cohort(load_cohort_settings(), COHORT_SEED)
    patients: list[Patient] = []
    left_out: list[str] = []
    for number, code in enumerate(np.unique(cohort.patient).tolist()):
        if len(patients) == n:
            break
        try:
            patients.append(make_patient(cohort, code, COHORT_SEED + number, plan))
        except InputError as error:
            left_out.append(f"{code}: {error}")
    return patients, left_out


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a run; a line that was cut by a kill is taken away first."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def go_on(
    path: Path,
    keys: Sequence[str],
    work: Callable[[str], dict[str, Any]],
    run_all: Callable[..., Any] = map,
) -> list[dict[str, Any]]:
    """Do what is not yet in the file, in order, and add each record as it is done.

    Parameters
    ----------
    path
        Lines of JSON, each with the key as ``"patient"``.
    keys
        All that shall be in the file, in its order.
    work
        Makes the record of a key.
    run_all
        ``map``, or the like of several processes; it must keep the order.

    Raises
    ------
    InputError
        If the file holds other keys, or another run writes to it.
    """
    records = read_records(path)
    waiting = list(keys[len(records) :])
    if [record["patient"] for record in records] != list(keys[: len(records)]):
        raise InputError(
            f"{path.name} must begin with the patients of this study, but it holds others; "
            "choose another folder"
        )
    with path.open("ab") as file:
        size = path.stat().st_size
        for record in run_all(work, waiting):
            if path.stat().st_size != size:
                raise InputError(
                    f"one run at a time may write to {path.name}, but another one has added to "
                    "it; let that one finish"
                )
            size += file.write((json.dumps(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            records.append(record)
    return records


def check_plan(path: Path, plan: ChainPlan) -> None:
    """Write the plan beside the records, or hold the run to the one that is there.

    Raises
    ------
    InputError
        If the folder holds another plan.
    """
    text = json.dumps(asdict(plan), indent=1)
    if path.exists() and path.read_text("utf-8") != text:
        raise InputError(
            f"a study goes on with the plan that it began with, but {path.name} holds another; "
            "choose another folder or the same settings"
        )
    path.write_text(text, "utf-8")


def _study(code: str, patients: dict[str, Patient], plan: ChainPlan) -> dict[str, Any]:
    start, cpu = time.time(), time.process_time()
    record = run_patient(patients[code], plan)
    print(
        f"{code}: {len(record['foci'])} foci, {time.time() - start:.0f} s, "
        f"{time.process_time() - cpu:.0f} s of CPU",
        flush=True,
    )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="processes, 1 GB each")
    parser.add_argument("--out", type=Path, default=Path("out/chain_study"))
    parser.add_argument("--count-fraction", type=float, default=ChainPlan.count_fraction)
    parser.add_argument("--voxel-mm", type=float, default=ChainPlan.voxel_mm)
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "patients.jsonl"
    if options.table:
        print(tables(read_records(path), train_models()))
    else:
        plan = ChainPlan(count_fraction=options.count_fraction, voxel_mm=options.voxel_mm)
        check_plan(options.out / "plan.json", plan)
        patients, left_out = choose_patients(options.patients, plan)
        print(f"{len(patients)} patients, about 50 s of one core and 1 GB each")
        print(*left_out, sep="\n")
        by_code = {patient.code: patient for patient in patients}
        work = partial(_study, patients=by_code, plan=plan)
        if options.workers > 1:
            with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
                go_on(path, list(by_code), work, pool.imap)
        else:
            go_on(path, list(by_code), work)


if __name__ == "__main__":
    main()
