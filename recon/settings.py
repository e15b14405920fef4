"""Settings of the pipeline: one frozen dataclass a stage, read from one TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from listmode.errors import InputError
from listmode.motion import MotionSettings
from recon.bootstrap import count_lanes
from recon.corrections.scatter_grid import ScatterSettings
from recon.osem import OsemSettings
from recon.penalty import RelativeDifference
from recon.suv import SuvBy

T = TypeVar("T")


@dataclass(frozen=True)
class GridSettings:
    """The image grid.

    Parameters
    ----------
    voxel_mm
        Size of the cubic voxels, mm.
    radius_mm
        Half width of the grid in x and y, mm; ``None`` for the part of the scanner's field of
        view that a patient can fill (at most 272 mm: 165 voxels of 3.3 mm).
    length_mm
        Length of the grid along z, mm; ``None`` for the scanner's axial field of view.
    """

    voxel_mm: float = 3.3
    radius_mm: float | None = None
    length_mm: float | None = None

    def __post_init__(self) -> None:
        _check_range("grid.voxel_mm", self.voxel_mm, 0.5, 50.0)
        if self.radius_mm is not None:
            _check_range("grid.radius_mm", self.radius_mm, 1.0, 1000.0)
        if self.length_mm is not None:
            _check_range("grid.length_mm", self.length_mm, 1.0, 5000.0)


@dataclass(frozen=True)
class CorrectionSettings:
    """Which corrections go into the model of the counts.

    Parameters
    ----------
    randoms
        Randoms from the delayed stream, where the file has one.
    scatter
        Scatter by single-scatter simulation; needs a mu-map.
    scatter_rounds
        Rounds of coarse reconstruction and scatter estimate.
    mu_time_s
        Scan time whose pose the mu-map shows, s from tick zero; the map then follows the
        patient's shifts into the pose of the kept windows. ``None`` leaves it where it is.
    """

    randoms: bool = True
    scatter: bool = True
    scatter_rounds: int = 2
    mu_time_s: float | None = None

    def __post_init__(self) -> None:
        _check_range("corrections.scatter_rounds", self.scatter_rounds, 1, 5)


@dataclass(frozen=True)
class BootstrapSettings:
    """Replicates of resampled events: a standard deviation image and intervals of SUVmax.

    Parameters
    ----------
    n_replicates
        Rounded up to a multiple of eight; 0 for none.
    seed
        Of the draws.
    """

    n_replicates: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.n_replicates:
            count_lanes(self.n_replicates)


@dataclass(frozen=True)
class HotspotSettings:
    """How hotspots are found.

    Parameters
    ----------
    rule
        ``"fraction"`` of each hotspot's own maximum, fixed ``"suv"``, or ``"absolute"`` in the
        image's unit.
    threshold
        The fraction, SUV or value that belongs to the rule.
    floor
        Smallest maximum that seeds a hotspot under ``"fraction"``, SUV; where no SUV is known
        a tenth of the image's maximum takes its place.
    min_volume_ml
        Smaller regions are not listed, mL; where no SUV is known all are, since test objects
        may be points.
    min_sensitivity
        Slices whose mean sensitivity is below this share of the best one's are not searched:
        the ends of the field of view hold noise only.
    suv_by
        What SUV shares the activity over; others than ``"weight"`` need height and sex.
    """

    rule: Literal["fraction", "suv", "absolute"] = "fraction"
    threshold: float = 0.41
    floor: float = 2.5
    min_volume_ml: float = 0.3
    min_sensitivity: float = 0.1
    suv_by: SuvBy = "weight"

    def __post_init__(self) -> None:
        top = 1.0 if self.rule == "fraction" else 1e9
        _check_range("hotspots.threshold", self.threshold, 1e-6, top)
        _check_range("hotspots.floor", self.floor, 0.0, 1e9)
        _check_range("hotspots.min_volume_ml", self.min_volume_ml, 0.0, 1e6)
        _check_range("hotspots.min_sensitivity", self.min_sensitivity, 0.0, 0.9)


@dataclass(frozen=True)
class ReportSettings:
    """What the report shows.

    Parameters
    ----------
    suv_max
        Upper end of the grey scale, SUV; used for every picture of a scan with known activity.
    n_slices
        Most hotspots shown in axial slices.
    """

    suv_max: float = 7.0
    n_slices: int = 6

    def __post_init__(self) -> None:
        _check_range("report.suv_max", self.suv_max, 0.1, 1000.0)
        _check_range("report.n_slices", self.n_slices, 0, 40)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(
            f"setting {name} must lie in {low:g}-{high:g}, but it is {value:g}; correct it"
        )


def from_table(cls: type[T], table: dict[str, Any], name: str = "") -> T:
    """Build a settings dataclass from a parsed TOML table.

    Parameters
    ----------
    cls
        A dataclass whose fields are numbers, booleans, texts, tuples of them, literals,
        optional values or further dataclasses.
    table
        Keys and values; keys left out keep their default.
    name
        Where the table stands in the file, for messages.

    Raises
    ------
    InputError
        If a key is unknown or a value is of the wrong kind.

    Examples
    --------
    >>> from_table(GridSettings, {"voxel_mm": 4}).voxel_mm
    4.0
    """
    assert dataclasses.is_dataclass(cls)
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    where = f" of [{name}]" if name else ""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"settings{where} may hold {', '.join(known)}, but {key!r} is none of them"
                f"{hint or '; remove it'}"
            )
    values = {
        key: _convert(hints[key], value, f"{name}.{key}" if name else key)
        for key, value in table.items()
    }
    return cls(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """Give the value as the annotated type, or say what is wrong with it."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        assert isinstance(hint, type)
        return from_table(hint, value, name)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, name)
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_convert(k, v, name) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise InputError(
        f"setting {name} must be {_describe(hint)}, but it is {value!r}; correct it"
    )


