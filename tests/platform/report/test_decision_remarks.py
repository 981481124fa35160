"""Runs with planted decisions: what the verdict says when a cut-off tells nobody apart, and when it does not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.operating_points import operating_points
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import pooled_samples
from equipoise.platform.report.blocks import Notice, Table
from equipoise.platform.report.decision_remarks import Decisions, decision_remarks, decisions
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.verdict import build as build_verdict

PARAMS = EvaluationParams()
BASE = {"site": "s", "repeat": 0, "fold": 0, "class": "", "target": np.nan, "time": np.nan, "event": np.nan}


def run_of(kind: str, rows: list[dict]) -> RunFiles:
    made = RunFiles(Path("nowhere"))
    table = pd.DataFrame([BASE | {"task": "T", "patient": f"{r['role']}{i}", "cohort": "A"} | r
                          for i, r in enumerate(rows)])  # fmt: skip
    points = operating_points(pooled_samples(table, PARAMS), table, PARAMS)
    made.__dict__ |= {"predictions": table, "tasks": [Task("T", kind, True)], "study": {}}
    made.__dict__ |= {"operating_points": points}
    return made


def binary(role: str, scores: list[float], target: list[float], cohort: str = "A") -> list[dict]:
    return [
        {"role": role, "cohort": cohort, "class": "MSI-H", "score": s, "target": t}
        for s, t in zip(scores, target, strict=True)
    ]


#: Validation puts the threshold at .5.
VAL = binary("val", [0.2, 0.3, 0.7, 0.8], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], "calls none of the 4 patients of X positive; all 2 positive ones are missed."),
        ([0.6, 0.7, 0.8, 0.9], "calls all 4 patients of X positive."),
        (
            [0.9, 0.2, 0.3, 0.4],
            "finds none of the 2 positive patients of X (sensitivity 0), though it calls 1 pat",
        ),
        (
            [0.9, 0.8, 0.3, 0.7],
            "calls every negative patient of X positive (specificity 0, 2 negative patients).",
        ),
        ([0.1, 0.9, 0.3, 0.7], ""),
    ],
)
def test_a_threshold_that_fails_elsewhere_is_said(scores: list[float], expected: str) -> None:
    run = run_of(
        "binary", VAL + binary("test", [0.1, 0.9], [0, 1]) + binary("external", scores, [0, 0, 1, 1], "X")
    )
    found = decision_remarks(run)
    if not expected:
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith("T: at the threshold chosen on validation patients, the model ")
    assert expected in found[0]


def test_one_positive_patient_is_one() -> None:
    run = run_of("binary", VAL + binary("external", [0.1, 0.2], [0, 1], "X"))
    assert decision_remarks(run)[0].endswith("its one positive patient is missed.")


def survival(role: str, risks: list[float], cohort: str = "A") -> list[dict]:
    return [
        {"role": role, "cohort": cohort, "score": r, "time": 100.0 + i, "event": 1.0}
        for i, r in enumerate(risks)
    ]


def test_everybody_at_high_risk_is_said() -> None:
    run = run_of("survival", survival("val", [0.0, 1.0, 2.0]) + survival("test", [0.1, 1.7])
                 + survival("external", [5.0, 6.0, 7.0], "X"))  # fmt: skip
    assert decisions(run, run.tasks[0]) == [Decisions("the test folds", 2, 1), Decisions("X", 3, 3)]
    assert decision_remarks(run) == [
        "T: at the cut-off chosen on validation patients, all 3 patients of X are high risk: the groups have no "
        "meaning there."
    ]


def test_everybody_at_low_risk_is_said() -> None:
    run = run_of("survival", survival("val", [0.0, 1.0, 2.0]) + survival("test", [-1.0, -2.0]))
    assert "all 2 patients of the test folds are low risk" in decision_remarks(run)[0]


def classes(patient: str, probabilities: tuple[float, float], truth: int) -> list[dict]:
    return [
        {"role": "test", "patient": patient, "class": name, "score": p, "target": float(k == truth)}
        for k, (name, p) in enumerate(zip(("CIN", "MSI"), probabilities, strict=True))
    ]


def test_one_class_for_everybody_is_said() -> None:
    everybody = classes("a", (0.9, 0.1), 0) + classes("b", (0.6, 0.4), 1)
    assert decision_remarks(run_of("multiclass", everybody)) == [
        "T: every one of the 2 patients of the test folds is predicted to be CIN."
    ]
    apart = classes("a", (0.9, 0.1), 0) + classes("b", (0.4, 0.6), 1)
    assert decision_remarks(run_of("multiclass", apart)) == []


@pytest.mark.parametrize(("scores", "said"), [([1.0, 1.0001, 0.9999], True), ([0.5, 1.0, 1.5], False)])
def test_one_value_for_everybody_is_said(scores: list[float], said: bool) -> None:
    rows = [{"role": "test", "score": s, "target": t} for s, t in zip(scores, (0.0, 1.0, 2.0), strict=True)]
    found = decision_remarks(run_of("regression", rows))
    assert bool(found) == said
    assert all(
        "predicts nearly the same value for all 3 patients of the test folds" in line for line in found
    )


def test_the_verdict_shows_it(make_run, made) -> None:  # type: ignore[no-untyped-def]
    folder = make_run(made())
    before = RunFiles(folder)
    assert not any(
        isinstance(b, Notice) and b.tone == "bad" for b in build_verdict(before, SectionParams()).blocks
    )
    table = before.predictions.copy()
    lower = (table["task"] == "MSI") & (table["role"] == "external")
    table.loc[lower, "score"] *= 0.01
    run = RunFiles(folder)
    run.__dict__["operating_points"] = operating_points(pooled_samples(table, PARAMS), table, PARAMS)
    notices = [
        b for b in build_verdict(run, SectionParams()).blocks if isinstance(b, Notice) and b.tone == "bad"
    ]
    assert (
        "MSI: at the threshold chosen on validation patients, the model calls none of the"
        in notices[0].items[0]
    )
    lead = build_verdict(run, SectionParams()).lead
    assert lead.endswith(" At its operating point the model does not separate the patients of crc-x.")


def test_external_results_stand_with_their_sample(run_folder: Path) -> None:
    (board,) = [
        b for b in build_verdict(RunFiles(run_folder), SectionParams()).blocks if isinstance(b, Table)
    ]
    column = list(board.columns).index("External crc-x")
    by_task = {row[0].text: row for row in board.rows}
    assert by_task["MSI"][column].note == "33 patients, 9 positive"
    assert (by_task["OS"][0].note, by_task["MSI"][0].note) == ("Harrell C", "main task, AUROC")
