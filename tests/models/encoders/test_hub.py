"""Small random weights through the whole way that real ones take."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from equipoise.models.encoders import entries as encoder_entries
from equipoise.models.encoders.card import ModelCard
from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.entries import HubParams, hub_params
from equipoise.models.encoders.hub import HubEncoder
from equipoise.models.encoders.torch_encoder import Preparation
from equipoise.models.encoders.vit import VisionTransformer
from equipoise.platform import registry
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.encoders import identify_encoder, load_encoder, store_spec
from equipoise.platform.extraction.params import ExtractionParams


def small(name: str) -> ModelCard:
    """A card with everything as published but the size of its transformer."""
    card = CARDS[name]
    shape = replace(card.shape, width=48, depth=2, heads=4, mlp=96)
    return replace(card, shape=shape, sha256=None)


#: Their files have the names of our networks.
PLAIN = [name for name, card in CARDS.items() if card.layout == "timm" and card.head is None]


def random_state(card: ModelCard, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = VisionTransformer(card.shape).state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.2 for name, tensor in names.items()}


def params_for(card: ModelCard, weights: Path | None, **changes: Any) -> HubParams:
    settings = {"weights": str(weights) if weights else None, "device": "cpu"} | changes
    return hub_params(card).model_validate(settings)


def tiles(count: int, px: int = 224) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PLAIN)
def test_round_trip(name: str, tmp_path: Path) -> None:
    card = small(name)
    state = random_state(card)
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    encoder = HubEncoder(params_for(card, tmp_path))
    again = HubEncoder(params_for(card, tmp_path / "pytorch_model.bin"))
    assert encoder.dim == card.dim
    assert encoder.hash == again.hash  # the numbers count, not the file
    assert HubEncoder.identify(params_for(card, tmp_path)).hash == encoder.hash
    batch = tiles(3, card.pairings[0][1])
    network = VisionTransformer(card.shape)
    network.load_state_dict(state)
    prepare = Preparation(224, *card.normalisation, card.fit, card.crop_from)  # has its own tests
    with torch.inference_mode():
        wanted = network(prepare(torch.from_numpy(batch))).half().numpy()
    np.testing.assert_array_equal(encoder(batch), wanted)
    np.testing.assert_array_equal(again(batch), wanted)


def test_vectors_do_not_depend_on_neighbours(tmp_path: Path) -> None:
    card = small("virchow2")
    save_file(random_state(card), tmp_path / "model.safetensors")
    encoder = HubEncoder(params_for(card, tmp_path, batch_size=3))
    batch = tiles(5)
    together = encoder(batch)
    np.testing.assert_array_equal(together, encoder(batch))
    alone = np.concatenate([encoder(tile[None]) for tile in batch])
    np.testing.assert_allclose(together.astype(float), alone.astype(float), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(encoder(batch[::-1])[::-1].astype(float), together.astype(float), atol=2e-3)


def test_tiles_of_256_px(tmp_path: Path) -> None:
    """GigaPath looks at the middle of a tile, UNI at all of it."""
    for name in ("uni", "gigapath"):
        card = small(name)
        save_file(random_state(card), tmp_path / f"{name}.safetensors")
        encoder = HubEncoder(params_for(card, tmp_path / f"{name}.safetensors"))
        batch = tiles(2, 256)
        framed = np.zeros_like(batch)
        framed[:, 16:240, 16:240] = batch[:, 16:240, 16:240]
        assert np.array_equal(encoder(batch), encoder(framed)) == (name == "gigapath")


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    save_file(random_state(small("virchow")), tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing \(reg_token\); 1 of another shape \(pos_embed \[1, 257, 48\]"
    ):
        HubEncoder(params_for(small("virchow2"), tmp_path))
    with pytest.raises(ValueError, match=r"of another shape \(pos_embed .*patch_embed\.proj\.weight"):
        HubEncoder(params_for(small("gigapath"), tmp_path))


def test_another_file_than_the_published_one_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(random_state(small("uni")), file)
    value = hashlib.sha256(file.read_bytes()).hexdigest()
    card = replace(small("uni"), sha256=CARDS["uni"].sha256)
    for use in (HubEncoder, HubEncoder.identify):
        with pytest.raises(
            ValueError, match=rf"'uni' and was not opened: its SHA-256 is {value}.*56ef09b4"
        ) as e:
            use(params_for(card, tmp_path))
        assert f"encoder_params: {{sha256: {value}}}" in str(e.value)
        file.write_bytes(file.read_bytes())
    named = HubEncoder(params_for(card, tmp_path, sha256=value))
    published = HubEncoder(params_for(replace(card, sha256=value), tmp_path))
    assert named.hash == published.hash  # the numbers count, not how they were admitted
    with pytest.raises(ValueError, match="was not opened"):
        HubEncoder(params_for(card, tmp_path, sha256="0" * 64))


def test_stores_of_earlier_releases_are_still_found(tmp_path: Path) -> None:
    """The identity of an encoder that was there before cards had heads and crops: what it was made of, written out."""
    card = small("uni")
    state = random_state(card)
    save_file(state, tmp_path / "model.safetensors")
    about = {
        "version": 1,
        "preparation": {
            "px": 224,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "fit": "bilinear",
        },
        "precision": ["float16", "float32"],
    }
    shape = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "mlp": 96, "image": 224, "swiglu": False,
             "registers": 0, "class_token": True, "layer_scale": True, "prefix_positions": True,
             "pooling": "token"}  # fmt: skip
    weights = hashlib.sha256()
    for name in sorted(state):
        weights.update(
            f"{name} torch.float32 {list(state[name].shape)}\n".encode() + state[name].numpy().tobytes()
        )
    parts = [{"encoder": "uni", "shape": shape}, about, weights.hexdigest()]
    wanted = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert HubEncoder.identify(params_for(card, tmp_path)).hash == wanted


def test_every_card_knows_its_file() -> None:
    digests = {card.sha256 for card in CARDS.values()}
    assert len(digests) == len(CARDS)
    assert all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in digests)
    assert all(card.file.endswith((".safetensors", ".bin", ".pt", ".pth")) for card in CARDS.values())


def test_precision_and_seed_enter_the_hash(tmp_path: Path) -> None:
    card = small("uni")
    save_file(random_state(card), tmp_path / "a.safetensors")
    save_file(random_state(card, 1), tmp_path / "b.safetensors")
    hashes = {
        HubEncoder(params_for(card, tmp_path / "a.safetensors")).hash,
        HubEncoder(params_for(card, tmp_path / "a.safetensors", precision="float32")).hash,
        HubEncoder(params_for(card, tmp_path / "b.safetensors")).hash,
    }
    assert len(hashes) == 3


def test_identifying_builds_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = small("uni")
    save_file(random_state(card), tmp_path / "model.safetensors")
    wanted = HubEncoder(params_for(card, tmp_path)).hash
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    assert HubEncoder.identify(params_for(card, tmp_path)).hash == wanted
    with pytest.raises(TypeError):
        HubEncoder(params_for(card, tmp_path))


def test_a_study_finds_weights_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card = small("uni")
    known = encoder_entries.ENTRIES | {
        "uni": (card.line, hub_params(card), encoder_entries.ENTRIES["uni"][2])
    }
    monkeypatch.setattr(encoder_entries, "ENTRIES", known)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    registry.entries.cache_clear()
    try:
        study = ExtractionParams.model_validate({"encoder": "uni", "encoder_params": {"device": "cpu"}})
        with pytest.raises(ResourceError) as missing:
            load_encoder(study)
        assert "not on this machine" in missing.value.what
        assert "hf download MahmoodLab/UNI" in (missing.value.fix or "")
        assert missing.value.exit_code == 4
        folder = tmp_path / "hub" / "models--MahmoodLab--UNI" / "snapshots" / "abc"
        folder.mkdir(parents=True)
        torch.save(random_state(card), folder / "pytorch_model.bin")
        encoder = load_encoder(study)
        known = identify_encoder(study)
        assert (known.dim, known.hash, known.batch_size) == (48, encoder.hash, 32)
        assert store_spec(study, known) == store_spec(study, encoder)
        torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
        for ask in (load_encoder, identify_encoder):
            with pytest.raises(ResourceError, match="not the weights of this encoder"):
                ask(study)
    finally:
        registry.entries.cache_clear()
