"""The phantoms that come with the simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence

from listmode.simulate.shapes import Phantom, Shape, Vector

__all__ = [
    "Phantom",
    "Shape",
    "asymmetric_phantom",
    "cylinder_phantom",
    "image_quality_phantom",
    "line_phantom",
    "point_phantom",
    "pregnant_phantom",
    "scatter_phantom",
    "torso_phantom",
]

WATER_PER_CM = 0.096  # 511 keV, NIST XCOM
SOFT, BONE, MARROW, SKULL, LUNG = 0.096, 0.13, 0.125, 0.13, 0.026
LOW_DOSE_BQ_ML_PER_SUV = 300.0 * 2.0 ** (-3600.0 / 6586.2)  # 0.3 MBq/kg, 60 min before


def point_phantom(
    position_mm: Vector = (0.0, 0.0, 0.0), *, activity_bq: float = 1e6, radius_mm: float = 0.25
) -> Phantom:
    """Make a small sphere of activity in air."""
    volume_ml = 4.0 / 3.0 * math.pi * radius_mm**3 / 1000.0
    sphere = Shape(
        "point", "point", "ellipsoid", position_mm, (radius_mm,) * 3,
        activity_bq / volume_ml, 0.0,
    )  # fmt: skip
    return Phantom("point", (sphere,))


def line_phantom(
    *,
    length_mm: float = 700.0,
    radius_mm: float = 1.0,
    position_mm: Vector = (0.0, 0.0, 0.0),
    activity_bq: float = 1e6,
) -> Phantom:
    """Make a line of activity along z in air: NEMA NU 2's sensitivity source, no sleeves."""
    volume_ml = math.pi * radius_mm**2 * length_mm / 1000.0
    line = Shape(
        "line", "line", "cylinder", position_mm, (radius_mm, radius_mm, length_mm / 2.0),
        activity_bq / volume_ml, 0.0,
    )  # fmt: skip
    return Phantom("line", (line,))


def cylinder_phantom(
    *,
    radius_mm: float = 100.0,
    length_mm: float = 300.0,
    activity_bq_ml: float = 5000.0,
    mu_per_cm: float = WATER_PER_CM,
    centre_mm: Vector = (0.0, 0.0, 0.0),
    radius_y_mm: float | None = None,
) -> Phantom:
    """Make a uniform cylinder (elliptic if ``radius_y_mm`` is given) along z."""
    semi = (radius_mm, radius_mm if radius_y_mm is None else radius_y_mm, length_mm / 2.0)
    shape = Shape(
        "cylinder", "cylinder", "cylinder", centre_mm, semi, activity_bq_ml, mu_per_cm
    )
    return Phantom("cylinder", (shape,), weight_kg=shape.volume_ml / 1000.0)


def scatter_phantom(*, activity_bq: float = 1e6, length_mm: float = 700.0) -> Phantom:
    """Make NEMA NU 2's scatter phantom: a 203 mm plastic rod with a line 45 mm off centre."""
    line = 4.0
    volume_ml = math.pi * line**2 / 4.0 * length_mm / 1000.0
    return Phantom(
        "scatter",
        (
            Shape("rod", "rod", "cylinder", (0, 0, 0), (101.5, 101.5, 350.0), 0.0, 0.096),
            Shape(
                "line", "line", "cylinder", (0, 45, 0), (line / 2, line / 2, length_mm / 2),
                activity_bq / volume_ml, 0.096, "rod",
            ),
        ),
        weight_kg=22.0,
    )  # fmt: skip


def asymmetric_phantom(*, activity_bq_ml: float = 20_000.0) -> Phantom:
    """Make an object that no mirror or turn maps onto itself, for tests of signs."""
    return Phantom(
        "asymmetric",
        (
            Shape(
                "body", "body", "cylinder", (0, 0, 0), (150, 110, 200),
                activity_bq_ml / 10, SOFT,
            ),
            Shape(
                "left", "left", "ellipsoid", (90, 0, 0), (12, 12, 12),
                activity_bq_ml, SOFT, "body",
            ),
            Shape(
                "back", "back", "ellipsoid", (0, 60, 50), (14, 14, 14),
                activity_bq_ml, SOFT, "body",
            ),
            Shape(
                "head", "head", "ellipsoid", (-40, -30, 130), (16, 16, 16),
                activity_bq_ml, SOFT, "body",
            ),
        ),
        weight_kg=20.0,
    )  # fmt: skip


