"""The wrapper of TITAN: code in its folder is run only where a study allows it, and gets what it expects."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.slide_encoders.test_protocol import padded
from torch import Tensor, nn

from equipoise.models.slide_encoders.card import HUB_MODELS
from equipoise.models.slide_encoders.entries import HubModelParams, params_of
from equipoise.models.slide_encoders.protocol import encode_slide, run_encoder
from equipoise.models.slide_encoders.titan import Titan

WIDTH = 768


class Published(nn.Module):
    """Stands for what the folder's code would build; keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, int]] = []

    def encode_slide_from_patch_features(self, features: Tensor, coords: Tensor, side: int) -> Tensor:
        self.calls.append((features, coords, side))
        return features.mean(1) + coords.float().mean() / side


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of ``transformers``: nothing of the folder is run in this test."""
    asked: list[Any] = []

    def from_pretrained(folder: str, **how: Any) -> Published:
        asked.append((folder, how))
        return Published()

    fake = SimpleNamespace(AutoModel=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return asked


def folder(path: Path) -> dict[str, str]:
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "config.json").write_text("{}")
    (path / "modeling_titan.py").write_text("raise SystemExit('was run')")
    return {"weights": str(path), "sha256": hashlib.sha256(b"weights").hexdigest()}


def params(**given: Any) -> HubModelParams:
    return params_of(HUB_MODELS["titan"], HubModelParams)(**given)


def test_its_code_is_not_run_unless_a_study_says_so(tmp_path: Path, loads: list[Any]) -> None:
    given = folder(tmp_path)
    with pytest.raises(
        ValueError, match=r"does not allow\n.*slide_encoder_params: \{trust_remote_code: true\}"
    ):
        Titan(params(**given))
    assert loads == []
    Titan(params(**given, trust_remote_code=True))
    assert loads == [(str(tmp_path), {"trust_remote_code": True, "local_files_only": True})]


def test_other_weights_are_refused_before_anything_is_run(
    tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder(tmp_path)["weights"]
    with pytest.raises(ValueError, match="not the weights file of encoder 'titan'"):
        Titan(params(weights=weights, trust_remote_code=True))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"(?s)accept the terms at .*/MahmoodLab/TITAN.*hf download"):
        Titan(params(trust_remote_code=True))
    assert loads == []


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="'titan' needs a package: pip install"):
        Titan(params(**folder(tmp_path), trust_remote_code=True))


def test_places_are_in_units_of_its_tiles(tmp_path: Path, loads: list[Any]) -> None:
    """Whole numbers, 512 a tile: what level-0 pixels of a slide at 20x would be."""
    encoder = Titan(params(**folder(tmp_path), trust_remote_code=True, device="cpu"))
    bag = np.arange(2 * WIDTH, dtype=np.float16).reshape(2, WIDTH) / 1000
    vector = encode_slide(encoder, bag, np.array([[0, 256], [512, 768]], np.float32), 256.0)
    ((features, coords, side),) = encoder.model.calls
    assert (features.shape, coords.tolist(), side) == ((1, 2, WIDTH), [[[0, 512], [1024, 1536]]], 512)
    np.testing.assert_allclose(vector, bag.mean(0) + 768 / 512, rtol=2e-3)
    with pytest.raises(ValueError, match="'titan' takes 768 features per tile, not 5"):
        encoder.dim(5)


def test_neither_neighbours_nor_padding_matter(tmp_path: Path, loads: list[Any]) -> None:
    encoder = Titan(params(**folder(tmp_path), trust_remote_code=True, device="cpu"))
    tiles = padded(float("nan"), WIDTH)
    vectors = run_encoder(encoder, tiles)
    assert torch.isfinite(vectors).all()
    alone = replace(tiles, features=tiles.features[2:, :4], mask=tiles.mask[2:, :4],
                    corners=tiles.corners[2:, :4], extent=tiles.extent[2:])  # fmt: skip
    torch.testing.assert_close(run_encoder(encoder, alone)[0], vectors[2])


def test_identity_follows_the_code(tmp_path: Path, loads: list[Any]) -> None:
    given = folder(tmp_path)
    first = Titan(params(**given, trust_remote_code=True)).fingerprint
    assert Titan(params(**given, trust_remote_code=True, device="cpu")).fingerprint == first
    (tmp_path / "modeling_titan.py").write_text("pass")
    assert Titan(params(**given, trust_remote_code=True)).fingerprint != first
