"""Clients: train a model on the data of a site, and keep their own state.

A :class:`ClientRunner` holds the clients of one worker and one model that they use in turn. The state that a client
keeps between rounds (control variates, personal parameters, state of its trainer) is passed in with the request and
returned beside the update, so that a client gives the same result on any worker and in any order.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from equipoise.platform.errors import EquipoiseError
from equipoise.platform.federation.clients.local_training import (
    ClientContext,
    LocalJob,
    LocalOutcome,
    LocalTrainer,
)
from equipoise.platform.federation.entries import ServerParams
from equipoise.platform.federation.messages import (
    ClientManifest,
    ClientUpdate,
    MessageData,
    TrainRequest,
    pack,
    pack_failure,
    unpack,
)
from equipoise.platform.federation.objective import ClientShare, Objective
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.privacy.mechanism import PrivacyMechanism
from equipoise.platform.federation.strategies.strategy import PERSONAL_MODEL, PERSONAL_PART, Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.modulation import parameter_groups

STATE_KIND = "state"
#: Name of the trainer's memory among the arrays of a client's state; it holds the state of balancing.
_MEMORY = "balancer"


@dataclass(frozen=True)
class ClientSetup:
    """What every worker is given once.

    Parameters
    ----------
    trainer
        Makes the trainer of a worker from the data of its clients.
    strategy, privacy
        Workers use their client halves.
    local
        What a client does in a round.
    threads
        CPU threads of torch, on which results depend.
    min_n
        Fewest patients from which a scalar that leaves may be computed.
    """

    trainer: Callable[[Mapping[str, Any]], LocalTrainer]
    strategy: Strategy
    privacy: PrivacyMechanism
    local: LocalParams
    threads: int
    min_n: int


@dataclass
class ClientState:
    """What stays at a client between rounds.

    Parameters
    ----------
    vectors
        Of the strategy.
    memory
        Of the trainer: the state of loss weighting and aggregator; empty if they have none.
    passes
        Epochs so far, for methods that count them.
    """

    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    memory: bytes = b""
    passes: int = 0

    def to_bytes(self) -> bytes:
        """For the checkpoint, and for other workers."""
        memory = {_MEMORY: np.frombuffer(self.memory, np.uint8)} if self.memory else {}
        vectors = {f"vector/{name}": vector for name, vector in self.vectors.items()}
        return pack(STATE_KIND, {"passes": self.passes}, vectors | memory)  # vectors first: they stay aligned

    @classmethod
    def from_bytes(cls, data: MessageData) -> ClientState:
        """The inverse; empty bytes give the state of a client that has not trained yet."""
        if not data:
            return cls()
        header, arrays = unpack(STATE_KIND, data)
        memory = arrays.pop(_MEMORY, None)
        vectors = {name.removeprefix("vector/"): vector for name, vector in arrays.items()}
        return cls(vectors, b"" if memory is None else memory.tobytes(), int(header["passes"]))


class ClientRunner:
    """The clients of one worker and the model they train in turn.

    Parameters
    ----------
    setup
        What all workers are given.
    client_data
        Client → its data, as the trainer takes them.
    """

    def __init__(self, setup: ClientSetup, client_data: Mapping[str, Any]) -> None:
        self.setup = setup
        self.clients = tuple(client_data)
        self.trainer = setup.trainer(client_data)
        self.model = self.trainer.model
        self.schema = Schema.of(self.model, self.trainer.tasks)
        self.personal_mask = setup.strategy.personal_mask(self.schema)
        self.manifests: dict[str, ClientManifest] = {}

    def join(self) -> list[ClientManifest]:
        """The manifests of all clients."""
        declared = (self.trainer.declare(c, self.schema.groups) for c in self.clients)
        self.manifests = {m.client: self.setup.privacy.declare(m) for m in declared}
        return list(self.manifests.values())

    def train(
        self, client: str, request: TrainRequest, request_id: str, state: MessageData
    ) -> tuple[MessageData, bytes]:
        """Message with the update and the new state; if the client fails, a failure message and no state."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.setup.threads)
        try:
            update, after = self._update(client, request, request_id, ClientState.from_bytes(state))
            return update.to_parts(), after.to_bytes()
        except Exception as error:  # a failure at one site must not end the federation
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            if self.setup.privacy.differential:  # the text and the traceback may quote a patient's values
                return pack_failure(type(error).__name__, ""), b""
            return pack_failure(reason, traceback.format_exc()), b""
        finally:
            torch.set_num_threads(before)

    def _update(
        self, client: str, request: TrainRequest, request_id: str, state: ClientState
    ) -> tuple[ClientUpdate, ClientState]:
        strategy, fits, manifest = self.setup.strategy, request.kind == "fit", self.manifests[client]
        counts = manifest.counts if fits else {}
        share = None
        if request.totals is not None:
            share = Objective(request.totals, request.epochs, request.steps).share(manifest)
        context = ClientContext(self.model, self.schema, request, dict(state.vectors), counts)
        start = request.vector
        if self.personal_mask is not None:
            start = strategy.personal_weights(self.schema, request.vector, state.vectors)
        hooks = strategy if fits else Strategy(ServerParams())
        outcome = self._train(client, start, context, hooks, state, share)
        if not fits:
            context.state[PERSONAL_MODEL] = self.schema.flatten(self.model)
        if self.personal_mask is not None:
            context.state[PERSONAL_PART] = self.schema.flatten(self.model)[self.personal_mask]
        delta = context.only_trained(self.schema.difference(self.model, request.vector))
        if self.personal_mask is not None:
            delta[self.personal_mask] = 0
        # No batch had a label to learn from, or the gradient is 0: the server is told, unless it must not know.
        if not _moves(delta) and not self.setup.privacy.sums_only:
            counts = dict.fromkeys(counts, 0)
        arrays = strategy.on_train_end(context, delta) if fits else {}
        if fits and strategy.personal_strategy is not None:
            beside = ClientContext(self.model, self.schema, request, {}, manifest.counts)
            start = context.state.get(PERSONAL_MODEL, request.vector)
            self._train(client, start, beside, strategy.personal_strategy, state)  # on its own objective
            context.state[PERSONAL_MODEL] = self.schema.flatten(self.model)
        update = ClientUpdate(
            schema_hash=self.schema.hash,
            round=request.round,
            client=client,
            request_id=request_id,
            delta=delta,
            counts=dict(counts),
            n=manifest.n,
            steps=context.steps,
            metrics=self._metrics(client, outcome),
            arrays=arrays,
        )
        after = ClientState(context.state, outcome.memory, state.passes + outcome.passes)
        weights = share.weights if share is not None else {}
        return self.setup.privacy.privatize(update, request, weights), after

    def _train(
        self,
        client: str,
        start: np.ndarray,
        context: ClientContext,
        strategy: Strategy,
        state: ClientState,
        share: ClientShare | None = None,
    ) -> LocalOutcome:
        """Train the model from these weights, on the client's part of the common objective or on its own."""
        self.schema.load(self.model, start)
        strategy.on_train_start(context)
        optimizer = self._optimizer(context.request.lr)
        correct = strategy.on_before_optimizer_step
        job = LocalJob(client, context, correct, optimizer, state.passes, state.memory, share)
        self.model.train()
        return self.trainer.train(job)

    def _optimizer(self, lr: float) -> torch.optim.Optimizer:
        local = self.setup.local
        decay = local.weight_decay or 0.0
        chosen = parameter_groups(self.model)
        for parameter in self.model.parameters():
            parameter.grad = None  # of the client before
        if local.optimizer == "adamw":
            return torch.optim.AdamW(chosen, lr=lr, weight_decay=decay, fused=True)
        return torch.optim.SGD(chosen, lr=lr, momentum=local.momentum, weight_decay=decay, fused=True)

    def _metrics(self, client: str, outcome: LocalOutcome) -> dict[str, float]:
        """Mean training losses of tasks with enough labelled patients."""
        labelled = self.manifests[client].labelled
        return {
            f"loss/{task}": mean
            for task, (mean, count) in outcome.losses.items()
            if count > 0 and labelled[task] >= self.setup.min_n
        }


def join_all(manifests: Iterable[ClientManifest]) -> dict[str, ClientManifest]:
    """Client → its manifest, by name."""
    return {manifest.client: manifest for manifest in sorted(manifests, key=lambda m: m.client)}


def _moves(part: np.ndarray) -> bool:
    """Whether any number is not 0; checks the first few before all."""
    return bool(part[:256].any() or part.any())
