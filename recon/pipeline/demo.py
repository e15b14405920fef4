"""Simulated scans as files with their truth beside them, and the demonstration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.scanner_file import load_scanner
from listmode.progress import SILENT, Progress
from listmode.scanner import Scanner
from listmode.simulate.generate import simulate_scan
from listmode.simulate.motion import PatientMotion
from listmode.simulate.phantom import Phantom, cylinder_phantom, pregnant_phantom
from listmode.simulate.protocols import Dose, load_dose
from listmode.simulate.simulation import TABLE_EVENTS, ScatterMode
from listmode.simulate.truth import CountBudget, SimulationTruth
from recon.image import Grid, Volume
from recon.io.nifti import load_volume, save_volume
from recon.io.tables import save_json
from recon.pipeline.images import choose_grid
from recon.pipeline.labels import LabelMap, load_labels, save_labels
from recon.pipeline.scan import RunResult, run_scan
from recon.settings import GridSettings, Settings

Shift = tuple[float, tuple[float, float, float]]

DEMO_COUNT_FRACTION = 0.025
DEMO_SHIFT: Shift = (600.0, (0.0, 0.0, 14.0))  # a visibly doubled bladder needs 10 mm or more


@dataclass(frozen=True)
class SimulationPlan:
    """What to simulate.

    Parameters
    ----------
    scanner
        Preset, with ``-MODE`` if wanted, or a TOML file.
    phantom
        ``"pregnant"`` or ``"cylinder"``.
    dose
        Name of a dose.
    shifts
        Time, s, and displacement x, y, z, mm, of each shift of the patient.
    breathing_mm
        Amplitude of breathing, mm.
    filling_ml_min, bladder_suv, bladder_ml
        The bladder of the pregnant phantom.
    duration_s
        Length, s; that of the dose if not given.
    count_fraction
        Share of the counts that is kept.
    scatter
        ``"table"``, ``"direct"`` or ``"off"``.
    table_events
        Scattered events in the tables, at most.
    seed
        Seed of every random number.
    voxel_mm
        Voxels of the truth's images, mm.
    """

    scanner: str = "quadra-UHS"
    phantom: str = "pregnant"
    dose: str = "low-dose-fdg"
    shifts: tuple[Shift, ...] = ()
    breathing_mm: float = 0.0
    filling_ml_min: float = 5.0
    bladder_suv: float = 10.0
    bladder_ml: float = 148.0
    duration_s: float | None = None
    count_fraction: float = 1.0
    scatter: str = "table"
    table_events: int = TABLE_EVENTS
    seed: int = 1
    voxel_mm: float = 3.3

    def make_phantom(self) -> Phantom:
        """Make the phantom.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        if self.phantom == "pregnant":
            return pregnant_phantom(
                bladder_suv=self.bladder_suv,
                bladder_ml=self.bladder_ml,
                filling_ml_min=self.filling_ml_min,
            )
        if self.phantom == "cylinder":
            return cylinder_phantom()
        raise InputError(
            f"a phantom must be pregnant or cylinder, but {self.phantom!r} was asked for; "
            "choose one of these"
        )

    def make_motion(self) -> PatientMotion:
        """Make the patient's motion; shifts in order of time."""
        ordered = sorted(self.shifts)
        return PatientMotion(
            step_time_s=tuple(time for time, _ in ordered),
            step_mm=tuple(step for _, step in ordered),
            breathing_mm=self.breathing_mm,
        )


def parse_shifts(texts: Sequence[str]) -> tuple[Shift, ...]:
    """Read shifts such as ``"600:0,0,13"`` (seconds; mm to the left, back and head).

    Raises
    ------
    InputError
        If a text does not read like that.

    Examples
    --------
    >>> parse_shifts(["600:0,0,13"])
    ((600.0, (0.0, 0.0, 13.0)),)
    """
    shifts = []
    for text in texts:
        time, _, place = text.partition(":")
        try:
            x, y, z = (float(part) for part in place.split(","))
            shifts.append((float(time), (x, y, z)))
        except ValueError:
            raise InputError(
                "a shift must read like '600:0,0,13' (seconds from the start of the scan, then "
                f"mm to the left, back and head), but {text!r} does not; correct it"
            ) from None
    return tuple(shifts)


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """A simulated scan on disk.

    Parameters
    ----------
    path
        The listmode file.
    plan
        What was asked for.
    budget
        Expected counts.
    truth
        What was made.
    """

    path: Path
    plan: SimulationPlan
    budget: CountBudget
    truth: SimulationTruth

    def to_dict(self) -> dict[str, Any]:
        """Give the truth as JSON values."""
        truth = self.truth
        budget = asdict(self.budget)
        budget["standard_error"] = list(self.budget.standard_error)
        return {
            "scanner": truth.scanner,
            "phantom": truth.phantom.name,
            "seed": truth.seed,
            "duration_s": truth.duration_s,
            "shifts": truth.shifts,
            "filling_ml_min": truth.filling_ml_min,
            "protocol": asdict(truth.protocol),
            "n_trues": truth.n_trues,
            "n_scatter": truth.n_scatter,
            "n_randoms": truth.n_randoms,
            "n_delayeds": truth.n_delayeds,
            "expected": budget,
            "plan": asdict(self.plan),
        }


