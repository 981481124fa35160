"""A vision transformer described by a file: same numbers as a built-in card, and what is refused."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file

from equipoise.models.encoders.card_file import read_card
from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.entries import CardFileParams, hub_params
from equipoise.models.encoders.hub import HubEncoder
from equipoise.models.encoders.vit import VisionTransformer
from equipoise.platform.extraction.encoders import load_encoder
from equipoise.platform.extraction.params import ExtractionParams

SHAPE = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "mlp": 96, "image": 64}


def described(folder: Path, suffix: str = ".yaml", **changes: Any) -> dict[str, Any]:
    """Parameters of an encoder whose weights and description lie in the folder."""
    torch.manual_seed(0)
    network = VisionTransformer(read_shape())
    weights = folder / "ours.safetensors"
    save_file({f"backbone.{name}": t for name, t in network.state_dict().items()}, weights)
    card: dict[str, Any] = {
        "name": "ours",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "shape": SHAPE,
        "pairings": [[0.5, 64], [1.0, 96]],
        "normalisation": [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]],
        "fit": "bilinear",
        "precision": "float32",
        "renames": [["backbone.", ""]],
    } | changes
    file = folder / f"encoder{suffix}"
    file.write_text(json.dumps(card) if suffix == ".json" else yaml.safe_dump(card), "utf-8")
    return {"description": str(file), "weights": str(weights), "device": "cpu"}


def read_shape() -> Any:
    return replace(CARDS["uni"].shape, **SHAPE)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_the_same_numbers_as_a_built_in_card(tmp_path: Path, suffix: str) -> None:
    given = described(tmp_path, suffix)
    params = CardFileParams.model_validate(given)
    encoder = HubEncoder(params)
    card = replace(
        CARDS["uni"], name="ours", shape=read_shape(), sha256=None, renames=(("backbone.", ""),),
        normalisation=((0.5,) * 3, (0.25,) * 3), precision="float32",
    )  # fmt: skip
    built_in = HubEncoder(hub_params(card)(weights=given["weights"], device="cpu"))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(encoder(tiles), built_in(tiles))
    assert encoder.hash == built_in.hash == HubEncoder.identify(params).hash


def test_a_study_names_it(tmp_path: Path) -> None:
    study = {"encoder": "from_description", "encoder_params": described(tmp_path), "mpp": 0.5, "tile_px": 64}
    params = ExtractionParams.model_validate(study)
    assert load_encoder(params).dim == 48
    assert len(str(params.tile_features().sha256)) == 64
    ExtractionParams.model_validate(study | {"mpp": 1.0, "tile_px": 96})
    with pytest.raises(
        ValidationError, match="made for 0.5 um/px with 64 px, 1 um/px with 96 px, not for 0.5"
    ):
        ExtractionParams.model_validate(study | {"tile_px": 96})
    again = ExtractionParams.model_validate(params.model_dump())  # a study written out in full reads back
    assert again == params


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": None}, "sha256 must be said"),
        ({"sha256": "123"}, "64 hexadecimal digits"),
        ({"pairings": None}, "pairings must be said"),
        ({"pairings": [[0.5, 0]]}, "um/px and px"),
        ({"shape": SHAPE | {"heads": 5}}, "5 heads cannot share"),
        ({"shape": SHAPE | {"colour": 5}}, "shape.colour: Unexpected"),
        ({"wdith": 5}, "wdith: Unexpected"),
        ({"fit": "nearest"}, "fit: Input should be 'bilinear' or 'bicubic'"),
        ({"layout": "keras"}, "layout: Input should be"),
        ({"crop_from": 32}, "cannot be cut out of 32 px"),
    ],
)
def test_what_is_no_description(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_card(described(tmp_path, **change)["description"])


def test_nothing_is_run(tmp_path: Path) -> None:
    """The file may not make objects, and it is the weights' digest that admits them."""
    file = tmp_path / "harmful.yaml"
    file.write_text("!!python/object/apply:os.system ['touch harmed']", "utf-8")
    with pytest.raises(ValueError, match="could not determine a constructor"):
        read_card(str(file))
    file.write_text("- a list", "utf-8")
    with pytest.raises(ValueError, match="keys and values"):
        read_card(str(file))
    file.write_text("x" * 100_000, "utf-8")
    with pytest.raises(ValueError, match="too large"):
        read_card(str(file))
    with pytest.raises(ValidationError, match="no such file"):
        CardFileParams(description=str(tmp_path / "absent.yaml"), weights="x")
    given = described(tmp_path, sha256="0" * 64)
    with pytest.raises(ValueError, match="'ours' and was not opened"):
        HubEncoder(CardFileParams.model_validate(given))


def test_fields_are_those_of_built_in_cards() -> None:
    """Every card of ours could be written as a file."""
    from pydantic import TypeAdapter

    from equipoise.models.encoders.card import ModelCard

    for card in CARDS.values():
        assert TypeAdapter(ModelCard).validate_python(json.loads(json.dumps(asdict(card)))) == card
