"""GATE ROOT: crystals, sign of TOF and truth, against a toy simulation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats._gate_map import BRANCHES, crystals_by_ids, load_gate_map
from listmode.formats._sandbox import trust
from listmode.formats.convert import convert_listmode
from listmode.formats.gate import GateListmode
from listmode.formats.info import describe
from listmode.formats.validate import validate_listmode
from recon.cli import app
from tests.strategies import joined, same_events
from tests.toy_scan import (
    N_ACROSS,
    N_BLOCKS,
    N_DEEP,
    N_UNITS,
    SCANNER_TOML,
    Columns,
    Toy,
    toy,
)

uproot = pytest.importorskip("uproot", reason="the gate extra is not installed")

NEAREST = 'scanner = "toy.toml"\n'
IDS = NEAREST + (
    f"[ids]\nrsector = [{N_BLOCKS}, 1]\nmodule = [1, {N_UNITS}]\n"
    f"crystal = [{N_ACROSS}, {N_DEEP}]\n"
)


def write(folder: Path, columns: Columns, map_text: str = NEAREST, **more: Columns) -> Path:
    """Write a ROOT file, its scanner and its map."""
    (folder / "toy.toml").write_text(SCANNER_TOML, "utf-8")
    (folder / "scan.gate.toml").write_text(map_text, "utf-8")
    with uproot.recreate(folder / "scan.root") as file:
        for name, table in {"Coincidences": columns, **more}.items():
            file.mktree(name, {k: v.dtype for k, v in table.items()})
            half = len(next(iter(table.values()))) // 2
            for part in (slice(0, half), slice(half, None)):
                file[name].extend({k: v[part] for k, v in table.items()})
    trust(folder / "scan.root")  # written here: a child that looks first would only cost time
    return folder / "scan.root"


def opened(path: Path) -> GateListmode:
    read = open_listmode(path)
    assert isinstance(read, GateListmode)
    return read


def _pairs(made: Toy) -> list[tuple[int, int]]:
    return [(min(a, b), max(a, b)) for a, b in made.crystals.tolist()]


@pytest.mark.parametrize("map_text", [NEAREST, IDS])
def test_every_event_gets_its_two_crystals_and_its_tick(tmp_path: Path, map_text: str) -> None:
    made = toy(1)
    assert len(made.crystals) > 3000
    with opened(write(tmp_path, made.columns, map_text)) as read:
        assert read.n_events() == len(made.crystals)
        batch = joined(list(read.events()))
        got = zip(batch.crystal_a.tolist(), batch.crystal_b.tolist(), strict=True)
        assert list(got) == _pairs(made)
        tick = np.floor(made.columns["time1"] * 1000).astype(np.int64)
        counts = np.bincount(tick - read.start_ms, minlength=read.stop_ms - read.start_ms)
        assert np.array_equal(np.diff(read.tick_offset()), counts)
        assert (read.start_ms, read.stop_ms) == (tick.min(), tick.max() + 1)
        assert read.defects == ()
        assert read.is_complete
        assert read.clock_zero == "time 0 of the GATE simulation"


def test_sign_of_tof_leads_back_to_an_off_centre_source(tmp_path: Path) -> None:
    """The point at c/2 tof from the middle towards b is the source, for each single event."""
    made = toy(2)
    with opened(write(tmp_path, made.columns)) as read:
        batch = joined(list(read.events()))
        place = read.scanner.crystal_position_mm.astype(np.float64)
        a, b = place[batch.crystal_a], place[batch.crystal_b]
        towards_b = (b - a) / np.linalg.norm(b - a, axis=1)[:, None]
        likely = (a + b) / 2 + read.scanner.tof.bin_centre_mm()[batch.tof_bin][
            :, None
        ] * towards_b
        # 13 mm of depth, half a bin (3.7 mm) and half a crystal blur a single event.
        assert np.median(np.linalg.norm(likely - made.source_mm, axis=1)) < 12.0
        assert np.abs(likely.mean(axis=0) - made.source_mm[0]).max() < 1.0


def test_truth_is_that_of_the_simulation_and_goes_into_hdf5(tmp_path: Path) -> None:
    made = toy(3)
    with opened(write(tmp_path, made.columns)) as read:
        truth = read.read_truth(0, read.n_events())
        assert truth is not None
        assert np.array_equal(truth, made.truth)
        n = np.bincount(made.truth)
        expected = {"trues": n[0], "scattered": n[1], "randoms": n[2]}
        assert {k: read.tags[k] for k in expected} == expected
        assert describe(read).tags["trues"] == n[0]
        convert_listmode(read, tmp_path / "scan.h5")
        with open_listmode(tmp_path / "scan.h5") as kept:
            again = kept.read_truth(0, kept.n_events())
            assert again is not None
            assert np.array_equal(again, made.truth)
            assert same_events(joined(list(kept.events())), joined(list(read.events())))
    assert validate_listmode(tmp_path / "scan.h5").is_sound


def test_command_line_takes_the_map_as_header(tmp_path: Path) -> None:
    made = toy(3, 300)
    path = write(tmp_path, made.columns)
    (tmp_path / "scan.gate.toml").rename(tmp_path / "map.toml")
    out = tmp_path / "scan.h5"
    command = ["convert", path, out, "--header", tmp_path / "map.toml", "--json"]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n_prompts"] == len(made.crystals)
    result = CliRunner().invoke(app, ["info", str(out)])
    assert "energies and places of the source are not kept" in result.stdout


def test_delayeds_are_a_stream_whose_offset_is_no_tof(tmp_path: Path) -> None:
    made, late = toy(4), toy(5, 500)
    late.columns["time2"] += 500e-9
    text = NEAREST + "[trees]\ndelayeds = 'delay'\ndelayed_offset_s = 500e-9\n"
    with opened(write(tmp_path, made.columns, text, delay=late.columns)) as read:
        assert read.n_events("delayeds") == len(late.crystals)
        assert read.tags["delayeds"] == len(late.crystals)
        assert joined(list(read.events(stream="delayeds"))).crystal_a.tolist() == [
            a for a, _ in _pairs(late)
        ]
    with opened(write(tmp_path, made.columns, NEAREST, delay=late.columns)) as read:
        assert read.n_events("delayeds") == 0
        assert (
            f"{len(late.crystals)} delayeds have a time difference outside the TOF bins"
            in (read.defects[-1])
        )


def test_events_that_are_not_in_order_are_sorted_and_said_to_be(tmp_path: Path) -> None:
    made = toy(6)
    order = np.random.default_rng(1).permutation(len(made.crystals))
    mixed = {name: values[order] for name, values in made.columns.items()}
    one = opened(write(tmp_path, made.columns))
    (tmp_path / "mixed").mkdir()
    two = opened(write(tmp_path / "mixed", mixed))
    assert "the prompts were not in order of time: sorted" in two.notes
    assert np.array_equal(one.tick_offset(), two.tick_offset())
    for tick in (0, 7, 200):
        a, b = one.tick_offset()[tick : tick + 2].tolist()
        key = [
            sorted(zip(p.crystal_a, p.crystal_b, p.tof_bin, strict=True))
            for p in (one.read("prompts", a, b), two.read("prompts", a, b))
        ]
        assert key[0] == key[1]
    one.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"globalPosX1": 5000.0}, "1 prompts have no crystal"),
        ({"globalPosZ2": np.nan}, "1 prompts have no crystal"),
        ({"time1": np.nan}, "1 prompts have a time that is no number"),
        ({"time1": 1e9}, "1 prompts have a time that is no number or beyond 12 h"),
        ({"time1": 0.1, "time2": 0.2}, "1 prompts have a time difference outside the TOF"),
    ],
)
def test_what_does_not_fit_is_left_out_and_counted(
    tmp_path: Path, change: dict[str, float], reason: str
) -> None:
    made = toy(7, 100)
    for name, value in change.items():
        made.columns[name][50] = value
    with opened(write(tmp_path, made.columns)) as read:
        assert read.n_events() == len(made.crystals) - 1
        assert [d for d in read.defects if reason in d]
        assert read.tags["prompts"] == len(made.crystals)


def test_pair_of_one_crystal_is_left_out(tmp_path: Path) -> None:
    made = toy(7, 100)
    for axis in "XYZ":
        made.columns[f"globalPos{axis}2"][3] = made.columns[f"globalPos{axis}1"][3]
    with opened(write(tmp_path, made.columns)) as read:
        assert "1 prompts have one crystal twice: left out" in read.defects


def test_copy_numbers_that_do_not_exist_are_no_crystal(tmp_path: Path) -> None:
    made = toy(8, 300)
    for k, bad in ((1, 16), (2, -1)):
        made.columns["rsectorID1"][k] = bad
    made.columns["crystalID2"][9] = 36
    with opened(write(tmp_path, made.columns, IDS)) as read:
        assert "3 prompts have no crystal: left out" in read.defects


def test_axes_of_gate_may_be_turned(tmp_path: Path) -> None:
    """GATE's world turned by a quarter about z and moved by 100 mm along it."""
    made = toy(9)
    for k in "12":
        x, y = (made.columns[f"globalPos{axis}{k}"].copy() for axis in "XY")
        made.columns[f"globalPosX{k}"], made.columns[f"globalPosY{k}"] = y, -x
        made.columns[f"globalPosZ{k}"] += np.float32(100)
    text = NEAREST + "scanner_from_gate = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, -100]]\n"
    with opened(write(tmp_path, made.columns, text)) as read:
        batch = joined(list(read.events()))
        got = zip(batch.crystal_a.tolist(), batch.crystal_b.tolist(), strict=True)
        assert np.mean([g == m for g, m in zip(got, _pairs(made), strict=True)]) > 0.999


