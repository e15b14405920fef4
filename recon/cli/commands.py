"""The commands of ``stillpet``: each parses, calls public functions of the pipeline, writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.simulate.simulation import TABLE_EVENTS
from listmode.source import Listmode
from listmode.windows import Windows
from recon.cli import console, files, text
from recon.cli.motion import follow_live, run_motion_suite
from recon.cli.options import (
    RESEARCH,
    AsJson,
    BootstrapN,
    CacheDir,
    CorrectMotion,
    FilterMm,
    Iterations,
    KeepIn,
    LabelsFile,
    MuFile,
    MuTime,
    OutDir,
    Penalty,
    PosesFile,
    PsfMm,
    Register,
    Resume,
    ScanFile,
    SettingsFile,
    Subsets,
    Threads,
    UseRandoms,
    UseScatter,
    VoxelMm,
    WindowsText,
    count_threads,
    make_folder,
    resuming,
)
from recon.cost import measure_rays_per_s
from recon.image import Volume
from recon.io.nifti import load_volume, save_volume
from recon.io.poses import load_poses
from recon.io.tables import save_hotspots, save_json
from recon.motion import Poses
from recon.penalty import RelativeDifference
from recon.pipeline import demo as demonstration
from recon.pipeline import images, measure, scan
from recon.pipeline import motion as motion_stage
from recon.pipeline.benchmark import run_benchmarks
from recon.pipeline.labels import LabelMap, load_labels
from recon.settings import Settings, load_settings

app = typer.Typer(
    name="stillpet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Still images from a PET listmode scan in which the patient moved.\n\n"
    "Finds when and how far the patient moved, keeps the windows of time that belong "
    "together, reconstructs them, measures hotspots and writes a report. " + RESEARCH,
    epilog=RESEARCH,
)


def _recon_settings(
    path: Path | None,
    *,
    voxel_mm: float | None = None,
    iterations: int | None = None,
    subsets: int | None = None,
    psf_mm: float | None = None,
    filter_mm: float | None = None,
    scatter: bool = True,
    randoms: bool = True,
    mu_time_s: float | None = None,
    penalty: float | None = None,
    n_replicates: int | None = None,
) -> Settings:
    """Read the settings file and let the options given on the command line win over it."""
    settings = load_settings(path)
    osem: dict[str, Any] = {
        "n_iterations": iterations,
        "n_subsets": subsets,
        "psf_fwhm_mm": psf_mm,
        "post_filter_fwhm_mm": filter_mm,
    }
    given = {name: value for name, value in osem.items() if value is not None}
    if given:
        settings = replace(settings, osem=replace(settings.osem, **given))
    if penalty is not None:
        usual = settings.penalty or RelativeDifference()
        settings = replace(
            settings, penalty=replace(usual, strength=penalty) if penalty else None
        )
    if n_replicates is not None:
        chosen = replace(settings.bootstrap, n_replicates=n_replicates)
        settings = replace(settings, bootstrap=chosen)
    if voxel_mm is not None:
        settings = replace(settings, grid=replace(settings.grid, voxel_mm=voxel_mm))
    corrections = replace(
        settings.corrections,
        scatter=settings.corrections.scatter and scatter,
        randoms=settings.corrections.randoms and randoms,
        mu_time_s=settings.corrections.mu_time_s if mu_time_s is None else mu_time_s,
    )
    return replace(settings, corrections=corrections)


def _load_mu(path: Path | None) -> Volume | None:
    return None if path is None else load_volume(path, "1/cm")


def _load_course(path: Path | None, listmode: Listmode, windows: Windows) -> Poses | None:
    if path is None:
        return None
    if path == Path("bed"):
        return motion_stage.recorded_poses(listmode, windows)
    return load_poses(path, windows)


def _load_labels(path: Path | None) -> LabelMap | None:
    return None if path is None else load_labels(path)


app.add_typer(files.app)


@app.command(epilog=RESEARCH)
def motion(
    file: ScanFile,
    out: OutDir = Path("out"),
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="The file is being written: follow it, "
            "and alert within seconds of a shift of 10 mm or more. Writes alerts.json alone.",
        ),
    ] = False,
    idle_s: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="With --live: end after so many seconds without anything new.",
        ),
    ] = 30.0,
    mu: Annotated[
        Path | None,
        typer.Option(
            "--mu",
            metavar="FILE.nii.gz",
            help="Attenuation map in 1/cm, in the scanner's frame: say whether the windows "
            "fit it, and prefer those that do. Not with --live.",
            show_default=False,
        ),
    ] = None,
    settings_file: SettingsFile = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Find when, how far and how surely the patient moved, and which windows to keep.

    Writes motion.json (changes, windows kept, windows left out and why), motion.tsv (the
    displacement trace) and motion.png.
    """
    with console.session(as_json=as_json) as run:
        if live:
            if mu is not None:
                raise InputError(
                    "--mu needs the whole scan, but --live follows one that is being "
                    "written; leave one of the two out"
                )
            follow_live(
                run, file, make_folder(out), threads=count_threads(threads), idle_s=idle_s
            )
            return
        settings = load_settings(settings_file)
        attenuation = _load_mu(mu)
        folder = make_folder(out)
        with open_listmode(file) as listmode:
            result = motion_stage.analyse(
                listmode, mu=attenuation, settings=settings, threads=count_threads(threads),
                progress=run.progress,
            )  # fmt: skip
            fit = motion_stage.ct_fit(result, attenuation)
            motion_stage.save_motion(folder, listmode, result, fit=fit)
            run.finish(
                motion_stage.motion_to_dict(listmode, result, fit=fit),
                [
                    *text.motion_lines(result, listmode.clock_zero),
                    *motion_stage.fit_notes(motion_stage.MuPose(attenuation), fit),
                ],
            )


