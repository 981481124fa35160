import subprocess
import sys
from typing import ClassVar

import pytest
from pydantic import BaseModel, ValidationError

from equipoise.models.encoders.entries import ENTRIES, EncoderParams, check_pairing
from equipoise.platform.registry import entries, resolve


def test_entries_load_and_build() -> None:
    for name, (summary, params, target) in ENTRIES.items():
        assert summary
        encoder = resolve(target)(params())
        assert encoder.dim > 0
        assert len(encoder.hash) == 64
        assert entries("encoders")[name].params is params


def test_unknown_parameters_are_refused() -> None:
    for _, params, _ in ENTRIES.values():
        with pytest.raises(ValidationError):
            params.model_validate({"weights": "x"})


def test_naming_encoders_imports_none() -> None:
    code = (
        "import sys, equipoise.models.encoders.entries;"
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


def test_encoders_of_others_need_not_know_about_pairs() -> None:
    class Bare(BaseModel):
        pass

    check_pairing("bare", Bare, 0.5, 224)


def test_tiles_too_small_for_the_encoder() -> None:
    with pytest.raises(ValueError, match="at least 64 px, not 32"):
        check_pairing("handcrafted", ENTRIES["handcrafted"][1], 0.5, 32)
