"""Clients in this process, one after the other: for small clients, tests, and inside a trial of a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from equipoise.platform.federation.backend import Reply
from equipoise.platform.federation.client import ClientData, Setup, Workshop
from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.order import Order


class Inline:
    """One workshop with all clients; an order is carried out when its reply is asked for."""

    name = "inline"
    workers = 1

    def __init__(self, setup: Setup, members: Mapping[str, ClientData]) -> None:
        self._workshop = Workshop(setup, members)
        self._orders: dict[str, tuple[Order, str]] = {}
        self._states: dict[str, bytes] = {}

    def join(self) -> dict[str, Manifest]:
        """What each client declares."""
        return {m.client: m for m in sorted(self._workshop.join(), key=lambda m: m.client)}

    def publish(self, order: Order) -> Order:
        """The order itself, through the same message as elsewhere."""
        return Order.from_bytes(order.pieces())

    def start(self, published: Order, client: str, nonce: str) -> None:
        """Put the order on the client's desk."""
        self._orders[client] = (published, nonce)

    def wait(self, clients: Collection[str]) -> Reply:
        """Let the first of the clients work."""
        client = next(name for name in self._orders if name in clients)
        order, nonce = self._orders.pop(client)
        data, state = self._workshop.work(client, order, nonce, self._states.get(client, b""))
        return Reply(client, data, state)

    def commit(self, reply: Reply) -> None:
        """Keep the new state."""
        if reply.state:
            self._states[reply.client] = reply.state

    def states(self) -> dict[str, bytes]:
        """Client → state."""
        return dict(self._states)

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Put states back."""
        self._states = dict(states)

    def close(self) -> None:
        """Drop what was not begun."""
        self._orders.clear()
