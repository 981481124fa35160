"""Virtual time: how long a client takes, drawn from seeds. No real clock decides who is late.

A client's work is its number of optimiser steps; its slowness is drawn once, and jitter for every order. So the
same clients are late wherever and however often a federation runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping

import numpy as np

from equipoise.platform.federation.order import client_number
from equipoise.platform.federation.params import ClockParams

SPEED, JITTER, FAILURE = 0x59EE, 0x717E, 0xFA11


class Clock:
    """Durations in units of one step of a client of usual speed.

    Parameters
    ----------
    params
        Settings.
    work
        Client → optimiser steps of an order.
    seed
        Of the federation.
    """

    def __init__(self, params: ClockParams, work: Mapping[str, int], seed: int) -> None:
        self.params = params
        self.work = dict(work)
        self.seed = seed
        usual = statistics.median(self._expected(client) for client in work) if work else 0.0
        self.deadline = math.inf if params.deadline is None else params.deadline * usual

    def duration(self, client: str, order: int) -> float:
        """How long a client takes for its answer to an order."""
        return self._expected(client) * math.exp(self.params.jitter_sd * self._normal(client, JITTER, order))

    def late(self, clients: Collection[str], order: int) -> set[str]:
        """Who does not answer before the deadline."""
        return {client for client in clients if self.duration(client, order) > self.deadline}

    def failing(self, clients: Collection[str], order: int) -> set[str]:
        """Who drops out."""
        if not self.params.failures:
            return set()
        return {c for c in clients if self._rng(c, FAILURE, order).random() < self.params.failures}

    def _expected(self, client: str) -> float:
        return self.work[client] * math.exp(self.params.speed_sd * self._normal(client, SPEED, 0))

    def _normal(self, client: str, stream: int, order: int) -> float:
        return float(self._rng(client, stream, order).standard_normal())

    def _rng(self, client: str, stream: int, order: int) -> np.random.Generator:
        return np.random.default_rng(
            np.random.SeedSequence([self.seed, client_number(client), stream, order])
        )
