"""Stores to STAMP and TRIDENT files and back; files as those programs write them; what is refused."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec
from equipoise.datasets.store.h5_files import Layout, read_h5
from equipoise.datasets.store.h5_process import H5Reader
from equipoise.datasets.store.maintenance import verify_store
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.h5_exchange import export_features, import_features

LAYOUTS: list[Layout] = ["stamp", "trident"]
SPEC = StoreSpec("uni", "abc", dim=16, mpp=0.5, tile_px=224)
#: um/px, side of a tile in level-0 px, slide: a 40x and a 20x scan, and a name with a cohort.
SLIDES = {"A-1": (0.2527, 443.213), "A-2": (0.499, 224.0), "CRC/A-3": (0.25, 448.0)}


@pytest.fixture(scope="module")
def reader() -> Iterator[H5Reader]:
    with H5Reader() as reader:
        yield reader


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    table = pd.DataFrame({"slide": list(SLIDES), "path": "/slides/x.svs", "mpp": math.nan})
    rng = np.random.default_rng(3)
    with FeatureStore.create_or_open(tmp_path / "features", SPEC) as store:
        for key, (mpp, side) in zip(
            store.register(table.assign(fingerprint="f")), SLIDES.values(), strict=True
        ):
            n = int(rng.integers(20, 40))
            x, y = rng.integers(0, 180_000, (2, n)).astype(np.int32)
            about = {"status": "ok", "n": n, "mpp": mpp, "level0_px": side, "tile_mpp": side * mpp / 224}
            about |= {"width": 190_000, "height": 185_000}
            store.stage(key, x, y, rng.normal(size=(n, 16)).astype(np.float16), {"slide": "s", **about})
            store.record([{"key": key, **about}])
        store.commit()
    return store


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(store: FeatureStore, layout: Layout, tmp_path: Path) -> None:
    files = export_features(store.path, layout, tmp_path / "h5")
    assert [file.name for file in files] == ["A-1.h5", "A-2.h5", "CRC__A-3.h5"]
    made = import_features(tmp_path / "h5", layout, tmp_path / "back", "uni")
    assert (made.slides, made.failed) == (3, [])
    assert verify_store(made.store) == []
    back = FeatureStore.open(made.store)
    assert (back.spec.encoder, back.spec.mpp, back.spec.tile_px, back.spec.dim) == ("uni", 0.5, 224, 16)
    assert back.spec.encoder_hash == "imported: uni"  # never taken for features made with known weights
    for slide in SLIDES:
        for mine, theirs in zip(store.read(slide), back.read(slide.replace("/", "__")), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        before, after = store.status(slide), back.status(slide.replace("/", "__"))
        for column in ("n", "mpp", "level0_px", "tile_mpp"):
            assert after[column] == pytest.approx(before[column], rel=1e-9)
    again = import_features(tmp_path / "h5", layout, tmp_path / "back", "uni")
    assert (again.store, again.slides, again.tiles) == (made.store, 3, made.tiles)


def test_what_stamp_reads(store: FeatureStore, tmp_path: Path) -> None:
    file = export_features(store.path, "stamp", tmp_path)[0]
    features, corners = store.read("A-1")
    with h5py.File(file) as h5:
        assert set(h5) == {"feats", "coords"}
        np.testing.assert_array_equal(h5["feats"], features)
        np.testing.assert_allclose(h5["coords"], corners * 0.2527, rtol=1e-6)
        assert h5["feats"].dtype == np.float16
        about = dict(h5.attrs)
    assert (about["unit"], about["extractor"], about["feat_type"]) == ("um", "uni", "tile")
    assert about["tile_size_um"] == pytest.approx(112, rel=1e-4)
    assert (about["tile_size_px"], about["stamp_version"]) == (224, "2.1.0")
    assert "code_hash" in about


def test_what_trident_reads(store: FeatureStore, tmp_path: Path) -> None:
    file = export_features(store.path, "trident", tmp_path)[0]
    features, corners = store.read("A-1")
    with h5py.File(file) as h5:
        assert set(h5) == {"features", "coords"}
        np.testing.assert_array_equal(h5["features"], features)
        np.testing.assert_array_equal(h5["coords"], corners)
        about = dict(h5["coords"].attrs)
    assert (about["patch_size"], about["patch_size_level0"], about["overlap"]) == (224, 443, 0)
    assert (about["level0_magnification"], about["target_magnification"]) == (40, 20)
    assert (about["name"], about["level0_width"]) == ("A-1", 190_000)


def stamp_file(
    path: Path, drop: tuple[str, ...] = (), feats: np.ndarray | None = None, **about: object
) -> Path:
    """As STAMP itself writes it: nothing on level-0 pixels."""
    attributes = {"stamp_version": "2.3.0", "extractor": "chief-ctranspath", "unit": "um", "code_hash": "00"}
    attributes |= {"tile_size_um": 256.0, "tile_size_px": 224, "feat_type": "tile", **about}
    with h5py.File(path, "w") as file:
        file["feats"] = np.ones((3, 8), np.float16) if feats is None else feats
        file["coords"] = np.array([[0, 0], [256, 0], [512, 256]], np.float32)
        file.attrs.update({name: value for name, value in attributes.items() if name not in drop})
    return path


def test_a_file_of_stamp(reader: H5Reader, tmp_path: Path) -> None:
    tiles = read_h5(reader, stamp_file(tmp_path / "a.h5"), "stamp")
    assert (tiles.encoder, tiles.tile_px) == ("chief-ctranspath", 224)
    assert tiles.target_mpp == pytest.approx(256 / 224)
    assert tiles.level0_px == pytest.approx(
        224
    )  # tile pixels stand in for the level-0 pixels that it does not know
    assert tiles.x.tolist() == [0, 224, 448]
    np.testing.assert_allclose(tiles.x * tiles.mpp, [0, 256, 512])


def test_files_that_do_not_say_their_scale(reader: H5Reader, tmp_path: Path) -> None:
    file = stamp_file(tmp_path / "a.h5", drop=("tile_size_px",))
    with pytest.raises(DataError, match=r"does not say tile_size_px[\s\S]*--mpp and --px"):
        read_h5(reader, file, "stamp")
    assert read_h5(reader, file, "stamp", mpp=8 / 7, tile_px=224).x.tolist() == [0, 224, 448]
    old = stamp_file(tmp_path / "b.h5", drop=("unit", "tile_size_um"), tile_size=224)
    with pytest.raises(DataError, match="does not say that its coordinates are in um"):
        read_h5(reader, old, "stamp")


def test_a_file_of_trident(reader: H5Reader, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((1, 2, 8), np.float32)  # some releases keep the batch dimension
        file["coords"] = np.array([[[0, 0], [1024, 512]]])
        about = {"patch_size": 512, "patch_size_level0": 1024, "level0_magnification": 40}
        file["coords"].attrs.update(about | {"target_magnification": 20, "overlap": 0, "name": "a"})
    tiles = read_h5(reader, tmp_path / "a.h5", "trident")
    assert (tiles.target_mpp, tiles.mpp, tiles.tile_px, tiles.level0_px) == (0.5, 0.25, 512, 1024)
    assert (tiles.features.shape, tiles.x.tolist(), tiles.y.tolist()) == ((2, 8), [0, 1024], [0, 512])


def test_bad_files_are_rows_and_the_rest_is_taken(tmp_path: Path) -> None:
    stamp_file(tmp_path / "good.h5")
    stamp_file(tmp_path / "nan.h5", feats=np.full((3, 8), np.nan, np.float16))
    stamp_file(tmp_path / "slide.h5", feat_type="slide")
    stamp_file(tmp_path / "other.h5", tile_size_um=112.0)
    stamp_file(tmp_path / "wide.h5", feats=np.ones((3, 9), np.float16))
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "deep").mkdir()
    stamp_file(tmp_path / "deep" / "good.h5")
    made = import_features(tmp_path, "stamp", tmp_path / "store", "ctranspath")
    assert made.slides == 2
    assert len(made.failed) == 5
    index = FeatureStore.open(made.store).index().set_index("slide")
    assert index["status"].value_counts().to_dict() == {"ok": 2, "unreadable": 5}
    assert index.loc[["deep/good", "good"], "status"].tolist() == ["ok", "ok"]
    for slide, says in {
        "nan": "3 of 3 feature vectors hold NaN",
        "slide": "features of type 'slide'",
        "other": "mpp: 0.5 here, 1.142857143 in the others",
        "wide": "dim: 9 here, 8 in the others",
        "text": "cannot be read as HDF5",
    }.items():
        assert says in index.loc[slide, "error"], slide


def test_what_is_refused_as_a_whole(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.h5 files"):
        import_features(tmp_path, "stamp", tmp_path / "store", "uni")
    export_features(store.path, "stamp", tmp_path / "h5")
    with pytest.raises(DataError, match=r"not features and coords[\s\S]*--format stamp"):
        import_features(tmp_path / "h5", "trident", tmp_path / "store", "uni")
    assert not (tmp_path / "store").exists()
    empty = FeatureStore.create_or_open(tmp_path / "empty", SPEC)
    with pytest.raises(DataError, match="no slide of the store has features"):
        export_features(empty.path, "stamp", tmp_path / "none")


def test_without_h5py_the_way_to_get_it_is_told(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    calls: list[Callable[[], object]] = [
        lambda: export_features(store.path, "stamp", tmp_path),
        lambda: import_features(tmp_path, "stamp", tmp_path / "store", "uni"),
    ]
    for call in calls:
        with pytest.raises(ResourceError, match=r"pip install -e '\.\[h5\]'"):
            call()


def test_versions_of_a_slide_are_exported_by_key(store: FeatureStore, tmp_path: Path) -> None:
    table = pd.DataFrame({"slide": ["A-1"], "path": "/x.svs", "mpp": math.nan, "fingerprint": "rescanned"})
    with FeatureStore.open(store.path) as writer:
        (key,) = writer.register(table)
        x = np.zeros(2, np.int32)
        writer.stage(key, x, x, np.ones((2, 16), np.float16), {"status": "ok", "n": 2})
        writer.record([{"key": key, "status": "ok", "n": 2, "mpp": 0.25, "level0_px": 448.0}])
        writer.commit()
    names = {file.name for file in export_features(store.path, "stamp", tmp_path / "h5")}
    assert f"A-1.{key}.h5" in names
    assert len(names) == 4
    assert "A-1.h5" not in names
