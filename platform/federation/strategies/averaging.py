"""Strategies of the server: how it averages and steps, and when. Clients train plainly.

FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedNova; cyclic transfer and FedBuff, which have no simultaneous rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.federation.entries import AdaptiveParams, CyclicParams, FedAvgMParams, FedBuffParams
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.strategies.strategy import AggregatedUpdate, ServerState, Strategy
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.platform.federation.messages import ClientUpdate


class FedAvg(Strategy):
    """w ← w + η Σ n_i (w_i − w) / Σ n_i.

    McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data".
    """


class FedAvgM(Strategy):
    """v ← β v + Δ, w ← w + η v.

    Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution" (arXiv 1909.06335).
    """

    params: FedAvgMParams

    def init_state(self, schema: Schema) -> ServerState:
        """Velocity 0."""
        return {"velocity": np.zeros(schema.size)}

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """Update the velocity and step along it."""
        state["velocity"] = self.params.momentum * state["velocity"] + aggregated.vector
        return reference + self.server_lr * state["velocity"]


class Adaptive(Strategy):
    """m ← β₁ m + (1 − β₁) Δ, v as in the subclass, w ← w + η m / (√v + τ); no bias correction, m = 0 at first.

    Reddi et al. 2021, "Adaptive federated optimization" (arXiv 2003.00295), algorithm 2, which asks for v ≥ τ² at
    first; v is τ² here if the study does not say otherwise. From v = 0 the first step would be η (1 − β₁) / √(1 − β₂)
    in every coordinate, however small its update.
    """

    params: AdaptiveParams

    def init_state(self, schema: Schema) -> ServerState:
        """First moment 0, second moment τ²."""
        start = self.params.initial_second_moment
        second = self.params.tau**2 if start is None else start
        return {"first": np.zeros(schema.size), "second": np.full(schema.size, second)}

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """One step of the server's optimiser, with the aggregated update as negative gradient."""
        delta, beta1 = aggregated.vector.astype(np.float64), self.params.beta1
        state["first"] = beta1 * state["first"] + (1 - beta1) * delta
        state["second"] = self.moment(state["second"], delta * delta)
        return reference + self.server_lr * state["first"] / (np.sqrt(state["second"]) + self.params.tau)

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The new second moment."""
        raise NotImplementedError


class FedAdam(Adaptive):
    """v ← β₂ v + (1 − β₂) Δ²."""

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Exponential moving average."""
        return self.params.beta2 * v + (1 - self.params.beta2) * squared


class FedYogi(Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²)."""

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Changes by at most Δ², whatever the size of v."""
        return v - (1 - self.params.beta2) * np.sign(v - squared) * squared


class FedAdagrad(Adaptive):
    """v ← v + Δ²."""

    def moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Sum."""
        return v + squared


class FedNova(Strategy):
    """w ← w + η τ_eff Σ p_i Δ_i / a_i with τ_eff = Σ p_i a_i.

    a_i is the effective number of τ steps with momentum ρ, (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ); τ without momentum.
    Wang et al. 2020, "Tackling the objective inconsistency problem" (arXiv 2007.07481), section 4.
    """

    def effective_steps(self, steps: int) -> float:
        """a_i."""
        rho = self.local.momentum
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


class Cyclic(Strategy):
    """In a round every client starts from the weights that the previous client sent.

    Chang et al. 2018, "Distributed deep learning networks among institutions for medical imaging" (JAMIA 25:945).
    """

    def __init__(self, params: CyclicParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.shuffled = params.order == "shuffled"


class FedBuff(Strategy):
    """The server steps by the mean of every K updates, each times (1 + s)^−a if it is s steps old.

    Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation" (arXiv 2106.06639).
    """

    params: FedBuffParams

    def __init__(self, params: FedBuffParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.buffer, self.concurrency = params.buffer, params.concurrency

    def staleness(self, behind: int) -> float:
        """(1 + s)^−a."""
        return float((1 + behind) ** -self.params.staleness)
