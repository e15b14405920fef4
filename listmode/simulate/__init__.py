"""Simulated scans: phantoms, protocols, photon transport and listmode events.

The simulator follows photons through analytic shapes into the crystals' blocks. It shares no
ray tracing with the reconstruction.
"""
