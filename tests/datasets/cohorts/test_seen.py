"""Whom a pre-trained model has seen: found again under any salt, hidden at a glance, refused when damaged."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import pytest

from equipoise.datasets.cohorts.leakage import leakage_audit
from equipoise.datasets.cohorts.seen import Seen, SeenPart
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.cohorts.whole_fold import fold_without_test
from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.tasks import BinaryTask


@pytest.mark.parametrize("salt", ["", "pepper"])
def test_patients_and_files_are_found_again(salt: str) -> None:
    seen = Seen((SeenPart.of(["TCGA-A1", "tcga-b2 "], ["abc", ""], salt),))
    read = Seen.from_json(json.loads(json.dumps(seen.to_json())), "seen.json")
    assert read == seen
    assert read.patients_among(["TCGA-B2", "TCGA-C3", " TCGA-A1"]) == ["TCGA-B2", " TCGA-A1"]
    assert read.slides_among(["x", "abc", ""]) == ["abc"]
    assert ("tcga-a1" in json.dumps(seen.to_json())) == (salt == "")


def test_hashes_are_what_the_remark_says() -> None:
    (part,) = Seen((SeenPart.of([" TCGA-A1 "], [], "5a17"),)).to_json()["parts"]
    assert part["patients"] == [hashlib.sha256(b"5a17\npatient\ntcga-a1").hexdigest()]
    assert "candidates" in part["remark"]


def test_several_trainings_one_after_another() -> None:
    one, two = (Seen((SeenPart.of([name], [], salt),)) for name, salt in (("a", "x"), ("b", "y")))
    both = one + two + one
    assert len(both.parts) == 2
    assert both.patients_among("abc") == ["a", "b"]


@pytest.mark.parametrize(
    "content", [{}, {"format": "other"}, {"format": "equipoise-seen/1", "parts": [{}]}, []]
)
def test_without_a_record_nobody_knows(content) -> None:
    with pytest.raises(DataError, match="no record of the patients that a model has seen"):
        Seen.from_json(content, "seen.json")


def test_the_audit_counts_tested_and_external_patients() -> None:
    patients = pd.DataFrame(
        {
            "patient": ["a", "b", "c", "d", "e"],
            "site": "s",
            "role": ["develop"] * 4 + ["external"],
        }
    )
    slides = pd.DataFrame({"patient": ["a", "c", "d", "e"], "fingerprint": ["1", "3", "4", "5"]})
    folds = [Fold(0, 0, ("a",), ("b",), ("c", "d")), Fold(0, 1, ("c",), ("d",), ("a", "b"))]
    seen = {"training.start": Seen((SeenPart.of(["a", "C"], ["5"], "salt"),))}
    audit = leakage_audit(folds, patients, slides, seen=seen).set_index(["check", "fold"])["overlap"]
    who, files = (f"{what} that training.start has seen" for what in ("patient", "slide file"))
    assert audit[who].to_dict() == {"0-0": 1, "0-1": 1}  # c; a
    assert audit[files].to_dict() == {"0-0": 1, "0-1": 1}  # of the external patient e
    assert not audit[~audit.index.isin([who, files], level="check")].any()


def test_a_fold_of_all_patients_holds_out_a_share_of_every_cohort() -> None:
    patients = pd.DataFrame(
        {
            "patient": [f"p{i:03d}" for i in range(131)],
            "site": "s",
            "cohort": ["A"] * 100 + ["B"] * 30 + ["C"],
            "role": "develop",
            "X": [float(i % 5 == 0) for i in range(131)],
        }
    )
    task = BinaryTask(name="X", column="X", positive=["1"], negative=["0"])
    fold = fold_without_test(patients, [task], 0.1, seed=3)
    assert fold.test == ()
    assert sorted(fold.train + fold.val) == patients["patient"].tolist()
    rows = patients.set_index("patient").loc[list(fold.val)]
    assert rows["cohort"].value_counts().to_dict() == {"A": 10, "B": 3}
    assert rows.groupby("cohort")["X"].sum().to_dict() == {"A": 2, "B": 1}
    assert fold == fold_without_test(patients.sample(frac=1, random_state=0), [task], 0.1, seed=3)
    assert fold != fold_without_test(patients, [task], 0.1, seed=4)
    with pytest.raises(DataError, match="not two of them in the same cohort"):
        fold_without_test(patients.iloc[:4].assign(cohort=list("ABCD")), [task], 0.1, seed=3)
