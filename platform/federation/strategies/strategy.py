"""What a strategy can decide, and FedAvg's decision on all of it.

A strategy has two halves that meet only through broadcasts and updates. The client's half may correct gradients,
keep vectors at the client and send vectors along. The server's half turns the combined update into new weights.
Everything it keeps is named vectors of the model's size, so that a checkpoint is a file of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.platform.federation.local import LocalRun
    from equipoise.platform.federation.update import ClientUpdate

#: Named vectors of the server's half, float64 ``[P]``.
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Party:
    """An accepted update without its vectors: who, how much it counted in each group, how many steps it took."""

    client: str
    weights: Mapping[str, float]
    steps: int


@dataclass(frozen=True)
class Combined:
    """What a round brought.

    Parameters
    ----------
    vector
        ``[P]`` float32, the updates as the rule combined them; 0 where nobody trained.
    arrays
        Name → ``[P]`` float64, plain sum of what clients sent along.
    parties
        Whose updates they are, by name.
    population
        Group → number of clients in the federation that can train it.
    """

    vector: np.ndarray
    parties: tuple[Party, ...]
    population: Mapping[str, int]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def mean(self, group: str, value: Callable[[Party], float]) -> float:
        """Weighted mean of a number over the parties that trained a group; 0 if there are none."""
        weight = math.fsum(party.weights.get(group, 0.0) for party in self.parties)
        total = math.fsum(party.weights.get(group, 0.0) * value(party) for party in self.parties)
        return total / weight if weight else 0.0

    def share(self, group: str) -> float:
        """Clients that trained a group in this round, as a part of all that can."""
        present = sum(1 for party in self.parties if party.weights.get(group, 0.0) > 0)
        return present / self.population[group] if self.population.get(group) else 0.0


class Strategy:
    """FedAvg with a step length at the server; the base of all others.

    Attributes
    ----------
    sequential
        Clients train one after the other, each from what the last one left.
    asynchronous
        The server does not wait for a round.
    uniform
        Every client must count alike.
    sends
        Names of the vectors that clients send along.
    second
        What trains the client's own model beside the global one, or None.
    personal_steps
        Local steps of every client after the last round.
    """

    sequential = False
    asynchronous = False
    uniform = False
    sends: frozenset[str] = frozenset()
    second: Strategy | None = None
    personal_steps = 0

    def __init__(self, params: BaseModel) -> None:
        self.server_lr = float(getattr(params, "server_lr", 1.0))

    # the server's half

    def start(self, schema: Schema) -> State:
        """Vectors before the first round."""
        return {}

    def broadcast(self, state: State) -> dict[str, np.ndarray]:
        """Vectors that clients are sent beside the weights, float32 ``[P]``."""
        return {}

    def factor(self, update: ClientUpdate) -> float:
        """What an update is multiplied with before it is combined."""
        return 1.0

    def step(self, schema: Schema, reference: np.ndarray, combined: Combined, state: State) -> np.ndarray:
        """New weights ``[P]``; ``state`` is changed in place.

        Segments that nobody trained in the round are put back by the engine, in the weights and in the state.
        """
        if self.server_lr == 1:
            return reference + combined.vector
        return reference + self.server_lr * combined.vector.astype(np.float64)

    # the client's half

    def kept(self, schema: Schema) -> np.ndarray | None:
        """``[P]`` bool, what is trained at a client and never leaves it; None if nothing is."""
        return None

    def prepare(self, run: LocalRun) -> None:
        """Before the first step."""

    def correct(self, run: LocalRun) -> None:
        """Between a gradient and the optimiser's step."""

    def finish(self, run: LocalRun, delta: np.ndarray) -> dict[str, np.ndarray]:
        """After the last step: vectors to send along; ``delta`` is ``[P]``, 0 where nobody here trains."""
        return {}

    def personal(self, schema: Schema, vector: np.ndarray, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        """The weights a client predicts with, from the global ones and what it keeps."""
        return vector
