"""A vision transformer on the grid of a slide's tiles, with ALiBi in two dimensions.

A layer turns tile features into tokens, a class token (and registers) are put in front, pre-norm blocks follow
(Dosovitskiy et al., arXiv 2010.11929), each a stage; scores fall with the distance of tiles
(:mod:`equipoise.models.slide_encoders.alibi`). The vector is what one learned query finds in all normalised tokens
(attention pooling, as TITAN has it, arXiv 2411.19666), or the normalised class token (as MOOZY has it).

Only differences of places count: a slide may be moved, turned by quarters or mirrored, and its vector stays.

Shapes: B slides, N tiles, T tokens, W width of a token.
"""

from __future__ import annotations

import hashlib
import json
import zlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.slide_encoders.alibi import alibi_attention, alibi_slopes
from equipoise.models.slide_encoders.card import GridShape
from equipoise.models.slide_encoders.entries import GridVitParams
from equipoise.models.slide_encoders.protocol import SlideTiles, SlideTokens

#: Raise with every change of the numbers: it enters the fingerprint, and with it the address of every store.
_VERSION = 1


class GridTransformer(nn.Module):
    """The layers.

    Parameters
    ----------
    shape
        Sizes.
    """

    slopes: Tensor

    def __init__(self, shape: GridShape) -> None:
        super().__init__()
        self.shape = shape
        self.input_proj = nn.Sequential(nn.Linear(shape.tile_dim, shape.width), nn.GELU())
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if shape.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, shape.registers, shape.width))
        self.blocks = nn.ModuleList(GridBlock(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        if shape.pooling != "class_token":
            self.pool = AttentionPooling(shape.width, shape.heads)
        self.register_buffer("slopes", alibi_slopes(shape.heads))

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Class token, registers, then a token per tile."""
        features = tiles.features.float().masked_fill(~tiles.mask[..., None], 0.0)  # padding may hold NaN
        front = [self.cls_token] + ([self.register_tokens] if self.shape.registers else [])
        tokens = [token.expand(len(features), -1, -1) for token in front] + [self.input_proj(features)]
        return SlideTokens(torch.cat(tokens, dim=1), 1 + self.shape.registers, tiles)

    def run(self, at: int, state: SlideTokens) -> SlideTokens:
        """Block ``at``."""
        block = self.blocks[at]
        tokens = block(state.tokens, tile_places(state.tiles), state.token_mask, self.slopes, state.prefix)
        return SlideTokens(tokens, state.prefix, state.tiles)

    def readout(self, state: SlideTokens) -> Tensor:
        """``[B, W]``."""
        if self.shape.pooling == "class_token":
            return self.norm(state.tokens[:, 0])
        return self.pool(self.norm(state.tokens), state.token_mask)


class GridBlock(nn.Module):
    """Attention, then a perceptron, each on normalised tokens and added to them."""

    def __init__(self, shape: GridShape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.mlp
        self.heads = shape.heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=shape.epsilon) for _ in range(2))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(
        self, x_BTW: Tensor, places_BN2: Tensor, mask_BT: Tensor, slopes_H: Tensor, prefix: int
    ) -> Tensor:
        """Two residual branches; tokens outside the mask are looked at by none."""
        h = self.norm1(x_BTW)
        queries, keys, values = (
            layer(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = alibi_attention(queries, keys, values, places_BN2, mask_BT, slopes_H, prefix)
        x_BTW = x_BTW + self.out_proj(mixed.transpose(1, 2).flatten(2))
        return x_BTW + self.fc2(functional.gelu(self.fc1(self.norm2(x_BTW))))


class AttentionPooling(nn.Module):
    """What one learned query finds in all tokens: ``[B, T, W]`` to ``[B, W]``.

    Parameters
    ----------
    width, heads
        Width of a token, heads of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        """Tokens outside the mask have the weight 0."""
        queries, keys, values = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, self.query), (self.k_proj, x_BTW), (self.v_proj, x_BTW))
        )
        mixed = functional.scaled_dot_product_attention(
            queries.expand(len(x_BTW), -1, -1, -1), keys, values, attn_mask=mask_BT[:, None, None]
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(1))


def tile_places(tiles: SlideTiles) -> Tensor:
    """x and y of each tile in units of tiles, counted from the slide's smallest: ``[B, N, 2]``; 0 where is none."""
    corners, mask = tiles.corners.float(), tiles.mask[..., None]
    first = corners.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    return ((corners - first) / tiles.extent.float()[:, None, None]).masked_fill(~mask, 0.0)


class GridEncoder:
    """A grid transformer as a slide encoder; every block is a stage. Subclasses set ``network``.

    Parameters
    ----------
    name, depth, device
        Of the encoder, for messages; its blocks; ``auto``, ``cpu`` or ``cuda``.
    """

    network: GridTransformer

    def __init__(self, name: str, depth: int, device: str) -> None:
        self.name, self.stages, self._device = name, depth, device

    @property
    def device(self) -> str:
        """Where slides are encoded."""
        if self._device != "auto":
            return self._device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def dim(self, tile_dim: int) -> int:
        """Width of a token."""
        shape = self.network.shape
        if tile_dim != shape.tile_dim:
            raise ValueError(
                f"slide encoder {self.name!r} takes {shape.tile_dim} features per tile, not {tile_dim}"
            )
        return shape.width

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Tokens behind those of the slide as a whole."""
        self.dim(tiles.features.shape[2])
        return self.network.to(tiles.features.device).stem(tiles)

    def run_stage(self, at: int, state: SlideTokens) -> SlideTokens:
        """Block ``at``."""
        if not 0 <= at < self.stages:
            raise IndexError(f"slide encoder {self.name!r} runs {self.stages} blocks, not {at + 1}")
        return self.network.run(at, state)

    def readout(self, state: SlideTokens) -> Tensor:
        """``[B, W]``."""
        return self.network.readout(state)


class GridVit(GridEncoder):
    """The slide encoder with random weights of a fixed seed.

    Its first layer is made when the length of tile features is told (:meth:`dim`, or the first slide), and the encoder
    takes no other features from then on.

    Parameters
    ----------
    params
        Seed and sizes.
    """

    def __init__(self, params: GridVitParams) -> None:
        super().__init__("grid_vit", params.depth, params.device)
        self._params = params
        about = ["grid_vit", _VERSION, params.model_dump(exclude={"device"})]
        self.fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def dim(self, tile_dim: int) -> int:
        """Width of a token, whatever the tile features."""
        if not hasattr(self, "network"):
            self.network = GridTransformer(self._params.shape(tile_dim))
            draw(self.network, self._params.seed)
            self.network.eval().requires_grad_(False)
        return super().dim(tile_dim)


@torch.no_grad()
def draw(network: nn.Module, seed: int) -> None:
    """Random weights, the same on every machine: each by its name, with the variance that keeps that of the input."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or parameter.ndim == 1:  # norms stay as they are, biases 0
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        scale = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 1.0
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        parameter.copy_(torch.from_numpy((rng.standard_normal(parameter.shape) * scale).astype(np.float32)))
