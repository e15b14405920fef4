"""Ways to damage a file: as disks and cables do, and as one who means harm does."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import h5py
import numpy as np

from listmode.formats import _yardl

Rng = np.random.Generator

_WORDS = [
    b"\xff" * 9 + b"\x01",  # 2**64 - 1 as a varint
    b"\x80" * 9 + b"\x01",  # 2**63
    b"\xff" * 12,  # a varint without end
    (2**63).to_bytes(8, "little"),
    (2**63 - 1).to_bytes(8, "little"),
    (2**31 - 1).to_bytes(4, "little"),
    np.float32(np.nan).tobytes(),
    np.float64(np.nan).tobytes(),
    np.float64(-np.inf).tobytes(),
    np.float32(1e38).tobytes(),
]
_NUMBERS = [
    b"nan", b"inf", b"-inf", b"-1", b"0", b"1e308", b"1e-320", b"9223372036854775808", b"",
    b"9" * 5000, b"x", b"true", b"[]", b"{}", b'"', b"null", b"4294967296", b"0.5", b"1e9999",
]  # fmt: skip


def damage_bytes(data: bytes, rng: Rng) -> bytes:
    """Flip bits, cut, repeat, blank, and write huge lengths and NaN, one to three times."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(out)))
        length = int(min(rng.geometric(0.02), len(out) - at))
        kind = rng.integers(8)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            word = _WORDS[int(rng.integers(len(_WORDS)))]
            out[at : at + len(word)] = word
        elif kind == 6:
            out[at : at + length] = bytes(length)
        else:
            other = int(rng.integers(len(out)))
            out[at:at] = out[other : other + length]
        if not out:
            return b"\x00"
    return bytes(out)


def in_tail(change: Callable[[bytes, Rng], bytes], start: int) -> Callable[[bytes, Rng], bytes]:
    """Damage what follows a place only, so that cases come past a file's header."""
    return lambda data, rng: data[:start] + change(data[start:], rng)


def flip_bits(data: bytes, rng: Rng) -> bytes:
    """Flip one to three bits where the file is not empty."""
    out = bytearray(data)
    places = np.flatnonzero(np.frombuffer(data, np.uint8))
    for at in rng.choice(places, int(rng.integers(1, 4))):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def cut(data: bytes, rng: Rng) -> bytes:
    """Cut the end off, as a broken copy does."""
    return data[: int(rng.integers(1, len(data)))]


def damage_text(data: bytes, rng: Rng) -> bytes:
    """Exchange numbers, and delete, repeat and swap lines or entries."""
    kind = rng.integers(4)
    if kind < 2:
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?", data))
        if numbers:
            match = numbers[int(rng.integers(len(numbers)))]
            other = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
            return data[: match.start()] + other + data[match.end() :]
    separator = b"\n" if data.count(b"\n") > 2 else b","
    parts = data.split(separator)
    i, j = rng.integers(len(parts), size=2)
    if kind == 2:
        del parts[i]
    else:
        parts[i], parts[j] = parts[j], parts[int(rng.integers(len(parts)))]
    return separator.join(parts) or b"\x00"


def damage_petsird_header(data: bytes, rng: Rng) -> bytes:
    """Exchange one value of a PETSIRD header and encode it again: NaN geometry, no modules."""
    raw = np.frombuffer(data, np.uint8)
    schema, start = _yardl.read_preamble(raw)
    decoder = _yardl.Decoder(raw, start)
    header = decoder.value(schema.steps["header"])
    place, key = _choose(header, rng)
    place[key] = _other_value(place[key], rng)
    try:
        encoded = _yardl.encode(schema.steps["header"], header)
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError):
        return damage_bytes(data, rng)  # no file can hold such a value
    return data[:start] + encoded + data[decoder.offset :]


