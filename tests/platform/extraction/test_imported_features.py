"""Features that a study imports: whose bag is whose, what is missing, what is not read twice, a store as it is."""

import math
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.extraction.h5_exchange import import_features
from equipoise.platform.extraction.imported_features import import_study, open_imported
from equipoise.platform.extraction.params import ExtractionParams


def bag(path: Path, value: float = 1.0, n: int = 3, **about: object) -> Path:
    """A file of STAMP whose features are all ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attributes = {"extractor": "org/uni", "unit": "um", "tile_size_um": 112.0, "tile_size_px": 224, **about}
    with h5py.File(path, "w") as file:
        file["feats"] = np.full((n, 4), value, np.float16)
        file["coords"] = np.arange(2 * n, dtype=np.float32).reshape(n, 2) * 112
        file.attrs.update(attributes)
    return path


def table(**paths: str) -> pd.DataFrame:
    frame = pd.DataFrame({"slide": list(paths), "path": list(paths.values())})
    return frame.assign(patient=frame["slide"], cohort="c", mpp=math.nan)


def importing(*path: str, **more: object) -> ExtractionParams:
    return ExtractionParams.model_validate({"imported": {"path": list(path), **more}, "shard_slides": 2})


def test_bags_by_name_and_rows_for_those_without(tmp_path: Path) -> None:
    bag(tmp_path / "h5" / "S1.h5", 1)
    bag(tmp_path / "h5" / "deep" / "S2.h5", 2)
    bag(tmp_path / "h5" / "S4.h5", math.nan)
    bag(tmp_path / "h5" / "nobody.h5")
    slides = table(S1="/slides/S1.svs", S2="/slides/S2.svs", S3="/slides/S3.svs", S4="/slides/S4.svs")
    params = importing("h5")
    summary = import_study(slides, params, tmp_path / "store", tmp_path)
    assert summary.index["status"].tolist() == ["ok", "ok", "missing", "unreadable"]
    assert summary.counts == {"ok": 2, "missing": 1, "unreadable": 1}
    assert (summary.tiles, summary.tried, summary.failed_share) == (6, 4, 0.5)
    assert summary.index["error"].tolist()[2:] == [
        "there are no imported features of this name",
        "3 of 3 feature vectors hold NaN or infinity in float16",
    ]
    store = open_imported(params, tmp_path / "store", tmp_path, slides)
    assert store.spec.address == summary.address
    assert (store.spec.encoder, store.spec.encoder_hash) == ("org_uni", "imported: org/uni")
    assert (store.spec.mpp, store.spec.tile_px) == (0.5, 224)
    assert [float(store.read(name)[0][0, 0]) for name in ("S1", "S2")] == [1, 2]
    assert store.index()["slide"].tolist() == list(slides["slide"])
    again = import_study(slides, params, tmp_path / "store", tmp_path)
    assert (again.tried, again.skipped, again.counts) == (0, 4, summary.counts)


def test_a_bag_that_comes_later_and_one_that_changes(tmp_path: Path) -> None:
    bag(tmp_path / "h5" / "S1.h5", 1)
    slides = table(S1="/slides/S1.svs", S2="/slides/S2.svs")
    params = importing("h5")
    import_study(slides, params, tmp_path / "store", tmp_path)
    bag(tmp_path / "h5" / "S2.h5", 2)
    bag(tmp_path / "h5" / "S1.h5", 3)
    with pytest.raises(DataError, match=r"2 slides were never extracted as they are now"):
        open_imported(params, tmp_path / "store", tmp_path, slides)
    summary = import_study(slides, params, tmp_path / "store", tmp_path)
    assert (summary.tried, summary.counts) == (2, {"ok": 2})
    store = open_imported(params, tmp_path / "store", tmp_path, slides)
    assert [float(store.read(name)[0][0, 0]) for name in ("S1", "S2")] == [3, 2]


def test_slides_of_one_stem_never_share_a_bag(tmp_path: Path) -> None:
    """Cohorts a and b both have an ``S1``; only paths and qualified names can tell whose bag it is."""
    slides = table(**{"a/S1": str(tmp_path / "a" / "S1.h5"), "b/S1": "/slides/b/S1.svs"})
    bag(tmp_path / "a" / "S1.h5", 1)
    summary = import_study(slides, importing("a"), tmp_path / "store", tmp_path)
    assert summary.index["status"].tolist() == ["ok", "missing"]
    bag(tmp_path / "h5" / "a" / "S1.h5", 1)
    bag(tmp_path / "h5" / "b__S1.h5", 2)
    params = importing("h5")
    import_study(slides, params, tmp_path / "store", tmp_path)
    store = open_imported(params, tmp_path / "store", tmp_path, slides)
    assert [float(store.read(name)[0][0, 0]) for name in ("a/S1", "b/S1")] == [1, 2]
    bag(tmp_path / "other" / "S2.h5")
    bag(tmp_path / "h5" / "S2.h5")
    summary = import_study(table(S2="/slides/S2.svs"), importing("h5", "other"), tmp_path / "store", tmp_path)
    assert summary.index["status"].tolist() == ["error"]
    assert summary.index["error"][0].startswith("2 .h5 files have this name")


def test_a_store_is_read_where_it_is(tmp_path: Path) -> None:
    bag(tmp_path / "h5" / "S1.h5", 1)
    bag(tmp_path / "h5" / "c__S2.h5", 2)
    made = import_features(tmp_path / "h5", "stamp", tmp_path / "theirs", "uni")
    before = {file: file.stat().st_mtime_ns for file in made.store.rglob("*")}
    slides = table(**{"S1": "/slides/S1.svs", "c/S2": "/slides/c/S2.svs", "S3": "/slides/S3.svs"})
    for path in ("theirs", f"theirs/{made.store.name}"):
        params = importing(path)
        summary = import_study(slides, params, tmp_path / "store", tmp_path)
        assert summary.index["status"].tolist() == ["ok", "ok", "missing"]
        assert summary.store == made.store
        store = open_imported(params, tmp_path / "store", tmp_path, slides)
        assert store.index()["slide"].tolist() == ["S1", "c/S2"]
        assert [float(store.read(name)[0][0, 0]) for name in ("S1", "c/S2")] == [1, 2]
    assert before == {file: file.stat().st_mtime_ns for file in made.store.rglob("*")}
    assert not (tmp_path / "store").exists()
    import_features(tmp_path / "h5", "stamp", tmp_path / "theirs", "other")
    with pytest.raises(DataError, match=r"2 feature stores here, a study takes one[\s\S]*uni-0\.5mpp"):
        import_study(slides, importing("theirs"), tmp_path / "store", tmp_path)


def test_a_store_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    bag(tmp_path / "h5" / "S1.h5", 5)
    made = import_features(tmp_path / "h5", "stamp", tmp_path / "theirs", "uni")
    slides = table(S1="/slides/S1.svs")
    params = importing(f"file://{made.store}")
    assert import_study(slides, params, tmp_path / "store", tmp_path).counts == {"ok": 1}
    store = open_imported(params, tmp_path / "store", tmp_path, slides)
    assert float(store.read("S1")[0][0, 0]) == 5
    with pytest.raises(DataError, match="only one feature store can be imported from an address"):
        import_study(slides, importing(f"file://{tmp_path}/h5"), tmp_path / "store", tmp_path)


def test_what_cannot_be_imported_at_all(tmp_path: Path) -> None:
    slides = table(S1="/slides/S1.svs")
    with pytest.raises(DataError, match=r"no such folder[\s\S]*features\.imported"):
        import_study(slides, importing("h5"), tmp_path / "store", tmp_path)
    (tmp_path / "h5").mkdir()
    with pytest.raises(DataError, match=r"neither \.h5 files nor a feature store"):
        import_study(slides, importing("h5"), tmp_path / "store", tmp_path)
    (tmp_path / "h5" / "S1.h5").write_text("no HDF5")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        import_study(slides, importing("h5"), tmp_path / "store", tmp_path)
    bag(tmp_path / "h5" / "S2.h5")
    with pytest.raises(DataError, match="these features were not imported yet"):
        open_imported(importing("h5"), tmp_path / "store", tmp_path, slides)
    bag(tmp_path / "quiet" / "S1.h5", tile_size_px=0, extractor="")
    with pytest.raises(DataError, match="does not say tile_size_px"):
        import_study(slides, importing("quiet"), tmp_path / "store", tmp_path)
    stated = importing("quiet", tile_px=224, encoder="gigapath")
    summary = import_study(slides, stated, tmp_path / "store", tmp_path)
    assert FeatureStore.open(summary.store).spec.encoder == "gigapath"


def test_settings_that_do_not_go_together() -> None:
    assert ExtractionParams(imported="h5").imported == ExtractionParams(imported=["h5"]).imported
    written = ExtractionParams(imported="h5").model_dump(mode="json")
    assert written["encoder"] == "imported"
    assert ExtractionParams.model_validate(written) == ExtractionParams(imported="h5")
    for given, says in (
        ({"imported": "h5", "encoder": "handcrafted"}, "leave one of them out"),
        (
            {"imported": "h5", "mpp": 1.0, "min_tiles": 3},
            "mpp, min_tiles: imported features come from tiles that exist already",
        ),
        ({"encoder": "imported"}, "needs 'imported'"),
        ({"imported": []}, "at least 1 item"),
        ({"imported": {"path": "h5", "format": "stamp"}}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=says):
            ExtractionParams.model_validate(given)
