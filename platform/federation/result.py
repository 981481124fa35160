"""What a federation leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from equipoise.platform.federation.ledger import Ledger
from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.targets import Targets


@dataclass(frozen=True)
class FederationResult:
    """The global model, what clients keep of their own, and the record of how it came about.

    Parameters
    ----------
    model
        With the global weights, on the CPU.
    schema, vector
        Their layout and the weights as one vector ``[P]``.
    targets
        What the model was trained for.
    history
        A row per round: ``round`` (from 1), ``lr``, counts of verdicts, ``loss/<task>``, ``update_norm`` and what
        privacy says.
    manifests
        Client → what it declared, with its flags.
    personal
        Client → the weights ``[P]`` it predicts with, for strategies that have such. In a simulation the driver
        plays the clients' own evaluation; nothing of it enters training.
    benched
        Clients left out for good.
    ledger
        What left each client.
    backend, workers
        Where clients ran.
    """

    model: nn.Module
    schema: Schema
    vector: np.ndarray
    targets: Targets
    history: tuple[dict[str, float], ...]
    manifests: Mapping[str, Manifest]
    personal: Mapping[str, np.ndarray]
    benched: frozenset[str]
    ledger: Ledger
    backend: str
    workers: int
    factory: Callable[[], nn.Module] = field(repr=False, compare=False)

    def personal_model(self, client: str) -> nn.Module:
        """The model a client predicts with: its own where the strategy makes one, else the global one."""
        model = self.factory()
        self.schema.load(model, self.personal.get(client, self.vector))
        return model.eval()
