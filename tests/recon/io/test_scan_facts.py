from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from listmode.errors import InputError
from listmode.windows import Windows
from recon.io.nifti import save_volume
from recon.io.scan_facts import load_facts
from tests.recon.io.scenes import PROTOCOL, START, WINDOWS, asymmetric

IMAGE: Any = nib.Nifti1Image

FOREIGN = {
    "Units": "Bq/mL",
    "TracerName": "PSMA",
    "TracerRadionuclide": "Ga68",
    "InjectedRadioactivity": 150000.0,
    "InjectedRadioactivityUnits": "kBq",
    "InjectionStart": 0.0,
    "ImageDecayCorrectionTime": 3600.0,
    "FrameTimesStart": [3600.0],
    "FrameDuration": [300.0],
    "BodyWeight": 80.0,
}


def with_sidecar(folder: Path, about: dict[str, Any]) -> Path:
    path = folder / "a.nii.gz"
    IMAGE(np.ones((2, 2, 2), np.float32), np.eye(4)).to_filename(path)
    (folder / "a.json").write_text(json.dumps(about))
    return path


def test_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    save_volume(path, asymmetric(), protocol=PROTOCOL, windows=WINDOWS)
    facts = load_facts(path, START)
    assert (facts.protocol, facts.windows, facts.start) == (PROTOCOL, WINDOWS, START)


def test_reads_a_foreign_bids_sidecar_from_its_moment_of_decay_correction(
    tmp_path: Path,
) -> None:
    """There time zero is the injection and the image is corrected to the start of the scan."""
    facts = load_facts(with_sidecar(tmp_path, FOREIGN))
    assert facts.windows == Windows([0], [300_000])
    assert facts.protocol.injection_time_s == -3600.0
    assert facts.protocol.half_life_s == 4069.7
    by_hand = 80e3 / (150e6 * 2.0 ** (-3600.0 / 4069.7))
    assert facts.protocol.suv_per_bq_ml == pytest.approx(by_hand)


def test_refuses_a_sidecar_without_time(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must say which time the image was made from"):
        load_facts(with_sidecar(tmp_path, {"Units": "Bq/mL"}))


@pytest.mark.parametrize(
    "damage",
    [
        {"InjectedRadioactivityUnits": "mCi"},
        {"FrameTimesStart": ["soon"]},
        {"FrameTimesStart": [0.0, 1.0]},
        {"BodyWeight": [80]},
        {"stillpet": {"protocol": {"half_life_s": -1.0}}},
        {"stillpet": {"windows_s": [[0.0]]}},
    ],
)
def test_refuses_a_sidecar_of_no_use(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must say in numbers what was injected"):
        load_facts(with_sidecar(tmp_path, FOREIGN | damage))
