"""Decode yardl binary streams by the schema that they carry, whatever its version.

A yardl file begins with ``yardl``, a version and its schema as JSON. The encoding (floats as
they are, integers as base-128 varints with zigzag for signed ones, a length before what varies)
is that of yardl's documentation, https://microsoft.github.io/yardl.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from listmode.errors import InputError

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

MAGIC = b"yardl"
_MAX_DEPTH = 48
_MAX_DIMS = 32
_MAX_NODES = 20_000
_MAX_KEPT_BYTES = 1 << 17
_MAX_LENGTH = 1 << 20
_MAX_VALUE_BYTES = 1 << 40
_FIXED = {
    "bool": "?",
    "int8": "<i1",
    "uint8": "<u1",
    "float32": "<f4",
    "float64": "<f8",
    "complexfloat32": "<c8",
    "complexfloat64": "<c16",
}
_UNSIGNED = ("uint16", "uint32", "uint64", "size")
_SIGNED = ("int16", "int32", "int64", "date", "time", "datetime")


class Truncated(Exception):  # noqa: N818  # not an error of the user: the stream just ends
    """The data end before the value does."""


@dataclass(frozen=True)
class Node:
    """One type of the schema with its generics filled in.

    ``kind`` is one of fixed, unsigned, signed, string, record, vector, array, union, optional
    and map. ``length`` is the number of items of a fixed vector or array, and ``n_dims`` the
    number of stored dimensions of an array (-1: stored as well). ``layout`` is the dtype and
    shape of a type that is one block of equal floats or bytes, or ``""``: a record of a single
    such field counts too (a coordinate, a rigid transformation), since decoding 243,200 of them
    by one ``frombuffer`` instead of one by one is what makes a long scanner's header open at
    once. ``least_bytes`` is the least number of bytes that a value takes.
    """

    kind: str
    name: str = ""
    children: tuple[Node, ...] = ()
    fields: tuple[str, ...] = ()
    dtype: str = ""
    length: int | None = None
    shape: tuple[int, ...] = ()
    n_dims: int = 0
    has_null: bool = False
    layout: tuple[str, tuple[int, ...]] = field(init=False, compare=False, repr=False)
    least_bytes: int = field(init=False, compare=False, repr=False)

    def field(self, name: str) -> Node | None:
        """Give the type of a record's field, or ``None`` if it has no such field."""
        return self.children[self.fields.index(name)] if name in self.fields else None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", self._find_layout())
        object.__setattr__(self, "least_bytes", self._find_least_bytes())

    def _find_layout(self) -> tuple[str, tuple[int, ...]]:
        if self.kind == "fixed":
            return self.dtype, ()
        if self.kind in ("vector", "array") and self.length is not None:
            dtype, inner = self.children[0].layout
            return dtype, ((*(self.shape or (self.length,)), *inner) if dtype else ())
        if self.kind == "record" and len(self.children) == 1:
            return self.children[0].layout
        return "", ()

    def _find_least_bytes(self) -> int:
        if self.kind == "fixed":
            return np.dtype(self.dtype).itemsize
        if self.kind == "record":
            return sum(child.least_bytes for child in self.children)
        if self.kind in ("vector", "array") and self.length is not None:
            return self.length * self.children[0].least_bytes
        if self.kind == "array":
            return max(self.n_dims, 0) or 1
        return 1


