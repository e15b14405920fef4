"""Listmode PET: events, clock, detector, motion. Knows nothing of voxels of activity."""
