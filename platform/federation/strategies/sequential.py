"""Cyclic transfer: Chang et al. 2018, "Distributed deep learning networks among institutions" (JAMIA 25:945)."""

from equipoise.platform.federation.entries import CyclicParams
from equipoise.platform.federation.strategies.strategy import Strategy


class Cyclic(Strategy):
    """In a round every client starts from the weights that the previous client sent."""

    sequential = True

    def __init__(self, params: CyclicParams) -> None:
        super().__init__(params)
        self.shuffled = params.order == "shuffled"