@pytest.mark.parametrize(("first", "sense"), [(6, 1), (0, -1), (12, -1)])
def test_ids_may_count_from_elsewhere_and_the_other_way(
    tmp_path: Path, first: int, sense: int
) -> None:
    """Numbers are made from our places around the ring by the inverse rule, by hand."""
    made = toy(10)
    for j, k in enumerate("12"):
        place = made.crystals[:, j] % (N_BLOCKS * N_ACROSS)
        theirs = np.array([(sense * (p - first)) % (N_BLOCKS * N_ACROSS) for p in place])
        ring = made.crystals[:, j] // (N_BLOCKS * N_ACROSS)
        made.columns[f"rsectorID{k}"] = (theirs // N_ACROSS).astype(np.int32)
        made.columns[f"crystalID{k}"] = (ring % N_DEEP * N_ACROSS + theirs % N_ACROSS).astype(
            np.int32
        )
    text = IDS + f"first_transaxial = {first}\nsense = {sense}\n"
    with opened(write(tmp_path, made.columns, text)) as read:
        batch = joined(list(read.events()))
        got = list(zip(batch.crystal_a.tolist(), batch.crystal_b.tolist(), strict=True))
        assert got == _pairs(made)
    with pytest.raises(InputError, match=r"places lie more than 7\.\d+ mm from the crystal so"):
        opened(write(tmp_path, made.columns, IDS))


def test_names_and_units_of_gate_10_can_be_given(tmp_path: Path) -> None:
    made = toy(11)
    names = {
        "time": "GlobalTime", "eventID": "EventID", "globalPosX": "PostPosition_X",
        "globalPosY": "PostPosition_Y", "globalPosZ": "PostPosition_Z",
    }  # fmt: skip
    renamed = {
        f"{new}{k}": made.columns[f"{old}{k}"] for old, new in names.items() for k in "12"
    }
    for k in "12":
        renamed[f"GlobalTime{k}"] = renamed[f"GlobalTime{k}"] * 1e9
    text = NEAREST + (
        "time_unit_s = 1e-9\n[trees]\nprompts = 'coincidences'\n[branches]\n"
        "time = 'GlobalTime'\nevent = 'EventID'\nx = 'PostPosition_X'\n"
        "y = 'PostPosition_Y'\nz = 'PostPosition_Z'\n"
    )
    write(tmp_path, made.columns)
    old = opened(tmp_path / "scan.root")
    expected = joined(list(old.events()))
    with opened(write(tmp_path, {"x": np.zeros(2)}, text, coincidences=renamed)) as read:
        got = joined(list(read.events()))
        assert np.array_equal(got.crystal_a, expected.crystal_a)
        assert np.mean(got.tof_bin == expected.tof_bin) > 0.99  # ns and s round differently
        assert read.read_truth(0, 1) is None
        assert "the file does not tell trues, scatter and randoms apart" in read.notes


def test_scatter_without_rayleigh_is_noted(tmp_path: Path) -> None:
    made = toy(12, 200)
    for k in "12":
        del made.columns[f"RayleighPhantom{k}"]
    with opened(write(tmp_path, made.columns)) as read:
        assert "scatter is told by Compton scattering alone" in read.notes


def test_map_is_found_beside_the_file_or_given(tmp_path: Path) -> None:
    path = write(tmp_path, toy(13, 100).columns)
    (tmp_path / "scan.gate.toml").rename(tmp_path / "other.gate.toml")
    assert opened(path).n_events() > 0
    (tmp_path / "third.gate.toml").write_text(NEAREST)
    with pytest.raises(InputError, match=r"neither 'scan\.gate\.toml' nor one other"):
        open_listmode(path)
    with open_listmode(path, header=tmp_path / "third.gate.toml") as read:
        assert read.n_events() > 0
    with pytest.raises(InputError, match=r"a GATE map must be readable, but 'no\.toml' is not"):
        open_listmode(path, header=tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scaner = 1", "it has 'scaner', which is none of branches, crystals"),
        ("x = ", "is not: Invalid value"),
        ("[ids]\nrsector = [1, 1]", "is not: 'scanner'"),
        (NEAREST + "crystals = 'magic'", "crystals is 'magic', neither 'nearest' nor 'ids'"),
        (NEAREST + "max_distance_mm = -1", "max_distance_mm must be positive, but it is -1"),
        (NEAREST + "time_unit_s = 0", "time_unit_s must be positive"),
        (NEAREST + "scanner_from_gate = [[1, 2]]", "three rows of four numbers"),
        (NEAREST + "[ids]\nsense = 2", "sense is 2, neither 1 nor -1"),
        (NEAREST + "[ids]\nrsector = [0, 1]", "rsector must be repeated 1-100000 times"),
        (NEAREST + "[branches]\nfoo = 'x'", "it has 'foo', which is none of"),
        (NEAREST + "#" + "x" * 70_000, "more than 64 KiB"),
    ],
)
def test_map_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "toy.toml").write_text(SCANNER_TOML, "utf-8")
    (tmp_path / "m.toml").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"must be TOML with the keys of") as error:
        load_gate_map(tmp_path / "m.toml")
    assert message in str(error.value)


