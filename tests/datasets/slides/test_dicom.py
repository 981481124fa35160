"""DICOM folders by content: names do not matter, what is no slide is skipped, several slides are listed."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from equipoise.datasets.slides.fingerprint import fingerprint, sha256
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.synthetic.generate import plan, write_patient


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two slides with three levels each."""
    root = tmp_path_factory.mktemp("dicom")
    folders = []
    for job in plan("tiny", 7)[1:3]:
        style = job.style.model_copy(update={"container": "dicom"})
        job = replace(job, style=style, side_um=700)
        write_patient(job, root)
        folders.append(root / job.cohort / "slides" / job.files[0])
    return folders[0], folders[1]


@pytest.fixture
def folder(written: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "slide"))


def changed(file: Path, out: Path, **values: object) -> Path:
    """A copy of a file with other values and the same pixels."""
    content = pydicom.dcmread(file)
    for name, value in values.items():
        setattr(content, name, value)
    if "SOPClassUID" in values:
        content.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"]
    content.save_as(out)
    return out


def pixels(slide: Path) -> np.ndarray:
    with open_slide(slide) as reader:
        return reader.thumbnail(8.0)[0]


def problem(slide: Path) -> SlideProblem:
    with pytest.raises(SlideProblem) as caught:
        open_slide(slide)
    return caught.value


def test_names_and_strays_do_not_matter(folder: Path) -> None:
    before = pixels(folder), fingerprint(folder), sha256(folder)
    annotations = "1.2.840.10008.5.1.4.1.1.91.1"
    changed(folder / "slide-label.dcm", folder / "000-annotations", SOPClassUID=annotations)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" * 100)
    (folder / "README.txt").write_text("level-0.dcm")
    (folder / "000.dcm").write_bytes(b"")
    (folder / "deep").mkdir()
    np.testing.assert_array_equal(pixels(folder), before[0])
    assert (fingerprint(folder), sha256(folder)) == before[1:]  # features are not extracted again
    for number, file in enumerate(sorted(folder.glob("*.dcm"))):
        file.rename(folder / f"1.2.840.{number}")
    np.testing.assert_array_equal(pixels(folder), before[0])
    (folder / "1.2.840.1").write_bytes((folder / "1.2.840.1").read_bytes() + b"\0")
    assert fingerprint(folder) != before[1]


def test_the_annotations_alone_are_no_slide(folder: Path) -> None:
    annotations = changed(
        folder / "slide-label.dcm", folder / "a.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.91.1"
    )
    found = problem(annotations)
    assert (found.status, "annotations" in found.what) == ("not_a_slide", True)
    for file in folder.glob("level-*"):
        file.unlink()
    found = problem(folder)
    assert found.status == "not_a_slide"
    assert "no level of a DICOM slide, but 1 annotations, 1 label" in found.what


def test_two_slides_in_a_folder_are_listed_and_one_can_be_chosen(
    written: tuple[Path, Path], folder: Path
) -> None:
    for file in written[1].iterdir():
        shutil.copy(file, folder / f"z-{file.name}")
    found = problem(folder)
    assert found.status == "not_a_slide"
    assert "2 slides (DICOM series): level-0.dcm" in found.what
    assert "z-level-0.dcm" in found.what
    assert "name one of these files" in str(found.fix)
    np.testing.assert_array_equal(pixels(folder / "z-level-0.dcm"), pixels(written[1]))
    np.testing.assert_array_equal(pixels(folder / "level-0.dcm"), pixels(written[0]))


def test_a_folder_of_folders_names_the_right_one(folder: Path) -> None:
    found = problem(folder.parent)
    assert (found.status, "one is in slide below" in found.what) == ("not_a_slide", True)
    assert "the folder holds no DICOM file" in problem(_empty(folder / "empty")).what


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}, "3 samples of 12 bits"),
        ({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "grey levels of 8 bits"),
    ],
)
def test_pixels_of_another_format_have_their_reason(folder: Path, values: dict, says: str) -> None:
    for file in folder.glob("level-*"):
        changed(file, file, **values)
    for slide in (folder, folder / "level-0.dcm"):
        found = problem(slide)
        assert (found.status, says in found.what) == ("unreadable", True)
        assert "convert it to 8-bit RGB" in str(found.fix)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:300],
        lambda content: content[:132] + b"\xff" * 400 + content[532:],
        lambda content: content[: len(content) // 2],
    ],
    ids=["cut header", "overwritten header", "cut pixels"],
)
def test_a_damaged_overview_falls_back_and_says_so(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    before = pixels(folder)
    last = sorted(folder.glob("level-*"))[-1]
    last.write_bytes(damage(last.read_bytes()))
    with open_slide(folder) as reader:
        now, mpp = reader.thumbnail(8.0)
        remarks = list(reader.remarks)
        assert reader.thumbnail(8.0)[1] == mpp
        assert reader.remarks == remarks  # said once
    assert now.shape == before.shape
    assert np.corrcoef(now.ravel(), before.ravel())[0, 1] > 0.9  # another level, the same picture
    assert len(remarks) == 1
    assert ("level 2 cannot be read" in remarks[0]) or (last.name in remarks[0])


def test_levels_of_tiffs_fall_back_too_and_a_damaged_base_is_refused(write_jpeg_slide, picture) -> None:
    big = np.tile(picture, (2, 2, 1))
    levels = [big, big[::4, ::4]]
    whole = write_jpeg_slide(levels)
    cut = write_jpeg_slide(levels, spoil={(1, 0): lambda stream: stream[: len(stream) // 3]})
    with open_slide(whole) as good, open_slide(cut) as reader:
        expected, found = good.thumbnail(8.0)[0], reader.thumbnail(8.0)[0]
        assert "the overview was made from level 0" in reader.remarks[0]
        assert good.remarks == []
    assert found.shape == expected.shape
    base = write_jpeg_slide([big], spoil={(0, 0): lambda stream: stream[: len(stream) // 3]})
    with open_slide(base) as reader, pytest.raises(SlideProblem) as caught:
        reader.thumbnail(8.0)
    assert caught.value.status == "unreadable"
