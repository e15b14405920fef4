"""A listmode file in figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats import open_listmode
from listmode.formats.hdf5 import cut_listmode
from listmode.formats.info import describe
from listmode.windows import Windows
from tests.strategies import PROTOCOL, random_scan


def test_counts_rates_and_protocol_are_those_of_the_scan() -> None:
    scan = random_scan(1, n_ticks=95)
    info = describe(scan, bin_ms=10)
    assert (info.n_prompts, info.n_delayeds) == (500, 80)
    assert info.held_s == pytest.approx(0.095)
    assert info.rate_start_s.tolist() == pytest.approx(np.arange(0, 0.095, 0.01).tolist())
    lengths_s = np.diff(np.append(info.rate_start_s, 0.095))
    assert (info.prompts_hz * lengths_s).sum() == pytest.approx(500)
    assert (info.delayeds_hz * lengths_s).sum() == pytest.approx(80)
    assert info.protocol == PROTOCOL
    assert info.activity_at_zero_bq == pytest.approx(22.0e6 * 0.6846, rel=1e-3)
    assert (info.n_tof_bins, info.tof_fwhm_ps) == (5, 300.0)


def test_everything_fits_into_json() -> None:
    plain = describe(random_scan(1, has_truth=True)).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["has_truth"] is True
    assert plain["protocol"]["tracer"] == "FDG"


def test_time_that_a_cut_file_does_not_hold_has_no_rate(tmp_path: Path) -> None:
    scan = random_scan(1)
    cut_listmode(scan, Windows([0, 30], [5, 40]), tmp_path / "cut.h5")
    with open_listmode(tmp_path / "cut.h5") as cut:
        info = describe(cut, bin_ms=10)
    assert np.isnan(info.prompts_hz).tolist() == [False, True, True, False]
    assert info.prompts_hz[0] == pytest.approx(scan.count(Windows([0], [5])) / 0.005)
    assert info.held_s == pytest.approx(0.015)
    assert info.to_dict()["prompts_hz"][1] is None


def test_bins_without_length_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1 ms, but 0 ms was asked for"):
        describe(random_scan(1), bin_ms=0)


@pytest.mark.outside
def test_real_scan_is_described_with_all_its_events(outside_data: Path) -> None:
    info = describe(open_listmode(outside_data / "stir" / "small_listmode_file.l"), bin_ms=1000)
    assert (info.n_prompts, info.n_delayeds) == (218_881, 35_320)
    assert info.tags["time tags"] == 613
    assert info.prompts_hz[0] == pytest.approx(357.6e3, rel=0.003)
    assert info.delayeds_hz[0] == pytest.approx(57.7e3, rel=0.003)
    assert info.scanner_name == "mmr"
    assert info.tof_fwhm_ps is None


@pytest.mark.parametrize(("n_ticks", "n_bins"), [(59, 59), (119, 119), (120, 60), (90_500, 91)])
def test_bins_are_a_second_or_less_where_the_scan_is_short(n_ticks: int, n_bins: int) -> None:
    info = describe(random_scan(1, n_ticks=n_ticks))
    assert len(info.rate_start_s) == n_bins
