"""Write any scan as PETSIRD: read by its official library, and back by us bit by bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats import _kernels, _yardl
from listmode.formats._atomic import atomic_path
from listmode.formats._scanner_text import write_description
from listmode.formats.ticks import tick_runs
from listmode.progress import SILENT, Progress, Stage
from listmode.scanner import SPEED_OF_LIGHT_MM_PS, Scanner
from listmode.source import Listmode

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

_EVENT_BYTES = 15  # three numbers of 32 bits
_BLOCK_BYTES = 64


def write_petsird(
    source: Listmode, path: str | Path, *, block_ms: int = 1, progress: Progress = SILENT
) -> None:
    """Write a scan as a PETSIRD file of the installed library's version.

    Prompts and delayeds are kept in order; a time block holds ``block_ms`` ticks, so with one
    tick a block nothing of the time is lost. Truth is not written: PETSIRD has no place for it.

    Parameters
    ----------
    source
        Any open scan.
    path
        The file to make.
    block_ms
        Length of a time block, ms.

    Raises
    ------
    InputError
        If the scan starts before tick zero or the file cannot be written.
    """
    if source.start_ms < 0 or block_ms < 1:
        raise InputError(
            "PETSIRD counts time from 0 in whole ms, but the scan starts at "
            f"{source.start_ms} ms and blocks of {block_ms} ms were asked for; cut the scan at "
            "0 or choose longer blocks"
        )
    from petsird.protocols import PETSIRDWriterBase  # slow to import, needed here only

    text = PETSIRDWriterBase.schema.encode("utf-8")
    schema = _yardl.Schema(text)
    empty = _empty_fields(schema.steps["timeBlocks"])
    total = source.count(source.extent) + source.count(source.extent, "delayeds")
    with atomic_path(Path(path)) as part, part.open("wb") as file:
        file.write(_yardl.preamble(text))
        file.write(_yardl.encode(schema.steps["header"], _header(source)))
        with progress.stage("write PETSIRD", total) as stage:
            for start, stop in source.extent:
                _write_blocks(source, start, stop, block_ms, empty, file, stage)
        file.write(b"\x00")


def _empty_fields(time_block: _yardl.Node) -> tuple[U8, U8, U8]:
    """Give the bytes of an event block's fields other than interval, prompts and delayeds."""
    event_block = time_block.children[time_block.fields.index("EventTimeBlock")]
    parts = [b"", b"", b""]
    place = 0
    for name, child in zip(event_block.fields, event_block.children, strict=True):
        if name in ("promptEvents", "delayedEvents"):
            place += 1
        elif name != "timeInterval":
            parts[place] += _yardl.encode(child, None)
    before, between, after = (np.frombuffer(part, np.uint8) for part in parts)
    return before, between, after


