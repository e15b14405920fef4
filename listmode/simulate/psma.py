"""A man after injection of a PSMA tracer, with foci of uptake at named places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from listmode.errors import InputError
from listmode.simulate.phantom import BONE, MARROW, SOFT
from listmode.simulate.shapes import Kind, Phantom, Shape, Vector

SPOT_RADIUS_MM = 8.0  # of the largest focus, and of the spot that stands for a place in health
JITTER_MM = 1.5  # keeps foci from sitting alike on a voxel grid
BODY_SUV, BONE_SUV = 0.6, 1.0
BODY = "body"


@dataclass(frozen=True)
class Region:
    """A named part of the body that foci may lie in.

    Parameters
    ----------
    tissue, location
        As in a table of cases.
    kind, centre_mm, semi_mm, mu_per_cm
        Its shape; see :class:`~listmode.simulate.shapes.Shape`.
    places_mm
        Where foci may lie, from its centre, mm.
    """

    tissue: str
    location: str
    kind: Kind
    centre_mm: Vector
    semi_mm: Vector
    mu_per_cm: float
    places_mm: tuple[Vector, ...]


def _regions() -> dict[str, Region]:
    regions: dict[str, Region] = {}
    for k, name in enumerate(("L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9", "T8")):
        z = -50.0 + 30.0 * k if k < 5 else 100.0 + 28.0 * (k - 5)
        regions[f"vertebrae_{name}"] = Region(
            "bone", "spine", "cylinder", (0, 70, z), (20, 20, 12.5), MARROW, ((0, 0, 0),)
        )
    regions["sacrum"] = Region(
        "bone", "pelvis", "cylinder", (0, 75, -104), (28, 18, 36), MARROW,
        ((0, 0, 19), (0, 0, -19)),
    )  # fmt: skip
    for side, s in (("left", 1.0), ("right", -1.0)):
        regions |= {
            f"{name}_{side}": Region(
                tissue, location, kind, (s * x, y, z), semi, mu, tuple(places)
            )
            for name, tissue, location, kind, (x, y, z), semi, mu, places in _SIDED
        }
        for k in range(5):
            regions[f"rib_{side}_{11 - k}"] = Region(
                "bone", "thorax", "box", (s * 146.0, 0.0, 108.0 + 26.0 * k), (10, 36, 10),
                BONE, ((0, -22, 0), (0, 22, 0)),
            )  # fmt: skip
    regions["lymph_nodes_mesorectal"] = Region(
        "lymph_node", "pelvis", "cylinder", (0, 34, -150), (13, 12, 24), SOFT,
        ((0, 0, -12), (0, 0, 12)),
    )  # fmt: skip
    return regions


def _along_z(*offsets_mm: float) -> tuple[Vector, ...]:
    return tuple((0.0, 0.0, z) for z in offsets_mm)


_Row = tuple[str, str, str, Kind, Vector, Vector, float, tuple[Vector, ...]]
_SIDED: tuple[_Row, ...] = (
    ("ilium", "bone", "pelvis", "box", (98, 24, -75), (14, 36, 42), BONE,
     ((0, -22, 0), (0, 22, 0), (0, 0, -30), (0, 0, 30))),
    ("hip", "bone", "pelvis", "cylinder", (86, 18, -152), (20, 22, 28), BONE,
     _along_z(-14, 14)),
    ("femur", "bone", "lower_extremity", "cylinder", (92, 5, -214), (14, 14, 30), BONE,
     _along_z(-12, 12)),
    ("lymph_nodes_external_iliac", "lymph_node", "pelvis", "cylinder", (64, -38, -112),
     (12, 16, 40), SOFT, _along_z(-24, 0, 24)),
    ("lymph_nodes_internal_iliac", "lymph_node", "pelvis", "cylinder", (40, 36, -112),
     (12, 12, 36), SOFT, _along_z(-22, 0, 22)),
    ("lymph_nodes_common_iliac", "lymph_node", "common_iliac", "cylinder", (36, 28, -38),
     (12, 12, 34), SOFT, _along_z(-22, 0, 22)),
    ("lymph_nodes_para_aortic", "lymph_node", "para_aortic", "cylinder", (28, 26, 52),
     (12, 12, 54), SOFT, _along_z(-40, -20, 0, 20, 40)),
    ("lymph_nodes_thoracic", "lymph_node", "thorax", "cylinder", (30, 15, 192),
     (12, 14, 34), SOFT, _along_z(-22, 0, 22)),
)  # fmt: skip

REGIONS: Mapping[str, Region] = _regions()
"""Every region that foci may lie in, by its name in the label map."""


@dataclass(frozen=True)
class Place:
    """A place for a focus: its region and its centre in the scanner's frame, mm."""

    region: str
    centre_mm: Vector


