"""The scanner: where its crystals are, which pairs it accepts, and how well it times them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.module_pairs import ModulePairs

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

SPEED_OF_LIGHT_MM_PS = 0.299792458  # exact by the definition of the metre (SI, 1983)
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
MAX_CRYSTALS = 4_000_000  # 16 times the largest scanner; more would come from a damaged file
_MAX_TOF_BINS = 32_767  # events hold them as int16
_MAX_MM = 1e5


def _is_count(value: object, least: int, most: int) -> bool:
    """Say whether a value is a whole number in ``[least, most]``."""
    return isinstance(value, int | np.integer) and bool(least <= value <= most)


def _is_number(value: object, least: float, most: float, *, above: bool = False) -> bool:
    """Say whether a value is a finite number in ``[least, most]``, or above ``least``."""
    if not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(
        least <= value <= most and math.isfinite(value) and (value > least or not above)
    )


@dataclass(frozen=True)
class TofModel:
    """Time-of-flight bins and resolution; one bin means no TOF.

    Bins lie symmetrically about zero time difference and end at the coincidence window.

    Parameters
    ----------
    n_bins
        Number of TOF bins; 1 for a scanner without TOF.
    bin_width_ps
        Width of one bin in arrival-time difference, ps.
    fwhm_ps
        Coincidence timing resolution, FWHM, ps; ``inf`` without TOF.
    """

    n_bins: int
    bin_width_ps: float
    fwhm_ps: float

    def __post_init__(self) -> None:
        if (
            not _is_count(self.n_bins, 1, _MAX_TOF_BINS)
            or not _is_number(self.bin_width_ps, 0.0, 1e9, above=True)
            or not (self.fwhm_ps == math.inf or _is_number(self.fwhm_ps, 0.0, 1e9, above=True))
        ):
            raise InputError(
                "a TOF model needs at least one bin, a positive bin width and a positive "
                f"resolution, but it has {self.n_bins!r:.40} bins of {self.bin_width_ps!r:.40} "
                f"ps at {self.fwhm_ps!r:.40} ps; correct the scanner description"
            )

    @property
    def has_tof(self) -> bool:
        """Whether the events tell where on the line they came from."""
        return self.n_bins > 1

    @property
    def bin_width_mm(self) -> float:
        """Width of one bin along the LOR, mm (half the light path)."""
        return self.bin_width_ps * SPEED_OF_LIGHT_MM_PS / 2.0

    @property
    def sigma_mm(self) -> float:
        """Standard deviation of the timing error along the LOR, mm."""
        return self.fwhm_ps / FWHM_PER_SIGMA * SPEED_OF_LIGHT_MM_PS / 2.0

    @property
    def window_ps(self) -> float:
        """Full width of the coincidence window, ps: the outermost bins end there."""
        return self.n_bins * self.bin_width_ps

    def bin_centre_mm(self) -> NDArray[np.float64]:
        """Give each bin's centre from the LOR midpoint towards crystal b, mm."""
        k = np.arange(self.n_bins, dtype=np.float64)
        return (k - (self.n_bins - 1) / 2.0) * self.bin_width_mm