def image_quality_phantom(
    *,
    background_bq_ml: float = 5300.0,
    contrast: float = 4.0,
    diameters_mm: Sequence[float] = (10, 13, 17, 22, 28, 37),
    length_mm: float = 180.0,
) -> Phantom:
    """Make an image-quality phantom: six hot spheres on a circle of 57.2 mm and a lung rod.

    After NEMA NU 2-2018 section 7; its body outline is an ellipse of the same width and height
    here (300 x 230 mm).
    """
    shapes = [
        Shape(
            "body", "background", "cylinder", (0, 0, 0), (150, 115, length_mm / 2),
            background_bq_ml, WATER_PER_CM,
        ),
        Shape(
            "lung", "lung", "cylinder", (0, 0, 0), (22, 22, length_mm / 2),
            0.0, LUNG, "body",
        ),
    ]  # fmt: skip
    for i, d in enumerate(diameters_mm):
        phi = 2.0 * math.pi * i / len(diameters_mm)
        name = f"sphere_{d:g}mm"
        shapes.append(
            Shape(
                name, name, "ellipsoid", (57.2 * math.cos(phi), 57.2 * math.sin(phi), 0.0),
                (d / 2, d / 2, d / 2), contrast * background_bq_ml, WATER_PER_CM, "body",
            )
        )  # fmt: skip
    return Phantom("image quality", tuple(shapes), weight_kg=9.7)


def torso_phantom(*, bq_ml_per_suv: float = LOW_DOSE_BQ_ML_PER_SUV) -> Phantom:
    """Make a torso of 340 x 240 x 560 mm with six organs: two warm, two hot, two near air.

    Liver, spleen, kidneys, heart, lungs and bladder as ellipsoids of textbook size with the FDG
    uptake of :func:`pregnant_phantom`; the spleen's is a little below the liver's.
    """
    soft = SOFT
    return Phantom(
        "torso",
        (
            _cylinder("torso", "soft_tissue", (0, 0), (170, 120), (-280, 280), 0.7, soft),
            _ellipsoid("left_lung", "lung", (85, 0, 170), (60, 85, 95), 0.45, LUNG, "torso"),
            _ellipsoid("right_lung", "lung", (-85, 0, 170), (60, 85, 95), 0.45, LUNG, "torso"),
            _ellipsoid("heart", "heart", (22, -60, 55), (38, 36, 40), 3.0, soft, "torso"),
            _ellipsoid("liver", "liver", (-75, -15, -10), (80, 85, 75), 1.9, soft, "torso"),
            _ellipsoid("spleen", "spleen", (105, 50, 20), (35, 38, 50), 1.6, soft, "torso"),
            _ellipsoid("kidney_1", "kidney", (65, 60, -95), (32, 30, 58), 3.0, soft, "torso"),
            _ellipsoid("kidney_2", "kidney", (-65, 60, -145), (32, 30, 58), 3.0, soft, "torso"),
            _ellipsoid("bladder", "bladder", (0, -40, -225), (40, 35, 35), 10.0, soft, "torso"),
        ),
        physiological=frozenset({"liver", "kidney", "heart", "spleen", "bladder", "lung"}),
        weight_kg=35.0,
        unit="SUV",
        bq_ml_per_suv=bq_ml_per_suv,
    )  # fmt: skip