def _choose(tree: Any, rng: Rng) -> tuple[Any, Any]:
    """Walk down a tree of dicts and lists at random."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = keys[int(rng.integers(len(keys)))]
        below = tree[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.1:
            return tree, key
        tree = below


def _other_value(value: Any, rng: Rng) -> Any:
    if isinstance(value, np.ndarray) and value.size and rng.random() < 0.8:
        changed = value.copy()
        with np.errstate(all="ignore"):
            flat = changed.reshape(-1)
            some = rng.integers(flat.size, size=int(rng.integers(1, 4)))
            flat[some] = np.array(rng.choice([np.nan, np.inf, -1e30, 0.0, 1e-30])).astype(
                flat.dtype
            )
        return changed if rng.random() < 0.7 else changed[:-1]
    if isinstance(value, list) and value:
        return value[1:] if rng.random() < 0.5 else value + value
    if isinstance(value, str):
        return "x" * int(rng.integers(100))
    return [None, 0, 2**63, np.nan, 1e300, [], {}][int(rng.integers(7))]


BOMB = zlib.compress(bytes(1 << 26), 9)  # 64 MiB of zeros in 64 KiB


def damage_hdf5(data: bytes, rng: Rng) -> bytes:
    """Change the structure of an HDF5 file, with right checksums."""
    memory = BytesIO(data)
    with h5py.File(memory, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        change = _HDF5_CHANGES[int(rng.integers(len(_HDF5_CHANGES)))]
        change(file, name, rng)
    return memory.getvalue()


def _delete(file: h5py.File, name: str, rng: Rng) -> None:
    del rng
    del file[name]


def _change_attribute(file: h5py.File, name: str, rng: Rng) -> None:
    owner = file[name] if len(file[name].attrs) else file
    keys = list(owner.attrs)
    key = keys[int(rng.integers(len(keys)))]
    values: list[Any] = [
        np.nan, -1, 2**62, np.uint64(2**63), "x", np.zeros(1000), h5py.Empty("f4"), True,
        np.array(["a" * 30_000] * 2, dtype=h5py.string_dtype()), b"\xff\xfe",
    ]  # fmt: skip
    choice = int(rng.integers(len(values) + 1))
    del owner.attrs[key]
    if choice < len(values):
        owner.attrs[key] = values[choice]


def _exchange(file: h5py.File, name: str, rng: Rng) -> None:
    """Put another dataset in the place of one: of a huge size, another type, or a bomb."""
    dataset = file[name]
    shape = getattr(dataset, "shape", (5,)) or (5,)
    attributes = dict(dataset.attrs)
    dtype = getattr(dataset, "dtype", "f4")
    del file[name]
    kind = int(rng.integers(8))
    if kind == 0:
        file.create_dataset(name, (2**40,), "<i8", chunks=(1024,))
    elif kind == 1:
        bomb = file.create_dataset(name, (2**28,), "u1", chunks=(1 << 26,), compression="gzip")
        for k in range(4):
            bomb.id.write_direct_chunk((k << 26,), BOMB)
    elif kind == 2:
        file.create_dataset(name, shape, "f8", fillvalue=np.nan)
    elif kind == 3:
        file.create_dataset(name, shape, dtype=h5py.string_dtype())
    elif kind == 4:
        file.create_dataset(name, (0,), dtype, maxshape=(None,))
    elif kind == 5:
        file.create_dataset(name, (*shape, 2), dtype)
    elif kind == 6:
        file.create_dataset(name, (), dtype)
    else:
        file.create_dataset(name, shape, np.dtype([("a", "i4"), ("b", "f8")]))
    if name in file:
        file[name].attrs.update(attributes)


def _link(file: h5py.File, name: str, rng: Rng) -> None:
    """Lead a name elsewhere: a loop, another file, nothing, or a virtual dataset."""
    shape = getattr(file[name], "shape", None)
    del file[name]
    kind = int(rng.integers(4))
    if kind == 0:
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == 1:
        file[name] = h5py.ExternalLink("other.h5", "/prompts")
    elif kind == 2 or shape is None:
        file[name] = file
    else:
        layout = h5py.VirtualLayout(shape=shape or (1,), dtype="<u4")
        layout[...] = h5py.VirtualSource("other.h5", "x", shape=shape or (1,))
        file.create_virtual_dataset(name, layout)


def _spoil_values(file: h5py.File, name: str, rng: Rng) -> None:
    """Write values that no scan has, with right checksums."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or not dataset.size:
        return _change_attribute(file, name, rng)
    values = dataset[...]
    flat = values.reshape(-1)
    at = rng.integers(flat.size, size=int(rng.integers(1, 4)))
    choices = [np.nan, 1e30, -1.0, 0.0] if flat.dtype.kind == "f" else [0, 1, 100, 2**14, -1]
    with np.errstate(all="ignore"):
        flat[at] = np.array(rng.choice(choices)).astype(flat.dtype)
    dataset[...] = values
    return None


def _resize(file: h5py.File, name: str, rng: Rng) -> None:
    """Give a growing dataset another length."""
    dataset = file[name]
    if isinstance(dataset, h5py.Dataset) and dataset.maxshape[:1] == (None,):
        n = int(rng.choice([0, 1, dataset.shape[0] - 1, dataset.shape[0] + 1, 2**45]))
        dataset.resize(max(n, 0), axis=0)
    else:
        _change_attribute(file, name, rng)


_HDF5_CHANGES: list[Callable[[h5py.File, str, Rng], None]] = [
    _delete, _change_attribute, _change_attribute, _exchange, _exchange, _link, _spoil_values,
    _spoil_values, _resize,
]  # fmt: skip
