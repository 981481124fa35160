"""Training at one client: what a strategy sees of it, and the interface of whatever trains there.

A :class:`LocalTrainer` knows the data of the clients of a worker and how one model is trained on them: patients with
the losses and balancing of a study (:mod:`~equipoise.platform.federation.clients.study_trainer`), or data loaders with
a loss function (:mod:`~equipoise.platform.federation.simulation.loaders`). A strategy acts between the gradient and the
step, through the optimiser's pre-step hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.platform.federation.messages import ClientManifest, TrainRequest
from equipoise.platform.federation.objective import ClientShare
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.build import seeded


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
    batch
        Returns what the current step trains on, as the model takes it.
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
        self.batch: Callable[[], Any] = lambda: None
        known = dict(model.named_parameters(remove_duplicate=False))
        self._trained = [segment for segment in schema.segments if segment.trained]
        self.parameters = [known[segment.name] for segment in self._trained]

    def gradient_factors(self, by_group: Mapping[str, float]) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters and the factor of their gradients, where it is not 1."""
        found: dict[float, list[nn.Parameter]] = {}
        for segment, parameter in zip(self._trained, self.parameters, strict=True):
            if (factor := by_group.get(segment.group, 1.0)) != 1:
                found.setdefault(factor, []).append(parameter)
        return [(parameters, factor) for factor, parameters in found.items()]

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
    """One local training.

    Parameters
    ----------
    client
        Whose data are used.
    context
        Model with its starting weights, the request, and the view of the strategy.
    correct
        The strategy's correction of gradients, called between the gradient and the optimiser's step.
    optimizer
        Of the model's parameters.
    first_epoch
        Passes over the client's data in earlier rounds.
    memory
        What the trainer returned as ``memory`` in the client's last round; empty in its first.
    share
        The client's part of the common objective; None trains on the client's own.
    """

    client: str
    context: ClientContext
    correct: Callable[[ClientContext], None]
    optimizer: torch.optim.Optimizer
    first_epoch: int
    memory: bytes
    share: ClientShare | None = None

    @cached_property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.context.request.local_seed(self.client)

    def loss_factors(self, tasks: Sequence[str]) -> Tensor | None:
        """``[T]`` factors of the summed losses of a batch, per patient of it; None to take their means as they are."""
        if self.share is None:
            return None
        return torch.tensor([self.share.task_factors.get(task, 0.0) for task in tasks])

    @contextmanager
    def hooked(self, device: torch.device) -> Iterator[None]:
        """Scale every gradient to the common objective and let the strategy correct it; seed torch's global generators
        and restore them afterwards."""
        factors = self.context.gradient_factors({} if self.share is None else self.share.group_factors)

        def before_step(*_: Any) -> None:
            with torch.no_grad():
                for parameters, factor in factors:
                    if known := [p.grad for p in parameters if p.grad is not None]:
                        torch._foreach_mul_(known, factor)
            self.correct(self.context)

        hook = self.optimizer.register_step_pre_hook(before_step)
        try:
            with seeded(self.seed, device):
                yield
        finally:
            hook.remove()


@dataclass(frozen=True)
class LocalOutcome:
    """What a local training returns beside the weights.

    Parameters
    ----------
    passes
        Passes over the client's data.
    losses
        Task → mean training loss, and number of labels that it was computed from.
    memory
        State of the trainer for the client's next round.
    """

    passes: int
    losses: Mapping[str, tuple[float, float]]
    memory: bytes = b""


class LocalTrainer(Protocol):
    """The data of a worker's clients, and the training of one model on them.

    Attributes
    ----------
    model
        On its device; all clients train it in turn.
    tasks
        Names in :attr:`LocalOutcome.losses`.
    """

    model: nn.Module
    tasks: tuple[str, ...]

    def declare(self, client: str, groups: Sequence[str]) -> ClientManifest:
        """What a client says about its data; ``groups`` are those of the schema."""
        ...

    def train(self, job: LocalJob) -> LocalOutcome:
        """Train the model in place, and count the steps in the context."""
        ...
