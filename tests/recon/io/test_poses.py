"""Poses as CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.windows import Windows
from recon.io.poses import load_poses, save_poses
from recon.motion import Poses, rigid

SCAN = Windows([0], [10_000])


def written(folder: Path, text: str) -> Path:
    path = folder / "camera.csv"
    path.write_text(text, "utf-8")
    return path


def test_a_course_of_shifts_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "time_s,x_mm,y_mm,z_mm\n0,0,0,0\n4,1,-2,13\n")
    poses = load_poses(path, SCAN)
    assert poses.scanner_from_reference[:, :3, 3].tolist() == [[0, 0, 0], [1, -2, 13]]
    assert [list(w) for w in poses.windows] == [[(0, 4000)], [(4000, 10_000)]]
    assert not poses.covariance.any()


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_turns_are_read_as_vectors_and_as_quaternions(tmp_path: Path, sep: str) -> None:
    half = np.radians(3.0) / 2
    quaternion = [np.cos(half), np.sin(half), 0.0, 0.0]
    for names, values in (("rx_deg,ry_deg,rz_deg", [3.0, 0, 0]), ("qw,qx,qy,qz", quaternion)):
        text = f"time_s,x_mm,y_mm,z_mm,{names}\n0,1,2,3,{','.join(map(str, values))}\n"
        poses = load_poses(written(tmp_path, text.replace(",", sep)), SCAN)
        np.testing.assert_allclose(
            poses.scanner_from_reference[0], rigid((1, 2, 3), (np.radians(3), 0, 0)), atol=1e-9
        )


def test_poses_come_back_as_they_were_written(tmp_path: Path) -> None:
    matrices = np.stack((np.eye(4), rigid((1, -2, 13), (0.03, -0.01, 0.05))))
    parts = (Windows([0, 6000], [2000, 10_000]), Windows([2000], [6000]))
    covariance = np.stack((np.zeros((6, 6)), np.diag([0.1, 0.2, 0.3, 1e-3, 2e-3, 3e-3]) ** 2))
    save_poses(tmp_path / "poses.csv", Poses(matrices, parts, covariance))
    back = load_poses(tmp_path / "poses.csv", SCAN, tolerance_mm=0.01)
    assert back.windows == parts
    np.testing.assert_allclose(back.scanner_from_reference, matrices, atol=1e-4)
    np.testing.assert_allclose(back.covariance, covariance, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns time_s, x_mm, y_mm, z_mm .* has no header"),
        ("time_s,x_mm,y_mm\n0,0,0\n", "camera.csv has time_s, x_mm, y_mm"),
        ("time_s,x_mm,y_mm,z_mm,rx_deg\n0,0,0,0,0\n", "must have the columns"),
        ("time_s,x_mm,y_mm,z_mm,colour\n0,0,0,0,0\n", "must have the columns"),
        ("time_s,x_mm,y_mm,z_mm\n", "must hold a row a pose"),
        ("time_s,x_mm,y_mm,z_mm\n0,0,0,0\n1,0,no,0\n", "number for y_mm, but row 3 .* 'no'"),
        ("time_s,x_mm,y_mm,z_mm\n0,0,0\n", "number for z_mm, but row 2 .* nothing"),
        ("time_s,x_mm,y_mm,z_mm\n0,0,nan,0\n", "number for y_mm, but row 2 .* 'nan'"),
        (
            "time_s,x_mm,y_mm,z_mm,qw,qx,qy,qz\n0,0,0,0,2,0,0,0\n",
            "quaternion must have length 1, but that of row 2",
        ),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_poses(written(tmp_path, text), SCAN)
