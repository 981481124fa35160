"""Multi-head attention in memory linear in the number of tiles, and the two post-norm layers built on it.

The layers compute what :class:`torch.nn.TransformerEncoderLayer` and
:class:`torch.nn.TransformerDecoderLayer` do (post-norm, ReLU; tests hold them equal) and use the same
parameter names. They are written out because on a CPU PyTorch's fused attention refuses dropout and falls
back to storing the whole N x N matrix: 60 GB for a bag of 50,000 tiles and six heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equipoise.models.joint.blockwise import BlockwiseAttention

#: Attention weights up to which PyTorch's dense way is no worse than blocks (six heads: 590 tiles).
DENSE_WEIGHTS = 2**21


def attend(
    q_BHQE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, key_mask_BN: Tensor | None, dropout: float
) -> Tensor:
    """Scaled dot-product attention ``softmax(q kᵀ / √E) v`` with dropout on the weights.

    Parameters
    ----------
    q_BHQE, k_BHNE, v_BHNE
        Queries, keys and values of H heads of width E.
    key_mask_BN
        True where a key exists; None if all do. It is broadcast over heads and queries, never expanded.
    dropout
        Probability of dropping a weight; 0 outside training.

    Returns
    -------
    Tensor
        ``[B, H, Q, E]``.
    """
    batch, heads, queries, _ = q_BHQE.shape
    # Sizes are asked for last: a graph that is exported has none.
    if (
        dropout == 0
        or q_BHQE.device.type != "cpu"
        or batch * heads * queries * k_BHNE.shape[2] <= DENSE_WEIGHTS
    ):
        mask = None if key_mask_BN is None else key_mask_BN[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(
            q_BHQE, k_BHNE, v_BHNE, attn_mask=mask, dropout_p=dropout
        )
    mask = None if key_mask_BN is None else key_mask_BN.repeat_interleave(heads, dim=0)
    dtype = torch.float64 if q_BHQE.dtype == torch.float64 else torch.float32
    with torch.autocast("cpu", enabled=False):
        q, k, v = (part.flatten(0, 1).to(dtype) for part in (q_BHQE, k_BHNE, v_BHNE))
        out: Tensor = BlockwiseAttention.apply(q, k, v, mask, dropout)
    return out.unflatten(0, (batch, heads)).to(q_BHQE.dtype)


class Attention(nn.Module):
    """Multi-head attention with the parameters and initialisation of :class:`torch.nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BQD: Tensor, memory_BND: Tensor, key_mask_BN: Tensor | None) -> Tensor:
        """Attend from ``x`` to ``memory`` (the same tensor for self-attention); returns ``[B, Q, D]``."""
        linear, weight, bias = nn.functional.linear, self.in_proj_weight, self.in_proj_bias
        if x_BQD is memory_BND:
            q, k, v = linear(x_BQD, weight, bias).chunk(3, dim=-1)
        else:
            dim = x_BQD.shape[-1]
            q = linear(x_BQD, weight[:dim], bias[:dim])
            k, v = linear(memory_BND, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = attend(q, k, v, key_mask_BN, self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def weights(self, x_BQD: Tensor, memory_BND: Tensor, key_mask_BN: Tensor | None) -> Tensor:
        """``[B, Q, N]`` with which ``x`` attends to ``memory``, the mean over heads; rows sum to 1."""
        dim = x_BQD.shape[-1]
        w, b = self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim]
        q, k = (
            nn.functional.linear(part, w[rows], b[rows]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, rows in ((x_BQD, slice(dim)), (memory_BND, slice(dim, None)))
        )
        scores_BHQN = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if key_mask_BN is not None:
            scores_BHQN = scores_BHQN.masked_fill(~key_mask_BN[:, None, None, :], -torch.inf)
        return scores_BHQN.softmax(dim=-1).mean(dim=1)


class EncoderLayer(nn.Module):
    """Self-attention over tiles, then a feed-forward block, each with residual and layer norm after it."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, key_mask_BN: Tensor | None) -> Tensor:
        """Returns ``[B, N, D]``; rows of absent tiles hold numbers that are never read."""
        x = self.norm1(x_BND + self.drop(self.self_attn(x_BND, x_BND, key_mask_BN)))
        hidden = self.drop(nn.functional.relu(self.linear1(x)))
        return self.norm2(x + self.drop(self.linear2(hidden)))


class DecoderLayer(nn.Module):
    """Self-attention among task tokens, attention from the tokens to the tiles, then a feed-forward block."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.multihead_attn = Attention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BTD: Tensor, memory_BND: Tensor, key_mask_BN: Tensor | None) -> Tensor:
        """Returns ``[B, T, D]``."""
        x = self.among_tokens(tokens_BTD)
        x = self.norm2(x + self.drop(self.multihead_attn(x, memory_BND, key_mask_BN)))
        hidden = self.drop(nn.functional.relu(self.linear1(x)))
        return self.norm3(x + self.drop(self.linear2(hidden)))

    def among_tokens(self, tokens_BTD: Tensor) -> Tensor:
        """``[B, T, D]`` the tokens when they look at the tiles, after they have looked at each other."""
        return self.norm1(tokens_BTD + self.drop(self.self_attn(tokens_BTD, tokens_BTD, None)))
