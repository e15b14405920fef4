"""Listmode file formats: each turns a file into the same lazy Listmode."""

from listmode.formats.opening import open_listmode

__all__ = ["open_listmode"]
