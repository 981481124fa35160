"""Tasks: label maps are explicit, survival needs an event value, every refusal says what to write."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from equipoise.datasets.params import TableSource
from equipoise.datasets.tables.tasks import BinaryTask, MulticlassTask, SurvivalTask, Task, main_task

TASK = TypeAdapter(Task)


def task(**values: Any) -> Any:
    return TASK.validate_python(values)


def test_one_label_needs_no_brackets_and_numbers_are_labels() -> None:
    result = task(type="binary", name="HRD", column="HRD", positive=1, negative=[0.0], exclude="unsure")
    assert (result.positive, result.negative, result.exclude) == (["1"], ["0"], ["unsure"])
    assert result.class_names == ("1",)


def test_cutoff_names_its_class() -> None:
    assert task(type="binary", name="HRD", column="HRD_score", cutoff=42).class_names == (">=42",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "say which values are positive"),
        ({"positive": "a", "cutoff": 1.0}, "exclude each other"),
        ({"positive": ["a", "b"], "negative": ["b"]}, "'b' stands under both 'positive' and 'negative'"),
        ({"positive": "a", "exclude": "a"}, "under both 'positive' and 'exclude'"),
        ({"positive": [True]}, "in quotes"),
        ({"positive": "a", "negatives": "b"}, "extra_forbidden"),
    ],
)
def test_binary_tasks_that_contradict_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(type="binary", name="MSI", column="MSI", **values)


def test_classes_as_list_and_as_mapping() -> None:
    listed = task(type="multiclass", name="S", column="S", classes=["I", "II", 3])
    assert listed.classes == {"I": "I", "II": "II", "3": "3"}
    merged = task(
        type="multiclass", name="S", column="S", classes={"IDC": "ductal", "ILC": "lobular", "MDLC": "ductal"}
    )
    assert merged.class_names == ("ductal", "lobular")


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["a"], "two or more classes"), ({"x": "a", "y": "a"}, "two or more"), (["a", "a"], "stands twice")],
)
def test_classes_that_are_none(classes: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(type="multiclass", name="S", column="S", classes=classes)


def survival(**event: Any) -> Any:
    return task(type="survival", name="OS", time={"column": "OS_months", "unit": "months"}, event=event)


def test_survival_needs_an_event_value() -> None:
    with pytest.raises(ValidationError, match="say which value means that the event happened"):
        survival(column="OS")
    with pytest.raises(ValidationError, match="say which value"):
        survival(column="OS", event_value=[])


def test_a_censorship_column_without_event_value_is_explained() -> None:
    with pytest.raises(ValidationError, match="1 meant CENSORED.*event_value: 0") as caught:
        survival(column="censorship")
    assert caught.value.errors()[0]["loc"] == ("survival", "event")


def test_bins_belong_to_discrete_hazards() -> None:
    os = {"type": "survival", "name": "OS", "time": {"column": "t", "unit": "days"}}
    os["event"] = {"column": "e", "event_value": 1}
    assert task(**os).likelihood == "cox"
    hazards = task(**os, likelihood="discrete_hazard", bins=6)
    assert hazards.bins == 6
    assert task(**hazards.model_dump()) == hazards
    assert task(**task(**os).model_dump()) == task(**os)
    with pytest.raises(ValidationError, match="'bins' belongs to likelihood: discrete_hazard"):
        task(**os, bins=4)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        task(**os, likelihood="discrete_hazard", bins=1)


def test_survival_columns_and_names() -> None:
    result = survival(column="censorship", event_value=0)
    assert isinstance(result, SurvivalTask)
    assert result.columns == ("OS_months", "censorship")
    assert result.frame_columns == ("OS.time", "OS.event")
    assert result.event.event_value == ["0"]


def test_the_unit_of_time_is_never_guessed() -> None:
    with pytest.raises(ValidationError, match=r"time\.unit"):
        task(type="survival", name="OS", time={"column": "T"}, event={"column": "E", "event_value": 1})


@pytest.mark.parametrize("name", ["patient", "site", "OS.time", "1st", ""])
def test_names_that_would_clash(name: str) -> None:
    with pytest.raises(ValidationError):
        task(type="regression", name=name, column="x")


def test_main_task_is_the_marked_one_or_the_first() -> None:
    first = BinaryTask(name="A", column="a", positive=["1"])
    second = MulticlassTask(name="B", column="b", classes={"x": "x", "y": "y"}, main=True)
    assert main_task([first, second]) is second
    assert main_task([first]) is first


def test_tasks_written_out_in_full_read_back() -> None:
    for original in (
        survival(column="E", event_value="Dead", censored_value="Alive"),
        task(type="multiclass", name="S", column="S", classes={"IDC": "d", "ILC": "l"}),
        task(type="binary", name="H", column="H", cutoff=42),
    ):
        assert TASK.validate_python(original.model_dump()) == original


def test_the_documented_tasks_are_tasks(root: Path) -> None:
    page = (root / "docs" / "tables.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    documented = next(block["tasks"] for block in blocks if "tasks" in block)
    assert {TASK.validate_python(spec).type for spec in documented} == {
        "binary",
        "multiclass",
        "regression",
        "survival",
    }
    TableSource.model_validate(next(block["clinical"] for block in blocks if "clinical" in block))
