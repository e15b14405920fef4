"""Published and independently computed figures that tests compare with, and their sources."""

from __future__ import annotations

import numpy as np

PRENOSIL = "Prenosil et al., J Nucl Med 2022;63:476-484, doi 10.2967/jnumed.121.261972"
GEANT4 = "an independent Geant4 model of the same detector, line source in air, 70 cm"
ANALYTIC = "numerical integral over directions, cylinder of 410 mm radius and 1063 mm length"

# Sensitivity of a 70 cm line in the centre, counts/s per kBq (PRENOSIL, table of sensitivity).
LINE_SENSITIVITY_CPS_PER_KBQ = {"HS": 83.0, "UHS": 176.0}

# UHS over HS from solid angle and the stopping length of oblique rays alone (ANALYTIC): without
# the stopping length it is 1.96; measured 2.12 (PRENOSIL).
UHS_OVER_HS = 2.06
UHS_OVER_HS_LIMIT = 0.04

# Axial profile of that line in 50 mm segments, counts/s per kBq (GEANT4).
SEGMENT_CENTRE_MM = np.arange(25.0, 326.0, 50.0)
UHS_SEGMENTS_CPS_PER_KBQ = np.array([221.0, 210.0, 197.0, 180.0, 161.0, 141.0, 118.0])
HS_SEGMENTS_RANGE_CPS_PER_KBQ = (81.6, 83.9)

# Spatial resolution 10 mm off the axis: radial, tangential, axial FWHM by filtered back
# projection, mm; and contrast recovery of the 10 and the 37 mm sphere, 4:1, with PSF and TOF, %
# (PRENOSIL).
RESOLUTION_FWHM_MM = (3.3, 3.4, 3.8)
CONTRAST_RECOVERY_PERCENT = (69.6, 86.9)

# What those allow a simulation of the same detector (the widths' spread, with OSEM in place of
# filtered back projection; the largest sphere's published value less its own uncertainty).
POINT_FWHM_RANGE_MM = (3.1, 4.2)
LEAST_RECOVERY_37MM_PERCENT = 85.0

# The least width that half a crystal (1.6 mm), acollinearity (0.0022 x 820 mm) and positron
# range (0.54 mm) leave, in quadrature: Moses 2011, doi 10.1016/j.nima.2010.11.092, without his
# factor of 1.25 for the reconstruction.
LEAST_FWHM_MM = 2.47
