"""CTransPath: a Swin transformer with a convolutional stem, trained on 15 million tiles of TCGA and PAIP.

Written from the papers (Wang et al., Medical Image Analysis 81, 2022; Liu et al., arXiv 2103.14030: windows, shifts,
relative positions; Xiao et al., arXiv 2106.14881: stem), with the parameter names of the official checkpoint. The
checkpoint is a pickle under GPL-3.0 and is converted once, see
:mod:`equipoise.models.encoders.convert_ctranspath`. CHIEF (Wang et al., Nature 634, 2024) has other weights for it: its
slide encoder is of no use with the features of the first ones.

Shapes: B tiles, H x W patches, C channels, T patches of a window.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.encoders.cards import IMAGENET
from equipoise.models.encoders.entries import CTransPathParams
from equipoise.models.encoders.torch_encoder import EncoderSpec, Preparation, PretrainedEncoder
from equipoise.models.encoders.weights import check_file, find_local_weights, read_weights

PX = 224
WIDTH, DEPTHS, HEADS, WINDOW = 96, (2, 2, 6, 2), (3, 6, 12, 24), 7
_FAR = -100.0  # added to scores between patches that the shift brought together


class CTransPath(PretrainedEncoder):
    """The encoder, with converted weights.

    Parameters
    ----------
    params
        Where the converted checkpoint is, and how to run.
    """

    @staticmethod
    def spec(params: CTransPathParams) -> EncoderSpec:
        """The network and the file of its weights."""
        name, (file, checkpoint) = params.encoder, params.checkpoint
        if params.weights is None:
            raise FileNotFoundError(
                f"the weights of encoder {name!r} are not named\n"
                f"download {file} as {params.source} says, run "
                f"`python -m equipoise.models.encoders.convert_ctranspath {file} {name}.safetensors` "
                f"once and write features: {{encoder_params: {{weights: PATH/{name}.safetensors}}}}"
            )
        path = find_local_weights(name, params.weights)
        if path.suffix == ".pth":
            raise ValueError(
                f"{path}: the official checkpoint has to be converted once\n"
                f"`python -m equipoise.models.encoders.convert_ctranspath {path} {path.with_suffix('.safetensors')}`"
            )
        if params.sha256 is None:
            require_converted(path, checkpoint, name)
        else:
            check_file(path, params.sha256, name)
        network = SwinTransformer()
        return EncoderSpec(
            network,
            read_weights(path),
            str(path),
            Preparation(PX, *IMAGENET, fit="bilinear"),
            network.dim,
            {"encoder": name},
            precision="float16" if params.precision == "auto" else params.precision,
            on_cpu="float32" if params.precision == "auto" else params.precision,
            batch_size=params.batch_size,
            device=params.device,
        )


def require_converted(path: Path, checkpoint: str, name: str) -> None:
    """Check that a file was converted from a certain checkpoint: two of them fit the same network.

    Raises
    ------
    ValueError
        If it is of another checkpoint, or does not say of which.
    """
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("source_sha256")
    except SafetensorError as error:
        raise ValueError(
            f"{path}: cannot be read as weights: {error}\nconvert the checkpoint again"
        ) from error
    if found != checkpoint:
        told = (
            f"was converted from the checkpoint {found}"
            if found
            else "does not say what it was converted from"
        )
        raise ValueError(
            f"{path}: {told}, encoder {name!r} needs {checkpoint}\n"
            "convert the published checkpoint with `python -m equipoise.models.encoders.convert_ctranspath`, or name "
            "your own file by its digest: features: {encoder_params: {sha256: …}}"
        )


class SwinTransformer(nn.Module):
    """Images ``[B, 3, 224, 224]`` to the mean of the 49 last patches ``[B, 768]``."""

    dim = WIDTH * 2 ** (len(DEPTHS) - 1)

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = ConvStem()
        side = PX // 4
        self.layers = nn.ModuleList(
            Stage(WIDTH * 2**at, depth, heads, side // 2**at, merges=at < len(DEPTHS) - 1)
            for at, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True))
        )
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, image: Tensor) -> Tensor:
        """Encode and pool."""
        x_BHWC = self.patch_embed(image)
        for stage in self.layers:
            x_BHWC = stage(x_BHWC)
        return self.norm(x_BHWC).mean((1, 2))


class ConvStem(nn.Module):
    """Two convolutions of stride 2, then one per pixel: patches of 4 px as ``[B, H, W, C]``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, WIDTH // 8, WIDTH // 4)
        for at in range(2):
            layers += [
                nn.Conv2d(channels[at], channels[at + 1], 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels[at + 1]),
                nn.ReLU(),
            ]
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels[-1], WIDTH, 1))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """Image to normalised patches."""
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks at one resolution; every second one shifts its windows by half. Then patches merge, but for the last."""

    def __init__(self, width: int, depth: int, heads: int, side: int, *, merges: bool) -> None:
        super().__init__()
        # One window has nothing to shift into.
        shifts = [WINDOW // 2 if at % 2 and side > WINDOW else 0 for at in range(depth)]
        self.blocks = nn.ModuleList(SwinBlock(width, heads, side, shift) for shift in shifts)
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """All blocks in turn."""
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return self.downsample(x_BHWC) if self.downsample is not None else x_BHWC


class SwinBlock(nn.Module):
    """Attention within windows, then a perceptron, each on normalised patches and added to them."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.register_buffer("mask", shift_mask(side, shift) if shift else None, persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Two residual branches."""
        shape = x_BHWC.shape
        shifted = torch.roll(self.norm1(x_BHWC), (-self.shift, -self.shift), (1, 2))
        mixed = self.attn(window_partition(shifted), self.mask)
        x_BHWC = x_BHWC + torch.roll(window_reverse(mixed, shape), (self.shift, self.shift), (1, 2))
        return x_BHWC + self.mlp(self.norm2(x_BHWC))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per head and relative position."""

    index: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.register_buffer("index", relative_position_index(), persistent=False)

    def forward(self, x_NTC: Tensor, mask: Tensor | None) -> Tensor:
        """Windows ``[N, T, C]``; the mask ``[windows of an image, T, T]`` repeats for every image."""
        count, tokens, width = x_NTC.shape
        packed = self.qkv(x_NTC).view(count, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = packed.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]  # [1, heads, T, T]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias.to(queries.dtype)
        )
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Each patch by itself."""
        return self.fc2(functional.gelu(self.fc1(x)))


