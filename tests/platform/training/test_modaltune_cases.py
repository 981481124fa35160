"""The join of ModalTune's cases with PORPOISE's RNA: who is there, with which labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.modaltune_cases import CANCERS, PARTS, Joined, read_joined

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def joined(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Joined:
    return read_joined(shared_data, tmp_path_factory.mktemp("joined"))


#: Cases with RNA and all cases of train, val and test, counted from the files by another script.
COUNTS = {
    "BRCA": ((677, 748), (96, 113), (172, 188)),
    "GBMLGG": ((382, 688), (70, 71), (116, 118)),
    "NSCLC": ((643, 674), (99, 100), (161, 167)),
    "RCC": ((413, 621), (74, 102), (118, 170)),
}


def test_cases_and_labels_of_the_published_split(joined: Joined) -> None:
    for cancer, expected in COUNTS.items():
        parts = [joined.parts[cancer][part] for part in PARTS]
        # A case of BRCA has a rare class and no follow-up: nothing to learn from it.
        assert tuple((len(joined.with_rna(p)), len(p)) for p in parts) == expected
    everyone = [p for cancer in CANCERS for part in PARTS for p in joined.parts[cancer][part]]
    assert len(everyone) == len(set(everyone)) == len(joined.cases)
    events = {
        c: sum(joined.labels(c)[p][1] for p in joined.with_rna(joined.parts[c]["test"])) for c in CANCERS
    }
    assert events == {"BRCA": 21, "GBMLGG": 34, "NSCLC": 70, "RCC": 25}
    with_rna = {joined.classes[p] for p in joined.with_rna(everyone)}
    assert "KICH" not in with_rna
    gbm = [p for p in joined.parts["GBMLGG"]["train"] if joined.classes[p] == "GBM"]
    assert (len(joined.with_rna(gbm)), len(gbm)) == (59, 357)


def test_a_case_has_the_genes_of_all_six_tables_and_labels_of_its_cancer_alone(joined: Joined) -> None:
    first = joined.parts["BRCA"]["test"][0]
    case = joined.cases[first]
    assert case.omics["rna"].shape == (1540,)
    assert np.isfinite(case.omics["rna"]).all()
    assert case.cohort == "BRCA"
    targets = {name: np.isnan(np.atleast_1d(value)).all() for name, value in case.targets.items()}
    assert not targets["os_BRCA"]
    assert targets["os_GBMLGG"]
    assert targets["subtype_RCC"]
    assert case.targets["os"] == case.targets["os_BRCA"] == case.targets["os_strata"]
