"""Names in published weights files, brought to those of :mod:`equipoise.models.encoders.vit`.

A name that no rule knows stays as it is, so that the comparison of all names afterwards reports it.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from equipoise.models.encoders.card import ModelCard
from equipoise.models.encoders.vit import regridded_positions
from equipoise.models.encoders.weights import renamed

#: What is packed into one layer, in this order.
_QKV = ("query", "key", "value")

#: Names of transformers outside the blocks.
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}

#: Names of transformers within a block of ``Dinov2Model`` (``weights_in`` and ``weights_out`` are those of SwiGLU)
#: and of ``ViTModel``. These are the names in files, also in those that transformers 5 writes; its own names in memory
#: are others.
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
    "layernorm_before": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_after": "norm2",
}
_PACKED = {f"attention.attention.{part}": part for part in _QKV}
_IN_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias|)$")


def to_card(state: dict[str, Tensor], card: ModelCard) -> dict[str, Tensor]:
    """The tensors of a published file under the names of the card's network.

    Parts that the card drops are left out, prefixes are renamed, names of the layout are brought to ours, position
    embeddings to the grid of the input.

    Raises
    ------
    ValueError
        If a block has some of its queries, keys and values only, or positions to be interpolated are no square grid.
    """
    kept = renamed(state, card.renames, card.drops)
    prefix = "trunk." if card.head is not None else ""
    trunk = {name.removeprefix(prefix): t for name, t in kept.items() if name.startswith(prefix)}
    rest = {name: tensor for name, tensor in kept.items() if not name.startswith(prefix)}
    trunk = _RULES[card.layout](trunk)
    if "pos_embed" in trunk:
        trunk |= _positions(trunk, card)
    return {f"{prefix}{name}": tensor for name, tensor in trunk.items()} | rest


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm's ``VisionTransformer``; some files call the factors of LayerScale ``weight``."""
    return {re.sub(r"\.(ls[12])\.weight$", r".\1.gamma", name): tensor for name, tensor in state.items()}


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' ``ViTModel``, ``Dinov2Model`` and ``Dinov2WithRegistersModel``.

    Besides the names, queries, keys and values are three layers instead of one packed layer.

    Raises
    ------
    ValueError
        If a block has some of its queries, keys and values only.
    """
    ours: dict[str, Tensor] = {}
    packs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _IN_BLOCK.fullmatch(name)
        block, part, kind = match.groups() if match else ("", "", "")
        if part in _PACKED:
            packs.setdefault(f"blocks.{block}.attn.qkv{kind}", {})[_PACKED[part]] = tensor
        elif part in _BLOCK:
            ours[f"blocks.{block}.{_BLOCK[part]}{kind}"] = tensor
        else:
            ours[_TOP.get(name, name)] = tensor
    for name, parts in packs.items():
        if set(parts) != set(_QKV):
            raise ValueError(f"{name} needs {', '.join(_QKV)}; the file has {', '.join(sorted(parts))}")
        ours[name] = torch.cat([parts[part] for part in _QKV])
    return ours


#: Names of transformers' CLIP outside the blocks and within one.
_CLIP_TOP = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "pre_layrnorm.weight": "norm_pre.weight",  # spelt like that
    "pre_layrnorm.bias": "norm_pre.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}
_CLIP_BLOCK = {
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_IN_CLIP_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+?)(\.weight|\.bias)$")


def from_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' ``CLIPVisionModel``, whose class token and positions have no axis for the batch.

    Raises
    ------
    ValueError
        As :func:`from_transformers`.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _IN_CLIP_BLOCK.fullmatch(name)
        if match and match[2] in _CLIP_BLOCK:
            ours[f"encoder.layer.{match[1]}.{_CLIP_BLOCK[match[2]]}{match[3]}"] = tensor
        elif name == "embeddings.class_embedding":
            ours["cls_token"] = tensor.reshape(1, 1, -1)
        else:
            ours[_CLIP_TOP.get(name, name)] = (
                tensor[None] if name.endswith("position_embedding.weight") else tensor
            )
    return from_transformers(ours)


def from_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the DINOv2 training code: ``register_tokens``, and ``w12`` and ``w3`` of SwiGLU."""
    return {
        re.sub(
            r"\.mlp\.(w12|w3)\.",
            lambda match: f".mlp.{'fc1' if match[1] == 'w12' else 'fc2'}.",
            "reg_token" if name == "register_tokens" else name,
        ): tensor
        for name, tensor in state.items()
    }


#: Names of torchscale's BEiT-3 outside the layers and within one, without the expert for images, ``A``.
_BEIT3_TOP = {
    "vision_embed.cls_token": "cls_token",
    "vision_embed.proj.weight": "patch_embed.proj.weight",
    "vision_embed.proj.bias": "patch_embed.proj.bias",
    "encoder.layer_norm.weight": "norm.weight",
    "encoder.layer_norm.bias": "norm.bias",
}
_BEIT3_LAYER = {
    "self_attn_layer_norm": "layernorm_before",
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "final_layer_norm": "layernorm_after",
    "ffn.fc1": "intermediate.dense",
    "ffn.fc2": "output.dense",
}
_BEIT3_INNER = {"self_attn.inner_attn_ln": "attn.norm", "ffn.ffn_layernorm": "mlp.norm"}
_IN_BEIT3_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+?)(\.weight|\.bias)$")
_BEIT3_UNUSED = 2  # rows that torchscale keeps before the first position


def from_beit3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of torchscale's BEiT-3 (Wang et al., arXiv 2208.10442): the expert for images; that for text is left out.

    Raises
    ------
    ValueError
        As :func:`from_transformers`.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("encoder.") and ".B." in name:
            continue
        if name == "encoder.embed_positions.A.weight":
            ours["pos_embed"] = tensor[None, _BEIT3_UNUSED:]
            continue
        plain = name.replace(".A.", ".", 1)
        match = _IN_BEIT3_LAYER.fullmatch(plain) if ".A." in name else None
        if match and match[2] in _BEIT3_LAYER:
            ours[f"encoder.layer.{match[1]}.{_BEIT3_LAYER[match[2]]}{match[3]}"] = tensor
        elif match and match[2] in _BEIT3_INNER:
            ours[f"blocks.{match[1]}.{_BEIT3_INNER[match[2]]}{match[3]}"] = tensor
        else:
            ours[_BEIT3_TOP.get(plain, name)] = tensor
    return from_transformers(ours)


_RULES = {
    "timm": from_timm,
    "transformers": from_transformers,
    "clip": from_clip,
    "dinov2": from_dinov2,
    "beit3": from_beit3,
}


def _positions(trunk: dict[str, Tensor], card: ModelCard) -> dict[str, Tensor]:
    """Position embeddings (and the class token) as the network has them.

    Transformers and DINOv2 give the class token a position, registers none. Where the network has positions for
    patches only, that of the class token is added to the token itself: the sum is the same.
    """
    shape, table = card.shape, trunk["pos_embed"]
    changed: dict[str, Tensor] = {}
    prefix = shape.prefix if shape.prefix_positions else 0
    if card.layout != "timm" and not prefix and "cls_token" in trunk:
        changed["cls_token"] = trunk["cls_token"].float() + table[:, :1].float()
        table = table[:, 1:]
    if card.regrid is not None:
        table = regridded_positions(table, shape.grid, prefix, card.regrid)
    return changed | {"pos_embed": table}
