"""Draws of training patients by task and cohort: shares, coverage, and what a loop does with them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from equipoise.platform.errors import StudyError
from equipoise.platform.run.loading import load_study
from equipoise.platform.training import step
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TaskSamplingParams, TrainingParams
from equipoise.platform.training.targets import fit_targets
from equipoise.platform.training.task_sampling import cell_shares, cells_of, draw_task_order

#: Cells of 400, 90 and 10 patients; the last one lies inside the first.
CELLS = [np.arange(400), np.arange(400, 490), np.arange(390, 400)]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.8, 0.18, 0.02]), (2.0, [20, 90**0.5, 10**0.5]), (float("inf"), [1, 1, 1])],
)
def test_cells_come_with_a_probability_of_their_size_to_the_power(temperature, expected) -> None:
    expected = np.array(expected) / sum(expected)
    np.testing.assert_allclose(cell_shares([400, 90, 10], temperature), expected, rtol=1e-12)
    drawn: Counter[int] = Counter()
    for epoch in range(200):
        rows = list(draw_task_order(CELLS, 490, 64, temperature, 3, epoch))
        assert [len(batch) for batch in rows] == [64] * 7 + [42]
        drawn.update(itertools.chain.from_iterable(rows))
    total = sum(drawn.values())
    middle = sum(drawn[i] for i in range(400, 490)) / total
    # Patients of the small cell are drawn from the large one, too.
    small = sum(drawn[i] for i in range(390, 400)) / total
    assert middle == pytest.approx(expected[1], abs=0.003)
    assert small == pytest.approx(expected[2] + expected[0] * 10 / 400, abs=0.003)


def test_batches_hold_their_share_and_patients_of_a_cell_come_equally_often() -> None:
    apart = [np.arange(60), np.arange(60, 65)]
    counts = np.zeros(65)
    for epoch in range(30):
        rows = list(draw_task_order(apart, 65, 13, float("inf"), 0, epoch))
        small = [sum(i >= 60 for i in batch) for batch in rows]
        assert all(abs(count - 6.5) < 2 for count in small)
        once = np.bincount(list(itertools.chain.from_iterable(rows)), minlength=65)
        assert np.ptp(once[60:]) <= 1  # 32 or 33 draws from five patients
        assert once[:60].max() == 1
        counts += once
    assert list(draw_task_order(apart, 65, 13, 2.0, 0, 1)) == list(draw_task_order(apart, 65, 13, 2.0, 0, 1))
    assert list(draw_task_order(apart, 65, 13, 2.0, 0, 1)) != list(draw_task_order(apart, 65, 13, 2.0, 0, 2))


def test_cells_are_tasks_within_cohorts(tasks, make_cases) -> None:
    cases = make_cases(30)
    everyone = CaseList(cases, tuple(cases))
    targets = fit_targets(tasks, everyone)
    cells = cells_of(everyone, targets)
    for (name, cohort), rows in cells.items():
        task = next(t for t in targets.tasks if t.head.name == name)
        expected = [
            i
            for i, case in enumerate(cases.values())
            if case.cohort == cohort and task.encode(case.targets[name]) is not None
        ]
        assert rows.tolist() == expected
    assert {name for name, _ in cells} == {head.name for head in targets.heads}


def test_the_loop_steps_on_the_patients_that_were_drawn(tasks, make_cases, monkeypatch) -> None:
    cases = make_cases(30)
    patients = tuple(cases)
    train, val = CaseList(cases, patients[:22]), CaseList(cases, patients[22:])
    targets = fit_targets([tasks[0]], train)
    model = build_model("mean_pool", {"dim": 8}, targets.shape, targets.heads, seed=1)
    taken: list[list[int]] = []
    stepped = step.Epoch.step

    def kept(self: step.Epoch, rows: Sequence[int]) -> None:
        taken.append(list(rows))
        stepped(self, rows)

    monkeypatch.setattr(step.Epoch, "step", kept)
    sampling = TaskSamplingParams(temperature=4.0)
    params = TrainingParams(epochs=2, batch=5, task_sampling=sampling, device="cpu", amp="off")
    fit(model, targets, train, val, params, seed=7)
    cells = list(cells_of(train, targets).values())
    expected = [rows for epoch in (0, 1) for rows in draw_task_order(cells, 22, 5, 4.0, 7, epoch)]
    assert taken == expected


@pytest.mark.parametrize("other", [{"batch": "full"}, {"order": "stratified"}, {"risk_sets": "memory"}])
def test_what_sees_every_patient_once_is_refused(other) -> None:
    with pytest.raises(ValidationError, match="task_sampling draws the patients of a step"):
        TrainingParams.model_validate({"task_sampling": {"temperature": 2}, **other})


def test_federations_refuse_task_sampling(tmp_path) -> None:
    (tmp_path / "clini.csv").write_text("PATIENT,T,E,AGE\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        """
version: 1
name: few
cohorts: [{name: A, role: develop, clinical: clini.csv}]
tasks: [{name: OS, type: survival, time: {column: T, unit: days}, event: {column: E, event_value: 1}}]
tables: {clinical: [{column: AGE, type: number}]}
model: {kind: clinical}
training: {task_sampling: {}}
federation: {}
"""
    )
    with pytest.raises(StudyError, match="every site trains on its own patients"):
        load_study(study)
