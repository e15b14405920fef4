"""Walk through an untrusted HDF5 or ROOT file in a process of its own; see ``_sandbox``.

A script that imports nothing of this project, so that it starts in a tenth of a second. It ends
with code 0 if the whole file can be walked, and with 3 and a reason on stdout if it must not be
opened. Whatever else happens (a crash of the HDF5 library, no memory, no end) concerns this
process only.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

_MAX_OBJECTS = 1_000
_MAX_BYTES = 1 << 28  # of one chunk or attribute
_MAX_PACKED_BYTES = (
    1 << 19
)  # of one compressed chunk: the library inflates it whatever it gives
_MAX_WHOLE_BYTES = 1 << 24  # the columns of events are longer: of them the first chunk is read
_MAX_INFLATION = 1100  # deflate makes at most 1032 bytes of one
_ALLOWED_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_DEFLATE = 1
_REFUSED = 3


class Refused(Exception):  # noqa: N818  # the result of the walk, not a defect
    """The file must not be opened; says what was found in it."""


def limit(n_bytes: int, n_seconds: int) -> None:
    """Limit this process: memory beyond what it has, processor time, and no core dump."""
    try:
        import resource
    except ImportError:  # no such limits on this system: only the caller's clock
        return
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # slow import
            n_bytes += int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (n_seconds, n_seconds))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def walk_hdf5(path: str) -> None:
    """Read all that a reader of the file would: links, attributes, types, the first chunks.

    Raises
    ------
    Refused
        If the file leads to other files, is nested without end, or grows beyond all measure.
    """
    import h5py

    with h5py.File(path, "r", swmr=_is_growing(path)) as file:
        waiting: list[Any] = [file]
        n_objects = 0
        while waiting:
            group = waiting.pop()
            _read_attributes(group)
            for name in group:
                n_objects += 1
                if n_objects > _MAX_OBJECTS:
                    raise Refused(f"more than {_MAX_OBJECTS} objects, or a loop of links")
                if group.id.links.get_info(_bytes(name)).type != h5py.h5l.TYPE_HARD:
                    raise Refused(f"a link that leads elsewhere ({name!r:.40})")
                child = group[name]
                if isinstance(child, h5py.Group):
                    waiting.append(child)
                elif isinstance(child, h5py.Dataset):
                    _read_attributes(child)
                    _read_dataset(child, name)


def _is_growing(path: str) -> bool:
    """Say whether a file has the superblock of version 3, which a writer may hold open."""
    with open(path, "rb") as file:  # noqa: PTH123  # pathlib is slow to import
        return file.read(9)[8:] == b"\3"


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as h5py made it


def _read_attributes(owner: Any) -> None:
    """Read all attributes, by h5py's lower level: its upper one takes four times as long."""
    import numpy as np
    from h5py import h5a

    found: list[tuple[bytes, int]] = []
    h5a.iterate(owner.id, lambda name, info: found.append((name, info.data_size)), info=True)
    for name, n_bytes in found:
        if n_bytes > _MAX_BYTES:
            raise Refused(
                f"an attribute of {n_bytes} bytes ({name.decode(errors='replace')!r:.40})"
            )
        stored = h5a.open(owner.id, name)
        shape, dtype = stored.shape, stored.dtype
        if dtype.subdtype is not None:
            owner.attrs[name]
        elif shape is not None:
            stored.read(np.zeros(shape, dtype))


def _read_dataset(dataset: Any, name: str) -> None:
    if dataset.is_virtual or dataset.external:
        raise Refused(f"a dataset that lies in other files ({name!r:.40})")
    if dataset.shape is None:
        return
    n_bytes = _check_size(dataset, name)
    with contextlib.suppress(OSError):  # damaged values are no danger: the reader names them
        if n_bytes <= _MAX_WHOLE_BYTES:
            dataset[...]
        elif dataset.ndim:
            dataset[: dataset.chunks[0] if dataset.chunks else 1]


def _check_size(dataset: Any, name: str) -> int:
    """Give the size of all values, bytes, once it and the filters are known to be sane."""
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(k)[0] for k in range(plist.get_nfilters())}
    if filters - set(_ALLOWED_FILTERS):
        raise Refused(f"a filter that is none of {', '.join(_ALLOWED_FILTERS.values())}")
    n_bytes = int(dataset.size) * int(dataset.dtype.itemsize)
    stored = dataset.id.get_storage_size()
    chunk = dataset.dtype.itemsize
    for extent in dataset.chunks or ():
        chunk *= extent
    if n_bytes > _MAX_BYTES + _MAX_INFLATION * stored or chunk > _MAX_BYTES:
        raise Refused(
            f"{n_bytes} bytes in chunks of {chunk}, packed in {stored} ({name!r:.40})"
        )
    if dataset.chunks:
        _check_chunks(dataset, name, is_packed=_DEFLATE in filters)
    return n_bytes


def _check_chunks(dataset: Any, name: str, *, is_packed: bool) -> None:
    """Walk the index of all chunks, as the reader will."""
    largest = 0

    def note(info: Any) -> None:
        nonlocal largest
        largest = max(largest, info.size)

    dataset.id.chunk_iter(note)
    if is_packed and largest > _MAX_PACKED_BYTES:
        raise Refused(f"a compressed chunk of {largest} bytes ({name!r:.40})")


def walk_root(path: str) -> None:
    """Read the names and branches of all trees, and the first entry of each branch."""
    import uproot  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with uproot.open(path, object_cache=None, array_cache=None) as file:
        for name in file.keys(recursive=True, cycle=False)[:_MAX_OBJECTS]:
            tree = file[name]
            if isinstance(tree, uproot.TTree):
                for branch in tree.branches:
                    branch.array(library="np", entry_stop=min(1, tree.num_entries))


WALKS = {"hdf5": walk_hdf5, "root": walk_root}


def main(kind: str, path: str, n_bytes: str, n_seconds: str) -> int:
    """Walk one file under limits."""
    walk = WALKS[kind]
    __import__("h5py" if kind == "hdf5" else "uproot")
    limit(int(n_bytes), int(n_seconds))
    try:
        walk(path)
    except Refused as found:
        sys.stdout.write(str(found))
        return _REFUSED
    except MemoryError:
        sys.stdout.write("more data than memory")
        return _REFUSED
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__}: {str(error)[:120]}")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
