"""The audit is green on honest folds and red on every planted leak; remarks name weak folds."""

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.leakage import leakage_audit, shared_files, shared_sites, split_warnings
from equipoise.datasets.cohorts.splits import Fold, SplitScheme, make_folds, site_preserved
from equipoise.datasets.params import SitePreservedParams
from equipoise.datasets.tables.tasks import BinaryTask, MulticlassTask

MSI = BinaryTask(name="MSI", column="MSI", positive=["1"])


@pytest.fixture
def patients() -> pd.DataFrame:
    n = 12
    return pd.DataFrame(
        {
            "patient": [f"p{i}" for i in range(n)],
            "role": ["develop"] * 9 + ["external"] * 3,
            "site": [f"s{i // 3}" for i in range(n)],
            "MSI": [float(i % 2) for i in range(n)],
        }
    )


@pytest.fixture
def slides(patients: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {"patient": patients["patient"], "fingerprint": [f"f{i}" for i in range(len(patients))]}
    )


def fold(train: str = "012", val: str = "345", test: str = "678") -> Fold:
    return Fold(0, 0, *(tuple(f"p{i}" for i in part) for part in (train, val, test)))


def red(audit: pd.DataFrame) -> dict[str, int]:
    return dict(audit.loc[~audit["ok"], ["check", "overlap"]].itertuples(index=False))


def test_honest_folds_are_green(patients: pd.DataFrame, slides: pd.DataFrame) -> None:
    audit = leakage_audit([fold()], patients, slides, preserve_sites=True)
    assert audit["check"].tolist() == [
        "patient",
        "site",
        "slide file",
        "external patient",
        "external slide file",
    ]
    assert set(audit["fold"]) == {"0-0"}
    assert audit["ok"].all()
    assert (audit["overlap"] == 0).all()


def test_every_planted_leak_is_found(patients: pd.DataFrame, slides: pd.DataFrame) -> None:
    def audit(planted: Fold, files: pd.DataFrame = slides) -> dict[str, int]:
        return red(leakage_audit([planted], patients, files, preserve_sites=True))

    assert audit(fold(train="0128")) == {"patient": 1, "site": 1, "slide file": 1}
    assert audit(fold(val="34", test="5678")) == {"site": 1}
    copied = slides.assign(fingerprint=slides["fingerprint"].replace({"f0": "same", "f8": "same"}))
    assert audit(fold(), copied) == {"slide file": 1}
    assert audit(fold(test="6789")) == {"external patient": 1, "external slide file": 1}
    from_outside = slides.assign(fingerprint=slides["fingerprint"].replace({"f0": "same", "f11": "same"}))
    assert audit(fold(), from_outside) == {"external slide file": 1}


def test_sites_count_only_where_they_are_preserved(patients: pd.DataFrame) -> None:
    audit = leakage_audit([fold(val="34", test="5678")], patients)
    assert audit["check"].tolist() == ["patient", "external patient"]
    assert audit["ok"].all()


def test_paths_stand_in_for_fingerprints_and_empty_ones_are_ignored(patients: pd.DataFrame) -> None:
    paths = pd.DataFrame({"patient": ["p0", "p8"], "path": ["x.svs", "x.svs"]})
    assert red(leakage_audit([fold()], patients, paths)) == {"slide file": 1}
    unread = pd.DataFrame({"patient": ["p0", "p8", "p1"], "fingerprint": ["", "", np.nan]})
    assert red(leakage_audit([fold()], patients, unread)) == {}


def test_scarce_classes_are_named(patients: pd.DataFrame) -> None:
    remarks = split_warnings([fold()], patients, [MSI])
    assert remarks == [
        "task 'MSI': fewer than 5 positives in the test part of fold 0-0 (1)",
        "task 'MSI': fewer than 5 negatives in the test part of fold 0-0 (2)",
    ]
    stage = MulticlassTask(name="S", column="S", classes={"I": "I", "II": "II"})
    table = patients.assign(S=[0.0] * 9 + [1.0] * 3)
    remarks = split_warnings([fold()], table, [stage])
    assert "task 'S': no patients of class II in the training part of fold 0-0" in remarks


def test_a_dominant_site_and_an_inner_part_by_patient() -> None:
    n = 60
    table = pd.DataFrame(
        {
            "patient": [f"p{i:02}" for i in range(n)],
            "cohort": "A",
            "role": "develop",
            "site": ["big"] * 40 + ["small"] * 20,
            "MSI": [float(i % 2) for i in range(n)],
        }
    )
    params = SitePreservedParams(folds=2, repeats=2)
    scheme = SplitScheme(site_preserved, params)
    remarks = split_warnings(make_folds(table, scheme, [MSI], 0), table, [MSI], params)
    assert any("site 'big' holds 67% of the development patients, more than 1/2" in r for r in remarks)
    assert any("repeat 1 found the same test parts" in r for r in remarks)
    assert any("fold 0-0, 0-1, 1-0, 1-1: inner validation is drawn by patient" in r for r in remarks)


def test_the_slides_behind_a_shared_file_are_named(patients: pd.DataFrame, slides: pd.DataFrame) -> None:
    def shared(*same: str, planted: Fold | None = None) -> list[str]:
        files = slides.assign(slide=[f"S{i}" for i in range(len(slides))])
        files["fingerprint"] = files["fingerprint"].where(~files["patient"].isin(same), "same")
        folds = [planted or fold(), Fold(0, 1, fold().test, fold().val, fold().train)]
        result = shared_files(folds, patients, files)
        red = leakage_audit(folds, patients, files)
        assert bool(result) == (not red["ok"].all())
        return result

    assert shared() == []
    assert shared("p0", "p8") == ["slides S0 (patient p0) and S8 (patient p8) are the same file"]
    assert shared("p0", "p11") == ["slides S0 (patient p0) and S11 (patient p11) are the same file"]
    three = "slides S0 (patient p0), S1 (patient p1) and S8 (patient p8) are the same file"
    assert shared("p0", "p1", "p8") == [three]
    # In one part, or both external, a copy tests nothing that was learned.
    assert shared("p0", "p1") == shared("p9", "p10") == []
    many = shared(*(f"p{i}" for i in range(9)))
    assert many[0].endswith("S5 (patient p5) and 3 more are the same file")


def test_before_extraction_paths_name_shared_files(patients: pd.DataFrame) -> None:
    paths = pd.DataFrame({"slide": ["A", "B"], "patient": ["p0", "p8"], "path": ["x.svs", "x.svs"]})
    assert shared_files([fold()], patients, paths) == [
        "slides A (patient p0) and B (patient p8) are the same file"
    ]
    unread = paths.assign(fingerprint=["", np.nan])
    assert shared_files([fold()], patients, unread) == []


def test_a_hospital_in_development_and_external_is_a_remark() -> None:
    table = pd.DataFrame(
        [
            ("p1", "A", "develop", "Duke"),
            ("p2", "A", "develop", "Mayo"),
            ("p3", "B", "external", "Duke"),
            ("p4", "B", "external", "Pitt"),
            ("p5", "C", "external", "C"),
            ("p6", "D", "develop", "Pitt"),
            ("p7", "E", "external", "E:1"),
        ],
        columns=["patient", "cohort", "role", "site"],
    )
    assert shared_sites(table) == [
        "hospitals Duke, Pitt are in both A, D and B (2 of 2 patients): the external cohort is not wholly new"
    ]
    assert shared_sites(table[table["patient"] != "p6"]) == [
        "hospital Duke is in both A and B (1 of 2 patients): the external cohort is not wholly new"
    ]
    assert shared_sites(table[table["role"] == "develop"]) == []
