"""Registration of short images: against known motions, of images and of photons."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.formats.scanner_file import load_scanner
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Volume
from recon.motion import Poses
from recon.motion.registration import register_rigid
from recon.pipeline.motion import register_poses
from tests.recon.moving_scan import Ellipsoid, coincidences, in_turn, shift, turn

BODY = (((0, 0, -60), (170, 110, 330)), ((0, 5, 400), (75, 95, 110)))


def patient(bladder: float = 1.0) -> list[Ellipsoid]:
    """Trunk, head, brain, liver, heart, kidneys, spine, and a bladder scaled as given."""
    return [
        *(Ellipsoid(centre, semi, 1.0, 0.096) for centre, semi in BODY),
        Ellipsoid((0, 5, 410), (60, 74, 70), 6.0),
        Ellipsoid((-72, -25, 6), (85, 65, 51), 1.2),
        Ellipsoid((10, -50, 112), (38, 32, 40), 3.0),
        Ellipsoid((68, 55, -62), (30, 25, 55), 2.3),
        Ellipsoid((-68, 55, -62), (30, 25, 55), 2.3),
        Ellipsoid((0, 75, -60), (20, 20, 280), 0.6),
        Ellipsoid((0, -40, -270), (38 * bladder, 30 * bladder, 31 * bladder), 9.0),
    ]


def surface(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Points of the body's surface. Shape (n, 3), mm."""
    ball = rng.normal(size=(4000, 3))
    ball /= np.linalg.norm(ball, axis=1)[:, None]
    (trunk, trunk_semi), (head, head_semi) = BODY
    return np.concatenate((ball[:3200] * trunk_semi + trunk, ball[3200:] * head_semi + head))


