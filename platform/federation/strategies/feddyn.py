"""FedDyn: Acar et al. 2021, "Federated learning based on dynamic regularization" (arXiv 2111.04263), algorithm 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.federation.entries import FedDynParams
from equipoise.platform.federation.strategies.strategy import Combined, State, Strategy
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.platform.federation.local import LocalRun

DRIFT, OWN = "drift", "gradient"


class FedDyn(Strategy):
    """Clients minimise L_i(w) − ⟨g_i, w⟩ + α/2 ‖w − w_server‖² and then g_i ← g_i − α (w_i − w_server).

    The server keeps h ← h − α Σ_S (w_i − w) / N and takes w ← mean_S w_i − h / α. Clients count alike.
    """

    uniform = True

    def __init__(self, params: FedDynParams) -> None:
        super().__init__(params)
        self.alpha = params.alpha
        self._anchor: list[Tensor] = []
        self._own: list[Tensor] = []

    def start(self, schema: Schema) -> State:
        """No drift."""
        return {DRIFT: np.zeros(schema.size)}

    def step(self, schema: Schema, reference: np.ndarray, combined: Combined, state: State) -> np.ndarray:
        """The mean of the clients, less their drift so far."""
        delta = combined.vector.astype(np.float64)
        share = schema.expand({group: combined.share(group) for group in schema.groups})
        state[DRIFT] = state[DRIFT] - self.alpha * share * delta
        return reference + delta - state[DRIFT] / self.alpha

    def prepare(self, run: LocalRun) -> None:
        """Remember the broadcast weights and the client's own gradient."""
        self._anchor = run.tensors(run.order.vector)
        self._own = run.tensors(run.state.get(OWN, np.zeros(run.schema.size, np.float32)))

    def correct(self, run: LocalRun) -> None:
        """Add the gradient of the regulariser."""
        run.pull_towards(self._anchor, self.alpha)
        run.add_to_gradients(self._own, -1.0)

    def finish(self, run: LocalRun, delta: np.ndarray) -> dict[str, np.ndarray]:
        """The client's gradient at its new weights."""
        own = run.state.get(OWN, np.zeros(run.schema.size, np.float32))
        run.state[OWN] = own - np.float32(self.alpha) * np.where(run.learned, delta, np.float32(0))
        return {}
