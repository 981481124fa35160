"""Pen marks and defocus on rendered slides, and no false alarm on clean ones."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from equipoise.datasets.slides.tissue import TissueParams, find_blur, find_ink, tissue_mask
from equipoise.datasets.synthetic.catalogue import SITES
from equipoise.datasets.synthetic.generate import plan
from equipoise.datasets.synthetic.params import CohortPlan, Preset
from equipoise.datasets.synthetic.render import render
from equipoise.datasets.synthetic.slide import compose, scan_of, tissue_of

PARAMS = TissueParams()
MPP = 8.0

#: Slides of 1 mm: 22 of the first site, 23 of the second.
PRESET = Preset(
    name="artefacts",
    cohorts=tuple(
        CohortPlan(
            name=name,
            patients=24,
            side_um=1024,
            style=SITES[name].model_copy(update={"p_msi": 1 / 3}),
        )
        for name in ("syn-crc-a", "syn-crc-b")
    ),
)


def rendered(
    ink: str | None, number: int = 3, folds: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A slide of 1 mm at 2 um/px with a fold, uint8 ``[512, 512, 3]``; pen and fold truth at 8 um/px."""
    job = plan(PRESET, 7)[number]
    style = job.style.model_copy(update={"pen": float(ink is not None), "fold": float(folds), "mpp": 2.0})
    job = replace(job, style=style)
    scene, _ = compose(job, tissue_of(job), job.slides[0])
    if ink:
        scene = replace(scene, artefacts=replace(scene.artefacts, ink=ink))
    pixels = np.concatenate(list(render(scene, scan_of(job))))[..., :3]
    none = np.zeros((128, 128), np.uint8)
    pen, fold = (
        none if mark is None else cv2.resize(mark, (128, 128), interpolation=cv2.INTER_AREA)
        for mark in (scene.artefacts.pen, scene.artefacts.fold)
    )
    return np.ascontiguousarray(pixels), pen, fold


def shrunk(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("ink", ["blue", "green", "black"])
def test_ink_is_found_and_tissue_and_folds_stay(ink: str) -> None:
    pixels, pen, fold = rendered(ink)
    image = shrunk(pixels)
    result = find_ink(image, MPP, PARAMS)
    stained, _ = tissue_mask(image, MPP, PARAMS)
    mask, _ = tissue_mask(image, MPP, PARAMS, result)
    assert (pen > 150).sum() > 500
    assert result[pen > 150].mean() > 0.8
    assert not mask[result].any()
    if ink != "black":  # black ink is no more saturated than glass, most of it never was tissue
        assert stained[pen > 150].mean() > 0.9
    assert mask[pen > 150].mean() < 0.2
    clean = stained & (pen < 10)
    assert mask[clean].mean() > 0.93
    assert mask[clean & (fold > 128)].mean() > 0.75


@pytest.mark.parametrize("number", [0, 3, 30, 33])
def test_nothing_is_ink_or_blurred_on_a_slide_without_either(number: int) -> None:
    image = shrunk(rendered(None, number)[0])
    assert not find_ink(image, MPP, PARAMS).any()
    mask, _ = tissue_mask(image, MPP, PARAMS)
    assert mask.mean() > 0.3
    assert not find_blur(image, mask, MPP, PARAMS).any()


def test_a_speck_of_ink_and_dark_tissue_are_none() -> None:
    image = np.full((100, 100, 3), 240, np.uint8)
    image[10:90, 10:50] = (60, 25, 80)  # a fold
    image[10:90, 50:90] = (90, 60, 140)  # nuclei side by side
    image[20:25, 92:97] = (8, 43, 185)
    assert not find_ink(image, MPP, PARAMS).any()
    image[60:95, 92:100] = (8, 43, 185)
    result = find_ink(image, MPP, PARAMS)
    assert result[62:95, 93:].all()
    assert not result[:50].any()


@pytest.mark.parametrize("share", [0.3, 0.45])
def test_tissue_out_of_focus_is_found(share: float) -> None:
    pixels = rendered(None)[0]
    edge = round(512 * share)
    pixels[:, :edge] = cv2.GaussianBlur(pixels, (0, 0), 8.0)[:, :edge]  # 16 um
    image = shrunk(pixels)
    mask, _ = tissue_mask(image, MPP, PARAMS)
    result = find_blur(image, mask, MPP, PARAMS)
    edge //= 4
    assert result[:, : edge - 8].sum() > 0.7 * mask[:, : edge - 8].sum()
    assert not result[:, edge:].any()
    assert not result[~mask].any()


@pytest.mark.parametrize("sigma", [1.0, 4.0, 16.0])
def test_a_slide_is_never_lost_to_blur(sigma: float) -> None:
    pixels = rendered(None)[0]
    for part in (slice(None), slice(0, 330)):  # all of it, and two thirds
        blurred = pixels.copy()
        blurred[:, part] = cv2.GaussianBlur(pixels, (0, 0), sigma)[:, part]
        image = shrunk(blurred)
        mask, _ = tissue_mask(image, MPP, PARAMS)
        assert find_blur(image, mask, MPP, PARAMS).sum() <= 0.5 * mask.sum()


def test_no_tissue_no_blur() -> None:
    image = np.full((50, 60, 3), 240, np.uint8)
    assert not find_blur(image, np.zeros((50, 60), bool), MPP, PARAMS).any()
