"""T2T-ViT-14: names and shapes of the official checkpoints, layers against those of torch.nn, strict loading."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.models.encoders.entries import ENTRIES, T2TViTParams
from equipoise.models.encoders.t2t_vit import (
    T2TBlock,
    T2TTransformer,
    T2TViT14,
    TokenPerformer,
    TokensToToken,
    TokenTransformer,
    sinusoids,
    soft_split,
)

#: Of the official modules, a block of the backbone standing for fourteen.
BLOCK = {
    "norm1.weight": (384,),
    "norm1.bias": (384,),
    "attn.qkv.weight": (1152, 384),
    "attn.proj.weight": (384, 384),
    "attn.proj.bias": (384,),
    "norm2.weight": (384,),
    "norm2.bias": (384,),
    "mlp.fc1.weight": (1152, 384),
    "mlp.fc1.bias": (1152,),
    "mlp.fc2.weight": (384, 1152),
    "mlp.fc2.bias": (384,),
}
OUTSIDE = {
    "cls_token": (1, 1, 384),
    "pos_embed": (1, 197, 384),
    "tokens_to_token.project.weight": (384, 576),
    "tokens_to_token.project.bias": (384,),
    "norm.weight": (384,),
    "norm.bias": (384,),
    "head.weight": (1000, 384),
    "head.bias": (1000,),
}
COMMON = {"norm2.weight": (64,), "norm2.bias": (64,)}
PERFORMER = COMMON | {
    "w": (32, 64),
    "kqv.bias": (192,),
    "proj.weight": (64, 64),
    "proj.bias": (64,),
    "mlp.0.weight": (64, 64),
    "mlp.0.bias": (64,),
    "mlp.2.weight": (64, 64),
    "mlp.2.bias": (64,),
}
TRANSFORMER = COMMON | {
    "attn.proj.weight": (64, 64),
    "attn.proj.bias": (64,),
    "mlp.fc1.weight": (64, 64),
    "mlp.fc1.bias": (64,),
    "mlp.fc2.weight": (64, 64),
    "mlp.fc2.bias": (64,),
}


def official(tokens: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint."""
    names: dict[str, tuple[int, ...]] = dict(OUTSIDE)
    for k in range(14):
        names |= {f"blocks.{k}.{name}": shape for name, shape in BLOCK.items()}
    for k, width in ((1, 147), (2, 576)):
        own = PERFORMER | {"kqv.weight": (192, width)} if tokens == "performer" else None
        own = own or TRANSFORMER | {"attn.qkv.weight": (192, width)}
        own |= {"norm1.weight": (width,), "norm1.bias": (width,)}
        names |= {f"tokens_to_token.attention{k}.{name}": shape for name, shape in own.items()}
    return names


def random_state(tokens: str, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    state = {name: 0.05 * torch.randn(shape, generator=rng) for name, shape in official(tokens).items()}
    for name in state:
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    return state


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * 0.2)
    return module.double().eval()


def encoder(path: Path, **more: Any) -> T2TViT14:
    return T2TViT14(T2TViTParams(weights=str(path), device="cpu", **more))


@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_names_and_shapes_are_those_of_the_official_checkpoint(tokens: str) -> None:
    with torch.device("meta"):
        network = T2TTransformer(tokens)  # type: ignore[arg-type]
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: shape for name, shape in official(tokens).items() if not name.startswith("head")}
    assert ours == theirs
    assert round(sum(math.prod(shape) for shape in official(tokens).values()) / 1e6, 1) == 21.5


