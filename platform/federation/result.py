"""The result of a federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from equipoise.platform.federation.clients.manifest import ClientManifest
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.targets import Targets


@dataclass(frozen=True)
class FederationResult:
    """The global model, the personal weights of clients, and the record of the training.

    Parameters
    ----------
    model
        With the global weights, on the CPU.
    schema, vector
        Layout of the weights, and the weights as one vector ``[P]``.
    targets
        What the model was trained for.
    history
        A row per round: ``round`` (from 1), ``lr``, counts of verdicts, ``loss/<task>``, ``update_norm`` and
        the privacy spent.
    manifests
        Client → its manifest.
    personal
        Client → the weights ``[P]`` it predicts with, for strategies with personal models. In a simulation the
        driver evaluates them in the clients' place; nothing of that enters training.
    excluded
        Clients excluded after repeated failures.
    audit_log
        What left each client.
    backend, workers
        Where clients ran.
    """

    model: nn.Module
    schema: Schema
    vector: np.ndarray
    targets: Targets
    history: tuple[dict[str, float], ...]
    manifests: Mapping[str, ClientManifest]
    personal: Mapping[str, np.ndarray]
    excluded: frozenset[str]
    audit_log: AuditLog
    backend: str
    workers: int
    factory: Callable[[], nn.Module] = field(repr=False, compare=False)

    def personal_model(self, client: str) -> nn.Module:
        """The model a client predicts with: its personal model if the strategy has one, else the global model."""
        model = self.factory()
        self.schema.load(model, self.personal.get(client, self.vector))
        return model.eval()