def pregnant_phantom(
    *,
    bladder_suv: float = 10.0,
    bladder_ml: float = 148.0,
    filling_ml_min: float = 5.0,
    bq_ml_per_suv: float = LOW_DOSE_BQ_ML_PER_SUV,
    has_hotspots: bool = True,
) -> Phantom:
    """Make a woman in week 36 of pregnancy with an Ewing sarcoma of the left hip.

    Head first and supine, bladder 280 mm caudal of the scanner's centre, arms at the sides.
    The ellipsoids are this project's own.

    Parameters
    ----------
    bladder_suv, bladder_ml, filling_ml_min
        Bladder: SUV, volume at tick zero in mL, filling in mL/min.
    bq_ml_per_suv
        Bq/mL at tick zero of one SUV; the default belongs to 0.3 MBq/kg 60 min before.
        :func:`listmode.simulate.generate.simulate_scan` sets it to that of its dose.
    has_hotspots
        Whether the tumour and the metastases are there.

    Notes
    -----
    Uptake of FDG at 60 min and attenuation at 511 keV: liver, Kim et al. 2018, doi
    10.5812/iranjradiol.84881; cerebellum, doi 10.1007/s11307-006-0075-y; fetus and placenta,
    Zanotti-Fregonara et al. 2012, Health Phys 102:217; mu, PMC3572388 table 2 and PMC3006167
    table 1. Masses and other uptake are textbook ranges.
    """
    grow = (bladder_ml / (4.0 / 3.0 * math.pi * 38.0 * 30.0 * 31.0 / 1000.0)) ** (1.0 / 3.0)
    bladder = Shape(
        "bladder", "bladder", "ellipsoid", (0.0, -48.0, -311.0 + 31.0 * grow),
        (38.0 * grow, 30.0 * grow, 31.0 * grow), bladder_suv, SOFT, "pelvis",
    )  # fmt: skip
    shapes = (
        *_body(),
        *_skeleton(),
        *_organs(),
        *_uterus(),
        bladder,
        *(_hotspots() if has_hotspots else ()),
    )
    return Phantom(
        "pregnant",
        shapes,
        physiological=frozenset(
            {"brain", "myocardium", "blood", "liver", "kidney", "bladder", "placenta",
             "fetus", "fetal_ventricle", "uterus"}
        ),
        weight_kg=74.0,
        unit="SUV",
        bq_ml_per_suv=bq_ml_per_suv,
        filling_shape="bladder",
        filling_ml_min=filling_ml_min,
    )  # fmt: skip


def _cylinder(
    name: str, label: str, centre: tuple[float, float], semi: tuple[float, float],
    z: tuple[float, float], suv: float, mu: float, parent: str | None = None,
) -> Shape:  # fmt: skip
    middle, half = (z[0] + z[1]) / 2.0, (z[1] - z[0]) / 2.0
    return Shape(
        name, label, "cylinder", (*centre, middle), (*semi, half), suv, mu, parent
    )  # fmt: skip


def _ellipsoid(
    name: str, label: str, centre: Vector, semi: Vector, suv: float, mu: float, parent: str
) -> Shape:
    return Shape(name, label, "ellipsoid", centre, semi, suv, mu, parent)


def _body() -> tuple[Shape, ...]:
    soft = (0.7, SOFT)
    pieces = [
        Shape(
            "table", "table", "box", (0.0, 123.0, 0.0), (215.0, 11.0, 900.0),
            0.0, 0.015, is_fixed=True,
        ),
        _cylinder("chest", "soft_tissue", (0, 0), (175, 110), (60, 260), *soft),
        _cylinder("abdomen", "soft_tissue", (0, -35), (185, 145), (-230, 60), *soft),
        _cylinder("pelvis", "soft_tissue", (0, -10), (180, 120), (-340, -230), *soft),
        Shape("head", "soft_tissue", "ellipsoid", (0, 5, 400), (75, 95, 110), *soft),
        _cylinder("neck", "soft_tissue", (0, 15), (55, 55), (260, 289.8), *soft),
    ]  # fmt: skip
    for side, sign in (("left", 1), ("right", -1)):
        pieces += [
            _cylinder(f"{side}_arm", "soft_tissue", (sign * 230, 30), (42, 42),
                      (-250, 250), *soft),
            _cylinder(f"{side}_thigh", "soft_tissue", (sign * 90, 10), (80, 80),
                      (-700, -340), *soft),
            _cylinder(f"{side}_leg", "soft_tissue", (sign * 90, 30), (50, 50),
                      (-1100, -700), *soft),
        ]  # fmt: skip
    return tuple(pieces)


