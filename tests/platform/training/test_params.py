"""Names are checked when a study is read; settings under which nothing can be learned are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from equipoise.models.batch import TaskHead
from equipoise.platform.errors import StudyError
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams


def test_defaults_are_the_published_settings() -> None:
    params = TrainingParams()
    assert (params.epochs, params.patience, params.lr, params.weight_decay) == (32, 7, 1e-4, 0.01)
    assert params.batch_for([TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1)], 90) == 1


def test_off_needs_no_quotes() -> None:
    assert TrainingParams.model_validate(yaml.safe_load("amp: off")).amp == "off"
    with pytest.raises(ValidationError):
        TrainingParams.model_validate(yaml.safe_load("amp: on"))


def test_a_survival_task_needs_patients_to_compare() -> None:
    heads = (TaskHead("MSI", "binary", 2), TaskHead("OS", "survival", 1))
    assert TrainingParams().batch_for(heads, 90) == 8
    assert TrainingParams(batch=3).batch_for(heads, 90) == 3
    with pytest.raises(StudyError, match=r"training.batch: a survival task cannot learn from batches of one"):
        TrainingParams(batch=1).batch_for(heads, 90)


def test_hazards_learn_from_one_patient_at_a_time() -> None:
    heads = (TaskHead("MSI", "binary", 2), TaskHead("OS", "survival", 3, edges=(100.0, 200.0)))
    assert TrainingParams().batch_for(heads, 90) == 1
    assert TrainingParams(batch=1).batch_for(heads, 90) == 1


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (BalancingParams, {"weighting": "equl"}, "Did you mean 'equal'"),
        (BalancingParams, {"aggregation": "nothing"}, "unknown aggregators entry 'nothing'; known: none"),
        (BalancingParams, {"weighting_params": {"c": 0.4}}, "Extra inputs"),
        (Recipe, {"model": "jont"}, "Did you mean 'joint'"),
        (Recipe, {"model_params": {"layers": 3}}, "Extra inputs"),
        (Recipe, {"model_params": {"dim": 100}}, "not divisible"),
        (TrainingParams, {"batch": 0}, "1 or more, auto or full"),
        (TrainingParams, {"epochs": 3, "min_epochs": 4}, "min_epochs 4 is more than epochs 3"),
        (TrainingParams, {"monitor": "test_loss"}, "'main_metric' or 'added_loss'"),
        (TrainingParams, {"learning_rate": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(model, values, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(values)
    assert message in str(refused.value)


def test_parameters_are_light() -> None:
    code = """
import sys
from equipoise.platform.training.params import Recipe
Recipe()
heavy = {"torch", "pandas", "ray", "sklearn", "scipy", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
