"""What some encoders put after their transformer: a projection of the class token, or pooling by attention.

Shapes: B tiles, T tokens, D width of a token, E length of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.encoders.shape import PoolerShape, ProjectionShape, VitShape
from equipoise.models.encoders.vit import VisionTransformer

_EPSILON = 1e-5  # of the LayerNorms around an attentional pooler


class HeadedTransformer(nn.Module):
    """A vision transformer and what follows it: images ``[B, 3, image, image]`` to ``[B, E]``.

    Parameters
    ----------
    shape
        Dimensions of the transformer.
    head
        What follows it: a projection gets the pooled vector, a pooler all tokens.
    """

    def __init__(self, shape: VitShape, head: ProjectionShape | PoolerShape) -> None:
        super().__init__()
        self.trunk = VisionTransformer(shape)
        self.head = (
            AttentionalPooling(shape.width, head)
            if isinstance(head, PoolerShape)
            else Projection(shape.dim, head)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode, then pool or project."""
        if isinstance(self.head, AttentionalPooling):
            return self.head(self.trunk.tokens(image))
        return self.head(self.trunk(image))


class Projection(nn.Module):
    """``[B, D]`` to ``[B, E]``: one layer without bias, or two with GELU between them, then brought to length 1."""

    def __init__(self, width: int, shape: ProjectionShape) -> None:
        super().__init__()
        self.normalises, dim = shape.layers == 2, shape.dim
        self.layers = (
            nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
            if self.normalises
            else nn.Linear(width, dim, bias=False)
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        """Project."""
        vectors = self.layers(x_BD)
        return functional.normalize(vectors.float(), dim=-1) if self.normalises else vectors


class AttentionalPooling(nn.Module):
    """``[B, T, D]`` to ``[B, E]``: what one learned query finds in all tokens, then a LayerNorm."""

    def __init__(self, width: int, shape: PoolerShape) -> None:
        super().__init__()
        self.pool = (
            BiasedPooler(width, shape.dim, shape.heads)
            if shape.biased
            else PlainPooler(width, shape.dim, shape.heads)
        )
        self.norm = nn.LayerNorm(shape.dim, eps=_EPSILON)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Pool and normalise."""
        return self.norm(self.pool(x_BTD)[:, 0])


class BiasedPooler(nn.Module):
    """Cross attention of learned queries with biases, as torch's ``MultiheadAttention``: ``[B, 1, E]``."""

    def __init__(self, width: int, dim: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q = nn.LayerNorm(dim, eps=_EPSILON)
        self.ln_k = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Queries look at the normalised tokens."""
        tokens = self.ln_k(x_BTD)
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(queries, tokens, tokens, need_weights=False)[0]


class PlainPooler(nn.Module):
    """Cross attention of learned queries without biases; keys, then values in one packed layer: ``[B, 1, E]``."""

    def __init__(self, width: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.ln_q = nn.LayerNorm(dim, eps=_EPSILON)
        self.ln_k = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Queries look at the normalised tokens."""
        batch, tokens, _ = x_BTD.shape
        dim = self.query.shape[1]
        packed = self.to_kv(self.ln_k(x_BTD)).view(batch, tokens, 2, self.heads, dim // self.heads)
        keys, values = packed.permute(2, 0, 3, 1, 4).unbind(0)
        queries = self.to_q(self.ln_q(self.query)).view(1, 1, self.heads, dim // self.heads)
        queries = queries.transpose(1, 2).expand(batch, -1, -1, -1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, 1, dim))
