"""LongNet, the slide encoder of Prov-GigaPath, in plain torch.

Xu et al., Nature 630, 2024; Ding et al., arXiv 2307.02486 (dilated attention); Wang et al., arXiv 2210.06423 (norms
inside attention and perceptron). Parameter names are those of the published ``slide_encoder.pth``, so that its weights
load by name.

Dilated attention: one branch per (segment length, ratio). A branch cuts the tokens into segments; at ratio r the heads
fall into r groups, and group k sees every r-th token of a segment from the k-th on. Every token and head then mixes the
branches that it takes part in, by a softmax of their log-sum-exp, through which no gradient flows. Segments that the
tokens do not fill are padded with zero keys **that are not masked**: they have the score 0 and take part in the
softmax. The published weights were trained that way.

Shapes: B slides, L tokens (class token first), H heads, W width of a token, D width of a head, S segments, G tokens of
a segment that a head sees.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.slide_encoders.card import LongNetCard
from equipoise.models.slide_encoders.entries import LongNetParams
from equipoise.models.slide_encoders.positions import sines_and_cosines
from equipoise.models.slide_encoders.pretrained import load_published
from equipoise.models.slide_encoders.protocol import SlideTiles, SlideTokens

#: Raise when the same weights would give other numbers: it enters the fingerprint.
_VERSION = 1

#: Segment lengths: five steps from 2**10 to 2**20 tokens, evenly in the exponent, rounded down; and their ratios.
SEGMENTS = (1024, 5792, 32768, 185363, 1048576)
RATIOS = (1, 2, 4, 8, 16)

_GRID = 1000  # rows and columns that have a position
_SNAP = 1 / 64  # of a tile: corners in whole pixels may lie that much before the row that they belong to
_INNER, _OUTER = 1e-5, 1e-6  # epsilon of the norms of the encoder, and of the last one
_ABSENT = -1e8  # log-sum-exp of a branch that a token takes no part in
_SCORES = 2**25  # scores that are held at once


class LongNetEncoder:
    """The slide encoder of GigaPath with weights from this machine; every layer is a stage.

    The result depends on the order of tiles by design. They are taken column by column (x, then y), whatever order they
    come in.

    Parameters
    ----------
    params
        Where the weights are, how many layers run, and how they are read out.

    Raises
    ------
    FileNotFoundError
        If the weights are not on this machine, with how to get them.
    ValueError
        If they are other weights.
    """

    def __init__(self, params: LongNetParams) -> None:
        self._card, self._params = params.card, params
        self.stages = params.layers
        self.network = LongNet(params.card)
        weights = load_published(self.network, params.card, params.weights, params.sha256)
        about = {"encoder": params.card.name, "version": _VERSION, "readout": params.readout,
                 "final_norm": params.final_norm, "layers": params.layers}  # fmt: skip
        self.fingerprint = hashlib.sha256(json.dumps([about, weights], sort_keys=True).encode()).hexdigest()

    @property
    def device(self) -> str:
        """Where slides are encoded."""
        if self._params.device != "auto":
            return self._params.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def dim(self, tile_dim: int) -> int:
        """Width of a token."""
        if tile_dim != self._card.tile_dim:
            raise ValueError(
                f"slide encoder {self._card.name!r} takes {self._card.tile_dim} features per tile, not {tile_dim}"
            )
        return self._card.dim

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Tokens with their places, behind the class token.

        Raises
        ------
        ValueError
            If tiles lie beyond the 1000 x 1000 places that there are, or are of another width.
        """
        self.dim(tiles.features.shape[2])
        self.network.to(tiles.features.device)
        features = tiles.features.float().masked_fill(~tiles.mask[..., None], 0.0)
        places = grid_places(tiles).float()
        tokens = self.network.patch_embed["proj"](features) + sines_and_cosines(places, self._card.width)
        front = self.network.cls_token.expand(len(tokens), -1, -1)
        return SlideTokens(torch.cat([front, tokens], dim=1), 1, tiles)

    def run_stage(self, at: int, state: SlideTokens) -> SlideTokens:
        """Layer ``at``, on each slide's own tokens: padding would change them."""
        if not 0 <= at < self.stages:
            raise IndexError(f"slide encoder {self._card.name!r} runs {self.stages} layers, not {at + 1}")
        layer = self.network.encoder.layers[at]
        orders = token_orders(state)
        tokens = state.tokens
        if len({len(order) for order in orders}) == 1:
            index = torch.stack(orders)[..., None].expand(-1, -1, tokens.shape[2])
            return SlideTokens(tokens.scatter(1, index, layer(tokens.gather(1, index))), 1, state.tiles)
        rows = [
            row.index_put((order,), layer(row[order][None])[0])
            for row, order in zip(tokens, orders, strict=True)
        ]
        return SlideTokens(torch.stack(rows), 1, state.tiles)

    def readout(self, state: SlideTokens) -> Tensor:
        """The class token or the mean of the tiles' tokens, normalised: ``[B, W]``."""
        tokens = state.tokens
        if self._params.final_norm:
            tokens = self.network.encoder.layer_norm(tokens)
        if self._params.readout == "class_token":
            return self.network.norm(tokens[:, 0])
        mask = state.tiles.mask[..., None]
        return self.network.norm(tokens[:, 1:].masked_fill(~mask, 0.0).sum(1) / mask.sum(1))


