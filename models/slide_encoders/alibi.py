"""Attention that weakens with the distance of tiles: ALiBi in two dimensions.

Press et al., arXiv 2108.12409, take a multiple of the distance of two tokens from their score, each head another
multiple. On a slide it is the Euclidean distance of the tiles, in units of tiles (as in TITAN, Ding et al., arXiv
2411.19666). Tokens of the slide as a whole (class token, registers) are at distance 0 from everything. Nothing is
learned, and slides of any size have positions.

Shapes: B slides, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_SCORES = 2**25  # scores that are held at once


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of the heads, float32 ``[H]``.

    ``2 ** (-8 h / H)`` for h = 1 … H where H is a power of 2; otherwise those of the next smaller power, then every
    other one of the next larger (Press et al., section 3 and their appendix).
    """
    below = 2 ** int(math.log2(heads))
    exponents = [8 * h / below for h in range(1, below + 1)]
    exponents += [4 * h / below for h in range(1, 2 * below, 2)][: heads - below]
    return torch.tensor([2.0**-exponent for exponent in exponents])


def distances(rows_BR2: Tensor, places_BT2: Tensor) -> Tensor:
    """Euclidean distances ``[B, R, T]``; exact for equal places, which a matrix product would not give."""
    return torch.cdist(rows_BR2, places_BT2, compute_mode="donot_use_mm_for_euclid_dist")


def alibi_attention(
    queries: Tensor, keys: Tensor, values: Tensor, places: Tensor, mask: Tensor, slopes: Tensor, prefix: int
) -> Tensor:
    """Attention of all tokens of a slide to all others.

    Parameters
    ----------
    queries, keys, values
        ``[B, H, T, D]``.
    places
        x and y of every tile in units of tiles, ``[B, T - prefix, 2]``; finite, also where there is none.
    mask
        Tokens that are looked at, ``[B, T]``.
    slopes
        Of the heads, ``[H]``.
    prefix
        Leading tokens that lie nowhere.

    Returns
    -------
    ``[B, H, T, D]``; a part of the rows at a time, so that memory grows with T.
    """
    batch, heads, length, _ = queries.shape
    places = torch.cat([places.new_zeros(batch, prefix, 2), places], dim=1)
    hidden = torch.zeros_like(mask, dtype=queries.dtype).masked_fill(~mask, -torch.inf)[:, None, None]
    step = max(1, _SCORES // (batch * heads * length))
    parts = []
    for start in range(0, length, step):
        apart = distances(places[:, start : start + step], places)
        apart[:, :, :prefix] = 0.0
        apart[:, : max(prefix - start, 0)] = 0.0
        bias = hidden - slopes[:, None, None] * apart[:, None].to(queries.dtype)
        rows = queries[:, :, start : start + step]
        parts.append(functional.scaled_dot_product_attention(rows, keys, values, attn_mask=bias))
    return torch.cat(parts, dim=2)