def _convert_union(args: tuple[Any, ...], value: Any, name: str) -> Any:
    for arg in args:
        if dataclasses.is_dataclass(arg) and isinstance(value, dict):
            return _convert(arg, value, name)  # its own message says more than "one of these"
        if arg is not type(None):
            try:
                return _convert(arg, value, name)
            except InputError:
                continue
    kinds = " or ".join(_describe(a) for a in args if a is not type(None))
    raise InputError(f"setting {name} must be {kinds}, but it is {value!r}; correct it")


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(hint))
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return words.get(hint, f"of the form {hint}")


@dataclass(frozen=True)
class Settings:
    """Everything that a run can be told, one part a stage.

    A TOML file holds one table a stage, named like the fields; what it leaves out keeps its
    default. A table ``[penalty]`` switches from OSEM to penalised likelihood.
    """

    motion: MotionSettings = field(default_factory=MotionSettings)
    grid: GridSettings = field(default_factory=GridSettings)
    corrections: CorrectionSettings = field(default_factory=CorrectionSettings)
    scatter: ScatterSettings = field(default_factory=ScatterSettings)
    osem: OsemSettings = field(default_factory=OsemSettings)
    penalty: RelativeDifference | None = None
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)
    hotspots: HotspotSettings = field(default_factory=HotspotSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as JSON values, for provenance."""
        return dataclasses.asdict(self)


def load_settings(path: Path | None) -> Settings:
    """Read settings from a TOML file; the defaults if there is none.

    Raises
    ------
    InputError
        If the file cannot be read, is not TOML, or holds an unknown key or a wrong value.
    """
    if path is None:
        return Settings()
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the settings file must be readable text, but {path.name!r} is not: "
            f"{type(error).__name__}; check its name and place"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"the settings file must be TOML, but {path.name!r} is not: {error}; "
            "correct that line"
        ) from None
    return from_table(Settings, table)
