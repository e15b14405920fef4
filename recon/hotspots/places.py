"""Which tissue and which part of the body a label-map region belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATTERNS: tuple[tuple[str, str, str], ...] = (
    # pattern, tissue, location; names as TotalSegmentator writes them, and plain ones
    (r"vertebra(e)?_.+|spine", "bone", "spine"),
    (r"rib_.+|ribs?|sternum|scapula.*|clavicula.*|costal_cartilages", "bone", "thorax"),
    (r"hip_.+|hip|pelvis|sacrum|ilium.*|pubis.*|ischium.*", "bone", "pelvis"),
    (r"femur.*|tibia.*|fibula.*|patella.*", "bone", "lower_extremity"),
    (r"lymph_nodes?_(thorax|thoracic|mediastinal|hilar|axillary).*", "lymph_node", "thorax"),
    (r"lymph_nodes?_(pelvis|pelvic|obturator|external_iliac).*", "lymph_node", "pelvis"),
    (r"lymph_nodes?_(internal_iliac|presacral|mesorectal).*", "lymph_node", "pelvis"),
    (r"lymph_nodes?_(para_?aortic|retroperitoneal).*", "lymph_node", "para_aortic"),
    (r"lymph_nodes?_common_iliac.*", "lymph_node", "common_iliac"),
)


@dataclass(frozen=True)
class Place:
    """Where a region is; empty text where its name does not say.

    Parameters
    ----------
    tissue, location
        As in :mod:`recon.hotspots.cases`.
    level
        Vertebra (``"L5"``) or rib (``"7"``).
    side
        ``"left"``, ``"right"`` or "".
    """

    tissue: str = ""
    location: str = ""
    level: str = ""
    side: str = ""


def place_of(region: str) -> Place:
    """Read tissue, location, level and side from a region's name.

    Examples
    --------
    >>> place_of("vertebrae_L5")
    Place(tissue='bone', location='spine', level='L5', side='')
    >>> place_of("rib_left_7").side
    'left'
    """
    name = plain_name(region)
    side = next((s for s in ("left", "right") if s in name.split("_")), "")
    for pattern, tissue, location in _PATTERNS:
        if re.fullmatch(pattern, name):
            level = ""
            if found := re.fullmatch(r"vertebra(?:e)?_([ctls]\d+)", name):
                level = found[1].upper()
            elif found := re.fullmatch(r"rib_(?:left_|right_)?(\d+)", name):
                level = found[1]
            return Place(tissue, location, level, side)
    return Place(side=side)


def plain_name(region: str) -> str:
    """Make names comparable: "Kidney left" and "kidney_left" are one."""
    return region.strip().lower().replace(" ", "_").replace("-", "_")


def without_side(region: str) -> str:
    """Drop the side from a name, so that both sides compare equal."""
    return "_".join(p for p in plain_name(region).split("_") if p not in ("left", "right"))
