from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recon.hotspots
from listmode.errors import InputError
from recon.hotspots.cohort import CohortSettings, generate_cohort
from recon.io.cohorts import load_cases, load_cohort_settings, save_cases
from tests.recon.hotspots.tables import settings

FILE = Path(recon.hotspots.__file__).parent / "cohort.toml"


def test_totals_are_those_of_the_study_for_every_seed() -> None:
    for seed in range(5):
        cases = generate_cohort(settings(), seed)
        y, bone = cases.malignant > 0, cases.tissue == "bone"
        assert cases.n_patients == 110
        assert (bone.sum(), (~bone).sum()) == (290, 273)
        assert ((y & bone).sum(), (y & ~bone).sum()) == (119, 243)
        assert len(np.unique(cases.patient[y & bone])) == 22
        assert len(np.unique(cases.patient[y & ~bone])) == 45
        both = set(cases.patient[y & bone]) & set(cases.patient[y & ~bone])
        assert len(both) == 15


def test_same_seed_same_cohort_other_seed_another() -> None:
    assert generate_cohort(settings(), 3).digest == generate_cohort(settings(), 3).digest
    assert generate_cohort(settings(), 3).digest != generate_cohort(settings(), 4).digest


@pytest.mark.stats
@pytest.mark.slow
def test_draws_have_the_medians_and_correlation_of_the_file() -> None:
    """Forty cohorts, seeds 0-39.

    log SUVmax of benign bone: 6,840 values, SD 0.40, correlated 0.4 within some 3,200 patients:
    standard error of the mean below 0.40 x sqrt(0.4/3200 + 0.6/6840) = 0.006; 0.03 is five.
    """
    values, pairs = [], []
    for seed in range(40):
        cases = generate_cohort(settings(), seed)
        mine = (cases.tissue == "bone") & (cases.malignant == 0)
        log = np.log(cases.numbers["suv_max"])
        values.append(log[mine])
        for patient in np.unique(cases.patient[mine]):
            own = log[mine & (cases.patient == patient)]
            if own.size > 1:
                pairs.append((own[:2] - np.log(5.5)) / 0.40)
    drawn = np.concatenate(values)
    assert drawn.mean() == pytest.approx(np.log(5.5), abs=0.03)
    assert drawn.std() == pytest.approx(0.40, abs=0.03)
    # about 1,500 pairs: standard error (1 - 0.16) / sqrt(1500) = 0.022; five of them
    first, second = np.array(pairs).T
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.4, abs=0.11)


def test_cohort_comes_back_from_its_file(tmp_path: Path) -> None:
    cases = generate_cohort(settings(), 1)
    save_cases(tmp_path / "cohort.csv", cases)
    assert load_cases(tmp_path / "cohort.csv").digest == cases.digest


def table() -> dict[str, Any]:
    return copy.deepcopy(tomllib.loads(FILE.read_text("utf-8")))


def test_every_parameter_has_its_source_or_says_that_it_has_none() -> None:
    """Each number, or its section, carries a DOI, a study or the word assumption."""
    source = ""
    for line in FILE.read_text("utf-8").splitlines():
        code, _, comment = line.partition("#")
        if code.startswith("["):
            source = comment
        elif "=" in code and code.split("=")[1].strip()[:1].isdigit():
            said = comment or source
            known = ("10.", "assumption", "study", "EJNMMI", "median")
            assert any(word in said for word in known), line


def test_refuses_another_schema() -> None:
    with pytest.raises(InputError, match="schema 'stillpet-cohort-1', but it has None"):
        CohortSettings.from_table({})


def test_refuses_missing_and_unknown_keys() -> None:
    changed = table()
    changed["patients"]["age"] = 70
    with pytest.raises(InputError, match=r"patients must have exactly.*age"):
        CohortSettings.from_table(changed)


def test_refuses_locations_that_do_not_share_one() -> None:
    changed = table()
    changed["location"]["bone_benign"]["spine"] = 0.5
    with pytest.raises(InputError, match=r"location\.bone_benign must share 1"):
        CohortSettings.from_table(changed)


def test_refuses_more_owners_than_patients() -> None:
    changed = table()
    changed["patients"]["n"] = 50
    with pytest.raises(InputError, match="must be among the 50 patients, but 80"):
        CohortSettings.from_table(changed)


def test_refuses_a_file_that_is_not_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[[[")
    with pytest.raises(InputError, match="must be TOML"):
        load_cohort_settings(tmp_path / "a.toml")
