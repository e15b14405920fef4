"""Gates: one reading, and the bits of each gate alone."""

from __future__ import annotations

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.source import Stream
from listmode.windows import Windows
from recon.gates import reconstruct_gates
from recon.osem import Algorithm, OsemSettings, osem
from recon.penalty import RelativeDifference
from recon.reconstruct import reconstruct
from tests.recon.test_osem import _small_case

GATES = [Windows([50, 90], [60, 130]), Windows([60, 130, 140], [90, 135, 150])]
SETTINGS = OsemSettings(n_iterations=2, n_subsets=3)


class _Constant:
    """An additive model that gives one number."""

    total = 1.0

    def __init__(self, counts: float) -> None:
        self.counts = np.float32(counts)

    def expected(self, batch: EventBatch) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.full(len(batch), self.counts)


@pytest.mark.parametrize("use_tof", [True, False])
@pytest.mark.parametrize("algorithm", [osem, RelativeDifference(0.3)], ids=["osem", "rdp"])
def test_each_gate_has_the_bits_of_the_gate_alone(use_tof: bool, algorithm: Algorithm) -> None:
    listmode, grid, sensitivity = _small_case()
    settings = OsemSettings(n_iterations=2, n_subsets=3, use_tof=use_tof)
    models = [[_Constant(1e-6)], [_Constant(3e-6)]]
    together = reconstruct_gates(
        listmode, GATES, grid=grid, settings=settings, sensitivity=sensitivity,
        additive=models, algorithm=algorithm,
    )  # fmt: skip
    for gate, model, image in zip(GATES, models, together, strict=True):
        alone = reconstruct(
            listmode, gate, grid=grid, settings=settings, sensitivity=sensitivity,
            additive=model, algorithm=algorithm,
        )  # fmt: skip
        assert image.values.max() > 0
        np.testing.assert_array_equal(image.values, alone.values)
        for key in ("n_events", "n_events_outside", "windows_ms", "calibration_s"):
            assert image.provenance[key] == alone.provenance[key]


def test_every_event_is_read_twice_whatever_the_number_of_gates() -> None:
    listmode, grid, sensitivity = _small_case()
    n_read = 0
    read = listmode.read

    def counted(stream: Stream, start_event: int, stop_event: int) -> EventBatch:
        nonlocal n_read
        n_read += stop_event - start_event
        return read(stream, start_event, stop_event)

    listmode.read = counted  # type: ignore[method-assign]
    reconstruct_gates(listmode, GATES, grid=grid, settings=SETTINGS, sensitivity=sensitivity)
    assert n_read == 2 * sum(listmode.count(gate) for gate in GATES)


def test_gates_that_overlap_or_are_empty_are_refused() -> None:
    listmode, grid, sensitivity = _small_case()
    with pytest.raises(InputError, match="gates must not overlap, but gates 0 and 1 both hold"):
        reconstruct_gates(listmode, [Windows([50], [70]), Windows([69], [80])], grid=grid)
    with pytest.raises(InputError, match="gates needs its own randoms and scatter"):
        reconstruct_gates(
            listmode, GATES, grid=grid, sensitivity=sensitivity, additive=[[_Constant(1.0)]]
        )
    empty = MemoryListmode(
        listmode.scanner, listmode.protocol, EventBatch.empty(), np.zeros(101, np.int64),
        start_ms=50,
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"each gate must hold events, but gate 0 .* holds none"
    ):
        reconstruct_gates(empty, GATES, grid=grid)
