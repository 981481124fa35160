"""Who is explained: the ends and the errors of every cohort in turn, the same patients every time."""

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.errors import DataError
from equipoise.platform.explain.selection import choose, choose_named, held_out


def table(
    scores: dict[str, float], targets: dict[str, float] | None = None, **changes: object
) -> pd.DataFrame:
    rows = pd.DataFrame({"patient": list(scores), "score": list(scores.values())})
    key = {
        "cohort": "A",
        "site": "S",
        "repeat": 0,
        "fold": 0,
        "role": "test",
        "task": "MSI",
        "class": "MSI-H",
    }
    rows = rows.assign(**(key | {"time": np.nan, "event": np.nan} | changes))
    return rows.assign(target=[(targets or {}).get(p, np.nan) for p in rows["patient"]])


SCORES = {"a": 0.9, "b": 0.1, "c": 0.6, "d": 0.4, "e": 0.8}


def names(rows: pd.DataFrame, n: int, task: str = "MSI") -> list[tuple[str, str]]:
    return [(one.patient, one.reason) for one in choose(rows, task, n, set(rows["patient"]))]


def test_ends_and_errors_in_turn() -> None:
    rows = table(SCORES, {"a": 1, "b": 1, "c": 1, "d": 0, "e": 0})
    assert names(rows, 5) == [
        ("a", "highest probability"),
        ("b", "lowest probability"),
        ("e", "most wrong prediction"),
        ("c", "highest probability"),
        ("d", "lowest probability"),
    ]
    assert names(rows.sample(frac=1, random_state=1), 5) == names(rows, 5)
    assert names(rows, 99) == names(rows, 5)
    assert names(rows, 0) == []


def test_every_cohort_and_only_patients_with_slides() -> None:
    rows = pd.concat([table(SCORES), table({"x": 0.5, "y": 0.7}, cohort="B", role="external")])
    chosen = choose(rows, "MSI", 1, {"b", "d", "x"})
    assert [(one.patient, one.cohort, one.role) for one in chosen] == [
        ("x", "B", "external"),
        ("d", "A", "test"),
    ]


def test_validation_predictions_do_not_count_and_folds_are_averaged() -> None:
    folds = [table({"x": s}, role="external", fold=k) for k, s in enumerate((0.2, 0.6))]
    rows = pd.concat([table({"x": 0.9}, role="val"), *folds])
    assert held_out(rows, "MSI")["score"].tolist() == [pytest.approx(0.4)]


def test_survival_values_and_classes() -> None:
    risk = {"class": "", "task": "OS"}
    val = table({"v": 0.0, "w": 2.0}, role="val", **risk)
    rows = table({"a": 3.0, "b": -1.0, "c": 0.5}, **risk)
    rows["time"], rows["event"] = 10.0, [0.0, 0.0, 1.0]
    val["time"], val["event"] = 10.0, 1.0
    assert names(pd.concat([rows, val]), 3, "OS") == [
        ("a", "highest risk"),
        ("b", "lowest risk"),
        ("c", "event despite the lowest risk"),
    ]
    value = table({"a": 3.0, "b": -1.0, "c": 0.5}, {"a": 3, "b": 0, "c": 9}, **{"class": "", "task": "LISS"})
    assert names(value, 3, "LISS")[2] == ("c", "most wrong prediction")
    parts = [
        table({"a": 0.7, "b": 0.4, "c": 0.2}, {"a": 1, "b": 0, "c": 1}, task="T", **{"class": "one"}),
        table({"a": 0.3, "b": 0.6, "c": 0.8}, {"a": 0, "b": 1, "c": 0}, task="T", **{"class": "two"}),
    ]
    assert names(pd.concat(parts), 2, "T") == [
        ("c", "most certain prediction"),
        ("b", "least certain prediction"),
    ]
    assert names(pd.concat(parts), 3, "T")[2] == (
        "a",
        "most certain prediction",
    )  # the only error is chosen already


def test_named_patients_must_have_been_tested() -> None:
    slides = pd.DataFrame({"slide": ["a-1", "z-1"], "patient": ["a", "z"]})
    rows = pd.concat([table(SCORES), table({"z": 0.1}, role="val")])
    assert [one.patient for one in choose_named(rows, ["a-1", "a"], slides)] == ["a"]
    with pytest.raises(DataError, match="no model was tested on patient z"):
        choose_named(rows, ["z"], slides)
    with pytest.raises(DataError, match="'b' is no slide and no patient with tiles"):
        choose_named(rows, ["b"], slides)
