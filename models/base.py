"""Base of multi-task models: inputs → one vector per task → linear heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead


class MultiTaskModel(nn.Module):
    """Inputs of a case → one vector per task → linear heads.

    A subclass builds its modules, calls :meth:`build_heads` once, and implements :meth:`pool` and, if tasks have more
    than their head, :meth:`task_modules`. Where it calls :meth:`build_heads` decides the order of parameters and of
    random initial weights, on which checkpoints and published results rely.

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

    heads: nn.ModuleList

    def __init__(self, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__()
        names = [head.name for head in heads]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a model needs at least one task and distinct names, not {names}")
        self.features = shape.features
        self.task_heads = tuple(heads)

    def build_heads(self, dim: int) -> None:
        """Add a linear head per task over vectors of width ``dim``."""
        # A list, not a dictionary: a module cannot have children called "a.b" or "keys", a task can.
        self.heads = nn.ModuleList(nn.Linear(dim, head.outputs) for head in self.task_heads)

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
        return {head.name: vector for head, vector in zip(self.task_heads, vectors, strict=True)}

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """One vector ``[B, dim]`` per task, from the tiles that exist."""
        raise NotImplementedError

    def outputs(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Apply the heads to what :meth:`latents` returned."""
        return {
            head.name: layer(latents[head.name])
            for head, layer in zip(self.task_heads, self.heads, strict=True)
        }

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


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())
