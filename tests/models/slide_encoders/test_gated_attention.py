"""FEATHER and CHIEF: small random weights under the names of the published files, through the whole way."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from equipoise.models.slide_encoders.card import GATED_ATTENTION, GatedAttentionCard
from equipoise.models.slide_encoders.entries import GatedAttentionParams, params_of
from equipoise.models.slide_encoders.gated_attention import GatedAttentionEncoder, GatedAttentionNetwork
from equipoise.models.slide_encoders.protocol import encode_slide

DIM, HIDDEN, ATTENTION = 12, 10, 6
FEATHER = [name for name, card in GATED_ATTENTION.items() if card.pools == "hidden"]


def small(name: str) -> GatedAttentionCard:
    """A card with everything as published but the sizes and the digest of the file."""
    card = GATED_ATTENTION[name]
    return replace(card, pairing=replace(card.pairing, dim=DIM), hidden=HIDDEN, attention=ATTENTION)


def published(name: str) -> dict[str, Tensor]:
    """Random tensors under the names of the published files, written down from public descriptions."""
    if GATED_ATTENTION[name].pools == "hidden":
        embed, attention, more = "model.patch_embed.0", "model.global_attn", {}
    else:
        embed, attention = "attention_net.0", "attention_net.3"
        more = {"classifiers.weight": (2, 8), "att_head.fc1.bias": (3,), "text_to_vision.0.weight": (4, 4),
                "organ_embedding": (19, 768)}  # fmt: skip
    sizes: dict[str, tuple[int, ...]] = {f"{embed}.weight": (HIDDEN, DIM), f"{embed}.bias": (HIDDEN,)}
    for part in ("a", "b"):
        sizes[f"{attention}.attention_{part}.0.weight"] = (ATTENTION, HIDDEN)
        sizes[f"{attention}.attention_{part}.0.bias"] = (ATTENTION,)
    sizes |= {f"{attention}.attention_c.weight": (1, ATTENTION), f"{attention}.attention_c.bias": (1,)}
    generator = torch.Generator().manual_seed(4)
    return {key: torch.randn(size, generator=generator) for key, size in (sizes | more).items()}


def written(name: str, folder: Path, state: dict[str, Tensor] | None = None) -> Any:
    """Parameters for a file in the folder, which is the card's published one."""
    file = folder / GATED_ATTENTION[name].file
    (save_file if file.suffix == ".safetensors" else torch.save)(state or published(name), file)
    card = replace(small(name), sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    return params_of(card, GatedAttentionParams)(weights=str(folder))


def slide(n: int = 7) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(1).normal(size=(n, DIM)).astype(np.float16), np.zeros((n, 2), np.float32)


@pytest.mark.parametrize("name", list(GATED_ATTENTION))
def test_from_file_to_vector(name: str, tmp_path: Path) -> None:
    """Against the paper's equation in float64, tile by tile."""
    state, (bag, corners) = published(name), slide()
    encoder = GatedAttentionEncoder(written(name, tmp_path))
    p = {key: tensor.double().numpy() for key, tensor in state.items()}
    embed = "model.patch_embed.0" if name in FEATHER else "attention_net.0"
    attention = "model.global_attn" if name in FEATHER else "attention_net.3"
    hidden = [np.maximum(p[f"{embed}.weight"] @ x + p[f"{embed}.bias"], 0) for x in bag.astype(float)]
    scores = []
    for h in hidden:
        a, b = (
            p[f"{attention}.attention_{k}.0.weight"] @ h + p[f"{attention}.attention_{k}.0.bias"]
            for k in "ab"
        )
        gated = np.tanh(a) / (1 + np.exp(-b))
        scores.append((p[f"{attention}.attention_c.weight"] @ gated + p[f"{attention}.attention_c.bias"])[0])
    weights = np.exp(scores) / np.exp(scores).sum()
    values = np.array(hidden) if name in FEATHER else bag.astype(float)
    assert weights.max() > 2 / len(bag)  # the attention prefers some tiles
    vector = encode_slide(encoder, bag, corners, 128.0)
    assert vector.shape == (encoder.dim(DIM),)
    np.testing.assert_allclose(vector, weights @ values, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "dim", "count"),
    [
        ("feather_conch_v1_5", 512, 788_097),
        ("feather_uni", 512, 919_169),  # "0.9 M"
        ("feather_uni2_h", 512, 1_181_313),
        ("chief", 768, 656_641),
    ],
)
def test_sizes_of_the_published_ones(name: str, dim: int, count: int) -> None:
    card = GATED_ATTENTION[name]
    with torch.device("meta"):
        network = GatedAttentionNetwork(card)
    width, attention = card.tile_dim, card.attention
    by_hand = 512 * width + 512 + 2 * (512 * attention + attention) + attention + 1
    assert sum(parameter.numel() for parameter in network.parameters()) == by_hand == count
    assert card.dim == dim


def test_other_tile_features_are_refused(tmp_path: Path) -> None:
    encoder = GatedAttentionEncoder(written("feather_uni", tmp_path))
    with pytest.raises(ValueError, match="'feather_uni' takes 12 features per tile, not 5"):
        encoder.dim(5)
    with pytest.raises(ValueError, match="takes 12 features per tile, not 5"):
        encode_slide(encoder, np.ones((3, 5), np.float16), np.zeros((3, 2), np.float32), 1.0)


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    first = GatedAttentionEncoder(written("feather_uni", tmp_path))
    assert GatedAttentionEncoder(written("feather_uni", tmp_path)).fingerprint == first.fingerprint
    other = published("feather_uni")
    other["model.patch_embed.0.bias"] += 1
    assert GatedAttentionEncoder(written("feather_uni", tmp_path, other)).fingerprint != first.fingerprint


def test_weights_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    feather = params_of(GATED_ATTENTION["feather_uni"], GatedAttentionParams)
    with pytest.raises(
        FileNotFoundError, match=r"(?s)accept the terms at .*/MahmoodLab/abmil.*slide_encoder_params"
    ):
        GatedAttentionEncoder(feather())
    with pytest.raises(
        FileNotFoundError, match=r"(?s)'chief' are not named\n.*CHIEF_pretraining\.pth.*weights: PATH"
    ):
        GatedAttentionEncoder(params_of(GATED_ATTENTION["chief"], GatedAttentionParams)())
    written("feather_uni", tmp_path)
    with pytest.raises(
        ValueError, match=r"'feather_uni' and was not opened.*\n.*slide_encoder_params: \{sha256"
    ):
        GatedAttentionEncoder(feather(weights=str(tmp_path)))
    state = published("feather_uni") | {"model.classifier.weight": torch.zeros(2, 512)}
    with pytest.raises(ValueError, match=r"1 not expected \(model\.classifier\.weight\)"):
        GatedAttentionEncoder(written("feather_uni", tmp_path, state))
    del state["model.classifier.weight"], state["model.global_attn.attention_c.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(attention\.attention_c\.bias\)"):
        GatedAttentionEncoder(written("feather_uni", tmp_path, state))