class PatchMerging(nn.Module):
    """Four neighbours become one patch of twice the width: down first, then right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """``[B, H, W, C]`` to ``[B, H / 2, W / 2, 2 C]``."""
        quarters = [x_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


def window_partition(x_BHWC: Tensor) -> Tensor:
    """Cut into windows, row by row: ``[B * windows, T, C]``."""
    batch, height, width, channels = x_BHWC.shape
    cut = x_BHWC.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, channels)


def window_reverse(x_NTC: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`window_partition`, to ``[B, H, W, C]``."""
    batch, height, width, channels = shape
    cut = x_NTC.view(batch, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


def relative_position_index() -> Tensor:
    """Row of the bias table for each pair of patches of a window: ``[T, T]``, by rows first."""
    position = torch.arange(WINDOW)
    row, column = (grid.flatten() for grid in torch.meshgrid(position, position, indexing="ij"))
    down = row[:, None] - row[None] + WINDOW - 1
    right = column[:, None] - column[None] + WINDOW - 1
    return down * (2 * WINDOW - 1) + right


def shift_mask(side: int, shift: int) -> Tensor:
    """Added to scores so that patches which a shift brought together stay independent: ``[windows, T, T]``."""
    position = torch.arange(side)
    segment = (position >= side - WINDOW).long() + (position >= side - shift).long()
    segments = (3 * segment[:, None] + segment[None]).view(1, side, side, 1)
    of_window = window_partition(segments)[:, :, 0]
    return (of_window[:, :, None] != of_window[:, None]).float() * _FAR