class Schema:
    """The types of a yardl protocol.

    Raises
    ------
    InputError
        If the text is not a yardl schema.
    """

    def __init__(self, text: bytes) -> None:
        try:
            table = json.loads(text)
            self._types: dict[str, Any] = {t["name"]: t for t in table["types"]}
            self.protocol = str(table["protocol"]["name"])
            self._n_nodes = self._deepest = 0
            self._known: dict[str, tuple[Node, int, int]] = {}  # node, its depth, its size
            self.steps: dict[str, Node] = {
                step["name"]: self._node(step["type"], {}, 0)
                for step in table["protocol"]["sequence"]
            }
            if max(node.least_bytes for node in self.steps.values()) > _MAX_VALUE_BYTES:
                raise _bad_schema("a value of more than a terabyte")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise _bad_schema(f"{type(error).__name__} {error}") from None

    def _node(self, spec: Any, bound: Mapping[str, Node], depth: int) -> Node:
        self._count(depth, 1)
        if isinstance(spec, str):
            return self._named(spec, bound, {}, depth)
        if isinstance(spec, list):
            return self._union(spec, bound, depth)
        if "name" in spec:
            arguments = [self._node(s, bound, depth + 1) for s in spec.get("typeArguments", [])]
            return self._named(spec["name"], bound, dict(enumerate(arguments)), depth)
        if "stream" in spec:
            return self._node(spec["stream"]["items"], bound, depth + 1)
        if "vector" in spec:
            item = self._node(spec["vector"]["items"], bound, depth + 1)
            length = spec["vector"].get("length")
            if length is not None:
                length = _fixed_length(length)
            return Node("vector", children=(item,), length=length)
        if "map" in spec:
            key = self._node(spec["map"]["keys"], bound, depth + 1)
            value = self._node(spec["map"]["values"], bound, depth + 1)
            return Node("map", children=(key, value))
        return self._array(spec["array"], bound, depth)

    def _count(self, depth: int, n_nodes: int) -> None:
        """Take note of nodes down to a depth, and refuse too many or too deep ones."""
        self._n_nodes += n_nodes
        self._deepest = max(self._deepest, depth)
        if depth > _MAX_DEPTH or self._n_nodes > _MAX_NODES:
            raise _bad_schema("it is nested too deeply")

    def _named(
        self, name: str, bound: Mapping[str, Node], arguments: Mapping[int, Node], depth: int
    ) -> Node:
        if name in bound:
            return bound[name]
        if name == "string":
            return Node("string")
        if name in _FIXED:
            return Node("fixed", dtype=_FIXED[name])
        if name in _UNSIGNED or name in _SIGNED:
            return Node("unsigned" if name in _UNSIGNED else "signed", name=name)
        short = name.rpartition(".")[2]
        table = self._types[short]
        inner = dict(zip(table.get("typeParameters", ()), arguments.values(), strict=True))
        if inner:
            return self._defined(short, table, inner, depth)
        if short not in self._known:  # each type is made once, and counts wherever it is used
            n_before, outside = self._n_nodes, self._deepest
            self._deepest = depth
            node = self._defined(short, table, inner, depth)
            self._known[short] = node, self._deepest - depth, self._n_nodes - n_before
            self._deepest = max(outside, self._deepest)
            return node
        node, height, n_nodes = self._known[short]
        self._count(depth + height, n_nodes)
        return node

    def _defined(
        self, short: str, table: Mapping[str, Any], inner: Mapping[str, Node], depth: int
    ) -> Node:
        if "fields" in table:
            return Node(
                "record",
                name=short,
                children=tuple(
                    self._node(f["type"], inner, depth + 1) for f in table["fields"]
                ),
                fields=tuple(str(f["name"]) for f in table["fields"]),
            )
        if "values" in table:
            return self._node(table.get("base", "int32"), {}, depth + 1)
        return self._node(table["type"], inner, depth + 1)

    def _union(self, cases: list[Any], bound: Mapping[str, Node], depth: int) -> Node:
        has_null = cases[0] is None
        rest = cases[1:] if has_null else cases
        tags = tuple(str(c.get("tag", "")) if isinstance(c, dict) else "" for c in rest)
        types = [c["type"] if isinstance(c, dict) and "tag" in c else c for c in rest]
        children = tuple(self._node(t, bound, depth + 1) for t in types)
        kind = "optional" if has_null and len(rest) == 1 else "union"
        return Node(kind, children=children, fields=tags, has_null=has_null)

    def _array(self, spec: Mapping[str, Any], bound: Mapping[str, Node], depth: int) -> Node:
        item = self._node(spec["items"], bound, depth + 1)
        dimensions = spec.get("dimensions")
        if dimensions is None:
            return Node("array", children=(item,), n_dims=-1)
        if isinstance(dimensions, int):
            return Node("array", children=(item,), n_dims=dimensions)
        lengths = [d.get("length") for d in dimensions]
        if lengths and all(isinstance(n, int) for n in lengths):
            shape = tuple(_fixed_length(n) for n in lengths)
            return Node("array", children=(item,), length=math.prod(shape), shape=shape)
        return Node("array", children=(item,), n_dims=len(dimensions))