def truth_images(
    phantom: Phantom,
    grid: Grid,
    *,
    time_s: float = 0.0,
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[Volume, Volume, LabelMap]:
    """Sample a phantom on a grid: activity (Bq/mL at tick zero), mu (1/cm) and labels."""
    axes = [grid.axis_mm(axis) for axis in range(3)]
    activity = phantom.sample_activity(*axes, time_s=time_s, shift_mm=shift_mm)
    mu = phantom.sample_mu(*axes, time_s=time_s, shift_mm=shift_mm)
    labels = phantom.sample_labels(*axes, time_s=time_s, shift_mm=shift_mm)
    about = {"phantom": phantom.name, "time_s": time_s, "shift_mm": list(shift_mm)}
    return (
        Volume(activity, grid, "Bq/mL", about),
        Volume(mu, grid, "1/cm", about),
        LabelMap(
            Volume(labels, grid, "label", about),
            {number: name for number, name in phantom.labels.items() if number},
            phantom.physiological,
        ),
    )


def simulate_to_folder(
    plan: SimulationPlan,
    folder: Path,
    *,
    threads: int = 2,
    progress: Progress = SILENT,
    say: Callable[[str], None] = lambda _line: None,
) -> SimulatedScan:
    """Simulate a scan and write it with its truth.

    Writes scan.h5, activity.nii.gz, mu.nii.gz and labels.nii.gz (with labels.tsv) of the
    patient as at tick zero, and truth.json.

    Parameters
    ----------
    plan
        What to simulate.
    folder
        Where the files go; it exists.
    threads, progress
        As everywhere.
    say
        Receives the budget of counts and a line about each file.

    Raises
    ------
    InputError
        If the plan cannot be simulated or a file cannot be written.
    """
    scanner = load_scanner(plan.scanner)
    dose, phantom, motion = _dose(plan), plan.make_phantom(), plan.make_motion()
    scatter = cast("ScatterMode", plan.scatter)
    budgets: list[CountBudget] = []

    def tell(budget: CountBudget) -> None:
        budgets.append(budget)
        say(budget_line(budget, plan.count_fraction))

    path = folder / "scan.h5"
    truth = simulate_scan(
        path, scanner=scanner, phantom=phantom, dose=dose, motion=motion, seed=plan.seed,
        count_fraction=plan.count_fraction, scatter=scatter, threads=threads,
        table_events=plan.table_events, tell=tell, progress=progress,
    )  # fmt: skip
    grid = _truth_grid(scanner, plan.voxel_mm)
    activity, mu, labels = truth_images(truth.phantom, grid)
    save_volume(folder / "activity.nii.gz", activity)
    save_volume(folder / "mu.nii.gz", mu)
    save_labels(folder / "labels.nii.gz", labels)
    done = SimulatedScan(path, plan, budgets[0], truth)
    save_json(folder / "truth.json", done.to_dict())
    say(f"{path.name} and its truth are written")
    return done


def _dose(plan: SimulationPlan) -> Dose:
    dose = load_dose(plan.dose)
    return dose if plan.duration_s is None else replace(dose, duration_s=plan.duration_s)


def _truth_grid(scanner: Scanner, voxel_mm: float) -> Grid:
    return choose_grid(scanner, GridSettings(voxel_mm=voxel_mm))


def budget_line(budget: CountBudget, count_fraction: float) -> str:
    """Say in one line what a scan will hold."""
    of = "" if count_fraction == 1.0 else f" at {count_fraction:.3g} of the counts"
    return (
        f"expected{of}: {budget.prompts / 1e6:.3g} M prompts "
        f"({budget.trues / 1e6:.3g} M trues, {budget.scatter / 1e6:.3g} M scattered, "
        f"{budget.randoms / 1e6:.3g} M random), {budget.prompts_hz / 1e3:.3g} kcps, "
        f"scatter fraction {budget.scatter_fraction:.0%}"
    )


@dataclass(frozen=True, eq=False)
class DemoResult:
    """The demonstration: what was simulated and what was found."""

    simulation: SimulatedScan
    run: RunResult
    clock_zero: str

    def to_dict(self) -> dict[str, Any]:
        """Give truth and findings as JSON values."""
        return {"truth": self.simulation.to_dict(), "found": self.run.to_dict()}


def demo_settings() -> Settings:
    """Give the settings of the demonstration: a filter for its low counts, a CT before it."""
    settings = Settings()
    return replace(
        settings,
        osem=replace(
            settings.osem,
            n_iterations=3,
            post_filter_fwhm_mm=8.0,
            n_sensitivity_pairs=12_000_000,
        ),
        scatter=replace(settings.scatter, n_points=450),
        corrections=replace(settings.corrections, mu_time_s=0.0),
        hotspots=replace(settings.hotspots, floor=3.5, min_volume_ml=0.5),
    )


def run_demo(
    folder: Path,
    *,
    count_fraction: float = DEMO_COUNT_FRACTION,
    seed: int = 1,
    settings: Settings | None = None,
    threads: int = 2,
    progress: Progress = SILENT,
    say: Callable[[str], None] = lambda _line: None,
) -> DemoResult:
    """Simulate a pregnant patient who slides during a low-dose scan, and do the main job.

    The mu-map and the labels are those of the patient's first pose, as from a CT before the
    scan. They and the listmode file are read back from disk, as a user's would be.

    Parameters
    ----------
    folder
        Where all files go; it exists.
    count_fraction
        Share of the protocol's counts.
    seed
        Seed of the simulation.
    settings
        Of all stages; those of the demonstration if not given.
    threads, progress, say
        As everywhere.
    """
    plan = SimulationPlan(shifts=(DEMO_SHIFT,), count_fraction=count_fraction, seed=seed)
    simulation = simulate_to_folder(plan, folder, threads=threads, progress=progress, say=say)
    with open_listmode(simulation.path) as listmode:
        run = run_scan(
            listmode,
            folder,
            mu=load_volume(folder / "mu.nii.gz", "1/cm"),
            labels=load_labels(folder / "labels.nii.gz"),
            settings=settings or demo_settings(),
            threads=threads,
            progress=progress,
            say=say,
        )
    return DemoResult(simulation, run, listmode.clock_zero)
