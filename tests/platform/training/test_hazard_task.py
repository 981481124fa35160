"""A discrete-time survival task from the study to the predictions table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from equipoise.datasets.tables.tasks import BinaryTask, SurvivalTask
from equipoise.models.hazards import survival_of
from equipoise.platform.errors import DataWarning
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.predict import predict, run_model
from equipoise.platform.training.targets import Targets, fit_targets

SMALL = {"layers": 1, "dim": 16}


def survival(bins: int = 3, **more) -> SurvivalTask:
    return SurvivalTask(
        name="OS",
        time={"column": "t", "unit": "days"},
        event={"column": "e", "event_value": "dead"},
        likelihood="discrete_hazard",
        bins=bins,
        **more,
    )


def test_edges_are_quantiles_of_event_times_of_training_patients(make_cases) -> None:
    cases = make_cases(40)
    train = list(cases.values())[:24]
    head = fit_targets([survival()], train).tasks[0].head
    times = sorted(t for t, e in (case.targets["OS"] for case in train) if e == 1)
    expected = np.quantile(times, [1 / 3, 2 / 3], method="higher")
    assert head.edges == pytest.approx(tuple(expected))
    assert head.outputs == 3
    everyone = fit_targets([survival()], cases.values()).tasks[0].head
    assert everyone.edges != head.edges


def test_targets_come_back_from_json(make_cases, tasks) -> None:
    targets = fit_targets([*tasks[:3], survival()], make_cases(24).values())
    assert Targets.from_json(json.loads(json.dumps(targets.to_json()))) == targets
    cox = fit_targets(tasks, make_cases(24).values())
    assert Targets.from_json(json.loads(json.dumps(cox.to_json()))) == cox
    assert cox.tasks[3].head.edges is None


def test_tied_event_times_give_fewer_intervals_and_say_so(make_cases) -> None:
    cases = make_cases(12, missing=False)
    for case in cases.values():
        case.targets["OS"] = (100.0 if case.targets["MSI"] else 300.0, 1.0)
    with pytest.warns(DataWarning, match="OS: event times of the training patients give 2 intervals, not 4"):
        head = fit_targets([survival(4)], cases.values()).tasks[0].head
    assert (head.edges, head.outputs) == ((300.0,), 2)


def test_without_events_an_auxiliary_task_keeps_one_interval(make_cases, tasks) -> None:
    cases = make_cases(12)
    for case in cases.values():
        case.targets["OS"] = (100.0, 0.0)
    with pytest.warns(DataWarning, match="none of 12 training patients has an event"):
        head = fit_targets([tasks[0], survival()], cases.values()).tasks[1].head
    assert (head.edges, head.outputs) == ((), 1)


def test_it_learns_in_batches_of_one_and_ranks_patients(make_cases) -> None:
    cases = make_cases(48, missing=False)
    patients = tuple(cases)
    train, val, unseen = (CaseList(cases, part) for part in (patients[:32], patients[32:40], patients[40:]))
    targets = fit_targets([survival(main=True)], train)
    model = build_model("mean_pool", SMALL, targets.shape, targets.heads, seed=0)
    params = TrainingParams(epochs=8, lr=2e-2, batch="auto", monitor="main_metric")
    assert params.batch_for(targets.heads, 90) == 1
    fit(model, targets, train, val, params, seed=0)
    table = predict(model, targets, unseen, role="test", repeat=0, fold=0)
    assert np.corrcoef(np.log(table["time"]), table["score"])[0, 1] < -0.6
    logits = run_model(model, targets, unseen).outputs["OS"].double()
    expected = dict(zip(unseen.patients, -survival_of(logits).sum(dim=1).numpy(), strict=True))
    assert table["score"].to_numpy() == pytest.approx([expected[p] for p in table["patient"]])
    assert table["score"].between(-3, 0).all()
    assert (table["class"] == "").all()
    labels = {p: cases[p].targets["OS"] for p in unseen.patients}
    assert [tuple(row) for row in table[["time", "event"]].to_numpy()] == [
        pytest.approx(labels[p]) for p in table["patient"]
    ]


def test_missing_survival_is_masked(make_cases) -> None:
    cases = make_cases(8)
    targets = fit_targets(
        [BinaryTask(name="MSI", column="MSI", positive="MSI-H", main=True), survival()], cases.values()
    )
    batch = collate([cases["P05"], cases["P06"]], targets)
    assert batch.label_mask["OS"].tolist() == [False, True]
    assert torch.equal(batch.targets["OS"][0], torch.zeros(2))
