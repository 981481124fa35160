"""Balance between the branches of a model: what each says alone, its ratio, and what slows it down.

The loop knows branches through :mod:`equipoise.models.gptomic.protocol` only. In every step the scores of the
branches give a ratio each (:mod:`equipoise.models.gptomic.ratios`), over the patients of all workers who have all
branches; the model's modulation makes coefficients of them, which act on the learning rate of a branch, on its
gradient, or on its update. Adam divides a constant factor of the gradient out again; the learning rate is what slows
a branch under any optimiser. Heads and fusion are never slowed. A coefficient on the learning rate also scales
decoupled weight decay, one on the update leaves it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch, TaskHead
from equipoise.models.gptomic.protocol import BranchedModel, BranchForward, ObjectiveInputs
from equipoise.models.gptomic.ratios import log_likelihoods, mean_ratios, task_ratios
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.models.seeds import torch_seed
from equipoise.platform.registry import get
from equipoise.platform.training.distributed import WorkerGroup
from equipoise.platform.training.params import Recipe, TrainingParams, entry_params
from equipoise.platform.training.predict import Outputs
from equipoise.platform.training.targets import Targets

#: Key of an optimiser's parameter group that holds the parameters of a branch.
BRANCH = "branch"
#: Columns of the history: ratio and coefficient of a branch.
RHO, COEFFICIENT = "rho/", "coefficient/"
#: Mean coefficients above this in every epoch change nothing that could be measured.
HARDLY = 0.99
#: Stream of the noise of gradients.
NOISE = 0x06E


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: one per branch, and the rest first; a single one without branches."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not isinstance(model, BranchedModel):
        return [{"params": trained}]
    branches = {
        name: [p for p in parameters if p.requires_grad] for name, parameters in model.branches().items()
    }
    owned = {id(p) for parameters in branches.values() for p in parameters}
    rest = [{"params": [p for p in trained if id(p) not in owned]}]
    return rest + [{"params": parameters, BRANCH: name} for name, parameters in branches.items()]


def balanced_heads(model: nn.Module, heads: Sequence[TaskHead]) -> tuple[TaskHead, ...]:
    """The tasks of the balancing method: those of the study, and the branches' own where the model adds them."""
    added = model.branch_heads() if isinstance(model, BranchedModel) else ()
    return (*heads, *added)


