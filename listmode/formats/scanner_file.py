"""Scanner descriptions: the presets that come with stillpet and the user's own TOML files."""

from __future__ import annotations

import math
import tomllib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from listmode.errors import InputError
from listmode.scanner import BlockLayout, Scanner, TofModel, build_scanner

_MAX_BYTES = 1 << 20


def list_presets() -> list[str]:
    """Name the scanner presets."""
    folder = resources.files("listmode") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if ".toml" in f.name)


def load_scanner(name_or_path: str | Path, mode: str | None = None) -> Scanner:
    """Load a scanner by its preset name or from a TOML file.

    Parameters
    ----------
    name_or_path
        A preset (see :func:`list_presets`) or the path of a TOML file of the same form.
    mode
        Acquisition mode named in the description; its default mode if not given. A name may
        carry the mode as well: ``"quadra-HS"``.

    Raises
    ------
    InputError
        If there is no such preset, file or mode, or a key is missing or wrong.

    Examples
    --------
    >>> load_scanner("quadra", "HS").max_ring_difference
    85
    """
    text = str(name_or_path)
    stem, _, suffix = text.partition("-")
    if text in list_presets() or stem in list_presets():
        if suffix and mode is None:
            mode = suffix
        return _load_preset(stem, mode)
    path = Path(name_or_path)
    if path.suffix != ".toml" or not path.is_file():
        raise InputError(
            f"a scanner must be a preset ({', '.join(list_presets())}) or a TOML file, but "
            f"{text!r} is neither; choose one of these"
        )
    return _parse(_read_text(path), f"file {path.name!r}", mode)


@lru_cache(maxsize=8)
def _load_preset(name: str, mode: str | None) -> Scanner:
    """Load a preset; it never changes, and a scanner is a value, so that it is made once."""
    content = (resources.files("listmode") / "presets" / f"{name}.toml").read_text("utf-8")
    return _parse(content, f"preset {name!r}", mode)


def _parse(content: str, source: str, mode: str | None) -> Scanner:
    try:
        table = tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError
        raise InputError(
            f"scanner {source} must be TOML, but it is not: {str(error)[:120]}; correct that "
            "line"
        ) from None
    return _scanner_from_table(table, source, mode)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"a scanner file must be a readable text, but {path.name!r} is not: "
            f"{str(error)[:120]}; correct it or compare it with a preset"
        ) from None


def _scanner_from_table(table: dict[str, Any], source: str, mode: str | None) -> Scanner:
    try:
        modes = {str(k): int(v) for k, v in table["modes"].items()}
        if not modes:
            raise KeyError("modes")
        chosen = mode or str(table.get("default_mode", next(iter(modes))))
        if chosen not in modes:
            raise InputError(
                f"a mode must be the scanner's own: {source} knows the modes "
                f"{', '.join(modes)}, but {chosen!r} was asked for; choose one of these"
            )
        layout = dict(table["layout"])
        layout["first_block_rad"] = math.radians(layout.pop("first_block_deg", 0.0))
        crystal, energy, tof = table["crystal"], table["energy"], table["tof"]
        profile = table.get("profile", {})
        return build_scanner(
            name=str(table["name"]),
            layout=BlockLayout(**layout),
            crystal_size_mm=_floats(crystal["size_mm"], 3),
            crystal_pitch_mm=_floats(crystal["pitch_mm"], 2),
            doi_mm=float(crystal["doi_mm"]),
            stopping_per_mm=float(crystal["stopping_per_mm"]),
            window_efficiency=float(crystal["window_efficiency"]),
            background_singles_hz=float(crystal.get("background_singles_hz", 0.0)),
            energy_window_kev=_floats(energy["window_kev"], 2),
            energy_resolution=float(energy["resolution"]),
            tof=TofModel(int(tof["n_bins"]), float(tof["bin_width_ps"]), float(tof["fwhm_ps"])),
            fov_radius_mm=float(table["acceptance"]["fov_radius_mm"]),
            profile_transaxial=tuple(profile.get("transaxial", ())),
            profile_axial=tuple(profile.get("axial", ())),
            max_ring_difference=modes[chosen],
            mode=chosen,
        )
    except KeyError as error:
        raise InputError(
            f"scanner {source} must have the key {error.args[0]!r}, but it is missing; "
            "compare it with a preset"
        ) from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"scanner {source} must be like a preset, but it holds a value of the wrong kind: "
            f"{error}; compare it with a preset"
        ) from None


def _floats(values: list[float], n: int) -> Any:
    if len(values) != n:
        raise InputError(
            f"a scanner's sizes need {n} numbers, but there are {len(values)}: {values}; "
            "compare the file with a preset"
        )
    return tuple(float(v) for v in values)
