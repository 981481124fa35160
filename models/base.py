"""Base of multi-task models: inputs → one vector per task → linear heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.text.head import head_layer


class SharedRepresentation(nn.Module):
    """The identity, at the place in a model where the tasks part: a model passes what its tasks share through it.

    It has no parameters. While :attr:`kept` is set, it remembers what passed, for balancing at the representation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept = False
        self._last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        if self.kept:
            self._last = x if x.requires_grad else None
        return x

    def take(self) -> Tensor | None:
        """What passed last, with its graph, which is no longer kept here; None if nothing with a graph passed."""
        last, self._last = self._last, None
        return last

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


class MultiTaskModel(nn.Module):
    """Inputs of a case → one vector per task → linear heads.

    A subclass builds its modules, calls :meth:`build_heads` once, and implements :meth:`pool` and, if tasks have more
    than their head, :meth:`task_modules`. The vector that all tasks read passes through :attr:`representation`; a model
    whose tasks part earlier passes what they share there itself. Where it calls :meth:`build_heads` decides the order
    of parameters and of random initial weights, on which checkpoints and published results rely.

    Parameters
    ----------
    shape
        Widths of the data; only the tile features are read.
    heads
        Tasks, in the order of the heads in the state dictionary.

    Raises
    ------
    ValueError
        If there is no task or a name comes twice.
    """

    #: Whether columns that heads read directly are on a common scale, so that a penalty treats them equally.
    rows_are_standardised = False

    heads: nn.ModuleList
    representation: SharedRepresentation

    def __init__(self, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__()
        self.representation = SharedRepresentation()
        names = [head.name for head in heads]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a model needs at least one task and distinct names, not {names}")
        self.features = shape.features
        self.task_heads = tuple(heads)

    def build_heads(self, dim: int) -> None:
        """Add a head per task over vectors of width ``dim``: linear, or on text where the task says so."""
        # A list, not a dictionary: a module cannot have children called "a.b" or "keys", a task can.
        self.heads = nn.ModuleList(head_layer(dim, head) for head in self.task_heads)

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs per task, ``[B, K]``: logits, scaled values, log risks or logits of hazards."""
        return self.outputs(self.latents(batch))

    def latents(self, batch: CaseBatch) -> dict[str, Tensor]:
        """What each head reads, ``[B, dim]``; one tensor for all tasks where they share it.

        Raises
        ------
        ValueError
            If the tiles have another number of features than the model was built for.
        """
        if batch.bags.shape[-1] != self.features:
            raise ValueError(
                f"tiles have {batch.bags.shape[-1]} features, the model was built for {self.features}: "
                f"another encoder?"
            )
        vectors = self.pool(batch)
        if all(vector is vectors[0] for vector in vectors):
            vectors = [self.representation(vectors[0])] * len(vectors)
        return {head.name: vector for head, vector in zip(self.task_heads, vectors, strict=True)}

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """One vector ``[B, dim]`` per task, from the tiles that exist."""
        raise NotImplementedError

    def rows(self, batch: CaseBatch) -> Tensor:
        """``[B, p]`` what a solver fits the heads of a linear model on: what they read, the same for every task."""
        return self.latents(batch)[self.task_heads[0].name]

    def outputs(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Apply the heads to what :meth:`latents` returned."""
        return {
            head.name: layer(latents[head.name])
            for head, layer in zip(self.task_heads, self.heads, strict=True)
        }

    def prepare(self, batches: Sequence[CaseBatch]) -> None:
        """Fit on training cases what a model must know of them before a solver fits its heads; nothing by default."""

    @property
    def factors(self) -> np.ndarray | None:
        """How strongly a penalty of the heads acts on each column, ``[dim]``; None for all equally."""
        return None

    def frozen_digest(self) -> str | None:
        """SHA-256 of weights that the model uses and never trains, which its state dictionary lacks; None without any.

        Raises
        ------
        RuntimeError
            If they have changed since the model was built.
        """
        return None

    @property
    def hides_modalities(self) -> bool:
        """Whether modalities of training cases are hidden at random."""
        return False

    @property
    def reads_states(self) -> bool:
        """Whether the model reads hidden states in place of tiles, where a case has them."""
        return False

    @property
    def has_attention(self) -> bool:
        """Whether :meth:`attention` says where the model looks."""
        return False

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """task → ``[B, N]`` weights of the tiles, which sum to 1 over those that exist; for models that have them.

        Raises
        ------
        NotImplementedError
            If the model has no attention over tiles.
        """
        raise NotImplementedError(f"a {type(self).__name__} has no attention over tiles")

    def task_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Modules and parameters that only the task at this index uses."""
        return [self.heads[index]]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that all tasks use, which balancing acts on; none where heads read the data directly."""
        specific = {id(p) for head in self.task_heads for p in self.task_parameters(head.name)}
        return [p for p in self.parameters() if id(p) not in specific]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The task-specific parameters.

        Raises
        ------
        KeyError
            If the model has no such task.
        """
        for index, head in enumerate(self.task_heads):
            if head.name == task:
                return [p for part in self.task_modules(index) for p in _parameters(part)]
        raise KeyError(f"no task {task!r}; the model has {', '.join(head.name for head in self.task_heads)}")


def frozen_digests(model: nn.Module) -> list[str]:
    """The different :meth:`MultiTaskModel.frozen_digest` of a model and its parts, sorted."""
    parts = [part for part in model.modules() if isinstance(part, MultiTaskModel)]
    return sorted({digest for part in parts if (digest := part.frozen_digest()) is not None})


def reads_states(model: nn.Module) -> bool:
    """Whether a model, or a part of it, reads hidden states in place of tiles."""
    return any(part.reads_states for part in model.modules() if isinstance(part, MultiTaskModel))


def attention_of(model: nn.Module, batch: CaseBatch) -> dict[str, Tensor] | None:
    """:meth:`MultiTaskModel.attention` of a model, also of an ensemble; None where it has none."""
    return model.attention(batch) if getattr(model, "has_attention", False) else None  # type: ignore[operator]


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())
