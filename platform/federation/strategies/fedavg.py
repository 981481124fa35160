"""FedAvg: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data"."""

from equipoise.platform.federation.strategies.strategy import Strategy


class FedAvg(Strategy):
    """w ← w + η Σ n_i (w_i − w) / Σ n_i."""
