"""Damaged ``.h5`` files among good ones: each is a row with its reason, and the others are imported."""

import math
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec
from equipoise.datasets.store.index import Index
from equipoise.datasets.store.maintenance import verify_store
from equipoise.platform.errors import StudyError
from equipoise.platform.extraction.h5_exchange import export_features, import_features
from equipoise.platform.extraction.imported_features import import_study
from equipoise.platform.extraction.maintenance import import_store
from equipoise.platform.extraction.params import ExtractionParams


def trident(path: Path, n: int = 20, dim: int = 8, magnification: int = 20, **more: object) -> Path:
    rng = np.random.default_rng([3, n, dim])
    features = more.pop("features", rng.normal(size=(n, dim)).astype(np.float32))
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, **more)
        file["features"].attrs["encoder"] = "uni"
        file["coords"] = np.stack([np.arange(n) % 5, np.arange(n) // 5], axis=1) * 512
        about = {"patch_size": 256, "patch_size_level0": 10240 // magnification, "level0_magnification": 40}
        file["coords"].attrs.update(about | {"target_magnification": magnification})
    return path


def test_any_damage_is_a_row_or_readable(tmp_path: Path) -> None:
    """Cut, flipped, filled and exchanged bytes of a plain and a compressed file; the same 160 every time."""
    rng = np.random.default_rng(20)
    folder = tmp_path / "h5"
    folder.mkdir()
    whole = [
        trident(tmp_path / "plain.h5").read_bytes(),
        trident(tmp_path / "gz.h5", chunks=(8, 8), compression="gzip").read_bytes(),
    ]
    for number in range(160):
        content = bytearray(whole[number % 2])
        used = min(len(content), 3000 if number % 3 else len(content))  # headers stand at the beginning
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.integers(0, used))
            kind = rng.integers(0, 5)
            if kind < 2:
                content[at] ^= 1 << int(rng.integers(0, 8))
            elif kind == 2:
                content[at : at + 8] = rng.bytes(len(content[at : at + 8]))
            elif kind == 3:
                content[at : at + 8] = b"\xff" * len(content[at : at + 8])
            else:
                content = content[: max(at, 1)]
            used = min(used, len(content))
        (folder / f"m{number:03d}.h5").write_bytes(content)
    for number in range(3):
        trident(folder / f"good{number}.h5")
    result = import_features(folder, "trident", tmp_path / "store", "uni")
    store = FeatureStore.open(result.store)
    index = store.index().set_index("slide")
    assert len(index) == 163
    assert set(index["status"]) == {"ok", "unreadable"}
    assert (index.loc[["good0", "good1", "good2"], "status"] == "ok").all()
    failed = index[index["status"] != "ok"]
    assert len(failed) == len(result.failed) > 30
    assert failed["error"].str.len().gt(0).all()
    assert verify_store(result.store) == []
    for slide in index.index[index["status"] == "ok"]:
        features, corners = store.read(slide)
        assert features.shape == (len(corners), 8)
        assert np.isfinite(features).all()


def test_most_files_decide_and_not_the_first_name(tmp_path: Path) -> None:
    folder = tmp_path / "h5"
    folder.mkdir()
    trident(folder / "a.h5", magnification=10)
    trident(folder / "b.h5", dim=9)
    for name in ("c", "d", "e"):
        trident(folder / f"{name}.h5")
    result = import_features(folder, "trident", tmp_path / "store", "uni")
    spec = FeatureStore.open(result.store).spec
    assert (result.slides, spec.mpp, spec.dim) == (3, 0.5, 8)
    assert [Path(line.split(": ")[0]).name for line in result.failed] == ["a.h5", "b.h5"]
    assert "mpp: 1.0 here, 0.5 in the others" in result.failed[0]


def test_files_of_other_slides_have_no_vote(tmp_path: Path) -> None:
    (tmp_path / "h5").mkdir()
    for name in ("x1", "x2", "x3"):
        trident(tmp_path / "h5" / f"{name}.h5", magnification=10)
    trident(tmp_path / "h5" / "s1.h5")
    slides = pd.DataFrame(
        {"slide": ["s1"], "path": ["s1.svs"], "patient": "p", "cohort": "c", "mpp": math.nan}
    )
    summary = import_study(slides, ExtractionParams(imported="h5"), tmp_path / "store", tmp_path)
    assert summary.counts == {"ok": 1}
    assert FeatureStore.open(summary.store).spec.mpp == 0.5


def test_few_bad_vectors_are_left_out_and_many_refuse_the_slide(tmp_path: Path) -> None:
    (tmp_path / "h5").mkdir()
    features = np.ones((100, 8), np.float32)
    features[[3, 50], 2] = np.nan, 1e9  # a number that float16 cannot hold
    trident(tmp_path / "h5" / "few.h5", n=100, features=features)
    features[:6] = np.inf
    trident(tmp_path / "h5" / "many.h5", n=100, features=features)
    trident(tmp_path / "h5" / "none.h5", n=0)
    names = ["few", "many", "none"]
    slides = pd.DataFrame({"slide": names, "path": names, "patient": names, "cohort": "c", "mpp": math.nan})
    summary = import_study(slides, ExtractionParams(imported="h5"), tmp_path / "store", tmp_path)
    rows = summary.index.set_index("slide")
    assert rows["status"].to_dict() == {"few": "ok", "many": "unreadable", "none": "no_tissue"}
    assert rows.loc["few", ["n", "bad_tiles"]].tolist() == [98, 2]
    assert (
        rows.loc["few", "error"]
        == "2 of 100 feature vectors hold NaN or infinity in float16 and were left out"
    )
    assert summary.remarked == 1
    assert summary.remarks_text() == f"  few: {rows.loc['few', 'error']}"
    assert summary.failed == 1  # a slide without tiles is excluded, not failed
    _, corners = FeatureStore.open(summary.store).read("few")
    assert len(corners) == 98
    assert [3 * 512, 0] not in corners.tolist()  # tile 3
    assert [0, 10 * 512] not in corners.tolist()  # tile 50
    more = ExtractionParams.model_validate({"imported": "h5", "max_bad_tiles": 0.1})
    again = import_study(slides, more, tmp_path / "store", tmp_path)
    assert again.index.set_index("slide")["status"].to_dict() == {
        "few": "ok",
        "many": "ok",
        "none": "no_tissue",
    }
    assert again.store != summary.store  # what was tolerated is a part of what made the features


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "x" * 200, "a\0b", "a\nb"])
def test_a_name_never_leaves_the_folder_of_stores(tmp_path: Path, name: str) -> None:
    (tmp_path / "h5").mkdir()
    trident(tmp_path / "h5" / "s1.h5")
    with pytest.raises(StudyError, match="becomes a part of a path"):
        import_store(tmp_path / "h5", "trident", tmp_path / "stores" / "here", name, None, None)
    with pytest.raises(ValidationError):
        ExtractionParams.model_validate({"imported": {"path": "h5", "encoder": name}})
    with pytest.raises(ValueError, match="becomes a part of a path"):
        StoreSpec(name, "", dim=8, mpp=0.5, tile_px=224)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h5"]


