"""Methods of other packages: what their parameters need not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from equipoise.models.balancing.loss_balancer import LossBalancer
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.weighting import Weighting
from equipoise.models.batch import TaskHead


class OtherParams(BaseModel):
    """Parameters of another package, which do not derive from those of this room."""

    factor: float = 2.0


class Scaled(Weighting):
    def __init__(self, params: Any, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.factor = params.factor

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        return torch.full_like(losses, self.factor)


class Summed(Aggregator):
    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        return torch.ones(len(gram), dtype=gram.dtype)


def test_parameters_without_a_base_of_ours_have_the_defaults_of_their_kind() -> None:
    model = nn.Linear(3, 2)
    heads = [TaskHead(name, "regression", 1) for name in "ab"]
    params: Any = OtherParams()
    scaled, summed = Scaled(params, heads), Summed(params, heads)
    assert (scaled.needs, summed.needs, summed.kind) == (frozenset(), frozenset(), "gram")
    balance = LossBalancer(model, "ab", scaled, summed, name="scaled+summed")
    y = model(torch.ones(4, 3))
    balance.backward([y[:, 0].pow(2).mean(), y.pow(2).mean()])
    doubled = model.weight.grad
    model.zero_grad()
    (y_again := model(torch.ones(4, 3)))[:, 0].pow(2).mean().add(y_again.pow(2).mean()).mul(2).backward()
    torch.testing.assert_close(doubled, model.weight.grad)