def test_map_of_the_documentation_is_a_whole_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "formats.md").read_text("utf-8")
    (tmp_path / "m.toml").write_text(
        text.partition("```toml\n")[2].partition("```")[0], "utf-8"
    )
    gate = load_gate_map(tmp_path / "m.toml")
    assert gate.branches == BRANCHES
    table = crystals_by_ids(gate)
    assert sorted(table.ravel().tolist()) == list(range(gate.scanner.n_crystals))


def test_levels_must_make_up_the_scanner(tmp_path: Path) -> None:
    text = NEAREST + "[ids]\nrsector = [16, 1]\ncrystal = [6, 6]\n"
    with pytest.raises(InputError, match=r"96 crystals around and 24 along .* make 96 and 6"):
        open_listmode(write(tmp_path, toy(1, 50).columns, text))


def test_tree_that_is_missing_is_named_with_those_there(tmp_path: Path) -> None:
    text = NEAREST + "[trees]\nprompts = 'Pairs'\n"
    with pytest.raises(
        InputError, match=r"the tree 'Pairs', but 'scan\.root' has Coincidences"
    ):
        open_listmode(write(tmp_path, toy(1, 50).columns, text))


def test_branch_that_is_missing_is_named(tmp_path: Path) -> None:
    columns = toy(1, 50).columns
    del columns["globalPosY2"]
    with pytest.raises(InputError, match="must have the branches globalPosY1 and globalPosY2"):
        open_listmode(write(tmp_path, columns))


def test_file_of_which_nothing_fits_says_why(tmp_path: Path) -> None:
    columns = toy(1, 50).columns
    columns["globalPosX1"] += np.float32(5000)
    with pytest.raises(
        InputError, match=r"at least one coincidence .* of which none does; \d+ p"
    ):
        open_listmode(write(tmp_path, columns))


def test_damaged_root_file_is_one_clean_error(tmp_path: Path) -> None:
    path = write(tmp_path, toy(1, 50).columns)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"'scan\.root' must be a whole ROOT file"):
        open_listmode(path)
    gate = load_gate_map(tmp_path / "scan.gate.toml")
    with pytest.raises(InputError, match="must be a whole ROOT file, but it cannot be decoded"):
        GateListmode(path, gate)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, toy(1, 50).columns)
    monkeypatch.setitem(sys.modules, "uproot", None)
    with pytest.raises(InputError, match=r"pip install 'stillpet\[gate\]'"):
        open_listmode(path)
