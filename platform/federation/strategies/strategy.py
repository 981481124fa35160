"""The interface of strategies, with FedAvg as its default.

A strategy has a server half and a client half, which communicate only through requests and updates. The client half
may correct gradients, keep vectors at the client and send further vectors. The server half turns the aggregated
update into new weights. All state is named vectors of the model's size, so that a checkpoint is a file of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.platform.federation.clients.local_training import ClientContext
    from equipoise.platform.federation.messages import ClientUpdate

#: Named vectors of the server half, float64 ``[P]``.
ServerState = dict[str, np.ndarray]
#: Names in a client's state: its personal model, and its part of the model in the order of the vector.
PERSONAL_MODEL, PERSONAL_PART = "model", "own"


@dataclass(frozen=True)
class Contribution:
    """An accepted update without its vectors: client, weight in each group, number of steps."""

    client: str
    weights: Mapping[str, float]
    steps: int


@dataclass(frozen=True)
class AggregatedUpdate:
    """The aggregated update of a round.

    Parameters
    ----------
    vector
        ``[P]`` float32, result of the server aggregation; 0 where no client trained.
    arrays
        Name → ``[P]`` float64, weighted mean of the further vectors over all clients that can train a group; those of
        clients that took no part count as 0.
    contributions
        The accepted updates, sorted by client.
    population
        Group → number of clients in the federation that can train it.
    expected_share
        Fraction of the clients that take part on average, where who did must not change the step; else None.
    """

    vector: np.ndarray
    contributions: tuple[Contribution, ...]
    population: Mapping[str, int]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    expected_share: float | None = None

    def mean(self, group: str, value: Callable[[Contribution], float]) -> float:
        """Weighted mean of a number over the updates that trained a group; 0 if there are none."""
        weight = math.fsum(contribution.weights.get(group, 0.0) for contribution in self.contributions)
        total = math.fsum(
            contribution.weights.get(group, 0.0) * value(contribution) for contribution in self.contributions
        )
        return total / weight if weight else 0.0

    def share(self, group: str) -> float:
        """Fraction of the clients able to train a group that trained it in this round, or is expected to."""
        if self.expected_share is not None:
            return self.expected_share
        present = sum(1 for contribution in self.contributions if contribution.weights.get(group, 0.0) > 0)
        return present / self.population[group] if self.population.get(group) else 0.0


class Strategy:
    """FedAvg with a step size at the server; the base class of all strategies.

    Whether rounds are simultaneous, sequential or asynchronous is said by the strategy's entry
    (:class:`~equipoise.platform.federation.entries.StrategyParams`).

    Parameters
    ----------
    params
        Parameters of the strategy's entry.
    local
        What clients do in a round, for strategies that depend on it.

    Attributes
    ----------
    uniform
        All clients must count equally.
    extra_arrays
        Names of the further vectors that clients send.
    personal_strategy
        Trains a personal model of the client beside the global one, or None.
    personal_steps
        Number of local steps of every client after the last round.
    shuffled
        Sequential strategies: whether the visiting order is drawn for every round, or is that of the names.
    buffer, concurrency
        Asynchronous strategies: updates per step of the server, and clients that train at the same time (None: all).
    """

    uniform = False
    extra_arrays: frozenset[str] = frozenset()
    personal_strategy: Strategy | None = None
    personal_steps = 0
    shuffled = False
    buffer = 1
    concurrency: int | None = None

    def __init__(self, params: Any, local: LocalParams | None = None) -> None:
        self.params, self.local = params, local or LocalParams()
        self.server_lr = float(getattr(params, "server_lr", 1.0))

    # the server half

    def init_state(self, schema: Schema) -> ServerState:
        """Vectors before the first round."""
        return {}

    def broadcast(self, state: ServerState) -> dict[str, np.ndarray]:
        """Vectors sent to clients with the weights, float32 ``[P]``."""
        return {}

    def update_scale(self, update: ClientUpdate) -> float:
        """Factor of an update before it is aggregated."""
        return 1.0

    def staleness(self, behind: int) -> float:
        """Factor of an update that started the given number of server steps ago (asynchronous strategies)."""
        return 1.0

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """New weights ``[P]``; ``state`` is changed in place.

        The server restores segments that no client trained in the round, in the weights and in the state.
        """
        if self.server_lr == 1:
            return reference + aggregated.vector
        return reference + self.server_lr * aggregated.vector.astype(np.float64)

    # the client half

    def personal_mask(self, schema: Schema) -> np.ndarray | None:
        """``[P]`` bool, parameters that are trained at a client and never leave it; None if there are none."""
        return None

    def on_train_start(self, context: ClientContext) -> None:
        """Called before the first step."""

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Called between the gradient and the optimiser's step."""

    def on_train_end(self, context: ClientContext, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Called after the last step; returns further vectors to send. ``delta`` is ``[P]``, 0 if not trained."""
        return {}

    def personal_weights(
        self, schema: Schema, vector: np.ndarray, state: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The weights a client predicts with: its personal model if it has one, else the global weights."""
        return state.get(PERSONAL_MODEL, vector)
