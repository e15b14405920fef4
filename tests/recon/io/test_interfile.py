from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from recon.image import Grid, Volume
from recon.io.interfile import SUFFIXES, save_interfile
from tests.recon.io.scenes import GRID, asymmetric, facts


def parse(header: Path) -> tuple[dict[str, str], np.ndarray[Any, Any]]:
    """Read Interfile by its rules: case, spaces and ``!`` mean nothing, ``;`` starts a note.

    The array is indexed [z][y][x] as the file has it.
    """
    keys = {}
    lines = header.read_text("utf-8").splitlines()
    assert re.sub(r"[\s!]", "", lines[0]).lower() == "interfile:="
    assert re.sub(r"[\s!]", "", lines[-1]).lower() == "endofinterfile:="
    for line in lines:
        key, found, value = line.split(";")[0].partition(":=")
        if found:
            keys[re.sub(r"[\s_!]", "", key).lower()] = value.strip()
    nx, ny, nz = (int(keys[f"matrixsize[{axis}]"]) for axis in (1, 2, 3))
    assert keys["numberformat"] in ("float", "short float")
    assert keys["numberofbytesperpixel"] == "4"
    assert keys["imagedatabyteorder"] == "LITTLEENDIAN"
    raw = (header.parent / keys["nameofdatafile"]).read_bytes()
    assert len(raw) == nx * ny * nz * 4
    return keys, np.frombuffer(raw, "<f4").reshape(nz, ny, nx)


def floats(keys: dict[str, str], name: str) -> list[float]:
    return [float(keys[f"{name}[{axis}]"]) for axis in (1, 2, 3)]


def test_stir_finds_the_hot_voxel_where_it_is(tmp_path: Path) -> None:
    """STIR: voxels from the first pixel offset in x and y, from the middle plane in z."""
    save_interfile(tmp_path / "a.hv", asymmetric())
    keys, values = parse(tmp_path / "a.hv")
    k, j, i = np.unravel_index(np.argmax(values), values.shape)
    size, offset = floats(keys, "scalingfactor(mm/pixel)"), floats(keys, "firstpixeloffset(mm)")
    x = offset[0] + i * size[0]
    y = offset[1] + j * size[1]
    z_to_feet = offset[2] + (k - (values.shape[0] - 1) / 2) * size[2]
    assert (x, y, -z_to_feet) == pytest.approx(GRID.point_mm((7, 0, 5)))
    assert keys["patientorientation"] == "head_in"
    assert keys["patientrotation"] == "supine"


def test_castor_finds_the_hot_voxel_where_it_is(tmp_path: Path) -> None:
    """CASToR: voxels around the centre of the image, which lies at the offset."""
    save_interfile(tmp_path / "a.hdr", asymmetric(), "castor")
    keys, values = parse(tmp_path / "a.hdr")
    index = np.array(np.unravel_index(np.argmax(values), values.shape))[::-1]
    size, offset = floats(keys, "scalingfactor(mm/pixel)"), floats(keys, "firstpixeloffset(mm)")
    half = (np.array(values.shape[::-1]) - 1) / 2
    assert offset + (index - half) * size == pytest.approx(GRID.point_mm((7, 0, 5)))


@pytest.mark.parametrize(("flavour", "order"), [("stir", -1), ("castor", 1)])
def test_every_value_is_kept(tmp_path: Path, flavour: Any, order: int) -> None:
    path = tmp_path / f"Bild ä 1{SUFFIXES[flavour][0]}"
    save_interfile(path, asymmetric(), flavour)
    _, values = parse(path)
    assert np.array_equal(values[::order].transpose(2, 1, 0), asymmetric().values)


def test_a_centred_grid_has_no_offset_in_castor_and_none_along_z_in_stir(
    tmp_path: Path,
) -> None:
    """STIR's own grids, of odd sizes in x and y, start at -(n - 1) / 2 voxels."""
    grid = Grid.centred((5, 5, 4), 3.0)
    mu = Volume(np.full(grid.shape, 0.096, np.float32), grid, "1/cm")
    save_interfile(tmp_path / "a.hv", mu)
    save_interfile(tmp_path / "a.hdr", mu, "castor")
    assert floats(parse(tmp_path / "a.hv")[0], "firstpixeloffset(mm)") == [-6.0, -6.0, 0.0]
    assert floats(parse(tmp_path / "a.hdr")[0], "firstpixeloffset(mm)") == [0.0, 0.0, 0.0]


def test_says_which_time_was_used(tmp_path: Path) -> None:
    save_interfile(tmp_path / "a.hv", asymmetric(), facts=facts())
    save_interfile(tmp_path / "a.hdr", asymmetric(), "castor", facts())
    stir, _ = parse(tmp_path / "a.hv")
    castor, _ = parse(tmp_path / "a.hdr")
    assert stir["imageduration(sec)[1]"] == castor["imageduration(sec)"] == "709.5"
    assert stir["imagerelativestarttime(sec)[1]"] == castor["imagestarttime(sec)"] == "10"
    assert "10-120,600.5-1200" in (tmp_path / "a.hv").read_text()


def test_refuses_a_header_of_another_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be named NAME.hv, but it is a.hdr"):
        save_interfile(tmp_path / "a.hdr", asymmetric())


def test_refuses_an_unknown_program(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is written for stir or castor"):
        save_interfile(tmp_path / "a.hv", asymmetric(), "medcon")  # type: ignore[arg-type]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        save_interfile(tmp_path / "a.hv", asymmetric())
    assert list(tmp_path.iterdir()) == []
