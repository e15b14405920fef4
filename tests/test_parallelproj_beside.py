"""The comparison with parallelproj hands over the events that it says it does.

The library is not on PyPI, so stand-ins with its two interfaces take its place: they check
the geometry that they are given and project with stillpet's own kernels.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import parallelproj_beside
from listmode.events import EventBatch
from listmode.scanner import Scanner, TofModel
from recon.image import Grid
from recon.projector import back, forward
from tests.oracles import small_scanner, some_events

GRID = Grid.centred((19, 21, 17), 6.0)
TOF = TofModel(13, 100.0, 200.0)


def _check(scanner: Scanner, events: EventBatch, start: Any, stop: Any, width: float) -> None:
    assert (start == scanner.crystal_position_mm[events.crystal_a]).all()
    assert (stop == scanner.crystal_position_mm[events.crystal_b]).all()
    assert width == scanner.tof.bin_width_mm


def _newer(scanner: Scanner, events: EventBatch) -> ModuleType:
    """Arguments: ends, image, origin, size, projection, width, sigma, offset, bins, n, cut."""

    def check(given: Any) -> None:
        _check(scanner, events, given[0], given[1], given[6])
        assert (given[3] == np.array(GRID.origin_mm, np.float32)).all()
        assert (given[4] == np.float32(6.0)).all()
        assert (given[7], given[8]) == (np.float32(scanner.tof.sigma_mm), 0)
        assert (given[9] == events.tof_bin).all()
        assert given[10] == 13

    def project(*given: Any) -> None:
        check(given)
        given[5][:] = forward(given[2], GRID, scanner, events, n_sigma=given[11])

    def project_back(*given: Any) -> None:
        check(given)
        given[2][:] = back(given[5], GRID, scanner, events, n_sigma=given[11])

    return _module(joseph3d_tof_lm_fwd=project, joseph3d_tof_lm_back=project_back)


def _older(scanner: Scanner, events: EventBatch) -> ModuleType:
    """Arguments: ends, image, origin, size, (values,) width, sigma, offset, cut, bins."""

    def check(given: Any) -> None:
        _check(scanner, events, given[0], given[1], given[-5])
        assert (given[-4], given[-3]) == (np.float32(scanner.tof.sigma_mm), 0)
        assert (given[-1] + 6 == events.tof_bin).all()  # its bins count from the LOR's middle

    def project(*given: Any) -> Any:
        check(given)
        return forward(given[2], GRID, scanner, events, n_sigma=given[-2])

    def project_back(*given: Any) -> Any:
        check(given)
        assert given[2] == GRID.shape
        return back(given[5], GRID, scanner, events, n_sigma=given[-2])

    return _module(joseph3d_fwd_tof_lm=project, joseph3d_back_tof_lm=project_back)


def _module(**functions: Any) -> ModuleType:
    module = ModuleType("stand_in")
    module.__dict__.update(functions)
    return module


@pytest.mark.parametrize("make", [_newer, _older])
def test_both_interfaces_are_asked_for_one_update(make: Any) -> None:
    scanner = small_scanner(tof=TOF)
    events = some_events(scanner, 400, 5)
    image = np.random.default_rng(2).random(GRID.shape).astype(np.float32) + np.float32(0.1)
    additive = np.full(len(events), 0.3, np.float32)
    update = parallelproj_beside.make_update(make(scanner, events), scanner, GRID, events)
    expected = forward(image, GRID, scanner, events) + additive
    wanted = back(1 / expected, GRID, scanner, events)
    assert update(image, additive) == pytest.approx(wanted, rel=1e-5)


def test_it_is_left_out_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallelproj_beside, "NAMES", ("a_module_that_nobody_has",))
    assert parallelproj_beside.find_parallelproj() is None
