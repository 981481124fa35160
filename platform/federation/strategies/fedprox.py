"""FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks" (arXiv 1812.06127), equation 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from equipoise.platform.federation.entries import FedProxParams
from equipoise.platform.federation.strategies.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.platform.federation.local import LocalRun


class FedProx(Strategy):
    """Clients minimise L_i(w) + μ/2 ‖w − w_server‖²."""

    def __init__(self, params: FedProxParams) -> None:
        super().__init__(params)
        self.mu = params.mu
        self._anchor: list[Tensor] = []

    def prepare(self, run: LocalRun) -> None:
        """Remember the broadcast weights."""
        self._anchor = run.tensors(run.order.vector)

    def correct(self, run: LocalRun) -> None:
        """Add the gradient of the proximal term."""
        run.pull_towards(self._anchor, self.mu)
