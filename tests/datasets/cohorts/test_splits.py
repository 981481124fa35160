"""Folds: disjoint parts, stratified, whole sites, the same for the same seed, external patients never."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from equipoise.datasets.cohorts.splits import (
    Fold,
    SplitScheme,
    draw_stratified,
    make_folds,
    splits_from_json,
    splits_to_json,
    strata_of,
)
from equipoise.datasets.entries import SPLITS
from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask, SurvivalTask, Task
from equipoise.platform.registry import resolve

MSI = BinaryTask(name="MSI", column="MSI", positive=["1"], main=True)
LF = RegressionTask(name="LF", column="LF")
OS = TypeAdapter(Task).validate_python(
    {
        "name": "OS",
        "type": "survival",
        "time": {"column": "t", "unit": "days"},
        "event": {"column": "e", "event_value": 1},
    }
)
SCHEMES = ["kfold", "site_preserved", "leave_one_cohort_out", "monte_carlo"]


def people(n: int = 60, sites: int = 12, seed: int = 0, external: int = 10) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    total = n + external
    site = rng.integers(0, sites, total)
    event = rng.integers(0, 2, total).astype(float)
    return pd.DataFrame(
        {
            "patient": [f"P{i:03}" for i in range(total)],
            "cohort": ["AB"[i // 3 % 2] for i in range(n)] + ["X"] * external,
            "role": ["develop"] * n + ["external"] * external,
            "site": [f"s{s}" for s in site],
            "MSI": np.where(rng.random(total) < 0.05, np.nan, (np.arange(total) % 4 == 0).astype(float)),
            "LF": rng.random(total),
            "OS.time": rng.exponential(100, total),
            "OS.event": event,
        }
    )


def params(scheme: str = "kfold", **values: Any) -> SplitScheme:
    _, model, target = SPLITS[scheme]
    return SplitScheme(resolve(target), model.model_validate(values))


@settings(max_examples=25, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    seed=st.integers(0, 2**32),
    n=st.integers(40, 90),
    sites=st.integers(6, 25),
    task=st.sampled_from([MSI, LF, OS]),
)
def test_what_every_scheme_keeps(scheme: str, seed: int, n: int, sites: int, task: Any) -> None:
    table = people(n, sites, seed % 1000)
    spec = params(scheme=scheme)
    folds = make_folds(table, spec, [task], seed)
    develop = set(table.loc[table["role"] == "develop", "patient"])
    site = dict(zip(table["patient"], table["site"], strict=True))
    tested: list[str] = []
    assert len(folds) > 0
    for fold in folds:
        train, val, test = set(fold.train), set(fold.val), set(fold.test)
        assert train
        assert val
        assert test
        assert len(train) + len(val) + len(test) == len(develop)
        assert train | val | test == develop
        assert list(fold.train) == sorted(fold.train)
        if scheme == "site_preserved":
            assert not {site[p] for p in train | val} & {site[p] for p in test}
        tested += fold.test
    if scheme != "monte_carlo":
        assert sorted(tested) == sorted(develop)
    shuffled = table.sample(frac=1, random_state=seed % 1000)
    assert make_folds(shuffled, spec, [task], seed) == folds


@pytest.mark.parametrize("scheme", ["kfold", "monte_carlo"])
def test_another_seed_and_another_repeat_give_other_folds(scheme: str) -> None:
    table = people()
    first = make_folds(table, params(scheme=scheme, repeats=2), [MSI], 1)
    assert [(f.repeat, f.index) for f in first[:2]] == [(0, 0), (0, 1) if scheme == "kfold" else (1, 0)]
    by_repeat = [[f.test for f in first if f.repeat == repeat] for repeat in (0, 1)]
    assert by_repeat[0] != by_repeat[1]
    assert make_folds(table, params(scheme=scheme), [MSI], 2)[0].test != first[0].test
    # A repeat does not depend on how many repeats there are.
    assert make_folds(table, params(scheme=scheme), [MSI], 1) == [f for f in first if f.repeat == 0]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(12, 80), folds=st.integers(2, 6), seed=st.integers(0, 100))
def test_kfold_sizes_and_classes_differ_by_at_most_one(n: int, folds: int, seed: int) -> None:
    table = people(n, seed=seed, external=0)
    table["MSI"] = (np.arange(n) % 3 == 0).astype(float)
    result = make_folds(table, params(folds=folds), [MSI], seed)
    label = dict(zip(table["patient"], table["MSI"], strict=True))
    sizes = [len(fold.test) for fold in result]
    positives = [sum(label[p] for p in fold.test) for fold in result]
    assert max(sizes) - min(sizes) <= 1
    assert max(positives) - min(positives) <= 1


def test_kfold_by_hand() -> None:
    table = people(20, external=0).assign(MSI=[1.0] * 5 + [0.0] * 15)
    folds = make_folds(table, params(folds=5, inner_val=0.25), [MSI], 3)
    assert len(folds) > 0
    for fold in folds:
        assert [len(fold.train), len(fold.val), len(fold.test)] == [12, 4, 4]
        assert sum(p < "P005" for p in fold.test) == 1
        assert sum(p < "P005" for p in fold.val) == 1


def test_one_cohort_out() -> None:
    folds = make_folds(people(), params(scheme="leave_one_cohort_out"), [MSI], 0)
    assert [{int(p[1:]) // 3 % 2 for p in fold.test} for fold in folds] == [{0}, {1}]


def test_inner_validation_keeps_whole_sites_where_it_can() -> None:
    table = people(200, 20, external=0)
    site = dict(zip(table["patient"], table["site"], strict=True))
    for fold in make_folds(table, params(scheme="site_preserved"), [MSI], 0):
        assert not {site[p] for p in fold.train} & {site[p] for p in fold.val}
        assert 0.08 < len(fold.val) / (len(fold.val) + len(fold.train)) < 0.25


def test_inner_validation_falls_back_to_patients() -> None:
    # Two sites: the training part is one site, which cannot be cut.
    table = people(40, 2, external=0)
    table["site"] = ["a", "b"] * 20
    for fold in make_folds(table, params(scheme="site_preserved", folds=2), [OS], 0):
        assert 2 <= len(fold.val) <= 4


def test_strata() -> None:
    table = people(8, external=0)
    table["LF"] = [0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, np.nan]
    assert strata_of(LF, table).tolist() == [0, 3, 0, 2, 1, 2, 1, -1]
    table["OS.event"] = [0, 1, np.nan, 1, 0, 0, 0, 0]
    assert isinstance(OS, SurvivalTask)
    assert strata_of(OS, table).tolist() == [0, 1, -1, 1, 0, 0, 0, 0]


@settings(max_examples=80, deadline=None)
@given(
    strata=st.lists(st.integers(-1, 3), min_size=2, max_size=60),
    fraction=st.floats(0.05, 0.6),
    required=st.booleans(),
    seed=st.integers(0, 50),
)
def test_stratified_draw(strata: list[int], fraction: float, required: bool, seed: int) -> None:
    array = np.array(strata)
    drawn = draw_stratified(array, fraction, np.random.default_rng(seed), required=required)
    assert len(set(drawn.tolist())) == len(drawn)
    assert 1 <= len(drawn) <= len(array) - 1
    names, sizes = np.unique(array, return_counts=True)
    took = {name: int((array[drawn] == name).sum()) for name in names}
    if required:
        assert len(names) > 0
        for name, size in zip(names, sizes, strict=True):
            if name >= 0 and size >= 2:
                assert took[name] >= 1
                assert took[name] < size or len(drawn) >= len(array) - len(names)
    else:
        assert len(drawn) == min(max(round(fraction * len(array)), 1), len(array) - 1)


@pytest.mark.parametrize(
    ("table", "spec", "message"),
    [
        (people(2, external=5), {}, "2 development patients cannot be split"),
        (people(4, external=0), {"folds": 5}, "4 patients for 5 folds"),
        (people(40, 3, external=0), {"scheme": "site_preserved"}, r"3 site\(s\) \(s0, s1, s2\) for 5"),
        (
            people(40, external=0).assign(cohort="A"),
            {"scheme": "leave_one_cohort_out"},
            "needs two development cohorts, the study has A",
        ),
        (
            people(20, external=0).assign(MSI=[1.0] + [0.0] * 19),
            {"folds": 4},
            "training part of fold .* has no positive",
        ),
    ],
)
def test_folds_that_are_impossible(table: pd.DataFrame, spec: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_folds(table, params(**spec), [MSI], 0)


def test_folds_need_a_task() -> None:
    with pytest.raises(DataError, match="no task"):
        make_folds(people(), params(), [], 0)


def test_splits_written_and_read() -> None:
    import json

    table = people()
    spec = params(scheme="site_preserved")
    folds = make_folds(table, spec, [MSI], 5)
    text = json.dumps(splits_to_json(folds, spec.params, 5))
    develop = table.loc[table["role"] == "develop", "patient"]
    assert splits_from_json(json.loads(text), develop) == folds
    with pytest.raises(
        DataError, match=r"fold 0-0 was made for other patients: 1 are not .*0 are missing \(P000\)"
    ):
        splits_from_json(json.loads(text), develop[1:])
    with pytest.raises(DataError, match="version 2"):
        splits_from_json({"version": 2, "folds": []})


def test_the_name_of_a_fold() -> None:
    assert Fold(1, 3, (), (), ()).name == "1-3"