@dataclass(frozen=True)
class BlockLayout:
    """Flat detector blocks on a regular polygon, repeated axially with gaps between units.

    Index slots are counted with the gaps: a block takes ``n_crystals + n_virtual`` transaxial
    slots and a unit takes ``n_rings_per_unit`` ring slots followed by ``n_gap_rings``.

    Parameters
    ----------
    n_blocks
        Blocks around the ring (sides of the polygon).
    n_crystals
        Real crystals across a block, transaxially.
    n_virtual
        Empty index slots a block, transaxially.
    n_units, n_rings_per_unit, n_gap_rings
        Axial units, rings in each, and empty ring slots between two units.
    front_radius_mm
        Apothem: distance from the axis to the middle of a block's front face, mm.
    first_block_rad
        Angle of block 0's middle from +x towards +y, rad.
    sense
        +1 if block numbers rise from +x towards +y, else -1.
    """

    n_blocks: int
    n_crystals: int
    n_virtual: int
    n_units: int
    n_rings_per_unit: int
    n_gap_rings: int
    front_radius_mm: float
    first_block_rad: float = 0.0
    sense: int = 1

    def __post_init__(self) -> None:
        for name, least in (
            ("n_blocks", 3), ("n_crystals", 1), ("n_virtual", 0), ("n_units", 1),
            ("n_rings_per_unit", 1), ("n_gap_rings", 0),
        ):  # fmt: skip
            if not _is_count(getattr(self, name), least, MAX_CRYSTALS):
                raise InputError(
                    f"a block layout must have {name} of at least {least}, but it has "
                    f"{getattr(self, name)!r:.40}; correct the scanner description"
                )
        if self.n_transaxial * self.n_rings > MAX_CRYSTALS:
            raise InputError(
                f"a scanner must have at most {MAX_CRYSTALS} crystals, but its layout has "
                f"{self.n_transaxial} x {self.n_rings} places; correct the scanner description"
            )
        if (
            not _is_number(self.front_radius_mm, 0.0, _MAX_MM, above=True)
            or not _is_number(self.first_block_rad, -100.0, 100.0)
            or self.sense not in (-1, 1)
        ):
            raise InputError(
                "a block layout must have a positive radius, a finite angle and a sense of +1 "
                f"or -1, but they are {self.front_radius_mm!r:.40} mm, "
                f"{self.first_block_rad!r:.40} rad and {self.sense!r:.40}; correct the scanner "
                "description"
            )

    @property
    def n_transaxial(self) -> int:
        """Transaxial index slots, gaps counted."""
        return self.n_blocks * (self.n_crystals + self.n_virtual)

    @property
    def n_rings(self) -> int:
        """Ring index slots, gap rings counted."""
        return self.n_units * (self.n_rings_per_unit + self.n_gap_rings) - self.n_gap_rings


