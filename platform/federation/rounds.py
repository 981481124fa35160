"""One round: choose, broadcast, train, take, step. Together, or one client after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from equipoise.platform.federation.backend import Backend
from equipoise.platform.federation.clock import Clock
from equipoise.platform.federation.order import Order, nonce_of
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.sampling import DRAW, participants, poisson, tour
from equipoise.platform.federation.server import Server


@dataclass(frozen=True)
class Orders:
    """Writes the orders of a federation.

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

    def rate(self, round_: int) -> float:
        """Learning rate of a round."""
        if self.params.local.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * round_ / self.params.rounds))

    def fit(
        self, server: Server, round_: int, lr: float, clients: list[str], vector: np.ndarray | None = None
    ) -> Order:
        """Train from the server's present weights, or from others."""
        epochs, steps = self.params.local.length
        return Order(
            round=round_,
            kind="fit",
            seed=self.seed,
            lr=lr,
            epochs=epochs,
            steps=steps,
            vector=server.vector if vector is None else vector,
            arrays=server.strategy.broadcast(server.state),
            shield=server.shield.open_round(round_, clients),
        )

    def personalise(self, server: Server) -> Order:
        """Go on from the last weights, for the client's own use."""
        last = self.params.rounds - 1
        steps = server.strategy.personal_steps
        return Order(last + 1, "personalise", self.seed, self.rate(last), 1, steps, server.vector)


def chosen(params: FederationParams, server: Server, seed: int, round_: int) -> list[str]:
    """Who is asked in a round."""
    sizes = {client: manifest.n for client, manifest in server.manifests.items()}
    if server.shield.rate is not None:
        rng = np.random.default_rng(np.random.SeedSequence([seed, round_, DRAW]))
        return poisson(server.learners, server.shield.rate, rng)
    return participants(params.participation, server.learners, sizes, seed=seed, round_=round_)


def together(
    params: FederationParams, server: Server, backend: Backend, clock: Clock, orders: Orders, round_: int
) -> dict[str, float]:
    """All participants train at once from the same weights."""
    asked = chosen(params, server, orders.seed, round_)
    late, failing = clock.late(asked, round_), clock.failing(asked, round_)
    tally = server.open(asked)
    published = backend.publish(orders.fit(server, round_, orders.rate(round_), asked))
    waiting: set[str] = set()
    for client in asked:
        if client in failing:
            server.note(tally, round_, client, "failed", reason="dropped out (rehearsed)")
        elif client in late:
            server.note(tally, round_, client, "late", reason=f"later than {clock.deadline:.3g} steps")
        else:
            backend.start(published, client, nonce_of(orders.seed, round_, client))
            waiting.add(client)
    while waiting:
        reply = backend.wait(waiting)
        waiting.remove(reply.client)
        server.take(tally, reply, round_, round_)
        backend.commit(reply)
    return server.close(tally, round_)


def in_turn(
    params: FederationParams, server: Server, backend: Backend, clock: Clock, orders: Orders, round_: int
) -> dict[str, float]:
    """A tour: every participant trains from the weights that the one before it left."""
    asked = chosen(params, server, orders.seed, round_)
    shuffled = bool(getattr(server.strategy, "shuffled", False))
    failing, late = clock.failing(asked, round_), clock.late(asked, round_)
    tally, begun = server.open(asked), server.vector
    for client in tour(asked, shuffled=shuffled, seed=orders.seed, round_=round_):
        if client in failing:
            server.note(tally, round_, client, "failed", reason="dropped out (rehearsed)")
        elif client in late:
            server.note(tally, round_, client, "late", reason=f"later than {clock.deadline:.3g} steps")
        else:
            order = orders.fit(server, round_, orders.rate(round_), [client])
            backend.start(backend.publish(order), client, nonce_of(orders.seed, round_, client))
            reply = backend.wait([client])
            server.hand_on(tally, reply, round_)
            backend.commit(reply)
    return server.close(tally, round_, begun=begun)
