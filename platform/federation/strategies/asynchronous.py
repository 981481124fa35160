"""FedBuff: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation" (arXiv 2106.06639)."""

from __future__ import annotations

from equipoise.platform.federation.entries import FedBuffParams
from equipoise.platform.federation.strategies.strategy import Strategy


class FedBuff(Strategy):
    """The server steps by the mean of every K updates, each times (1 + s)^−a if it is s steps old."""

    asynchronous = True

    def __init__(self, params: FedBuffParams) -> None:
        super().__init__(params)
        self.buffer, self.concurrency, self.power = params.buffer, params.concurrency, params.staleness

    def staleness(self, behind: int) -> float:
        """Weight of an update that started the given number of server steps ago."""
        return float((1 + behind) ** -self.power)
