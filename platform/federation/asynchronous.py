"""Steps of a server that does not wait: clients come and go on a virtual clock, a full buffer makes a step.

Every client at work has an order of its own, written when it began; its answer counts when the virtual clock says
so, in whatever real order workers finish. The clock is drawn from seeds, so a federation that is interrupted goes
on with the same clients at work on the same orders.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.backend import Backend
from equipoise.platform.federation.clock import Clock
from equipoise.platform.federation.order import nonce_of
from equipoise.platform.federation.rounds import Orders
from equipoise.platform.federation.server import Server, Tally
from equipoise.platform.federation.strategies.fedbuff import FedBuff

NEXT = 0x4E87


@dataclass(frozen=True, order=True)
class Flight:
    """A client at work: when it answers, who, which order, and how many steps the server had taken."""

    due: float
    client: str
    order: int
    version: int


@dataclass
class Agenda:
    """Virtual time and who is at work; goes into the checkpoint.

    Parameters
    ----------
    now
        Virtual time.
    orders
        Orders written so far.
    flights
        Clients at work, a heap.
    vectors
        Version → the weights that clients at work began from.
    """

    now: float = 0.0
    orders: int = 0
    flights: list[Flight] = field(default_factory=list)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Plain data; the vectors go beside it."""
        rows = [[f.due, f.client, f.order, f.version] for f in sorted(self.flights)]
        return {"now": self.now, "orders": self.orders, "flights": rows}

    @classmethod
    def from_state(cls, state: dict[str, Any], vectors: dict[int, np.ndarray]) -> Agenda:
        """The inverse."""
        return cls(
            float(state["now"]), int(state["orders"]), [Flight(*row) for row in state["flights"]], vectors
        )


def resume(agenda: Agenda, server: Server, backend: Backend, orders: Orders) -> None:
    """Give clients at work their orders again."""
    for flight in sorted(agenda.flights):
        _send(agenda, flight, server, backend, orders)


def step(
    agenda: Agenda, server: Server, backend: Backend, clock: Clock, orders: Orders, version: int
) -> dict[str, float]:
    """Let virtual time go on until the buffer is full, and step."""
    strategy = server.strategy
    assert isinstance(strategy, FedBuff)
    tally = server.open(server.learners)
    asked = 0
    while len(tally.parties) < strategy.buffer:
        _fill(agenda, tally, server, backend, clock, orders, version)
        if not agenda.flights:
            break
        flight = heapq.heappop(agenda.flights)
        agenda.now, asked = flight.due, asked + 1
        reply = backend.wait([flight.client])
        if flight.client in clock.failing([flight.client], flight.order):
            server.note(tally, version, flight.client, "failed", reason="dropped out (rehearsed)")
        else:
            late = strategy.staleness(version - flight.version)
            server.take(tally, reply, flight.order, version, late)
        backend.commit(reply)
    if len(tally.parties) < strategy.buffer:
        raise FederationError(
            f"a buffer of {strategy.buffer} updates cannot be filled: {len(server.learners)} clients are left",
            fix="lower federation.strategy_params.buffer",
        )
    row = server.close(tally, version)
    used = {flight.version for flight in agenda.flights}
    agenda.vectors = {v: vector for v, vector in agenda.vectors.items() if v in used}
    return row | {"virtual_time": agenda.now, "asked": float(asked)}


def _fill(
    agenda: Agenda, tally: Tally, server: Server, backend: Backend, clock: Clock, orders: Orders, version: int
) -> None:
    """Put idle clients to work; one whose answer waits in the buffer has its turn after the step."""
    strategy = server.strategy
    assert isinstance(strategy, FedBuff)
    most = strategy.concurrency or len(server.manifests)
    while len(agenda.flights) < most:
        busy = {flight.client for flight in agenda.flights} | set(tally.verdicts)
        idle = [client for client in server.learners if client not in busy]
        if not idle:
            return
        rng = np.random.default_rng(np.random.SeedSequence([orders.seed, agenda.orders, NEXT]))
        client = idle[int(rng.integers(len(idle)))]
        due = agenda.now + clock.duration(client, agenda.orders)
        flight = Flight(due, client, agenda.orders, version)
        agenda.vectors.setdefault(version, server.vector)
        agenda.orders += 1
        heapq.heappush(agenda.flights, flight)
        _send(agenda, flight, server, backend, orders)


def _send(agenda: Agenda, flight: Flight, server: Server, backend: Backend, orders: Orders) -> None:
    vector = agenda.vectors[flight.version]
    order = orders.fit(server, flight.order, orders.rate(flight.version), [flight.client], vector=vector)
    backend.start(backend.publish(order), flight.client, nonce_of(orders.seed, flight.order, flight.client))