def grid_places(tiles: SlideTiles) -> Tensor:
    """Row and column of each tile, counted from the slide's corner: integers ``[B, N, 2]``; 0 where there is none.

    Raises
    ------
    ValueError
        If a tile lies outside the grid: its place would be that of another tile.
    """
    places = tiles.corners.double() / tiles.extent.double()[:, None, None] + _SNAP
    places = places.floor().masked_fill(~tiles.mask[..., None], 0.0).long().flip(-1)
    if int(places.min()) < 0 or int(places.max()) >= _GRID:
        raise ValueError(
            f"tiles lie in rows and columns {int(places.min())} to {int(places.max())}; "
            f"this slide encoder knows 0 to {_GRID - 1}"
        )
    return places


def token_orders(state: SlideTokens) -> list[Tensor]:
    """For each slide, which tokens there are, in the order in which LongNet takes them: class token, then by column."""
    rows, columns = grid_places(state.tiles).unbind(-1)
    by_column = columns * _GRID + rows
    return [
        torch.cat([key.new_zeros(1), 1 + mask.nonzero()[:, 0][key[mask].argsort(stable=True)]])
        for key, mask in zip(by_column, state.tiles.mask, strict=True)
    ]


class LongNet(nn.Module):
    """The layers, under the names of the published file.

    Parameters
    ----------
    card
        Sizes.
    """

    def __init__(self, card: LongNetCard) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Linear(card.tile_dim, card.width)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, card.width))
        self.encoder = Layers(card)
        self.norm = nn.LayerNorm(card.width, eps=_OUTER)


class Layers(nn.Module):
    """All layers and the norm after the last one.

    Parameters
    ----------
    card
        Sizes.
    """

    def __init__(self, card: LongNetCard) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(card.width, card.heads, card.mlp) for _ in range(card.depth))
        self.layer_norm = nn.LayerNorm(card.width, eps=_INNER)


class Layer(nn.Module):
    """Dilated attention, then a perceptron, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DilatedAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=_INNER)
        self.ffn = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, hidden),
                "fc2": nn.Linear(hidden, width),
                "ffn_layernorm": nn.LayerNorm(hidden, eps=_INNER),
            }
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=_INNER)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Two residual branches."""
        x_BLW = x_BLW + self.self_attn(self.self_attn_layer_norm(x_BLW))
        hidden = functional.gelu(self.ffn["fc1"](self.final_layer_norm(x_BLW)))
        return x_BLW + self.ffn["fc2"](self.ffn["ffn_layernorm"](hidden))


