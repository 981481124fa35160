"""One round: choose clients, send requests, train, receive updates, step. In parallel, or one client after another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from equipoise.platform.federation.backend import Backend
from equipoise.platform.federation.messages import TrainRequest, request_id_of
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.server.participation import DRAW, participants, poisson, visiting_order
from equipoise.platform.federation.server.server import Server
from equipoise.platform.federation.simulation.clock import VirtualClock


@dataclass(frozen=True)
class RequestFactory:
    """Makes the requests of a federation.

    Parameters
    ----------
    params
        Settings.
    lr
        Learning rate of the first round.
    seed
        Of the federation.
    """

    params: FederationParams
    lr: float
    seed: int

    def learning_rate(self, round_: int) -> float:
        """Learning rate of a round."""
        if self.params.local.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * round_ / self.params.rounds))

    def fit(
        self, server: Server, round_: int, lr: float, clients: list[str], vector: np.ndarray | None = None
    ) -> TrainRequest:
        """Train from the current weights of the server, or from the given ones."""
        epochs, steps = self.params.local.length
        return TrainRequest(
            round=round_,
            kind="fit",
            seed=self.seed,
            lr=lr,
            epochs=epochs,
            steps=steps,
            vector=server.vector if vector is None else vector,
            arrays=server.strategy.broadcast(server.state),
            privacy=server.privacy.open_round(round_, clients),
        )

    def personalise(self, server: Server) -> TrainRequest:
        """Train a personal model from the final weights."""
        last = self.params.rounds - 1
        steps = server.strategy.personal_steps
        return TrainRequest(
            last + 1, "personalise", self.seed, self.learning_rate(last), 1, steps, server.vector
        )


def choose_clients(params: FederationParams, server: Server, seed: int, round_: int) -> list[str]:
    """Clients that are asked to train in a round."""
    sizes = {client: manifest.n for client, manifest in server.manifests.items()}
    if server.privacy.rate is not None:
        rng = np.random.default_rng(np.random.SeedSequence([seed, round_, DRAW]))
        return poisson(server.eligible, server.privacy.rate, rng)
    return participants(params.participation, server.eligible, sizes, seed=seed, round_=round_)


def run_parallel(
    params: FederationParams,
    server: Server,
    backend: Backend,
    clock: VirtualClock,
    requests: RequestFactory,
    round_: int,
) -> dict[str, float]:
    """All participants train in parallel from the same weights."""
    asked = choose_clients(params, server, requests.seed, round_)
    late, failing = clock.late(asked, round_), clock.failing(asked, round_)
    round_state = server.open_round(asked)
    published = backend.publish(requests.fit(server, round_, requests.learning_rate(round_), asked))
    waiting: set[str] = set()
    for client in asked:
        if client in failing:
            server.record(round_state, round_, client, "failed", reason="dropped out (simulated)")
        elif client in late:
            server.record(
                round_state, round_, client, "late", reason=f"later than {clock.deadline:.3g} steps"
            )
        else:
            backend.send(published, client, request_id_of(requests.seed, round_, client))
            waiting.add(client)
    while waiting:
        reply = backend.receive(waiting)
        waiting.remove(reply.client)
        server.receive(round_state, reply, round_, round_)
        backend.commit(reply)
    return server.close_round(round_state, round_)


def run_sequential(
    params: FederationParams,
    server: Server,
    backend: Backend,
    clock: VirtualClock,
    requests: RequestFactory,
    round_: int,
) -> dict[str, float]:
    """Every participant trains from the weights that the previous one sent."""
    asked = choose_clients(params, server, requests.seed, round_)
    shuffled = bool(getattr(server.strategy, "shuffled", False))
    failing, late = clock.failing(asked, round_), clock.late(asked, round_)
    round_state, start_vector = server.open_round(asked), server.vector
    for client in visiting_order(asked, shuffled=shuffled, seed=requests.seed, round_=round_):
        if client in failing:
            server.record(round_state, round_, client, "failed", reason="dropped out (simulated)")
        elif client in late:
            server.record(
                round_state, round_, client, "late", reason=f"later than {clock.deadline:.3g} steps"
            )
        else:
            request = requests.fit(server, round_, requests.learning_rate(round_), [client])
            backend.send(backend.publish(request), client, request_id_of(requests.seed, round_, client))
            reply = backend.receive([client])
            server.receive_in_turn(round_state, reply, round_)
            backend.commit(reply)
    return server.close_round(round_state, round_, start_vector=start_vector)
