"""Hold a finished HDF5 file to the structure that ``docs/hdf5_format.md`` promises."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from listmode.formats import _hdf5_layout as layout


def structure_faults(file: h5py.File, start_ms: int, stop_ms: int) -> tuple[str, ...]:
    """Say what of a finished file differs from the specification, one line each.

    Parameters
    ----------
    file
        An open file whose head and tick index could be read.
    start_ms, stop_ms
        What its reader made of it.
    """
    faults = [*_head_faults(file, start_ms, stop_ms)]
    for stream in ("prompts", "delayeds"):
        columns = dict(layout.COLUMNS)
        if "truth" in file[stream]:
            columns["truth"] = layout.TRUTH_DTYPE
        n_events = int(file[stream]["tick_offset"][-1])
        for name, dtype in columns.items():
            faults += _column_faults(file[stream], name, dtype, "1", n_events)
        faults += _column_faults(
            file[stream], "tick_offset", layout.TICK_DTYPE, "events", stop_ms - start_ms + 1
        )
    return tuple(faults)


def _head_faults(file: h5py.File, start_ms: int, stop_ms: int) -> Iterator[str]:
    announced = file.attrs.get("stop_ms")
    if announced is None or int(announced) != stop_ms:
        yield f"stop_ms must be {stop_ms}, as the tick index says, but it is {announced}"
    for name, unit in layout.ARRAYS.items():
        found = file["scanner"][name].attrs.get("unit")
        if found != unit:
            yield f"scanner/{name} must have the unit {unit!r}, but it has {found!r}"
    for name in ("coverage/start_ms", "coverage/stop_ms"):
        if name not in file:
            yield f"{name} is missing: the file does not say which time it holds"
            return
        if file[name].attrs.get("unit") != "ms":
            yield f"{name} must have the unit 'ms', but it has {file[name].attrs.get('unit')!r}"
    held = np.concatenate((file["coverage/start_ms"][...], file["coverage/stop_ms"][...]))
    if held.size and (held.min() < start_ms or held.max() > stop_ms):
        yield f"coverage must lie within {start_ms}-{stop_ms} ms, but it reaches beyond"


def _column_faults(
    group: h5py.Group, name: str, dtype: str, unit: str, n_values: int
) -> Iterator[str]:
    dataset = group[name]
    title = f"{group.name.strip('/')}/{name}"
    if dataset.dtype != np.dtype(dtype):
        yield f"{title} must be of type {dtype}, but it is {dataset.dtype.str}"
    if not dataset.fletcher32:
        yield f"{title} must carry checksums, but it has none: damage would go unseen"
    if dataset.attrs.get("unit") != unit:
        yield f"{title} must have the unit {unit!r}, but it has {dataset.attrs.get('unit')!r}"
    if len(dataset) != n_values:
        yield f"{title} must hold {n_values} values, but it holds {len(dataset)}"