class DilatedAttention(nn.Module):
    """Attention of tokens within segments, thinned out; see the module.

    Parameters
    ----------
    width, heads
        Width of a token; heads, a multiple of every ratio.
    segments, ratios
        Of the branches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        segments: tuple[int, ...] = SEGMENTS,
        ratios: tuple[int, ...] = RATIOS,
    ) -> None:
        super().__init__()
        if any(heads % ratio for ratio in ratios):
            raise ValueError(f"{heads} heads cannot be shared by groups of {ratios}")
        self.heads, self.branches = heads, tuple(zip(segments, ratios, strict=True))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.inner_attn_ln = nn.LayerNorm(width, eps=_INNER)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Every branch, mixed."""
        batch, length, width = x_BLW.shape
        shape = (batch, length, self.heads, width // self.heads)
        queries, keys, values = (
            layer(x_BLW).view(shape).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        outs, weights = zip(*(branch(queries, keys, values, s, r) for s, r in self.branches), strict=True)
        shares = torch.stack(weights).softmax(0)[..., None]
        mixed = sum(out * share for out, share in zip(outs, shares, strict=True))
        return self.out_proj(self.inner_attn_ln(mixed.transpose(1, 2).reshape(batch, length, width)))


def branch(queries: Tensor, keys: Tensor, values: Tensor, segment: int, ratio: int) -> tuple[Tensor, Tensor]:
    """One branch of dilated attention.

    Parameters
    ----------
    queries, keys, values
        ``[B, H, L, D]``.
    segment, ratio
        Length of a segment in tokens, at most L of them; every how many tokens a head looks at.

    Returns
    -------
    Its output ``[B, H, L, D]``, 0 where a head takes no part, and the log-sum-exp ``[B, H, L]`` of its scores, without
    gradient; an exact 0 counts as no part, as in the published encoder.
    """
    batch, heads, length, _ = queries.shape
    segment = min(segment, length)
    q, k, v = (_thinned(x, segment, ratio) for x in (queries, keys, values))  # [B S, H, G, D]
    out = functional.scaled_dot_product_attention(q, k, v)
    total = _log_sum_exp(q, k)
    total = total.masked_fill(total == 0, _ABSENT)
    full = queries.new_zeros(batch, heads, _whole(length, segment, ratio), queries.shape[3])
    lse = total.new_full(full.shape[:3], _ABSENT)
    return _spread(out, full, batch, ratio, segment)[:, :, :length], _spread(
        total[..., None], lse[..., None], batch, ratio, segment
    )[:, :, :length, 0]


def _per_segment(segment: int, ratio: int) -> int:
    """Tokens of a segment after padding to a multiple of the ratio."""
    return -(-segment // ratio) * ratio


def _whole(length: int, segment: int, ratio: int) -> int:
    """Tokens of all segments, each padded to a multiple of the ratio."""
    return -(-length // segment) * _per_segment(segment, ratio)


def _thinned(x_BHLD: Tensor, segment: int, ratio: int) -> Tensor:
    """Each head's own tokens of each segment: ``[B S, H, G, D]``, zeros where tokens do not fill it."""
    batch, heads, length, width = x_BHLD.shape
    x = functional.pad(x_BHLD, (0, 0, 0, -length % segment))
    x = x.view(batch, heads, -1, segment, width)
    x = functional.pad(x, (0, 0, 0, -segment % ratio))
    x = x.reshape(batch, ratio, heads // ratio, x.shape[2], -1, ratio, width)
    # Group k of the heads has the tokens k, k + ratio, k + 2 ratio, …: the diagonal of groups and remainders.
    x = x.diagonal(dim1=1, dim2=5)  # [B, H / r, S, G, D, r]
    return x.permute(0, 2, 5, 1, 3, 4).reshape(-1, heads, x.shape[3], width)


def _spread(x_NHGD: Tensor, into: Tensor, batch: int, ratio: int, segment: int) -> Tensor:
    """The inverse of :func:`_thinned`: each head's tokens at their places among those of ``into``, ``[B, H, L, D]``."""
    _, heads, kept, width = x_NHGD.shape
    count = x_NHGD.shape[0] // batch
    x = x_NHGD.view(batch, count, ratio, heads // ratio, kept, width).permute(0, 3, 1, 4, 5, 2)
    places = into.view(batch, ratio, heads // ratio, count, kept, ratio, width)
    places = torch.diagonal_scatter(places, x, dim1=1, dim2=5)
    whole = places.reshape(batch, heads, count, kept * ratio, width)[:, :, :, :segment]
    return whole.reshape(batch, heads, count * segment, width)


@torch.no_grad()
def _log_sum_exp(queries: Tensor, keys: Tensor) -> Tensor:
    """Of the scaled scores of every query ``[N, H, G, D]`` with all keys: ``[N, H, G]``; in parts, for the memory."""
    scale = queries.shape[-1] ** -0.5
    rows = queries.flatten(0, 1)  # [N H, G, D]
    columns = keys.flatten(0, 1).transpose(1, 2) * scale
    step = max(1, _SCORES // (rows.shape[0] * columns.shape[2]))
    parts = [(part @ columns).logsumexp(-1) for part in rows.split(step, dim=1)]
    return torch.cat(parts, dim=1).view(queries.shape[:3])
