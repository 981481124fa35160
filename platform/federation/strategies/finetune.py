"""Fine-tuning: FedAvg, then every client goes on for a few steps by itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from equipoise.platform.federation.entries import FineTuneParams
from equipoise.platform.federation.strategies.ditto import MODEL
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema


class FineTune(Strategy):
    """w_i = what ``steps`` local steps make of the last w; it never leaves the client."""

    def __init__(self, params: FineTuneParams) -> None:
        super().__init__(params)
        self.personal_steps = params.steps

    def personal(self, schema: Schema, vector: np.ndarray, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        """The fine-tuned model, once there is one."""
        return kept.get(MODEL, vector)
