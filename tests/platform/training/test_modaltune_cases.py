"""The join of ModalTune's cases with PORPOISE's RNA, a row of the benchmark on them, and its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.modaltune_cases import CANCERS, PARTS, Joined, read_joined
from benchmarks.modaltune_rows import TRAINING, Arm, Rows, network, pan_cancer_arms, per_cancer_arms
from benchmarks.modaltune_scores import Estimate, TestPart
from benchmarks.tcga_scores import RowStore
from lifelines.utils import concordance_index
from sklearn.metrics import balanced_accuracy_score


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


@pytest.mark.real
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


@pytest.mark.real
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


@pytest.mark.real
def test_a_row_is_trained_once_and_predicts_cases_without_rna(joined: Joined, tmp_path: Path) -> None:
    short = TRAINING.model_copy(update={"epochs": 2, "members": 2})
    both = ("clinical", "rna")
    arm = Arm(("RCC",), ("subtype_RCC", "os_RCC"), network(both, short), both)
    rows = Rows(joined, RowStore(tmp_path), tmp_path)
    found = rows.test("short", arm, 1)
    assert set(found) == {"os_RCC", "subtype_RCC/KIRP", "subtype_RCC/KIRC", "subtype_RCC/KICH"}
    test = joined.parts["RCC"]["test"]
    assert set(found["os_RCC"]) == set(test)  # those without RNA by the missing token
    assert len(joined.without_rna(test)) == 52
    without = [found["os_RCC"][p] for p in joined.without_rna(test)]
    assert np.isfinite(without).all()
    assert len(set(without)) > 10  # their age tells them apart
    (file,) = tmp_path.rglob("*.json")
    written = file.stat().st_mtime_ns
    assert rows.test("short", arm, 1) == found
    assert file.stat().st_mtime_ns == written


@pytest.mark.real
def test_no_test_case_trains_and_every_inner_case_is_held_out_once(joined: Joined, tmp_path: Path) -> None:
    rows = Rows(joined, RowStore(tmp_path), tmp_path)
    arm = per_cancer_arms("BRCA")["rna, subtype"]
    fold = arm.fold(joined)
    assert not {*fold.train, *fold.val} & set(joined.parts["BRCA"]["test"])
    inner = rows.inner_folds(arm, 4)
    held_out = [p for one in inner for p in one.test]
    assert sorted(held_out) == sorted((*fold.train, *fold.val))
    for one in inner:
        assert sorted((*one.train, *one.val, *one.test)) == sorted(held_out)
    for pan in pan_cancer_arms().values():
        whole = pan.fold(joined)
        tested = {p for cancer in CANCERS for p in joined.parts[cancer]["test"]}
        assert not {*whole.train, *whole.val} & tested
        assert all("rna" in joined.cases[p].omics for p in (*whole.train, *whole.val, *whole.test))


def test_figures_are_those_of_scikit_learn_and_lifelines() -> None:
    rng = np.random.default_rng(0)
    patients = tuple(f"p{i}" for i in range(60))
    names = ("A", "B", "C")
    classes = {p: (*names, "other")[rng.integers(4)] for p in patients}
    follow_up = {p: (float(rng.integers(1, 30)), float(rng.integers(2))) for p in patients[:-3]}
    part = TestPart(patients, follow_up, classes, names, seed=3)
    seeds = [{name: dict(zip(patients, rng.random(60), strict=True)) for name in names} for _ in range(2)]
    known = [p for p in patients if classes[p] in names]
    expected = []
    for scores in seeds:
        called = [names[int(np.argmax([scores[name][p] for name in names]))] for p in known]
        expected.append(balanced_accuracy_score([classes[p] for p in known], called))
    found = part.balanced_accuracy(seeds)
    assert found.seeds == pytest.approx(expected)
    assert found.value == pytest.approx(np.mean(expected))
    risks = [s["A"] for s in seeds]
    days, event = np.array(list(follow_up.values())).T
    by_lifelines = [concordance_index(days, [-r[p] for p in follow_up], event) for r in risks]
    assert part.concordance(risks).seeds == pytest.approx(by_lifelines, abs=1e-3)
    # Within a class: the concordances of the classes, weighted by their pairs.
    among = {name: {p for p in follow_up if classes[p] == name} for name in (*names, "other")}
    single = [part.concordance(risks[:1], among=members).value for members in among.values()]
    assert min(single) < part.concordance(risks[:1], strata=classes).value < max(single)


def test_bootstrap_keeps_the_pairing_of_methods() -> None:
    rng = np.random.default_rng(1)
    patients = tuple(f"p{i}" for i in range(200))
    truth = rng.normal(size=200)
    follow_up = {p: (float(np.exp(-t + rng.normal())), 1.0) for p, t in zip(patients, truth, strict=True)}
    part = TestPart(patients, follow_up, dict.fromkeys(patients, "A"), ("A",), seed=0)
    good = dict(zip(patients, truth, strict=True))
    near = dict(zip(patients, truth + 0.05 * rng.normal(size=200), strict=True))
    one, other = part.concordance([good]), part.concordance([near])
    low, high = np.quantile(one.replicates, [0.025, 0.975])
    assert one.row == pytest.approx({"value": one.value, "low": low, "high": high})
    assert low < one.value < high
    # The standard error of a concordance of 200 uncensored patients is near .02.
    assert 0.05 < high - low < 0.12
    apart = np.quantile(one.minus(other).replicates, [0.025, 0.975])
    assert np.ptp(apart) < 0.2 * (high - low)
    mean = Estimate.mean([one, other])
    assert mean.value == pytest.approx((one.value + other.value) / 2)