def _fixed_length(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= _MAX_LENGTH:
        raise _bad_schema(f"a length of {value!r:.40}")
    return value


def _bad_schema(found: str) -> InputError:
    return InputError(
        f"a yardl file must carry its schema, but the schema of this one is damaged ({found}); "
        "copy the file again"
    )


def read_preamble(data: U8) -> tuple[Schema, int]:
    """Read the signature and the schema.

    Parameters
    ----------
    data
        The file's bytes. Shape (n_bytes,), uint8.

    Returns
    -------
    schema, offset
        The types, and where the first step of the protocol begins.

    Raises
    ------
    InputError
        If the file does not begin so, or the schema is damaged.
    """
    decoder = Decoder(data, 0)
    try:
        if decoder.take(5) != MAGIC:
            raise _bad_schema("no yardl signature")
        decoder.take(4)
        text = decoder.take(decoder.unsigned())
    except Truncated:
        raise _bad_schema("the file ends before it does") from None
    return _schema(text) if len(text) <= _MAX_KEPT_BYTES else Schema(text), decoder.offset


@lru_cache(maxsize=8)
def _schema(text: bytes) -> Schema:
    return Schema(text)  # files of one release share it


class Decoder:
    """Decode values one after another into plain Python and NumPy objects."""

    def __init__(self, data: U8, offset: int) -> None:
        self._data = data.data
        self._size = len(data)
        self.offset = offset

    def take(self, n: int) -> bytes:
        """Take ``n`` bytes."""
        if n < 0 or n > self._size - self.offset:
            raise Truncated
        part = self._data[self.offset : self.offset + n].tobytes()
        self.offset += n
        return part

    def unsigned(self) -> int:
        """Take an unsigned varint of at most 64 bits."""
        value = shift = 0
        while shift < 70:
            if self.offset >= self._size:
                raise Truncated
            byte = self._data[self.offset]
            self.offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise InputError(
            f"a number must have at most 10 bytes, but the one at byte {self.offset - 10} is "
            "longer; the file is damaged: copy it again"
        )

    def length(self, at_least: int = 1) -> int:
        """Take a length that the rest of the data can hold."""
        n = self.unsigned()
        if n * at_least > self._size - self.offset:
            raise Truncated
        return n

    def value(self, node: Node) -> Any:
        """Decode a value: records become dicts, unions ``(tag, value)``, arrays NumPy arrays.

        A record that is one block of floats (see :class:`Node`) becomes that array.

        Raises
        ------
        Truncated
            If the data end before the value does.
        """
        flat, shape = node.layout
        if flat:
            n_bytes = np.dtype(flat).itemsize * math.prod(shape)
            values = np.frombuffer(self.take(n_bytes), flat)
            return values.reshape(shape) if shape else values[0].item()
        kind = node.kind
        if kind == "unsigned":
            return self.unsigned()
        if kind == "signed":
            n = self.unsigned()
            return (n >> 1) ^ -(n & 1)
        if kind == "string":
            return self.take(self.length()).decode("utf-8", "replace")
        if kind == "record":
            return {f: self.value(c) for f, c in zip(node.fields, node.children, strict=True)}
        return self._compound(node)

    def _compound(self, node: Node) -> Any:
        if node.kind == "vector":
            n = self.unsigned() if node.length is None else node.length
            return self._items(node.children[0], n)
        if node.kind == "array":
            return self._array(node)
        if node.kind == "map":
            key, item = node.children
            return {str(self.value(key)): self.value(item) for _ in range(self.length(2))}
        tag = self.take(1)[0] - (1 if node.has_null else 0)
        if tag < 0:
            return None
        if tag >= len(node.children):
            raise InputError(
                f"a union's tag must be below {len(node.children)}, but it is {tag} at byte "
                f"{self.offset - 1}; the file is damaged: copy it again"
            )
        inner = self.value(node.children[tag])
        return inner if node.kind == "optional" else (node.fields[tag], inner)

    def _items(self, node: Node, n: int) -> Any:
        if n * max(node.least_bytes, 1) > self._size - self.offset:
            raise Truncated
        flat, shape = node.layout
        if flat:
            values = np.frombuffer(
                self.take(n * np.dtype(flat).itemsize * math.prod(shape)), flat
            )
            return values.reshape(n, *shape)
        return [self.value(node) for _ in range(n)]

    def _array(self, node: Node) -> Any:
        shape = node.shape
        if node.length is None:
            n_dims = self.length() if node.n_dims < 0 else node.n_dims
            if n_dims > _MAX_DIMS:
                raise InputError(
                    f"an array must have at most {_MAX_DIMS} dimensions, but one before byte "
                    f"{self.offset} has {n_dims}; the file is damaged: copy it again"
                )
            shape = tuple(self.unsigned() for _ in range(n_dims))
        n = room = 1
        for extent in shape:
            n *= extent
            room *= max(extent, 1)
            if room > self._size:  # also an empty array may claim huge extents
                raise Truncated
        values = self._items(node.children[0], n)
        if isinstance(values, np.ndarray):
            return values.reshape((*shape, *values.shape[1:]))
        if node.children[0].kind in ("unsigned", "signed"):
            return np.array(values, dtype=np.int64).reshape(shape)
        return values


# What the compiled index walks: one row a type, (kind, a, b, c), children in a second table.
SKIP_BYTES, SKIP_VARINTS, SKIP_STRING, SEQUENCE, REPEAT, UNION, ARRAY, EVENTS, INTERVAL = range(
    9
)


class Program:
    """A type flattened into two integer tables for the compiled walk over a stream.

    Rows of ``nodes`` are ``(kind, a, b, least)``: SKIP_BYTES a bytes; SKIP_VARINTS a varints;
    SEQUENCE and UNION of ``b`` children from ``links[a]`` (UNION: first child -1 for null);
    REPEAT child ``a``, ``b`` times (-1: a length is stored); ARRAY of child ``a`` with ``b``
    stored dimensions; EVENTS a vector of coincidences of stream ``a``; INTERVAL a block's start
    and stop. ``least`` is the least number of bytes of one value.
    """

    def __init__(self, root: Node) -> None:
        self._rows: list[tuple[int, int, int, int]] = []
        self._links: list[int] = []
        self._depth = 0
        self.root = self._add(root, None)
        self.nodes: I64 = np.array(self._rows, dtype=np.int64).reshape(-1, 4)
        self.links: I64 = np.array(self._links or [0], dtype=np.int64)

    def _row(self, kind: int, a: int, b: int, least: int) -> int:
        self._rows.append((kind, a, b, least))
        return len(self._rows) - 1

    def _linked(self, children: list[int]) -> int:
        start = len(self._links)
        self._links.extend(children)
        return start

    def _add(self, node: Node, stream: int | None) -> int:
        least = node.least_bytes
        flat, shape = node.layout
        if flat:
            return self._row(SKIP_BYTES, np.dtype(flat).itemsize * math.prod(shape), 0, least)
        if node.kind in ("unsigned", "signed"):
            return self._row(SKIP_VARINTS, 1, 0, least)
        if node.kind == "string":
            return self._row(SKIP_STRING, 0, 0, least)
        if node.kind == "record":
            return self._record(node, stream, least)
        if node.kind == "map":
            pair = self._row(
                SEQUENCE, self._linked([self._add(c, stream) for c in node.children]), 2, 2
            )
            return self._row(REPEAT, pair, -1, least)
        if node.kind == "array":
            item = self._add(node.children[0], stream)
            if node.length is not None:
                return self._row(REPEAT, item, node.length, least)
            return self._row(ARRAY, item, node.n_dims, least)
        if node.kind == "vector":
            if stream is not None and node.children[0].name == "CoincidenceEvent":
                return self._row(EVENTS, stream, 0, least)
            item = self._add(node.children[0], stream)
            return self._row(REPEAT, item, -1 if node.length is None else node.length, least)
        children = [self._add(c, stream) for c in node.children]
        cases = [-1, *children] if node.has_null else children
        return self._row(UNION, self._linked(cases), len(cases), least)

    def _record(self, node: Node, stream: int | None, least: int) -> int:
        if node.name == "TimeInterval" and node.fields == ("start", "stop"):
            return self._row(INTERVAL, 0, 0, least)
        streams = {"promptEvents": 0, "delayedEvents": 1}
        children = [
            self._add(c, streams.get(f, stream) if node.name == "EventTimeBlock" else stream)
            for f, c in zip(node.fields, node.children, strict=True)
        ]
        return self._row(SEQUENCE, self._linked(children), len(children), least)


def preamble(schema_text: bytes) -> bytes:
    """Give the bytes that begin a yardl file with this schema."""
    return MAGIC + struct.pack("<i", 1) + varint(len(schema_text)) + schema_text


def varint(value: int) -> bytes:
    """Encode an unsigned number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(node: Node, value: Any) -> bytes:
    """Encode a value as :meth:`Decoder.value` gives it; ``None`` is the type's empty value.

    Missing fields of a record get their empty value, so that a header written for one version
    is valid in the next.

    Raises
    ------
    ValueError
        If an array does not have the shape that the type fixes.
    """
    flat, shape = node.layout
    if flat:
        array = np.zeros(shape, flat) if value is None else np.asarray(value, flat)
        if array.shape != shape:
            raise ValueError(f"shape {array.shape} where the schema has {shape}")
        return array.tobytes()
    if node.kind == "unsigned":
        return varint(int(value or 0))
    if node.kind == "signed":
        number = int(value or 0)
        return varint(number << 1 if number >= 0 else ((-number) << 1) - 1)
    if node.kind == "string":
        text = str(value or "").encode("utf-8")
        return varint(len(text)) + text
    if node.kind == "record":
        given = value or {}
        return b"".join(
            encode(c, given.get(f)) for f, c in zip(node.fields, node.children, strict=True)
        )
    return _encode_compound(node, value)


def _encode_compound(node: Node, value: Any) -> bytes:
    if node.kind in ("optional", "union"):
        if value is None and node.has_null:
            return b"\x00"
        tag, inner = (0, value) if node.kind == "optional" else (0, None)
        if node.kind == "union" and value is not None:
            tag, inner = node.fields.index(value[0]), value[1]
        return bytes([tag + (1 if node.has_null else 0)]) + encode(node.children[tag], inner)
    item = node.children[0]
    if node.kind == "array":
        array = np.zeros((0,) * max(node.n_dims, 1)) if value is None else np.asarray(value)
        shape = b"" if node.length is not None else b"".join(varint(n) for n in array.shape)
        if node.n_dims < 0:
            shape = varint(array.ndim) + shape
        return shape + _encode_items(item, array.ravel())
    if node.kind == "map":
        return varint(0)
    values = () if value is None else value
    length = b"" if node.length is not None else varint(len(values))
    return length + _encode_items(item, values)


def _encode_items(node: Node, values: Any) -> bytes:
    flat, _ = node.layout
    if flat:
        return np.ascontiguousarray(values, flat).tobytes()
    return b"".join(encode(node, value) for value in values)
