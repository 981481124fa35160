"""Who takes part in a round, who is late, who drops out: functions of seeds and names, never of real time.

The virtual clock gives every client a slowness, drawn once, and a jitter for every request; the duration of a request
is proportional to its number of optimiser steps. The same clients are therefore late in every run of a federation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from equipoise.platform.federation.messages import client_number
from equipoise.platform.federation.params import ClockParams, Participation

#: Random streams, separate from those of local training: participants, visiting order, and those of the clock.
DRAW, VISITS = 0xD0A4, 0x7042
SPEED, JITTER, FAILURE = 0x59EE, 0x717E, 0xFA11


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
    if params.scheme == "poisson":
        return poisson(clients, params.fraction, seed=seed, round_=round_)
    rng = _rng(seed, round_, DRAW)
    if params.scheme == "size":
        rate = draw_rate(params, [sizes[client] for client in clients])
        chances = np.minimum(1.0, rate * np.array([sizes[client] for client in clients], float))
        return [clients[i] for i in sorted(systematic(chances, rng))]
    return [clients[i] for i in sorted(rng.choice(total, count, replace=False))]


def draw_rate(params: Participation, sizes: Sequence[int]) -> float:
    """Probability per patient with which clients are drawn, 1 for a client at most; 0 if all are drawn alike.

    Parameters
    ----------
    sizes
        Patients of the clients that could take part.
    """
    if params.scheme != "size" or not sizes:
        return 0.0
    left = math.ceil(params.fraction * len(sizes) - 1e-9)
    ordered = sorted(sizes, reverse=True)
    for at, size in enumerate(ordered):  # the largest take part in every round
        rate = left / sum(ordered[at:])
        if rate * size <= 1:
            return rate
        left -= 1
    return 1.0 / ordered[-1]


def systematic(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn with exactly these probabilities, their sum (a whole number) in number (Madow 1949)."""
    order = rng.permutation(len(chances))
    passed = np.round(np.cumsum(chances[order]), 9) - rng.random()
    ticks = np.floor(passed).astype(int)
    return order[np.diff(ticks, prepend=-1) > 0]


def poisson(clients: Sequence[str], rate: float, *, seed: int, round_: int) -> list[str]:
    """Draw every client independently with the same probability; the result may be empty."""
    draws = _rng(seed, round_, DRAW).random(len(clients))
    return [client for client, draw in zip(clients, draws, strict=True) if draw < rate]


def visiting_order(clients: Sequence[str], *, shuffled: bool, seed: int, round_: int) -> list[str]:
    """Order in which a sequential strategy visits the clients."""
    if not shuffled:
        return sorted(clients)
    return [sorted(clients)[i] for i in _rng(seed, round_, VISITS).permutation(len(clients))]


def sampling_plan(patients: int, size: int, epochs: int, steps: int | None) -> tuple[float, int]:
    """Share of a client's patients in a batch of ``size``, and number of steps of so many passes, or of ``steps``."""
    return min(size / patients, 1.0), epochs * math.ceil(patients / size) if steps is None else steps


class VirtualClock:
    """Durations in units of one step of a client of median speed.

    Parameters
    ----------
    params
        Settings.
    work
        Client → optimiser steps of a request.
    seed
        Of the federation.
    """

    def __init__(self, params: ClockParams, work: Mapping[str, int], seed: int) -> None:
        self.params = params
        self.work = dict(work)
        self.seed = seed
        median = statistics.median(self._expected(client) for client in work) if work else 0.0
        self.deadline = math.inf if params.deadline is None else params.deadline * median

    def duration(self, client: str, request: int) -> float:
        """How long a client takes to answer a request."""
        jitter = self.params.jitter_sd * self._normal(client, JITTER, request)
        return self._expected(client) * math.exp(jitter)

    def late(self, clients: Collection[str], request: int) -> set[str]:
        """Clients that do not answer before the deadline."""
        if self.params.deadline is None:
            return set()
        return {client for client in clients if self.duration(client, request) > self.deadline}

    def failing(self, clients: Collection[str], request: int) -> set[str]:
        """Clients that drop out."""
        if not self.params.failures:
            return set()
        return {c for c in clients if self._rng(c, FAILURE, request).random() < self.params.failures}

    def absent(self, clients: Sequence[str], request: int) -> dict[str, tuple[str, str]]:
        """Client → verdict and reason, of those that drop out or are late, in the given order."""
        late, failing = self.late(clients, request), self.failing(clients, request)
        reasons = {
            "failed": "dropped out (simulated)",
            "late": f"later than {self.deadline:.3g} steps",
        }
        verdicts = {client: "failed" if client in failing else "late" for client in clients}
        missing = [client for client in clients if client in failing or client in late]
        return {client: (verdicts[client], reasons[verdicts[client]]) for client in missing}

    def _expected(self, client: str) -> float:
        return self.work[client] * math.exp(self.params.speed_sd * self._normal(client, SPEED, 0))

    def _normal(self, client: str, stream: int, request: int) -> float:
        return float(self._rng(client, stream, request).standard_normal())

    def _rng(self, client: str, stream: int, request: int) -> np.random.Generator:
        return _rng(self.seed, client_number(client), stream, request)


def _rng(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(list(entropy)))
