"""Write files whole or not at all: under temporary names first, renamed when complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from listmode.errors import InputError


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files under temporary names beside their own, then rename all of them.

    A reader sees the old file or the new one, never half of one, also when the disk fills up or
    the process is killed; and no file is renamed before all are complete.

    Raises
    ------
    InputError
        If the system refuses: no such folder, no permission, disk full.
    """
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in contents}
    try:
        try:
            for path, content in contents.items():
                with partial[path].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for path in contents:
                partial[path].replace(path)
        finally:
            for leftover in partial.values():
                leftover.unlink(missing_ok=True)
    except OSError as error:
        names = " and ".join(path.name for path in contents)
        raise InputError(
            f"{names} must be writable, but writing failed ({error.strerror}); nothing was "
            "left half-written: choose another folder or free some space"
        ) from None


def make_folders(folder: Path) -> None:
    """Make a folder and those above it.

    Raises
    ------
    InputError
        If the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {folder.name} must be writable, but making it failed "
            f"({error.strerror}); choose another"
        ) from None


def write_folder(folder: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Write files into a new folder that takes its name when all of them are complete.

    Raises
    ------
    InputError
        If the folder holds files already (two series in one folder are read as one), or the
        system refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"the folder for a series must be new or empty, but {folder.name} is not; choose "
            "another or empty it"
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        try:
            partial.mkdir(parents=True)
            for name, content in contents:
                with (partial / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{folder.name} must be writable, but writing failed ({error.strerror}); nothing "
            "was left half-written: choose another folder or free some space"
        ) from None


def read_whole(path: Path) -> bytes:
    """Read a file.

    Raises
    ------
    InputError
        If there is no such file or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path.name} must be a readable file, but reading it failed ({error.strerror}); "
            "check the path"
        ) from None
