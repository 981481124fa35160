"""Clients in this process, one after the other: for small clients, tests, and inside a trial of a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from equipoise.platform.federation.clients.runner import ClientRunner, join_all
from equipoise.platform.federation.messages import ClientManifest, Reply, TrainRequest


class InlineBackend:
    """One runner with all clients; a request is executed when its reply is asked for."""

    name = "inline"
    workers = 1

    def __init__(self, runner: ClientRunner) -> None:
        self._runner = runner
        self._requests: dict[str, tuple[TrainRequest, str]] = {}
        self._states: dict[str, bytes] = {}

    def join(self) -> dict[str, ClientManifest]:
        """Client → its manifest."""
        return join_all(self._runner.join())

    def publish(self, request: TrainRequest) -> TrainRequest:
        """The request, converted to a message and back as in every backend."""
        return TrainRequest.from_bytes(request.to_parts())

    def send(self, published: TrainRequest, client: str, request_id: str) -> None:
        """Queue the request."""
        self._requests[client] = (published, request_id)

    def receive(self, clients: Collection[str]) -> Reply:
        """Train the first of these clients that has a request."""
        client = next(name for name in self._requests if name in clients)
        request, request_id = self._requests.pop(client)
        data, state = self._runner.train(client, request, request_id, self._states.get(client, b""))
        return Reply(client, data, state)

    def commit(self, reply: Reply) -> None:
        """Keep the new state."""
        if reply.state:
            self._states[reply.client] = reply.state

    def client_states(self) -> dict[str, bytes]:
        """Client → state."""
        return dict(self._states)

    def restore_states(self, states: Mapping[str, bytes]) -> None:
        """Restore the states of a checkpoint."""
        self._states = dict(states)

    def close(self) -> None:
        """Drop requests that were not executed."""
        self._requests.clear()
