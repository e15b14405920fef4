"""What every additive term (randoms, scatter) looks like to the reconstruction."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from listmode.events import EventBatch

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
