"""Auto-Lambda (Liu, James, Davison and Johns, TMLR 2022, arXiv 2202.03091, equations 3 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import AutoLambdaParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.weighting import LearnedVector, Weighting, learning_rate
from equipoise.models.batch import TaskHead


class AutoLambda(Weighting):
    r"""Weights λ that make a step of training good for the primary tasks on data it did not see:

    .. math:: \min_\lambda \; \sum_{k \in \mathrm{primary}} L_k^{\mathrm{val}}(\theta'), \qquad
              \theta' = \theta - \alpha \sum_k \lambda_k g_k, \qquad
              \frac{\partial}{\partial \lambda_k} = -\alpha \, g_k^\top d,
              \quad d = \nabla \! \sum_{\mathrm{primary}} L_k^{\mathrm{val}}(\theta')

    Training losses are linear in λ, so that this derivative is exact for the inner step of gradient descent;
    the finite differences of the paper (equation 6) approximate the same product. The balancer works it out, on
    a batch of the inner validation set without dropout.

    Notes
    -----
    ``positivity`` keeps λ from below 0, where a step would climb a task's loss: ``clamp`` projects after every
    step and moves λ as the paper does, ``softplus`` learns ρ with λ = log(1 + e^ρ), ``unconstrained`` is the
    paper's. Published code learns λ by AdamW; its weight decay would pull λ to 0 (or to log 2 under softplus)
    and is left out, which leaves Adam. Its ε is 1e-16 here: hypergradients are of the size of α, where the usual
    1e-8 would damp the steps.
    """

    def __init__(self, params: AutoLambdaParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        any_main = any(head.main for head in heads)
        chosen = [
            params.primary == "all" or (head.main if any_main else index == 0)
            for index, head in enumerate(heads)
        ]
        self.primary = torch.tensor(chosen, dtype=torch.float64)
        self.positivity = params.positivity
        self.lr, self.reach = params.lr, params.reach
        start = torch.tensor(params.init, dtype=torch.float64)
        if self.positivity == "softplus":
            start = torch.log(torch.expm1(start))
        self.lambdas = LearnedVector([start.item()] * len(heads), lr=params.lr, eps=1e-16)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """λ."""
        values = self.lambdas.values
        return torch.nn.functional.softplus(values) if self.positivity == "softplus" else values

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """A step of λ down the hypergradient."""
        assert feedback.hypergradient is not None
        slope = feedback.hypergradient
        if self.positivity == "softplus":
            slope = slope * torch.sigmoid(self.lambdas.values)
        self.lambdas.step(slope, context.present, learning_rate(self.lr, self.reach, context))
        if self.positivity == "clamp":
            self.lambdas.assign(self.lambdas.values.clamp(min=0))

    def state_dict(self) -> dict[str, Any]:
        """λ (ρ under softplus) and its optimiser."""
        return {"positivity": self.positivity, "lambdas": self.lambdas.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises
        ------
        ValueError
            If the state was learned under another ``positivity``: its numbers mean something else.
        """
        if state["positivity"] != self.positivity:
            raise ValueError(
                f"auto_lambda: the checkpoint is of positivity {state['positivity']}, not {self.positivity}"
            )
        self.lambdas.load_state_dict(state["lambdas"])