@app.command(epilog=RESEARCH)
def recon(
    file: ScanFile,
    out: OutDir = Path("out"),
    windows: WindowsText = None,
    mu: MuFile = None,
    poses: PosesFile = None,
    name: Annotated[str, typer.Option(help="Name of the image file.")] = "image",
    voxel_mm: VoxelMm = None,
    iterations: Iterations = None,
    subsets: Subsets = None,
    psf_mm: PsfMm = None,
    filter_mm: FilterMm = None,
    scatter: UseScatter = True,
    randoms: UseRandoms = True,
    penalty: Penalty = None,
    bootstrap: BootstrapN = None,
    resume: Resume = True,
    settings_file: SettingsFile = None,
    cache: CacheDir = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Reconstruct windows of a scan (all of it without --windows) to Bq/mL at tick zero.

    Writes NAME.nii.gz and its sidecar NAME.json, which also holds the factor to SUV where the
    file knows dose and weight. Memory and time are told before it starts. With --bootstrap it
    also writes NAME_sd.nii.gz and NAME_hotspots.csv.
    """
    with console.session(as_json=as_json) as run:
        settings = _recon_settings(
            settings_file, voxel_mm=voxel_mm, iterations=iterations, subsets=subsets,
            psf_mm=psf_mm, filter_mm=filter_mm, scatter=scatter, randoms=randoms,
            penalty=penalty, n_replicates=bootstrap,
        )  # fmt: skip
        attenuation = _load_mu(mu)
        folder = make_folder(out)
        with open_listmode(file) as listmode, resuming(folder, is_wanted=resume) as states:
            chosen = listmode.extent if windows is None else Windows.parse(windows)
            images.check_events(listmode, chosen)
            course = _load_course(poses, listmode, chosen)
            n_threads = count_threads(threads)
            cost = images.estimate_run(
                listmode, chosen, settings, has_mu=attenuation is not None,
                rays_per_s=measure_rays_per_s(listmode.scanner, n_threads),
            )  # fmt: skip
            run.say(text.cost_line(cost))
            done = images.reconstruct_scan(
                listmode, chosen, mu=attenuation, settings=settings, poses=course,
                threads=n_threads,
                cache_dir=cache or states, resume_dir=states, progress=run.progress,
            )  # fmt: skip
            path = folder / f"{name}.nii.gz"
            save_volume(path, done.volume, protocol=listmode.protocol, windows=chosen)
            scan.save_uncertainty(folder, name, listmode, done, settings)
            run.finish(
                done.to_dict() | {"image": path.name},
                text.image_lines(listmode, done, path),
            )


@app.command(epilog=RESEARCH)
def hotspots(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE.nii.gz", help="An image made by stillpet, or any "
                             "NIfTI image with its unit in a sidecar.", show_default=False)
    ],
    out: OutDir = Path("out"),
    labels: LabelsFile = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="FILE.nii.gz", help="Measure these regions instead: "
                     "each number above zero is one hotspot.", show_default=False),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(help="Keep what reaches this fraction of each hotspot's maximum.",
                     show_default="0.41"),
    ] = None,
    suv: Annotated[
        float | None,
        typer.Option(help="Keep what reaches this SUV instead.", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Keep what reaches this value in the image's unit instead.",
                     show_default=False),
    ] = None,
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Find hotspots in an image and measure them; writes hotspots.csv."""
    with console.session(as_json=as_json) as run:
        settings = load_settings(settings_file)
        folder = make_folder(out)
        table = measure.find_in_file(
            image,
            labels=_load_labels(labels),
            mask=None if mask is None else load_volume(mask, "label"),
            settings=measure.choose_rule(
                settings.hotspots, fraction=fraction, suv=suv, absolute=threshold
            ),
        )
        save_hotspots(folder / "hotspots.csv", table)
        run.finish(text.hotspot_dict(table), text.hotspot_lines(table))


@app.command("run", epilog=RESEARCH)
def run_command(
    file: ScanFile,
    out: OutDir = Path("out"),
    windows: WindowsText = None,
    mu: MuFile = None,
    mu_time: MuTime = None,
    labels: LabelsFile = None,
    voxel_mm: VoxelMm = None,
    iterations: Iterations = None,
    subsets: Subsets = None,
    psf_mm: PsfMm = None,
    filter_mm: FilterMm = None,
    scatter: UseScatter = True,
    randoms: UseRandoms = True,
    correct_motion: CorrectMotion = True,
    register: Register = False,
    penalty: Penalty = None,
    bootstrap: BootstrapN = None,
    resume: Resume = True,
    settings_file: SettingsFile = None,
    cache: CacheDir = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Do the main job: motion, still windows, images, hotspots, report.

    Writes report.html, full.nii.gz and still.nii.gz with their sidecars, corrected.nii.gz
    (motion-corrected, all minutes) if the patient moved, motion.json, motion.tsv, poses.csv,
    hotspots.csv (still windows), hotspots_full.csv (whole scan), hotspots_corrected.csv and
    summary.json. With --bootstrap also still_sd.nii.gz, and an interval of each SUVmax in
    hotspots.csv.
    """
    with console.session(as_json=as_json) as run:
        settings = _recon_settings(
            settings_file, voxel_mm=voxel_mm, iterations=iterations, subsets=subsets,
            psf_mm=psf_mm, filter_mm=filter_mm, scatter=scatter, randoms=randoms,
            mu_time_s=mu_time, penalty=penalty, n_replicates=bootstrap,
        )  # fmt: skip
        chosen = None if windows is None else Windows.parse(windows)
        attenuation, names = _load_mu(mu), _load_labels(labels)
        folder = make_folder(out)
        with open_listmode(file) as listmode, resuming(folder, is_wanted=resume) as states:
            result = scan.run_scan(
                listmode, folder, mu=attenuation, labels=names, windows=chosen,
                settings=settings, correct_motion=correct_motion, register=register,
                cache_dir=cache or states, resume_dir=states,
                threads=count_threads(threads),
                progress=run.progress, say=run.say,
            )  # fmt: skip
            run.finish(result.to_dict(), text.run_lines(result, listmode.clock_zero, folder))


@app.command(epilog=RESEARCH)
def simulate(
    out: OutDir = Path("out/simulated"),
    scanner: Annotated[
        str, typer.Option(help="Preset (quadra, vision600, uexplorer, pennpet, mmr), with "
                          "-MODE if it has several, or a TOML file.")
    ] = "quadra-UHS",
    phantom: Annotated[str, typer.Option(help="pregnant or cylinder.")] = "pregnant",
    dose: Annotated[str, typer.Option(help="low-dose-fdg or standard.")] = "low-dose-fdg",
    shift: Annotated[
        list[str] | None,
        typer.Option(metavar="T:X,Y,Z", help="Patient shift by X,Y,Z mm (left, back, head) at "
                     "T seconds; may be given several times.", show_default=False),
    ] = None,
    breathing_mm: Annotated[float, typer.Option(help="Breathing amplitude, mm.")] = 0.0,
    filling_ml_min: Annotated[float, typer.Option(help="Bladder filling, mL/min.")] = 5.0,
    bladder_suv: Annotated[float, typer.Option(help="Bladder SUV.")] = 10.0,
    bladder_ml: Annotated[float, typer.Option(help="Bladder volume at the start, mL.")] = 148.0,
    duration_s: Annotated[
        float | None, typer.Option(help="Scan duration, s; that of the dose if not given.",
                                   show_default=False)
    ] = None,
    count_fraction: Annotated[
        float, typer.Option(help="Keep this share of all counts; stored, and part of the "
                            "calibration.")
    ] = 1.0,
    scatter: Annotated[str, typer.Option(help="table, direct or off.")] = "table",
    table_events: Annotated[
        int, typer.Option(help="Photon pairs in the table of scatter; more take longer.", min=1)
    ] = TABLE_EVENTS,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 1,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Simulate a listmode scan with known truth, photon by photon.

    Writes scan.h5 and beside it the truth: activity.nii.gz, mu.nii.gz, labels.nii.gz with
    labels.tsv, and truth.json. The expected counts are printed as a budget first.
    """
    with console.session(as_json=as_json) as run:
        plan = demonstration.SimulationPlan(
            scanner=scanner, phantom=phantom, dose=dose,
            shifts=demonstration.parse_shifts(shift or []),
            breathing_mm=breathing_mm, filling_ml_min=filling_ml_min, bladder_suv=bladder_suv,
            bladder_ml=bladder_ml, duration_s=duration_s, count_fraction=count_fraction,
            scatter=scatter, table_events=table_events, seed=seed,
        )  # fmt: skip
        folder = make_folder(out)
        result = demonstration.simulate_to_folder(
            plan, folder, threads=count_threads(threads), progress=run.progress, say=run.say
        )
        run.finish(result.to_dict(), text.simulation_lines(result, folder))


@app.command(epilog=RESEARCH)
def demo(
    out: OutDir = Path("out/demo"),
    count_fraction: Annotated[
        float, typer.Option(help="Share of the protocol's counts that is simulated.")
    ] = demonstration.DEMO_COUNT_FRACTION,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 1,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a moving low-dose scan on a Quadra and run the main job on it.

    A pregnant patient, 20 minutes, 0.3 MBq/kg (22 MBq) of FDG, who slides 14 mm towards the
    head of the table after ten minutes while the bladder fills. Open report.html afterwards.
    """
    with console.session(as_json=as_json) as run:
        folder = make_folder(out)
        result = demonstration.run_demo(
            folder, count_fraction=count_fraction, seed=seed, threads=count_threads(threads),
            progress=run.progress, say=run.say,
        )  # fmt: skip
        run.finish(result.to_dict(), text.run_lines(result.run, result.clock_zero, folder))


@app.command(epilog=RESEARCH)
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="speed, or motion: the motion suite, hours at its whole size.",
        ),
    ] = "speed",
    scale: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1.0,
            help="Of motion: share of the whole size.",
        ),
    ] = 1.0,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes.")] = False,
    out: KeepIn = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure events per second, and the ratio to the textbook baseline, on this machine.

    Runs from a source checkout, where the baseline lives (benchmarks/). With ``-o`` it writes
    bench.json. ``bench motion -o DIR`` simulates scans, tunes ways to find motion on some and
    judges them on others; killed and started again, it goes on.
    """
    with console.session(as_json=as_json) as run:
        if what not in ("speed", "motion"):
            raise InputError(
                f"what is measured must be speed or motion, but {what!r} was asked for; "
                "choose one of these"
            )
        if what == "motion":
            run_motion_suite(run, make_folder(out or Path("motion_suite")), scale=scale)
            return
        rows = run_benchmarks(
            threads=count_threads(threads), is_quick=quick, progress=run.progress
        )
        result = {"rows": [r.to_dict() for r in rows]}
        if out is not None:
            save_json(make_folder(out) / "bench.json", result)
        run.finish(result, text.bench_lines(rows))
