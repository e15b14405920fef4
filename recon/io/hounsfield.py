"""From Hounsfield units to linear attenuation at 511 keV, by the CT's tube voltage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SOFT_SLOPE_PER_CM = 9.6e-5  # 1/cm per HU, from air to soft tissue: water is 0.096 1/cm


@dataclass(frozen=True)
class Spectrum:
    """Two straight lines from HU to mu: mixtures of air and water, then of water and bone.

    Parameters
    ----------
    kvp
        Tube voltage, kV.
    bone_slope_per_cm, bone_offset_per_cm
        ``mu = bone_slope * (HU + 1000) + bone_offset`` above the break, 1/cm.
    break_hu
        Where the lines change.
    """

    kvp: float
    bone_slope_per_cm: float
    bone_offset_per_cm: float
    break_hu: float

    def mu_per_cm(self, hu: ArrayLike) -> NDArray[np.float32]:
        """Turn HU into mu at 511 keV, 1/cm; nothing is below the 0 of air.

        Examples
        --------
        >>> [f"{mu:.4f}" for mu in CARNEY_2006[120.0].mu_per_cm([-1000.0, 0.0, 1000.0])]
        ['0.0000', '0.0960', '0.1491']
        """
        above_air = np.asarray(hu, dtype=np.float64) + 1000.0
        soft = SOFT_SLOPE_PER_CM * above_air
        bone = self.bone_slope_per_cm * above_air + self.bone_offset_per_cm
        mu = np.where(above_air > self.break_hu + 1000.0, bone, soft)
        return np.maximum(mu, 0.0).astype(np.float32)


CARNEY_2006 = {
    kvp: Spectrum(kvp, slope, offset, break_hu)
    for kvp, slope, offset, break_hu in (
        (80.0, 3.64e-5, 6.26e-2, 50.0),
        (100.0, 4.43e-5, 5.44e-2, 52.0),
        (110.0, 4.92e-5, 4.88e-2, 43.0),
        (120.0, 5.10e-5, 4.71e-2, 47.0),
        (130.0, 5.51e-5, 4.24e-2, 37.0),
        (140.0, 5.64e-5, 4.08e-2, 30.0),
    )
}
"""By tube voltage: Carney, Townsend, Rappoport, Bendriem, Med Phys 2006;33:976-983
(doi 10.1118/1.2174132)."""

USUAL_KVP = 120.0


def spectrum_of(
    kvp: float | None, *, is_tin_filtered: bool = False
) -> tuple[Spectrum, tuple[str, ...]]:
    """Choose the lines for a tube voltage, and say what is doubtful about them.

    A voltage between two of the table is interpolated between their lines; one beyond the table
    takes the nearest. Both are doubtful, and so is a filter of tin, which hardens the spectrum:
    bone then has fewer HU, and mu of bone comes out too low.

    Parameters
    ----------
    kvp
        Tube voltage, kV; ``None`` if the CT does not say.
    is_tin_filtered
        Whether the beam went through tin.

    Returns
    -------
    Spectrum
        Lines to use.
    tuple of str
        Warnings.
    """
    warnings = []
    if kvp is None:
        kvp = USUAL_KVP
        warnings.append(f"the CT does not say its tube voltage: {kvp:g} kV is assumed for bone")
    elif kvp not in CARNEY_2006:
        warnings.append(
            f"{kvp:g} kV is not in the table of tube voltages "
            f"({', '.join(f'{known:g}' for known in CARNEY_2006)} kV): bone is interpolated"
        )
    if is_tin_filtered:
        warnings.append(
            "the CT was filtered by tin, for which the table does not hold: bone is doubtful"
        )
    return _between(kvp), tuple(warnings)


def _between(kvp: float) -> Spectrum:
    if kvp in CARNEY_2006:
        return CARNEY_2006[kvp]
    known = list(CARNEY_2006)
    rows = [[s.bone_slope_per_cm, s.bone_offset_per_cm] for s in CARNEY_2006.values()]
    slope, offset = (float(np.interp(kvp, known, column)) for column in zip(*rows, strict=True))
    # where the two lines meet: interpolated breaks would leave a step
    break_hu = offset / (SOFT_SLOPE_PER_CM - slope) - 1000.0
    return Spectrum(kvp, slope, offset, break_hu)