@dataclass(frozen=True, eq=False)
class Scanner:
    """A PET scanner as a list of crystals with an acceptance rule and a timing model.

    The scanner frame is in mm, right-handed, with its origin at the centre of the field of
    view and +z along the axis. For a patient lying head first and supine +x points to the
    patient's left, +y to the patient's back (the table) and +z to the head: the directions of
    DICOM's LPS. Only :mod:`recon.io` turns it into NIfTI's RAS+.

    Parameters
    ----------
    name
        Preset or model name.
    crystal_position_mm
        Effective point of interaction of each crystal: ``doi_mm`` behind its front face.
        Shape (n_crystals, 3), float32, mm.
    crystal_normal
        Unit vector of each crystal's long axis, pointing away from the scanner axis.
        Shape (n_crystals, 3), float32.
    crystal_ring, crystal_transaxial
        Ring and transaxial index slot of each crystal, gaps counted. Shape (n_crystals,),
        int32.
    n_rings, n_transaxial
        Numbers of index slots, gaps counted.
    crystal_size_mm
        Crystal size: tangential, axial, radial, mm.
    crystal_pitch_mm
        Distance between neighbouring crystals: tangential, axial, mm.
    max_ring_difference
        Largest accepted difference of ring indices.
    fov_radius_mm
        Largest accepted distance of a LOR from the axis, mm.
    doi_mm
        Effective depth of interaction, mm.
    stopping_per_mm
        Linear attenuation coefficient of the crystal at 511 keV, 1/mm.
    window_efficiency
        Probability that a 511 keV photon stopped in the crystals is accepted by the energy
        window. One number for all modes of a scanner.
    energy_window_kev, energy_resolution
        Energy window, keV, and FWHM at 511 keV as a fraction.
    background_singles_hz
        Constant singles rate of the whole detector from its own radioactivity (Lu-176), 1/s.
    tof
        TOF bins and resolution.
    crystal_profile
        Relative efficiency of each crystal that follows from its place in the block (edges see
        more photons). Shape (n_crystals,), float32.
    mode
        Acquisition mode (``"HS"``, ``"UHS"``), or empty.
    layout
        The block layout the crystals were made from; ``None`` for free-form scanners.
    module_pairs
        Which pairs of modules are in coincidence and how efficient their crystal pairs are;
        ``None`` where acceptance and geometry say so.

    Raises
    ------
    InputError
        If arrays disagree in length or hold values that are not finite.
    """

    name: str
    crystal_position_mm: F32
    crystal_normal: F32
    crystal_ring: I32
    crystal_transaxial: I32
    n_rings: int
    n_transaxial: int
    crystal_size_mm: tuple[float, float, float]
    crystal_pitch_mm: tuple[float, float]
    max_ring_difference: int
    fov_radius_mm: float
    doi_mm: float
    stopping_per_mm: float
    window_efficiency: float
    energy_window_kev: tuple[float, float]
    energy_resolution: float
    background_singles_hz: float
    tof: TofModel
    crystal_profile: F32
    mode: str = ""
    layout: BlockLayout | None = None
    module_pairs: ModulePairs | None = None

    def __post_init__(self) -> None:
        n = len(self.crystal_position_mm)
        for name, dtype, shape in (
            ("crystal_position_mm", np.float32, (n, 3)),
            ("crystal_normal", np.float32, (n, 3)),
            ("crystal_ring", np.int32, (n,)),
            ("crystal_transaxial", np.int32, (n,)),
            ("crystal_profile", np.float32, (n,)),
        ):
            array = np.array(getattr(self, name), dtype=dtype, order="C")
            if array.shape != shape:
                raise InputError(
                    f"scanner {self.name!r}: {name} must have shape {shape}, but it has "
                    f"{array.shape}; give one entry a crystal"
                )
            if not np.isfinite(array).all():
                raise InputError(
                    f"scanner {self.name!r}: {name} must be finite, but crystal "
                    f"{int(np.argwhere(~np.isfinite(array))[0, 0])} is not; "
                    "correct the scanner description"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if n < 2:
            raise InputError(
                f"scanner {self.name!r}: coincidences need at least two crystals, but there "
                f"are {n}; correct the scanner description"
            )
        _check_slots(self)
        _check_numbers(self)
        pairs = self.module_pairs
        if pairs is not None and pairs.crystal_module.size != n:
            raise InputError(
                f"scanner {self.name!r}: a table of module pairs must name the module of each "
                f"of {n} crystals, but it names {pairs.crystal_module.size}; correct the "
                "scanner description"
            )

    @property
    def n_crystals(self) -> int:
        """Number of real crystals."""
        return len(self.crystal_position_mm)

    @property
    def axial_length_mm(self) -> float:
        """Axial field of view: from the first to the last crystal's outer edge, mm."""
        z = self.crystal_position_mm[:, 2]
        return float(z.max() - z.min()) + self.crystal_pitch_mm[1]

    @property
    def crystal_radius_mm(self) -> float:
        """Largest distance of an interaction point from the axis, mm."""
        return float(np.hypot(*self.crystal_position_mm[:, :2].T).max())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that this description holds, for caches and provenance."""
        h = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, ModulePairs):
                h.update(value.digest.encode())
            elif field.name != "module_pairs":  # without it a scanner is what it always was
                is_array = isinstance(value, np.ndarray)
                h.update(value.tobytes() if is_array else repr(value).encode())
        return h.hexdigest()

    def accepts(
        self, crystal_a: NDArray[np.integer], crystal_b: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Say for each pair whether the scanner can record it.

        A pair counts if its ring indices differ by at most ``max_ring_difference``, its LOR
        passes within ``fov_radius_mm`` of the axis, and its modules are in coincidence.

        Parameters
        ----------
        crystal_a, crystal_b
            Crystal numbers. Shape (n,).
        """
        ring = self.crystal_ring
        near = np.abs(ring[crystal_a] - ring[crystal_b]) <= self.max_ring_difference
        a = self.crystal_position_mm[crystal_a, :2].astype(np.float64)
        b = self.crystal_position_mm[crystal_b, :2].astype(np.float64)
        length = np.hypot(*(b - a).T)
        cross = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
        good = near & (cross <= self.fov_radius_mm * length) & (length > 0)
        if self.module_pairs is not None:
            good &= self.module_pairs.groups(crystal_a, crystal_b) >= 0
        return np.asarray(good)

    def with_mode(self, mode: str, max_ring_difference: int) -> Scanner:
        """Return the same detector with another acceptance."""
        return replace(self, mode=mode, max_ring_difference=max_ring_difference)


def _check_slots(scanner: Scanner) -> None:
    """Refuse crystals outside the room or with an index outside its table."""
    if np.abs(scanner.crystal_position_mm).max() > _MAX_MM:
        raise InputError(
            f"scanner {scanner.name!r}: crystals must lie within {_MAX_MM:g} mm of its centre, "
            f"but one lies at {np.abs(scanner.crystal_position_mm).max():g} mm; correct the "
            "scanner description"
        )
    for what, slot, n in (
        ("n_rings", scanner.crystal_ring, scanner.n_rings),
        ("n_transaxial", scanner.crystal_transaxial, scanner.n_transaxial),
    ):
        if not _is_count(n, 1, MAX_CRYSTALS) or slot.min() < 0 or slot.max() >= n:
            raise InputError(
                f"scanner {scanner.name!r}: index slots must lie within 0 and {what}, but they "
                f"run from {slot.min()} to {slot.max()} of {n!r:.40}; correct the scanner "
                "description"
            )


def _check_numbers(scanner: Scanner) -> None:
    """Refuse sizes and constants that no scanner has, such as NaN."""
    sizes = list[object](scanner.crystal_size_mm) + list[object](scanner.crystal_pitch_mm)
    window = list(scanner.energy_window_kev)
    wanted = {
        "max_ring_difference": _is_count(scanner.max_ring_difference, 0, MAX_CRYSTALS),
        "crystal_size_mm and crystal_pitch_mm": len(sizes) == 5
        and all(_is_number(v, 0.0, _MAX_MM, above=True) for v in sizes),
        "energy_window_kev": len(window) == 2
        and all(_is_number(v, 0.0, 1e6) for v in window)
        and window[0] < window[1],
    }
    for name, most, above in (
        ("fov_radius_mm", _MAX_MM, True), ("doi_mm", _MAX_MM, False),
        ("stopping_per_mm", 1e3, True), ("window_efficiency", 1.0, True),
        ("energy_resolution", 10.0, False), ("background_singles_hz", 1e12, False),
    ):  # fmt: skip
        wanted[name] = _is_number(getattr(scanner, name), 0.0, most, above=above)
    if wrong := [name for name, is_right in wanted.items() if not is_right]:
        found = [getattr(scanner, name) for name in wrong[0].split(" and ")]
        raise InputError(
            f"scanner {scanner.name!r}: {wrong[0]} must be a size that a scanner can have, but "
            f"it is {', '.join(f'{value!r:.60}' for value in found)}; correct the scanner "
            "description"
        )


def build_scanner(
    *,
    name: str,
    layout: BlockLayout,
    crystal_size_mm: tuple[float, float, float],
    crystal_pitch_mm: tuple[float, float],
    max_ring_difference: int,
    fov_radius_mm: float,
    tof: TofModel,
    doi_mm: float = 7.0,
    stopping_per_mm: float = 0.083,
    window_efficiency: float = 1.0,
    energy_window_kev: tuple[float, float] = (435.0, 585.0),
    energy_resolution: float = 0.10,
    background_singles_hz: float = 0.0,
    profile_transaxial: tuple[float, ...] = (),
    profile_axial: tuple[float, ...] = (),
    mode: str = "",
) -> Scanner:
    """Lay crystals on flat blocks and number them ring by ring.

    Crystal numbers run over real crystals only: transaxially fastest, then from ring to ring
    with rising z.

    Parameters
    ----------
    layout
        Blocks, units and gaps.
    profile_transaxial, profile_axial
        Relative efficiency by place across a block and by ring within a unit; empty for ones.
    name, crystal_size_mm, crystal_pitch_mm, max_ring_difference, fov_radius_mm, tof, doi_mm
        See :class:`Scanner`.
    stopping_per_mm, window_efficiency, energy_window_kev, energy_resolution
        See :class:`Scanner`.
    background_singles_hz, mode
        See :class:`Scanner`.

    Raises
    ------
    InputError
        If the blocks do not fit on the polygon or a profile has the wrong length.
    """
    face_mm = 2.0 * layout.front_radius_mm * math.tan(math.pi / layout.n_blocks)
    if layout.n_crystals * crystal_pitch_mm[0] > face_mm + 1e-6:
        raise InputError(
            f"scanner {name!r}: a block's crystals must fit on its side of the polygon "
            f"({face_mm:.2f} mm), but {layout.n_crystals} crystals of pitch "
            f"{crystal_pitch_mm[0]:g} mm need {layout.n_crystals * crystal_pitch_mm[0]:.2f}; "
            "correct pitch_mm, n_blocks or front_radius_mm"
        )
    block, k = (
        i.ravel()
        for i in np.meshgrid(
            np.arange(layout.n_blocks), np.arange(layout.n_crystals), indexing="ij"
        )
    )
    phi = layout.first_block_rad + layout.sense * 2 * np.pi * block / layout.n_blocks
    normal = np.stack((np.cos(phi), np.sin(phi), np.zeros_like(phi)), axis=1)
    tangent = layout.sense * np.stack((-np.sin(phi), np.cos(phi), np.zeros_like(phi)), axis=1)
    across_mm = (k - (layout.n_crystals - 1) / 2.0) * crystal_pitch_mm[0]
    one_ring = normal * (layout.front_radius_mm + doi_mm) + tangent * across_mm[:, None]

    unit, row = (
        i.ravel()
        for i in np.meshgrid(
            np.arange(layout.n_units), np.arange(layout.n_rings_per_unit), indexing="ij"
        )
    )
    ring = unit * (layout.n_rings_per_unit + layout.n_gap_rings) + row
    z_mm = (ring - (layout.n_rings - 1) / 2.0) * crystal_pitch_mm[1]

    position = np.tile(one_ring, (ring.size, 1))
    position[:, 2] = np.repeat(z_mm, block.size)
    profile = _profile(name, "profile_transaxial", profile_transaxial, layout.n_crystals)[k]
    profile_ring = _profile(name, "profile_axial", profile_axial, layout.n_rings_per_unit)[row]
    return Scanner(
        name=name,
        crystal_position_mm=position.astype(np.float32),
        crystal_normal=np.tile(normal, (ring.size, 1)).astype(np.float32),
        crystal_ring=np.repeat(ring, block.size).astype(np.int32),
        crystal_transaxial=np.tile(
            block * (layout.n_crystals + layout.n_virtual) + k, ring.size
        ).astype(np.int32),
        n_rings=layout.n_rings,
        n_transaxial=layout.n_transaxial,
        crystal_size_mm=crystal_size_mm,
        crystal_pitch_mm=crystal_pitch_mm,
        max_ring_difference=max_ring_difference,
        fov_radius_mm=fov_radius_mm,
        doi_mm=doi_mm,
        stopping_per_mm=stopping_per_mm,
        window_efficiency=window_efficiency,
        energy_window_kev=energy_window_kev,
        energy_resolution=energy_resolution,
        background_singles_hz=background_singles_hz,
        tof=tof,
        crystal_profile=(profile_ring[:, None] * profile[None, :]).ravel().astype(np.float32),
        mode=mode,
        layout=layout,
    )


def _profile(scanner: str, key: str, values: tuple[float, ...], n: int) -> NDArray[np.float64]:
    if not values:
        return np.ones(n)
    if len(values) != n:
        raise InputError(
            f"scanner {scanner!r}: {key} needs {n} values, but it has {len(values)}; "
            "give one a crystal (or ring) of the block (or unit)"
        )
    return np.asarray(values, dtype=np.float64)
