"""Slides and stores at addresses, through the whole extraction: the bytes are those of an extraction here."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract, open_store
from equipoise.platform.extraction.sources import check_headers

#: What differs: where slides were found, and the lock of a folder on this machine.
PLACES = ["path"]


@pytest.fixture(scope="module")
def here(slides: pd.DataFrame, params: ExtractionParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the same slides, extracted in this process from plain paths."""
    root = tmp_path_factory.mktemp("here")
    extract(slides, params, root, workers=0)
    return root


def at(slides: pd.DataFrame, prefix: str) -> pd.DataFrame:
    return slides.assign(path=[f"{prefix}/{Path(path).name}" for path in slides["path"]])


def same(here: Path, fs: fsspec.AbstractFileSystem, root: str) -> None:
    mine = {str(file.relative_to(here)): file for file in here.rglob("*") if file.is_file()}
    mine = {name: file for name, file in mine.items() if not name.endswith(("writer.lock", "index.parquet"))}
    theirs = {path.removeprefix(root).lstrip("/"): path for path in fs.find(root)}
    (index,) = [path for name, path in theirs.items() if name.endswith("index.parquet")]
    assert set(mine) == {name for name in theirs if not name.endswith("index.parquet")}
    for name, file in mine.items():
        assert fs.cat_file(theirs[name]) == file.read_bytes(), name
    with fs.open(index) as stream:
        there = pd.read_parquet(stream)
    (file,) = here.rglob("index.parquet")
    columns = [name for name in there.columns if name != "path"]
    unlike = there["status"].isin(["missing", "not_a_slide"])  # their reasons name the place
    there.loc[unlike, "error"] = ""
    before = pd.read_parquet(file)
    before.loc[unlike, "error"] = ""
    pd.testing.assert_frame_equal(there[columns], before[columns])


@pytest.fixture
def bucket(slides: pd.DataFrame) -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    for path in slides["path"]:
        if Path(path).exists():
            fs.put_file(path, f"/bucket/slides/{Path(path).name}")
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def test_everything_in_memory(
    slides: pd.DataFrame, params: ExtractionParams, here: Path, bucket: str, tmp_path: Path
) -> None:
    table = at(slides, f"{bucket}/slides")
    headers = check_headers(table, params)
    assert headers["status"].tolist() == ["ok", "ok", "ok", "ok", "missing", "ok", "ok", "not_a_slide"]
    summary = extract(table, params, f"{bucket}/features", workers=0, qc_dir=tmp_path / "qc")
    assert summary.counts == {"ok": 5, "missing": 1, "not_a_slide": 1, "no_tissue": 1}
    same(here, fsspec.filesystem("memory"), "/bucket/features")
    assert len(list((tmp_path / "qc").glob("*.jpg"))) == 6
    again = extract(table, params, f"{bucket}/features", workers=0)
    assert (again.tried, again.counts) == (0, summary.counts)
    # The store means files, not places: plain paths find what addresses made.
    store = open_store(params, f"{bucket}/features", slides.drop(index=4))
    assert len(store.read("good-0.svs")[0]) == summary.index["n"][0]


@pytest.mark.slow
def test_file_addresses_on_ray(
    ray_session: None, slides: pd.DataFrame, params: ExtractionParams, here: Path, tmp_path: Path
) -> None:
    """Workers copy slides, stage features and send pictures; the driver, with a mirror elsewhere, gathers them."""
    folder = Path(slides["path"][0]).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_CACHE", str(tmp_path / "driver"))
        address = f"file://{tmp_path}/share"
        summary = extract(at(slides, f"file://{folder}"), params, address, workers=2)
        assert summary.counts == {"ok": 5, "missing": 1, "not_a_slide": 1, "no_tissue": 1}
        same(here, fsspec.filesystem("file"), str(tmp_path / "share"))
        assert not (tmp_path / "driver" / "slides").exists()  # the driver opens no slide


def test_slides_in_an_archive_on_ray(
    ray_session: None,
    make_slide: Callable[..., Path],
    table_of: Callable[..., pd.DataFrame],
    params: ExtractionParams,
    tmp_path: Path,
) -> None:
    """Any file system of fsspec will do, also one inside a file."""
    import zipfile

    path = make_slide("in", seed=3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "deep/in.svs")
    table = table_of([path]).assign(path=f"zip://deep/in.svs::file://{tmp_path}/a.zip", mpp=math.nan)
    summary = extract(table, params, tmp_path / "there", workers=1)
    extract(table_of([path]), params, tmp_path / "here", workers=0)
    (there,) = [FeatureStore.open(f.parent) for f in (tmp_path / "there").glob("*/store.json")]
    (here,) = [FeatureStore.open(f.parent) for f in (tmp_path / "here").glob("*/store.json")]
    assert summary.counts == {"ok": 1}
    assert (there.read("in.svs")[0] == here.read("in.svs")[0]).all()
