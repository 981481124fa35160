"""MOOZY's slide encoder: small random weights under the names of its file, against sums written out in float64."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.models.slide_encoders.card import GRIDS
from equipoise.models.slide_encoders.entries import GridWeightsParams, params_of
from equipoise.models.slide_encoders.moozy import Moozy, named_as_ours
from equipoise.models.slide_encoders.protocol import encode_slide, token_width

DIM, WIDTH, HEADS, MLP, DEPTH = 6, 16, 2, 24, 2
SLOPES = [0.3, 0.07]
CELLS = [(0, 0), (3, 4), (9, 9), (1, 0), (7, 2)]  # the third is blank


def published(inside: str = "blocks.{}.") -> dict[str, Tensor]:
    """Under the names that public descriptions give; ``inside`` is what they leave open."""
    sizes: dict[str, tuple[int, ...]] = {
        "input_proj.0.weight": (WIDTH, DIM),
        "input_proj.0.bias": (WIDTH,),
        "cls_token": (1, 1, WIDTH),
        "register_tokens": (1, 4, WIDTH),
        "mask_token": (1, 1, WIDTH),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for at in range(DEPTH):
        name = inside.format(at)
        for part, out, inner in [(f"{p}_proj", WIDTH, WIDTH) for p in ("q", "k", "v", "out")] + [
            ("fc1", MLP, WIDTH),
            ("fc2", WIDTH, MLP),
        ]:
            sizes |= {f"{name}{part}.weight": (out, inner), f"{name}{part}.bias": (out,)}
        sizes |= {f"{name}norm{k}.{kind}": (WIDTH,) for k in (1, 2) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(4)
    state = {name: torch.randn(size, generator=generator) * 0.4 for name, size in sizes.items()}
    state["pos_bias.slopes"] = torch.tensor(SLOPES)
    return state | {f"{inside.format(at)}pos_bias.slopes": torch.tensor(SLOPES) for at in range(DEPTH)}


def written(folder: Path, state: dict[str, Tensor]) -> GridWeightsParams:
    file = {"teacher_slide_encoder": state, "slide_encoder_config": {"depth": 6}, "case_transformer": {}}
    torch.save(file, folder / "moozy.pt")
    card = GRIDS["moozy"]
    shape = replace(card.shape, tile_dim=DIM, width=WIDTH, heads=HEADS, mlp=MLP, depth=DEPTH)
    card = replace(card, pairing=replace(card.pairing, dim=DIM), shape=shape)
    return params_of(card, GridWeightsParams)(weights=str(folder), device="cpu")


def bag() -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float16)
    features[2] = 0
    return features


def by_hand(state: dict[str, Tensor]) -> Tensor:
    p = {name: tensor.double() for name, tensor in state.items()}

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    kept = [0, 1, 3, 4]
    tiles = gelu(dense(torch.from_numpy(bag()[kept]).double(), "input_proj.0"))
    x = torch.cat([p["cls_token"][0], p["register_tokens"][0], tiles])
    far = torch.zeros(9, 9, dtype=torch.float64)
    for i, a in enumerate(kept):
        for j, b in enumerate(kept):
            far[5 + i, 5 + j] = math.dist(CELLS[a], CELLS[b])
    each = WIDTH // HEADS
    for at in range(DEPTH):
        h = norm(x, f"blocks.{at}.norm1")
        q, k, v = (dense(h, f"blocks.{at}.{part}_proj") for part in "qkv")
        heads = []
        for head, slope in enumerate(SLOPES):
            part = slice(head * each, (head + 1) * each)
            scores = q[:, part] @ k[:, part].T / math.sqrt(each) - slope * far
            heads.append(scores.softmax(1) @ v[:, part])
        x = x + dense(torch.cat(heads, 1), f"blocks.{at}.out_proj")
        x = x + dense(gelu(dense(norm(x, f"blocks.{at}.norm2"), f"blocks.{at}.fc1")), f"blocks.{at}.fc2")
    return norm(x, "norm")[0]


@pytest.mark.parametrize("inside", ["blocks.{}.", "layers.{}.attn."])
def test_from_file_to_vector(inside: str, tmp_path: Path) -> None:
    """Slopes of the file, whatever holds a block; a blank tile counts for nothing."""
    encoder = Moozy(written(tmp_path, published(inside)))
    vector = encode_slide(encoder, bag(), np.array(CELLS, np.float32) * 112, 112.0)
    np.testing.assert_allclose(vector, by_hand(published()), rtol=2e-3, atol=2e-3)
    assert (encoder.stages, encoder.dim(DIM)) == (DEPTH, WIDTH)


def test_a_slide_of_blank_tiles_has_a_vector(tmp_path: Path) -> None:
    encoder = Moozy(written(tmp_path, published()))
    assert token_width(encoder, DIM) == (WIDTH, 5)


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    first = Moozy(written(tmp_path, published())).fingerprint
    assert Moozy(written(tmp_path, published("layers.{}."))).fingerprint == first
    other = {name: t * 2 if "slopes" in name else t for name, t in published().items()}
    assert Moozy(written(tmp_path, other)).fingerprint != first


def test_weights_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = published() | {"blocks.0.ls_attn.gamma": torch.ones(WIDTH)}
    with pytest.raises(ValueError, match=r"1 not expected \(blocks\.0\.ls_attn\.gamma\)"):
        Moozy(written(tmp_path, scaled))
    less = published()
    del less["blocks.1.fc2.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(blocks\.1\.fc2\.bias\)"):
        Moozy(written(tmp_path, less))
    with pytest.raises(ValueError, match="other slopes"):
        named_as_ours({"pos_bias.slopes": torch.ones(2), "blocks.0.slopes": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"two tensors stand for blocks\.0\.fc1\.bias"):
        named_as_ours({"blocks.0.fc1.bias": torch.ones(2), "layers.0.fc1.bias": torch.ones(2)})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"(?s)hf download AtlasAnalyticsLab/MOOZY moozy\.pt"):
        Moozy(params_of(GRIDS["moozy"], GridWeightsParams)())
