"""New files from old ones: nothing is lost that the format can hold, and losses are told."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats._hdf5_layout import CHUNK_EVENTS
from listmode.formats.convert import (
    convert_listmode,
    repair_listmode,
    thin_listmode,
)
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.validate import validate_listmode
from listmode.source import Stream
from listmode.windows import Windows
from tests.strategies import joined, random_scan, same_events

STREAMS: tuple[Stream, Stream] = ("prompts", "delayeds")


def test_hdf5_to_petsird_and_back_is_exact(tmp_path: Path) -> None:
    scan = random_scan(1, n_prompts=100_000, n_delayeds=20_000, n_ticks=400)
    held = Windows([10, 200], [150, 390])
    cut_listmode(scan, held, tmp_path / "one.h5")
    with open_listmode(tmp_path / "one.h5") as one:
        convert_listmode(one, tmp_path / "two.petsird")
        with open_listmode(tmp_path / "two.petsird") as two:
            convert_listmode(two, tmp_path / "three.h5")
        with open_listmode(tmp_path / "three.h5") as three:
            assert three.scanner.digest == one.scanner.digest
            assert three.protocol == one.protocol
            assert three.extent == one.extent == held
            for stream in STREAMS:
                assert np.array_equal(three.tick_offset(stream), one.tick_offset(stream))
                n = one.n_events(stream)
                assert same_events(three.read(stream, 0, n), one.read(stream, 0, n))


def test_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be one of \.h5, .*'scan\.xyz' ends otherwise"):
        convert_listmode(random_scan(1), tmp_path / "scan.xyz")


@pytest.mark.stats
def test_thinning_keeps_the_stated_share_and_says_so(tmp_path: Path) -> None:
    """Fixed seed; a binomial count beyond 6 sigma has a chance of 2e-9."""
    scan = random_scan(1, n_prompts=100_000, n_delayeds=20_000, n_ticks=300, has_truth=True)
    thin_listmode(scan, tmp_path / "thin.h5", 0.2, seed=3)
    with open_listmode(tmp_path / "thin.h5") as thin:
        for stream, n in zip(STREAMS, (100_000, 20_000), strict=True):
            kept = thin.n_events(stream)
            assert abs(kept - 0.2 * n) < 6 * np.sqrt(0.16 * n)
        assert thin.protocol.count_fraction == pytest.approx(0.25 * 0.2)
        assert "thinned to 0.2 of the events (seed 3)" in thin.notes[-1]
        first = Windows([0], [150])
        assert abs(thin.count(first) - 0.2 * scan.count(first)) < 6 * np.sqrt(16_000)


def test_thinned_events_are_a_part_of_the_scan_in_order(tmp_path: Path) -> None:
    scan = random_scan(1, n_prompts=3000, has_truth=True)
    assert scan.truth is not None
    thin_listmode(scan, tmp_path / "thin.h5", 0.5, seed=1)
    with open_listmode(tmp_path / "thin.h5") as thin:
        tick = np.repeat(np.arange(40), np.diff(scan.prompts_offset))
        batch = scan.prompts
        events = list(
            zip(tick, batch.crystal_a, batch.crystal_b, batch.tof_bin, scan.truth, strict=True)
        )
        got = thin.read("prompts", 0, thin.n_events())
        thin_tick = np.repeat(np.arange(40), np.diff(thin.tick_offset()))
        truth = thin.read_truth(0, thin.n_events())
        assert truth is not None
        whole = iter(events)
        for event in zip(
            thin_tick, got.crystal_a, got.crystal_b, got.tof_bin, truth, strict=True
        ):
            assert event in whole  # moves on: order is kept and no event comes twice


def test_thinning_follows_the_seed_and_not_the_parts_it_is_read_in(tmp_path: Path) -> None:
    scan = random_scan(1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        thin_listmode(scan, tmp_path / f"{name}.h5", 0.5, seed=seed)
    a, b, c = (open_listmode(tmp_path / f"{name}.h5") for name in "abc")
    assert same_events(a.read("prompts", 0, 500), b.read("prompts", 0, 500))
    assert not same_events(a.read("prompts", 0, 500), c.read("prompts", 0, 500))


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_share_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(InputError, match=r"events to keep must lie in \(0, 1\]"):
        thin_listmode(random_scan(1), tmp_path / "thin.h5", fraction, seed=1)


def test_sound_file_has_no_faults(tmp_path: Path) -> None:
    scan = random_scan(1, has_truth=True)
    cut_listmode(scan, Windows([0, 20], [10, 40]), tmp_path / "scan.h5")
    found = validate_listmode(tmp_path / "scan.h5")
    assert found.is_sound
    assert found.n_prompts == scan.count(Windows([0, 20], [10, 40]))


def _spoil(path: Path, name: str, place: int, value: int) -> None:
    with h5py.File(path, "r+") as file:
        file[name][place] = value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompts/crystal_b", 100_000, "1 of the prompts do not; the first is event 7"),
        ("delayeds/tof_bin", 55, "1 of the delayeds do not; the first is event 7"),
        ("prompts/truth", 9, "truth of 1 prompts is none of 0, 1 and 2"),
        ("prompts/crystal_a", 143, "crystal pairs must be ordered"),
    ],
)
def test_faults_of_events_are_named(
    tmp_path: Path, name: str, value: int, message: str
) -> None:
    scan = random_scan(1, has_truth=True)
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    _spoil(tmp_path / "scan.h5", name, 7, value)
    found = validate_listmode(tmp_path / "scan.h5")
    assert len(found.faults) == 1
    assert re.search(message, found.faults[0])


def test_repair_leaves_out_the_ticks_of_damaged_events(tmp_path: Path) -> None:
    scan = random_scan(1, has_truth=True)
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    _spoil(tmp_path / "scan.h5", "prompts/crystal_b", 7, 100_000)
    _spoil(tmp_path / "scan.h5", "delayeds/crystal_a", 70, 143)
    bad = {
        int(np.searchsorted(scan.prompts_offset, 7, side="right")) - 1,
        int(np.searchsorted(scan.tick_offset("delayeds"), 70, side="right")) - 1,
    }
    held = repair_listmode(tmp_path / "scan.h5", tmp_path / "new.h5")
    assert held.duration_s == pytest.approx(0.040 - 0.001 * len(bad))
    assert not held.covers(list(bad)).any()
    with open_listmode(tmp_path / "new.h5") as new:
        assert new.extent == held
        assert same_events(joined(list(new.events())), joined(list(scan.events(held))))
        assert f"repaired: {0.001 * len(bad):g} s could not be read" in new.notes[-1]
    assert validate_listmode(tmp_path / "new.h5").is_sound


def test_repair_saves_all_but_a_chunk_with_a_wrong_checksum(tmp_path: Path) -> None:
    scan = random_scan(2, n_prompts=3 * CHUNK_EVENTS, n_ticks=3000)
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r") as file:
        at = file["prompts/tof_bin"].id.get_chunk_info(1).byte_offset
    with (tmp_path / "scan.h5").open("r+b") as raw:
        raw.seek(at + 50)
        raw.write(b"\x7f\x7f")
    assert not validate_listmode(tmp_path / "scan.h5").is_sound
    held = repair_listmode(tmp_path / "scan.h5", tmp_path / "new.h5")
    lost = scan.n_events() - scan.count(held)
    assert CHUNK_EVENTS <= lost < 1.05 * CHUNK_EVENTS
    with open_listmode(tmp_path / "new.h5") as new:
        assert same_events(joined(list(new.events())), joined(list(scan.events(held))))


def test_file_without_a_readable_tick_cannot_be_repaired(tmp_path: Path) -> None:
    scan = random_scan(1, n_ticks=1)
    cut_listmode(scan, scan.extent, tmp_path / "scan.h5")
    _spoil(tmp_path / "scan.h5", "prompts/crystal_b", 7, 100_000)
    with pytest.raises(InputError, match=r"at least one tick of 'scan\.h5' must be readable"):
        repair_listmode(tmp_path / "scan.h5", tmp_path / "new.h5")
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.outside
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "stir/small_listmode_file.l",
        "stir/safir/point_5.clm.safir",
        "petsird/petsird_rich_two_types_v0.12.0.petsird",
    ],
)
@pytest.mark.parametrize("ending", [".petsird", ".cdh"])
def test_real_scan_goes_through_another_format_and_back_exactly(
    tmp_path: Path, outside_data: Path, name: str, ending: str
) -> None:
    with open_listmode(outside_data / name) as scan:
        convert_listmode(scan, tmp_path / f"there{ending}")
        with open_listmode(tmp_path / f"there{ending}") as there:
            convert_listmode(there, tmp_path / "back.h5")
        with open_listmode(tmp_path / "back.h5") as back:
            assert back.scanner.digest == scan.scanner.digest
            assert back.protocol == scan.protocol
            assert back.extent == scan.extent
            for stream in STREAMS:
                assert np.array_equal(back.tick_offset(stream), scan.tick_offset(stream))
                got = joined(list(back.events(stream=stream)))
                assert same_events(got, joined(list(scan.events(stream=stream))))
    assert validate_listmode(tmp_path / "back.h5").is_sound
