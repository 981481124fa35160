r"""Losses between embeddings of cases and of labels.

With :math:`z` and :math:`y` of length 1 and d numbers, ``kl`` is the loss of ModalTune,
:math:`10\,T^2\,KL(softmax(y/T)\,\|\,softmax(z/T))`. At T = 1 both softmaxes are nearly uniform and
:math:`KL \approx (1 - \cos)/d`: it is the loss ``cosine`` on another scale. T changes that only below about 0.1.

Sources: ModalTune (arXiv 2503.17564); InfoNCE: van den Oord et al., arXiv 1807.03748.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["kl", "cosine", "infonce"]
#: Factor of the published loss.
KL_FACTOR = 10.0


def kl(z_BD: Tensor, y_BD: Tensor, temperature: float = 1.0) -> Tensor:
    """``[B]`` the published loss of embeddings and targets of length 1."""
    log_z, log_y = ((part / temperature).log_softmax(dim=1) for part in (z_BD, y_BD))
    return KL_FACTOR * temperature**2 * (log_y.exp() * (log_y - log_z)).sum(dim=1)


def cosine(z_BD: Tensor, y_BD: Tensor) -> Tensor:
    """``[B]`` one minus the cosine of embeddings and targets of length 1."""
    return 1 - (z_BD * y_BD).sum(dim=1)


def distances(z_BD: Tensor, bank_KD: Tensor, kind: Kind, temperature: float = 1.0) -> Tensor:
    """``[B, K]`` from every case to every label, on the scale of 1 - cosine.

    That of ``kl`` is :func:`kl` times d / 10.
    """
    if kind != "kl":
        return 1 - z_BD @ bank_KD.T
    log_z, log_y = ((part / temperature).log_softmax(dim=1) for part in (z_BD, bank_KD))
    y = log_y.exp()
    entropy_K = (y * log_y).sum(dim=1)
    return bank_KD.shape[1] * temperature**2 * (entropy_K - log_z @ y.T)


def loss_of_logits(
    logits_BK: Tensor,
    shares_BK: Tensor,
    kind: Kind,
    spread: float,
    dim: int,
    seen: Sequence[bool] = (),
) -> Tensor:
    """``[B]`` losses from minus distances over spread.

    Parameters
    ----------
    logits_BK
        ``-distances / spread``.
    shares_BK
        Weights of the labels of each case; of a certain label 1 and 0 (or a class weight).
    kind, spread, dim
        Loss, temperature of the softmax over labels, length of an embedding.
    seen
        K flags: labels that training has. Those it lacks are in no denominator of ``infonce``, which would push every
        embedding away from them, and are then nobody's nearest label where they occur. Empty for all.

    Notes
    -----
    ``kl`` and ``cosine`` of shares are the mean distance to the labels. Its gradient is that of the distance to the
    interpolated target: the mean of the label embeddings, or, for ``kl``, of their softmaxes.
    """
    shares = shares_BK.to(logits_BK)
    if kind == "infonce":
        if all(seen):
            return -(shares * logits_BK.log_softmax(dim=1)).sum(dim=1)
        counted = torch.tensor(seen, device=shares.device) | (shares > 0)
        log_BK = logits_BK.masked_fill(~counted, -torch.inf).log_softmax(dim=1)
        return -(shares * log_BK.masked_fill(~counted, 0.0)).sum(dim=1)
    mean = -spread * (shares * logits_BK).sum(dim=1)
    return mean * (KL_FACTOR / dim) if kind == "kl" else mean


def unit(x_BD: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    return torch.nn.functional.normalize(x_BD, dim=1)
