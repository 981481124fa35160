"""SCAFFOLD: Karimireddy et al. 2020, "Stochastic controlled averaging" (arXiv 1910.06378), option II."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.federation.entries import ScaffoldParams
from equipoise.platform.federation.strategies.strategy import Combined, State, Strategy
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.platform.federation.local import LocalRun

CONTROL, CHANGE, LAST = "control", "control_change", "last"


class Scaffold(Strategy):
    """Control variates c (server) and c_i (client) correct every local gradient by c − c_i.

    After K steps of size η from w to w_i: c_i⁺ = c_i − c + (w − w_i) / (K η). The server takes
    w ← w + η_s Δ and c ← c + Σ_S (c_i⁺ − c_i) / N.

    The ``flamby`` variant is the one behind FLamby's published figures: no control at the server, gradients
    are corrected by −c_i, and at the *start* of a round c_i ← c_i + (w − w_i) / (K η) with the w_i of the client's
    last round, 0 in its first.
    """

    def __init__(self, params: ScaffoldParams) -> None:
        super().__init__(params)
        self.paper = params.variant == "paper"
        self.sends = frozenset({CHANGE} if self.paper else ())
        self._correction: list[Tensor] = []

    def start(self, schema: Schema) -> State:
        """No control."""
        return {CONTROL: np.zeros(schema.size)} if self.paper else {}

    def broadcast(self, state: State) -> dict[str, np.ndarray]:
        """The server's control."""
        return {name: vector.astype(np.float32) for name, vector in state.items()}

    def step(self, schema: Schema, reference: np.ndarray, combined: Combined, state: State) -> np.ndarray:
        """Average weights; the control moves by what clients changed, over all clients that could."""
        if self.paper:
            clients = schema.expand(combined.population, 1.0)
            state[CONTROL] = state[CONTROL] + combined.arrays[CHANGE] / np.maximum(clients, 1.0)
        return super().step(schema, reference, combined, state)

    def prepare(self, run: LocalRun) -> None:
        """Work out the correction of this round."""
        own = run.state.get(CONTROL, np.zeros(run.schema.size, np.float32))
        if self.paper:
            self._correction = run.tensors(run.order.arrays[CONTROL] - own)
            return
        if LAST in run.state:
            drift = run.only_trained(run.order.vector - run.state[LAST])
            own = own + drift / np.float32(run.state["last_steps"][0] * run.order.lr)
        run.state[CONTROL] = own
        self._correction = run.tensors(-own)

    def correct(self, run: LocalRun) -> None:
        """Add the correction."""
        run.add_to_gradients(self._correction)

    def finish(self, run: LocalRun, delta: np.ndarray) -> dict[str, np.ndarray]:
        """The client's new control, and how it changed."""
        if not self.paper:
            run.state[LAST] = run.order.vector + delta
            run.state["last_steps"] = np.array([run.steps], np.float32)
            return {}
        own = run.state.get(CONTROL, np.zeros(run.schema.size, np.float32))
        change = -run.order.arrays[CONTROL] - delta / np.float32(run.steps * run.order.lr)
        change = run.only_trained(np.where(run.learned, change, np.float32(0)))
        run.state[CONTROL] = own + change
        return {CHANGE: change}
