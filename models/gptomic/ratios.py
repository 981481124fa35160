r"""How much of the evidence each branch carries: the ratio that modulations look at.

A branch m gives every case a score of its own, :math:`\theta^m`. How well it explains an observation k is the
likelihood of k under that score alone: the share of Cox's partial likelihood :math:`p^m_k = e^{\theta^m_k} /
\sum_{R(t_k)} e^{\theta^m_j}` of every event (Breslow), the probability of the true class (OGM-GE, Peng et al., CVPR
2022, arXiv 2203.15332, equation 8), of the interval of a discrete-time hazard, or :math:`e^{-(\theta^m - y)^2}` of a
regression. With two branches G and P,

.. math:: \rho^G = \frac{\sum_k p^G_k}{\sum_k p^P_k} \;\text{(share_sum)}, \qquad
          \rho^G = \exp(L_P - L_G) \;\text{(geometric)}, \qquad \rho^P = 1 / \rho^G,

with :math:`L_m` the mean of :math:`-\log p^m_k`. A constant that is added to all scores cancels in a Cox share, so
that the bias of the head does not matter. ``as_printed`` is equation 5 of Path-GPTOmic (arXiv 2403.11375), whose
numerator is the score itself and not its exponential: it may be negative, has no bound and depends on the bias; it is
there to compare.

With M branches the ratio is that of a branch to the geometric mean of the others, which makes their product 1 again.
With several tasks it is the geometric mean over the tasks that say something in the batch: any other mean would not
keep the product, and the main task alone would let a branch be slowed that the other tasks need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.models.batch import TaskHead
from equipoise.models.hazards import hazard_nll, interval_of


def cox_log_shares(
    score_n: Tensor, time_n: Tensor, event_n: Tensor, strata_n: Tensor | None = None, *, printed: bool = False
) -> Tensor:
    r"""``[E]`` :math:`\log p_k` of every event, risk sets within strata; O(n log n).

    With ``printed`` the numerator of equation 5 as it stands, :math:`\theta_k / \sum_{R(t_k)} e^{\theta_j}`, without a
    logarithm.
    """
    shares = []
    strata = torch.zeros_like(time_n) if strata_n is None else strata_n
    for stratum in strata.unique():
        here = strata == stratum
        order = torch.argsort(time_n[here], descending=True, stable=True)
        score, time, event = score_n[here][order], time_n[here][order], event_n[here][order] > 0
        last = torch.searchsorted(-time, -time, right=True) - 1  # tied cases stand together
        at_risk = torch.logcumsumexp(score, dim=0)[last]
        shares.append((score * (-at_risk).exp() if printed else score - at_risk)[event])
    return torch.cat(shares) if shares else score_n[:0]


def log_likelihoods(
    head: TaskHead, score_BK: Tensor, target: Tensor, stratum_B: Tensor, *, printed: bool = False
) -> Tensor:
    """``[E]`` float64 log-likelihoods of what was observed, one per event under Cox's model, else one per case.

    Parameters
    ----------
    head
        The task.
    score_BK, target, stratum_B
        Of cases with a label; targets as in :class:`~equipoise.models.batch.CaseBatch`.
    printed
        As in :func:`cox_log_shares`; other tasks have no such equation.
    """
    score, target = score_BK.double(), target.double()
    if head.compares_patients:
        return cox_log_shares(
            score[:, 0], target[:, 0], target[:, 1], stratum_B if head.stratified else None, printed=printed
        )
    if head.kind == "survival":
        edges = torch.tensor(head.edges, dtype=torch.float64, device=score.device)
        return -hazard_nll(score, interval_of(target[:, 0], edges), target[:, 1])
    if head.kind == "regression":
        return -(score[:, 0] - target).square()
    return -functional.cross_entropy(score, target.long(), reduction="none")


def log_evidence(kind: str, values_E: Tensor) -> float:
    """The logarithm of what is divided: of the summed likelihoods, or their mean; NaN without observations."""
    if not len(values_E):
        return math.nan
    return float(torch.logsumexp(values_E, 0) if kind == "share_sum" else values_E.mean())


def task_ratios(kind: str, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Branch → its ratio for one task, from the :func:`log_likelihoods` of all branches; NaN without observations."""
    if kind == "as_printed":
        first, second = values
        divided = float(values[second].sum())
        ratio = float(values[first].sum()) / divided if divided else math.nan
        return {first: ratio, second: 1 / ratio if ratio else math.inf}
    logs = {branch: log_evidence(kind, rows) for branch, rows in values.items()}
    total, others = sum(logs.values()), len(logs) - 1
    lags = {branch: own - (total - own) / others for branch, own in logs.items()}
    return {branch: math.exp(min(max(lag, -700.0), 700.0)) for branch, lag in lags.items()}


def mean_ratios(kind: str, tasks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Branch → the mean of the tasks' ratios, leaving out NaN: geometric, arithmetic for ``as_printed``."""
    found: dict[str, float] = {}
    for branch in tasks[0] if tasks else ():
        known = [ratios[branch] for ratios in tasks if not math.isnan(ratios[branch])]
        if not known:
            found[branch] = math.nan
        elif kind == "as_printed":
            found[branch] = sum(known) / len(known)
        else:
            logs = [math.log(ratio) for ratio in known]
            found[branch] = math.exp(sum(logs) / len(logs))
    return found
