"""Baselines are fitted on training patients, read what their name says, and cover the fold's patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.models.probes import geneicl
from equipoise.platform.errors import ResourceError
from equipoise.platform.evaluation.params import BaselineParams, EvaluationParams
from equipoise.platform.evaluation.predictions import validate
from equipoise.platform.training.baselines import MeanTiles, fit_baselines, fit_fold_baselines, wants_geneicl
from equipoise.platform.training.params import Recipe

NAMES = tuple(f"P{i:02d}" for i in range(60))
RECIPE = Recipe(
    model="clinical",
    tables={"clinical": [{"column": "age", "type": "number"}, {"column": "sex", "type": "category"}]},
)
FOLD = Fold(0, 0, NAMES[:36], NAMES[36:44], NAMES[44:])


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Older patients are MSI-H and die earlier; cohort B dies earlier, too; half of the patients lack RNA."""
    rng = np.random.default_rng(8)
    made = {}
    for i, name in enumerate(NAMES):
        age, in_b = rng.normal(), i % 2
        days = 400 * rng.exponential(np.exp(-age - 1.5 * in_b))
        rna = {} if i % 4 < 2 else {"rna": rng.normal(size=12).astype(np.float32)}
        tiles = (rng.normal(size=(4, 3)) + np.array([age, 0, 0])).astype(np.float16)
        made[name] = Case(
            patient=name,
            cohort="SYN-B" if in_b else "SYN-A",
            site="S",
            bag=tiles,
            coords=np.zeros((4, 2), np.int32),
            slides=("s",),
            tiles=(4,),
            omics={"clinical": np.array([60 + 9 * age, i % 3 == 0, i % 3 != 0], np.float32), **rna},
            targets={
                "MSI": float(age + 0.5 * rng.normal() > 0.3),
                "grade": float(rng.integers(3)),
                "LF": age + rng.normal(),
                "OS": (float(np.ceil(days)), float(rng.random() < 0.8)),
            },
            columns={"clinical": ("age", "sex=f", "sex=m")},
        )
    return made


@pytest.fixture(scope="module")
def baselines(tasks, cases) -> dict[str, pd.DataFrame]:
    return fit_baselines(FOLD, tasks, MeanTiles(cases), RECIPE, BaselineParams())


def scores(table: pd.DataFrame, task: str, role: str = "test") -> pd.Series:
    return table[(table["task"] == task) & (table["role"] == role)].set_index("patient")["score"]


def test_each_has_its_tasks_and_the_patients_of_the_fold(baselines) -> None:
    assert list(baselines) == [
        "cohort",
        "covariate age",
        "covariate sex",
        "class of MSI",
        "class of grade",
        "covariates and classes",
        "presence of modalities",
        "elastic_net, tables",
        "elastic_net, mean tile",
    ]
    for name, table in baselines.items():
        validate(table)
        expected = {"OS"} if name.startswith("class of") else {"MSI", "grade", "LF", "OS"}
        assert set(table["task"]) == expected
        assert set(table[table["role"] == "test"]["patient"]) == set(FOLD.test)
        assert set(table[table["role"] == "val"]["patient"]) == set(FOLD.val)


def test_each_reads_what_its_name_says(cases, baselines) -> None:
    age = pd.Series({name: case.omics["clinical"][0] for name, case in cases.items()})
    for task in ("MSI", "OS", "LF"):
        alone = scores(baselines["covariate age"], task)
        assert alone.corr(age[alone.index], method="spearman") == pytest.approx(1)
    cohort = pd.Series({name: case.cohort for name, case in cases.items()})
    risk = scores(baselines["cohort"], "OS")
    assert risk.groupby(cohort[risk.index]).nunique().tolist() == [1, 1]
    assert risk[cohort[risk.index] == "SYN-B"].iloc[0] > risk[cohort[risk.index] == "SYN-A"].iloc[0]
    present = scores(baselines["presence of modalities"], "MSI")
    has_rna = pd.Series({name: "rna" in case.omics for name, case in cases.items()})
    assert present.groupby(has_rna[present.index]).nunique().tolist() == [1, 1]
    msi = pd.Series({name: case.targets["MSI"] for name, case in cases.items()})
    known = scores(baselines["class of MSI"], "OS")
    assert known.groupby(msi[known.index]).nunique().tolist() == [1, 1]
    mean = pd.Series({name: float(case.bag[:, 0].mean()) for name, case in cases.items()})
    tile = scores(baselines["elastic_net, mean tile"], "LF")
    assert tile.corr(mean[tile.index]) > 0.9