def test_a_block_is_the_pre_norm_layer_of_torch() -> None:
    ours = randomised(T2TBlock())
    theirs = nn.TransformerEncoderLayer(384, 6, 1152, 0.0, "gelu", batch_first=True, norm_first=True).double()
    renamed = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
    }
    state = ours.state_dict()
    taken = {
        name: state[renamed.get(name, name)] for name in theirs.state_dict() if "in_proj_bias" not in name
    }
    theirs.load_state_dict(taken | {"self_attn.in_proj_bias": torch.zeros(1152, dtype=torch.float64)})
    x = torch.randn(2, 17, 384, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs.train()  # the fused kernel of evaluation is another implementation
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_soft_splits_are_overlapping_patches() -> None:
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tokens = soft_split(image, (7, 4, 2))
    assert tokens.shape == (1, 64, 147)
    padded = nn.functional.pad(image, (2, 2, 2, 2))
    for token, (row, column) in ((0, (0, 0)), (13, (1, 5)), (63, (7, 7))):
        patch = padded[0, :, 4 * row : 4 * row + 7, 4 * column : 4 * column + 7]
        assert torch.equal(tokens[0, token], patch.flatten())


def test_token_transformer_is_its_formula() -> None:
    module = randomised(TokenTransformer(147))
    x = torch.randn(2, 9, 147, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    q, k, v = (module.norm1(x) @ module.attn.qkv.weight.T).split(64, dim=-1)  # type: ignore[operator,union-attr]
    scores = (q @ k.transpose(1, 2) / math.sqrt(147)).softmax(dim=-1)
    y = v + module.attn.proj(scores @ v)  # type: ignore[operator,union-attr]
    perceptron = nn.Sequential(module.mlp.fc1, nn.GELU(), module.mlp.fc2)  # type: ignore[arg-type,union-attr]
    torch.testing.assert_close(module(x), y + perceptron(module.norm2(y)), rtol=1e-10, atol=1e-10)  # type: ignore[operator]


def test_token_performer_is_its_formula_token_by_token() -> None:
    module = randomised(TokenPerformer(147), seed=4)
    x = torch.randn(1, 6, 147, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 0.3
    k, q, v = module.kqv(module.norm1(x))[0].split(64, dim=-1)  # type: ignore[operator]

    def feature(u: Tensor) -> Tensor:
        return torch.stack([torch.exp(w @ u - u @ u / 2) for w in module.w]) / math.sqrt(32)  # type: ignore[union-attr]

    rows = []
    for t in range(6):
        weight = torch.stack([feature(q[t]) @ feature(k[s]) for s in range(6)])
        rows.append(v[t] + module.proj((weight[:, None] * v).sum(dim=0) / (weight.sum() + 1e-8)))  # type: ignore[operator]
    y = torch.stack(rows)[None]
    torch.testing.assert_close(module(x), y + module.mlp(module.norm2(y)), rtol=1e-9, atol=1e-9)  # type: ignore[operator]


def test_random_features_estimate_the_exponential_kernel() -> None:
    rng = torch.Generator().manual_seed(6)
    q, k = (torch.randn(1, 1, 64, generator=rng, dtype=torch.float64) * 0.1 for _ in range(2))
    module = TokenPerformer(147).double()
    products = []
    for _ in range(300):
        module.w = torch.randn(32, 64, generator=rng, dtype=torch.float64)
        products.append(float((module.random_features(q) * module.random_features(k)).sum()))
    error = float(np.std(products)) / math.sqrt(300)
    assert np.mean(products) == pytest.approx(float((q * k).sum().exp()), abs=4 * error)


@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_the_whole_is_its_parts_from_torch(tokens: str) -> None:
    network = T2TTransformer(tokens).eval()  # type: ignore[arg-type]
    state = random_state(tokens)
    network.load_state_dict({name: t for name, t in state.items() if not name.startswith("head")})
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    module: TokensToToken = network.tokens_to_token
    with torch.inference_mode():
        x = module.attention1(nn.Unfold(7, stride=4, padding=2)(image).transpose(1, 2))
        x = x.transpose(1, 2).reshape(1, 64, 56, 56)
        x = module.attention2(nn.Unfold(3, stride=2, padding=1)(x).transpose(1, 2))
        x = x.transpose(1, 2).reshape(1, 64, 28, 28)
        x = nn.Unfold(3, stride=2, padding=1)(x).transpose(1, 2) @ state["tokens_to_token.project.weight"].T
        x = x + state["tokens_to_token.project.bias"]
        x = torch.cat([state["cls_token"], x], dim=1) + state["pos_embed"]
        x = nn.Sequential(*network.blocks)(x)[:, 0]
        x = nn.functional.layer_norm(x, (384,), state["norm.weight"], state["norm.bias"])
        torch.testing.assert_close(network(image), x, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[B, 3, 224, 224\]"):
        network(image[:, :, :200])


def test_positions_are_sinusoids() -> None:
    table = sinusoids(197, 384)
    assert table[0, :4].tolist() == [0, 1, 0, 1]
    assert table[5, 2].item() == pytest.approx(math.sin(5 / 10000 ** (2 / 384)), rel=1e-5)
    assert table[5, 3].item() == pytest.approx(math.cos(5 / 10000 ** (2 / 384)), rel=1e-5)


def test_checkpoints_of_all_layouts_give_the_same_vectors(tmp_path: Path, caplog) -> None:
    state = random_state("performer")
    other = random_state("performer", seed=1)
    files = {
        "flat.pth": state,
        "81.5_T2T_ViT_14.pth.tar": {"state_dict_ema": state, "state_dict": other, "epoch": 309},
        "wrapped.pt": {"state_dict": {f"module.{name}": t for name, t in state.items()}},
    }
    for name, contents in files.items():
        torch.save(contents, tmp_path / name)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    with caplog.at_level(logging.WARNING, logger="equipoise"):
        made = [encoder(tmp_path / name) for name in files]
    assert caplog.text.count("features.encoder_params.sha256") == 3
    assert len({one.hash for one in made}) == 1
    vectors = made[1](tiles)
    assert vectors.shape == (2, 384)
    assert np.isfinite(vectors).all()
    assert not np.array_equal(vectors[0], vectors[1])
    network = T2TTransformer().eval()
    network.load_state_dict({name: t for name, t in state.items() if not name.startswith("head")})
    with torch.inference_mode():
        direct = network(made[0]._preparation(torch.from_numpy(tiles))).half().numpy()
    np.testing.assert_allclose(vectors, direct, rtol=2e-3, atol=2e-3)
    identity = T2TViT14.identify(T2TViTParams(weights=str(tmp_path / "flat.pth"), device="cpu"))
    assert identity.hash == made[0].hash


def test_other_weights_are_refused(tmp_path: Path) -> None:
    state = random_state("performer")
    changes = {
        "missing": {name: t for name, t in state.items() if name != "blocks.3.attn.qkv.weight"},
        "not expected": state | {"blocks.14.norm1.weight": torch.ones(384)},
        "of another shape": state | {"tokens_to_token.project.weight": torch.ones(384, 64)},
    }
    for problem, contents in changes.items():
        torch.save(contents, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=problem):
            encoder(tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"attention1\.attn"):
        encoder(tmp_path / "weights.pth", tokens="transformer")
    with pytest.raises(ValueError, match="was not opened"):
        encoder(tmp_path / "weights.pth", sha256="0" * 64)
    torch.save({"state_dict": {"a": 1}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="other things than named tensors"):
        encoder(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="are not named"):
        T2TViT14(T2TViTParams())


def test_the_entry_takes_regions_and_no_small_tiles() -> None:
    from equipoise.models.encoders.entries import check_pairing

    params = ENTRIES["t2t_vit_14"][1]
    check_pairing("t2t_vit_14", params, 0.25, 1024)
    with pytest.raises(ValueError, match="at least 224 px"):
        check_pairing("t2t_vit_14", params, 0.5, 128)
