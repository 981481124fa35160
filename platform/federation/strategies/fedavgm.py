"""FedAvgM: Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution" (arXiv 1909.06335)."""

from __future__ import annotations

import numpy as np

from equipoise.platform.federation.entries import FedAvgMParams
from equipoise.platform.federation.strategies.strategy import Combined, State, Strategy
from equipoise.platform.federation.vector import Schema


class FedAvgM(Strategy):
    """v ← β v + Δ, w ← w + η v."""

    def __init__(self, params: FedAvgMParams) -> None:
        super().__init__(params)
        self.momentum = params.momentum

    def start(self, schema: Schema) -> State:
        """No velocity."""
        return {"velocity": np.zeros(schema.size)}

    def step(self, schema: Schema, reference: np.ndarray, combined: Combined, state: State) -> np.ndarray:
        """Go on in the direction of earlier rounds."""
        state["velocity"] = self.momentum * state["velocity"] + combined.vector
        return reference + self.server_lr * state["velocity"]
