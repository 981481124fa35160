"""Where clients run: the protocol that every backend implements."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from equipoise.platform.federation.clients.manifest import ClientManifest
from equipoise.platform.federation.messages import MessageData, TrainRequest


@dataclass(frozen=True)
class Reply:
    """The reply of a client.

    Parameters
    ----------
    client
        Name of the client.
    data
        Message with an update or a failure; empty if the worker died.
    state
        Handle of the client's new state, for :meth:`Backend.commit`.
    reason
        Why there is no message.
    """

    client: str
    data: MessageData
    state: Any = None
    reason: str = ""


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


def ray_is_open() -> bool:
    """Whether this is the driver of an open Ray session; inside a worker (a search trial) clients run inline."""
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode != ray.WORKER_MODE
