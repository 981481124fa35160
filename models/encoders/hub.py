"""Encoders whose weights live on the Hugging Face hub: one transformer, one way to load, a card for each."""

from __future__ import annotations

import re
from dataclasses import asdict

import torch
from torch import Tensor

from equipoise.models.encoders.entries import HubParams
from equipoise.models.encoders.shape import VitShape
from equipoise.models.encoders.torch_encoder import EncoderSpec, Preparation, PretrainedEncoder
from equipoise.models.encoders.vit import VisionTransformer, resized_positions
from equipoise.models.encoders.weights import find_hub_weights, read_weights


class HubEncoder(PretrainedEncoder):
    """The encoder of a card, with weights from this machine.

    Parameters
    ----------
    params
        Parameters of one encoder; their class names the card.
    """

    @staticmethod
    def spec(params: HubParams) -> EncoderSpec:
        """The card's transformer and the file of its weights."""
        card = params.card
        path = find_hub_weights(card, params.weights)
        state = read_weights(path)
        if card.layout == "dinov2":
            state = from_dinov2(state, card.shape)
        with torch.device("meta"):  # no memory and no time for numbers that are replaced at once
            network = VisionTransformer(card.shape)
        mean, std = card.normalisation
        return EncoderSpec(
            network,
            state,
            str(path),
            Preparation(card.shape.image, mean, std, card.fit),
            card.dim,
            {"encoder": card.name, "shape": asdict(card.shape)},
            precision=card.precision if params.precision == "auto" else params.precision,
            on_cpu="float32" if params.precision == "auto" else params.precision,
            batch_size=params.batch_size,
            device=params.device,
        )


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
    """Weights of transformers' ``Dinov2Model`` under the names of :mod:`equipoise.models.encoders.vit`.

    Three things differ besides names: queries, keys and values are three layers instead of one packed layer; there is
    a mask token that only training uses; position embeddings belong to the image size of training and are
    interpolated for others.

    Parameters
    ----------
    state
        Tensors by the names of ``Dinov2Model``. An unknown name is kept, so that the comparison
        of names afterwards reports it.
    shape
        Dimensions of the transformer that the weights are for.

    Raises
    ------
    ValueError
        If a block has some of its queries, keys and values only, or the positions are no square grid.
    """
    renamed: dict[str, Tensor] = {}
    packs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name == _UNUSED:
            continue
        match = _IN_BLOCK.fullmatch(name)
        block, part, kind = match.groups() if match else ("", "", "")
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
