"""Hotspots: find them, measure them, classify them."""
