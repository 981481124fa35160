"""Where clients run: the protocol of both backends."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.order import Order
from equipoise.platform.federation.wire import Data


@dataclass(frozen=True)
class Reply:
    """What came back from a client.

    Parameters
    ----------
    client
        Who.
    data
        Bytes of an update, or of a failure; empty if its worker is gone.
    state
        Handle of the client's new state, for :meth:`Backend.commit`.
    reason
        Why nothing came back.
    """

    client: str
    data: Data
    state: Any = None
    reason: str = ""


class Backend(Protocol):
    """Runs clients; results do not depend on which backend, on how many workers, or on their order.

    A client has at most one order at a time. Its state becomes the new one only when the engine says so.
    """

    name: str
    workers: int

    def join(self) -> dict[str, Manifest]:
        """Set clients up; what each declares."""
        ...

    def publish(self, order: Order) -> Any:
        """Make an order available to all workers, once; the handle lives as long as somebody holds it."""
        ...

    def start(self, published: Any, client: str, nonce: str) -> None:
        """Give a client an order."""
        ...

    def wait(self, clients: Collection[str]) -> Reply:
        """The next reply of any of these clients."""
        ...

    def commit(self, reply: Reply) -> None:
        """The reply counts: the client goes on from the state it left."""
        ...

    def states(self) -> dict[str, bytes]:
        """Client → its state, for those that have one."""
        ...

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Put states back."""
        ...

    def close(self) -> None:
        """Free what the backend holds."""
        ...


def ray_is_open() -> bool:
    """Whether this is the driver of an open session; inside a worker (a trial of a search) clients run inline."""
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode != ray.WORKER_MODE
