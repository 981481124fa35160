"""Training at one client: the steps of :mod:`equipoise.platform.training.step`, with a strategy's correction.

Batches, losses, balancing and the optimiser's step are those of every other training. A strategy acts between the
gradient and the step, through the optimiser's pre-step hook.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.losses import LossSums
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.messages import TrainRequest
from equipoise.platform.federation.vector import Schema
from equipoise.platform.registry import get
from equipoise.platform.training.batches import CaseList, draw_order
from equipoise.platform.training.build import seeded
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.step import Epoch, TrainingState
from equipoise.platform.training.targets import Targets


@dataclass(frozen=True)
class ClientData:
    """Patients of a client.

    Parameters
    ----------
    train
        Training patients.
    val
        Inner validation patients, for balancing methods that learn weights from them.
    """

    train: CaseList
    val: CaseList | None = None


class ClientContext:
    """One local training, as a strategy sees it.

    Attributes
    ----------
    model
        The model in training.
    request
        The request of the server.
    state
        Named vectors of the strategy that stay at the client between rounds; may be changed.
    counts
        Group of the schema → labelled patients of the client.
    epoch
        The current pass; gives access to the batch.
    steps
        Steps taken so far.
    """

    def __init__(
        self,
        model: nn.Module,
        schema: Schema,
        request: TrainRequest,
        state: dict[str, np.ndarray],
        counts: Mapping[str, int],
    ) -> None:
        self.model = model
        self.schema = schema
        self.request = request
        self.state = state
        self.counts = counts
        self.steps = 0
        self.epoch: Epoch | None = None
        known = dict(model.named_parameters(remove_duplicate=False))
        self._trained = [segment for segment in schema.segments if segment.trained]
        self.parameters = [known[segment.name] for segment in self._trained]

    @property
    def learned(self) -> np.ndarray:
        """``[P]`` bool, what the optimiser moves."""
        return self.schema.learned

    def tensors(self, vector: np.ndarray) -> list[Tensor]:
        """A vector as tensors shaped like :attr:`parameters`, on their device."""
        flat = torch.from_numpy(np.array(vector, np.float32)).to(self.parameters[0].device)
        return [flat[segment.span].view(segment.shape) for segment in self._trained]

    def add_to_gradients(self, tensors: Sequence[Tensor], alpha: float = 1.0) -> None:
        """Add ``alpha · tensors`` to the gradients; parameters without a gradient are skipped."""
        pairs = [(p.grad, t) for p, t in zip(self.parameters, tensors, strict=True) if p.grad is not None]
        if pairs:
            with torch.no_grad():
                torch._foreach_add_([g for g, _ in pairs], [t for _, t in pairs], alpha=alpha)

    def pull_towards(self, tensors: Sequence[Tensor], strength: float) -> None:
        """Add the gradient of ``strength / 2 · ‖w − tensors‖²``."""
        with torch.no_grad():
            self.add_to_gradients(
                torch._foreach_sub([p.detach() for p in self.parameters], list(tensors)), strength
            )

    def only_trained(self, vector: np.ndarray) -> np.ndarray:
        """Set the groups that this client does not train to 0, in place."""
        for group, span in self.schema.spans:
            if not self.counts.get(group):
                vector[span] = 0
        return vector


@dataclass(frozen=True)
class LocalJob:
    """The inputs of a local training.

    Parameters
    ----------
    parts
        Model with its starting weights, losses, optimiser, balancer.
    data, targets, params
        Patients, targets and settings.
    size
        Patients per step.
    seed, first_epoch
        Seed of everything random, and number of the first pass.
    epochs, steps
        Length of the training; ``steps`` takes precedence.
    lr
        Learning rate.
    context
        The view of the strategy.
    before_step
        Called between the gradient and the optimiser's step.
    """

    parts: TrainingState
    data: ClientData
    targets: Targets
    params: TrainingParams
    size: int
    seed: int
    first_epoch: int
    epochs: int
    steps: int | None
    lr: float
    context: ClientContext
    before_step: Callable[[ClientContext], None]


@dataclass(frozen=True)
class LocalOutcome:
    """Numbers of steps and passes, and the training losses."""

    steps: int
    passes: int
    losses: LossSums


class Trainer(Protocol):
    """Trains the model of a job in place."""

    def __call__(self, job: LocalJob) -> LocalOutcome: ...


def train(job: LocalJob) -> LocalOutcome:
    """The default :class:`Trainer`: the given number of passes over the patients, or of steps."""
    weighting = job.parts.balancer.weighting
    hook = job.parts.optimizer.register_step_pre_hook(lambda *_: job.before_step(job.context))
    total: LossSums | None = None
    job.parts.model.train()
    try:
        with seeded(job.seed, job.parts.device):
            for passes in itertools.count(1):
                epoch = _pass(job, passes)
                seen = epoch.totals()
                total = (
                    seen if total is None else LossSums(total.sums + seen.sums, total.counts + seen.counts)
                )
                over = passes == job.epochs if job.steps is None else job.context.steps == job.steps
                if job.steps is None or over:
                    known = torch.where(total.counts > 0, total.means(), torch.nan)
                    weighting.on_epoch_end(known.double().cpu())
                if over:
                    return LocalOutcome(job.context.steps, passes, total)
                if job.steps is None:
                    total = None if passes < job.epochs else total
    finally:
        hook.remove()
    raise AssertionError("unreachable")


def _pass(job: LocalJob, number: int) -> Epoch:
    """One pass over the patients, or the remaining steps."""
    index = job.first_epoch + number - 1
    epoch = Epoch(
        job.parts,
        job.targets,
        job.data.train,
        job.data.val if job.data.val is not None else CaseList({}, ()),
        job.params,
        size=job.size,
        seed=job.seed,
        epoch=index,
        lr=job.lr,
    )
    job.context.epoch = epoch
    left = None if job.steps is None else job.steps - job.context.steps
    for rows in itertools.islice(draw_order(len(job.data.train), job.size, job.seed, index), left):
        epoch.step(rows)
        job.context.steps += 1
    return epoch


def check_clients(clients: Mapping[str, ClientData], balancing: BalancingParams) -> None:
    """Refuse a federation without clients, a client without patients, and a patient of two clients.

    Raises
    ------
    DataError
        Naming the client or patient.
    StudyError
        If the loss weighting needs inner validation patients and a client has none.
    """
    if not clients:
        raise DataError("there is no client", where="federation.sites")
    seen: dict[str, str] = {}
    needs: frozenset[str] = get("weightings", balancing.weighting).attribute("needs")
    for client, data in clients.items():
        if not len(data.train):
            raise DataError(f"client {client} has no training patient", fix="leave it out")
        for patient in (*data.train.patients, *(data.val.patients if data.val else ())):
            if seen.setdefault(patient, client) != client:
                raise DataError(
                    f"patient {patient} belongs to {seen[patient]} and to {client}; that is leakage"
                )
        if "validation" in needs and not (data.val and len(data.val)):
            raise StudyError(
                f"{balancing.weighting} needs inner validation patients, and client {client} has none",
                where="balancing",
                fix="choose another weighting, or give clients an inner validation part",
            )