@dataclass(frozen=True)
class Focus:
    """A sphere of uptake.

    Parameters
    ----------
    place
        Where it lies.
    diameter_mm
        Its size, mm; at most 16 mm fits every region.
    suv
        True concentration, SUV.
    reference_suv
        Concentration at the mirrored place on the other side; NaN leaves the body's own.
    """

    place: Place
    diameter_mm: float
    suv: float
    reference_suv: float = math.nan


def sphere_recovery(diameter_mm: float, fwhm_mm: float) -> float:
    """Give the peak that a blurred sphere keeps, as a share of its concentration.

    Notes
    -----
    The value at the centre of a sphere of radius R after an isotropic Gaussian of standard
    deviation s: erf(u) - 2 u exp(-u^2) / sqrt(pi) with u = R / (s sqrt 2), the integral of the
    Gaussian over the sphere (Kessler, Ellis and Eden, 1984, J Comput Assist Tomogr 8:514-522).

    Examples
    --------
    >>> round(sphere_recovery(100.0, 7.0), 6)
    1.0
    """
    u = diameter_mm / 2.0 * math.sqrt(4.0 * math.log(2.0)) / fwhm_mm
    return math.erf(u) - 2.0 * u * math.exp(-(u**2)) / math.sqrt(math.pi)


def draw_places(
    tissue: Sequence[str], location: Sequence[str], rng: np.random.Generator
) -> tuple[Place, ...]:
    """Draw a free place for each focus, away from the mirror image of another as far as can be.

    Parameters
    ----------
    tissue, location
        Of each focus, as in a table of cases.
    rng
        Source of chance.

    Raises
    ------
    InputError
        If a location has fewer places than foci.
    """
    taken: set[tuple[str, int]] = set()
    places = []
    for what, where in zip(tissue, location, strict=True):
        known = [
            (name, k)
            for name, region in REGIONS.items()
            if (region.tissue, region.location) == (what, where)
            for k in range(len(region.places_mm))
        ]
        free = [slot for slot in known if slot not in taken]
        if not free:
            raise InputError(
                f"foci need a place each, but the phantom has {len(known)} for {what} in "
                f"{where} and more were asked for; take fewer"
            )
        alone = [slot for slot in free if (_other_side(slot[0]), slot[1]) not in taken]
        name, k = (alone or free)[rng.integers(len(alone or free))]
        taken.add((name, k))
        centre = np.add(REGIONS[name].centre_mm, REGIONS[name].places_mm[k])
        x, y, z = (float(v) for v in centre + rng.uniform(-JITTER_MM, JITTER_MM, 3))
        places.append(Place(name, (x, y, z)))
    return tuple(places)


def _other_side(region: str) -> str:
    swap = {"left": "right", "right": "left"}
    return "_".join(swap.get(part, part) for part in region.split("_"))


