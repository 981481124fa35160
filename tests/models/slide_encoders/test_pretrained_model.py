"""A pre-trained model as a slide encoder: what the model's heads read, whatever the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ENTRIES
from equipoise.models.pretrained_folder import TrainedTiles, read_pretrained, write_pretrained
from equipoise.models.slide_encoders.entries import PretrainedModelParams
from equipoise.models.slide_encoders.pretrained_model import PretrainedModelEncoder
from equipoise.models.slide_encoders.protocol import SlideTiles, encode_slide, run_encoder
from equipoise.platform.registry import get

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("a.b", "regression", 1), TaskHead("OS", "survival", 1))
TILES = TrainedTiles("handcrafted", "hash", 6, 0.5, 224)
SMALL = {
    "mean_pool": {"dim": 5},
    "abmil": {"dim": 5, "hidden": 3},
    "transmil": {"dim": 8, "heads": 2},
    "joint": {"dim": 8, "heads": 2, "feedforward": 8},
}
MODELS = {
    **{name: (name, params) for name, params in SMALL.items()},
    "branches": ("abmil", {"dim": 5, "branches": "task"}),
}


def folder_of(path, kind, params):
    torch.manual_seed(3)
    entry = get("models", kind)
    settings = entry.params.model_validate(params)
    model = entry.load()(settings, CaseShape(6), HEADS).eval()
    write_pretrained(
        path,
        model.state_dict(),
        model=kind,
        model_params=settings.model_dump(mode="json"),
        tiles=TILES,
        tasks=tuple(head.name for head in HEADS),
        record={},
        seen={},
    )
    return model


def bag(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)).astype(np.float16), rng.uniform(0, 900, (count, 2)).astype(np.float32)


def latents(model, features):
    batch = CaseBatch(
        torch.from_numpy(features).float()[None],
        torch.ones(1, len(features), dtype=torch.bool),
        torch.zeros(1, len(features), 2, dtype=torch.int32),
        {}, {}, {}, {}, torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    with torch.no_grad():
        return model.latents(batch)


@pytest.mark.parametrize("name", MODELS)
def test_a_vector_is_what_the_heads_read(name, tmp_path) -> None:
    model = folder_of(tmp_path / "model", *MODELS[name])
    features, corners = bag(9)
    read = latents(model, features)
    vectors = [read[head.name][0] for head in HEADS]
    encoder = PretrainedModelEncoder(PretrainedModelParams(folder=str(tmp_path / "model")))
    assert encoder.dim(6) == len(vectors[0])
    found = encode_slide(encoder, features, corners, 112.0)
    expected = torch.stack(vectors).mean(0).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)  # stored as float16
    wide = PretrainedModelEncoder(PretrainedModelParams(folder=str(tmp_path / "model"), readout="joined"))
    apart = name in ("joint", "branches")
    every = torch.cat(vectors if apart else vectors[:1]).numpy()
    assert wide.dim(6) == len(every)
    np.testing.assert_allclose(encode_slide(wide, features, corners, 112.0), every, rtol=2e-3, atol=2e-3)
    assert wide.fingerprint != encoder.fingerprint
    assert not any(p.requires_grad for p in encoder.network.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_neither_padding_nor_other_slides_matter(name, tmp_path) -> None:
    folder_of(tmp_path / "model", *MODELS[name])
    encoder = PretrainedModelEncoder(PretrainedModelParams(folder=str(tmp_path / "model")))
    bags = [torch.from_numpy(bag(count, count)[0]).float() for count in (4, 9)]
    features = torch.full((2, 9, 6), torch.nan)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    for i, one in enumerate(bags):
        features[i, : len(one)], mask[i, : len(one)] = one, True
    both = run_encoder(encoder, SlideTiles(features, mask, torch.zeros(2, 9, 2), torch.ones(2)))
    for row, one in zip(both, bags, strict=True):
        alone = SlideTiles(
            one[None], torch.ones(1, len(one), dtype=torch.bool), torch.zeros(1, len(one), 2), torch.ones(1)
        )
        torch.testing.assert_close(row, run_encoder(encoder, alone)[0], rtol=1e-5, atol=1e-6)


def test_folders_that_are_none_are_refused(tmp_path) -> None:
    folder_of(tmp_path / "model", "abmil", SMALL["abmil"])
    encoder = PretrainedModelEncoder(PretrainedModelParams(folder=str(tmp_path / "model")))
    with pytest.raises(ValueError, match="takes 6 features per tile, not 7"):
        encoder.dim(7)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_pretrained(tmp_path / "elsewhere")
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    for change, message in (
        ({"model": "elsewhere"}, "of another package"),
        ({"format": "other"}, "describes no pre-trained model"),
        ({"tasks": ["a", "b", "c"]}, "do not belong together"),
    ):
        config.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            PretrainedModelEncoder(PretrainedModelParams(folder=str(tmp_path / "model")))
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        read_pretrained(tmp_path / "model")


def test_tiles_are_compared() -> None:
    assert TILES.differences(TrainedTiles("handcrafted", "hash", 6, 0.503, 224)) == []
    assert TILES.differences(TrainedTiles("uni", "other", 8, 1.0, 256)) == [
        "features of handcrafted, not of uni",
        "6 features per tile, not 8",
        "0.5 um/px, not 1",
        "tiles of 224 px, not 256",
    ]
    (other,) = TILES.differences(TrainedTiles("handcrafted", "else", 6, 0.5, 224))
    assert other == "handcrafted hash, not else (other weights or settings)"


def test_every_model_of_tiles_is_tried() -> None:
    """A new model of slides alone belongs into this test, or says here why it is no slide encoder."""
    readers = {name for name, (_, params, _) in ENTRIES.items() if params.reads == {"wsi"}}
    assert readers == set(SMALL)