def _write_blocks(
    source: Listmode,
    start: int,
    stop: int,
    block_ms: int,
    empty: tuple[U8, U8, U8],
    file: Any,
    stage: Stage,
) -> None:
    for first, last in tick_runs(source, start, stop, step_ms=block_ms):
        columns: list[Any] = []
        n_events = 0
        for stream in ("prompts", "delayeds"):
            offset = source.tick_offset(stream)
            ticks = offset[first - source.start_ms : last - source.start_ms + 1]
            batch = source.read(stream, int(ticks[0]), int(ticks[-1]))
            columns += [ticks - ticks[0], batch.crystal_a, batch.crystal_b, batch.tof_bin]
            n_events += len(batch)
        n_blocks = -(-(last - first) // block_ms)
        room = n_events * _EVENT_BYTES + n_blocks * (_BLOCK_BYTES + sum(map(len, empty)))
        out = np.empty(room, np.uint8)
        encode: Any = _kernels.encode_petsird  # its columns are given as one list
        n = encode(first, block_ms, source.scanner.tof.n_bins, *columns, *empty, out)
        file.write(out[:n])
        stage.advance(n_events)


def _header(source: Listmode) -> dict[str, Any]:
    scanner, efficiency = source.scanner, source.crystal_efficiency
    ones = np.ones(scanner.n_crystals, np.float32)
    to_mm = SPEED_OF_LIGHT_MM_PS / 2.0
    edges = (np.arange(scanner.tof.n_bins + 1) - scanner.tof.n_bins / 2.0) * (
        scanner.tof.bin_width_ps * to_mm
    )
    fwhm_mm = scanner.tof.fwhm_ps * to_mm if math.isfinite(scanner.tof.fwhm_ps) else 0.0
    return {
        "scanner": {
            "modelName": scanner.name,
            "scannerGeometry": {"replicatedModules": [_geometry(scanner)]},
            "tofBinEdges": [[{"edges": edges}]],
            "tofResolution": [[fwhm_mm]],
            "eventEnergyBinEdges": [{"edges": np.array(scanner.energy_window_kev)}],
            "energyResolutionAt511": [scanner.energy_resolution],
            "promptEventPolicy": 1,
            "delayedEventPolicy": 1 if source.n_events("delayeds") else 0,
            "detectionEfficiencies": {
                "methodDescription": write_description(source),
                "calibrationFactor": 1.0,
                "detectionBinEfficiencies": [ones if efficiency is None else efficiency],
            },
        },
        "exam": _exam(source),
    }


def _rings(scanner: Scanner) -> F64:
    """Give the z offsets of rings that repeat the first ring, or one 0 if they do not.

    Crystals of a scanner made of blocks are numbered ring by ring, so a ring is a PETSIRD
    module, its crystals the elements, and the numbers stay what they are.
    """
    z = scanner.crystal_position_mm[:, 2].astype(np.float64)
    n_around = int((scanner.crystal_ring == scanner.crystal_ring[0]).sum())
    if scanner.layout is None or scanner.n_crystals % n_around:
        return np.zeros(1)
    shift: F64 = z[::n_around] - z[0]
    return shift


def _geometry(scanner: Scanner) -> dict[str, Any]:
    shift_mm = _rings(scanner)
    n = scanner.n_crystals // len(shift_mm)
    position = scanner.crystal_position_mm[:n].astype(np.float64)
    normal = scanner.crystal_normal[:n].astype(np.float64)
    tangential, axial, radial = scanner.crystal_size_mm
    element = np.zeros((n, 3, 4))
    element[:, :, 0] = normal
    element[:, :2, 1] = np.stack((-normal[:, 1], normal[:, 0]), axis=1)
    element[:, 2, 2] = 1.0
    element[:, :, 3] = position + normal * (radial / 2.0 - scanner.doi_mm)
    module = np.zeros((len(shift_mm), 3, 4))
    module[:, :, :3] = np.eye(3)
    module[:, 2, 3] = shift_mm
    half = np.array((radial, tangential, axial)) / 2.0
    signs = np.array(
        [(x, y, z) for x in (-1, 1) for y, z in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    )
    return {
        "object": {
            "detectingElements": {
                "object": {"shape": signs * half, "materialId": 0},
                "transforms": element,
            },
            "nonDetectingElements": [],
        },
        "transforms": module,
    }


def _exam(source: Listmode) -> dict[str, Any]:
    """Say what the scan's protocol knows; no identity, and no time of day."""
    protocol = source.protocol
    second = 1_000_000_000
    start_ns = 10**9 * second  # only the difference to the injection carries meaning
    tracer: dict[str, Any] = {
        "radionuclideTotalDose": protocol.injected_activity_bq or 0.0,
        "radiopharmaceuticalCodeSequence": {"codeMeaning": protocol.tracer},
    }
    if protocol.injection_time_s is not None:
        tracer["radiopharmaceuticalStartDateTime"] = start_ns + round(
            protocol.injection_time_s * second
        )
    return {
        "modality": "PT",
        "startOfAcquisition": start_ns,
        "patient": {
            "patientsSex": protocol.patient_sex or "",
            "patientsSize": protocol.patient_height_m or 0.0,
            "patientsWeight": protocol.patient_weight_kg or 0.0,
        },
        "radiopharmaceuticals": [tracer],
    }
