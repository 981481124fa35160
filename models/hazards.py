r"""Discrete-time survival: a probability of the event in each of K intervals of follow-up.

Edges :math:`e_1 < … < e_{K-1}` in days cut time into :math:`[0, e_1), [e_1, e_2), …, [e_{K-1}, ∞)`. Output
:math:`o_k` of a head is the logit of the hazard :math:`h_k = P(T \in \text{interval } k \mid \text{not
earlier})`, and :math:`S_k = \prod_{j \le k} (1 - h_j)` the probability to survive interval k. Unlike Cox's
likelihood, the term of a patient does not depend on other patients: batches of one are enough, and the model gives
absolute risks.

Sources: Tutz and Schmid, "Modeling discrete time-to-event data" (Springer 2016), chapter 3; Zadeh and Schmid,
"Bias in cross-entropy-based training of deep survival networks", IEEE TPAMI 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def interval_of(days: Tensor, edges: Tensor) -> Tensor:
    """Index from 0 of the interval each time lies in; a time equal to an edge lies after it."""
    return torch.bucketize(days.contiguous(), edges.to(days), right=True)


def hazard_nll(logits_BK: Tensor, interval_B: Tensor, event_B: Tensor) -> Tensor:
    r"""Negative log-likelihood of every case, ``[B]``.

    For interval y and event indicator δ:

    .. math:: -\delta \Big[\log h_y + \sum_{j<y} \log(1 - h_j)\Big] - (1 - \delta) \sum_{j \le y} \log(1 - h_j)

    A censored case is taken to have survived the interval it was censored in (Zadeh and Schmid; censoring at
    the end of the interval in Tutz and Schmid). That makes the loss a binary cross-entropy over the intervals
    a case has lived in: "event here?", no in all of them but, after an event, the last.

    Parameters
    ----------
    logits_BK
        Logits of the hazards of K intervals.
    interval_B
        Interval of event or censoring, from 0 (:func:`interval_of`).
    event_B
        1 where the event was seen, 0 where censored.
    """
    steps_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    lived_BK = (steps_K <= interval_B[:, None]).to(logits_BK)
    here_BK = (steps_K == interval_B[:, None]).to(logits_BK) * event_B.to(logits_BK)[:, None]
    entropy = nn.functional.binary_cross_entropy_with_logits(logits_BK, here_BK, reduction="none")
    return (entropy * lived_BK).sum(dim=1)


def survival_of(logits_BK: Tensor) -> Tensor:
    """``[B, K]`` probabilities S to survive each interval."""
    return torch.sigmoid(-logits_BK).cumprod(dim=1)


def hazard_risk(logits_BK: Tensor) -> Tensor:
    """``[B, 1]`` risk -(S_1 + … + S_K), between -K and 0; higher means earlier events.

    It falls with every probability of survival, so it orders cases as a log risk of Cox's model does, but it is
    on another scale: minus the expected number of intervals a case survives.
    """
    return -survival_of(logits_BK).sum(dim=1, keepdim=True)
