"""Target fitting on training patients: class weights, scalers, widths, sites; both directions of a label."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from equipoise.datasets.tables.tasks import BinaryTask
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.training.statistics import is_missing
from equipoise.platform.training.targets import Targets, fit_targets


def with_targets(case, **targets):
    return dataclasses.replace(case, targets=case.targets | targets)


def test_everything_comes_from_the_training_cases(tasks, make_cases) -> None:
    cases = list(make_cases(12).values())
    targets = fit_targets(tasks, cases)
    msi, grade, lf, os = targets.tasks
    assert [t.head.kind for t in targets.tasks] == ["binary", "multiclass", "regression", "survival"]
    assert [t.head.outputs for t in targets.tasks] == [2, 3, 1, 1]
    assert msi.classes == ("MSI-H",)
    assert grade.classes == ("low", "mid", "high")
    assert msi.class_weights == pytest.approx((12 / (2 * 8), 12 / (2 * 4)))
    values = [c.targets["LF"] for c in cases if not math.isnan(c.targets["LF"])]
    assert lf.encode(min(values)) == 0
    assert lf.encode(max(values)) == pytest.approx(1)
    assert os.encode((365.0, 1.0)) == (365.0, 1.0)
    assert targets.shape.features == 8
    assert targets.shape.omics == {"rna": 3}
    assert targets.sites == ("S0", "S1", "S2", "S3")
    assert targets.cohorts == ("SYN-A", "SYN-B")
    assert os.head.stratified
    assert targets.main.name == "MSI"


def test_strata_are_the_cohorts_unless_a_task_says_none(tasks, make_cases) -> None:
    survival = tasks[3].model_dump()
    cases = list(make_cases(12).values())
    pooled = type(tasks[3])(**survival | {"strata": "none"})
    hazards = type(tasks[3])(**survival | {"likelihood": "discrete_hazard", "bins": 2})
    assert not fit_targets([*tasks[:3], pooled], cases).tasks[3].head.stratified
    assert not fit_targets([*tasks[:3], hazards], cases).tasks[3].head.stratified


def test_other_patients_change_nothing(tasks, make_cases) -> None:
    """A value beyond the training range is scaled beyond [0, 1], and does not move the range."""
    cases = list(make_cases(12).values())
    targets = fit_targets(tasks, cases)
    assert targets.tasks[2].encode(1000.0) > 1
    assert fit_targets(tasks, cases).to_json() == targets.to_json()


def test_predictions_return_to_original_units(tasks, make_cases) -> None:
    cases = make_cases(12).values()
    for scaling in ("minmax", "standard"):
        lf = fit_targets(tasks, cases, scaling=scaling).tasks[2]
        assert lf.decode(np.array([lf.encode(12.5)])) == pytest.approx([12.5])


def test_json_round_trip(tasks, make_cases) -> None:
    targets = fit_targets(tasks, make_cases(12).values())
    again = Targets.from_json(json.loads(json.dumps(targets.to_json())))
    assert again == targets


def test_unweighted(tasks, make_cases) -> None:
    assert fit_targets(tasks, make_cases(12).values(), class_weights="none").class_weights == {}


def test_sites_outside_training_have_no_index(tasks, make_cases) -> None:
    targets = fit_targets(tasks, make_cases(12).values())
    assert targets.site_index("S2") == 2
    assert targets.site_index("elsewhere") == -1


@pytest.mark.parametrize("label", [None, math.nan, np.float64("nan"), (math.nan, 1.0), (5.0, math.nan)])
def test_missing_labels(label) -> None:
    assert is_missing(label)


@pytest.mark.parametrize("label", [0.0, 3, np.float32(1), (5.0, 0.0)])
def test_present_labels(label) -> None:
    assert not is_missing(label)


def test_one_class_is_refused_by_name(tasks, make_cases) -> None:
    cases = [with_targets(c, MSI=0.0) for c in make_cases(9).values()]
    with pytest.raises(DataError, match="task MSI: all 9 labelled training patients are negative"):
        fit_targets(tasks, cases)


def test_a_task_without_labels_is_refused(tasks, make_cases) -> None:
    cases = [with_targets(c, MSI=math.nan) for c in make_cases(9).values()]
    with pytest.raises(DataError, match="task MSI: no training patient has a label"):
        fit_targets(tasks, cases)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OS", (100.0, 0.0), "task OS: none of 9 training patients has an event"),
        ("LF", 1.5, "task LF: all 9 labelled training patients are 1.5"),
        ("LF", math.nan, "task LF: no training patient has a label"),
    ],
)
def test_what_cannot_be_learned_is_an_error_only_for_the_leading_task(
    tasks, make_cases, name, value, said
) -> None:
    cases = [with_targets(c, **{name: value}) for c in make_cases(9).values()]
    with pytest.warns(DataWarning, match=f"{said}; nothing of it is learned here"):
        targets = fit_targets(tasks, cases)
    with pytest.raises(DataError, match=said):
        fit_targets([task for task in tasks if task.name == name], cases)
    if name == "LF":  # a constant is predicted as itself, in its own units
        assert targets.tasks[2].decode(np.zeros(2)).tolist() == [0.0 if math.isnan(value) else value] * 2


def test_a_class_without_training_patients_warns(tasks, make_cases) -> None:
    cases = [with_targets(c, grade=float(i % 2)) for i, c in enumerate(make_cases(8).values())]
    with pytest.warns(DataWarning, match="task grade: no training patient is high"):
        targets = fit_targets(tasks, cases)
    assert targets.tasks[1].class_weights == (1.0, 1.0, 1.0)


def test_bags_of_two_widths_are_refused(tasks, make_cases) -> None:
    cases = [*make_cases(6).values(), *make_cases(6, features=5).values()]
    with pytest.raises(DataError, match="tiles of 5 and 8 features"):
        fit_targets(tasks, cases)
    with pytest.raises(DataError, match="no tile and no table"):
        fit_targets(tasks, [])


def test_tables_are_fitted_on_the_training_cases(tasks, make_cases) -> None:
    cases = list(make_cases(12).values())
    targets = fit_targets(tasks, cases)
    rows = np.stack([case.omics["rna"] for case in cases if "rna" in case.omics])
    transformed = np.stack([targets.tables["rna"].apply(row, ("0", "1", "2")) for row in rows])
    np.testing.assert_allclose(transformed.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(transformed.std(axis=0), 1, atol=1e-5)
    other = fit_targets(tasks, [*cases, *make_cases(6, seed=3).values()])
    assert other.tables["rna"] != targets.tables["rna"]


def test_without_tiles_there_are_tables(tasks, make_cases) -> None:
    bare = [dataclasses.replace(case, bag=np.empty((0, 0), np.float16)) for case in make_cases(12).values()]
    assert fit_targets(tasks, bare).shape.features == 0
    assert fit_targets(tasks, bare).shape.omics == {"rna": 3}


def test_a_cut_off_names_its_class(make_cases) -> None:
    task = BinaryTask(name="MSI", column="score", cutoff=42)
    assert fit_targets([task], make_cases(6).values()).tasks[0].classes == (">=42",)
