"""How the server reaches its clients: the protocol of backends.

The server sees manifests and messages only. Backends that run clients in this process or on Ray are in
:mod:`equipoise.platform.federation.simulation`; one that talks to hospitals over a network needs the same methods.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from equipoise.platform.federation.messages import ClientManifest, Reply, TrainRequest


class Backend(Protocol):
    """Runs clients; results depend neither on the backend nor on the number of workers or their order.

    A client has at most one request at a time. Its new state counts only once it is committed.
    """

    name: str
    workers: int

    def join(self) -> dict[str, ClientManifest]:
        """Start the clients; client → its manifest."""
        ...

    def publish(self, request: TrainRequest) -> Any:
        """Make a request available to all workers, once; valid as long as the returned handle is referenced."""
        ...

    def send(self, published: Any, client: str, request_id: str) -> None:
        """Send a published request to a client."""
        ...

    def receive(self, clients: Collection[str]) -> Reply:
        """Wait for the next reply of any of these clients."""
        ...

    def commit(self, reply: Reply) -> None:
        """Accept the new state of the client that replied."""
        ...

    def client_states(self) -> dict[str, bytes]:
        """Client → its state, for clients that have one."""
        ...

    def restore_states(self, states: Mapping[str, bytes]) -> None:
        """Restore the states of a checkpoint."""
        ...

    def close(self) -> None:
        """Release resources."""
        ...
