"""What a model with branches offers to the training loop, and what a modulation of their training does.

A branch turns one kind of data into a vector; the model fuses the vectors. After every backward pass the loop asks the
modulation of the model for a coefficient per branch
(:mod:`equipoise.platform.training.modulation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from equipoise.models.batch import CaseBatch, TaskHead
from equipoise.models.gptomic.entries import ModulationParams
from equipoise.models.losses import Gather


@dataclass(frozen=True)
class BranchForward:
    """A forward pass with what every branch says by itself.

    Parameters
    ----------
    outputs
        task → ``[B, K]`` of the fused model.
    scores
        task → branch → ``[B, K]``, what the branch contributes or says alone; a graph is not needed.
    own
        branch → task → ``[B, K]`` of the heads that branches have of their own, with their graph; empty without them.
    present
        branch → ``[B]`` bool, whether the case shows the branch anything.
    """

    outputs: dict[str, Tensor]
    scores: dict[str, dict[str, Tensor]]
    own: dict[str, dict[str, Tensor]]
    present: dict[str, Tensor]


@dataclass(frozen=True)
class ObjectiveInputs:
    """What a modulation may build a term of the objective from.

    ``gather`` brings the rows of all workers together: a term computed from gathered rows is the same at every worker.
    """

    heads: tuple[TaskHead, ...]
    forward: BranchForward
    batch: CaseBatch
    gather: Gather


class BranchModulation(Protocol):
    """How the training of branches is kept in balance; it has no state.

    Attributes
    ----------
    params
        Of its entry.
    slows
        Whether coefficients may be other than 1.
    ratio, acts_on
        Which ratio of evidence it looks at, and what its coefficients multiply
        (:mod:`equipoise.models.gptomic.entries`).
    noise
        Whether Gaussian noise of each gradient's own standard deviation is added to the branches' gradients.
    """

    params: ModulationParams
    slows: bool
    ratio: str
    acts_on: str
    noise: bool

    def acts(self, epoch: int) -> bool:
        """Whether it slows branches in this epoch, from 0."""
        ...

    def coefficient(self, ratio: float) -> float:
        """The factor, in [0, 1], for a branch with this ratio."""
        ...

    def term(self, inputs: ObjectiveInputs) -> Tensor | None:
        """``[T]`` what is added to the losses of the tasks; None for nothing."""
        ...


@runtime_checkable
class BranchedModel(Protocol):
    """A model with branches.

    Attributes
    ----------
    modulation
        Of its branches.
    own_loss
        Weight of the losses of the branches' own heads; 0 without such heads.
    adds_tasks
        Whether these losses are tasks of the balancing method, named by :func:`branch_task`, and no terms.
    balances
        Whether training differs from that of the fused loss alone.
    """

    modulation: BranchModulation
    own_loss: float
    adds_tasks: bool
    balances: bool

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Branch → its parameters, without those of fusion and heads; only branches that have some."""
        ...

    def forward_with_branches(self, batch: CaseBatch) -> BranchForward:
        """A forward pass with what every branch says by itself."""
        ...

    def branch_heads(self) -> tuple[TaskHead, ...]:
        """Heads of the tasks that are added, branch by branch, in the order of the model's tasks."""
        ...


def branch_task(task: str, branch: str) -> str:
    """Name of the task that is a branch's own prediction of a task.

    >>> branch_task("OS", "omics")
    'OS@omics'
    """
    return f"{task}@{branch}"
