"""Poses: what they do to points, time and detector, and where they come from."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.events import EventBatch
from listmode.memory import MemoryListmode
from listmode.motion import Change, Changes, MotionResult
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Volume
from recon.motion import (
    MAX_POSES,
    Poses,
    invert,
    move_rays,
    move_scanner,
    move_volume,
    poses_from_changes,
    poses_from_movements,
    poses_from_samples,
    rigid,
)
from recon.pipeline.motion import find_poses
from recon.projector import RayModel
from tests.oracles import small_scanner

small = st.floats(-30, 30)
angle = st.floats(-0.3, 0.3)
matrices = st.builds(rigid, st.tuples(small, small, small), st.tuples(angle, angle, angle))
edges_ms = st.lists(st.integers(0, 5000), min_size=3, max_size=9, unique=True).map(sorted)


def shifted(*z_mm: float, length_ms: int = 1000) -> Poses:
    """One pose after the other, each shifted along z."""
    parts = [Windows([k * length_ms], [(k + 1) * length_ms]) for k in range(len(z_mm))]
    return Poses.from_shifts([(0, 0, z) for z in z_mm], parts)


# ---- transforms


@given(matrices)
def test_a_pose_and_its_inverse_undo_each_other(matrix: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(matrix @ invert(matrix), np.eye(4), atol=1e-12)


def test_the_inverse_of_rest_is_rest_to_the_bit() -> None:
    inverse = invert(np.eye(4))
    assert inverse.tobytes() == np.eye(4).tobytes()


def test_a_quarter_turn_about_a_centre_goes_from_x_to_y() -> None:
    matrix = rigid((0, 0, 1), (0, 0, np.pi / 2), (10, 0, 0))
    np.testing.assert_allclose(matrix @ [11, 0, 0, 1], [10, 1, 1, 1], atol=1e-12)


@given(matrices, matrices)
def test_another_reference_changes_no_distance_travelled(
    one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]
) -> None:
    poses = Poses(np.stack((one, other)), shifted(0, 0).windows, np.zeros((2, 6, 6)))
    again = poses.relative_to(1)
    assert (again.scanner_from_reference[1] == np.eye(4)).all()
    np.testing.assert_allclose(
        again.scanner_from_reference[0] @ other, one, atol=1e-9
    )  # the same way from where the patient lay in pose 1


def test_the_standard_error_of_a_point_grows_with_its_lever() -> None:
    covariance = np.diag([1.0, 0, 0, 0, 0, 1e-4])[None]
    poses = Poses(np.eye(4)[None], (Windows([0], [1]),), covariance)
    error = poses.standard_error_mm([(0, 0, 0), (0, 100, 50), (100, 0, 0)])[0]
    np.testing.assert_allclose(error, [[1, 0, 0], [np.sqrt(2), 0, 0], [1, 1, 0]], atol=1e-12)


# ---- time


@given(edges_ms, edges_ms)
def test_weights_add_up_to_one_whatever_the_windows(edges: list[int], kept: list[int]) -> None:
    parts = [Windows([a], [b]) for a, b in pairwise(edges)]
    poses = Poses.from_shifts(np.zeros((len(parts), 3)), parts)
    used = Windows(kept[:1], kept[-1:]).intersection(Windows(edges[:1], edges[-1:]))
    if len(used):
        assert poses.within(used).weights(6586.0).sum() == pytest.approx(1.0, abs=1e-15)


def test_weights_follow_the_decay() -> None:
    """Minutes 10-20 of an F-18 scan hold 48.4 % of the decays of minutes 0-20."""
    weights = shifted(0, 13, length_ms=600_000).weights(6586.2)
    assert weights[1] == pytest.approx(0.4842, abs=1e-4)


@given(edges_ms)
def test_the_timeline_holds_all_time_once_and_in_order(edges: list[int]) -> None:
    owner = [k % 2 for k in range(len(edges) - 1)]
    parts = [
        Windows(
            [a for a, o in zip(edges, owner, strict=False) if o == k],
            [b for b, o in zip(edges[1:], owner, strict=True) if o == k],
        )
        for k in range(2)
    ]
    poses = Poses.from_shifts(np.zeros((2, 3)), parts) if len(parts[1]) else None
    if poses is not None:
        spans = [(a, b, pose) for part, pose in poses.timeline() for a, b in part]
        assert spans == [(a, b, o) for (a, b), o in zip(pairwise(edges), owner, strict=True)]


def test_windows_stay_apart_when_poses_are_cut_to_them() -> None:
    used = Windows([100, 200], [200, 300])
    assert Poses.still(Windows([0], [1000])).within(used).windows == (used,)


def test_time_without_a_pose_is_refused() -> None:
    with pytest.raises(InputError, match=r"poses must cover all of the time .* but 2-3 s have"):
        shifted(0, 1).within(Windows([0], [3000]))


def test_poses_that_were_not_taken_are_left_out() -> None:
    poses = shifted(0, 1, 2).within(Windows([2500], [2700]))
    assert poses.scanner_from_reference[:, 2, 3].tolist() == [2.0]


# ---- merging


def test_like_poses_become_one_and_time_is_kept() -> None:
    poses = shifted(0.0, 5.0, 0.2, 5.1).merged(0.5)
    assert poses.scanner_from_reference[:, 2, 3] == pytest.approx([0.1, 5.05])
    assert [list(part) for part in poses.windows] == [
        [(0, 1000), (2000, 3000)], [(1000, 2000), (3000, 4000)],
    ]  # fmt: skip


def test_turns_are_told_apart_by_what_they_do_to_the_body() -> None:
    turned = rigid((0, 0, 0), (0.002, 0, 0))  # 1 mm at 500 mm
    poses = Poses(np.stack((np.eye(4), turned)), shifted(0, 0).windows, np.zeros((2, 6, 6)))
    assert len(poses.merged(0.5)) == 2
    assert len(poses.merged(1.5)) == 1


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scanner_from_reference": np.eye(3)[None]}, "finite scanner_from_reference of shape"),
        ({"covariance": np.full((1, 6, 6), np.nan)}, "finite covariance of shape"),
        ({"scanner_from_reference": 2 * np.eye(4)[None]}, "must be a rotation and a shift"),
        ({"scanner_from_reference": np.diag([1.0, 1, -1, 1])[None]}, "must be a rotation"),
        ({"windows": (Windows.empty(),)}, "there must be poses, each with a window"),
    ],
)
def test_impossible_poses_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "scanner_from_reference": np.eye(4)[None],
        "windows": (Windows([0], [1]),),
        "covariance": np.zeros((1, 6, 6)),
    }
    with pytest.raises(InputError, match=message):
        Poses(**(good | change))


def test_two_poses_at_once_are_refused() -> None:
    parts = (Windows([0], [20]), Windows([10], [30]))
    with pytest.raises(InputError, match=r"a time, but poses 0 and 1 both claim 0\.01 s"):
        Poses.from_shifts(np.zeros((2, 3)), parts)


# ---- from what was found


def change(time_s: float, shift_mm: tuple[float, float, float], kind: Any) -> Change:
    interval = tuple((s - 0.98, s + 0.98) for s in shift_mm)
    return Change(time_s, (time_s, time_s), shift_mm, interval, kind, "", 99.0)


def changes(*items: Change, window_s: float = 1.0) -> Changes:
    empty, time_s = np.empty((0, 3)), np.arange(0.0, 1200.0, window_s)
    return Changes(items, 20.0, 1.0, (1.0, 1.0, 1.0), time_s, empty, empty)


SCAN = Windows([0], [1_200_000])


def test_shifts_of_the_whole_body_become_poses_and_local_events_do_not() -> None:
    poses = poses_from_changes(
        changes(
            change(300, (1, 0, 5), "whole-body shift"),
            change(600, (9, 9, 9), "local event"),
            change(800, (0, 2, -7), "whole-body shift"),
        ),
        SCAN,
    )
    assert poses.scanner_from_reference[:, :3, 3].tolist() == [[0, 0, 0], [1, 0, 5], [1, 2, -2]]
    assert [list(w) for w in poses.windows] == [
        [(0, 300_000)], [(300_000, 800_000)], [(800_000, 1_200_000)],
    ]  # fmt: skip
    sigma = np.sqrt(poses.covariance[:, 2, 2])
    assert sigma == pytest.approx([0, 0.5, 0.5 * np.sqrt(2)], rel=1e-3)


def test_a_step_that_a_long_window_of_the_trace_splits_is_one_move() -> None:
    """As found in a scan of 1 % of the counts, with windows of 13 s and a step of 13 mm."""
    first = change(600, (0.3, -0.1, 6.2), "whole-body shift")
    second = replace(change(608, (0.3, -0.1, 6.2), "local event"), time_interval_s=(605, 613))
    poses = poses_from_changes(changes(first, second, window_s=13.0), SCAN)
    assert poses.scanner_from_reference[1, :3, 3] == pytest.approx([0.6, -0.2, 12.4])
    assert poses.windows[1].start_ms.tolist() == [600_000]
    assert np.sqrt(poses.covariance[1, 2, 2]) == pytest.approx(0.5 * np.sqrt(2), rel=1e-3)


def test_a_local_event_beside_a_shift_the_other_way_is_no_part_of_it() -> None:
    first = change(600, (0, 0, 6), "whole-body shift")
    second = change(605, (0, 0, -6), "local event")
    poses = poses_from_changes(changes(first, second), SCAN)
    assert poses.scanner_from_reference[:, 2, 3].tolist() == [0.0, 6.0]


def test_the_reference_is_the_pose_at_the_mu_maps_time() -> None:
    found = changes(change(600, (0, 0, 13), "whole-body shift"))
    for time_s, z in ((None, [0, 13]), (0.0, [0, 13]), (-60.0, [0, 13]), (900.0, [-13, 0])):
        poses = poses_from_changes(found, SCAN, reference_s=time_s)
        assert poses.scanner_from_reference[:, 2, 3].tolist() == z
        assert not poses.covariance[z.index(0)].any()


def test_a_scan_without_changes_has_one_pose() -> None:
    poses = poses_from_changes(changes(), SCAN)
    assert len(poses) == 1
    assert not poses.is_moving


def test_a_change_of_no_known_class_counts_only_where_that_is_asked_for() -> None:
    found = changes(change(600, (0, 0, 13), "unclassified"))
    assert len(poses_from_changes(found, SCAN)) == 1
    assert len(poses_from_changes(found, SCAN, kinds=("unclassified",))) == 2


# ---- from samples


def course(*z_mm: float) -> np.ndarray[Any, Any]:
    return np.stack([rigid((0, 0, z), (0, 0, 0)) for z in z_mm])


def test_a_sample_holds_until_the_next_one() -> None:
    poses = poses_from_samples([-1, 2, 4], course(0, 8, 0), Windows([0], [10_000]))
    assert [list(w) for w in poses.windows] == [[(0, 2000), (4000, 10_000)], [(2000, 4000)]]


@pytest.mark.parametrize(
    ("time_s", "z_mm", "message"),
    [
        ([0, 2, 2], [0, 1, 2], "must ascend in time by whole ms, but that of row 3"),
        ([1, 2], [0, 1], "first pose must not come after the start .* comes at 1 s"),
        (range(80), range(80), f"at most {MAX_POSES} poses .* but 80 remain"),
    ],
)
def test_unusable_courses_are_refused(time_s: Any, z_mm: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        poses_from_samples(list(time_s), course(*z_mm), Windows([0], [100_000]))


# ---- from moves of bed and gantry


def move(z_mm: float) -> np.ndarray[Any, Any]:
    return rigid((0, 0, z_mm), (0, 0, 0))[:3]


def test_the_patient_goes_with_the_bed_and_against_the_gantry() -> None:
    poses = poses_from_movements(
        [(0, move(0)), (2000, move(6)), (6000, move(0))],
        [(4000, np.stack((move(10), move(10))))],
        Windows([0], [10_000]),
    )
    found = [
        (a, b, float(poses.scanner_from_reference[pose, 2, 3]))
        for part, pose in poses.timeline()
        for a, b in part
    ]
    assert found == [(0, 2000, 0), (2000, 4000, 6), (4000, 6000, -4), (6000, 10_000, -10)]


def test_before_its_first_move_the_bed_stands_at_the_reference() -> None:
    poses = poses_from_movements([(500, move(6))], [], Windows([0], [1000]))
    assert poses.scanner_from_reference[:, 2, 3].tolist() == [0.0, 6.0]


def test_a_detector_whose_parts_move_apart_is_refused() -> None:
    with pytest.raises(InputError, match="must move together to be one pose, but at 3 s"):
        poses_from_movements([], [(3000, np.stack((move(0), move(1))))], SCAN)


# ---- detector and volumes


def test_a_scanner_at_rest_is_the_scanner() -> None:
    scanner = small_scanner()
    assert move_scanner(scanner, np.eye(4)) is scanner


@given(matrices)
def test_moving_the_detector_keeps_distances_and_incidence(
    matrix: np.ndarray[Any, Any],
) -> None:
    scanner = small_scanner()
    moved = move_scanner(scanner, matrix)
    for old, new in (
        (scanner.crystal_position_mm[:9], moved.crystal_position_mm[:9]),
        (scanner.crystal_normal[:9], moved.crystal_normal[:9]),
    ):
        before, after = (np.linalg.norm(v[:, None] - v[None], axis=-1) for v in (old, new))
        np.testing.assert_allclose(after, before, atol=1e-3)


@given(matrices)
def test_ray_ends_lie_where_the_patient_sees_the_crystals(matrix: np.ndarray[Any, Any]) -> None:
    scanner, grid = small_scanner(), Grid.centred((9, 11, 13), 5.0)
    poses = Poses(np.stack((np.eye(4), matrix)), shifted(0, 0).windows, np.zeros((2, 6, 6)))
    rays = RayModel.make(grid, scanner)
    ends = move_rays(rays, grid, scanner, poses).ends
    n = scanner.n_crystals
    np.testing.assert_array_equal(ends[:n], rays.ends)
    in_scanner = grid.point_mm(ends[n:]) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(in_scanner, scanner.crystal_position_mm, atol=1e-3)


def test_a_shifted_volume_keeps_its_values_on_a_shifted_grid() -> None:
    grid = Grid.centred((3, 4, 5), 2.0)
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    volume = Volume(values, grid, "1/cm")
    moved = move_volume(volume, rigid((1, 2, 3), (0, 0, 0)))
    np.testing.assert_array_equal(moved.values, volume.values)
    assert moved.grid.origin_mm == pytest.approx(np.add(grid.origin_mm, (1, 2, 3)).tolist())
    assert move_volume(volume, np.eye(4)) is volume


def test_a_turned_volume_holds_its_blob_where_the_pose_took_it() -> None:
    grid = Grid.centred((31, 31, 31), 4.0)
    x, y, z = np.meshgrid(*(grid.axis_mm(a) for a in range(3)), indexing="ij")
    place = np.array([30.0, -10.0, 20.0])
    blob = np.exp(-((x - 30) ** 2 + (y + 10) ** 2 + (z - 20) ** 2) / 200).astype(np.float32)
    matrix = rigid((3, 4, -5), (0.1, -0.05, 0.2))
    moved = move_volume(Volume(blob, grid, "1"), matrix)
    axes = np.meshgrid(*(moved.grid.axis_mm(a) for a in range(3)), indexing="ij")
    centre = [float((a * moved.values).sum() / moved.values.sum()) for a in axes]
    np.testing.assert_allclose(centre, matrix[:3, :3] @ place + matrix[:3, 3], atol=0.05)
    assert moved.values.sum() == pytest.approx(blob.sum(), rel=1e-3)


# ---- what a run tells of them


def _found(*items: Change) -> MotionResult:
    class Result:
        changes_ = changes(*items)

    result: Any = Result()
    result.changes, result.reference = Result.changes_, "bladder"
    return cast("MotionResult", result)


def test_a_run_says_which_changes_it_does_not_correct_and_why() -> None:
    listmode = MemoryListmode(
        small_scanner(), ScanProtocol(), EventBatch.empty(), np.zeros(1_200_001, np.int64)
    )
    found = _found(
        replace(change(100, (0, 0, 5), "local event"), reason="the body stayed"),
        change(300, (0, 0, 6), "whole-body shift"),
        change(700, (0, 0, 7), "unclassified"),
    )
    poses, notes = find_poses(listmode, found)
    assert poses.scanner_from_reference[:, 2, 3].tolist() == [0.0, 6.0]
    assert len(notes) == 2
    assert "100 s (5.0 mm) is not motion-corrected: it is a local event (the body" in notes[0]
    assert "700 s (7.0 mm) is not motion-corrected: whether the whole body" in notes[1]
