"""Plans: whole sites and cohorts are left out, and no test patient is trained on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.splits import SplitScheme, kfold
from equipoise.datasets.params import KFoldParams
from equipoise.datasets.tables.tasks import (
    BinaryTask,
    RegressionTask,
    SurvivalEvent,
    SurvivalTask,
    SurvivalTime,
)
from equipoise.platform.errors import DataError
from equipoise.platform.federation.params import ClientScheme, PlanParams
from equipoise.platform.federation.simulation.plans import learnable, planned_folds
from equipoise.platform.federation.simulation.sites import Client, assign_clients

TASKS = (BinaryTask(name="MSI", column="MSI", positive="H", negative="L"),)


@pytest.fixture
def patients() -> pd.DataFrame:
    keys = [f"TCGA-{code}-{i:03d}" for code in ("AA", "BB", "CC") for i in range(24)]
    cohort = ["X" if "-AA-" in key else "Y" for key in keys]
    frame = pd.DataFrame({"patient": keys, "cohort": cohort, "role": "develop", "site": cohort})
    return frame.assign(MSI=[float(i % 3 == 0) for i in range(len(keys))])


def clients(patients: pd.DataFrame) -> tuple[Client, ...]:
    return assign_clients(patients, ClientScheme(scheme="tss"), TASKS, base=Path(), seed=0)[0]


def plan(patients: pd.DataFrame, **params: object) -> list:
    owners = clients(patients)
    return list(
        planned_folds(
            PlanParams.model_validate(params),
            owners,
            patients,
            SplitScheme(kfold, KFoldParams(folds=3)),
            TASKS,
            seed=5,
        )
    )


def test_every_plan_tests_everybody_once(patients: pd.DataFrame) -> None:
    everybody = set(patients["patient"])
    for name, count in (("folds", 3), ("leave_one_site_out", 3)):
        folds = plan(patients, plans=[name])
        assert len(folds) == count
        tested = [patient for one in folds for patient in one.fold.test]
        assert sorted(tested) == sorted(everybody)
        assert len(folds) > 0
        for one in folds:
            parts = [set(one.fold.train), set(one.fold.val), set(one.fold.test)]
            assert set.union(*parts) == everybody
            assert sum(map(len, parts)) == len(everybody)


def test_a_left_out_site_trains_nowhere(patients: pd.DataFrame) -> None:
    owners = clients(patients)
    plans = list(plan(patients, plans=["leave_one_site_out"]))
    assert len(plans) == len(owners)
    for one in plans:
        parts = one.parts(owners)
        assert one.left_out not in parts
        assert set(parts) == {client.name for client in owners} - {one.left_out}
        assert all(part.train and not part.test for part in parts.values())


def test_folds_can_be_limited_and_cohorts_must_be_three(patients: pd.DataFrame) -> None:
    assert [one.plan for one in plan(patients, plans=["folds", "leave_one_site_out"], folds=1)] == [
        "folds",
        "leave_one_site_out",
    ]
    with pytest.raises(DataError, match="leave_one_cohort_out needs three"):
        plan(patients, plans=["leave_one_cohort_out"])


def test_what_a_site_can_teach() -> None:
    frame = pd.DataFrame(
        {
            "MSI": [0.0, 0.0, np.nan],
            "LF": [1.0, 2.0, 3.0],
            "OS.time": [10.0, 20.0, 5.0],
            "OS.event": [0.0, 0.0, 0.0],
        }
    )
    survival = SurvivalTask(
        name="OS",
        time=SurvivalTime(column="T", unit="days"),
        event=SurvivalEvent(column="E", event_value=["1"], censored_value=["0"]),
    )
    tasks = (*TASKS, RegressionTask(name="LF", column="LF"), survival)
    assert [learnable(task, frame) for task in tasks] == [False, True, False]
    frame.loc[0, "OS.event"] = frame.loc[1, "MSI"] = 1.0
    assert all(learnable(task, frame) for task in tasks)
