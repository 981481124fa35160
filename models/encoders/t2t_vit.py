"""T2T-ViT-14: a vision transformer whose tokens are made from overlapping neighbours, step by step.

Written from the paper (Yuan et al., arXiv 2101.11986: tokens to token by soft splits of 7, 3 and 3 px with strides 4, 2
and 2, between them one attention of 64 channels; 14 layers of 384 channels on 196 tokens and a class token) and from
Choromanski et al., arXiv 2009.14794 (attention by positive random features, "performer"), with the parameter names of
the official checkpoints. It is the image branch of Path-GPTOmic (arXiv 2403.11375), there trained end to end on regions
of interest; here it encodes regions with fixed weights, so that a region is seen as ImageNet taught, not as survival
would have.

Shapes: B images, T tokens, C channels, M random features.
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.encoders.cards import IMAGENET
from equipoise.models.encoders.entries import T2TViTParams
from equipoise.models.encoders.torch_encoder import EncoderSpec, Preparation, PretrainedEncoder
from equipoise.models.encoders.vit import Mlp
from equipoise.models.encoders.weights import check_file, find_local_weights, read_tensors, require_tensors

PX, WIDTH, DEPTH, HEADS, HIDDEN = 224, 384, 14, 6, 3 * 384
TOKEN_WIDTH, FEATURES = 64, 32
#: (kernel, stride, padding) of the soft splits, in pixels or tokens of the step before.
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
#: Where a checkpoint keeps its weights, the preferred first: averaged over training, as published results are.
PLACES = ("state_dict_ema", "state_dict")
#: The classifier of ImageNet, which a vector does not need.
LEFT_OUT = ("head.weight", "head.bias")

Tokens = Literal["performer", "transformer"]
log = logging.getLogger("equipoise")


class T2TViT14(PretrainedEncoder):
    """The encoder, with the weights of a local file: the class token after the last norm.

    Parameters
    ----------
    params
        Where the weights are, how tokens are made, and how to run.
    """

    @staticmethod
    def spec(params: T2TViTParams) -> EncoderSpec:
        """The network and the file of its weights."""
        if params.weights is None:
            raise FileNotFoundError(
                "the weights of encoder 't2t_vit_14' are not named\n"
                "download the checkpoint of T2T-ViT-14 (performer) or T2T-ViT_t-14 (transformer) as "
                "https://github.com/yitu-opensource/T2T-ViT says and write "
                "features: {encoder_params: {weights: PATH, tokens: performer}}"
            )
        path = find_local_weights("t2t_vit_14", params.weights)
        check_file(path, params.sha256, "t2t_vit_14")
        if params.sha256 is None:
            _warn_of_digest(path)
        with torch.device("meta"):
            network = T2TTransformer(params.tokens)
        return EncoderSpec(
            network,
            published_names(read_tensors(path), path),
            str(path),
            Preparation(PX, *IMAGENET, fit="bicubic"),
            WIDTH,
            {"encoder": "t2t_vit_14", "tokens": params.tokens},
            precision="float32" if params.precision == "auto" else params.precision,
            on_cpu="float32" if params.precision == "auto" else params.precision,
            batch_size=params.batch_size,
            device=params.device,
        )


def _warn_of_digest(path: Path) -> None:
    """No digest of the published files is known: say which file it is, so that it can be pinned."""
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    log.warning(
        "no digest of the published weights of t2t_vit_14 is known; %s has %s: write it as "
        "features.encoder_params.sha256 so that no other file takes its place",
        path,
        value,
    )


def published_names(contents: dict[str, Any], where: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the names of the network.

    Parameters
    ----------
    contents
        Of the file: tensors by name, or a dictionary of them at one of :data:`PLACES`.
    where
        The file, for messages.

    Raises
    ------
    ValueError
        If there are other things than named tensors.
    """
    place = next((key for key in PLACES if isinstance(contents.get(key), dict)), None)
    state = require_tensors(contents if place is None else contents[place], where)
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in plain.items() if name not in LEFT_OUT}


