"""Robustness of features across centres: numbers of the package croma, planted centres, and reasons."""

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.feature_robustness import (
    FEATURE_COLUMNS,
    NOT_INSTALLED,
    best_cells,
    feature_robustness,
    read_feature_robustness,
    schedule,
    write_feature_robustness,
)


def planted(
    of_class: float, of_centre: float, patients: int = 80
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Two centres and two classes, crossed; the first direction knows the class, the second the centre."""
    rng = np.random.default_rng(0)
    rows, features = [], {}
    for i in range(patients):
        centre, label, name = i % 2, (i // 2) % 2, f"P{i:03d}"
        vector = rng.normal(size=6)
        vector[:2] += [of_class * label, of_centre * centre]
        features[name] = vector
        rows.append({"patient": name, "cohort": "AB"[centre], "site": "AB"[centre], "repeat": 0, "fold": 0,
                     "role": "test", "task": "MSI", "class": "MSI-H", "score": 0.5, "target": float(label),
                     "time": np.nan, "event": np.nan})  # fmt: skip
    return pd.DataFrame(rows), features


def only_row(*given: Any) -> dict[str, Any]:
    (row,) = feature_robustness(*given).to_dict("records")
    return row


def test_features_of_class_and_features_of_centre() -> None:
    biology, centre = only_row(*planted(5.0, 0.0)), only_row(*planted(2.0, 9.0))
    for name in ("value", "mari", "croma", "croma_tail", "apd"):
        assert biology[name] > centre[name], name
    assert biology["croma"] > 0 > centre["croma"]
    assert abs(biology["apd"]) < 0.05
    assert centre["apd"] < -0.05  # the probe takes the centre for the class
    assert (biology["apd_cells"], biology["note"]) == ("A and B", "")


def test_margins_are_those_of_croma_and_of_our_own_index() -> None:
    row = only_row(*planted(1.5, 1.0))
    # Two computations of one definition: the package's, and ours (test_robustness.py).
    assert row["croma"] == pytest.approx(row["margin"], abs=1e-12)
    assert row["croma_tail"] < row["croma"]


def test_training_patients_move_between_cells_while_their_margins_stay() -> None:
    for smallest in (12, 25, 60):
        plans = schedule(smallest)
        for cells, most in plans:
            taken = {(i, j): n for i, j, n in cells}
            assert taken[0, 0] + taken[0, 1] == taken[1, 0] + taken[1, 1] == most
            assert taken[0, 0] + taken[1, 0] == most
            # The tail that is left to test is behind the widest training part and its validation part.
            assert smallest - (most + round(0.25 * most) + 1) >= 2
        first, last = ({(i, j): n for i, j, n in plans[k][0]} for k in (0, -1))
        assert len(set(first.values())) == 1
        assert last[0, 1] == last[1, 0] == 0


def test_the_fullest_cells_are_chosen() -> None:
    label = np.array([0, 1, 0, 1, 2, 2] * 3 + [0, 1])
    centre = np.array(["A", "A", "B", "B", "A", "C"] * 3 + ["A", "B"])
    cells = best_cells(label, centre)
    assert cells is not None
    assert (cells.centres, cells.classes, cells.smallest) == (("A", "B"), (0, 1), 3)
    assert best_cells(np.array([0, 1]), np.array(["A", "B"])) is None


def test_what_is_missing_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no APD: 5 patients in a cell, 12 are needed" in only_row(*planted(2.0, 1.0, 20))["note"]
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "croma":
            raise ModuleNotFoundError("No module named 'croma'", name="croma")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    row = only_row(*planted(2.0, 1.0))
    assert NOT_INSTALLED in row["note"]
    assert math.isnan(row["apd"])
    assert row["value"] == row["value"]  # the index needs no package


def test_patients_without_slides_and_one_centre(tmp_path: Path) -> None:
    table, features = planted(2.0, 1.0, 40)
    assert feature_robustness(table, {}).empty
    assert feature_robustness(table.assign(cohort="A", site="A"), features).empty
    found = feature_robustness(table, {name: features[name] for name in list(features)[:30]})
    assert list(found["n"]) == [30]
    write_feature_robustness(found, tmp_path)
    back = read_feature_robustness(tmp_path / "feature_robustness.csv")
    pd.testing.assert_frame_equal(back, found, rtol=1e-12)
    assert tuple(back) == FEATURE_COLUMNS
    write_feature_robustness(found.iloc[:0], tmp_path)
    assert not (tmp_path / "feature_robustness.csv").exists()