def psma_phantom(
    foci: Sequence[Focus],
    *,
    primary_suv: float | None = None,
    primary_diameter_mm: float = 20.0,
    bladder_suv: float = 20.0,
    bladder_ml: float = 150.0,
    filling_ml_min: float = 0.0,
    bone_suv: float = BONE_SUV,
    bq_ml_per_suv: float = 1.0,
    weight_kg: float = 80.0,
) -> Phantom:
    """Make a man from the upper thighs to the lower thorax, 530 mm long.

    Head first and supine, arms up. Liver, spleen, kidneys, duodenum, prostate and bladder have
    the uptake of health; the shapes are this project's own and simpler than a body (a rib is a
    short box, a station of lymph nodes a cylinder).

    Parameters
    ----------
    foci
        Spheres of uptake; at the mirrored place of each, if no other focus lies there, a
        sphere of 8 mm radius has its reference's concentration.
    primary_suv, primary_diameter_mm
        The primary tumour in the prostate; ``None`` for none.
    bladder_suv, bladder_ml, filling_ml_min
        Bladder: SUV, volume at tick zero in mL, filling in mL/min.
    bone_suv
        Of bones without a focus.
    bq_ml_per_suv, weight_kg
        See :class:`~listmode.simulate.shapes.Phantom`.

    Raises
    ------
    InputError
        If a focus reaches out of its region.

    Notes
    -----
    Uptake in health is of the order that Giesel et al., 2017, 10.1007/s00259-016-3573-4, report
    for PSMA-1007 (liver, spleen, kidney, duodenum); the bladder's is that of a tracer which
    leaves with the urine. Sizes are assumptions.
    """
    shapes = [
        Shape(BODY, "soft_tissue", "cylinder", (0, 0, 0), (170, 115, 265), BODY_SUV, SOFT)
    ]
    shapes += [
        Shape(name, name, r.kind, r.centre_mm, r.semi_mm,
              bone_suv if r.tissue == "bone" else BODY_SUV, r.mu_per_cm, BODY)
        for name, r in REGIONS.items()
    ]  # fmt: skip
    size = (3.0 * bladder_ml * 1000.0 / (4.0 * math.pi * 36.0 * 31.0 * 32.0)) ** (1.0 / 3.0)
    shapes += [
        *(
            Shape(name, label, "ellipsoid", centre, semi, suv, SOFT, BODY)
            for name, label, centre, semi, suv in _ORGANS
        ),
        Shape("bladder", "bladder", "ellipsoid", (0.0, -45.0, -167.0 + 32.0 * size),
              (36.0 * size, 31.0 * size, 32.0 * size), bladder_suv, SOFT, BODY),
    ]  # fmt: skip
    if primary_suv is not None:
        shapes.append(
            _sphere("primary", "prostate", (8, -12, -198), primary_diameter_mm / 2.0,
                    primary_suv, SOFT, "prostate")
        )  # fmt: skip
    shapes += _spots(foci)
    return Phantom(
        "psma",
        tuple(shapes),
        physiological=frozenset({"bladder", "liver", "spleen", "kidney", "duodenum"}),
        weight_kg=weight_kg,
        unit="SUV",
        bq_ml_per_suv=bq_ml_per_suv,
        filling_shape="bladder",
        filling_ml_min=filling_ml_min,
    )  # fmt: skip


_ORGANS: tuple[tuple[str, str, Vector, Vector, float], ...] = (
    ("liver", "liver", (-62, -38, 140), (48, 46, 46), 11.0),
    ("spleen", "spleen", (74, 28, 152), (26, 26, 34), 11.0),
    ("left_kidney", "kidney", (84, 55, 62), (24, 24, 45), 18.0),
    ("right_kidney", "kidney", (-84, 55, 40), (24, 24, 45), 18.0),
    ("duodenum", "duodenum", (0, -52, 40), (30, 22, 22), 10.0),
    ("prostate", "prostate", (0, -12, -198), (24, 20, 18), 3.0),
)


def _spots(foci: Sequence[Focus]) -> list[Shape]:
    shapes = []
    for k, focus in enumerate(foci):
        _check_inside(focus)
        region, (x, y, z) = focus.place.region, focus.place.centre_mm
        mu, there, mirrored = REGIONS[region].mu_per_cm, _other_side(region), (-x, y, z)
        is_alone = there != region and all(
            math.dist(mirrored, other.place.centre_mm) > 2.0 * SPOT_RADIUS_MM for other in foci
        )
        if is_alone and math.isfinite(focus.reference_suv):
            shapes.append(
                _sphere(f"reference_{k}", there, mirrored, SPOT_RADIUS_MM,
                        focus.reference_suv, mu, there)
            )  # fmt: skip
        radius_mm = focus.diameter_mm / 2.0
        shapes.append(
            _sphere(f"focus_{k}", region, (x, y, z), radius_mm, focus.suv, mu, region)
        )
    return shapes


def _check_inside(focus: Focus) -> None:
    region = REGIONS[focus.place.region]
    offset = np.abs(np.subtract(focus.place.centre_mm, region.centre_mm))
    semi, radius = np.array(region.semi_mm), focus.diameter_mm / 2.0
    if region.kind == "cylinder":
        fits = np.hypot(*(offset[:2] / (semi[:2] - radius))) <= 1.0 and (
            offset[2] + radius <= semi[2]
        )
    else:
        fits = bool((offset + radius <= semi).all())
    if not (fits and radius < semi.min()):
        raise InputError(
            f"a focus must lie inside its region, but one of {focus.diameter_mm:g} mm at "
            f"{focus.place.centre_mm} mm reaches out of {focus.place.region!r}; make it smaller"
        )


def _sphere(
    name: str, label: str, centre: Vector, radius_mm: float, suv: float, mu: float, parent: str
) -> Shape:
    return Shape(name, label, "ellipsoid", centre, (radius_mm,) * 3, suv, mu, parent)
