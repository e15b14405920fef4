from __future__ import annotations

import math
from pathlib import Path

import pytest

from listmode.errors import InputError
from recon.io.tables import load_json, load_text, save_json, save_table


def test_unknown_values_are_written_as_bids_writes_them(tmp_path: Path) -> None:
    rows = [(0.5, None, True, "still"), (math.nan, 2, False, "a\tb")]
    save_table(tmp_path / "motion.tsv", ("t_s", "n", "used", "why"), rows)
    assert (tmp_path / "motion.tsv").read_text() == (
        't_s\tn\tused\twhy\n0.5\tn/a\ttrue\tstill\nn/a\t2\tfalse\t"a\tb"\n'
    )


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"changes": [{"time_s": 600.0, "class": "shift"}], "note": "µ"}
    save_json(tmp_path / "motion.json", content)
    assert load_json(tmp_path / "motion.json") == content


def test_refuses_a_row_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have 2 values, but row 1 has 1"):
        save_table(tmp_path / "a.tsv", ("a", "b"), [(1, 2), (3,)])
    assert not list(tmp_path.iterdir())


def test_refuses_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a\xff")
    with pytest.raises(InputError, match=r"a\.csv must be UTF-8 text, but byte 1 is not"):
        load_text(tmp_path / "a.csv")
