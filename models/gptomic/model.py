r"""Stage 2 of Path-GPTOmic: an image and an omics branch, their fusion, linear heads.

Source: "Path-GPTOmic: a balanced multi-modal learning framework for survival outcome prediction", arXiv 2403.11375
(ISBI 2024). With the published fusion the log risk is :math:`\theta = W^G G + W^P P + b`, so that every branch has a
term of its own, from which the modulation of its training is computed. Covariates go straight to the heads. Ours:
other fusions and modulations, other tasks than survival, learned tokens for what a patient lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import GptomicParams
from equipoise.models.gptomic.branches import (
    GENOME,
    RNA,
    ClinicalColumns,
    ImageBranch,
    OmicsBranch,
    parameters_of,
)
from equipoise.models.gptomic.protocol import BranchForward, BranchModulation, branch_task

IMAGE, OMICS, CLINICAL = "image", "omics", "clinical"


class Gptomic(MultiTaskModel):
    """Branches → fusion → linear heads over what was fused, and covariates.

    Parameters
    ----------
    params
        Sizes.
    shape
        Widths of the data: an image branch if there are tiles, an omics branch if there is RNA, CNV or a table of
        mutations.
    heads
        Tasks.
    image
        Makes the multiple-instance model of the image branch from a shape and the heads.
    fusion
        Makes the fusion from the widths of the branches' vectors.
    modulation
        Makes the modulation.

    Raises
    ------
    ValueError
        If the data have neither tiles nor omics, the image model is none, or fusion or modulation do not fit the data
        or the tasks.
    """

    def __init__(
        self,
        params: GptomicParams,
        shape: CaseShape,
        heads: Sequence[TaskHead],
        *,
        image: Callable[[CaseShape, Sequence[TaskHead]], nn.Module],
        fusion: Callable[[Mapping[str, int]], Any],
        modulation: Callable[[], BranchModulation],
    ) -> None:
        super().__init__(shape, heads)
        learned: dict[str, Any] = {}
        if shape.features:
            plain = [replace(head, text=None) for head in heads]  # of its heads only the widths are read
            pooling = image(CaseShape(shape.features), plain)
            if not isinstance(pooling, MultiTaskModel):
                raise ValueError(f"image: a {type(pooling).__name__} has no vectors that heads read")
            learned[IMAGE] = ImageBranch(pooling)
        if tables := {name: shape.omics[name] for name in (*GENOME, RNA) if name in shape.omics}:
            learned[OMICS] = OmicsBranch(
                tables,
                dim=params.dim,
                layers=params.layers,
                snn_layers=params.snn_layers,
                dropout=params.dropout,
                input_dropout=params.input_dropout,
            )
        if not learned:
            raise ValueError(
                "gptomic needs slides or a table of rna, cnv or mutation; model clinical reads covariates"
            )
        self.learned = nn.ModuleDict(learned)
        self.clinical = ClinicalColumns(shape.omics[CLINICAL]) if CLINICAL in shape.omics else None
        widths = {name: int(branch.width) for name, branch in learned.items()}
        self.fusion = fusion(widths)
        self.modulation = modulation()
        settings = self.fusion.params, self.modulation.params
        self.hides = float(getattr(settings[1], "hides", 0.0)) if len(learned) > 1 else 0.0
        self.own_weight = sum(float(getattr(part, "branch_loss", 0.0)) for part in settings)
        self.additive = bool(getattr(settings[0], "additive", False))
        wanted = any(getattr(part, "needs_heads", False) for part in settings)
        self.own_heads = nn.ModuleDict()
        if wanted or not self.additive:
            self.own_heads.update(
                {
                    name: nn.ModuleList(nn.Linear(width, head.outputs) for head in heads)
                    for name, width in widths.items()
                }
            )
        self.adds_tasks = bool(getattr(settings[1], "adds_tasks", False))
        self.balances = self.own_weight > 0 or not getattr(settings[1], "neutral", False)
        extra = 0 if self.clinical is None else self.clinical.width
        self.heads = nn.ModuleList(nn.Linear(self.fusion.width(head) + extra, head.outputs) for head in heads)
        with torch.no_grad():
            for head, layer in zip(heads, self.heads, strict=True):
                self._initial(head, layer, params.output_scale)
        self._check(heads)

    def _initial(self, head: TaskHead, layer: nn.Module, scale: float) -> None:
        """Heads start scaled; those over scores of branches start as their plain sum."""
        assert isinstance(layer, nn.Linear)
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
        if self.fusion.per_task:
            for columns in self.fusion.columns(head).values():
                layer.weight[:, columns] = torch.eye(head.outputs)

    def _check(self, heads: Sequence[TaskHead]) -> None:
        if self.modulation.ratio == "as_printed" and not (
            self.additive and all(head.compares_patients for head in heads)
        ):
            raise ValueError(
                "ratio as_printed is an equation of Cox's model over a sum of two terms: write ratio: share_sum for "
                "other tasks and fusions"
            )
        teacher = getattr(self.modulation, "teacher", None)
        if teacher is not None and teacher not in self.learned:
            raise ValueError(
                f"teacher {teacher!r} is no branch of this data; branches are {', '.join(self.learned)}"
            )

    @property
    def hides_modalities(self) -> bool:
        """Whether branches of training cases are hidden."""
        return self.hides > 0

    @property
    def attached(self) -> bool:
        """Whether the branches' own heads move their branches; else they only look on."""
        return self.own_weight > 0 or self.fusion.per_task

    @property
    def own_loss(self) -> float:
        """Weight of the losses of the branches' own heads; 1 where they only look on, 0 without them."""
        return (self.own_weight if self.attached else 1.0) if self.own_heads else 0.0

    @property
    def has_attention(self) -> bool:
        """Where the model of the image branch has one."""
        return IMAGE in self.learned and bool(self.learned[IMAGE].has_attention)

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """That of the image branch."""
        branch = self.learned[IMAGE]
        assert isinstance(branch, ImageBranch)
        return branch.attention(batch)

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """Branch → its parameters, tokens included; fusion and heads are nobody's."""
        found = {name: list(branch.parameters()) for name, branch in self.learned.items()}
        return {name: parameters for name, parameters in found.items() if parameters}

    def branch_heads(self) -> tuple[TaskHead, ...]:
        """Heads of the branches' own predictions as tasks of the balancing method; none as terms of the loss."""
        if not self.adds_tasks:
            return ()
        return tuple(
            replace(head, name=branch_task(head.name, name), main=False)
            for name in self.own_heads
            for head in self.task_heads
        )

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """What was fused, with the covariates behind it."""
        return self._fuse(batch)[0]

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs per task, ``[B, K]``."""
        return self.forward_with_branches(batch).outputs

    def forward_with_branches(self, batch: CaseBatch) -> BranchForward:
        """Outputs, and what every branch says by itself."""
        latents, own, present = self._latents_and_branches(batch)
        outputs = self.outputs(latents)
        scores = {
            head.name: self._scores(index, head, latents[head.name], own)
            for index, head in enumerate(self.task_heads)
        }
        return BranchForward(outputs, scores, own, present)

    def latents(self, batch: CaseBatch) -> dict[str, Tensor]:
        """What each head reads."""
        return self._latents_and_branches(batch)[0]

    def _latents_and_branches(
        self, batch: CaseBatch
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        if batch.bags.shape[-1] != self.features:
            raise ValueError(
                f"tiles have {batch.bags.shape[-1]} features, the model was built for {self.features}: "
                f"another encoder?"
            )
        vectors, own, present = self._fuse(batch)
        if all(vector is vectors[0] for vector in vectors):
            vectors = [self.representation(vectors[0])] * len(vectors)
        latents = {head.name: vector for head, vector in zip(self.task_heads, vectors, strict=True)}
        return latents, own, present

    def _fuse(self, batch: CaseBatch) -> tuple[list[Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Per task what the head reads; branch → task → own scores; branch → presence."""
        shown = self._shown(batch)
        embeddings = {name: branch(batch, shown[name]) for name, branch in self.learned.items()}
        count = len(self.task_heads)
        of_task = [
            {name: e[i] if isinstance(e, list) else e for name, e in embeddings.items()} for i in range(count)
        ]
        own = {
            name: {
                head.name: layers[i](of_task[i][name] if self.attached else of_task[i][name].detach())  # type: ignore[index]
                for i, head in enumerate(self.task_heads)
            }
            for name, layers in self.own_heads.items()
        }
        covariates = [] if self.clinical is None else [self.clinical(batch)]
        fused: list[Tensor] = []
        for i, head in enumerate(self.task_heads):
            if i and not self.fusion.per_task and all(of_task[i][n] is of_task[0][n] for n in embeddings):
                fused.append(fused[0])
                continue
            scores = {name: scores[head.name] for name, scores in own.items()}
            fused.append(torch.cat([self.fusion(of_task[i], shown, scores), *covariates], dim=1))
        if self.clinical is not None:
            shown = {**shown, CLINICAL: self.clinical.present(batch)}
        return fused, own, shown

    def _scores(
        self, index: int, head: TaskHead, latent: Tensor, own: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Branch → ``[B, K]``: its term of a sum, with an equal share of the bias, or the score of its own head."""
        layer = self.heads[index]
        assert isinstance(layer, nn.Linear)
        columns = dict(self.fusion.columns(head)) if self.additive else {}
        if self.clinical is not None:
            columns[CLINICAL] = slice(latent.shape[1] - self.clinical.width, latent.shape[1])
        bias = layer.bias / max(len(columns), 1)
        scores = {} if self.additive else {name: rows[head.name] for name, rows in own.items()}
        return scores | {
            name: nn.functional.linear(latent[:, span], layer.weight[:, span], bias)
            for name, span in columns.items()
        }

    def _shown(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Presence of the branches, with some hidden at random in training; one that is there always stays."""
        branches: dict[str, Any] = dict(self.learned.items())
        present = {name: branch.present(batch) for name, branch in branches.items()}
        if not self.training or self.hides == 0:
            return present
        present_BM = torch.stack(list(present.values()), dim=1)
        draw_BM = torch.rand(present_BM.shape, device=present_BM.device).masked_fill(~present_BM, -1)
        kept_BM = (draw_BM >= self.hides) | (draw_BM == draw_BM.max(dim=1, keepdim=True).values)
        return {name: (present_BM & kept_BM)[:, m] for m, name in enumerate(present)}

    def task_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """The head, what of the image model belongs to the task, and own heads that are no tasks of their own."""
        parts = super().task_modules(index)
        if IMAGE in self.learned:
            parts += self.learned[IMAGE].task_parts[index]  # type: ignore[index]
        if not self.adds_tasks:
            parts += [layers[index] for layers in self.own_heads.values()]  # type: ignore[index]
        return parts

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """As of every model; of an added task the branch's own head."""
        for name, layers in self.own_heads.items() if self.adds_tasks else ():
            for index, head in enumerate(self.task_heads):
                if task == branch_task(head.name, name):
                    return list(layers[index].parameters())  # type: ignore[index]
        return super().task_parameters(task)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that belong to no task."""
        owned = {
            id(p) for index in range(len(self.task_heads)) for p in parameters_of(self.task_modules(index))
        }
        owned |= {id(p) for p in self.own_heads.parameters()}
        return [p for p in self.parameters() if id(p) not in owned]

    def modality_groups(self) -> Iterable[tuple[str, list[Tensor]]]:
        """Groups of a federation: ``modality:a+b`` is trained by clients whose patients have a or b, ``absent:a+b`` by
        those with patients that have neither."""
        parts: list[Any] = [*self.learned.values(), *([] if self.clinical is None else [self.clinical])]
        for part in parts:
            yield from part.groups().items()
