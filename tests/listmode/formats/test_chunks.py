"""The checksum of HDF5 chunks: against the sum of its definition and against the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from listmode.errors import InputError
from listmode.formats import _chunks, _kernels

U16 = NDArray[np.uint16]


def slow_fletcher32(words: U16) -> int:
    """Sum big-endian words one by one; ones and not zeros stand for a multiple of 65535."""
    sums = [0, 0]
    for word in words.tolist():
        sums[0] += (word & 255) << 8 | word >> 8
        sums[1] += sums[0]
    low, high = (0 if s == 0 else (s - 1) % 65535 + 1 for s in sums)
    return high << 16 | low


@pytest.mark.kernel
@given(st.lists(st.sampled_from([0, 1, 255, 256, 32767, 65534, 65535]), max_size=40))
def test_checksum_is_that_of_its_definition(values: list[int]) -> None:
    words = np.array(values, np.uint16)
    assert _kernels.fletcher32(words) == slow_fletcher32(words)


@pytest.mark.parametrize("n", [131_072, (1 << 20) + 3, (1 << 21) + 5])
@pytest.mark.parametrize("largest", [1, 65_535])
def test_checksum_of_long_runs_is_that_of_its_definition(n: int, largest: int) -> None:
    words = np.random.default_rng(n).integers(0, largest + 1, n).astype(np.uint16)
    assert _kernels.fletcher32(words) == slow_fletcher32(words)


@pytest.mark.parametrize("n", [2, 6, 1000, 300_000])
@pytest.mark.parametrize("value", [None, 0, 0xFFFFFFFF])
def test_checksum_is_that_which_the_library_stores(
    tmp_path: Path, n: int, value: int | None
) -> None:
    data = (
        np.random.default_rng(n).integers(0, 2**32, n) if value is None else np.full(n, value)
    )
    with h5py.File(tmp_path / "x.h5", "w") as file:
        made = file.create_dataset("x", data=data.astype("<u4"), chunks=(n,), fletcher32=True)
        _, raw = made.id.read_direct_chunk((0,))
    stored = int.from_bytes(raw[-4:], "little")
    assert _kernels.fletcher32(np.frombuffer(raw[:-4], "<u2")) == stored


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((1000,), (64,)), ((100, 3), (16, 1)), ((100, 3), (33, 2)), ((7, 5, 6), (2, 4, 6))],
)
@pytest.mark.parametrize("dtype", ["<f4", "<i8", "<u2"])
def test_arrays_are_read_through_the_map_as_by_the_library(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str
) -> None:
    path = tmp_path / "x.h5"
    values = np.random.default_rng(1).integers(0, 60_000, shape).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=chunks, fletcher32=True)
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        got = _chunks.read_whole(file["x"], np.frombuffer(bytes(data), np.uint8))
        assert got is not None
        assert got.dtype == np.dtype(dtype)
        assert np.array_equal(got, values)
        data[file["x"].id.get_chunk_info(1).byte_offset] ^= 1
        with pytest.raises(InputError, match="/x must be whole, but a checksum does not fit"):
            _chunks.read_whole(file["x"], np.frombuffer(bytes(data), np.uint8))


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "gzip", "fletcher32": True},
        {"shuffle": True, "fletcher32": True},
        {"dtype": ">f4", "fletcher32": True},
        {"dtype": "S3", "fletcher32": True},
        {"dtype": "u1", "chunks": (7,), "fletcher32": True},
        {"chunks": (8,)},
    ],
)
def test_arrays_of_another_layout_are_left_to_the_library(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (50,), **({"dtype": "f4"} | how))[:1] = 0
    with h5py.File(tmp_path / "x.h5") as file:
        raw = np.fromfile(tmp_path / "x.h5", np.uint8)
        assert _chunks.read_whole(file["x"], raw) is None
        assert _chunks.read_whole(file["x"], raw[:100]) is None
