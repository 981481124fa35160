import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ValidationError

from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.entries import ENTRIES, EncoderParams, HubParams, check_pairing
from equipoise.platform.registry import entries, resolve

NO_WEIGHTS = ("handcrafted", "random_conv")


def test_entries_without_weights_load_and_build() -> None:
    for name in NO_WEIGHTS:
        summary, params, target = ENTRIES[name]
        assert summary
        encoder = resolve(target)(params())
        assert encoder.dim > 0
        assert len(encoder.hash) == 64
        assert entries("encoders")[name].params is params


def test_all_others_say_how_to_get_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, (_, params, target) in ENTRIES.items():
        if name not in NO_WEIGHTS and not params.model_fields["weights"].is_required():
            with pytest.raises(FileNotFoundError, match=rf"(?s)'{name}'.*\n.*weights: PATH"):
                resolve(target)(params())


def test_unknown_parameters_are_refused() -> None:
    for _, params, _ in ENTRIES.values():
        with pytest.raises(ValidationError):
            params.model_validate({"wheights": "x"})


def test_naming_encoders_imports_none() -> None:
    code = (
        "import sys, equipoise.models.encoders.entries, equipoise.models.encoders.weights;"
        "print([m for m in ('cv2', 'torch', 'pandas', 'ray', 'scipy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Paired(EncoderParams):
    pairings: ClassVar[tuple[tuple[float, int], ...]] = ((0.5, 224), (1.0, 256))


@pytest.mark.parametrize(
    ("mpp", "tile_px", "fits"),
    [(0.5, 224, True), (0.499, 224, True), (1.0, 256, True), (1.0, 224, False), (0.25, 224, False)],
)
def test_resolution_and_tile_size_belong_together(mpp: float, tile_px: int, fits: bool) -> None:
    if fits:
        check_pairing("paired", Paired, mpp, tile_px)
        return
    with pytest.raises(ValueError, match=r"0\.5 um/px with 224 px, 1 um/px with 256 px"):
        check_pairing("paired", Paired, mpp, tile_px)


def test_every_card_has_its_own_pairs() -> None:
    assert len(CARDS) > 0
    for name, card in CARDS.items():
        params = ENTRIES[name][1]
        assert issubclass(params, HubParams)
        assert params.card is card
        assert params.pairings == card.pairings != ()
        assert len(card.pairings) > 0
        for mpp, px in card.pairings:
            check_pairing(name, params, mpp, px)
            assert px >= card.shape.image
        with pytest.raises(ValueError, match=name):
            check_pairing(name, params, 4.0, 224)
    assert HubParams.pairings == ()  # one card's pairs are not another's


@pytest.mark.parametrize(
    ("name", "mpp", "px", "fits"),
    [
        ("uni", 0.5, 256, True),
        ("uni", 1.0, 256, False),
        ("virchow", 0.5, 256, False),
        ("virchow2", 2.0, 224, True),
        ("h_optimus_0", 0.25, 224, False),
        ("gigapath", 0.5, 256, True),
        ("gigapath", 0.5, 224, False),
        ("lunit_vits8", 0.25, 224, True),
        ("gpfm", 0.25, 512, True),
        ("gpfm", 0.5, 224, False),
        ("conch_v1_5", 0.5, 512, True),
        ("conch_v1_5", 0.5, 256, False),
        ("ctranspath", 256 / 224, 224, True),
        ("ctranspath", 0.25, 224, False),
        ("chief_ctranspath", 1.0, 256, True),
        ("chief_ctranspath", 0.5, 224, False),
    ],
)
def test_pairs_of_known_encoders(name: str, mpp: float, px: int, fits: bool) -> None:
    from equipoise.platform.extraction.params import ExtractionParams

    study: dict[str, Any] = {"encoder": name, "mpp": mpp, "tile_px": px}
    if fits:
        ExtractionParams.model_validate(study)
    else:
        with pytest.raises(ValidationError, match=f"encoder '{name}' was made for"):
            ExtractionParams.model_validate(study)


def test_encoders_of_others_need_not_know_about_pairs() -> None:
    class Bare(BaseModel):
        pass

    check_pairing("bare", Bare, 0.5, 224)


def test_tiles_too_small_for_the_encoder() -> None:
    with pytest.raises(ValueError, match="at least 64 px, not 32"):
        check_pairing("handcrafted", ENTRIES["handcrafted"][1], 0.5, 32)


def test_the_page_is_true_to_the_registry(root: Path) -> None:
    text = (root / "docs" / "encoders.md").read_text("utf-8").partition("## Slide encoders")[0]
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and re.fullmatch(r"`\w+`", cells[0]):
            rows[cells[0].strip("`")] = cells[1:]
    assert list(rows) == list(ENTRIES)
    for name, (dim, pairs, _, weights, licence) in rows.items():
        params: Any = ENTRIES[name][1]
        wanted = ", ".join(f"{px} at {mpp:.4g}" for mpp, px in params.pairings)
        wanted += f" ({CARDS[name].basis})" if name in CARDS else ""
        assert pairs == (wanted or f"any from {params.min_tile_px} px")
        if name in CARDS:
            card = CARDS[name]
            assert dim == str(card.dim)
            assert weights == f"`{card.hub}`" + (", gated" if card.gated else "")
            assert licence == f"{card.licence}; see model card"
