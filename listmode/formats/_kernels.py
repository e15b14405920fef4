"""Compiled loops over the bytes and words of listmode files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
B8 = NDArray[np.bool_]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

# status of index_yardl
ENDED, TRUNCATED, DAMAGED, FULL = 0, 1, 2, 3

# kinds of a program's nodes, as listmode.formats._yardl numbers them
_BYTES, _VARINTS, _STRING, _SEQUENCE, _REPEAT, _UNION, _ARRAY, _EVENTS, _INTERVAL = range(9)

_TOO_LONG = -1
_PAST_END = -2
_ONE = np.uint64(1)
_MAX_EVENT_BYTES = np.uint64(30)  # three varints of ten bytes

# A division by a constant is a multiplication; by a variable it took most of the time.
_SINOGRAM_BINS = np.uint64(344 * 252)  # of a plane of the mMR
_EVENT_ADDRESS = np.uint64(0x3FFFFFFF)
_LOW_HALF = np.uint32(0xFFFF)
_HALF = np.uint32(16)
NO_CRYSTAL = np.uint32(0xFFFFFFFF)


@njit(cache=True, nogil=True, inline="always")
def _fast_varint(data: U8, p: Any) -> tuple[Any, Any]:
    """Read a varint that is known to lie inside the data; a broken one gives -1.

    Places are unsigned here: a signed index costs a test for negative ones at each byte, and
    with the first three bytes written out the loop over events runs 1.2 times as fast.
    """
    byte = np.int64(data[p])
    p += _ONE
    if byte < 128:
        return byte, p
    value = byte & 127
    byte = np.int64(data[p])
    p += _ONE
    if byte < 128:
        return value | byte << 7, p
    value |= (byte & 127) << 7
    byte = np.int64(data[p])
    p += _ONE
    if byte < 128:
        return value | byte << 14, p
    value |= (byte & 127) << 14
    shift = 21
    while shift < 63:
        byte = np.int64(data[p])
        p += _ONE
        value |= (byte & 127) << shift
        if byte < 128:
            return value, p
        shift += 7
    return np.int64(_TOO_LONG), p


@njit(cache=True, nogil=True)
def _varint(data: U8, p: Any) -> tuple[Any, Any]:
    """Read a varint, checking the end: its value is negative if it is broken or cut."""
    value = np.int64(0)
    shift = 0
    while shift < 63:
        if p >= data.size:
            return np.int64(_PAST_END), p
        byte = np.int64(data[p])
        p += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, p
        shift += 7
    return np.int64(_TOO_LONG), p


@njit(cache=True, nogil=True)
def _skip_varints(data: U8, p: int, n: int) -> int:
    """Skip ``n`` varints by counting the bytes that end one; -1 past the end."""
    size = data.size
    while n > 0:
        if p >= size:
            return -1
        n -= data[p] < 128
        p += 1
    return p


@njit(cache=True, nogil=True)
def _check_run(
    data: U8, p: int, n: int, n_energy_0: int, n_energy_1: int, n_bins_0: int, n_bins_1: int,
    same_type: bool, n_tof: int, bad: I64,
) -> tuple[Any, int]:  # fmt: skip
    """Walk ``n`` events; return the place after them (-1 cut, -2 broken) and the valid ones."""
    n_valid = 0
    at, size = np.uint64(p), np.uint64(data.size)
    for _ in range(n):
        if at + _MAX_EVENT_BYTES <= size:
            bin_0, at = _fast_varint(data, at)
            bin_1, at = _fast_varint(data, at)
            tof, at = _fast_varint(data, at)
        else:
            bin_0, p = _varint(data, np.int64(at))
            bin_1, p = _varint(data, p)
            tof, p = _varint(data, p)
            if bin_0 == _PAST_END or bin_1 == _PAST_END or tof == _PAST_END:
                return -1, n_valid
            at = np.uint64(p)
        if bin_0 < 0 or bin_1 < 0 or tof < 0:
            return -2, n_valid
        if bin_0 >= n_bins_0 or bin_1 >= n_bins_1:
            bad[0] += 1
            continue
        if tof >= n_tof:
            bad[1] += 1
            continue
        if same_type:
            if n_energy_0 > 1:  # a division an event would take more time than all the rest
                bin_0, bin_1 = bin_0 // n_energy_0, bin_1 // n_energy_1
            if bin_0 == bin_1:
                bad[2] += 1
                continue
        n_valid += 1
    return np.int64(at), n_valid


@njit(cache=True, nogil=True)
def index_yardl(
    data: U8, p: int, n_in_batch: int, nodes: I64, links: I64, root: int,
    n_energy: I64, n_bins: I64, n_tof: I64, run_events: int,
    blocks: I64, runs: I64, bad: I64,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """Walk a stream of time blocks and note where its coincidences lie.

    Parameters
    ----------
    data, p, n_in_batch
        The file, where to go on, and items left in the stream's current batch.
    nodes, links, root
        The program of one stream item (see ``_yardl.Program``).
    n_energy, n_bins
        Energy bins and detection bins of each module type.
    n_tof
        TOF bins of each pair of types. Shape (n_types**2,).
    run_events
        Longest run of events that gets one row.
    blocks
        Out: tag, start, stop, offset of each block. Shape (n, 4).
    runs
        Out: block, stream, type pair, offset, events, valid events. Shape (n, 6).
    bad
        Adds events whose bin does not exist, whose TOF bin does not, and whose two crystals
        are one. Shape (3,).

    Returns
    -------
    status, offset, n_in_batch, n_blocks, n_runs
        The offset is that of the first block not taken, or of the stream's end.
    """
    n_types = n_energy.size
    size = data.size
    node_at = np.zeros(256, np.int64)
    index_at = np.zeros(256, np.int64)
    count_at = np.zeros(256, np.int64)
    saved_bad = bad.copy()
    n_blocks = 0
    n_runs = 0
    while True:
        if n_in_batch == 0:
            n_in_batch, after = _varint(data, p)
            if n_in_batch < 0:
                status = TRUNCATED if n_in_batch == _PAST_END else DAMAGED
                return status, p, 0, n_blocks, n_runs
            if n_in_batch == 0:
                return ENDED, after, 0, n_blocks, n_runs
            p = after
        if n_blocks == len(blocks):
            return FULL, p, n_in_batch, n_blocks, n_runs
        first = p
        tag, start, stop = np.int64(-1), np.int64(-1), np.int64(-1)
        block_runs = n_runs
        status = -1
        depth = 0
        node_at[0] = root
        index_at[0] = 0
        count_at[0] = 1
        depth = 1  # a frame repeats its node (index, count); its children are pushed on it
        while depth > 0:
            top = depth - 1
            if index_at[top] >= count_at[top]:
                depth -= 1
                continue
            frame = node_at[top]
            if frame < 0:  # a sequence: each turn is another child
                node = links[-frame - 1 + index_at[top]]
            else:
                node = frame
            index_at[top] += 1
            kind, a, b = nodes[node, 0], nodes[node, 1], nodes[node, 2]
            if kind == _BYTES:
                if a > size - p:
                    status = TRUNCATED
                    break
                p += a
            elif kind == _VARINTS:
                p = _skip_varints(data, p, a)
                if p < 0:
                    status = TRUNCATED
                    break
            elif kind == _STRING:
                n, p = _varint(data, p)
                if n < 0 or n > size - p:
                    status = DAMAGED if n == _TOO_LONG else TRUNCATED
                    break
                p += n
            elif kind == _INTERVAL:
                start, p = _varint(data, p)
                stop, p = _varint(data, p)
                if start < 0 or stop < 0:
                    damaged = start == _TOO_LONG or stop == _TOO_LONG
                    status = DAMAGED if damaged else TRUNCATED
                    break
            elif kind == _SEQUENCE:
                node_at[depth] = -a - 1
                index_at[depth] = 0
                count_at[depth] = b
                depth += 1
            elif kind == _UNION:
                if p >= size:
                    status = TRUNCATED
                    break
                case = np.int64(data[p])
                p += 1
                if case >= b:
                    status = DAMAGED
                    break
                if top == 0:
                    tag = case
                if links[a + case] >= 0:
                    node_at[depth] = links[a + case]
                    index_at[depth] = 0
                    count_at[depth] = 1
                    depth += 1
            elif kind == _REPEAT or kind == _ARRAY:
                n = b
                if kind == _ARRAY:
                    n_dims = b
                    if b < 0:
                        n_dims, p = _varint(data, p)
                    n = 1
                    if n_dims < 0 or n_dims > 32:
                        status = TRUNCATED if n_dims == _PAST_END else DAMAGED
                        break
                    for _ in range(n_dims):
                        extent, p = _varint(data, p)
                        if extent < 0 or (extent > 0 and n > size // extent):
                            n = -1
                            break
                        n *= extent
                    if n < 0:
                        status = TRUNCATED
                        break
                elif b < 0:
                    n, p = _varint(data, p)
                    if n < 0:
                        status = DAMAGED if n == _TOO_LONG else TRUNCATED
                        break
                least = max(nodes[a, 3], 1)
                if n > (size - p) // least:
                    status = TRUNCATED
                    break
                if nodes[a, 0] == _BYTES:
                    p += n * nodes[a, 1]
                elif nodes[a, 0] == _VARINTS:
                    p = _skip_varints(data, p, n * nodes[a, 1])
                    if p < 0:
                        status = TRUNCATED
                        break
                else:
                    node_at[depth] = a
                    index_at[depth] = 0
                    count_at[depth] = n
                    depth += 1
            else:  # events: the two frames below repeat over the types of the pair
                n, p = _varint(data, p)
                if n < 0 or n > (size - p) // 3:
                    status = DAMAGED if n == _TOO_LONG else TRUNCATED
                    break
                type_0 = index_at[top - 1] - 1
                type_1 = index_at[top] - 1
                if type_0 >= n_types or type_1 >= n_types:  # no such modules in the header
                    bad[0] += n
                    p = _skip_varints(data, p, 3 * n)
                    n = 0
                    if p < 0:
                        status = TRUNCATED
                        break
                while n > 0:
                    if n_runs == len(runs):
                        status = FULL
                        break
                    taken = min(n, run_events)
                    after, n_valid = _check_run(
                        data, p, taken, n_energy[type_0], n_energy[type_1], n_bins[type_0],
                        n_bins[type_1], type_0 == type_1, n_tof[type_0 * n_types + type_1], bad,
                    )  # fmt: skip
                    if after < 0:
                        status = TRUNCATED if after == -1 else DAMAGED
                        break
                    runs[n_runs, 0] = n_blocks
                    runs[n_runs, 1] = a
                    runs[n_runs, 2] = type_0 * n_types + type_1
                    runs[n_runs, 3] = p
                    runs[n_runs, 4] = taken
                    runs[n_runs, 5] = n_valid
                    n_runs += 1
                    p = after
                    n -= taken
                if status >= 0:
                    break
        if status >= 0:  # the block is not whole: leave it, and what it added, out
            bad[:] = saved_bad
            return status, first, n_in_batch, n_blocks, block_runs
        blocks[n_blocks, 0] = tag
        blocks[n_blocks, 1] = start
        blocks[n_blocks, 2] = stop
        blocks[n_blocks, 3] = first
        n_blocks += 1
        n_in_batch -= 1
        saved_bad[:] = bad


@njit(cache=True, nogil=True, inline="always")
def _put_pair(
    k: Any, crystal_0: Any, crystal_1: Any, tof: Any, mirrored: Any,
    crystal_a: U32, crystal_b: U32, tof_bin: I16,
) -> None:  # fmt: skip
    """Store an event in canonical order; an exchanged pair has its TOF bin mirrored."""
    if crystal_0 < crystal_1:
        crystal_a[k] = crystal_0
        crystal_b[k] = crystal_1
        tof_bin[k] = tof
    else:
        crystal_a[k] = crystal_1
        crystal_b[k] = crystal_0
        tof_bin[k] = mirrored


@njit(cache=True, nogil=True)
def decode_yardl(
    data: U8, runs: I64, skip: int, n_types: int, first_crystal: I64, n_energy: I64,
    n_bins: I64, n_tof: I64, has_tof: bool, crystal_a: U32, crystal_b: U32, tof_bin: I16,
) -> None:  # fmt: skip
    """Decode events of runs into columns, leaving out the first ``skip`` valid ones.

    ``tofIdx`` rises with the position towards the first detector's partner, that is with
    ``t_0 - t_1``; an exchanged pair mirrors it.
    """
    n = crystal_a.size
    k = -skip
    for r in range(len(runs)):
        type_0, type_1 = runs[r, 2] // n_types, runs[r, 2] % n_types
        energy_0, energy_1 = n_energy[type_0], n_energy[type_1]
        bins_0, bins_1 = n_bins[type_0], n_bins[type_1]
        base_0, base_1 = first_crystal[type_0], first_crystal[type_1]
        pair_tof = n_tof[runs[r, 2]]
        same_type = type_0 == type_1
        p = np.uint64(runs[r, 3])
        if runs[r, 4] == runs[r, 5] and k >= 0 and energy_0 == 1 and energy_1 == 1 and has_tof:
            # Most runs: nothing in an event is to be left out.
            m = min(runs[r, 4], n - k)
            for i in range(k, k + m):
                bin_0, p = _fast_varint(data, p)
                bin_1, p = _fast_varint(data, p)
                tof, p = _fast_varint(data, p)
                _put_pair(
                    i, base_0 + bin_0, base_1 + bin_1, tof, pair_tof - 1 - tof,
                    crystal_a, crystal_b, tof_bin,
                )  # fmt: skip
            k += m
            continue
        for _ in range(runs[r, 4]):
            bin_0, p = _fast_varint(data, p)
            bin_1, p = _fast_varint(data, p)
            tof, p = _fast_varint(data, p)
            if bin_0 >= bins_0 or bin_1 >= bins_1 or tof >= pair_tof:
                continue
            element_0 = bin_0 if energy_0 == 1 else bin_0 // energy_0
            element_1 = bin_1 if energy_1 == 1 else bin_1 // energy_1
            if same_type and element_0 == element_1:
                continue
            if k >= n:
                return
            if k >= 0:
                _put_pair(
                    k, base_0 + element_0, base_1 + element_1, tof if has_tof else 0,
                    pair_tof - 1 - tof if has_tof else 0, crystal_a, crystal_b, tof_bin,
                )  # fmt: skip
            k += 1


@njit(cache=True, nogil=True)
def survey_siemens(words: U32, max_jump_ms: int, found: I64) -> None:
    """Count what a Siemens 32-bit stream holds.

    ``found`` gets: prompts, delayeds, time tags, other tags, events before the first time tag,
    first tick, last tick, time tags that go back or jump, largest address. Shape (9,), int64.
    """
    prompts, delayeds, tags, others, early, bad = 0, 0, 0, 0, 0, 0
    largest: Any = 0
    first: Any = -1
    last: Any = -1
    for i in range(words.size):
        word = np.int64(words[i])
        if word < 0x80000000:
            if word & 0x40000000:
                prompts += 1
            else:
                delayeds += 1
            if last < 0:
                early += 1
            address = word & 0x3FFFFFFF
            if address > largest:
                largest = address
        elif word < 0xA0000000:
            tags += 1
            time = word & 0x1FFFFFFF
            if last < 0:
                first = last = time
            elif last <= time <= last + max_jump_ms:
                last = time
            else:
                bad += 1
        else:
            others += 1
    found[0], found[1], found[2], found[3], found[4] = prompts, delayeds, tags, others, early
    found[5], found[6], found[7], found[8] = first, last, bad, largest


@njit(cache=True, nogil=True)
def index_siemens(
    words: U32, max_jump_ms: int, start_ms: int, is_pair: B8, n_planes: int,
    word_at: I64, prompts: I64, delayeds: I64, rejected: I64,
) -> None:  # fmt: skip
    """Note where each tick begins and count its events that name two crystals.

    Parameters
    ----------
    words, max_jump_ms, start_ms
        The stream, the longest believable step of its clock, and its first tick.
    is_pair
        Whether both slots of each transaxial address hold crystals. Shape (252 * 344,).
    n_planes
        Planes of the sinogram.
    word_at, prompts, delayeds
        Out: the first word of each tick, and its events counted up (offsets). Shape
        (n_ticks + 1,).
    rejected
        Out: events with an empty slot, and with an address outside the sinogram. Shape (2,).
    """
    end = np.uint64(n_planes)
    tick: Any = -1
    for i in range(words.size):
        word = np.int64(words[i])
        if word < 0x80000000:
            if tick < 0:
                continue
            address = np.uint64(word) & _EVENT_ADDRESS
            plane = address // _SINOGRAM_BINS
            if plane >= end:
                rejected[1] += 1
            elif not is_pair[address - plane * _SINOGRAM_BINS]:
                rejected[0] += 1
            elif word & 0x40000000:
                prompts[tick + 1] += 1
            else:
                delayeds[tick + 1] += 1
        elif word < 0xA0000000:
            time = (word & 0x1FFFFFFF) - start_ms
            if tick < 0 or tick <= time <= tick + max_jump_ms:
                for t in range(tick + 1, time + 1):
                    word_at[t] = i
                tick = time
    word_at[tick + 1] = words.size
    for t in range(tick + 1):
        prompts[t + 1] += prompts[t]
        delayeds[t + 1] += delayeds[t]


@njit(cache=True, nogil=True)
def decode_siemens(
    words: U32, first_word: int, skip: int, is_prompt: bool, pair: U32, plane_start: U32,
    crystal_a: U32, crystal_b: U32,
) -> None:  # fmt: skip
    """Decode events of one stream into crystal columns, leaving out the first ``skip``.

    ``pair`` holds the two crystals around the ring of each transaxial address, the first one in
    the lower 16 bits, or ``NO_CRYSTAL``; ``plane_start`` likewise the first crystals of the two
    rings of each plane. Two numbers in one keep the table in the second-level cache.
    """
    end = np.uint64(plane_start.size)
    n = crystal_a.size
    wanted = 0x40000000 if is_prompt else 0
    k = -skip
    for i in range(first_word, words.size):
        word = np.int64(words[i])
        if word >= 0x80000000 or (word & 0x40000000) != wanted:
            continue
        address = np.uint64(word) & _EVENT_ADDRESS
        plane = address // _SINOGRAM_BINS
        if plane >= end:
            continue
        both = pair[address - plane * _SINOGRAM_BINS]
        if both == NO_CRYSTAL:
            continue
        if k >= n:
            return
        if k >= 0:
            start = plane_start[plane]
            crystal_0 = (start & _LOW_HALF) + (both & _LOW_HALF)
            crystal_1 = (start >> _HALF) + (both >> _HALF)
            crystal_a[k] = min(crystal_0, crystal_1)
            crystal_b[k] = max(crystal_0, crystal_1)
        k += 1


@njit(cache=True, nogil=True)
def _put_varint(out: U8, p: int, value: Any) -> int:
    """Write a varint; return the place after it."""
    while value > 127:
        out[p] = (value & 127) | 128
        value >>= 7
        p += 1
    out[p] = value
    return p + 1


@njit(cache=True, nogil=True)
def _put_events(
    out: U8, p: int, crystal_a: U32, crystal_b: U32, tof_bin: I16, first: int, last: int,
    n_tof: int,
) -> int:  # fmt: skip
    """Write one list of coincidences of one pair of types (both type 0)."""
    p = _put_varint(out, p, 1)
    p = _put_varint(out, p, 1)
    p = _put_varint(out, p, last - first)
    for i in range(first, last):  # PETSIRD orders bin 0 >= bin 1, which mirrors TOF
        p = _put_varint(out, p, np.int64(crystal_b[i]))
        p = _put_varint(out, p, np.int64(crystal_a[i]))
        p = _put_varint(out, p, n_tof - 1 - np.int64(tof_bin[i]))
    return p


@njit(cache=True, nogil=True)
def encode_petsird(
    start_ms: int, block_ms: int, n_tof: int,
    prompt_offset: I64, prompt_a: U32, prompt_b: U32, prompt_tof: I16,
    delayed_offset: I64, delayed_a: U32, delayed_b: U32, delayed_tof: I16,
    before: U8, between: U8, after: U8, out: U8,
) -> int:  # fmt: skip
    """Write consecutive ticks as event blocks; return the number of bytes.

    Parameters
    ----------
    start_ms, block_ms, n_tof
        Time of the first tick, ticks a block, TOF bins.
    prompt_offset, delayed_offset
        First event of each tick, from 0. Shape (n_ticks + 1,).
    prompt_a, prompt_b, prompt_tof, delayed_a, delayed_b, delayed_tof
        Events.
    before, between, after
        The empty fields before the prompts, between prompts and delayeds, and after those.
    out
        Out: room for 15 bytes an event and 64 more, with the empty fields, a block.
    """
    p = 0
    n_ticks = prompt_offset.size - 1
    for first in range(0, n_ticks, block_ms):
        last = min(first + block_ms, n_ticks)
        p = _put_varint(out, p, 1)  # one item in this batch of the stream
        out[p] = 0  # the union's first case: a block of events
        p += 1
        p = _put_varint(out, p, start_ms + first)
        p = _put_varint(out, p, start_ms + last)
        for byte in before:
            out[p] = byte
            p += 1
        p = _put_events(
            out, p, prompt_a, prompt_b, prompt_tof, prompt_offset[first], prompt_offset[last],
            n_tof,
        )  # fmt: skip
        for byte in between:
            out[p] = byte
            p += 1
        p = _put_events(
            out, p, delayed_a, delayed_b, delayed_tof, delayed_offset[first],
            delayed_offset[last], n_tof,
        )  # fmt: skip
        for byte in after:
            out[p] = byte
            p += 1
    return p


@njit(cache=True, nogil=True)
def _safir_pair(word: Any, table: I32) -> tuple[Any, Any]:
    """Give the two crystals of a SAFIR event in order; the first is -1 if one is unknown."""
    n_rings, n_around = table.shape
    ring_0, ring_1 = word & 0xFF, (word >> 8) & 0xFF
    around_0, around_1 = (word >> 16) & 0xFFFF, (word >> 32) & 0xFFFF
    if (word >> 48) & 0xFF or ring_0 >= n_rings or ring_1 >= n_rings:
        return -1, -1
    if around_0 >= n_around or around_1 >= n_around:
        return -1, -1
    one, other = table[ring_0, around_0], table[ring_1, around_1]
    if one < 0 or other < 0 or one == other:
        return -1, -1
    return min(one, other), max(one, other)


@njit(cache=True, nogil=True)
def survey_safir(words: I64, max_jump_ms: int, found: I64) -> None:
    """Count what a SAFIR stream holds.

    ``found`` gets: prompts, delayeds, time tags, events before the first tag, first tick, last
    tick, tags that go back or jump. Shape (7,), int64. Words are read as signed: tags are the
    negative ones.
    """
    first: Any = -1
    last: Any = -1
    for word in words:
        if word >= 0:
            found[(word >> 62) & 1] += 1
            if last < 0:
                found[3] += 1
        else:
            found[2] += 1
            time = word & 0xFFFFFFFFFFFF
            if last < 0:
                first = last = time
            elif last <= time <= last + max_jump_ms:
                last = time
            else:
                found[6] += 1
    found[4], found[5] = first, last


@njit(cache=True, nogil=True)
def index_safir(
    words: I64, max_jump_ms: int, start_ms: int, table: I32,
    word_at: I64, prompts: I64, delayeds: I64,
) -> int:  # fmt: skip
    """Note where each tick begins and count its events; return the events left out.

    ``table`` gives the crystal of each ring and place around it, -1 for none. ``word_at``,
    ``prompts`` and ``delayeds`` are as in :func:`index_siemens`.
    """
    rejected = 0
    tick: Any = -1
    for i in range(words.size):
        word = words[i]
        if word >= 0:
            if tick < 0:
                continue
            if _safir_pair(word, table)[0] < 0:
                rejected += 1
            elif (word >> 62) & 1:
                delayeds[tick + 1] += 1
            else:
                prompts[tick + 1] += 1
        else:
            time = (word & 0xFFFFFFFFFFFF) - start_ms
            if tick < 0 or tick <= time <= tick + max_jump_ms:
                for t in range(tick + 1, time + 1):
                    word_at[t] = i
                tick = time
    word_at[tick + 1] = words.size
    for t in range(tick + 1):
        prompts[t + 1] += prompts[t]
        delayeds[t + 1] += delayeds[t]
    return rejected


@njit(cache=True, nogil=True)
def decode_safir(
    words: I64, first_word: int, skip: int, is_delayed: int, table: I32, crystal_a: U32,
    crystal_b: U32,
) -> None:  # fmt: skip
    """Decode events of one stream into crystal columns, leaving out the first ``skip``."""
    n = crystal_a.size
    k = -skip
    for i in range(first_word, words.size):
        word = words[i]
        if word < 0 or ((word >> 62) & 1) != is_delayed:
            continue
        one, other = _safir_pair(word, table)
        if one < 0:
            continue
        if k >= n:
            return
        if k >= 0:
            crystal_a[k] = one
            crystal_b[k] = other
        k += 1


_FLETCHER_RUN = 1 << 20  # words whose sums stay far below 2**64


@njit(cache=True, nogil=True)
def _fold(value: Any) -> Any:
    """Reduce modulo 65535; multiples become 65535, and only zero stays zero."""
    if value == 0:
        return np.uint64(0)
    return (value - np.uint64(1)) % np.uint64(65535) + np.uint64(1)


@njit(cache=True, nogil=True)
def fletcher32(words: U16) -> int:
    """Give the checksum that HDF5's fletcher32 filter stores after a chunk.

    Parameters
    ----------
    words
        The chunk's bytes as little-endian words. Shape (n_words,), uint16.

    Notes
    -----
    HDF5 sums big-endian words modulo 65535 (H5checksum.c; RFC 1146 for the sum). Swapping the
    bytes of a word multiplies it by 256 modulo 65535, so the little-endian sums are made first,
    without a division a word, and multiplied at the end.

    The second sum adds up the first one, ``sum (n - i) w_i``. Four lanes of every fourth word
    run beside each other (lane j: ``s_j = sum w``, ``r_j`` adds up ``s_j``), and for whole runs
    of m words it is ``sum (4 r_j - j s_j)``. That makes vector instructions of it: 0.15 ns a
    word where one word after another took 3.
    """
    total = words.size
    sum_1 = np.uint64(0)
    sum_2 = np.uint64(0)
    four = np.uint64(4)
    at = 0
    while total - at >= 4:
        m = min(total - at, _FLETCHER_RUN) & ~3
        s_0, s_1, s_2, s_3 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        r_0, r_1, r_2, r_3 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        part = words[at : at + m]
        for i in range(m >> 2):
            s_0 += np.uint64(part[4 * i])
            s_1 += np.uint64(part[4 * i + 1])
            s_2 += np.uint64(part[4 * i + 2])
            s_3 += np.uint64(part[4 * i + 3])
            r_0 += s_0
            r_1 += s_1
            r_2 += s_2
            r_3 += s_3
        run = four * (r_0 + r_1 + r_2 + r_3) - (s_1 + np.uint64(2) * s_2 + np.uint64(3) * s_3)
        sum_2 = _fold(sum_2 + np.uint64(m) * sum_1 + run)
        sum_1 = _fold(sum_1 + s_0 + s_1 + s_2 + s_3)
        at += m
    for i in range(at, total):
        sum_1 += np.uint64(words[i])
        sum_2 += sum_1
    low: Any = (np.int64(sum_1 % np.uint64(65535)) * 256) % 65535
    high: Any = (np.int64(sum_2 % np.uint64(65535)) * 256) % 65535
    if low == 0 and sum_1 > 0:  # the filter's folding never ends at 0 but for all zeros
        low = 65535
    if high == 0 and sum_2 > 0:
        high = 65535
    both: int = (high << 16) | low
    return both
