"""Hand-tuned weights: taken as given, every task named."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from equipoise.models.balancing.entries import StaticParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.static import Static
from equipoise.models.batch import TaskHead

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1))
CONTEXT = StepContext(("MSI", "LF"), torch.tensor([True, True]), 0, 0)


def test_weights_stand_in_the_order_of_tasks() -> None:
    weighting = Static(StaticParams(weights={"LF": 0.2, "MSI": 3}), HEADS)
    assert weighting.weights(torch.ones(2), CONTEXT).tolist() == [3, 0.2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"MSI": 1}, "none for LF; 0 leaves a task out"),
        ({"MSI": 1, "LF": 1, "lf": 2}, "no task lf; tasks are MSI, LF"),
    ],
)
def test_weights_must_fit_the_tasks(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Static(StaticParams(weights=weights), HEADS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "one weight must be positive"),
        ({"MSI": 0}, "must be positive"),
        ({"MSI": -1}, "greater than or equal"),
    ],
)
def test_weights_that_teach_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StaticParams(weights=weights)
