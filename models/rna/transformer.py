"""A transformer encoder over thousands of genes, with the parameter names of :class:`torch.nn.TransformerEncoder`.

Attention is :func:`torch.nn.functional.scaled_dot_product_attention`, whose memory grows with the number of genes and
not with its square, so that a whole bulk profile fits. For inference only: there is no dropout.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head self-attention; parameters as of :class:`torch.nn.MultiheadAttention`.

    Parameters
    ----------
    dim, heads
        Width and number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, h_BLD: Tensor, visible_BL: Tensor | None, queries: int | None) -> Tensor:
        """The first ``queries`` positions (all if ``None``) attend to those that are visible (all if ``None``)."""
        parts = functional.linear(h_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = None if visible_BL is None else visible_BL[:, None, None, :]
        attended = functional.scaled_dot_product_attention(q[:, :, :queries], k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Attention and feed-forward, each with a residual connection and layer norm after it (``post``) or before."""

    def __init__(
        self, dim: int, heads: int, hidden: int, activation: str, norm: Literal["post", "pre"]
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self._activation = getattr(functional, activation)
        self._first = norm == "pre"

    def forward(self, h_BLD: Tensor, visible_BL: Tensor | None, queries: int | None) -> Tensor:
        """``[B, queries, D]``."""
        attended = self.self_attn(self.norm1(h_BLD) if self._first else h_BLD, visible_BL, queries)
        h = h_BLD[:, :queries] + attended
        h = h if self._first else self.norm1(h)
        h = h + self.linear2(self._activation(self.linear1(self.norm2(h) if self._first else h)))
        return h if self._first else self.norm2(h)


class Transformer(nn.Module):
    """Layers one after another.

    Parameters
    ----------
    dim, heads, hidden, layers
        Width, heads, width of the feed-forward part, number of layers.
    activation, norm
        ``relu`` or ``gelu``; layer norm after each part, as published by Vaswani et al., or before.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        layers: int,
        activation: Literal["relu", "gelu"] = "relu",
        norm: Literal["post", "pre"] = "post",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, activation, norm) for _ in range(layers))

    def forward(self, h_BLD: Tensor, visible_BL: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Encode ``[B, L, D]``; the last layer is computed for the first ``queries`` positions only.

        Parameters
        ----------
        h_BLD
            Tokens.
        visible_BL
            False where a position is padding; ``None``: nothing is.
        queries
            Positions whose output is needed; ``None``: all.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            h_BLD = layer(h_BLD, visible_BL, queries if i == last else None)
        return h_BLD
