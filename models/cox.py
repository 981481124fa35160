"""The partial likelihood of Cox's model: exact, in O(n log n), with ties and strata."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Ties = Literal["efron", "breslow"]


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
    """Cumulative log-sum-exps that start again with every stratum; ``stratum`` numbers consecutive cases from 0."""
    sizes = stratum.bincount()
    if len(sizes) == 1:
        return torch.logcumsumexp(s, dim=0)
    place = torch.arange(len(s), device=s.device) - (sizes.cumsum(0) - sizes)[stratum]
    blank = s.new_full(
        (len(sizes), int(sizes.max())), -torch.inf
    )  # padding stands behind the cases: never read
    return torch.logcumsumexp(blank.index_put((stratum, place), s), dim=1)[stratum, place]
