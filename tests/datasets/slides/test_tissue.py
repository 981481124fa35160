from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.slides.grid import plan_tiles
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.slides.tissue import Tissue, TissueParams, find_tissue, tissue_mask

PARAMS = TissueParams()


def test_finds_the_disk_and_nothing_else(write_slide, tissue_image) -> None:
    with open_slide(write_slide([tissue_image])) as reader:
        tissue = find_tissue(reader, PARAMS)
    assert tissue.mask.shape == (64, 80)
    assert tissue.share == pytest.approx(np.pi * 400**2 / (1024 * 1280), rel=0.06)
    assert tissue.mask[31, 37]
    assert not tissue.mask[2, 2]


@pytest.mark.parametrize("noise", [0, 2, 5])
def test_glass_has_no_tissue(noise: int) -> None:
    rng = np.random.default_rng(0)
    glass = 240 + rng.normal(0, noise / 2, (200, 300, 3))
    mask, threshold = tissue_mask(glass.clip(0, 255).astype(np.uint8), 8.0, PARAMS)
    assert not mask.any()
    assert threshold >= PARAMS.threshold_min


def test_the_threshold_stays_bounded_on_strong_stains() -> None:
    image = np.full((100, 100, 3), 235, np.uint8)
    image[:50] = (200, 20, 150)  # saturation 230
    image[50:75] = (225, 185, 205)  # pale: saturation 45; plain Otsu would lose it
    mask, threshold = tissue_mask(image, 8.0, PARAMS)
    assert threshold <= PARAMS.threshold_max
    assert mask[10:70, 10:90].all()
    assert not mask[80:].any()


def test_scanner_black_is_not_tissue() -> None:
    image = np.full((100, 100, 3), 240, np.uint8)
    image[:, :40] = (3, 0, 1)  # saturation 255
    assert not tissue_mask(image, 8.0, PARAMS)[0].any()


def test_small_holes_are_filled_and_specks_dropped() -> None:
    image = np.full((200, 200, 3), 240, np.uint8)
    image[40:160, 40:160] = (180, 90, 160)
    image[96:104, 96:104] = 240  # 64 x 64 um: smaller than the smallest area
    image[60:90, 120:150] = 240  # 240 x 240 um: a lumen
    image[5:10, 5:10] = (180, 90, 160)
    mask, _ = tissue_mask(image, 8.0, PARAMS)
    assert mask[100, 100]
    assert not mask[75, 135]
    assert not mask[:20, :20].any()


def test_share_of_squares_is_exact_for_fractional_borders() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((7, 9)) > 0.5
    tissue = Tissue(mask, (90, 70), 5, np.zeros((7, 9, 3), np.uint8), 1.0)  # one mask pixel is 10 x 10 px
    x, y = np.array([0, 13, 37, 55], np.int32), np.array([0, 8, 21, 34], np.int32)
    side = 33.5
    fine = mask.repeat(20, axis=0).repeat(20, axis=1)  # half pixels
    expected = [fine[2 * b : 2 * b + 67, 2 * a : 2 * a + 67].mean() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(tissue.share_of(x, y, side), expected, atol=1e-6)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mpp", "low", "high"),
    [("CMU-1-Small-Region.svs", None, 0.33, 0.43), ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 0.57, 0.68)],
)
def test_share_on_real_slides(
    shared_data: Path, name: str, mpp: float | None, low: float, high: float
) -> None:
    with open_slide(shared_data / "slides" / name, mpp) as reader:
        assert low < find_tissue(reader, PARAMS).share < high


def test_ink_and_blur_are_no_part_of_the_mask(write_slide, tissue_image) -> None:
    marked = tissue_image.copy()
    marked[300:420, 100:1100] = (15, 120, 14)  # 60 um of green, across the disk and over glass
    with open_slide(write_slide([marked])) as reader:
        tissue = find_tissue(reader, PARAMS)
    assert tissue.ink is not None
    assert tissue.blur is not None
    assert tissue.ink[20:25, 10:65].all()
    assert not (tissue.mask & (tissue.ink | tissue.blur)).any()
    assert tissue.mask[12, 37]
    assert tissue.mask[40, 37]
    assert not tissue.mask[20:25, 8:12].any()


def test_a_slide_of_nothing_but_ink_has_no_tissue(write_slide, tissue_image) -> None:
    marked = np.full_like(tissue_image, 243)
    marked[300:420, 100:1100] = (8, 43, 185)
    with open_slide(write_slide([marked])) as reader:
        tissue = find_tissue(reader, PARAMS)
        with pytest.raises(SlideProblem, match="nothing but ink is more saturated than glass") as caught:
            plan_tiles(tissue, reader.sampling(0.5), reader.level_dimensions, 64, 0.25)
    assert caught.value.status == "no_tissue"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mpp"), [("CMU-1-Small-Region.svs", None), ("TCGA-CR-7395-01A-01-TS1.svs", 1.0)]
)
def test_real_tissue_is_neither_ink_nor_blurred(shared_data: Path, name: str, mpp: float | None) -> None:
    with open_slide(shared_data / "slides" / name, mpp) as reader:
        tissue = find_tissue(reader, PARAMS)
    assert tissue.ink is not None
    assert tissue.blur is not None
    assert (tissue.ink | tissue.blur).sum() < 0.01 * tissue.mask.sum()


@pytest.mark.parametrize("kind", ["fluorescence", "grey", "grey fluorescence"])
def test_tissue_without_colours_of_stain_is_found_by_its_brightness(
    write_slide, tissue_image: np.ndarray, kind: str
) -> None:
    """The disk of the picture, glowing in green on black with noise, or in levels of grey."""
    rng = np.random.default_rng(6)
    disk = tissue_image[..., 1] < 150
    image = rng.integers(0, 12, tissue_image.shape).astype(np.uint8)
    if kind == "grey":
        image = np.repeat(tissue_image[..., 1:2], 3, axis=2)
    else:
        image[disk] += np.array([0, 160, 30] if kind == "fluorescence" else [160] * 3, np.uint8)
        image = image if kind == "fluorescence" else np.repeat(image[..., 1:2], 3, axis=2)
    with open_slide(write_slide([image])) as reader:
        tissue = find_tissue(reader, PARAMS)
    assert tissue.share == pytest.approx(disk.mean(), rel=0.06)
    assert tissue.ink is None
