"""Equal weighting and no aggregation: weights of one, and no state (the sum itself is the balancer's)."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.balancing.entries import AGGREGATORS, WEIGHTINGS, EqualParams, NoAggregationParams
from equipoise.models.balancing.equal import Equal
from equipoise.models.balancing.none import NoAggregation
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.batch import TaskHead

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1))
CONTEXT = StepContext(tasks=("MSI", "LF"), present=torch.tensor([True, True]), epoch=0, step=0)


def test_equal_weights_are_one_and_carry_no_gradient() -> None:
    weighting = Equal(EqualParams(), HEADS)
    weights = weighting.weights(torch.tensor([5.0, 0.1], requires_grad=True), CONTEXT)
    assert weights.tolist() == [1, 1]
    assert not weights.requires_grad


@pytest.mark.parametrize("method", [Equal(EqualParams(), HEADS), NoAggregation(NoAggregationParams(), HEADS)])
def test_state_of_another_method_is_refused(method: Equal | NoAggregation) -> None:
    method.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="has no state, the checkpoint holds logsigma"):
        method.load_state_dict({"logsigma": 0.7})


def test_entries_name_these_classes() -> None:
    assert WEIGHTINGS["equal"][2].endswith("equal:Equal")
    assert AGGREGATORS["none"][2].endswith("none:NoAggregation")
