"""Asynchronous rounds: clients start and finish on a virtual clock, and the server steps when its buffer is full.

Every busy client has a request of its own, made when it started. Its answer arrives at a time of the virtual clock,
whatever the real order in which workers finish. The clock is drawn from seeds, so that an interrupted federation
continues with the same clients busy with the same requests.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.backend import Backend
from equipoise.platform.federation.messages import request_id_of
from equipoise.platform.federation.rounds import RequestFactory
from equipoise.platform.federation.server.server import RoundState, Server
from equipoise.platform.federation.simulation.clock import VirtualClock
from equipoise.platform.federation.strategies.asynchronous import FedBuff

NEXT_CLIENT = 0x4E87


@dataclass(frozen=True, order=True)
class InFlight:
    """A busy client: when it answers, its name, the number of its request, and the server's steps at its start."""

    due: float
    client: str
    request: int
    version: int


@dataclass
class AsyncSchedule:
    """Virtual time and the busy clients; part of the checkpoint.

    Parameters
    ----------
    now
        Virtual time.
    requests
        Number of requests made so far.
    in_flight
        Busy clients, as a heap.
    vectors
        Version → the weights that busy clients started from.
    """

    now: float = 0.0
    requests: int = 0
    in_flight: list[InFlight] = field(default_factory=list)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Plain data; the vectors are stored separately."""
        rows = [[f.due, f.client, f.request, f.version] for f in sorted(self.in_flight)]
        return {"now": self.now, "orders": self.requests, "flights": rows}

    @classmethod
    def from_state(cls, state: dict[str, Any], vectors: dict[int, np.ndarray]) -> AsyncSchedule:
        """The inverse."""
        return cls(
            float(state["now"]), int(state["orders"]), [InFlight(*row) for row in state["flights"]], vectors
        )


def resume_asynchronous(
    schedule: AsyncSchedule, server: Server, backend: Backend, requests: RequestFactory
) -> None:
    """Send the requests of busy clients again."""
    for item in sorted(schedule.in_flight):
        _send(schedule, item, server, backend, requests)


def run_asynchronous(
    schedule: AsyncSchedule,
    server: Server,
    backend: Backend,
    clock: VirtualClock,
    requests: RequestFactory,
    version: int,
) -> dict[str, float]:
    """Advance virtual time until the buffer is full, and take a step."""
    strategy = server.strategy
    assert isinstance(strategy, FedBuff)
    round_state = server.open_round(server.eligible)
    asked = 0
    while len(round_state.contributions) < strategy.buffer:
        _fill(schedule, round_state, server, backend, clock, requests, version)
        if not schedule.in_flight:
            break
        item = heapq.heappop(schedule.in_flight)
        schedule.now, asked = item.due, asked + 1
        reply = backend.receive([item.client])
        if item.client in clock.failing([item.client], item.request):
            server.record(round_state, version, item.client, "failed", reason="dropped out (simulated)")
        else:
            late = strategy.staleness(version - item.version)
            server.receive(round_state, reply, item.request, version, late)
        backend.commit(reply)
    if len(round_state.contributions) < strategy.buffer:
        raise FederationError(
            f"a buffer of {strategy.buffer} updates cannot be filled by {len(server.eligible)} clients",
            fix="lower federation.strategy_params.buffer",
        )
    row = server.close_round(round_state, version)
    used = {item.version for item in schedule.in_flight}
    schedule.vectors = {v: vector for v, vector in schedule.vectors.items() if v in used}
    return row | {"virtual_time": schedule.now, "asked": float(asked)}


def _fill(
    schedule: AsyncSchedule,
    round_state: RoundState,
    server: Server,
    backend: Backend,
    clock: VirtualClock,
    requests: RequestFactory,
    version: int,
) -> None:
    """Send requests to idle clients; a client whose update is in the buffer waits until after the step."""
    strategy = server.strategy
    assert isinstance(strategy, FedBuff)
    concurrency = strategy.concurrency or len(server.manifests)
    while len(schedule.in_flight) < concurrency:
        busy = {item.client for item in schedule.in_flight} | set(round_state.verdicts)
        idle = [client for client in server.eligible if client not in busy]
        if not idle:
            return
        rng = np.random.default_rng(np.random.SeedSequence([requests.seed, schedule.requests, NEXT_CLIENT]))
        client = idle[int(rng.integers(len(idle)))]
        due = schedule.now + clock.duration(client, schedule.requests)
        item = InFlight(due, client, schedule.requests, version)
        schedule.vectors.setdefault(version, server.vector)
        schedule.requests += 1
        heapq.heappush(schedule.in_flight, item)
        _send(schedule, item, server, backend, requests)


def _send(
    schedule: AsyncSchedule, item: InFlight, server: Server, backend: Backend, requests: RequestFactory
) -> None:
    vector = schedule.vectors[item.version]
    request = requests.fit(
        server, item.request, requests.learning_rate(item.version), [item.client], vector=vector
    )
    backend.send(
        backend.publish(request), item.client, request_id_of(requests.seed, item.request, item.client)
    )
