"""A transformer with random weights: what tiles and their places give before anything is learned.

Every tile's features are normalised and mapped to a token, its place is added (sines and cosines of its row and column
in units of tiles, counted from the slide's first), a class token is put in front. Each stage is one pre-norm block of
attention over all tokens of the slide and a perceptron (Dosovitskiy et al., arXiv 2010.11929). The vector joins the
class token and the mean of the tiles' tokens.

It has no weights to get and runs anywhere: the baseline of trained slide encoders with stages, and what methods that
work between stages are tried with. Weights are drawn in NumPy from the seed and the length of tile features.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.positions import sines_and_cosines
from equipoise.models.slide_encoders.protocol import SlideTiles, SlideTokens

#: Raise with every change of the numbers: it enters the fingerprint, and with it the address of every store.
_VERSION = 1
_MLP = 4  # hidden width of a perceptron in widths of a token


class RandomTransformer(nn.Module):
    """The slide encoder; see the module.

    Parameters
    ----------
    params
        Seed and sizes.
    """

    def __init__(self, params: RandomTransformerParams) -> None:
        super().__init__()
        self.params = params
        self.stages, self.device = params.depth, "cpu"
        about = json.dumps(["random_transformer", _VERSION, params.model_dump()], sort_keys=True)
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()
        rng = np.random.default_rng([params.seed, 0])
        self.cls_token = nn.Parameter(_drawn(rng, (1, 1, params.width), 1.0), requires_grad=False)
        self.blocks = nn.ModuleList(Block(params.width, params.heads, rng) for _ in range(params.depth))
        self._embeddings: dict[int, Tensor] = {}

    def dim(self, tile_dim: int) -> int:
        """Twice the width of a token, whatever the tile features."""
        return 2 * self.params.width

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Tokens with their places, behind the class token."""
        features = tiles.features.float().masked_fill(~tiles.mask[..., None], 0.0)  # padding may hold NaN
        features = functional.layer_norm(features, features.shape[-1:])
        tokens = features @ self._embedding(features.shape[2]).to(features.device)
        tokens = tokens + positions(tiles, self.params.width)
        front = self.cls_token.expand(len(tokens), -1, -1)
        return SlideTokens(torch.cat([front, tokens], dim=1), 1, tiles)

    def run_stage(self, at: int, state: SlideTokens) -> SlideTokens:
        """One block."""
        return SlideTokens(self.blocks[at](state.tokens, state.token_mask), state.prefix, state.tiles)

    def readout(self, state: SlideTokens) -> Tensor:
        """Class token and mean of the tiles' tokens, normalised: ``[B, 2 W]``."""
        tokens = functional.layer_norm(state.tokens, state.tokens.shape[-1:])
        mask = state.tiles.mask[..., None]
        tiles = tokens[:, state.prefix :].masked_fill(~mask, 0.0)
        return torch.cat([tokens[:, 0], tiles.sum(1) / mask.sum(1)], dim=1)

    def _embedding(self, tile_dim: int) -> Tensor:
        """``[D, W]``, drawn at the first slide of that kind."""
        if tile_dim not in self._embeddings:
            rng = np.random.default_rng([self.params.seed, 1, tile_dim])
            self._embeddings[tile_dim] = _drawn(rng, (tile_dim, self.params.width), tile_dim**-0.5)
        return self._embeddings[tile_dim]


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens and added to them; without biases.

    Parameters
    ----------
    width, heads
        Width of a token, heads of the attention.
    rng
        Draws the weights.
    """

    def __init__(self, width: int, heads: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.heads = heads
        for name, (rows, columns) in {
            "qkv": (width, 3 * width),
            "proj": (width, width),
            "fc1": (width, _MLP * width),
            "fc2": (_MLP * width, width),
        }.items():
            weight = nn.Parameter(_drawn(rng, (rows, columns), rows**-0.5), requires_grad=False)
            self.register_parameter(name, weight)

    def forward(self, x_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        """Tokens outside the mask are looked at by none."""
        batch, tokens, width = x_BTW.shape
        packed = (_norm(x_BTW) @ self.get_parameter("qkv")).view(
            batch, tokens, 3, self.heads, width // self.heads
        )
        queries, keys, values = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if bool(mask_BT.all()) else mask_BT[:, None, None]
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x_BTW = x_BTW + mixed.transpose(1, 2).reshape(batch, tokens, width) @ self.get_parameter("proj")
        hidden = functional.gelu(_norm(x_BTW) @ self.get_parameter("fc1"))
        return x_BTW + hidden @ self.get_parameter("fc2")


def positions(tiles: SlideTiles, width: int) -> Tensor:
    """Sines and cosines of each tile's row, then of its column: ``[B, N, width]``; ``width`` a multiple of 4.

    Rows and columns are in units of tiles, counted from the slide's smallest: moving a slide changes nothing.
    """
    corners, mask = tiles.corners.float(), tiles.mask[..., None]
    first = corners.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    places = ((corners - first) / tiles.extent[:, None, None]).masked_fill(~mask, 0.0)
    return sines_and_cosines(places.flip(-1), width)


def _norm(x_BTW: Tensor) -> Tensor:
    return functional.layer_norm(x_BTW, x_BTW.shape[-1:])


def _drawn(rng: np.random.Generator, size: tuple[int, ...], scale: float) -> Tensor:
    return torch.from_numpy((rng.standard_normal(size) * scale).astype(np.float32))