def residual_mm(
    found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Distance between two poses' places of the body's surface. Shape (n,)."""
    points = surface(np.random.default_rng(1))
    one, other = (points @ m[:3, :3].T + m[:3, 3] for m in (found, truth))
    return np.asarray(np.linalg.norm(one - other, axis=1))


def blobs(matrix: np.ndarray[Any, Any]) -> Volume:
    """A few smooth blobs, moved exactly."""
    grid = Grid.centred((40, 36, 50), 6.0)
    points = np.stack(np.meshgrid(*(grid.axis_mm(a) for a in range(3)), indexing="ij"), -1)
    back = np.linalg.inv(matrix)
    points = points @ back[:3, :3].T + back[:3, 3]
    values = np.zeros(grid.shape)
    for x, y, z, size in (
        (0, 0, 0, 45),
        (40, 20, 50, 18),
        (-45, 10, -40, 22),
        (10, -40, 70, 15),
    ):
        values += 100 * np.exp(-((points - (x, y, z)) ** 2).sum(axis=-1) / (2 * size**2))
    return Volume(values.astype(np.float32), grid, "Bq/mL")


@pytest.mark.parametrize(
    "matrix",
    [
        shift(0, 0, 0),
        shift(5, -3, 13),
        turn(2, 0.05),
        shift(-4, 2, 6) @ turn(0, -0.08) @ turn(1, 0.03),
    ],
)
def test_an_exact_motion_of_smooth_blobs_is_found(matrix: np.ndarray[Any, Any]) -> None:
    fit = register_rigid(blobs(np.eye(4)), blobs(matrix))
    corners = np.array(np.meshgrid([-80, 80], [-60, 60], [-100, 100])).reshape(3, -1).T
    found, known = (corners @ m[:3, :3].T + m[:3, 3] for m in (fit.moving_from_fixed, matrix))
    assert np.linalg.norm(found - known, axis=1).max() < 0.12  # a fiftieth of a voxel
    assert fit.misfit < 0.02


@pytest.mark.slow
def test_a_gain_between_the_images_changes_nothing() -> None:
    fixed, moving = blobs(np.eye(4)), blobs(shift(3, 0, -7))
    louder = Volume(moving.values * 2.0, moving.grid, "Bq/mL")
    one, other = (register_rigid(fixed, v).moving_from_fixed for v in (moving, louder))
    np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.slow
def test_what_is_left_out_does_not_drive_the_fit() -> None:
    """A hot blob that wanders by itself pulls, unless it is masked."""
    fixed = blobs(np.eye(4))
    x, y, z = np.meshgrid(*(fixed.grid.axis_mm(a) for a in range(3)), indexing="ij")

    def with_wanderer(at_mm: float) -> Volume:
        near = (x - 60) ** 2 + (y + 50) ** 2 + (z - at_mm) ** 2
        extra = (800 * np.exp(-near / 450)).astype(np.float32)
        return Volume(fixed.values + extra, fixed.grid, "Bq/mL")

    one, other = with_wanderer(-100.0), with_wanderer(-80.0)
    keep = np.hypot(np.hypot(x - 60, y + 50), z + 90) > 75
    masked, pulled = (
        np.abs(register_rigid(one, other, keep=k).moving_from_fixed[:3, 3]).max()
        for k in (keep, None)
    )
    assert masked < 0.3
    assert pulled > 1.0


def test_images_on_different_grids_are_refused() -> None:
    fixed = blobs(np.eye(4))
    other = Volume(np.ones((9, 9, 9), np.float32), Grid.centred((9, 9, 9), 6.0), "Bq/mL")
    with pytest.raises(InputError, match="images to register must share a grid"):
        register_rigid(fixed, other)


def test_too_little_to_compare_is_refused() -> None:
    fixed = blobs(np.eye(4))
    keep = np.zeros(fixed.grid.shape, bool)
    with pytest.raises(InputError, match="needs at least 500 voxels of the body"):
        register_rigid(fixed, fixed, keep=keep)


@cache
def at_rest() -> EventBatch:
    rng = np.random.default_rng(3)
    return coincidences(load_scanner("quadra-UHS"), patient(), np.eye(4), 8_000_000, rng)


@pytest.mark.slow
@pytest.mark.stats
@pytest.mark.parametrize(
    "truth",
    [
        shift(2.0, -3.0, 4.8) @ turn(2, np.radians(3)),
        shift(-4.0, 2.0, 4.0) @ turn(0, np.radians(3)),
    ],
    ids=["about z", "about x"],
)
def test_three_degrees_and_six_millimetres_are_found_from_short_frames(
    truth: np.ndarray[Any, Any],
) -> None:
    """Seeds 3 and 4; the bladder grew by 40 % meanwhile. 8 million decays give 0.4 million
    events a state: those of some four seconds of the low-dose scan.

    The limits: residual over the body's surface at most 0.5 mm RMS and 1 mm in 95 %. Three
    numbers within 5 standard errors: below 2e-6 by chance.
    """
    scanner, rng = load_scanner("quadra-UHS"), np.random.default_rng(4)
    events = [at_rest(), coincidences(scanner, patient(1.12), truth, 8_000_000, rng)]
    listmode = in_turn(scanner, events, [2.0, 2.0], ScanProtocol(half_life_s=1e12))
    parts = (Windows([0], [2000]), Windows([2000], [4000]))
    trace = Poses.from_shifts(np.stack((np.zeros(3), truth[:3, 3])), parts)
    poses = register_poses(listmode, trace, bladder_mm=(0, -40, -270))
    assert poses.windows == parts
    assert (poses.scanner_from_reference[0] == np.eye(4)).all()
    found = poses.scanner_from_reference[1]
    distance = residual_mm(found, truth)
    assert np.sqrt(np.mean(distance**2)) <= 0.5
    assert np.quantile(distance, 0.95) <= 1.0
    assert np.sqrt(np.mean(residual_mm(trace.scanner_from_reference[1], truth) ** 2)) > 5.0
    error, sigma = (found - truth)[:3, 3], np.sqrt(np.diag(poses.covariance[1])[:3])
    assert (np.abs(error) <= 5.0 * sigma).all()


def test_registration_without_a_pose_at_rest_is_refused() -> None:
    scanner = load_scanner("mmr")
    listmode = in_turn(scanner, [EventBatch.empty()], [1.0], ScanProtocol())
    poses = Poses.from_shifts([(0, 0, 5)], [listmode.extent])
    with pytest.raises(InputError, match="a pose that is the reference, but all 1 differ"):
        register_poses(listmode, poses)