class EpochModulation:
    """The branches of a model in the steps of one epoch.

    Parameters
    ----------
    model
        With branches.
    targets, params
        Tasks and settings of the training.
    group
        Workers that train together.
    device
        Of the losses.
    seed, epoch
        Everything random is a function of them and of the step.
    """

    def __init__(
        self,
        model: BranchedModel,
        targets: Targets,
        params: TrainingParams,
        group: WorkerGroup,
        device: torch.device,
        *,
        seed: int,
        epoch: int,
    ) -> None:
        self.model, self.heads, self.group = model, targets.heads, group
        self.seed, self.epoch = seed, epoch
        self.losses = TaskLosses(
            targets.heads, targets.class_weights, ties=params.ties, gather=group.gather
        ).to(device)
        self.slowed = tuple(model.branches())
        self._forward: BranchForward | None = None
        self._ratios: dict[str, float] = {}
        self._rows: list[dict[str, float]] = []

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs of the model; what its branches say is kept until the next pass."""
        self._forward = self.model.forward_with_branches(batch)
        return self._forward.outputs

    def with_branch_tasks(self, sums: LossSums, batch: CaseBatch) -> LossSums:
        """Loss sums of the tasks, and of the branches' own predictions behind them where these are tasks."""
        if not self.model.adds_tasks:
            return sums
        own = self._own_losses(batch)
        return LossSums(
            torch.cat([sums.sums, *(part.sums for part in own)]),
            torch.cat([sums.counts, *(part.counts for part in own)]),
        )

    def terms(self, batch: CaseBatch) -> Tensor | None:
        """``[T']`` terms of the objective beside the tasks' losses, whose mean over workers is their value."""
        assert self._forward is not None
        total: Tensor | None = None
        if self.model.own_loss and not self.model.adds_tasks:
            for part in self._own_losses(batch):
                counts = self.group.total(part.counts.detach())
                loss = part.sums * (self.group.world / counts.clamp(min=1)) * self.model.own_loss
                total = loss if total is None else total + loss
        inputs = ObjectiveInputs(self.heads, self._forward, batch, self.group.gather)
        if (term := self.model.modulation.term(inputs)) is not None:
            total = term if total is None else total + term
        if total is None or not self.model.adds_tasks:
            return total
        return torch.cat([total, total.new_zeros(len(self.model.branch_heads()))])

    def _own_losses(self, batch: CaseBatch) -> list[LossSums]:
        """Losses of the branches' own heads over the cases that have the branch."""
        forward = self._forward
        assert forward is not None
        return [
            self.losses(
                outputs,
                batch.targets,
                {task: mask & forward.present[name] for task, mask in batch.label_mask.items()},
                batch.cohort,
            )
            for name, outputs in forward.own.items()
        ]

    def observe(self, batch: CaseBatch) -> None:
        """Take the ratios of the step from the last forward pass, that of its batch; balancing may need others."""
        self._ratios = self.ratios(batch)

    @contextmanager
    def slowing(self, optimizer: torch.optim.Optimizer, step: int) -> Iterator[None]:
        """The coefficients of a step, in force between its gradient and the end of the optimiser's step."""
        ratios = self._ratios
        modulation = self.model.modulation
        acts = modulation.acts(self.epoch)
        coefficients = {
            name: modulation.coefficient(ratio) if acts else 1.0 for name, ratio in ratios.items()
        }
        self._rows.append(
            {f"{RHO}{name}": ratio for name, ratio in ratios.items()}
            | {f"{COEFFICIENT}{name}": value for name, value in coefficients.items()}
        )
        noise = modulation.noise and acts
        if not noise and all(value == 1 for value in coefficients.values()):
            yield
            return
        generator = torch.Generator().manual_seed(torch_seed(self.seed, self.epoch, step, NOISE))
        for name, parameters in self.model.branches().items():
            factor = coefficients.get(name, 1.0) if modulation.acts_on == "gradient" else 1.0
            _scale_gradients(parameters, factor, generator if noise else None)
        if modulation.acts_on == "gradient":
            yield
            return
        groups = _branch_groups(optimizer, coefficients)
        slow = _slow_rate if modulation.acts_on == "lr" else _slow_update
        with slow(groups, coefficients):
            yield

    def ratios(self, batch: CaseBatch) -> dict[str, float]:
        """Branch → its ratio in the last forward pass, over the patients of all workers with all branches."""
        forward = self._forward
        assert forward is not None
        if len(self.slowed) < 2:
            return dict.fromkeys(self.slowed, math.nan)
        kind = self.model.modulation.ratio
        whole = torch.stack([forward.present[name] for name in self.slowed]).all(dim=0)
        tasks = []
        for head in self.heads:
            scores = [forward.scores[head.name][name].detach().float() for name in self.slowed]
            target = batch.targets[head.name].float().reshape(len(batch), -1)
            known = (batch.label_mask[head.name] & whole).float()
            stratum = torch.zeros_like(known) if batch.cohort is None else batch.cohort.float()
            rows = self.group.gather(torch.cat([*scores, target, stratum[:, None], known[:, None]], dim=1))
            rows = rows[rows[:, -1] > 0].cpu()
            each, stratum = rows[:, : len(scores) * head.outputs].split(head.outputs, dim=1), rows[:, -2]
            truth = rows[:, len(scores) * head.outputs : -2]
            if head.kind != "survival":
                truth = truth[:, 0]
            values = {
                name: log_likelihoods(head, score, truth, stratum, printed=kind == "as_printed")
                for name, score in zip(self.slowed, each, strict=True)
            }
            tasks.append(task_ratios(kind, values))
        return mean_ratios(kind, tasks)

    def row(self) -> dict[str, float]:
        """``rho/<branch>`` and ``coefficient/<branch>`` of the epoch, means over its steps; NaN where never known.

        Positive ratios have their geometric mean, so that those of two branches stay reciprocal.
        """
        row = {}
        for key in self._rows[0] if self._rows else ():
            known = [step[key] for step in self._rows if math.isfinite(step[key])]
            if not known:
                row[key] = math.nan
            elif key.startswith(RHO) and min(known) > 0:
                row[key] = math.exp(sum(map(math.log, known)) / len(known))
            else:
                row[key] = sum(known) / len(known)
        return row


def _scale_gradients(
    parameters: Sequence[nn.Parameter], factor: float, generator: torch.Generator | None
) -> None:
    """Multiply gradients; with a generator, add noise of the standard deviation of each."""
    for parameter in parameters:
        if (gradient := parameter.grad) is None:
            continue
        noise = None
        if generator is not None and gradient.numel() > 1:
            drawn = torch.randn(gradient.shape, generator=generator).to(gradient)
            noise = drawn * (gradient.std() + 1e-8)
        gradient.mul_(factor)
        if noise is not None:
            gradient.add_(noise)


