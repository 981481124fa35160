"""One vision transformer for every hub encoder, with the parameter names of timm.

Weights published for timm's ``VisionTransformer`` load into it by name. timm itself is no dependency: beside a CPU
build of torch it cannot be imported. The layout follows the papers: Dosovitskiy et al., arXiv 2010.11929 (pre-norm
blocks), Touvron et al., arXiv 2103.17239 (LayerScale), Shazeer, arXiv 2002.05202 (SwiGLU; gate first, value second in
one packed layer), Darcet et al., arXiv 2309.16588 (registers).

Shapes: B tiles, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.encoders.card import Regrid
from equipoise.models.encoders.shape import VitShape


class VisionTransformer(nn.Module):
    """Images ``[B, 3, image, image]``, normalised, to vectors ``[B, dim]``.

    Parameters
    ----------
    shape
        The dimensions.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.patch_embed = PatchEmbed(width, shape.patch, bias=shape.patch_bias)
        if shape.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if shape.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, shape.registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.positions, width))
        self.norm_pre = nn.LayerNorm(width, eps=shape.epsilon) if shape.norm_before else nn.Identity()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, eps=shape.epsilon)

    def forward(self, image: Tensor) -> Tensor:
        """Encode and pool."""
        return self.pool(self.tokens(image))

    def tokens(self, image: Tensor) -> Tensor:
        """All tokens after the last norm: ``[B, T, D]``, class token and registers first."""
        side = self.shape.image
        if image.shape[1:] != (3, side, side):
            raise ValueError(f"images must be [B, 3, {side}, {side}], not {list(image.shape)}")
        x_BTD = self.norm_pre(self._with_positions(self.patch_embed(image)))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)

    def pool(self, x_BTD: Tensor) -> Tensor:
        """Tokens to one vector per image: ``[B, dim]``."""
        patches = x_BTD[:, self.shape.prefix :]
        if self.shape.pooling == "mean":
            return patches.mean(1)
        if self.shape.pooling == "token":
            return x_BTD[:, 0]
        return torch.cat([x_BTD[:, 0], patches.mean(1)], dim=-1)

    def _with_positions(self, patches_BTD: Tensor) -> Tensor:
        """Prefix tokens joined and positions added."""
        if not self.shape.prefix_positions:
            patches_BTD = patches_BTD + self.pos_embed
        prefix = [self.cls_token] if self.shape.class_token else []
        prefix += [self.reg_token] if self.shape.registers else []
        batch = len(patches_BTD)
        x_BTD = torch.cat([*(token.expand(batch, -1, -1) for token in prefix), patches_BTD], dim=1)
        return x_BTD + self.pos_embed if self.shape.prefix_positions else x_BTD


class PatchEmbed(nn.Module):
    """Images to patch tokens ``[B, T, D]``, row by row."""

    def __init__(self, width: int, patch: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """One linear map per patch."""
        return self.proj(image).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens and added to them."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width = shape.width
        self.norm1 = nn.LayerNorm(width, eps=shape.epsilon)
        inner = shape.epsilon if shape.inner_norms else None
        self.attn = Attention(width, shape.heads, inner)
        self.ls1 = LayerScale(width) if shape.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=shape.epsilon)
        self.mlp = Mlp(width, shape.mlp, swiglu=shape.swiglu, activation=shape.activation, inner=inner)
        self.ls2 = LayerScale(width) if shape.layer_scale else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Two residual branches."""
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))


class Attention(nn.Module):
    """Multi-head self-attention; one packed layer gives queries, keys and values, in this order.

    Parameters
    ----------
    width, heads
        Width of a token, number of heads.
    inner
        Epsilon of a LayerNorm on the joined heads; ``None``: there is none.
    """

    def __init__(self, width: int, heads: int, inner: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.Identity() if inner is None else nn.LayerNorm(width, eps=inner)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Every token looks at every token of its image."""
        batch, tokens, width = x_BTD.shape
        packed = self.qkv(x_BTD).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(self.norm(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class Mlp(nn.Module):
    """Two linear layers with GELU or CLIP's stand-in for it between them, or a SiLU gate times a value.

    Behind GELU there may be a LayerNorm, with the epsilon ``inner``.
    """

    def __init__(
        self, width: int, hidden: int, *, swiglu: bool, activation: str = "gelu", inner: float | None = None
    ) -> None:
        super().__init__()
        self.swiglu, self.quick = swiglu, activation == "quick_gelu"
        self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.Identity() if inner is None else nn.LayerNorm(hidden, eps=inner)
        self.fc2 = nn.Linear(hidden // 2 if swiglu else hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Each token by itself."""
        hidden = self.fc1(x_BTD)
        if self.quick:
            return self.fc2(self.norm(hidden * torch.sigmoid(1.702 * hidden)))
        if not self.swiglu:
            return self.fc2(self.norm(functional.gelu(hidden)))
        gate, value = hidden.chunk(2, dim=-1)
        return self.fc2(functional.silu(gate) * value)


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Scale."""
        return x_BTD * self.gamma


def regridded_positions(positions: Tensor, grid: int, prefix: int, regrid: Regrid) -> Tensor:
    """Position embeddings ``[1, prefix + n * n, D]`` for a grid of ``grid`` x ``grid`` patches.

    Rows of the prefix are kept, the others are interpolated as those did it who published the encoder; what each word
    means stands with :data:`~equipoise.models.encoders.card.Regrid`. Positions of the right grid stay untouched.

    Raises
    ------
    ValueError
        If the embedding does not belong to a square grid.
    """
    prefix_part, patches = positions[:, :prefix], positions[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} positions are no square grid")
    if side == grid:
        return positions
    plane = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if regrid == "dinov2":
        factor = (grid + 0.1) / side
        plane = functional.interpolate(plane, scale_factor=(factor, factor), mode="bicubic")
    else:
        plane = functional.interpolate(plane, size=(grid, grid), mode="bicubic", antialias=regrid == "timm")
    return torch.cat([prefix_part.float(), plane.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
