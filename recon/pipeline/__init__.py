"""The stages strung together: everything that the command line does, as functions."""

from recon.pipeline.images import (
    Reconstruction,
    choose_grid,
    reconstruct_scan,
    reconstruct_windows,
    to_suv,
)
from recon.pipeline.labels import LabelMap, load_labels, save_labels

__all__ = [
    "LabelMap",
    "Reconstruction",
    "choose_grid",
    "load_labels",
    "reconstruct_scan",
    "reconstruct_windows",
    "save_labels",
    "to_suv",
]
