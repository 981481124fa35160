"""Losses of several tasks with missing labels.

Every loss is a **sum over labelled cases and their count**, not a mean: batches of an epoch, and workers of a
data parallel run, can then be combined without weighting a case by the size of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equipoise.models.batch import TaskHead
from equipoise.models.cox import Ties, cox_partial_likelihood
from equipoise.models.hazards import hazard_nll, interval_of
from equipoise.models.score_memory import ScoreMemory
from equipoise.models.text.losses import unit

#: Concatenates the rows of all workers, gradients flowing back to one's own rows; the identity for one worker.
Gather = Callable[[Tensor], Tensor]


def identity_gather(rows: Tensor) -> Tensor:
    """The :data:`Gather` of a single worker."""
    return rows


class LossSums(NamedTuple):
    """Losses of T tasks over some cases.

    ``sums`` and ``counts`` are ``[T]``. A case counts once; under Cox's model every event counts once, because
    a term of the partial likelihood belongs to an event.
    """

    sums: Tensor
    counts: Tensor

    def means(self) -> Tensor:
        """``[T]`` loss per case (per event); 0, without gradient, for a task without any label."""
        return self.sums / self.counts.clamp(min=1)


class TaskLosses(nn.Module):
    """Cross-entropy, squared error, Cox partial or discrete-time likelihood, over the cases with a label.

    Parameters
    ----------
    heads
        Tasks, in the order of the result.
    class_weights
        task → K weights of a classification task, kept as buffers. They should average 1 over the training
        cases (:func:`balanced_weights`): the weighted sum is divided by the number of cases and not by the
        sum of weights, with which a weight would cancel out in batches of one.
    ties
        How tied event times are treated in Cox losses.
    gather
        Brings the risk sets of all workers together.
    memory
        Scores of all training patients, whom Cox losses of training patients then compare with; without it with those
        of their batch.

    Raises
    ------
    ValueError
        If a weight belongs to no classification task or has the wrong length, or a regression head has more
        than one output (a task has one target).
    """

    def __init__(
        self,
        heads: Sequence[TaskHead],
        class_weights: Mapping[str, Sequence[float]] | None = None,
        *,
        ties: Ties = "efron",
        gather: Gather = identity_gather,
        memory: ScoreMemory | None = None,
    ) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.ties: Ties = ties
        self.gather = gather
        self.memory = memory
        weights = dict(class_weights or {})
        for index, head in enumerate(self.heads):
            weight = weights.pop(head.name, None)
            if head.kind == "regression" and head.outputs != 1:
                raise ValueError(
                    f"task {head.name!r}: a regression loss is defined for 1 output, not {head.outputs}"
                )
            if weight is not None and (
                head.kind not in ("binary", "multiclass") or len(weight) != head.outputs
            ):
                raise ValueError(
                    f"task {head.name!r} ({head.kind}, {head.outputs} outputs): weights {list(weight)}"
                )
            value = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
            self.register_buffer(f"class_weight_{index}", value, persistent=False)
            edges = None if head.edges is None else torch.tensor(head.edges, dtype=torch.float64)
            self.register_buffer(f"edges_{index}", edges, persistent=False)
        if weights:
            raise ValueError(f"class weights for unknown tasks: {', '.join(weights)}")

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        label_mask: Mapping[str, Tensor],
        cohort: Tensor | None = None,
        position: Tensor | None = None,
    ) -> LossSums:
        """Loss sums and label counts of all tasks.

        Parameters
        ----------
        outputs
            task → ``[B, K]``, from a model.
        targets, label_mask
            As in :class:`~equipoise.models.batch.CaseBatch`. Targets must be finite where masked, too.
        cohort
            ``[B]`` indices of cohorts, as there; only stratified heads need it.
        position
            ``[B]`` which training patients these are, as there; needed for the memory to be used.

        Raises
        ------
        ValueError
            If a head is stratified and ``cohort`` is None.
        """
        sums, counts = [], []
        for index, head in enumerate(self.heads):
            out, target, mask = (part[head.name] for part in (outputs, targets, label_mask))
            out = out if out.dtype == torch.float64 else out.float()  # half precision stops at the heads
            if head.compares_patients:
                labels = [mask, _strata_of(head, cohort, mask)] + ([] if position is None else [position])
                rows = torch.cat([out, target.to(out), torch.stack(labels, dim=1).to(out)], dim=1)
                total, count = self._cox(head.name, self.gather(rows))
            else:
                total, count = (self._per_case(index, out, target) * mask).sum(), mask.sum().to(out)
            sums.append(total)
            counts.append(count)
        return LossSums(torch.stack(sums), torch.stack(counts))

    def _per_case(self, index: int, out: Tensor, target: Tensor) -> Tensor:
        head = self.heads[index]
        if head.text is not None:
            return head.text.losses(out, self._text_shares(index, target))
        if head.kind == "regression":
            return _squared(out, target)
        if head.kind == "survival":
            return hazard_nll(out, interval_of(target[:, 0], getattr(self, f"edges_{index}")), target[:, 1])
        return _entropy(out, target, getattr(self, f"class_weight_{index}"))

    def _text_shares(self, index: int, target: Tensor) -> Tensor:
        """``[B, K]`` of the labels of a head on text, class weights included."""
        head, weight = self.heads[index], getattr(self, f"class_weight_{index}")
        if head.text is not None and head.kind == "survival":
            return head.text.survival_shares(target[:, 0], target[:, 1], getattr(self, f"edges_{index}"))
        shares = nn.functional.one_hot(target.long(), head.outputs).double()
        return shares if weight is None else shares * weight.double()

    def best_constant_text(self, index: int, target: Tensor) -> Tensor:
        """``[K]`` float64 outputs of a head on text that suit all these labels best: the shares of labels, or the
        distances from their mean target."""
        text = self.heads[index].text
        assert text is not None
        shares_K = self._text_shares(index, target).mean(dim=0)
        if text.loss == "infonce":
            return (shares_K / shares_K.sum()).clamp(min=1e-9).log()
        bank = text.embeddings().to(shares_K)
        return text.logits(unit((shares_K @ bank)[None]), bank)[0]

    def _cox(self, task: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        risk, days, event, _, stratum, *position = rows[rows[:, 3] > 0].unbind(dim=1)
        if position and self.memory is not None and task in self.memory:
            return self.memory.loss(task, risk, position[0].detach().long())
        days, event, stratum = days.detach(), event.detach(), stratum.detach()
        return cox_partial_likelihood(risk, days, event, ties=self.ties, strata=stratum), event.sum()


def _strata_of(head: TaskHead, cohort_B: Tensor | None, mask_B: Tensor) -> Tensor:
    if not head.stratified:
        return torch.zeros_like(mask_B)
    if cohort_B is None:
        raise ValueError(
            f"task {head.name!r} is stratified by cohort, and the cohorts of the cases are not given"
        )
    return cohort_B


def _entropy(out_BK: Tensor, target_B: Tensor, weight_K: Tensor | None) -> Tensor:
    weight = None if weight_K is None else weight_K.to(out_BK)
    return nn.functional.cross_entropy(out_BK, target_B.long(), weight=weight, reduction="none")


def _squared(out_B1: Tensor, target_B: Tensor) -> Tensor:
    return (out_B1[:, 0] - target_B.to(out_B1)).square()


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Weights n / (K n_k) of K classes with n_k training cases each: equal total weight per class, mean 1.

    Raises
    ------
    ValueError
        If a class has no training case.
    """
    if min(counts) < 1:
        raise ValueError(f"a class without training cases has no weight: counts {list(counts)}")
    return [sum(counts) / (len(counts) * count) for count in counts]
