"""Adaptive servers: Reddi et al. 2021, "Adaptive federated optimization" (arXiv 2003.00295), algorithm 2."""

from __future__ import annotations

import numpy as np

from equipoise.platform.federation.entries import AdaptiveParams
from equipoise.platform.federation.strategies.strategy import AggregatedUpdate, ServerState, Strategy
from equipoise.platform.federation.vector import Schema


class Adaptive(Strategy):
    """m ← β₁ m + (1 − β₁) Δ, v as in the subclass, w ← w + η m / (√v + τ); no bias correction, m = v = 0 at first."""

    def __init__(self, params: AdaptiveParams) -> None:
        super().__init__(params)
        self.beta1, self.beta2, self.tau = params.beta1, params.beta2, params.tau

    def init_state(self, schema: Schema) -> ServerState:
        """Moments 0."""
        return {"first": np.zeros(schema.size), "second": np.zeros(schema.size)}

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """One step of the server's optimiser, with the aggregated update as negative gradient."""
        delta = aggregated.vector.astype(np.float64)
        state["first"] = self.beta1 * state["first"] + (1 - self.beta1) * delta
        state["second"] = self.moment(state["second"], delta * delta)
        return reference + self.server_lr * state["first"] / (np.sqrt(state["second"]) + self.tau)

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The new second moment."""
        raise NotImplementedError


class FedAdam(Adaptive):
    """v ← β₂ v + (1 − β₂) Δ²."""

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Exponential moving average."""
        return self.beta2 * v + (1 - self.beta2) * squared


class FedYogi(Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²)."""

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Changes by at most Δ², whatever the size of v."""
        return v - (1 - self.beta2) * np.sign(v - squared) * squared


class FedAdagrad(Adaptive):
    """v ← v + Δ²."""

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Sum."""
        return v + squared
