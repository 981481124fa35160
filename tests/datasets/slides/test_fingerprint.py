import hashlib
from pathlib import Path

import pytest

from equipoise.datasets.slides.fingerprint import fingerprint, sha256, slide_bytes
from equipoise.datasets.slides.problems import SlideProblem


def test_follows_content_not_name(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1024
    (tmp_path / "a.svs").write_bytes(content)
    (tmp_path / "b.svs").write_bytes(content)
    (tmp_path / "short.svs").write_bytes(content[:-1])
    (tmp_path / "tail.svs").write_bytes(content[:-1] + b"x")
    prints = {name: fingerprint(tmp_path / f"{name}.svs") for name in ("a", "b", "short", "tail")}
    assert prints["a"] == prints["b"]
    assert len({prints["a"], prints["short"], prints["tail"]}) == 3
    assert len(prints["a"]) == 32


def test_sha256_is_the_file_s(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"slide")
    assert sha256(tmp_path / "a.svs") == hashlib.sha256(b"slide").hexdigest()


@pytest.mark.parametrize("kind", ["dicom", "mrxs"])
def test_a_slide_of_several_files_is_all_of_them(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "slide"
    folder.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (folder / name).write_bytes(name.encode())
    slide = folder if kind == "dicom" else tmp_path / "slide.mrxs"
    if kind == "mrxs":
        slide.write_bytes(b"index")
    before = fingerprint(slide), sha256(slide)
    assert slide_bytes(slide) == 10 + (5 if kind == "mrxs" else 0)
    (folder / "2.dcm").write_bytes(b"other")
    after = fingerprint(slide), sha256(slide)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_missing_files(tmp_path: Path) -> None:
    for function in (fingerprint, sha256):
        with pytest.raises(SlideProblem) as caught:
            function(tmp_path / "none.svs")
        assert caught.value.status == "missing"
    assert slide_bytes(tmp_path / "none.svs") == 0
