"""Ditto: Li et al. 2021, "Ditto: fair and robust federated learning through personalization" (arXiv 2012.04221)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from equipoise.platform.federation.entries import DittoParams, FedProxParams
from equipoise.platform.federation.strategies.fedprox import FedProx
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema

#: The client's own model.
MODEL = "model"


class Ditto(Strategy):
    """FedAvg, and beside it a model v_i per client that minimises L_i(v) + λ/2 ‖v − w_server‖²; it never leaves."""

    def __init__(self, params: DittoParams) -> None:
        super().__init__(params)
        self.second = FedProx(FedProxParams(mu=params.lam))

    def personal(self, schema: Schema, vector: np.ndarray, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        """The client's own model, once it has one."""
        return kept.get(MODEL, vector)