def _skeleton() -> tuple[Shape, ...]:
    pieces = [
        _cylinder("spine_chest", "bone", (0, 75), (20, 20), (60, 250), 1.3, MARROW, "chest"),
        _cylinder("spine", "bone", (0, 75), (20, 20), (-230, 60), 1.3, MARROW, "abdomen"),
        _cylinder("sacrum", "bone", (0, 75), (26, 20), (-330, -230), 1.2, MARROW, "pelvis"),
        _ellipsoid("skull", "bone", (0, 5, 410), (66, 80, 76), 0.8, SKULL, "head"),
    ]
    for side, sign in (("left", 1), ("right", -1)):
        pieces += [
            _ellipsoid(f"{side}_ilium", "bone", (sign * 112, 35, -255), (18, 38, 24),
                       1.2, BONE, "pelvis"),
            _ellipsoid(f"{side}_hip", "bone", (sign * 90, 5, -308), (24, 24, 24),
                       1.0, BONE, "pelvis"),
            _cylinder(f"{side}_femur", "bone", (sign * 90, 5), (14, 14), (-700, -340),
                      0.8, BONE, f"{side}_thigh"),
        ]  # fmt: skip
    return tuple(pieces)


def _organs() -> tuple[Shape, ...]:
    return (
        _ellipsoid("brain", "brain", (0, 5, 410), (60, 74, 70), 8.0, SOFT, "skull"),
        _ellipsoid("left_lung", "lung", (90, -2, 165), (62, 80, 85), 0.45, LUNG, "chest"),
        _ellipsoid("right_lung", "lung", (-90, -2, 165), (62, 80, 85), 0.45, LUNG, "chest"),
        _ellipsoid("heart", "myocardium", (10, -62, 112), (38, 32, 40), 4.0, SOFT, "chest"),
        _ellipsoid("heart_blood", "blood", (10, -62, 112), (28, 22, 30), 1.8, SOFT, "heart"),
        _ellipsoid("liver", "liver", (-72, -35, 6), (92, 75, 51), 1.9, SOFT, "abdomen"),
        _ellipsoid("left_kidney", "kidney", (68, 62, -62), (30, 25, 55), 3.0, SOFT, "abdomen"),
        _ellipsoid(
            "right_kidney", "kidney", (-68, 62, -62), (30, 25, 55), 3.0, SOFT, "abdomen"
        ),
    )


def _uterus() -> tuple[Shape, ...]:
    return (
        _ellipsoid("uterus", "uterus", (10, -77, -126), (105, 85, 99), 0.5, SOFT, "abdomen"),
        _ellipsoid("placenta", "placenta", (10, -12, -126), (58, 15, 58), 1.3, SOFT, "uterus"),
        _ellipsoid("fetus", "fetus", (8, -88, -80), (70, 50, 48), 0.85, SOFT, "uterus"),
        _ellipsoid("fetal_head", "fetus", (8, -82, -174), (44, 44, 44), 0.85, SOFT, "uterus"),
        _ellipsoid("fetal_brain", "fetus", (8, -82, -174), (38, 38, 38),
                   1.0, SOFT, "fetal_head"),
        _ellipsoid("fetal_ventricle_1", "fetal_ventricle", (-3, -88, -84), (7.5, 8, 12),
                   3.5, SOFT, "fetus"),
        _ellipsoid("fetal_ventricle_2", "fetal_ventricle", (19, -88, -84), (7.5, 8, 12),
                   3.5, SOFT, "fetus"),
    )  # fmt: skip


def _hotspots() -> tuple[Shape, ...]:
    return (
        _ellipsoid("hip_tumour", "hip_tumour", (96, -52, -285), (17, 15, 19),
                   2.3, SOFT, "pelvis"),
        _ellipsoid("iliac_node", "iliac_node", (62, -40, -262), (6, 6, 6), 7.0, SOFT, "pelvis"),
        _ellipsoid("bone_lesion", "bone_lesion", (0, 75, -20), (9, 9, 9), 8.0, MARROW, "spine"),
        _ellipsoid("chest_node", "chest_node", (0, 15, 195), (6, 6, 6), 5.0, SOFT, "chest"),
        _ellipsoid("lung_base_lesion", "lung_base_lesion", (-92, 0, 96), (8, 8, 8),
                   5.0, SOFT, "right_lung"),
        _ellipsoid("liver_lesion", "liver_lesion", (-95, -40, 8), (10, 10, 10),
                   6.0, SOFT, "liver"),
    )  # fmt: skip
