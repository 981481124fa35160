import numpy as np
import openslide
from PIL import Image


def test_openslide_sees_an_aperio_slide(tiny):
    for job in (tiny.jobs[0], tiny.jobs[-1]):
        with openslide.OpenSlide(tiny.slide(job)) as slide:
            properties = slide.properties
            assert properties["openslide.vendor"] == "aperio"
            assert (
                float(properties["openslide.mpp-x"]) == float(properties["openslide.mpp-y"]) == job.style.mpp
            )
            assert float(properties["openslide.objective-power"]) == job.style.objective
            assert properties["aperio.Filename"] == job.slides[0].barcode
            assert "SYNTHETIC" in properties["openslide.comment"]
            side = round(640 / job.style.mpp)
            assert slide.level_dimensions == ((side, side), (side // 4, side // 4), (side // 16, side // 16))
            assert slide.level_downsamples == (1, 4, 16)
            assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
            assert properties["openslide.level[0].tile-width"] == "256"


def test_levels_and_thumbnail_show_the_same_tissue(tiny):
    with openslide.OpenSlide(tiny.slide(tiny.jobs[1])) as slide:
        side = slide.dimensions[0]
        base = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), float)
        pictures = [slide.read_region((0, 0), k, slide.level_dimensions[k]) for k in (1, 2)]
        pictures.append(slide.associated_images["thumbnail"])
        assert len(pictures) > 0
        for picture in pictures:
            lower = np.asarray(picture.convert("RGB"), float)
            factor = side // lower.shape[0]
            expected = base.reshape(lower.shape[0], factor, lower.shape[1], factor, 3).mean(axis=(1, 3))
            assert np.abs(lower.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 2
            assert np.corrcoef(lower.ravel(), expected.ravel())[0, 1] > 0.97
        assert base.std() > 20  # there is something to see


def test_pictures_hold_the_label(tiny):
    with openslide.OpenSlide(tiny.slide(tiny.jobs[0])) as slide:
        label = np.asarray(slide.associated_images["label"].convert("RGB"), int)
        macro = np.asarray(slide.associated_images["macro"].convert("RGB"), int)
    assert label.shape == (400, 400, 3)
    red = (label[..., 0] > 150) & (label[..., 1] < 90)
    assert red[20:80].sum() > 500  # the word SYNTHETIC
    assert (label.sum(axis=2) < 120).sum() > 2000  # barcode and text
    small = np.asarray(Image.fromarray(label.astype(np.uint8)).resize((372, 372)), int)
    assert np.abs(macro[30:402, 24:396] - small).mean() < 12


def test_pillow_opens_all_directories(tiny):
    with Image.open(tiny.slide(tiny.jobs[0])) as picture:
        assert picture.size == (1280, 1280)
        assert picture.n_frames == 6
