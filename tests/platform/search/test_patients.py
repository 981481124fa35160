"""Trials cannot read patients of the hold-out or of external cohorts; the winner is measured on them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.tasks import BinaryTask
from equipoise.platform.run import steps
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.estimate import describe_search
from equipoise.platform.search.holdout import measure
from equipoise.platform.search.patients import split_holdout
from equipoise.platform.search.search import finish_search, run_inline
from equipoise.platform.search.trial import check_hidden_patients

Make = Callable[..., Any]


def test_trials_can_read_search_patients_only(make_search: Make, make_study: Make) -> None:
    search_context: SearchContext = make_search()
    everyone = RunContext(make_study(), RunFolder(Path("unused"))).inputs.cohorts.patients
    external = set(everyone[everyone["role"] == "external"]["patient"])
    searched, held_out = set(search_context.searched), set(search_context.held_out)
    assert held_out
    assert external
    assert searched | held_out | external == set(everyone["patient"])
    assert not searched & held_out
    assert set(search_context.inputs.cases) == searched
    tables = search_context.inputs.cases.source.cohorts
    assert set(tables.patients["patient"]) == searched
    assert set(tables.slides["patient"]) <= searched
    assert all(set(table.index) <= searched for table in tables.omics.values())
    for patient in (min(held_out), min(external)):
        with pytest.raises(DataError, match="is not among the develop patients"):
            search_context.inputs.cases[patient]
    scored = [patient for fold in search_context.inputs.folds for patient in fold.test]
    assert sorted(scored) == sorted(searched), "every search patient is scored once"
    for fold in search_context.inputs.folds:
        assert not set(fold.test) & {*fold.train, *fold.val}


def test_a_leak_is_refused(make_search: Make) -> None:
    search_context: SearchContext = make_search()
    fold = search_context.inputs.folds[0]
    leaking = dataclasses.replace(fold, train=(*fold.train, search_context.held_out[0]))
    inputs = dataclasses.replace(search_context.inputs, folds=(leaking,))
    with pytest.raises(DataError, match=rf"could see 1 patients.*{search_context.held_out[0]} \(hold-out\)"):
        check_hidden_patients(inputs, dict.fromkeys(search_context.held_out, "hold-out"))


def test_hold_out_of_whole_sites() -> None:
    task = (BinaryTask(name="MSI", column="MSI", positive="H", main=True),)
    n = 120
    patients = pd.DataFrame(
        {
            "patient": [f"P{k:03d}" for k in range(n)],
            "cohort": "A",
            "role": "develop",
            "site": [f"S{k % 10}" for k in range(n)],
            "MSI": (np.arange(n) // 10 % 3 == 0).astype(float),
        }
    )

    @dataclasses.dataclass
    class Table:
        patients: pd.DataFrame

    site = dict(zip(patients["patient"], patients["site"], strict=True))
    searched, held = split_holdout(Table(patients), task, 0.2, True, 1)  # type: ignore[arg-type]
    assert not {site[p] for p in searched} & {site[p] for p in held}
    assert len(held) == 24
    again = split_holdout(Table(patients.sample(frac=1, random_state=0)), task, 0.2, True, 1)  # type: ignore[arg-type]
    assert again == (searched, held), "the order of the table does not matter"
    drawn = split_holdout(Table(patients), task, 0.25, False, 1)[1]  # type: ignore[arg-type]
    positive = dict(zip(patients["patient"], patients["MSI"], strict=True))
    assert sum(positive[p] for p in drawn) == pytest.approx(0.25 * patients["MSI"].sum(), abs=1)
    assert split_holdout(Table(patients), task, 0, False, 1)[1] == ()  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leave none to hold out"):
        split_holdout(Table(patients.assign(site="S0")), task, 0.2, True, 1)  # type: ignore[arg-type]


def test_winner_and_default_are_measured_once(make_study: Make, make_search: Make, tmp_path: Path) -> None:
    # Another metric ranks the same trials otherwise.
    work = RunContext(make_study(trials=3, metric="val/LF/pearson"), RunFolder(tmp_path / "run"))
    folder = work.folder.search
    search_context: SearchContext = make_search(trials=3, metric="val/LF/pearson")
    trials = run_inline(search_context, folder)
    finish_search(search_context, folder, 3)
    best = load_study(folder / "best.yaml")
    winner = max(trials, key=lambda trial: trial.objective)
    assert (
        best.balancing.name
        == f"{winner.config['balancing.weighting']}+{winner.config['balancing.aggregation']}"
    )
    assert best.training.lr == winner.config["training.lr"]
    assert best.search is None
    assert set(steps.read_cohorts(best).patients["patient"]) == set(work.cohorts.patients["patient"])
    assert not (folder / "final").exists(), "nobody has looked yet"
    inputs = (work.study, work.inputs, work.folder.root)
    assert measure(*inputs) == {"winner": winner.name, "looks": 1}
    measured = read_json(folder / "test.json")
    rows = pd.DataFrame(measured["rows"])
    assert set(rows["who"]) == {winner.name, trials[0].name}
    assert set(rows["part"]) == {"inner validation", "hold-out", "syn-crc-b"}
    inner = rows[(rows["part"] == "inner validation") & (rows["who"] == winner.name)].set_index("task")[
        "value"
    ]
    assert inner["LF"] == pytest.approx(winner.objective)
    assert rows[rows["part"] == "hold-out"]["n"].max() == len(search_context.held_out)
    table = pd.read_parquet(folder / "final" / winner.name / "predictions.parquet")
    seen = set(table[table["role"] != "external"]["patient"])
    assert seen == set(search_context.searched)
    before = (folder / "test.json").read_text()
    assert measure(*inputs)["looks"] == 1
    assert (folder / "test.json").read_text() == before


def test_dry_run_says_what_it_would_cost(make_study: Make) -> None:
    study = make_study(trials=7)
    text = describe_search(study, lambda: RunContext(study, RunFolder(Path("unused"))).inputs)
    assert "balancing.weighting  " in text
    assert "size: continuous" in text
    assert "7 trials x 2 folds x 2 epochs" in text
    assert "held out" in text
