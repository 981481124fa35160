"""Virtual time: how long clients take, drawn from seeds. Real time does not decide which clients are late.

The duration of a request is proportional to its number of optimiser steps; the slowness of a client is drawn once,
and a jitter for every request. The same clients are therefore late in every run of a federation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping

import numpy as np

from equipoise.platform.federation.messages import client_number
from equipoise.platform.federation.params import ClockParams

SPEED, JITTER, FAILURE = 0x59EE, 0x717E, 0xFA11


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
        return self._expected(client) * math.exp(
            self.params.jitter_sd * self._normal(client, JITTER, request)
        )

    def late(self, clients: Collection[str], request: int) -> set[str]:
        """Clients that do not answer before the deadline."""
        return {client for client in clients if self.duration(client, request) > self.deadline}

    def failing(self, clients: Collection[str], request: int) -> set[str]:
        """Clients that drop out."""
        if not self.params.failures:
            return set()
        return {c for c in clients if self._rng(c, FAILURE, request).random() < self.params.failures}

    def _expected(self, client: str) -> float:
        return self.work[client] * math.exp(self.params.speed_sd * self._normal(client, SPEED, 0))

    def _normal(self, client: str, stream: int, request: int) -> float:
        return float(self._rng(client, stream, request).standard_normal())

    def _rng(self, client: str, stream: int, request: int) -> np.random.Generator:
        return np.random.default_rng(
            np.random.SeedSequence([self.seed, client_number(client), stream, request])
        )