class T2TTransformer(nn.Module):
    """Images ``[B, 3, 224, 224]``, normalised, to vectors ``[B, 384]``.

    Parameters
    ----------
    tokens
        Attention between the soft splits: ``performer`` (T2T-ViT-14) or ``transformer`` (T2T-ViT_t-14).
    """

    pos_embed: Tensor

    def __init__(self, tokens: Tokens = "performer") -> None:
        super().__init__()
        self.tokens_to_token = TokensToToken(tokens)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_buffer("pos_embed", sinusoids(1 + (PX // 16) ** 2, WIDTH)[None])
        self.blocks = nn.ModuleList(T2TBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """The class token after all layers."""
        if image.shape[1:] != (3, PX, PX):
            raise ValueError(f"images must be [B, 3, {PX}, {PX}], not {list(image.shape)}")
        x_BTC = self.tokens_to_token(image)
        x_BTC = torch.cat([self.cls_token.expand(len(x_BTC), -1, -1), x_BTC], dim=1) + self.pos_embed
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return self.norm(x_BTC)[:, 0]


def sinusoids(count: int, width: int) -> Tensor:
    """Positions ``[count, width]``: sine in even and cosine in odd channels (Vaswani et al., arXiv 1706.03762)."""
    channel = torch.arange(width)
    rate = torch.pow(10000.0, -2.0 * (channel // 2) / width)
    angle = torch.arange(count)[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


class TokensToToken(nn.Module):
    """Images to 196 tokens ``[B, 196, 384]``: soft split, attention, soft split, attention, soft split, projection."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        kind = TokenPerformer if tokens == "performer" else TokenTransformer
        first, second, third = (kernel * kernel for kernel, _, _ in SPLITS)
        self.attention1 = kind(3 * first)
        self.attention2 = kind(TOKEN_WIDTH * second)
        self.project = nn.Linear(TOKEN_WIDTH * third, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """Each step joins the neighbours of a token into a new one."""
        plane = image
        for split, attention in zip(SPLITS, (self.attention1, self.attention2), strict=False):
            x_BTC = attention(soft_split(plane, split))
            side = math.isqrt(x_BTC.shape[1])
            plane = x_BTC.transpose(1, 2).unflatten(2, (side, side))
        return self.project(soft_split(plane, SPLITS[-1]))


def soft_split(plane: Tensor, split: tuple[int, int, int]) -> Tensor:
    """Overlapping patches ``[B, T, C k²]`` of ``[B, C, H, W]``, channel by channel, rows first."""
    kernel, stride, padding = split
    return functional.unfold(plane, kernel, padding=padding, stride=stride).transpose(1, 2)


class TokenPerformer(nn.Module):
    """Attention by random features, then a perceptron; the values stand in for the wider input in the first sum."""

    w: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.kqv = nn.Linear(width, 3 * TOKEN_WIDTH)
        self.proj = nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)
        self.norm2 = nn.LayerNorm(TOKEN_WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH), nn.GELU(), nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)
        )
        directions = nn.init.orthogonal_(torch.empty(FEATURES, TOKEN_WIDTH)) * math.sqrt(FEATURES)
        self.register_buffer("w", directions)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Attention is linear in the number of tokens: keys and values are summed up before queries come."""
        keys, queries, values = self.kqv(self.norm1(x_BTC)).chunk(3, dim=-1)
        keys_BTM, queries_BTM = self.random_features(keys), self.random_features(queries)
        mixed = queries_BTM @ (keys_BTM.transpose(1, 2) @ values)
        total = queries_BTM @ keys_BTM.sum(dim=1)[..., None]
        x_BTC = values + self.proj(mixed / (total + 1e-8))
        return x_BTC + self.mlp(self.norm2(x_BTC))

    def random_features(self, x_BTC: Tensor) -> Tensor:
        """``[B, T, M]``: exp(w x - |x|² / 2) / √M, whose products are exp(q k) on average over w."""
        half = x_BTC.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(x_BTC @ self.w.T - half) / math.sqrt(FEATURES)


class TokenTransformer(nn.Module):
    """Softmax attention of one head, then a perceptron, as :class:`TokenPerformer`.

    Products are divided by the root of the **input** width (147, 576), not of the 64 channels that they are taken over:
    so the official weights were trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = TokenAttention(width)
        self.norm2 = nn.LayerNorm(TOKEN_WIDTH)
        self.mlp = Mlp(TOKEN_WIDTH, TOKEN_WIDTH, swiglu=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Attention replaces the input, the perceptron is added."""
        x_BTC = self.attn(self.norm1(x_BTC))
        return x_BTC + self.mlp(self.norm2(x_BTC))


class TokenAttention(nn.Module):
    """Attention of one head that narrows tokens to 64 channels, added to their values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.qkv = nn.Linear(width, 3 * TOKEN_WIDTH, bias=False)
        self.proj = nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Every token looks at every token."""
        queries, keys, values = self.qkv(x_BTC).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return values + self.proj(mixed)


class T2TBlock(nn.Module):
    """Pre-norm layer of the backbone: attention of six heads without bias, perceptron three times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = SelfAttention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = Mlp(WIDTH, HIDDEN, swiglu=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Two residual branches."""
        x_BTC = x_BTC + self.attn(self.norm1(x_BTC))
        return x_BTC + self.mlp(self.norm2(x_BTC))


class SelfAttention(nn.Module):
    """Attention of six heads; queries, keys and values from one layer without bias, in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Every token looks at every token of its image."""
        queries, keys, values = self.qkv(x_BTC).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))
