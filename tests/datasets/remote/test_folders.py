"""Folders here and at addresses do the same; a store at an address has the bytes that it would have here."""

import math
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from ray import cloudpickle

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import Folder, folder_at
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec

SPEC = StoreSpec("handcrafted", "abc", dim=4, mpp=0.5, tile_px=224)
TABLE = pd.DataFrame({"slide": [f"s{at}" for at in range(5)], "path": "/x.svs", "mpp": math.nan}).assign(
    fingerprint="f"
)


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder, in memory or behind ``file://``."""
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "node-0"))
    if request.param == "file":
        yield f"file://{tmp_path}/share/features"
        return
    fs = fsspec.filesystem("memory")
    yield "memory://folders/features"
    if fs.exists("/folders"):
        fs.rm("/folders", recursive=True)


def files_of(address: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(address)
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)}


def finish(store: FeatureStore, key: str) -> None:
    rng = np.random.default_rng(int(key, 16))
    n = int(rng.integers(1, 9))
    x, y = rng.integers(0, 9000, (2, n)).astype(np.int32)
    about = {"status": "ok", "n": n, "attempts": 1, "mpp": 0.5}
    store.stage(key, x, y, rng.normal(size=(n, 4)).astype(np.float16), {"slide": "any", **about})
    store.record([{"key": key, **about}])


def fill(root: str | Path, slides: pd.DataFrame = TABLE) -> FeatureStore:
    with FeatureStore.create_or_open(root, SPEC, shard_slides=2) as store:
        for key in store.pending(store.register(slides)):
            finish(store, key)
            store.commit(partial=True)
        store.commit()
    return store


def another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int = 1) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / f"node-{number}"))


@pytest.mark.parametrize("where", ["here", "there"])
def test_what_a_folder_does(where: str, address: str, tmp_path: Path) -> None:
    folder: Folder = folder_at(address if where == "there" else tmp_path / "here")
    assert (folder.has("a/b"), folder.read("a/b"), folder.names("a")) == (False, None, [])
    assert not folder.fetch("a/b").exists()
    folder.remove("a/b")
    for text in ("one", "two"):
        with folder.writing("a/b") as temporary:
            temporary.write_text(text)
        assert folder.read("a/b") == text.encode()
    with pytest.raises(RuntimeError), folder.writing("a/c") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert folder.names("a") == ["b"]
    assert folder.fetch("a/b").read_text() == "two"
    assert folder.child("a").has("b")
    folder.remove("a/b")
    assert not folder.has("a/b")
    assert folder == cloudpickle.loads(cloudpickle.dumps(folder))


def test_the_same_bytes_as_here(address: str, tmp_path: Path) -> None:
    here, there = fill(tmp_path / "here"), fill(address)
    lock = {"writer.lock"}
    local = {str(f.relative_to(tmp_path / "here")): f for f in (tmp_path / "here").rglob("*") if f.is_file()}
    mine = {name: file.read_bytes() for name, file in local.items() if Path(name).name not in lock}
    assert files_of(address) == mine  # nothing staged, no marks, no old shards are left there
    for slide in TABLE["slide"]:
        for a, b in zip(here.read(slide), there.read(slide), strict=True):
            np.testing.assert_array_equal(a, b)


def test_another_node_reads_and_goes_on(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(address, TABLE.iloc[:3])
    writer = FeatureStore.create_or_open(address, SPEC)
    another_node(tmp_path, monkeypatch)
    reader = FeatureStore.create_or_open(address, SPEC)
    features, _ = reader.read("s1")
    assert not features.flags.writeable  # a mapping of the mirror
    assert reader.path.is_relative_to(tmp_path / "node-1")
    np.testing.assert_array_equal(features, writer.read("s1")[0])
    fill(address)  # s2 moves to another shard, the one that the reader knows goes
    assert len(reader.read("s2")[0]) == len(FeatureStore.create_or_open(address, SPEC).read("s2")[0])


def test_staged_on_one_node_taken_up_on_another(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.create_or_open(address, SPEC, shard_slides=2)
    keys = store.register(TABLE)
    assert len(keys) > 0
    for number, key in enumerate(keys):
        another_node(tmp_path, monkeypatch, number)
        assert store.staging.begin(key, "encode") == 1
        worker = cloudpickle.loads(cloudpickle.dumps(store.staging))
        x = np.zeros(2, np.int32)
        worker.write(key, x, x, np.ones((2, 4), np.float16), {"slide": "any", "status": "ok", "n": 2})
        assert worker.unfinished_attempts(key, "encode") == 1
    another_node(tmp_path, monkeypatch, 9)
    assert sorted(store.recover_staged(store.pending(keys))) == sorted(keys)
    store.commit()
    store.close()
    assert not [name for name in files_of(address) if "staging" in name]
    assert FeatureStore.create_or_open(address, SPEC).read("s4")[0].shape == (2, 4)


def test_two_nodes_that_write_at_once(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock holds on one machine only: the second to commit is told, and what it staged is not lost."""
    fill(address, TABLE.iloc[:1])
    first = FeatureStore.create_or_open(address, SPEC)
    keys = first.register(TABLE)
    with pytest.raises(DataError, match="another run is writing"):
        FeatureStore.create_or_open(address, SPEC).lock()  # on the same node the kernel knows
    another_node(tmp_path, monkeypatch)
    fill(address, TABLE.iloc[:2])
    another_node(tmp_path, monkeypatch, 0)
    finish(first, keys[3])
    with pytest.raises(DataError, match="another run has written"):
        first.commit(partial=True)
    first.close()
    assert problemless(address, ["s0", "s1"])
    again = FeatureStore.create_or_open(address, SPEC)
    assert again.recover_staged(again.pending(again.register(TABLE))) == [keys[3]]
    again.close()


def problemless(address: str, slides: list[str]) -> bool:
    store = FeatureStore.create_or_open(address, SPEC)
    return all(len(store.read(slide)[0]) for slide in slides)


def test_a_store_of_another_specification_is_refused_by_its_address(address: str) -> None:
    path = f"{address}/{fill(address).spec.folder}"
    with pytest.raises(DataError, match="mpp: 0.5 here, 1.0 asked for") as caught:
        FeatureStore.create_or_open(path, StoreSpec("handcrafted", "abc", dim=4, mpp=1.0, tile_px=224))
    assert caught.value.where == path
    with pytest.raises(DataError, match="no feature store here"):
        FeatureStore.open(f"{address}/elsewhere")
    assert FeatureStore.exists(address, SPEC)
    assert not FeatureStore.exists(f"{address}/elsewhere", SPEC)


def test_what_a_driver_says_is_an_error_of_the_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at(address)
    fs, _ = fsspec.core.url_to_fs(address)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("who are you?")

    monkeypatch.setattr(type(fs), "info", refuse)
    with pytest.raises(DataError, match="who are you"):  # not taken for absence: a store would be made
        FeatureStore.create_or_open(address, SPEC)
    monkeypatch.setattr(type(fs), "cat_file", refuse)
    with pytest.raises(DataError, match=r"PermissionError: who are you\?[\s\S]*credentials"):
        folder.read("index.parquet")