def _branch_groups(
    optimizer: torch.optim.Optimizer, coefficients: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    groups = {group[BRANCH]: group for group in optimizer.param_groups if BRANCH in group}
    if missing := [name for name in coefficients if name not in groups]:
        raise ValueError(
            f"the optimiser has no parameter group for branch {', '.join(missing)}: build it from "
            "parameter_groups(model)"
        )
    return groups


@contextmanager
def _slow_rate(groups: Mapping[str, dict[str, Any]], coefficients: Mapping[str, float]) -> Iterator[None]:
    """Multiply the learning rates of branches, for one step."""
    rates = {name: groups[name]["lr"] for name in coefficients}
    for name, factor in coefficients.items():
        groups[name]["lr"] = rates[name] * factor
    try:
        yield
    finally:
        for name, rate in rates.items():
            groups[name]["lr"] = rate


@contextmanager
def _slow_update(groups: Mapping[str, dict[str, Any]], coefficients: Mapping[str, float]) -> Iterator[None]:
    """Multiply the steps of branches, without decoupled weight decay."""
    before = {
        name: [p.detach().clone() for p in groups[name]["params"]]
        for name, factor in coefficients.items()
        if factor != 1
    }
    yield
    with torch.no_grad():
        for name, old in before.items():
            group = groups[name]
            # AdamW of torch is Adam with this key; plain weight decay is part of the gradient.
            decoupled = bool(group.get("decoupled_weight_decay", False))
            shrink = 1 - group["lr"] * group.get("weight_decay", 0.0) if decoupled else 1.0
            moving = [(p, o) for p, o in zip(group["params"], old, strict=True) if p.grad is not None]
            for parameter, start in moving:
                start.mul_(shrink)
                parameter.sub_(start).mul_(coefficients[name]).add_(start)


class BranchView(nn.Module):
    """A model with branches whose outputs carry the scores of its branches behind their own columns.

    It takes a model's place where outputs for many cases are collected (:class:`BatchReader`), so that the branches
    cost no further pass. Parameters and mode are the model's.
    """

    def __init__(self, model: nn.Module, heads: Sequence[TaskHead]) -> None:
        super().__init__()
        self.model = model
        self.heads = tuple(heads)
        self.names: tuple[str, ...] = ()
        self.train(model.training)

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Task → ``[B, K (1 + M) + M]``: outputs, scores and presence of M branches."""
        forward = self.model.forward_with_branches(batch)  # type: ignore[operator]
        wide = {}
        for head in self.heads:
            scores = forward.scores[head.name]
            self.names = tuple(scores)
            present = torch.stack([forward.present[name] for name in scores], dim=1)
            parts = [forward.outputs[head.name], *scores.values(), present.to(forward.outputs[head.name])]
            wide[head.name] = torch.cat(parts, dim=1)
        return wide

    def split(self, result: Outputs) -> tuple[Outputs, dict[str, Outputs]]:
        """Collected outputs of this view as those of the model, and branch → those of the branch.

        A branch is known for the patients that have it.
        """
        own, branches = {}, {name: ({}, {}) for name in self.names}  # type: ignore[var-annotated]
        for head in self.heads:
            wide, k, m = result.outputs[head.name], head.outputs, len(self.names)
            own[head.name] = wide[:, :k]
            for i, name in enumerate(self.names):
                outputs, labelled = branches[name]
                outputs[head.name] = wide[:, k * (1 + i) : k * (2 + i)]
                labelled[head.name] = result.label_mask[head.name] & (wide[:, k * (1 + m) + i] > 0.5)
        return replace(result, outputs=own), {
            name: replace(result, outputs=outputs, label_mask=labelled)
            for name, (outputs, labelled) in branches.items()
        }


def epoch_modulation(
    model: nn.Module,
    targets: Targets,
    params: TrainingParams,
    group: WorkerGroup,
    device: torch.device,
    *,
    seed: int,
    epoch: int,
) -> EpochModulation | None:
    """The branches of a model in an epoch; None for a model without branches."""
    if not isinstance(model, BranchedModel):
        return None
    return EpochModulation(model, targets, params, group, device, seed=seed, epoch=epoch)


def modulation_warnings(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> list[str]:
    """A sentence if the modulation of a model slowed no branch, so that its result is that of no modulation.

    Parameters
    ----------
    recipe
        Model and parameters of the fit.
    history
        Its epochs.
    """
    components = get("models", recipe.model).attribute("components")
    fields = [field for field, kind in components.items() if kind == "modulations"]
    params = entry_params("models", recipe.model, recipe.model_params)
    names = [getattr(params, field) for field in fields]
    slowing = [name for name in names if get("modulations", name).attribute("slows")]
    keys = [key for key in (history[0] if history else {}) if key.startswith(COEFFICIENT)]
    lowest = min((row[key] for row in history for key in keys), default=math.nan)
    if not slowing or not keys or lowest < HARDLY:
        return []
    branches = " and ".join(key.removeprefix(COEFFICIENT) for key in keys)
    ratios = [row[f"{RHO}{key.removeprefix(COEFFICIENT)}"] for row in history for key in keys]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    why = (
        f"the mean ratio was at most {max(known):.3g}"
        if known
        else "no ratio was known, for want of a second branch"
    )
    return [
        f"modulation {' and '.join(slowing)} hardly acted: the coefficients of {branches} never fell below {HARDLY:g} "
        f"({why}), so that the model is that of modulation: none"
    ]
