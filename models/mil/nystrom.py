"""Self-attention of a bag at a cost linear in its tiles: Nyström's approximation.

Source: Xiong et al., "Nyströmformer: a Nyström-based algorithm for approximating self-attention", AAAI 2021
(arXiv 2102.03902). Written for one bag at a time without padding, so that landmarks are means over tiles and
nothing else.

Shapes: H heads, N tokens, M landmarks, E numbers per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Reach of the convolution over values that stands beside the approximation, in tokens.
CONVOLUTION = 33


class NystromAttention(nn.Module):
    r"""Multi-head attention with M landmarks, and a convolution of values beside it.

    .. math:: \operatorname{softmax}\!\Big(\tfrac{Q\tilde K^\top}{\sqrt E}\Big)
              \operatorname{softmax}\!\Big(\tfrac{\tilde Q\tilde K^\top}{\sqrt E}\Big)^{+}
              \operatorname{softmax}\!\Big(\tfrac{\tilde Q K^\top}{\sqrt E}\Big) V + \operatorname{DConv}(V)

    Parameters
    ----------
    dim, heads
        Width of tokens, and attention heads; heads must divide dim.
    landmarks
        M. Bags of up to so many tokens get exact attention, which the formula equals when every token is a
        landmark (:math:`A A^+ A = A`).
    iterations
        Steps of :func:`iterative_pinv`.
    dropout
        On the output.
    """

    def __init__(self, dim: int, heads: int, landmarks: int, iterations: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.landmarks = landmarks
        self.iterations = iterations
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        padding = (CONVOLUTION // 2, 0)
        self.convolution = nn.Conv2d(
            heads, heads, (CONVOLUTION, 1), padding=padding, groups=heads, bias=False
        )
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Attend among the N tokens of one bag; returns ``[N, dim]``."""
        parts = self.qkv(x_ND).unflatten(-1, (3, self.heads, -1))
        q_HNE, k_HNE, v_HNE = (part.transpose(0, 1) for part in parts.unbind(dim=1))
        attended = nystrom(q_HNE, k_HNE, v_HNE, self.landmarks, self.iterations)
        attended = attended + self.convolution(v_HNE[None])[0]
        return self.out(attended.transpose(0, 1).flatten(1))


def nystrom(q_HNE: Tensor, k_HNE: Tensor, v_HNE: Tensor, landmarks: int, iterations: int) -> Tensor:
    """``[H, N, E]`` of the three factors, the N x M ones never stored.

    Both outer factors are attentions, of landmarks to tokens and of tokens to landmarks, and PyTorch has fused
    kernels for these.
    """
    attend = nn.functional.scaled_dot_product_attention
    if q_HNE.shape[1] <= landmarks:
        return attend(q_HNE[None], k_HNE[None], v_HNE[None])[0]
    ql_HME, kl_HME = segment_means(q_HNE, landmarks), segment_means(k_HNE, landmarks)
    read_HME = attend(ql_HME[None], k_HNE[None], v_HNE[None])[0]
    with torch.autocast(
        q_HNE.device.type, enabled=False
    ):  # the iteration does not converge in half precision
        exact = torch.float64 if q_HNE.dtype == torch.float64 else torch.float32
        ql, kl, read = ql_HME.to(exact), kl_HME.to(exact), read_HME.to(exact)
        core_HMM = (ql @ kl.transpose(1, 2) * q_HNE.shape[2] ** -0.5).softmax(dim=-1)
        values_HME = iterative_pinv(core_HMM, iterations) @ read
    return attend(q_HNE[None], kl_HME[None].to(q_HNE), values_HME[None].to(q_HNE))[0]


def segment_means(x_HNE: Tensor, segments: int) -> Tensor:
    """``[H, M, E]`` means over M neighbouring runs of tokens, the first N mod M of them one token longer.

    The source asks for a length divisible by M and published code pads with zeros; runs of two lengths need no
    padding and are the same where M divides N.
    """
    size, longer = divmod(x_HNE.shape[1], segments)
    cut = longer * (size + 1)
    parts = [x_HNE[:, cut:].unflatten(1, (segments - longer, size)).mean(dim=2)]
    if longer:
        parts.insert(0, x_HNE[:, :cut].unflatten(1, (longer, size + 1)).mean(dim=2))
    return torch.cat(parts, dim=1)


def iterative_pinv(a_HMM: Tensor, iterations: int) -> Tensor:
    r"""Moore-Penrose inverse of every matrix by products alone (the iteration of the source, after Razavi et al. 2014).

    :math:`Z_0 = A^\top / (\|A\|_1 \|A\|_\infty)`, :math:`Z_{j+1} = \tfrac14 Z_j (13 I - A Z_j (15 I - A Z_j
    (7 I - A Z_j)))`. Few steps are wanted, not only for speed: rounding errors outside the range of A grow by
    13/4 with each. The norms are those of the matrix itself, not the largest of a batch, so that the
    result of a bag does not depend on its batch.
    """
    eye = torch.eye(a_HMM.shape[-1], dtype=a_HMM.dtype, device=a_HMM.device)
    sums = a_HMM.abs()
    norms = sums.sum(dim=-2).amax(dim=-1) * sums.sum(dim=-1).amax(dim=-1)
    z = a_HMM.transpose(-1, -2) / norms[..., None, None]
    for _ in range(iterations):
        az = a_HMM @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z
