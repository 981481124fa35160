"""Weights of transformers' ``Dinov2Model`` under the names of :mod:`equipoise.models.encoders.vit`.

Three things differ besides names: queries, keys and values are three layers instead of one packed layer; there is a
mask token that only training uses; position embeddings belong to the image size of training and are interpolated for
others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.models.encoders.shape import VitShape

#: Names outside the blocks.
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}

#: Names within a block; ``weights_in`` and ``weights_out`` are those of SwiGLU. These are the names in files, also in
#: those that transformers 5 writes; its own names in memory are others.
_BLOCK = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}

#: What is packed into one layer, in this order.
_QKV = ("query", "key", "value")
_PACKED = {f"attention.attention.{part}": part for part in _QKV}

_UNUSED = "embeddings.mask_token"
_IN_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias|)$")


def from_dinov2(state: dict[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    """Rename, pack and interpolate.

    Parameters
    ----------
    state
        Tensors by the names of ``Dinov2Model``. A name that is not known stays as it is, so that whoever compares
        names afterwards reports it.
    shape
        Measures of the transformer that the weights are for.

    Raises
    ------
    ValueError
        If a block has some of its queries, keys and values only, or the positions are no square grid.
    """
    import torch

    from equipoise.models.encoders.vit import resized_positions

    renamed: dict[str, Tensor] = {}
    packs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name == _UNUSED:
            continue
        found = _IN_BLOCK.fullmatch(name)
        block, part, kind = found.groups() if found else ("", "", "")
        if part in _PACKED:
            packs.setdefault(f"blocks.{block}.attn.qkv{kind}", {})[_PACKED[part]] = tensor
        elif part in _BLOCK:
            renamed[f"blocks.{block}.{_BLOCK[part]}{kind}"] = tensor
        else:
            renamed[_TOP.get(name, name)] = tensor
    for name, parts in packs.items():
        if set(parts) != set(_QKV):
            raise ValueError(f"{name} needs {', '.join(_QKV)}; the file has {', '.join(sorted(parts))}")
        renamed[name] = torch.cat([parts[part] for part in _QKV])
    if "pos_embed" in renamed:
        renamed["pos_embed"] = resized_positions(renamed["pos_embed"], shape.grid, shape.prefix)
    return renamed
