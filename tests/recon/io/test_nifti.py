from __future__ import annotations

import errno
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listmode.errors import InputError
from listmode.source import ScanProtocol
from listmode.windows import Windows
from recon.image import Grid, Unit, Volume
from recon.io.nifti import check_mu, load_volume, resample_to, save_volume
from recon.io.sidecar import sidecar_path

GRID = Grid((4, 5, 6), (2.0, 3.0, 4.0), (-11.0, 7.0, -31.0))
IMAGE: Any = nib.Nifti1Image


def numbered(unit: Unit = "Bq/mL", grid: Grid = GRID) -> Volume:
    values = np.arange(grid.n_voxels, dtype=np.float32).reshape(grid.shape)
    return Volume(values, grid, unit, {"seed": 3})


def write(path: Path, values: Any, affine: Any = None) -> Path:
    IMAGE(values, np.eye(4) if affine is None else affine).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["still.nii.gz", "still.nii", "Bild ä 1.nii.gz"])
def test_comes_back_as_it_was_saved(tmp_path: Path, name: str) -> None:
    saved = numbered()
    save_volume(tmp_path / name, saved)
    loaded = load_volume(tmp_path / name)
    assert np.array_equal(loaded.values, saved.values)
    assert loaded.values.dtype == np.float32
    assert loaded.grid == saved.grid
    assert loaded.unit == "Bq/mL"
    assert loaded.provenance == {"seed": 3}


def test_patient_left_is_at_negative_ras_x(tmp_path: Path) -> None:
    """+x of the scanner is the patient's left, +y the back; RAS+ has them negative."""
    save_volume(tmp_path / "a.nii.gz", numbered())
    image = IMAGE.load(tmp_path / "a.nii.gz")
    corner = image.affine @ [3, 0, 0, 1]
    assert corner.tolist() == [11.0 - 6.0, -7.0, -31.0, 1.0]
    assert nib.orientations.aff2axcodes(image.affine) == ("L", "P", "S")  # type: ignore[no-untyped-call]
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product([-1, 1], repeat=3)))
def test_every_axis_aligned_orientation_lands_in_the_scanner_frame(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """The oracle walks voxel by voxel through the file's own affine."""
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for voxel_axis, (world_axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world_axis, voxel_axis] = sign * (2.0 + voxel_axis)
    affine[:3, 3] = 5.0, -6.0, 7.0
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    volume = load_volume(write(tmp_path / "a.nii", values, affine), unit="SUV")
    for index in np.ndindex(2, 3, 4):
        x, y, z, _ = affine @ [*index, 1]
        at = np.rint(volume.grid.voxel_index([-x, -y, z])).astype(int)
        assert volume.values[tuple(at)] == values[index]


def test_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_volume(tmp_path / name / "a.nii.gz", numbered())
    for file in ("a.nii.gz", "a.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    header = (tmp_path / "one" / "a.nii.gz").read_bytes()[:10]
    assert header[4:8] == b"\0\0\0\0"  # no time of writing
    assert header[3] == 0  # no file name


def test_labels_stay_whole_numbers(tmp_path: Path) -> None:
    labels = Volume(np.full(GRID.shape, 70_001, np.int32), GRID, "label")
    save_volume(tmp_path / "labels.nii.gz", labels)
    loaded = load_volume(tmp_path / "labels.nii.gz")
    assert loaded.values.dtype == np.int32
    assert loaded.values[0, 0, 0] == 70_001


def test_sidecar_names_units_times_and_activity_as_bids_does(tmp_path: Path) -> None:
    protocol = ScanProtocol(
        tracer="FDG",
        injected_activity_bq=19.5e6,
        injection_time_s=-3600.0,
        patient_weight_kg=65.0,
    )
    windows = Windows([10_000, 600_000], [120_000, 1_200_000])
    save_volume(tmp_path / "a.nii.gz", numbered(), protocol=protocol, windows=windows)
    about = json.loads(sidecar_path(tmp_path / "a.nii.gz").read_text())
    assert about["Units"] == "Bq/mL"
    assert about["TracerName"] == "FDG"
    assert about["TracerRadionuclide"] == "F18"
    assert (about["InjectedRadioactivity"], about["InjectedRadioactivityUnits"]) == (
        19.5,
        "MBq",
    )
    assert about["InjectionStart"] == -3600.0
    assert about["FrameTimesStart"] == [10.0]
    assert about["FrameDuration"] == [710.0]
    assert about["ImageDecayCorrected"] is True
    assert about["ImageDecayCorrectionTime"] == 0.0
    by_hand = 710.0 / sum(
        6586.2 / np.log(2) * (2 ** (-a / 6586.2) - 2 ** (-b / 6586.2))
        for a, b in ((10, 120), (600, 1200))
    )
    assert about["DecayCorrectionFactor"] == [pytest.approx(by_hand, rel=1e-12)]
    assert about["stillpet"]["windows_s"] == [[10.0, 120.0], [600.0, 1200.0]]
    assert "not a medical device" in about["stillpet"]["purpose"]


def test_sidecar_takes_protocol_and_windows_from_the_provenance(tmp_path: Path) -> None:
    provenance = {"protocol": {"tracer": "FDG"}, "windows_ms": [[0, 5000]]}
    volume = Volume(np.ones(GRID.shape, np.float32), GRID, "SUV", provenance)
    save_volume(tmp_path / "a.nii.gz", volume)
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["TracerName"] == "FDG"
    assert about["FrameDuration"] == [5.0]
    assert "InjectedRadioactivity" not in about  # unknown is left out, not guessed


def test_keys_that_the_caller_knows_go_into_the_sidecar(tmp_path: Path) -> None:
    save_volume(tmp_path / "a.nii.gz", numbered(), bids={"ReconMethodName": "OSEM"})
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["ReconMethodName"] == "OSEM"
    assert about["AcquisitionMode"] == "list mode"
    assert load_volume(tmp_path / "a.nii.gz").provenance == {"seed": 3}


def test_a_map_of_attenuation_claims_no_decay(tmp_path: Path) -> None:
    save_volume(tmp_path / "mu.nii.gz", mu(0.096))
    about = json.loads((tmp_path / "mu.json").read_text())
    assert about["Units"] == "1/cm"
    assert not any("Decay" in key or "Acquisition" in key for key in about)


def test_refuses_an_image_of_colours(tmp_path: Path) -> None:
    colours = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="must have three dimensions of numbers"):
        load_volume(write(tmp_path / "a.nii", colours), "SUV")


def test_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_volume(tmp_path / "a.nii.gz", numbered())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the sidecar still fits, the image does not
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.io.files.os.fsync", full)
    with pytest.raises(InputError, match=r"a\.nii\.gz must be writable.*No space left"):
        save_volume(tmp_path / "a.nii.gz", numbered("SUV"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be writable"):
        save_volume(tmp_path / "nowhere" / "a.nii.gz", numbered())


def test_refuses_a_name_that_is_not_nifti(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.nii or \.nii\.gz, but it is a\.img"):
        save_volume(tmp_path / "a.img", numbered())


def test_refuses_provenance_that_is_not_json(tmp_path: Path) -> None:
    volume = Volume(np.ones(GRID.shape, np.float32), GRID, "SUV", {"x": float("nan")})
    with pytest.raises(InputError, match="must hold JSON values only"):
        save_volume(tmp_path / "a.nii.gz", volume)
    assert not list(tmp_path.iterdir())


def test_refuses_an_oblique_image(tmp_path: Path) -> None:
    c, s = np.cos(0.05), np.sin(0.05)
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3), np.float32), affine)
    with pytest.raises(InputError, match=r"tilted by 2\.86 degrees"):
        load_volume(path, "SUV")


def test_refuses_an_affine_without_inverse(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3), np.float32))
    raw = bytearray(path.read_bytes())
    raw[280:296] = bytes(16)  # srow_x
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="affine must be invertible"):
        load_volume(path, "SUV")


