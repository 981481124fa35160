"""Clients: train a model on the patients of a site, and keep their own state.

A :class:`ClientRunner` holds the clients of one worker and one model that they use in turn. The state that a client
keeps between rounds (control variates, personal parameters, state of its loss weighting) is passed in with the
request and returned beside the update, so that a client gives the same result on any worker and in any order.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from equipoise.datasets.omics.fitting import columns_of
from equipoise.models.losses import TaskLosses
from equipoise.platform.errors import EquipoiseError
from equipoise.platform.federation.clients.local_training import (
    ClientContext,
    ClientData,
    LocalJob,
    LocalOutcome,
    train,
)
from equipoise.platform.federation.clients.manifest import ClientManifest, declare
from equipoise.platform.federation.entries import ServerParams
from equipoise.platform.federation.messages import (
    ClientUpdate,
    MessageData,
    TrainRequest,
    pack,
    pack_failure,
    unpack,
)
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.privacy.mechanism import PrivacyMechanism
from equipoise.platform.federation.strategies.personal import PERSONAL_MODEL, PERSONAL_PART
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_balancer, pick_device
from equipoise.platform.training.distributed import SINGLE_WORKER
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.step import TrainingState
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case

STATE_KIND = "state"
#: Name of the balancer's state among the arrays of a client's state.
_BALANCER = "balancer"


@dataclass(frozen=True)
class ClientSetup:
    """What every worker is given once.

    Parameters
    ----------
    factory
        Makes a model; its initial weights are not used.
    targets
        Tasks, scalers, widths, the same at every client.
    strategy
        Workers use its client half.
    privacy
        Privacy mechanism; workers use its client half.
    local, training, balancing
        Settings.
    min_n
        Fewest patients from which a scalar that leaves may be computed.
    """

    factory: Callable[[], nn.Module]
    targets: Targets
    strategy: Strategy
    privacy: PrivacyMechanism
    local: LocalParams
    training: TrainingParams
    balancing: BalancingParams
    min_n: int


@dataclass
class ClientState:
    """What stays at a client between rounds.

    Parameters
    ----------
    vectors
        Of the strategy.
    balancer
        State of loss weighting and aggregator; empty if they have none.
    passes
        Epochs so far, for methods that count them.
    """

    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    balancer: bytes = b""
    passes: int = 0

    def to_bytes(self) -> bytes:
        """For the checkpoint, and for other workers."""
        balancer = {_BALANCER: np.frombuffer(self.balancer, np.uint8)} if self.balancer else {}
        vectors = {f"vector/{name}": vector for name, vector in self.vectors.items()}
        return pack(
            STATE_KIND, {"passes": self.passes}, vectors | balancer
        )  # vectors first: they stay aligned

    @classmethod
    def from_bytes(cls, data: MessageData) -> ClientState:
        """The inverse; empty bytes give the state of a client that has not trained yet."""
        if not data:
            return cls()
        header, arrays = unpack(STATE_KIND, data)
        balancer = arrays.pop(_BALANCER, None)
        vectors = {name.removeprefix("vector/"): vector for name, vector in arrays.items()}
        return cls(vectors, b"" if balancer is None else balancer.tobytes(), int(header["passes"]))


@dataclass(frozen=True)
class IdentityTransform:
    """The transform of a table whose rows have been transformed already."""

    names: tuple[str, ...]

    def apply(self, values: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
        """The unchanged row."""
        return values


def with_transformed_tables(data: ClientData, targets: Targets) -> ClientData:
    """Transform the tables of a client's patients once, for all rounds."""

    def transform(cases: CaseList) -> CaseList:
        transformed = {case.patient: replace(case, omics=transformed_rows(case, targets)) for case in cases}
        return CaseList(transformed, cases.patients)

    return ClientData(transform(data.train), None if data.val is None else transform(data.val))


def transformed_rows(case: Case, targets: Targets) -> dict[str, np.ndarray]:
    """Modality → transformed row, for the modalities of the case."""
    return {
        modality: table.apply(values, columns_of(len(values), case.columns.get(modality)))
        for modality, table in targets.tables.items()
        if (values := case.omics.get(modality)) is not None
    }


