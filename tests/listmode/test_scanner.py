"""Scanners: where crystals lie, which pairs count, how TOF bins lie."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from listmode.errors import InputError
from listmode.formats.scanner_file import list_presets, load_scanner
from listmode.scanner import BlockLayout, TofModel, build_scanner
from tests.strategies import small_scanner


def test_crystals_lie_behind_the_front_face_by_the_depth_of_interaction() -> None:
    scanner = small_scanner()
    depth = (scanner.crystal_position_mm * scanner.crystal_normal).sum(axis=1)
    assert np.allclose(depth, 100.0 + scanner.doi_mm, atol=1e-3)


def test_crystals_are_numbered_around_the_ring_then_along_z() -> None:
    scanner = small_scanner()
    assert scanner.n_crystals == 8 * 3 * 6
    assert scanner.crystal_ring[:25].tolist() == [0] * 24 + [1]
    assert scanner.crystal_transaxial[:5].tolist() == [0, 1, 2, 4, 5]  # slot 3 is a gap
    assert (np.diff(scanner.crystal_position_mm[::24, 2]) > 0).all()


def test_gap_rings_take_a_slot_and_a_pitch() -> None:
    scanner = small_scanner()
    assert scanner.n_rings == 7
    assert sorted(set(scanner.crystal_ring.tolist())) == [0, 1, 2, 4, 5, 6]
    assert scanner.axial_length_mm == pytest.approx(7 * 5.2, abs=1e-3)
    assert scanner.crystal_position_mm[:, 2].mean() == pytest.approx(0.0, abs=1e-4)


def test_block_numbers_turn_from_x_towards_y() -> None:
    scanner = small_scanner()
    middle = scanner.crystal_position_mm[1::3][:8, :2]
    angle = np.unwrap(np.arctan2(middle[:, 1], middle[:, 0]))
    assert np.allclose(np.diff(angle), 2 * math.pi / 8, atol=1e-5)
    assert angle[0] == pytest.approx(0.1, abs=1e-5)


def test_pair_counts_by_ring_difference_and_distance_from_the_axis() -> None:
    scanner = small_scanner()
    opposite = 4 * 3 + 1
    assert scanner.accepts(np.array([1]), np.array([opposite])).item()
    assert not scanner.accepts(np.array([0]), np.array([3])).item()  # passes far from the axis
    assert not scanner.accepts(np.array([1]), np.array([opposite + 24 * 5])).item()  # 6 rings
    assert (
        scanner.with_mode("wide", 6).accepts(np.array([1]), np.array([opposite + 120])).item()
    )


def test_crystal_paired_with_itself_is_not_accepted() -> None:
    assert not small_scanner().accepts(np.array([3]), np.array([3])).item()


def test_tof_bins_lie_symmetrically_and_end_at_the_window() -> None:
    tof = TofModel(33, 143.231, 228.0)
    centre = tof.bin_centre_mm()
    assert np.allclose(centre, -centre[::-1])
    assert tof.window_ps == pytest.approx(4726.62, abs=0.01)
    assert tof.sigma_mm * 2.3548 == pytest.approx(34.2, abs=0.05)


def test_one_bin_means_no_tof() -> None:
    assert not TofModel(1, 4726.0, math.inf).has_tof
    assert small_scanner(1).tof.bin_centre_mm().tolist() == [0.0]


@pytest.mark.parametrize(("n", "width", "fwhm"), [(0, 1.0, 1.0), (3, 0.0, 1.0), (3, 1.0, -1.0)])
def test_impossible_tof_is_refused(n: int, width: float, fwhm: float) -> None:
    with pytest.raises(InputError, match="a TOF model needs at least one bin"):
        TofModel(n, width, fwhm)


def test_arrays_must_have_one_entry_a_crystal() -> None:
    scanner = small_scanner()
    with pytest.raises(InputError, match=r"crystal_ring must have shape \(144,\)"):
        replace(scanner, crystal_ring=scanner.crystal_ring[:-1])


def test_positions_must_be_finite() -> None:
    scanner = small_scanner()
    position = scanner.crystal_position_mm.copy()
    position[17, 1] = np.nan
    with pytest.raises(InputError, match="must be finite, but crystal 17 is not"):
        replace(scanner, crystal_position_mm=position)


def test_one_crystal_is_no_scanner() -> None:
    scanner = small_scanner()
    one = {
        name: getattr(scanner, name)[:1]
        for name in ("crystal_position_mm", "crystal_normal", "crystal_ring")
    }
    with pytest.raises(InputError, match="at least two crystals, but there are 1"):
        replace(
            scanner,
            crystal_transaxial=scanner.crystal_transaxial[:1],
            crystal_profile=scanner.crystal_profile[:1],
            **one,
        )


def _build(**changes: object) -> None:
    given = {
        "name": "bad",
        "layout": BlockLayout(8, 3, 0, 1, 3, 0, 100.0),
        "crystal_size_mm": (4.0, 5.0, 20.0),
        "crystal_pitch_mm": (4.2, 5.2),
        "max_ring_difference": 2,
        "fov_radius_mm": 80.0,
        "tof": TofModel(1, 1000.0, math.inf),
    }
    build_scanner(**(given | changes))  # type: ignore[arg-type]


def test_blocks_must_fit_on_the_polygon() -> None:
    with pytest.raises(InputError, match="a block's crystals must fit on its side"):
        _build(crystal_pitch_mm=(42.0, 5.2))


def test_profile_must_fit_the_block() -> None:
    with pytest.raises(InputError, match="profile_transaxial needs 3 values, but it has 2"):
        _build(profile_transaxial=(1.0, 1.0))


def test_digest_changes_with_anything_that_is_described() -> None:
    scanner = small_scanner()
    assert scanner.digest == small_scanner().digest
    assert scanner.digest != replace(scanner, doi_mm=6.0).digest
    assert scanner.digest != scanner.with_mode("wide", 5).digest


@pytest.mark.parametrize("name", list_presets())
def test_presets_load(name: str) -> None:
    scanner = load_scanner(name)
    assert scanner.n_crystals > 10_000
    assert scanner.crystal_ring.max() == scanner.n_rings - 1


def test_quadra_is_as_published() -> None:
    """Prenosil et al., J Nucl Med 2022;63:476-484, doi 10.2967/jnumed.121.261972: 106 cm."""
    scanner = load_scanner("quadra-HS")
    assert scanner.n_crystals == 243_200
    assert scanner.n_rings == 323
    assert scanner.n_transaxial == 798
    assert scanner.axial_length_mm == pytest.approx(1063.0, abs=0.1)
    assert scanner.max_ring_difference == 85


def test_unknown_scanner_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"a scanner must be a preset \(mmr, .*quadra"):
        load_scanner("quadro")


def test_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="knows the modes HS, UHS, but 'XL' was asked for"):
        load_scanner("quadra", "XL")
