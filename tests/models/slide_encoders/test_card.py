"""Which tile features a slide encoder takes: by name, weights, width, resolution and tile size."""

import re
from pathlib import Path

import pytest

from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.entries import ENTRIES as TILE_ENCODERS
from equipoise.models.encoders.entries import ChiefCTransPathParams, check_pairing
from equipoise.models.slide_encoders.card import SLIDE_CARDS, Pairing, TileFeatures
from equipoise.models.slide_encoders.entries import ENTRIES, MeanStdParams, SlideEncoderParams, check_tiles
from equipoise.platform.extraction.params import ExtractionParams

UNI = CARDS["uni"].sha256


class Choosy(SlideEncoderParams):
    pairings = (
        Pairing("uni", 0.5, 256, 1024, UNI, aliases=("uni_v1",)),
        Pairing("virchow2", 0.5, 224),
    )


GOOD = TileFeatures("uni", 0.5, 256, 1024, UNI)


@pytest.mark.parametrize(
    "tiles",
    [
        GOOD,
        TileFeatures("uni", 0.499, 256),
        TileFeatures("uni_v1", 0.5, 256, 1024),
        TileFeatures("virchow2", 0.5, 224, 2560, "a" * 64),
    ],
)
def test_what_fits(tiles: TileFeatures) -> None:
    check_tiles("choosy", Choosy, tiles)


@pytest.mark.parametrize(
    ("tiles", "says"),
    [
        (TileFeatures("uni2_h", 0.5, 256), "features of uni, not of uni2_h"),
        (TileFeatures("uni", 0.25, 256), "0.5 um/px, not 0.25"),
        (TileFeatures("uni", 0.5, 224), "tiles of 256 px, not 224"),
        (TileFeatures("uni", 0.5, 256, 768), "1024 features per tile, not 768"),
        (
            TileFeatures("uni", 0.5, 256, 1024, "b" * 64),
            "weights 56ef09b44a25… of the tile encoder, not bbbb",
        ),
        (TileFeatures("virchow2", 1.0, 512), "0.5 um/px, not 1; tiles of 224 px, not 512"),
    ],
)
def test_what_does_not_fit_is_told(tiles: TileFeatures, says: str) -> None:
    with pytest.raises(ValueError, match=f"slide encoder 'choosy' was made for .*{re.escape(says)}"):
        check_tiles("choosy", Choosy, tiles)


def test_no_pairings_take_anything() -> None:
    check_tiles("mean_std", MeanStdParams, TileFeatures("whatever", 3.0, 17, 5))


def test_every_card_pairs_with_an_encoder_of_ours() -> None:
    """Whose own pairings admit that resolution and tile size, and whose published weights are the ones meant."""
    assert len(SLIDE_CARDS) > 0
    for name, card in SLIDE_CARDS.items():
        assert ENTRIES[name][1].pairings == (card.pairing, *card.also)
        for pairing in (card.pairing, *card.also):
            params = TILE_ENCODERS[pairing.encoder][1]
            assert pairing.mpp
            assert pairing.tile_px
            check_pairing(pairing.encoder, params, pairing.mpp, pairing.tile_px)
            tile_card = CARDS.get(pairing.encoder)
            wanted = tile_card.sha256 if tile_card else ChiefCTransPathParams.checkpoint[1]
            assert pairing.sha256 == wanted
            assert pairing.dim == card.tile_dim
        assert card.sha256 is None or re.fullmatch("[0-9a-f]{64}", card.sha256)


def test_the_page_is_true_to_the_registry(root: Path) -> None:
    text = (root / "docs" / "encoders.md").read_text("utf-8").partition("## Slide encoders")[2]
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and re.fullmatch(r"`\w+`", cells[0]):
            rows[cells[0].strip("`")] = cells[1:]
    assert list(rows) == list(ENTRIES)
    for name, card in SLIDE_CARDS.items():
        dim, tiles, weights, licence, _ = rows[name]
        pairing = card.pairing
        assert dim == str(card.dim)
        resolutions = " or ".join(f"{p.mpp:g}" for p in (pairing, *card.also))
        assert tiles == f"`{pairing.encoder}`, {pairing.tile_px} px at {resolutions}"
        assert weights.startswith(f"`{card.hub or card.file}`")
        assert ("gated" in weights) == card.gated
        assert licence == card.licence


def test_a_study_is_refused_before_anything_is_extracted() -> None:
    study = {"encoder": "uni", "mpp": 0.5, "tile_px": 256, "slide_encoder": "feather_uni"}
    assert ExtractionParams.model_validate(study).tile_features() == TileFeatures("uni", 0.5, 256, sha256=UNI)
    for change, says in (
        ({"tile_px": 224}, "tiles of 256 px, not 224"),
        ({"encoder": "uni2_h"}, "features of uni, not of uni2_h"),
        ({"encoder_params": {"sha256": "c" * 64}}, "weights 56ef09b44a25"),
        ({"encoder": "unknown"}, "unknown encoders entry"),
        ({"encoder_params": {"batch": 3}}, "encoder_params.batch"),
    ):
        with pytest.raises(ValueError, match=says):
            ExtractionParams.model_validate(study | change)
    chief = {"encoder": "ctranspath", "mpp": 1.0, "tile_px": 224, "slide_encoder": "chief"}
    with pytest.raises(ValueError, match="features of chief_ctranspath, not of ctranspath"):
        ExtractionParams.model_validate(chief)
    ExtractionParams.model_validate(chief | {"encoder": "chief_ctranspath", "tile_px": 256})
