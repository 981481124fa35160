"""Nobody of the hold-out or an external cohort is within reach of a trial; the winner is measured on them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.tasks import BinaryTask
from equipoise.datasets.whole_files import read_json
from equipoise.platform import steps
from equipoise.platform.search.estimate import describe_search
from equipoise.platform.search.measure import measure
from equipoise.platform.search.patients import hold_out
from equipoise.platform.search.search import Prepared, conclude, run_inline
from equipoise.platform.search.trial import check_unseen
from equipoise.platform.study import load_study
from equipoise.platform.work import Work
from equipoise.platform.workspace import RunFolder

Make = Callable[..., Any]


def test_trials_can_read_search_patients_only(make_search: Make, make_study: Make) -> None:
    prepared: Prepared = make_search()
    everyone = Work(make_study(), RunFolder(Path("unused"))).usable.patients
    external = set(everyone[everyone["role"] == "external"]["patient"])
    searched, held_out = set(prepared.searched), set(prepared.held_out)
    assert held_out
    assert external
    assert searched | held_out | external == set(everyone["patient"])
    assert not searched & held_out
    assert set(prepared.material.cases) == searched
    tables = prepared.material.cases.source.cohorts
    assert set(tables.patients["patient"]) == searched
    assert set(tables.slides["patient"]) <= searched
    assert all(set(table.index) <= searched for table in tables.omics.values())
    for patient in (min(held_out), min(external)):
        with pytest.raises(DataError, match="is not among the develop patients"):
            prepared.material.cases[patient]
    scored = [patient for fold in prepared.material.folds for patient in fold.test]
    assert sorted(scored) == sorted(searched), "every search patient is scored once"
    for fold in prepared.material.folds:
        assert not set(fold.test) & {*fold.train, *fold.val}


def test_a_leak_is_refused(make_search: Make) -> None:
    prepared: Prepared = make_search()
    fold = prepared.material.folds[0]
    leaking = dataclasses.replace(fold, train=(*fold.train, prepared.held_out[0]))
    material = dataclasses.replace(prepared.material, folds=(leaking,))
    with pytest.raises(DataError, match=rf"could see 1 patients.*{prepared.held_out[0]} \(hold-out\)"):
        check_unseen(material, dict.fromkeys(prepared.held_out, "hold-out"))


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
    searched, held = hold_out(Table(patients), task, 0.2, "site_preserved", 1)  # type: ignore[arg-type]
    assert not {site[p] for p in searched} & {site[p] for p in held}
    assert len(held) == 24
    again = hold_out(Table(patients.sample(frac=1, random_state=0)), task, 0.2, "site_preserved", 1)  # type: ignore[arg-type]
    assert again == (searched, held), "the order of the table does not matter"
    drawn = hold_out(Table(patients), task, 0.25, "kfold", 1)[1]  # type: ignore[arg-type]
    positive = dict(zip(patients["patient"], patients["MSI"], strict=True))
    assert sum(positive[p] for p in drawn) == pytest.approx(0.25 * patients["MSI"].sum(), abs=1)
    assert hold_out(Table(patients), task, 0, "kfold", 1)[1] == ()  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leave none to hold out"):
        hold_out(Table(patients.assign(site="S0")), task, 0.2, "site_preserved", 1)  # type: ignore[arg-type]


def test_winner_and_default_are_measured_once(make_study: Make, make_search: Make, tmp_path: Path) -> None:
    # Another metric ranks the same trials otherwise.
    work = Work(make_study(trials=3, metric="val/LF/pearson"), RunFolder(tmp_path / "run"))
    folder = work.folder.search
    prepared: Prepared = make_search(trials=3, metric="val/LF/pearson")
    trials = run_inline(prepared, folder)
    conclude(prepared, folder, 3)
    best = load_study(folder / "best.yaml")
    winner = max(trials, key=lambda trial: trial.objective)
    assert (
        best.balancing.name
        == f"{winner.config['balancing.weighting']}+{winner.config['balancing.aggregation']}"
    )
    assert best.training.lr == winner.config["training.lr"]
    assert best.search is None
    assert set(steps.load(best).patients["patient"]) == set(work.cohorts.patients["patient"])
    assert not (folder / "final").exists(), "nobody has looked yet"
    assert measure(work) == {"winner": winner.name, "looks": 1}
    found = read_json(folder / "test.json")
    rows = pd.DataFrame(found["rows"])
    assert set(rows["who"]) == {winner.name, trials[0].name}
    assert set(rows["part"]) == {"inner validation", "hold-out", "syn-crc-b"}
    inner = rows[(rows["part"] == "inner validation") & (rows["who"] == winner.name)].set_index("task")[
        "value"
    ]
    assert inner["LF"] == pytest.approx(winner.objective)
    assert rows[rows["part"] == "hold-out"]["n"].max() == len(prepared.held_out)
    table = pd.read_parquet(folder / "final" / winner.name / "predictions.parquet")
    seen = set(table[table["role"] != "external"]["patient"])
    assert seen == set(prepared.searched)
    before = (folder / "test.json").read_text()
    assert measure(work)["looks"] == 1
    assert (folder / "test.json").read_text() == before


def test_dry_run_says_what_it_would_cost(make_study: Make) -> None:
    text = describe_search(make_study(trials=7))
    assert "balancing.weighting  " in text
    assert "size: continuous" in text
    assert "7 trials x 2 folds x 2 epochs" in text
    assert "held out" in text
