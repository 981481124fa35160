"""Clients: the patients of a site, a model to train on them, and what never leaves.

A :class:`Workshop` holds the clients of one worker and one model skeleton that they use in turn. What a client
keeps from round to round (control variates, personal parameters, state of its loss weighting) is handed in with
the order and handed back beside the update, so that a client is the same wherever and after whatever it runs.
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
from equipoise.platform.federation.entries import ServerParams
from equipoise.platform.federation.local import ClientData, LocalJob, LocalOutcome, LocalRun, Trainer, train
from equipoise.platform.federation.manifest import Manifest, declare
from equipoise.platform.federation.order import Order
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.shield import Shield
from equipoise.platform.federation.strategies.ditto import MODEL
from equipoise.platform.federation.strategies.personal import OWN
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.update import ClientUpdate
from equipoise.platform.federation.vector import Schema
from equipoise.platform.federation.wire import Data, pack, pack_failure, unpack
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_balancer, pick_device
from equipoise.platform.training.distributed import ALONE
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.step import Parts
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cases import Case

__all__ = ["ClientData", "ClientState", "LocalJob", "LocalOutcome", "Setup", "Trainer", "Workshop"]

STATE = "state"
#: Name of the balancer's state among the arrays of a client's state.
_BALANCER = "balancer"


@dataclass(frozen=True)
class Setup:
    """What all workers are given once.

    Parameters
    ----------
    factory
        Makes a model; its initial weights are not looked at.
    targets
        Tasks, scalers, widths, the same at every client.
    strategy
        Both halves of it; workers use the client's.
    shield
        Both halves of privacy; workers use the client's.
    local, training, balancing
        Settings.
    min_n
        Fewest patients behind a scalar that leaves.
    """

    factory: Callable[[], nn.Module]
    targets: Targets
    strategy: Strategy
    shield: Shield
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
        """For the checkpoint, and for the worker that takes over."""
        own = {_BALANCER: np.frombuffer(self.balancer, np.uint8)} if self.balancer else {}
        vectors = {f"vector/{name}": vector for name, vector in self.vectors.items()}
        return pack(STATE, {"passes": self.passes}, vectors | own)  # vectors first: they stay aligned

    @classmethod
    def from_bytes(cls, data: Data) -> ClientState:
        """The inverse; no bytes are a client that has not trained yet."""
        if not data:
            return cls()
        header, arrays = unpack(STATE, data)
        balancer = arrays.pop(_BALANCER, None)
        vectors = {name.removeprefix("vector/"): vector for name, vector in arrays.items()}
        return cls(vectors, b"" if balancer is None else balancer.tobytes(), int(header["passes"]))


@dataclass(frozen=True)
class Ready:
    """The transform of a table whose rows are what the model reads already."""

    names: tuple[str, ...]

    def apply(self, values: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
        """The row itself."""
        return values


def prepared(data: ClientData, targets: Targets) -> ClientData:
    """Tables of a client's patients as the model reads them, once and for all rounds."""

    def made(cases: CaseList) -> CaseList:
        found = {case.patient: replace(case, omics=rows_of(case, targets)) for case in cases}
        return CaseList(found, cases.patients)

    return ClientData(made(data.train), None if data.val is None else made(data.val))


def rows_of(case: Case, targets: Targets) -> dict[str, np.ndarray]:
    """Modality → row of the model, for those that the case has."""
    return {
        modality: table.apply(values, columns_of(len(values), case.columns.get(modality)))
        for modality, table in targets.tables.items()
        if (values := case.omics.get(modality)) is not None
    }


