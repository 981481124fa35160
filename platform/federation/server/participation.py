"""Which clients take part in a round: a function of (seed, round) and of the clients that are available."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from equipoise.platform.federation.params import Participation

#: Random streams for participants and for their order, separate from those of local training.
DRAW, VISITS = 0xD0A4, 0x7042


def participants(
    params: Participation, clients: Sequence[str], sizes: Mapping[str, int], *, seed: int, round_: int
) -> list[str]:
    """The participants of a round, sorted by name.

    Parameters
    ----------
    clients
        Clients that could take part, sorted by name.
    sizes
        Client → patients, for ``size``.
    """
    count, total = math.ceil(params.fraction * len(clients) - 1e-9), len(clients)
    if params.scheme == "all" or not clients:
        return list(clients)
    if params.scheme == "round_robin":
        return sorted({clients[(round_ * count + i) % total] for i in range(count)})
    rng = np.random.default_rng(np.random.SeedSequence([seed, round_, DRAW]))
    if params.scheme == "poisson":
        return poisson(clients, params.fraction, rng)
    weights = np.array([sizes[client] if params.scheme == "size" else 1 for client in clients], float)
    chosen = rng.choice(total, count, replace=False, p=weights / weights.sum())
    return [clients[i] for i in sorted(chosen)]


def poisson(clients: Sequence[str], rate: float, rng: np.random.Generator) -> list[str]:
    """Draw every client independently with the same probability; the result may be empty."""
    return [client for client, draw in zip(clients, rng.random(len(clients)), strict=True) if draw < rate]


def visiting_order(clients: Sequence[str], *, shuffled: bool, seed: int, round_: int) -> list[str]:
    """Order in which a sequential strategy visits the clients."""
    if not shuffled:
        return sorted(clients)
    rng = np.random.default_rng(np.random.SeedSequence([seed, round_, VISITS]))
    return [sorted(clients)[i] for i in rng.permutation(len(clients))]
