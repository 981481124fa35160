"""Slides that are no brightfield H&E: fluorescence, grey levels, immunohistochemistry; and H&E that must stay."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.slides.stain import appearance, check_stain
from equipoise.datasets.slides.tissue import TissueParams, find_tissue
from equipoise.datasets.synthetic.catalogue import SITES
from equipoise.datasets.synthetic.stain import Stain, draw_stain

EVERYWHERE = np.ones((160, 200), bool)

#: Optical density per unit of stain (Ruifrok and Johnston 2001); a bluer haematoxylin, as counterstains are.
H, E, DAB, BLUE_H = (
    np.array(vector) / np.linalg.norm(vector)
    for vector in ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78], [0.78, 0.57, 0.25])
)


def densities() -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin (nuclei) and eosin ``[160, 200]`` on a section that fills half of the slide."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:160, :200]
    section = (x - 100) ** 2 / 90**2 + (y - 80) ** 2 / 62**2 < 1
    cells = cv2.GaussianBlur(rng.random((160, 200)).astype(np.float32), (0, 0), 1.2)
    nuclei = section * np.clip((cells - 0.5) * 6, 0, 1)
    return nuclei, section * (0.25 + 0.25 * cv2.GaussianBlur(rng.random((160, 200)), (0, 0), 3))


NUCLEI, SECTION = densities()


def transmitted(density: np.ndarray, white: float = 243) -> np.ndarray:
    """Light that passed ``density`` ``[h, w, 3]``, with the noise of a camera."""
    noise = np.random.default_rng(1).normal(0, 2, density.shape)
    return np.clip(white * 10**-density + noise, 0, 255).astype(np.uint8)


def mixed(*parts: tuple[np.ndarray, np.ndarray, float]) -> np.ndarray:
    return transmitted(sum(amount[..., None] * vector * factor for amount, vector, factor in parts))


def glowing(blue: float, green: float = 0.0, red: float = 0.0, base: float = 4.0) -> np.ndarray:
    """Nuclei in blue, the section in green, and every other column of it in red, on black."""
    picture = np.stack([SECTION * red, SECTION * green * 2, NUCLEI * blue], axis=-1)
    noise = np.random.default_rng(2).normal(base, 1.5, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


HE = mixed((NUCLEI, H, 1.0), (SECTION, E, 1.0))
FLUORESCENCE = {
    "one channel": glowing(240),
    "two channels": glowing(240, 180),
    "three channels": glowing(240, 180, 200),
    "weak": glowing(90, 60),
    "on pure black": np.where(SECTION[..., None] > 0, glowing(240, 180), 0).astype(np.uint8),
}
IMMUNO = {
    "membrane": mixed((NUCLEI, BLUE_H, 0.6), (SECTION, DAB, 1.0)),
    "nuclear": mixed((NUCLEI, DAB, 1.0), (SECTION, BLUE_H, 0.3)),
    "negative": mixed((NUCLEI, BLUE_H, 1.0), (SECTION, BLUE_H, 0.3)),
}


@pytest.mark.parametrize("kind", FLUORESCENCE)
def test_fluorescence_is_refused_unless_it_is_asked_for(kind: str) -> None:
    picture = FLUORESCENCE[kind]
    assert not appearance(picture).transmitted_light
    for accepted in ("brightfield", "he"):
        with pytest.raises(SlideProblem, match="no transmitted light") as caught:
            check_stain(picture, EVERYWHERE, accepted)
        assert caught.value.status == "wrong_stain"
        assert "features.stain: any" in str(caught.value.fix)
    assert check_stain(picture, EVERYWHERE, "any") == ""


@pytest.mark.parametrize("kind", IMMUNO)
def test_other_stains_are_remarked_or_refused(kind: str) -> None:
    picture = IMMUNO[kind]
    assert "immunohistochemistry or another stain" in check_stain(picture, EVERYWHERE, "brightfield")
    assert check_stain(picture, EVERYWHERE, "any") == ""
    with pytest.raises(SlideProblem, match="immunohistochemistry") as caught:
        check_stain(picture, EVERYWHERE, "he")
    assert "features.stain: brightfield" in str(caught.value.fix)


@pytest.mark.parametrize("picture", [HE, glowing(240, 180, 200)], ids=["brightfield", "fluorescence"])
def test_grey_levels_have_a_reason_of_their_own(picture: np.ndarray) -> None:
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    with pytest.raises(SlideProblem, match="no colour, only levels of grey"):
        check_stain(grey, EVERYWHERE, "brightfield")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("white", [200, 250])
def test_h_and_e_stays_also_beside_black_padding(share: float, white: float) -> None:
    density = NUCLEI[..., None] * H + SECTION[..., None] * E
    picture = transmitted(density, white)
    padded = np.pad(picture, ((0, 0), (0, round(200 * share / (1 - share))), (0, 0)))
    assert check_stain(padded, np.ones(padded.shape[:2], bool), "he") == ""


def test_glass_alone_is_no_matter_of_stain() -> None:
    assert check_stain(transmitted(np.zeros((160, 200, 3))), EVERYWHERE, "he") == ""
    assert np.isnan(appearance(transmitted(np.zeros((160, 200, 3)))).pink)
    assert check_stain(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool), "any") == ""


@pytest.mark.parametrize("site", SITES)
def test_stains_of_the_built_in_sites_stay(site: str) -> None:
    """Forty slides of each: stain vectors, strengths, white points and gammas as the generator draws them."""
    rng, source = np.random.default_rng(3), np.random.default_rng(4)
    for _ in range(40):
        stain = draw_stain(rng, source, SITES[site])
        assert isinstance(stain, Stain)
        density = NUCLEI[..., None] * stain.haematoxylin + SECTION[..., None] * stain.eosin
        noise = rng.normal(0, 2, density.shape)
        picture = np.clip(stain.white * np.exp(-density * 1.2) ** stain.gamma + noise, 0, 255)
        assert check_stain(picture.astype(np.uint8), EVERYWHERE, "he") == ""


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("CMU-1-Small-Region.svs", None),
        ("wsic-CMU-1-Small-Region.jpeg.tiff", 0.499),
        ("TCGA-CR-7395-01A-01-TS1.svs", 1.0),
    ],
)
def test_public_slides_stay(shared_data: Path, name: str, mpp: float | None) -> None:
    with open_slide(shared_data / "slides" / name, mpp) as reader:
        tissue = find_tissue(reader, TissueParams())
    assert check_stain(tissue.thumbnail, tissue.mask, "he") == ""
