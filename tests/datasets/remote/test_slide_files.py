"""Slides at addresses: equal to local ones except for the path; companion files; errors name the address."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.addresses import connect
from equipoise.datasets.remote.slide_files import acquire_slide, remote_files
from equipoise.datasets.slides.fingerprint import fingerprint, sha256, slide_bytes
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.synthetic.generate import plan, write_patient


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty folder in the memory file system."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    row = write_patient(plan("tiny", 7)[0], root)
    return root / row["files"][0]


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of DICOM files that is one slide."""
    from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME

    root = tmp_path_factory.mktemp("dicom")
    cohort = next(c for c in PRESETS_BY_NAME["demo"].cohorts if c.style.container == "dicom")
    small = cohort.model_copy(update={"patients": 1, "side_um": 512})
    preset = PRESETS_BY_NAME["tiny"].model_copy(update={"cohorts": (small,)})
    write_patient(plan(preset, 7)[0], root)
    (folder,) = (root / cohort.name / "slides").iterdir()
    return folder


def upload(path: Path, address: str) -> str:
    fs, remote_path = connect(address)
    fs.put(str(path), remote_path, recursive=path.is_dir())
    return address


def test_a_slide_reads_as_it_does_here(slide: Path, bucket: str, cache: Path) -> None:
    there = upload(slide, f"{bucket}/{slide.name}")
    assert fingerprint(there) == fingerprint(slide)
    assert slide_bytes(there) == slide.stat().st_size
    assert not cache.exists()  # a look at it costs no copy
    with open_slide(slide) as mine, open_slide(there) as copy:
        assert (copy.dimensions, copy.mpp, copy.vendor) == (mine.dimensions, mine.mpp, mine.vendor)
        args = (128, 64, 448.0, 448.0, (224, 224))
        np.testing.assert_array_equal(copy.read(*args), mine.read(*args))
        assert copy.kind == mine.kind
    assert sha256(there) == sha256(slide)
    assert len(list((cache / "slides").glob("*/*.svs"))) == 1


def test_dicom_folders_and_files(dicom: Path, bucket: str) -> None:
    there = upload(dicom, f"{bucket}/{dicom.name}")
    assert fingerprint(there) == fingerprint(dicom)
    assert sha256(there) == sha256(dicom)
    one = sorted(file.name for file in dicom.iterdir())[0]
    for address in (there, f"{there}/{one}"):
        with open_slide(dicom) as mine, open_slide(address) as copy:
            assert copy.level_dimensions == mine.level_dimensions


def test_mrxs_brings_its_folder(tmp_path: Path, bucket: str) -> None:
    """No MRXS file is at hand: what is tested is that all its parts are copied, side by side."""
    (tmp_path / "S").mkdir()
    for name, text in {"S.mrxs": "head", "S/Slidedat.ini": "[GENERAL]", "S/Data0000.dat": "tiles"}.items():
        (tmp_path / name).write_text(text)
    fs, remote_path = connect(bucket)
    for name in ("S.mrxs", "S/Slidedat.ini", "S/Data0000.dat"):
        fs.put_file(str(tmp_path / name), f"{remote_path}/{name}")
    there = f"{bucket}/S.mrxs"
    assert fingerprint(there) == fingerprint(tmp_path / "S.mrxs")
    lease = acquire_slide(there)
    assert lease.path.name == "S.mrxs"
    assert lease.path.read_text() == "head"
    assert {file.name: file.read_text() for file in (lease.path.parent / "S").iterdir()} == {
        "Slidedat.ini": "[GENERAL]",
        "Data0000.dat": "tiles",
    }
    lease.release()


def test_a_replaced_slide_is_copied_anew(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"first")
    address = f"file://{tmp_path}/a.svs"
    for content in (b"first", b"other"):
        (tmp_path / "a.svs").write_bytes(content)
        lease = acquire_slide(address)
        assert lease.path.read_bytes() == content
        assert lease.path.is_relative_to(cache)
        lease.release()


def test_problems_name_the_address(slide: Path, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(SlideProblem) as caught:
        open_slide(f"{bucket}/none.svs")
    assert (caught.value.status, caught.value.where) == ("missing", f"{bucket}/none.svs")
    assert slide_bytes(f"{bucket}/none.svs") == 0
    (tmp_path / "text.svs").write_text("this is not a slide, it is a sentence")
    with pytest.raises(SlideProblem) as caught:
        open_slide(upload(tmp_path / "text.svs", f"{bucket}/text.svs"))
    assert (caught.value.status, caught.value.where) == ("not_a_slide", f"{bucket}/text.svs")


def test_a_short_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.svs").write_bytes(b"0123456789")
    address = f"file://{tmp_path}/a.svs"
    fs, _ = remote_files(address)
    monkeypatch.setattr(type(fs), "get_file", lambda self, path, target: Path(target).write_bytes(b"012"))
    with pytest.raises(SlideProblem, match="has 3 bytes instead of 10"):
        acquire_slide(address)


def test_drivers_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for driver in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, driver, None)
    for address, extra in (("s3://bucket/a.svs", "s3"), ("gs://bucket/a.svs", "gcs")):
        with pytest.raises(DataError, match=rf"pip install -e '\.\[{extra}\]'"):
            open_slide(address)
    with pytest.raises(DataError, match="cannot be opened"):
        fingerprint("nonsense://bucket/a.svs")


def test_a_plain_path_is_not_copied(slide: Path, cache: Path) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    with open_slide(slide):
        assert not cache.exists()
