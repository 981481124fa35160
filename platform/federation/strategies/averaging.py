"""Averaging: FedAvg, FedAvgM (momentum at the server), FedProx (proximal term), FedNova (normalised updates)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

from equipoise.platform.federation.entries import FedAvgMParams, FedProxParams
from equipoise.platform.federation.strategies.strategy import AggregatedUpdate, ServerState, Strategy
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.platform.federation.clients.local_training import ClientContext
    from equipoise.platform.federation.messages import ClientUpdate


class FedAvg(Strategy):
    """w ← w + η Σ n_i (w_i − w) / Σ n_i.

    McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data".
    """


class FedAvgM(Strategy):
    """v ← β v + Δ, w ← w + η v.

    Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution" (arXiv 1909.06335).
    """

    def __init__(self, params: FedAvgMParams) -> None:
        super().__init__(params)
        self.momentum = params.momentum

    def init_state(self, schema: Schema) -> ServerState:
        """Velocity 0."""
        return {"velocity": np.zeros(schema.size)}

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """Update the velocity and step along it."""
        state["velocity"] = self.momentum * state["velocity"] + aggregated.vector
        return reference + self.server_lr * state["velocity"]


class FedProx(Strategy):
    """Clients minimise L_i(w) + μ/2 ‖w − w_server‖².

    Li et al. 2020, "Federated optimization in heterogeneous networks" (arXiv 1812.06127), equation 2.
    """

    def __init__(self, params: FedProxParams) -> None:
        super().__init__(params)
        self.mu = params.mu
        self._anchor: list[Tensor] = []

    def on_train_start(self, context: ClientContext) -> None:
        """Keep the broadcast weights."""
        self._anchor = context.tensors(context.request.vector)

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the gradient of the proximal term."""
        context.pull_towards(self._anchor, self.mu)


class FedNova(Strategy):
    """w ← w + η τ_eff Σ p_i Δ_i / a_i with τ_eff = Σ p_i a_i.

    a_i is the effective number of τ steps with momentum ρ, (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ); τ without momentum.
    Wang et al. 2020, "Tackling the objective inconsistency problem" (arXiv 2007.07481), section 4.
    """

    def __init__(self, params: BaseModel, momentum: float = 0.0) -> None:
        super().__init__(params)
        self.momentum = momentum

    def effective_steps(self, steps: int) -> float:
        """a_i."""
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def update_scale(self, update: ClientUpdate) -> float:
        """1 / a_i."""
        return 1 / self.effective_steps(update.steps) if update.steps > 0 else 0.0

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """Scale the mean normalised update by the mean effective number of steps."""
        steps = {
            group: aggregated.mean(group, lambda p: self.effective_steps(p.steps)) for group in schema.groups
        }
        return reference + self.server_lr * schema.expand(steps) * aggregated.vector