def test_nothing_is_learned_from_patients_outside_training(tasks, cases, baselines) -> None:
    rng = np.random.default_rng(1)
    others = [*FOLD.val, *FOLD.test]
    swapped = dict(zip(others, rng.permutation(others), strict=True))
    changed = {
        name: replace(case, targets=cases[swapped.get(name, name)].targets) for name, case in cases.items()
    }
    again = fit_baselines(FOLD, tasks, changed, RECIPE, BaselineParams())
    for name in set(baselines) - {"class of MSI", "class of grade", "covariates and classes"}:
        for task in set(baselines[name]["task"]):
            before, after = scores(baselines[name], task), scores(again[name], task)
            pd.testing.assert_series_equal(before.sort_index(), after.sort_index(), rtol=1e-6)


def test_external_patients_of_another_cohort(tasks, cases) -> None:
    external = {
        f"E{name}": replace(case, patient=f"E{name}", cohort="SYN-X")
        for name, case in list(cases.items())[:9]
    }
    folds = [FOLD, Fold(0, 1, NAMES[12:48], NAMES[48:], NAMES[:12])]
    tables = fit_fold_baselines(folds, tasks[3:], cases, external, RECIPE, BaselineParams())
    seen = tables["covariate age"]
    assert set(seen[seen["role"] == "external"]["patient"]) == set(external)
    assert seen[seen["role"] == "external"].groupby("fold")["patient"].nunique().tolist() == [9, 9]
    cohort = tables["cohort"]
    assert cohort[(cohort["role"] == "external") & (cohort["fold"] == 0)]["score"].nunique() == 1


def test_a_fold_of_one_cohort_and_tables_only(tasks, cases) -> None:
    one = {
        name: replace(
            case,
            cohort="SYN-A",
            bag=np.empty((0, 0), np.float16),
            coords=case.coords[:0],
            slides=(),
            tiles=(),
        )
        for name, case in cases.items()
    }
    one = {name: replace(case, omics={"clinical": case.omics["clinical"]}) for name, case in one.items()}
    names = list(fit_baselines(FOLD, tasks[:1], one, RECIPE, BaselineParams()))
    assert names == ["covariate age", "covariate sex", "covariates and classes"]


def test_the_study_key_takes_a_flag() -> None:
    assert not EvaluationParams.model_validate({"baselines": False}).baselines.enabled
    assert EvaluationParams.model_validate({"baselines": {"l1_ratio": 0.5}}).baselines.l1_ratio == 0.5


def test_geneicl_says_how_it_is_installed(monkeypatch) -> None:
    monkeypatch.setattr(geneicl, "is_installed", lambda: False)
    assert not wants_geneicl(BaselineParams())
    with pytest.raises(ResourceError, match=r"pip install -e '\.\[geneicl\]'"):
        wants_geneicl(BaselineParams(geneicl=True))
    monkeypatch.setattr(geneicl, "is_installed", lambda: True)
    assert wants_geneicl(BaselineParams())
    assert not wants_geneicl(BaselineParams(geneicl=False))


def test_geneicl_is_shown_the_rna_of_training_patients_only(tasks, cases, monkeypatch) -> None:
    """In place of the package: the mean of the support's targets, and what it was shown."""
    shown = []

    def predict(head, support, target, queries):
        shown.append((support.shape, len(queries)))
        return np.full((len(queries), head.outputs), float(np.mean(target)))

    monkeypatch.setattr(geneicl, "is_installed", lambda: True)
    monkeypatch.setattr(geneicl, "predict", predict)
    tables = fit_baselines(FOLD, tasks[2:3], cases, RECIPE, BaselineParams())
    with_rna = sum("rna" in cases[name].omics for name in FOLD.train)
    assert shown == [((with_rna, 12), len(FOLD.val) + len(FOLD.test))]
    assert set(tables["geneicl, rna"]["role"]) == {"val", "test"}


def test_who_lacks_the_only_table_is_told_by_presence(tasks, cases) -> None:
    """Slides and one table: without a flag of its own a missing table would look like an average one."""
    rna = {
        name: replace(case, omics={k: v for k, v in case.omics.items() if k == "rna"})
        for name, case in cases.items()
    }
    recipe = Recipe(model="concat")
    found = fit_baselines(FOLD, tasks[:1], MeanTiles(rna), recipe, BaselineParams(geneicl=False))
    present = scores(found["presence of modalities"], "MSI")
    has_rna = pd.Series({name: "rna" in case.omics for name, case in rna.items()})
    assert present.groupby(has_rna[present.index]).nunique().tolist() == [1, 1]
    assert present.nunique() == 2