def test_a_store_that_names_a_path_is_refused(tmp_path: Path) -> None:
    store = FeatureStore.create_or_open(tmp_path, StoreSpec("uni", "", dim=8, mpp=0.5, tile_px=224))
    file = store.path / "store.json"
    for old, new in (('"uni"', '"../../x"'), ('"dim": 8', '"dim": 0'), ('"mpp": 0.5', '"mpp": NaN')):
        text = file.read_text("utf-8")
        file.write_text(text.replace(old, new), "utf-8")
        with pytest.raises(DataError, match="damaged feature store"):
            FeatureStore.open(store.path)
        file.write_text(text, "utf-8")


@pytest.mark.parametrize("column", ["key", "shard"])
def test_an_index_that_names_a_path_is_refused(tmp_path: Path, column: str) -> None:
    (tmp_path / "h5").mkdir()
    trident(tmp_path / "h5" / "s1.h5")
    store = import_features(tmp_path / "h5", "trident", tmp_path / "stores", "uni").store
    (tmp_path / "outside.arrow").write_bytes(next((store / "shards").glob("*.arrow")).read_bytes())
    row = FeatureStore.open(store).rows()[0]
    Index([row | {column: "../../../outside.arrow"}]).save(store / "index.parquet")
    with pytest.raises(DataError, match="becomes a part of a path"):
        FeatureStore.open(store)


def test_exported_files_stay_in_their_folder(tmp_path: Path) -> None:
    names = ["../../up", "a/b", "a__b", "line\nbreak", "long" * 100]
    slides = pd.DataFrame({"slide": names, "path": "x.svs", "mpp": math.nan, "fingerprint": names})
    spec = StoreSpec("uni", "", dim=8, mpp=0.5, tile_px=224)
    with FeatureStore.create_or_open(tmp_path / "stores", spec) as store:
        for key in store.register(slides):
            zero = np.zeros(1, np.int32)
            about = {"status": "ok", "n": 1, "mpp": 0.25, "level0_px": 448.0}
            store.stage(key, zero, zero, np.ones((1, 8), np.float16), about)
            store.record([{"key": key, **about}])
        store.commit()
    files = export_features(store.path, "trident", tmp_path / "out" / "h5")
    assert len(set(files)) == 5
    assert sorted(files) == sorted((tmp_path / "out" / "h5").iterdir())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["h5"]
