"""Losses of several tasks with missing labels.

Every loss is a **sum over labelled cases and their count**, not a mean: batches of an epoch, and workers of a
data parallel run, can then be combined without weighting a case by the size of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.models.batch import TaskHead
from equipoise.models.hazards import hazard_nll, interval_of

Ties = Literal["efron", "breslow"]

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
    ) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.ties: Ties = ties
        self.gather = gather
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
                stratum = _strata_of(head, cohort, mask)
                rows = torch.cat([out, target.to(out), torch.stack([mask, stratum], dim=1).to(out)], dim=1)
                total, count = self._cox(self.gather(rows))
            else:
                total, count = (self._per_case(index, out, target) * mask).sum(), mask.sum().to(out)
            sums.append(total)
            counts.append(count)
        return LossSums(torch.stack(sums), torch.stack(counts))

    def _per_case(self, index: int, out: Tensor, target: Tensor) -> Tensor:
        head = self.heads[index]
        if head.kind == "regression":
            return _squared(out, target)
        if head.kind == "survival":
            return hazard_nll(out, interval_of(target[:, 0], getattr(self, f"edges_{index}")), target[:, 1])
        return _entropy(out, target, getattr(self, f"class_weight_{index}"))

    def _cox(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        risk, days, event, _, stratum = rows[rows[:, 3] > 0].unbind(dim=1)
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


def cox_partial_likelihood(
    log_risk: Tensor, time: Tensor, event: Tensor, *, ties: Ties = "efron", strata: Tensor | None = None
) -> Tensor:
    r"""Negative log partial likelihood of Cox's model, summed over events.

    With tied events :math:`D_t` (d of them) and risk set :math:`R_t = \{j: t_j \ge t\}`, Efron (1977):

    .. math:: \sum_t \Big[ \sum_{l=0}^{d-1} \log\Big(\sum_{R_t} e^{s_j} - \tfrac{l}{d} \sum_{D_t} e^{s_j}\Big)
              - \sum_{i \in D_t} s_i \Big]

    Breslow (1974) leaves out the term in l/d. Without ties both are Cox's (1972). With strata the risk set of an
    event is its own stratum's, and the sum runs over all strata (Kalbfleisch and Prentice, "The Statistical Analysis
    of Failure Time Data", 2002, section 4.4): baseline hazards may differ in any way between them.

    Parameters
    ----------
    log_risk
        ``[n]`` scores s; higher means earlier events.
    time
        ``[n]`` follow-up times in any unit.
    event
        ``[n]`` 1 where the event was seen, 0 where censored.
    ties
        ``"efron"`` or ``"breslow"``.
    strata
        ``[n]`` stratum of every case, as any numbers; None for a single one.

    Returns
    -------
    Tensor
        Scalar of the dtype of ``log_risk`` (float32 for half precision), with gradient; 0 without events or cases.

    Notes
    -----
    O(n log n), no loop over times or strata. Risk sets are cumulative log-sum-exps from the longest follow-up down; the
    tied sums enter only as a ratio to their risk set, which lies in [0, 1], so that scores of any size are
    safe. Sums run over thousands of patients and are taken in float64 whatever the scores are.
    """
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties must be 'efron' or 'breslow', not {ties!r}")
    if len(log_risk) == 0:
        return log_risk.sum()
    order = torch.argsort(time, descending=True, stable=True)
    if strata is not None:
        order = order[torch.argsort(strata[order], stable=True)]
    s, e = log_risk[order].double(), event[order].double()
    group = _runs(time[order])
    if strata is not None:
        stratum = _runs(strata[order])
        group = _runs(group + stratum)  # both rise by 0 or 1 from case to case: equal sums, equal pairs
    sizes = group.bincount()
    last = sizes.cumsum(0) - 1  # tied cases stand together: the risk set of a group ends at its last member
    cumulative = torch.logcumsumexp(s, dim=0) if strata is None else _logcumsumexp_within(s, stratum)
    log_at_risk = cumulative[last][group]
    terms = log_at_risk - s
    if ties == "efron" and len(sizes) < len(s):
        tied = torch.zeros(len(sizes), dtype=s.dtype, device=s.device)
        deaths = tied.scatter_add(0, group, e)
        share = tied.scatter_add(0, group, e * (s - log_at_risk).exp())[group]
        before = e.cumsum(0) - e  # events in front of a case; minus those in front of its group = its rank l
        rank = e * (before - before[last - sizes + 1][group])
        terms = terms + torch.log1p(-rank / deaths[group].clamp(min=1) * share)
    return (e * terms).sum().to(torch.promote_types(log_risk.dtype, torch.float32))


def _runs(values: Tensor) -> Tensor:
    """Number of the run of equal neighbours that each value lies in, from 0."""
    return torch.unique_consecutive(values, return_inverse=True)[1]


def _logcumsumexp_within(s: Tensor, stratum: Tensor) -> Tensor:
    """Cumulative log-sum-exps that start anew with every stratum; ``stratum`` numbers consecutive cases from 0."""
    sizes = stratum.bincount()
    if len(sizes) == 1:
        return torch.logcumsumexp(s, dim=0)
    place = torch.arange(len(s), device=s.device) - (sizes.cumsum(0) - sizes)[stratum]
    blank = s.new_full(
        (len(sizes), int(sizes.max())), -torch.inf
    )  # padding stands behind the cases: never read
    return torch.logcumsumexp(blank.index_put((stratum, place), s), dim=1)[stratum, place]


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
