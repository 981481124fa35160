"""A folder as scGPT publishes it, small and with random weights under the official names and shapes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GENES = [f"GENE{i}" for i in range(60)]
ARGS: dict[str, Any] = {
    "embsize": 32,
    "nheads": 4,
    "d_hid": 48,
    "nlayers": 3,
    "n_layers_cls": 3,
    "dropout": 0.2,
    "pad_token": "<pad>",
    "pad_value": -2,
    "n_bins": 51,
}


def official_shapes(tokens: int, dim: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, the decoders of pre-training included."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embedding.weight": (tokens, dim),
        "encoder.enc_norm.weight": (dim,),
        "encoder.enc_norm.bias": (dim,),
        "value_encoder.linear1.weight": (dim, 1),
        "value_encoder.linear1.bias": (dim,),
        "value_encoder.linear2.weight": (dim, dim),
        "value_encoder.linear2.bias": (dim,),
        "value_encoder.norm.weight": (dim,),
        "value_encoder.norm.bias": (dim,),
        "cls_decoder._decoder.0.weight": (dim, dim),
        "cls_decoder.out_layer.weight": (1, dim),
        "decoder.fc.0.weight": (dim, dim),
        "mvc_decoder.gene2query.weight": (dim, dim),
        "mvc_decoder.W.weight": (dim, dim),
    }
    for i in range(layers):
        start = f"transformer_encoder.layers.{i}."
        shapes |= {
            f"{start}self_attn.in_proj_weight": (3 * dim, dim),
            f"{start}self_attn.in_proj_bias": (3 * dim,),
            f"{start}self_attn.out_proj.weight": (dim, dim),
            f"{start}self_attn.out_proj.bias": (dim,),
            f"{start}linear1.weight": (hidden, dim),
            f"{start}linear1.bias": (hidden,),
            f"{start}linear2.weight": (dim, hidden),
            f"{start}linear2.bias": (dim,),
        }
        shapes |= {f"{start}norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")}
    return shapes


def official_state(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under these names; norms near 1, so that every part of the network counts."""
    generator = torch.Generator().manual_seed(seed)
    shapes = official_shapes(len(GENES) + 3, ARGS["embsize"], ARGS["d_hid"], ARGS["nlayers"])
    state = {}
    for name, shape in shapes.items():
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        state[name] = torch.randn(shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    return state


@pytest.fixture
def state() -> dict[str, Tensor]:
    return official_state()


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """``write_folder(state, **args)``: the three files in a new folder."""

    def write(state: dict[str, Tensor], vocabulary: dict[str, int] | None = None, **args: object) -> Path:
        folder = tmp_path / f"scgpt-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        tokens = [*GENES, "<pad>", "<cls>", "<eoc>"]
        known = {token: i for i, token in enumerate(tokens)} if vocabulary is None else vocabulary
        (folder / "vocab.json").write_text(json.dumps(known))
        (folder / "args.json").write_text(json.dumps(ARGS | args))
        torch.save(state, folder / "best_model.pt")
        return folder

    return write