class Workshop:
    """The clients of one worker and the model they train in turn.

    Parameters
    ----------
    setup
        What all workers are given.
    members
        Client → its patients.
    """

    def __init__(self, setup: Setup, members: Mapping[str, ClientData]) -> None:
        self.setup = setup
        self.members = dict(members)
        self.targets = setup.targets
        if not setup.targets.shape.features:  # tables alone fit in memory; bags stay in the store
            self.members = {client: prepared(data, setup.targets) for client, data in members.items()}
            ready = {name: Ready(table.names) for name, table in setup.targets.tables.items()}
            self.targets = replace(setup.targets, tables=ready)  # type: ignore[arg-type]
        self.device = pick_device(setup.training.device)
        self.model = setup.factory().to(self.device)
        targets = setup.targets
        self.schema = Schema.of(self.model, [head.name for head in targets.heads])
        self.kept = setup.strategy.kept(self.schema)
        self.losses = TaskLosses(targets.heads, targets.class_weights, ties=setup.training.ties).to(
            self.device
        )
        self.params = setup.training.model_copy(update={"probe": False})
        self.manifests: dict[str, Manifest] = {}

    def join(self) -> list[Manifest]:
        """What each client declares."""
        hides = float(getattr(self.model, "modality_dropout", 0.0)) > 0
        for client, data in self.members.items():
            self.manifests[client] = declare(
                client, data.train, self.setup.targets, self.schema.groups, hides_modalities=hides
            )
        return list(self.manifests.values())

    def work(self, client: str, order: Order, nonce: str, state: Data) -> tuple[Data, bytes]:
        """An update and the new state; of a client that fails, the reason and no state."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.setup.training.threads)  # results depend on it
        try:
            update, kept = self._fit(client, order, nonce, ClientState.from_bytes(state))
            return update.pieces(), kept.to_bytes()
        except Exception as error:  # whatever a site's data or code does must not end the federation
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            return pack_failure(reason, traceback.format_exc()), b""
        finally:
            torch.set_num_threads(before)

    def _fit(
        self, client: str, order: Order, nonce: str, state: ClientState
    ) -> tuple[ClientUpdate, ClientState]:
        strategy = self.setup.strategy
        shipped = self.manifests[client].counts if order.kind == "fit" else {}
        run = LocalRun(self.model, self.schema, order, dict(state.vectors), shipped)
        start = (
            strategy.personal(self.schema, order.vector, state.vectors)
            if self.kept is not None
            else order.vector
        )
        follows = strategy if order.kind == "fit" else Strategy(ServerParams())
        outcome, local, balancer = self._train(client, start, order, run, follows, state)
        run.counts = shipped = self._trained(shipped, outcome)
        if order.kind == "personalise":
            run.state[MODEL] = local.copy()
        if self.kept is not None:
            run.state[OWN] = local[self.kept]
        delta = run.only_trained(np.subtract(local, order.vector, out=local))
        if self.kept is not None:
            delta[self.kept] = 0
        moved = {group for group, span in self.schema.spans if _moves(delta[span])}
        shipped = {group: count if group in moved else 0 for group, count in shipped.items()}
        arrays: dict[str, np.ndarray] = {}
        if order.kind == "fit":
            arrays = strategy.finish(run, delta)
            if strategy.second is not None:
                run.state[MODEL] = self._second(client, order, run.state, state)
        update = ClientUpdate(
            schema_hash=self.schema.hash,
            round=order.round,
            client=client,
            nonce=nonce,
            delta=delta,
            counts=dict(shipped),
            n=self.manifests[client].n,
            steps=outcome.steps,
            metrics=self._metrics(client, outcome),
            arrays=arrays,
        )
        after = ClientState(run.state, balancer, state.passes + outcome.passes)
        return self.setup.shield.guard(update, order), after

    def _second(
        self, client: str, order: Order, vectors: Mapping[str, np.ndarray], state: ClientState
    ) -> np.ndarray:
        """The client's own model after a round."""
        assert self.setup.strategy.second is not None
        run = LocalRun(self.model, self.schema, order, {}, self.manifests[client].counts)
        start = vectors.get(MODEL, order.vector)
        return self._train(client, start, order, run, self.setup.strategy.second, state)[1]

    def _train(
        self,
        client: str,
        start: np.ndarray,
        order: Order,
        run: LocalRun,
        strategy: Strategy,
        state: ClientState,
    ) -> tuple[LocalOutcome, np.ndarray, bytes]:
        """Outcome, ``[P]`` new weights, state of the balancer."""
        setup, data = self.setup, self.members[client]
        self.schema.load(self.model, start)
        balancer = build_balancer(setup.balancing, self.model, setup.targets.heads)
        if state.balancer:
            balancer.load_state_dict(torch.load(io.BytesIO(state.balancer), weights_only=True))
        strategy.prepare(run)
        parts = Parts(self.model, self.losses, self._optimizer(order.lr), balancer, self.device, ALONE)
        job = LocalJob(
            parts=parts,
            data=data,
            targets=self.targets,
            params=self.params,
            size=batch_size(self.setup, len(data.train)),
            seed=order.local_seed(client),
            first_epoch=state.passes,
            epochs=order.epochs,
            steps=order.steps,
            lr=order.lr,
            run=run,
            correct=strategy.correct,
        )
        outcome = (setup.shield.trainer or train)(job)
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
        """Counts of what was really trained: a few batches may hold no label, or no event, of a task."""
        pairs = zip(self.setup.targets.heads, outcome.losses.counts.tolist(), strict=True)
        missed = {f"task:{head.name}" for head, count in pairs if not count}
        if len(missed) == len(self.setup.targets.heads):
            return dict.fromkeys(counts, 0)
        return {group: 0 if group in missed else count for group, count in counts.items()}

    def _metrics(self, client: str, outcome: LocalOutcome) -> dict[str, float]:
        """Mean training losses of tasks with enough patients behind them."""
        labelled = self.manifests[client].labelled
        seen = zip(
            self.setup.targets.heads, outcome.losses.means().tolist(), outcome.losses.counts, strict=True
        )
        return {
            f"loss/{head.name}": value
            for head, value, count in seen
            if count > 0 and labelled[head.name] >= self.setup.min_n
        }


def batch_size(setup: Setup, count: int) -> int:
    """Patients per step of a client with so many."""
    wanted, heads = setup.local.batch, setup.targets.heads
    if wanted == "auto":
        compared = any(head.compares_patients for head in heads)
        tables_only = not setup.targets.shape.features
        if compared and tables_only and setup.training.batch == "auto":
            return count
        return setup.training.batch_for(heads)
    return count if wanted == "full" else wanted


def _moves(part: np.ndarray) -> bool:
    """Whether any number is not 0; the first few mostly tell."""
    return bool(part[:256].any() or part.any())


def _state_of(balancer: Any) -> bytes:
    state = balancer.state_dict()
    if not any(state.values()):
        return b""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
