import pytest
import torch
from torch import Tensor

from equipoise.models.encoders.hub import from_dinov2
from equipoise.models.encoders.shape import VitShape
from equipoise.models.encoders.vit import VisionTransformer

GELU = VitShape(width=12, depth=2, heads=2, patch=8, mlp=24, image=32)
SWIGLU = VitShape(width=12, depth=2, heads=2, patch=8, mlp=24, image=32, swiglu=True)


def dinov2_state(shape: VitShape, grid: int) -> dict[str, Tensor]:
    """Random tensors by the names of transformers' Dinov2Model, written down from its published files."""
    generator = torch.Generator().manual_seed(4)
    width, inner = shape.width, shape.mlp // 2 if shape.swiglu else shape.mlp
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + grid * grid, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, shape.patch, shape.patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    first, second = ("weights_in", "weights_out") if shape.swiglu else ("fc1", "fc2")
    for at in range(shape.depth):
        layer = f"encoder.layer.{at}"
        linear = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (width, width)}
        linear |= {f"mlp.{first}": (shape.mlp, width), f"mlp.{second}": (width, inner)}
        for part, size in linear.items():
            sizes |= {f"{layer}.{part}.weight": size, f"{layer}.{part}.bias": size[:1]}
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            sizes[f"{layer}.{part}"] = (width,)
        sizes |= {f"{layer}.layer_scale{k}.lambda1": (width,) for k in (1, 2)}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize("shape", [GELU, SWIGLU], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("grid", [4, 7])
def test_names_and_places(shape: VitShape, grid: int) -> None:
    state = dinov2_state(shape, grid)
    ours = from_dinov2(state, shape)
    VisionTransformer(shape).load_state_dict(ours, strict=True)
    assert torch.equal(ours["cls_token"], state["embeddings.cls_token"])
    assert torch.equal(ours["blocks.1.ls2.gamma"], state["encoder.layer.1.layer_scale2.lambda1"])
    assert torch.equal(ours["blocks.0.attn.proj.bias"], state["encoder.layer.0.attention.output.dense.bias"])
    packed = ours["blocks.1.attn.qkv.weight"].view(3, 12, 12)
    for at, part in enumerate(("query", "key", "value")):
        assert torch.equal(packed[at], state[f"encoder.layer.1.attention.attention.{part}.weight"])
    first = "weights_in" if shape.swiglu else "fc1"
    assert torch.equal(ours["blocks.0.mlp.fc1.weight"], state[f"encoder.layer.0.mlp.{first}.weight"])
    same = torch.equal(ours["pos_embed"], state["embeddings.position_embeddings"])
    assert same == (grid == shape.grid)


def test_half_a_block_is_an_error() -> None:
    state = dinov2_state(GELU, 4)
    del state["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(
        ValueError, match=r"blocks\.1\.attn\.qkv\.bias needs query, key, value; the file has query, value"
    ):
        from_dinov2(state, GELU)


def test_unknown_names_stay_to_be_reported() -> None:
    state = dinov2_state(GELU, 4) | {
        "encoder.layer.0.lora.weight": torch.zeros(1),
        "pooler.weight": torch.zeros(1),
    }
    assert {"encoder.layer.0.lora.weight", "pooler.weight"} <= set(from_dinov2(state, GELU))
