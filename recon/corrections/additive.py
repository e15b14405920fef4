"""What every additive term (randoms, scatter) looks like to the reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch
from recon.motion import Poses

F32 = NDArray[np.float32]


class AdditiveModel(Protocol):
    """Expected counts that do not come along straight lines from the image."""

    def expected(self, batch: EventBatch) -> F32:
        """Give the expected counts in each event's own LOR and TOF bin.

        Parameters
        ----------
        batch
            Events of the scanner that the model was made for.

        Returns
        -------
        ndarray
            Counts expected in the windows that the model was made for. Shape (n_events,),
            float32, not negative.
        """


@runtime_checkable
class RatioModel(Protocol):
    """A model that knows its counts relative to the efficiency of each pair."""

    def expected_ratio(self, batch: EventBatch) -> F32:
        """Give the expected counts over the efficiency ``n_i`` of each event's pair.

        Returns
        -------
        ndarray
            Shape (n_events,), float32, s Bq/mL mm.
        """


def expected_ratio(model: AdditiveModel, batch: EventBatch, efficiency: F32) -> F32:
    """Give a model's expected counts over the given efficiency ``n_i`` of each event's pair.

    Returns
    -------
    ndarray
        Shape (n_events,), float32, s Bq/mL mm; 0 where the efficiency is 0.
    """
    if isinstance(model, PartModel):
        return expected_ratio(model.model, batch, efficiency) * np.float32(model.share)
    if isinstance(model, RatioModel):
        return model.expected_ratio(batch)
    ratio = np.zeros(len(batch), np.float32)
    return np.divide(model.expected(batch), efficiency, out=ratio, where=efficiency > 0)


@dataclass(frozen=True, eq=False)
class PartModel:
    """An additive model of the whole windows, for a part that holds ``share`` of the counts."""

    model: AdditiveModel
    share: float

    def expected(self, batch: EventBatch) -> F32:
        """Give the counts expected in the part. Shape (n_events,), float32."""
        return self.model.expected(batch) * np.float32(self.share)


@dataclass(frozen=True, eq=False)
class ByPose:
    """One additive model for each of the patient's poses: the counts in that pose's windows."""

    models: tuple[AdditiveModel, ...]


def share_out(
    models: Sequence[AdditiveModel], groups: Poses, poses: Poses, half_life_s: float
) -> ByPose:
    """Share out what was estimated for groups of poses among the poses of each group.

    Parameters
    ----------
    models
        One a group: the counts in its windows.
    groups
        ``poses.merged(...)``.
    half_life_s
        Half-life of the counts, s: that of the activity for scatter, half of it for randoms.
    """
    shared = []
    for part in poses.windows:
        k = groups.at(int(part.start_ms[0]) / 1000.0)
        whole = groups.windows[k].decayed_duration_s(half_life_s)
        share = part.decayed_duration_s(half_life_s) / whole
        shared.append(models[k] if part == groups.windows[k] else PartModel(models[k], share))
    return ByPose(tuple(shared))
