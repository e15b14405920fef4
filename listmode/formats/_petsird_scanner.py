"""Turn a PETSIRD header into a scanner, a protocol and crystal efficiencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats._petsird_pairs import Modules, cell, known_pairs
from listmode.scanner import SPEED_OF_LIGHT_MM_PS, Scanner, TofModel
from listmode.source import ScanProtocol

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_MAX_CRYSTALS = 4_000_000
_STOPPING_PER_MM = 0.083  # LSO, 7.4 g/cc, 511 keV; PETSIRD names no attenuation
_UNKNOWN_WINDOW_PS = 4726.62  # coincidence window of a Vision header, where a file has no bins
_SAME_PLACE_MM = 0.05
_SAME_ANGLE_RAD = 1e-4


@dataclass
class Detector:
    """What the reader needs to know of a PETSIRD scanner beside the scanner itself."""

    scanner: Scanner
    n_energy: I64
    n_bins: I64
    first_crystal: I64
    n_tof: I64
    has_tof: bool
    crystal_efficiency: F32 | None
    notes: list[str] = field(default_factory=list)


def build_detector(header: Mapping[str, Any]) -> Detector:
    """Make the scanner that a PETSIRD header describes.

    Crystals keep PETSIRD's order (element, module, module type). Places come from the corners
    of the crystal boxes, wherever a box has its origin; the effective point of interaction lies
    at the mean depth of the first interaction. A crystal's ring and transaxial slots follow
    from its z and angle.

    Raises
    ------
    InputError
        If the geometry is missing, not finite or too large.
    """
    try:
        return _build(header["scanner"])
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "a PETSIRD header must describe its scanner, but the description is damaged "
            f"({type(error).__name__}: {error}); write the file again"
        ) from None


def _build(info: Mapping[str, Any]) -> Detector:
    types = [_modules(m) for m in info["scannerGeometry"]["replicatedModules"]]
    if not types:
        raise InputError(
            "a PETSIRD header must describe its scanner, but it has no detector modules; "
            "write the file again"
        )
    counts = np.array([len(m.centre_mm) for m in types], np.int64)
    energy = [np.asarray(e["edges"], np.float64) for e in info["eventEnergyBinEdges"]]
    n_energy = np.array([max(len(e) - 1, 1) for e in energy], np.int64)[: len(types)]
    if len(n_energy) < len(types):
        n_energy = np.ones(len(types), np.int64)
    notes = _describe_types(types, n_energy)
    tof, n_tof, has_tof = _tof(info, len(types), notes)
    centre = np.concatenate([m.centre_mm for m in types])
    normal = np.concatenate([m.normal for m in types])
    depth = np.repeat([mean_depth_mm(m.size_mm[2]) for m in types], counts)
    length = np.repeat([m.size_mm[2] for m in types], counts)
    position = centre + normal * (depth - length / 2)[:, None]
    ring, transaxial = ring_slots(position[:, 2]), transaxial_slots(position[:, :2])
    resolution = np.ravel(info.get("energyResolutionAt511", ()))
    window = energy[0] if energy and len(energy[0]) > 1 else np.array([435.0, 585.0])
    efficiencies = info.get("detectionEfficiencies") or {}
    scanner = Scanner(
        name=str(info.get("modelName") or "PETSIRD scanner"),
        crystal_position_mm=position.astype(np.float32),
        crystal_normal=normal.astype(np.float32),
        crystal_ring=ring,
        crystal_transaxial=transaxial,
        n_rings=int(ring.max()) + 1,
        n_transaxial=int(transaxial.max()) + 1,
        crystal_size_mm=types[0].size_mm,
        crystal_pitch_mm=types[0].pitch_mm,
        max_ring_difference=int(ring.max()),
        fov_radius_mm=float(np.hypot(position[:, 0], position[:, 1]).max()),
        doi_mm=mean_depth_mm(types[0].size_mm[2]),
        stopping_per_mm=_STOPPING_PER_MM,
        window_efficiency=1.0,
        energy_window_kev=(float(window[0]), float(window[-1])),
        energy_resolution=float(resolution[0]) if len(resolution) else 0.10,
        background_singles_hz=0.0,
        tof=tof,
        crystal_profile=np.ones(len(position), np.float32),
        module_pairs=known_pairs(efficiencies, types, n_energy, notes),
    )
    efficiency = _efficiency(efficiencies, types, n_energy, notes)
    return Detector(
        scanner=scanner,
        n_energy=n_energy,
        n_bins=counts * n_energy,
        first_crystal=np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64),
        n_tof=n_tof,
        has_tof=has_tof,
        crystal_efficiency=efficiency,
        notes=notes,
    )


def mean_depth_mm(length_mm: float, stopping_per_mm: float = _STOPPING_PER_MM) -> float:
    """Give the mean depth of the first interaction in a crystal that stops the photon, mm.

    Notes
    -----
    The mean of an exponential cut at the crystal's length, ``1/mu - L / (exp(mu L) - 1)``:
    7.4 mm for 20 mm of LSO, where a Geant4 model of such a scanner finds 7-7.5 mm.

    Examples
    --------
    >>> round(mean_depth_mm(20.0), 2)
    7.35
    """
    if not length_mm > 0.0:
        return 0.0
    x = min(stopping_per_mm * length_mm, 500.0)
    return 1.0 / stopping_per_mm - length_mm / math.expm1(x)


def _modules(replicated: Mapping[str, Any]) -> Modules:
    elements = replicated["object"]["detectingElements"]
    corners = np.asarray(elements["object"]["shape"], np.float64).reshape(8, 3)
    in_module = np.asarray(elements["transforms"], np.float64).reshape(-1, 3, 4)
    in_scanner = np.asarray(replicated["transforms"], np.float64).reshape(-1, 3, 4)
    n_modules, n_elements = len(in_scanner), len(in_module)
    if not 0 < n_modules * n_elements <= _MAX_CRYSTALS:
        raise InputError(
            f"a PETSIRD scanner must have 1-{_MAX_CRYSTALS} crystals of a type, but this "
            f"one has {n_modules} modules of {n_elements}; the file is damaged: copy it again"
        )
    for name, array in (("corners", corners), ("places", in_module), ("modules", in_scanner)):
        if not np.isfinite(array).all():
            raise InputError(
                f"a PETSIRD scanner's geometry must be finite, but the {name} of its crystals "
                "are not; the file is damaged: copy it again"
            )
    rotation = np.einsum(
        "mij,ejk->meik", in_scanner[:, :, :3], in_module[:, :, :3], optimize=True
    )
    shift = (
        np.einsum("mij,ej->mei", in_scanner[:, :, :3], in_module[:, :, 3], optimize=True)
        + in_scanner[:, None, :, 3]
    )
    centre = rotation @ corners.mean(axis=0) + shift
    extent = np.ptp(corners, axis=0)
    outward = centre.copy()
    outward[..., 2] = 0.0
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-9)
    along = np.einsum("meij,mei->mej", rotation, outward)  # each own axis on the radius
    radial = int(np.abs(along).mean(axis=(0, 1)).argmax())
    others = [axis for axis in range(3) if axis != radial]
    on_z = np.abs(rotation[..., 2, :]).mean(axis=(0, 1))
    axial = others[int(on_z[others].argmax())]
    tangential = others[1 - others.index(axial)]
    normal = rotation[..., radial] * np.where(along[..., radial] < 0, -1.0, 1.0)[..., None]
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    size = (float(extent[tangential]), float(extent[axial]), float(extent[radial]))
    places = (centre[0] - centre[0, 0]) @ rotation[0, 0]
    pitch = (
        _pitch(places[:, tangential], size[0]),
        _pitch(_clusters(centre[..., 2].ravel(), _SAME_PLACE_MM)[0], size[1]),
    )
    return Modules(
        centre_mm=centre.reshape(-1, 3),
        normal=normal.reshape(-1, 3),
        size_mm=size,
        pitch_mm=pitch,
        n_modules=n_modules,
        n_elements=n_elements,
    )


def _pitch(place_mm: F64, size_mm: float) -> float:
    step = np.diff(np.unique(place_mm))
    step = step[step > _SAME_PLACE_MM]
    return float(np.median(step)) if step.size else size_mm


def _clusters(values: F64, tolerance: float) -> tuple[F64, I64]:
    """Group nearly equal values: the groups' means, ascending, and each value's group."""
    order = np.argsort(values, kind="stable")
    new_group = np.diff(values[order], prepend=values[order[0]]) > tolerance
    group = np.empty(len(values), np.int64)
    group[order] = np.cumsum(new_group)
    mean = np.bincount(group, weights=values) / np.bincount(group)
    return mean, group


def ring_slots(z_mm: F64) -> I32:
    """Give ring numbers by z, counting gaps of whole pitches as empty slots."""
    mean, group = _clusters(z_mm, _SAME_PLACE_MM)
    if len(mean) < 3:
        return group.astype(np.int32)
    slot = np.round((mean - mean[0]) / np.median(np.diff(mean)))
    if (np.diff(slot) < 1).any() or slot[-1] > 4 * len(mean):
        return group.astype(np.int32)  # no common pitch: number them as they come
    slots: I32 = slot.astype(np.int32)[group]
    return slots


def transaxial_slots(xy_mm: F64) -> I32:
    """Give numbers around the ring by angle from +x towards +y."""
    angle = np.mod(np.arctan2(xy_mm[:, 1], xy_mm[:, 0]) + _SAME_ANGLE_RAD / 2, 2 * np.pi)
    return _clusters(angle, _SAME_ANGLE_RAD)[1].astype(np.int32)


def _describe_types(types: list[Modules], n_energy: I64) -> list[str]:
    notes = []
    if len(types) > 1:
        sizes = "; ".join(
            f"{m.n_modules} x {m.n_elements} crystals of "
            f"{m.size_mm[0]:g} x {m.size_mm[1]:g} x {m.size_mm[2]:g} mm"
            for m in types
        )
        notes.append(
            f"{len(types)} types of modules ({sizes}): the scanner holds all crystals, with "
            "the size and pitch of the first type"
        )
    if (n_energy > 1).any():
        notes.append("the energy bins of the events are not kept")
    return notes


def _tof(info: Mapping[str, Any], n_types: int, notes: list[str]) -> tuple[TofModel, I64, bool]:
    """Find one set of TOF bins for all pairs of module types, or go without TOF.

    Edges are in mm: half the light path of ``t_0 - t_1``.
    """
    n_tof = np.ones(n_types * n_types, np.int64)
    models: set[tuple[int, float, float]] = set()
    widest = 0.0
    for i in range(n_types):
        for j in range(i + 1):
            edges = cell(info.get("tofBinEdges"), i, j)
            edges = np.zeros(0) if edges is None else np.asarray(edges["edges"], np.float64)
            if len(edges) < 2:
                models.add((1, 0.0, 0.0))
                continue
            if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
                raise InputError(
                    "TOF bin edges must ascend and be finite, but those of module types "
                    f"{i} and {j} do not; write the file again"
                )
            n_tof[[i * n_types + j, j * n_types + i]] = len(edges) - 1
            fwhm = float(cell(info.get("tofResolution"), i, j) or 0.0)
            step = np.diff(edges)
            even = np.allclose(step, step.mean(), rtol=1e-3)
            centred = abs(edges[0] + edges[-1]) < 1e-2 * step.mean()
            width = float((edges[-1] - edges[0]) / (len(edges) - 1))
            models.add((len(edges) - 1, width if even and centred else -1.0, fwhm))
            widest = max(widest, float(edges[-1] - edges[0]))
    n, width, fwhm = next(iter(models))
    if len(models) > 1 or width < 0:
        notes.append(
            f"TOF is left out: the {n_types * (n_types + 1) // 2} pairs of module types have "
            f"{len(models)} sets of TOF bins, uneven or different, which one scanner "
            "description cannot hold"
        )
    elif n > 1 and not (math.isfinite(fwhm) and fwhm > 0):
        notes.append("TOF is left out: the header gives no timing resolution")
    elif n > 1:
        to_ps = 2.0 / SPEED_OF_LIGHT_MM_PS
        return TofModel(n, width * to_ps, fwhm * to_ps), n_tof, True
    window_ps = widest * 2.0 / SPEED_OF_LIGHT_MM_PS or _UNKNOWN_WINDOW_PS
    return TofModel(1, window_ps, math.inf), n_tof, False


def _efficiency(
    table: Mapping[str, Any], types: list[Modules], n_energy: I64, notes: list[str]
) -> F32 | None:
    """Give the part of the detection efficiencies that belongs to single crystals."""
    factor = float(table.get("calibrationFactor") or 1.0)
    if factor != 1.0:
        notes.append(f"the calibration factor {factor:g} of the header is not applied")
    stored = table.get("detectionBinEfficiencies")
    if stored is None or len(stored) < len(types):
        return None
    parts = []
    for values, module, n in zip(stored, types, n_energy, strict=False):
        bins = np.asarray(values, np.float64)
        is_right = bool(np.isfinite(bins).all() and (bins >= 0).all())
        if bins.size != len(module.centre_mm) * n or not is_right:
            notes.append("crystal efficiencies are left out: their number or values do not fit")
            return None
        by_energy = bins.reshape(-1, n)
        if not np.allclose(by_energy, by_energy[:, :1]):
            notes.append("crystal efficiencies are the mean over the energy bins")
        parts.append(by_energy.mean(axis=1))
    efficiency = np.concatenate(parts)
    if not efficiency.mean() > 0:
        notes.append("crystal efficiencies are left out: they are zero")
        return None
    if efficiency.min() == efficiency.max():
        return None
    relative: F32 = (efficiency / efficiency.mean()).astype(np.float32)
    return relative


def read_protocol(exam: Mapping[str, Any] | None, defects: list[str]) -> ScanProtocol:
    """Read activity, weight and times; never the patient's identity."""
    if not exam:
        return ScanProtocol()
    patient = exam.get("patient") or {}
    tracers = exam.get("radiopharmaceuticals") or []
    known: dict[str, Any] = {}
    sex = str(patient.get("patientsSex") or "")
    known["patient_sex"] = sex if sex in ("F", "M") else None
    for key, name in (
        ("patient_weight_kg", "patientsWeight"),
        ("patient_height_m", "patientsSize"),
    ):
        value = float(patient.get(name) or 0.0)
        known[key] = value if math.isfinite(value) and value > 0 else None
    if tracers:
        known |= _tracer(tracers[0], exam.get("startOfAcquisition"), defects)
    return ScanProtocol(**known)


def _tracer(
    table: Mapping[str, Any], start_ns: int | None, defects: list[str]
) -> dict[str, Any]:
    known: dict[str, Any] = {}
    dose = float(table.get("radionuclideTotalDose") or 0.0)
    if math.isfinite(dose) and dose > 0:
        known["injected_activity_bq"] = dose
    injected_ns = int(table.get("radiopharmaceuticalStartDateTime") or 0)
    if start_ns and injected_ns:
        known["injection_time_s"] = (injected_ns - int(start_ns)) / 1e9
    name = str((table.get("radiopharmaceuticalCodeSequence") or {}).get("codeMeaning") or "")
    if name:
        known["tracer"] = name
    nuclide = str((table.get("radionuclideCodeSequence") or {}).get("codeMeaning") or "")
    if nuclide and "18" not in nuclide:
        defects.append(
            f"the file names the radionuclide {nuclide[:40]!r} without a half-life; that of "
            "F-18 is used"
        )
    return known
