"""The result of a federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class FederationResult:
    """The global weights, the personal weights of clients, and the record of the training.

    Parameters
    ----------
    schema, vector
        Layout of the weights, and the weights as one vector ``[P]``.
    history
        A row per round: ``round`` (from 1), ``lr``, counts of verdicts, ``loss/<task>``, ``update_norm`` and
        the privacy spent.
    manifests
        Client → its manifest.
    excluded
        Clients excluded after repeated failures.
    audit_log
        What left each client.
    backend, workers
        Where clients ran.
    kept_round
        The round (from 1) whose weights these are; 0 without any round.
    personal
        Client → the weights ``[P]`` it predicts with, for strategies with personal models. Known in a simulation,
        whose driver evaluates them in the clients' place; nothing of that enters training.
    factory
        Makes a model, if the federation was a simulation.
    """

    schema: Schema
    vector: np.ndarray
    history: tuple[dict[str, float], ...]
    manifests: Mapping[str, ClientManifest]
    excluded: frozenset[str]
    audit_log: AuditLog
    backend: str
    workers: int
    kept_round: int = 0
    personal: Mapping[str, np.ndarray] = field(default_factory=dict)
    factory: Callable[[], nn.Module] | None = field(default=None, compare=False)

    @cached_property
    def model(self) -> nn.Module:
        """The model with the global weights, on the CPU."""
        return self._with(self.vector)

    def personal_model(self, client: str) -> nn.Module:
        """The model a client predicts with: its personal model if the strategy has one, else the global model."""
        return self._with(self.personal.get(client, self.vector))

    def __repr__(self) -> str:
        accepted = sum(int(row.get("accepted", 0)) for row in self.history)
        losses = {
            name: value for name, value in (self.history or ({},))[-1].items() if name.startswith("loss/")
        }
        shown = "".join(f", {name} {value:.4g}" for name, value in losses.items())
        excluded = f", {len(self.excluded)} excluded" if self.excluded else ""
        return (
            f"<FederationResult {len(self.history)} rounds, {len(self.manifests)} clients ({self.backend}{excluded}), "
            f"{accepted} updates, {len(self.vector)} weights{shown}>"
        )

    def _with(self, vector: np.ndarray) -> nn.Module:
        if self.factory is None:
            raise FederationError("the server of this federation does not know how its model is made")
        model = self.factory().cpu()
        self.schema.load(model, vector)
        return model.eval()