@pytest.mark.parametrize("keep", [0, 100, 352, 400])
def test_refuses_a_cut_file(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.nii", np.ones((5, 5, 5), np.float32))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.nii must be a complete NIfTI-1 image"):
        load_volume(path, "SUV")


def test_refuses_a_cut_gzip_stream(tmp_path: Path) -> None:
    save_volume(tmp_path / "a.nii.gz", numbered())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="compressed stream is cut"):
        load_volume(path)


def test_refuses_a_gzip_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.io.nifti.MAX_BYTES", 1 << 20)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(InputError, match="unpacks beyond"):
        load_volume(tmp_path / "a.nii.gz", "SUV")


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.nii must be a readable file"):
        load_volume(tmp_path / "a.nii", "SUV")


def test_refuses_an_image_of_unknown_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3), np.float32))
    with pytest.raises(InputError, match=r"unit of an image must be known.*None"):
        load_volume(path)


@pytest.mark.parametrize(("text", "found"), [("{", "must be JSON"), ("[1]", "is a list")])
def test_refuses_a_damaged_sidecar(tmp_path: Path, text: str, found: str) -> None:
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3), np.float32))
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=found):
        load_volume(path, "SUV")


def test_reads_units_from_a_foreign_bids_sidecar(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3, 1), np.float32))
    (tmp_path / "a.json").write_text('{"Units": "Bq/mL"}')
    assert load_volume(path).unit == "Bq/mL"


def test_refuses_more_than_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3, 2), np.float32))
    with pytest.raises(InputError, match="must have three dimensions of numbers"):
        load_volume(path, "SUV")