class ClientRunner:
    """The clients of one worker and the model they train in turn.

    Parameters
    ----------
    setup
        What all workers are given.
    client_data
        Client → its patients.
    """

    def __init__(self, setup: ClientSetup, client_data: Mapping[str, ClientData]) -> None:
        self.setup = setup
        self.client_data = dict(client_data)
        self.targets = setup.targets
        if not setup.targets.shape.features:  # tables alone fit in memory; bags stay in the store
            self.client_data = {
                client: with_transformed_tables(data, setup.targets) for client, data in client_data.items()
            }
            identity = {name: IdentityTransform(table.names) for name, table in setup.targets.tables.items()}
            self.targets = replace(setup.targets, tables=identity)  # type: ignore[arg-type]
        self.device = pick_device(setup.training.device)
        self.model = setup.factory().to(self.device)
        targets = setup.targets
        self.schema = Schema.of(self.model, [head.name for head in targets.heads])
        self.personal_mask = setup.strategy.personal_mask(self.schema)
        self.losses = TaskLosses(targets.heads, targets.class_weights, ties=setup.training.ties).to(
            self.device
        )
        self.params = setup.training.model_copy(update={"probe": False})
        self.manifests: dict[str, ClientManifest] = {}

    def join(self) -> list[ClientManifest]:
        """The manifests of all clients."""
        hides = float(getattr(self.model, "modality_dropout", 0.0)) > 0
        for client, data in self.client_data.items():
            self.manifests[client] = declare(
                client, data.train, self.setup.targets, self.schema.groups, hides_modalities=hides
            )
        return list(self.manifests.values())

    def train(
        self, client: str, request: TrainRequest, request_id: str, state: MessageData
    ) -> tuple[MessageData, bytes]:
        """Message with the update and the new state; if the client fails, a failure message and no state."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.setup.training.threads)  # results depend on it
        try:
            update, personal_mask = self._update(client, request, request_id, ClientState.from_bytes(state))
            return update.to_parts(), personal_mask.to_bytes()
        except Exception as error:  # a failure at one site must not end the federation
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            return pack_failure(reason, traceback.format_exc()), b""
        finally:
            torch.set_num_threads(before)

    def _update(
        self, client: str, request: TrainRequest, request_id: str, state: ClientState
    ) -> tuple[ClientUpdate, ClientState]:
        strategy = self.setup.strategy
        counts = self.manifests[client].counts if request.kind == "fit" else {}
        context = ClientContext(self.model, self.schema, request, dict(state.vectors), counts)
        start = (
            strategy.personal_weights(self.schema, request.vector, state.vectors)
            if self.personal_mask is not None
            else request.vector
        )
        active = strategy if request.kind == "fit" else Strategy(ServerParams())
        outcome, local, balancer = self._train(client, start, request, context, active, state)
        context.counts = counts = self._trained(counts, outcome)
        if request.kind == "personalise":
            context.state[PERSONAL_MODEL] = local.copy()
        if self.personal_mask is not None:
            context.state[PERSONAL_PART] = local[self.personal_mask]
        delta = context.only_trained(np.subtract(local, request.vector, out=local))
        if self.personal_mask is not None:
            delta[self.personal_mask] = 0
        moved_groups = {group for group, span in self.schema.spans if _moves(delta[span])}
        counts = {group: count if group in moved_groups else 0 for group, count in counts.items()}
        arrays: dict[str, np.ndarray] = {}
        if request.kind == "fit":
            arrays = strategy.on_train_end(context, delta)
            if strategy.personal_strategy is not None:
                context.state[PERSONAL_MODEL] = self._train_personal_model(
                    client, request, context.state, state
                )
        update = ClientUpdate(
            schema_hash=self.schema.hash,
            round=request.round,
            client=client,
            request_id=request_id,
            delta=delta,
            counts=dict(counts),
            n=self.manifests[client].n,
            steps=outcome.steps,
            metrics=self._metrics(client, outcome),
            arrays=arrays,
        )
        after = ClientState(context.state, balancer, state.passes + outcome.passes)
        return self.setup.privacy.privatize(update, request), after

    def _train_personal_model(
        self, client: str, request: TrainRequest, vectors: Mapping[str, np.ndarray], state: ClientState
    ) -> np.ndarray:
        """Weights of the client's personal model after a round."""
        assert self.setup.strategy.personal_strategy is not None
        context = ClientContext(self.model, self.schema, request, {}, self.manifests[client].counts)
        start = vectors.get(PERSONAL_MODEL, request.vector)
        return self._train(client, start, request, context, self.setup.strategy.personal_strategy, state)[1]

    def _train(
        self,
        client: str,
        start: np.ndarray,
        request: TrainRequest,
        context: ClientContext,
        strategy: Strategy,
        state: ClientState,
    ) -> tuple[LocalOutcome, np.ndarray, bytes]:
        """Outcome, ``[P]`` new weights, state of the balancer."""
        setup, data = self.setup, self.client_data[client]
        self.schema.load(self.model, start)
        balancer = build_balancer(setup.balancing, self.model, setup.targets.heads)
        if state.balancer:
            balancer.load_state_dict(torch.load(io.BytesIO(state.balancer), weights_only=True))
        strategy.on_train_start(context)
        parts = TrainingState(
            self.model, self.losses, self._optimizer(request.lr), balancer, self.device, SINGLE_WORKER
        )
        job = LocalJob(
            parts=parts,
            data=data,
            targets=self.targets,
            params=self.params,
            size=batch_size(self.setup, len(data.train)),
            seed=request.local_seed(client),
            first_epoch=state.passes,
            epochs=request.epochs,
            steps=request.steps,
            lr=request.lr,
            context=context,
            before_step=strategy.on_before_optimizer_step,
        )
        outcome = (setup.privacy.trainer or train)(job)
        return outcome, self.schema.flatten(self.model), _state_of(balancer)

    def _optimizer(self, lr: float) -> torch.optim.Optimizer:
        local = self.setup.local
        chosen = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in chosen:
            parameter.grad = None  # of the client before
        if local.optimizer == "adamw":
            return torch.optim.AdamW(chosen, lr=lr, weight_decay=local.weight_decay, fused=True)
        return torch.optim.SGD(
            chosen, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay, fused=True
        )

    def _trained(self, counts: Mapping[str, int], outcome: LocalOutcome) -> dict[str, int]:
        """Counts with 0 for tasks that were not trained: the batches may hold no label, or no event, of a task."""
        pairs = zip(self.setup.targets.heads, outcome.losses.counts.tolist(), strict=True)
        missed = {f"task:{head.name}" for head, count in pairs if not count}
        if len(missed) == len(self.setup.targets.heads):
            return dict.fromkeys(counts, 0)
        return {group: 0 if group in missed else count for group, count in counts.items()}

    def _metrics(self, client: str, outcome: LocalOutcome) -> dict[str, float]:
        """Mean training losses of tasks with enough labelled patients."""
        labelled = self.manifests[client].labelled
        seen = zip(
            self.setup.targets.heads, outcome.losses.means().tolist(), outcome.losses.counts, strict=True
        )
        return {
            f"loss/{head.name}": value
            for head, value, count in seen
            if count > 0 and labelled[head.name] >= self.setup.min_n
        }


def batch_size(setup: ClientSetup, count: int) -> int:
    """Patients per step of a client with ``count`` patients."""
    wanted, heads = setup.local.batch, setup.targets.heads
    if wanted == "auto":
        compared = any(head.compares_patients for head in heads)
        tables_only = not setup.targets.shape.features
        if compared and tables_only and setup.training.batch == "auto":
            return count
        return setup.training.batch_for(heads)
    return count if wanted == "full" else wanted


def _moves(part: np.ndarray) -> bool:
    """Whether any number is not 0; checks the first few before all."""
    return bool(part[:256].any() or part.any())


def _state_of(balancer: Any) -> bytes:
    state = balancer.state_dict()
    if not any(state.values()):
        return b""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
