"""The checksum of HDF5 chunks: against the sum of its definition and against the library."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from listmode.formats import _kernels

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