def test_refuses_complex_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.ones((3, 3, 3), np.complex64))
    with pytest.raises(InputError, match="must hold real numbers"):
        load_volume(path, "SUV")


def test_refuses_nan_and_says_where(tmp_path: Path) -> None:
    values = np.ones((3, 3, 3), np.float32)
    values[1, 2, 0] = np.nan
    with pytest.raises(InputError, match=r"must be finite, but voxel \(1, 2, 0\) is nan"):
        load_volume(write(tmp_path / "a.nii", values), "SUV")


def test_refuses_labels_with_fractions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.full((3, 3, 3), 1.5, np.float32))
    with pytest.raises(InputError, match="labels must be whole numbers"):
        load_volume(path, "label")


def mu(value: float, low: float = 0.0) -> Volume:
    values = np.full(GRID.shape, low, np.float32)
    values[1:3, 1:4, 1:5] = value
    return Volume(values, GRID, "1/cm")


def test_a_map_of_water_and_bone_passes() -> None:
    check_mu(mu(0.096))
    check_mu(mu(0.17))


@pytest.mark.parametrize(
    ("volume", "found"),
    [
        (mu(0.0), "every voxel is zero"),
        (mu(0.0096), "looks like 1/mm"),
        (mu(60.0, -1000.0), "look like HU"),
        (mu(1060.0), "look like HU"),
        (numbered("SUV"), "must be in 1/cm"),
    ],
)
def test_refuses_a_mu_map_that_is_none(volume: Volume, found: str) -> None:
    with pytest.raises(InputError, match=found):
        check_mu(volume)


def test_loading_a_mu_map_checks_it(tmp_path: Path) -> None:
    save_volume(tmp_path / "mu.nii.gz", mu(0.0))
    with pytest.raises(InputError, match="every voxel is zero"):
        load_volume(tmp_path / "mu.nii.gz")


def test_resampling_to_the_same_grid_changes_nothing() -> None:
    volume = numbered()
    assert resample_to(volume, GRID) is volume


@given(
    st.tuples(*[st.integers(2, 9)] * 3),
    st.tuples(*[st.floats(0.7, 6.0)] * 3),
    st.tuples(*[st.floats(-4.0, 4.0)] * 3),
)
def test_a_linear_ramp_is_exact_wherever_the_grid_lies_inside(
    shape: tuple[int, int, int], voxel: tuple[float, float, float], shift: tuple[float, ...]
) -> None:
    """Trilinear interpolation reproduces a + b x + c y + d z between voxel centres."""
    source = Grid.centred((30, 20, 25), (4.0, 5.0, 4.0))
    x, y, z = np.meshgrid(*(source.axis_mm(k) for k in range(3)), indexing="ij")
    ramp = Volume((3.0 + 0.1 * x - 0.2 * y + 0.3 * z).astype(np.float32), source, "SUV")
    centred = Grid.centred(shape, voxel)
    ox, oy, oz = (o + s for o, s in zip(centred.origin_mm, shift, strict=True))
    target = Grid(shape, voxel, (ox, oy, oz))
    out = resample_to(ramp, target)
    x, y, z = np.meshgrid(*(target.axis_mm(k) for k in range(3)), indexing="ij")
    inside = (abs(x) <= 58) & (abs(y) <= 47.5) & (abs(z) <= 48)
    wanted = 3.0 + 0.1 * x - 0.2 * y + 0.3 * z
    np.testing.assert_allclose(out.values[inside], wanted[inside], atol=2e-4)


def test_is_zero_outside_and_says_what_it_covers() -> None:
    small = Volume(np.ones((10, 10, 10), np.float32), Grid.centred((10, 10, 10), 2.0), "1/cm")
    out = resample_to(small, Grid.centred((40, 10, 10), 2.0))
    assert float(out.values.sum()) == 1000.0
    assert out.provenance["resampled_from"]["covered_fraction"] == 0.25
    assert out.provenance["resampled_from"]["shape"] == [10, 10, 10]


def test_labels_are_never_mixed() -> None:
    values = np.zeros((6, 4, 4), np.int32)
    values[3:] = 50
    labels = Volume(values, Grid.centred((6, 4, 4), 3.0), "label")
    out = resample_to(labels, Grid.centred((18, 7, 5), 1.0))
    assert set(np.unique(out.values)) == {0, 50}
    assert (out.values[9:] == 50).all()
    assert (out.values[:9] == 0).all()


def test_refuses_grids_that_do_not_meet() -> None:
    away = Grid((4, 4, 4), (2.0, 2.0, 2.0), (500.0, 0.0, 0.0))
    with pytest.raises(InputError, match="must overlap the grid"):
        resample_to(numbered(), away)
