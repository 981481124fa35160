"""Equal weighting and no aggregation: the gradient of the plain sum, and no state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.models.balancing.entries import AGGREGATORS, WEIGHTINGS, NoParams
from equipoise.models.balancing.equal import Equal
from equipoise.models.balancing.none import NoAggregation
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.batch import TaskHead

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1))
CONTEXT = StepContext(tasks=("MSI", "LF"), present=torch.tensor([True, True]), epoch=0, step=0)


class Two(nn.Module):
    """Two losses on one shared weight, and a weight of the first task's own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))

    def shared_parameters(self) -> list[nn.Parameter]:
        return [self.shared]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return [self.own] if task == "MSI" else []

    def losses(self) -> torch.Tensor:
        return torch.stack([self.shared * self.own, self.shared**2])


def test_equal_weights_are_one_and_carry_no_gradient() -> None:
    weighting = Equal(NoParams(), HEADS)
    weights = weighting.weights(torch.tensor([5.0, 0.1], requires_grad=True), CONTEXT)
    assert weights.tolist() == [1, 1]
    assert not weights.requires_grad
    assert weighting.parameters() == []


def test_no_aggregation_is_the_gradient_of_the_sum() -> None:
    model = Two()
    NoAggregation(NoParams(), HEADS).backward(torch.tensor([0.5, 2.0]) * model.losses(), model, CONTEXT)
    assert model.shared.grad == 0.5 * 3 + 2 * 2 * 2
    assert model.own.grad == 0.5 * 2


@pytest.mark.parametrize("method", [Equal(NoParams(), HEADS), NoAggregation(NoParams(), HEADS)])
def test_state_of_another_method_is_refused(method: Equal | NoAggregation) -> None:
    method.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="has no state, the checkpoint holds logsigma"):
        method.load_state_dict({"logsigma": 0.7})


def test_entries_name_these_classes() -> None:
    assert WEIGHTINGS["equal"][2].endswith("equal:Equal")
    assert AGGREGATORS["none"][2].endswith("none:NoAggregation")
