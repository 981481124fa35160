"""What the benchmarks of TCGA survival read and fit: published numbers, and patients whose omics are hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.linear_baselines import linear_fold
from benchmarks.tcga_cases import Patients, hidden, image_risks, read_patients
from benchmarks.tcga_scores import FoldRisks, RowStore, Scores
from benchmarks.tcga_survival import penalised

from equipoise.platform.training.batches import CaseList


@pytest.fixture(scope="module")
def gliomas(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Patients:
    return read_patients(shared_data, "GBMLGG", tmp_path_factory.mktemp("gbmlgg"))


@pytest.mark.real
def test_the_published_image_risk_has_its_published_concordance(gliomas: Patients, shared_data: Path) -> None:
    """.787, recomputed independently from the same file; it also fails where censoring is read the wrong way round."""
    risks = image_risks(shared_data)
    folds = [{p: risks[p] for p in fold.test} for fold in gliomas.folds]
    assert sum(map(len, folds)) == 569
    assert Scores(gliomas.labels).mean(folds).value == pytest.approx(0.787, abs=5e-4)
    assert gliomas.cases["TCGA-06-0129"].bag.shape == (1, 1)


@pytest.mark.real
def test_stages_of_kidney_cancers_are_joined(shared_data: Path, tmp_path: Path) -> None:
    kidneys = read_patients(shared_data, "KIRC", tmp_path)
    columns = next(iter(kidneys.cases.values())).columns["clinical"]
    rows = np.stack([case.omics["clinical"] for case in kidneys.cases.values()])
    known = {name: rows[:, i] for i, name in enumerate(columns)}
    assert len(rows) == 345
    assert [(known["stage"] == k).sum() for k in (1, 2, 3, 4)] == [182, 41, 76, 44]
    assert (known["metastasis"] == 1).sum() == 39
    assert np.isnan(known["metastasis"]).sum() == 28  # MX, and two patients without an entry
    assert (known["nodes"] == 1).sum() == 12


@pytest.mark.real
def test_gliomas_without_omics_are_scored_as_by_image_and_covariates(gliomas: Patients) -> None:
    recipe = penalised(gliomas.covariates, fusion="late", l1_ratio=0.0)
    fold = gliomas.folds[0]
    whole = gliomas.only(["clinical", "cnv", "mutation", "wsi"])
    bare = {p: hidden(whole[p], {"clinical", "wsi"}) for p in fold.test}
    fused = linear_fold(recipe, gliomas.task, whole, fold)
    without = linear_fold(recipe, gliomas.task, gliomas.only(["clinical", "wsi"]), fold)
    kept = fused.predict(CaseList(bare, fold.test))
    assert kept == pytest.approx(without.risks, abs=1e-4)
    scores = Scores(gliomas.labels)
    assert scores.mean([fused.risks]).value > 0.85  # this fold: clinical has .847
    assert abs(scores.mean([kept]).value - scores.mean([without.risks]).value) < 1e-6


def test_rows_are_kept_until_their_settings_change(tmp_path: Path) -> None:
    store, made = RowStore(tmp_path), []

    def make() -> FoldRisks:
        made.append(1)
        return FoldRisks({"a": 1.5}, (0.5, 2.0), {"hidden": {"a": 0.25}}, {"weights": {"rna": 0.75}})

    first = store.get("KIRC", "ridge, rna", "0", {"penalty": (1, 2)}, make)
    again = store.get("KIRC", "ridge, rna", "0", {"penalty": (1, 2)}, make)
    assert len(made) == 1
    assert again == first
    assert again.standardised() == {"a": 0.5}
    store.get("KIRC", "ridge, rna", "0", {"penalty": (1, 3)}, make)
    assert len(made) == 2


def test_concordance_of_folds_equals_that_of_lifelines() -> None:
    from lifelines.utils import concordance_index

    rng = np.random.default_rng(0)
    names = [f"P{i}" for i in range(90)]
    labels = {p: (float(np.ceil(20 * rng.exponential())), float(rng.random() < 0.6)) for p in names}
    risks = {p: float(np.round(rng.normal() - 0.03 * labels[p][0], 1)) for p in names}
    folds = [{p: risks[p] for p in names[k::3]} for k in range(3)]
    scores = Scores(labels)
    expected = [
        concordance_index([labels[p][0] for p in f], [-r for r in f.values()], [labels[p][1] for p in f])
        for f in folds
    ]
    assert scores.mean(folds).value == pytest.approx(np.mean(expected))
    row = scores.row(folds)["harrell"]
    assert row["low_procedure"] < row["low"] < row["c"] < row["high"] < row["high_procedure"]
    assert row["fold_sd"] == pytest.approx(np.std(expected, ddof=1))
    other = [{p: float(rng.normal()) for p in f} for f in folds]
    apart, back = scores.difference(folds, other), scores.difference(other, folds)
    assert apart["difference"] == pytest.approx(-back["difference"])
    assert (apart["low"] > 0) == (apart["p"] < 0.05)


def test_concordance_of_every_weight_and_of_drawn_patients() -> None:
    """By lifelines: on the patients, and on copies of them as a bootstrap draws them."""
    from benchmarks.tcga_weights import GRID, Pairs, best_weight
    from lifelines.utils import concordance_index

    rng = np.random.default_rng(1)
    names = [f"P{i}" for i in range(60)]
    risk = rng.normal(size=60)
    labels = {
        p: (float(np.ceil(30 * rng.exponential(np.exp(-risk[i])))), float(rng.random() < 0.7))
        for i, p in enumerate(names)
    }
    image = {p: float(rng.normal()) for p in names}
    omics = {p: float(risk[i] + 0.3 * rng.normal()) for i, p in enumerate(names)}
    pairs = Pairs(labels, image, omics)
    days, event = np.array(list(labels.values())).T
    x, y = (np.array(list(of.values())) for of in (image, omics))
    curve = pairs.concordance(np.ones((1, 60)))[0]
    expected = [concordance_index(days, -(w * x + (1 - w) * y), event) for w in GRID]
    np.testing.assert_allclose(curve, expected)
    drawn = pairs.draw(rng, 3)
    assert (drawn.sum(axis=1) == 60).all()
    assert (drawn @ event == event.sum()).all()
    # lifelines counts pairs of two copies of a patient as tied in time and leaves those of two events out.
    copies = np.repeat(np.arange(60), drawn[0].astype(int))
    of_copies = concordance_index(days[copies], -y[copies], event[copies])
    assert pairs.concordance(drawn[:1])[0, 0] == pytest.approx(of_copies)
    best = best_weight(Scores(labels), [image], [omics], set(names), seed=0)
    assert best["best"] <= 0.3
    assert best["low"] <= best["best"] <= best["high"] <= 0.6
    assert best["c_omics"] == pytest.approx(expected[0])


def test_a_method_that_is_better_in_every_fold_and_seed_gains() -> None:
    from benchmarks.tcga_modulation import comparison, verdict

    rng = np.random.default_rng(2)
    names = [f"P{i}" for i in range(200)]
    risk = dict(zip(names, rng.normal(size=200), strict=True))
    labels = {p: (float(rng.exponential(np.exp(-1.5 * risk[p]))), 1.0) for p in names}
    scores = Scores(labels)

    def rows(noise: float):
        return [
            scores.mean([{p: risk[p] + noise * rng.normal() for p in names[k::5]} for k in range(5)])
            for _ in range(3)
        ]

    good, equal, bad = rows(0.5), rows(0.5), rows(3.0)
    assert verdict(comparison(good, bad) | {"p_pairs": 0.01}) == "gain"
    assert verdict(comparison(bad, good) | {"p_pairs": 0.01}) == "loss"
    assert verdict(comparison(good, bad) | {"p_pairs": 0.06}) == "no gain shown"
    assert verdict(comparison(good, equal) | {"p_pairs": 0.01}) == "no gain shown"
    found = comparison(good, bad)
    assert found["difference"] == pytest.approx(
        np.mean([a.value - b.value for a, b in zip(good, bad, strict=True)])
    )
