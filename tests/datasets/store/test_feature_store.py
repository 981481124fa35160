"""The feature store: positions, bytes, resuming, errors."""

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from ray import cloudpickle

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec
from equipoise.datasets.store.index import slide_key
from equipoise.datasets.store.shards import MappedFile
from equipoise.datasets.store.spec import ENCODING_VERSION

SPEC = StoreSpec("handcrafted", "abc", dim=6, mpp=0.5, tile_px=224, tissue={"min_tissue": 0.25})


def slides(n: int = 7, **columns: list) -> pd.DataFrame:
    table = pd.DataFrame({"slide": [f"s{i}" for i in range(n)], "mpp": math.nan})
    table["path"] = "/slides/" + table["slide"] + ".svs"
    table["fingerprint"] = "print-" + table["slide"]
    return table.assign(**columns)


def arrays(key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles of a slide, a function of its key."""
    rng = np.random.default_rng(int(key, 16))
    n = int(rng.integers(1, 30))
    x, y = rng.integers(0, 9000, (2, n)).astype(np.int32)
    return x, y, rng.normal(size=(n, SPEC.dim)).astype(np.float16)


def finish(store: FeatureStore, key: str, how: str = "both") -> None:
    """Stage and record a slide, as a worker and a driver do."""
    x, y, features = arrays(key)
    about = {"status": "ok", "n": len(x), "attempts": 1, "mpp": 0.5, "sha256": "00"}
    if how in ("both", "stage"):
        store.stage(key, x, y, features, {"slide": "any", **about})
    if how in ("both", "record"):
        store.record([{"key": key, **about}])


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, bytes]:
    """Files of a store written by one writer in order, one slide excluded."""
    with FeatureStore.create_or_open(tmp_path / "reference", SPEC, shard_slides=3) as store:
        for key in store.register(slides()):
            if key == slide_key("s4", "print-s4", None):
                store.record([{"key": key, "status": "no_tissue", "error": "glass", "attempts": 1}])
            else:
                finish(store, key)
        store.commit()
    return contents(tmp_path / "reference")


def test_what_is_read_is_what_was_staged(tmp_path: Path, reference: dict[str, bytes]) -> None:
    store = FeatureStore.open(next((tmp_path / "reference").iterdir()))
    for slide in ("s0", "s2", "s6"):
        key = slide_key(slide, f"print-{slide}", None)
        x, y, expected = arrays(key)
        for name in (slide, key):
            features, coords = store.read(name)
            np.testing.assert_array_equal(features, expected)
            np.testing.assert_array_equal(coords, np.stack([x, y], axis=1))
            assert (features.dtype, coords.dtype) == (np.float16, np.int32)
    assert store.index()["slide"].tolist() == [f"s{i}" for i in range(7)]
    assert store.index()["status"].tolist() == ["ok"] * 4 + ["no_tissue"] + ["ok"] * 2
    assert store.index()["shard"].str[:5].tolist() == ["00000"] * 3 + ["00001", "", "00001", "00002"]
    assert store.index()["batch"].tolist() == [0, 1, 2, 0, -1, 1, 0]


def test_reading_copies_nothing(tmp_path: Path) -> None:
    wide = replace(SPEC, dim=512)
    with FeatureStore.create_or_open(tmp_path, wide) as store:
        (key,) = store.register(slides(1))
        x = np.zeros(4000, np.int32)
        store.stage(key, x, x, np.ones((4000, 512), np.float16), {"status": "ok"})
        store.record([{"key": key, "status": "ok", "n": 4000}])
        store.commit()
    store = FeatureStore.open(tmp_path / wide.folder)
    before = pa.total_allocated_bytes()
    features, _ = store.read("s0")
    again, _ = store.read("s0")
    assert pa.total_allocated_bytes() - before < 100_000  # 4 MB of features
    assert not features.flags.writeable
    assert features.ctypes.data == again.ctypes.data  # the same mapped page, not two copies
    assert np.shares_memory(features, again)


def test_bytes_do_not_depend_on_writers_order_or_interruptions(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    excluded = slide_key("s4", "print-s4", None)
    orders = ([6, 2, 5, 0, 4, 3, 1], [4, 3, 2, 1, 0, 6, 5], [0, 3, 6, 1, 4, 2, 5])
    for at, order in enumerate(orders):
        root = tmp_path / f"other-{at}"
        for start in range(0, 7, 2 + at):  # a new process every two, three, four slides
            with FeatureStore.create_or_open(root, SPEC, shard_slides=3) as store:
                keys = store.register(slides())
                store.recover_staged(store.pending(keys))
                for position in order[start : start + 2 + at]:
                    if keys[position] == excluded:
                        store.record(
                            [{"key": excluded, "status": "no_tissue", "error": "glass", "attempts": 1}]
                        )
                    else:
                        # What was staged but never recorded is what a driver's death leaves behind.
                        finish(store, keys[position], "stage" if position % 2 else "both")
                store.commit(partial=start % 4 == 0)
        with FeatureStore.create_or_open(root, SPEC) as store:
            store.recover_staged(store.pending(store.register(slides())))
            store.commit()
        assert contents(root) == reference


def test_bytes_do_not_depend_on_writers_at_the_same_time(tmp_path: Path, reference: dict[str, bytes]) -> None:
    root = tmp_path / "other"
    with FeatureStore.create_or_open(root, SPEC, shard_slides=3) as store, ThreadPoolExecutor(3) as pool:
        keys = store.register(slides())
        good = [key for key in reversed(keys) if key != keys[4]]
        list(pool.map(lambda key: finish(store, key, "stage"), good))
        for key in good:
            finish(store, key, "record")
        store.record([{"key": keys[4], "status": "no_tissue", "error": "glass", "attempts": 1}])
        store.commit()
    assert contents(root) == reference


def test_a_partial_commit_writes_no_shard_twice_and_says_pending(tmp_path: Path) -> None:
    with FeatureStore.create_or_open(tmp_path, SPEC, shard_slides=3) as store:
        keys = store.register(slides())
        for key in (keys[0], keys[1], keys[2], keys[4]):
            finish(store, key)
        store.commit(partial=True)
        other = FeatureStore.open(store.path)
        assert other.index()["status"].tolist() == ["ok", "ok", "ok"] + ["pending"] * 4
        assert [row["slide"] for row in map(other.status, keys[:3])] == ["s0", "s1", "s2"]
        with pytest.raises(DataError, match="no features: pending"):
            other.read("s4")
        assert store.staging.file(keys[4]).exists()
        assert not store.staging.file(keys[0]).exists()


def test_a_death_between_shard_and_index_loses_nothing(
    tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "other"
    with FeatureStore.create_or_open(root, SPEC, shard_slides=3) as store:
        keys = store.register(slides())
        finish(store, keys[0])
        finish(store, keys[2])
        store.commit()
    with FeatureStore.create_or_open(root, SPEC) as store:
        keys = store.register(slides())
        for key in (keys[1], keys[3], keys[5], keys[6]):
            finish(store, key)
        store.record([{"key": keys[4], "status": "no_tissue", "error": "glass", "attempts": 1}])

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("equipoise.datasets.store.index.Index.content", die)
            with pytest.raises(KeyboardInterrupt):
                store.commit()
        survivor = FeatureStore.open(store.path)  # the old index still describes files that are there
        for key in (keys[0], keys[2]):
            np.testing.assert_array_equal(survivor.read(key)[0], arrays(key)[2])
    with FeatureStore.create_or_open(root, SPEC) as store:
        keys = store.register(slides())
        assert store.recover_staged(store.pending(keys)) == [keys[1], keys[3], keys[5], keys[6]]
        store.record([{"key": keys[4], "status": "no_tissue", "error": "glass", "attempts": 1}])
        store.commit()
    assert contents(root) == reference


def test_a_slide_that_is_tried_again_gets_its_place_in_the_shard(tmp_path: Path) -> None:
    with FeatureStore.create_or_open(tmp_path, SPEC, shard_slides=4) as store:
        keys = store.register(slides(4))
        for key in (keys[0], keys[2], keys[3]):
            finish(store, key)
        store.record([{"key": keys[1], "status": "unreadable", "error": "network", "attempts": 1}])
        store.commit()
        assert store.pending(keys) == []
        assert store.pending(keys, retry=True) == [keys[1]]
    reader = FeatureStore.open(store.path)
    with FeatureStore.create_or_open(tmp_path, SPEC) as store:
        keys = store.register(slides(4))
        store.reset(keys[1])
        finish(store, keys[1])
        store.commit()
        assert store.index()["batch"].tolist() == [0, 1, 2, 3]
        assert store.index()["error"].tolist() == [""] * 4
        assert len(list((store.path / "shards").iterdir())) == 1
    # A reader with the old index in memory finds the slide that has moved within the shard.
    np.testing.assert_array_equal(reader.read(keys[3])[0], arrays(keys[3])[2])


def test_another_specification_is_refused_by_name_of_what_differs(tmp_path: Path) -> None:
    store = FeatureStore.create_or_open(tmp_path, SPEC)
    assert FeatureStore.create_or_open(tmp_path, replace(SPEC, mpp=1.0)).path != store.path
    other = replace(SPEC, mpp=1.0, encoder="uni", tissue={"min_tissue": 0.5})
    with pytest.raises(DataError) as caught:
        FeatureStore.create_or_open(store.path, other)
    assert "encoder: 'handcrafted' here, 'uni' asked for" in caught.value.what
    assert "mpp: 0.5 here, 1.0 asked for" in caught.value.what
    assert "tissue.min_tissue: 0.25 here, 0.5 asked for" in caught.value.what
    assert "tile_px" not in caught.value.what


def test_the_address_is_what_made_the_features(tmp_path: Path) -> None:
    assert SPEC.address == StoreSpec(**json.loads(json.dumps(SPEC.__dict__))).address
    changes = {"encoder": "x", "encoder_hash": "x", "dim": 7, "mpp": 0.25, "tile_px": 256, "resample": "dct"}
    changes |= {"reader": "x", "tissue": {}, "code": "2"}
    addresses = {replace(SPEC, **{name: value}).address for name, value in changes.items()}
    assert len({SPEC.address, *addresses}) == len(changes) + 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda c: c.pop("spec"), "damaged feature store"),
        (lambda c: c.update({"encoding-version": "2.0.0"}), "format 2.0.0"),
        (lambda c: c.update({"encoding-type": "zarr"}), "not a feature store"),
    ],
)
def test_foreign_and_damaged_stores(tmp_path: Path, damage: object, says: str) -> None:
    store = FeatureStore.create_or_open(tmp_path, SPEC)
    content = json.loads((store.path / "store.json").read_text())
    damage(content)
    (store.path / "store.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=says):
        FeatureStore.open(store.path)


def test_no_store_is_not_an_empty_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no feature store here"):
        FeatureStore.open(tmp_path)


def test_keys_follow_name_content_and_stated_pixel_size() -> None:
    key = slide_key("a", "print", math.nan)
    assert key == slide_key("a", "print", None)
    assert (
        len({key, slide_key("b", "print", None), slide_key("a", "other", None), slide_key("a", "print", 0.5)})
        == 4
    )


def test_a_slide_that_gave_nothing_hands_its_place_to_its_corrected_self(tmp_path: Path) -> None:
    with FeatureStore.create_or_open(tmp_path / "a", SPEC) as store:
        keys = store.register(slides(3, fingerprint=["p0", "", "p2"]))
        for key in (keys[0], keys[2]):
            finish(store, key)
        store.record([{"key": keys[1], "status": "missing", "error": "no such file", "attempts": 1}])
        store.commit()
        store.reset(keys[0])
        again = store.register(slides(3, fingerprint=["p0", "p1", "p2"], mpp=[0.5, math.nan, math.nan]))
        assert store.pending(again) == [again[0], again[1]]
        for key in again[:2]:
            finish(store, key)
        store.commit()
    with FeatureStore.create_or_open(tmp_path / "b", SPEC) as store:
        for key in store.register(slides(3, fingerprint=["p0", "p1", "p2"], mpp=[0.5, math.nan, math.nan])):
            finish(store, key)
        store.commit()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_versions_of_a_slide_live_side_by_side_and_are_never_confused(tmp_path: Path) -> None:
    first, second = slides(2), slides(2, fingerprint=["print-s0", "rescanned"])
    with FeatureStore.create_or_open(tmp_path, SPEC) as store:
        for table in (first, second):
            for key in store.pending(store.register(table)):
                finish(store, key)
        store.commit()
    store = FeatureStore.open(store.path)
    assert len(store.index()) == 3
    np.testing.assert_array_equal(store.read("s0")[0], arrays(slide_key("s0", "print-s0", None))[2])
    with pytest.raises(DataError, match="2 versions of slide 's1'"):
        store.read("s1")
    for table, print_ in ((first, "print-s1"), (second, "rescanned")):
        store.choose(table)
        assert store.index()["slide"].tolist() == ["s0", "s1"]
        np.testing.assert_array_equal(store.read("s1")[0], arrays(slide_key("s1", print_, None))[2])
    with pytest.raises(DataError, match="1 slides were never extracted as they are now: s1"):
        store.choose(slides(2, mpp=[math.nan, 0.3]))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with FeatureStore.create_or_open(tmp_path, SPEC) as store:
        store.register(slides(1))
        other = FeatureStore.create_or_open(tmp_path, SPEC)
        with pytest.raises(DataError, match="another run is writing"):
            other.register(slides(1))
        assert other.index().empty  # reading goes on
    assert other.register(slides(1))
    other.close()


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (np.full((2, 6), np.nan), "2 of 2 feature vectors hold NaN or infinity"),
        (np.full((2, 6), 1e6), "2 of 2 feature vectors"),  # overflows float16
        (np.zeros((2, 5)), "do not fit"),
        (np.zeros((3, 6)), "do not fit"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_features_that_cannot_be_right_are_refused(tmp_path: Path, features: np.ndarray, says: str) -> None:
    store = FeatureStore.create_or_open(tmp_path, SPEC)
    with pytest.raises(DataError, match=says):
        store.stage("00", np.zeros(2, np.int32), np.zeros(2, np.int32), features, {})
    assert not list(store.path.rglob("*.arrow"))
    assert not list(store.path.rglob("*.tmp"))


def test_records_are_checked(tmp_path: Path) -> None:
    with FeatureStore.create_or_open(tmp_path, SPEC) as store:
        (key,) = store.register(slides(1))
        for row, says in (
            ({"key": "unknown", "status": "ok"}, "never registered"),
            ({"key": key, "status": "fine"}, "unknown slide status 'fine'"),
            ({"key": key, "status": "ok", "colour": 1}, "unknown columns for the index: colour"),
        ):
            with pytest.raises(DataError, match=says):
                store.record([row])
        store.record([{"key": key, "status": "ok", "n": 3}])
        with pytest.raises(DataError, match="reported but not staged"):
            store.commit()
        with pytest.raises(DataError, match="must be unique; twice: s0"):
            store.register(pd.concat([slides(1), slides(1)]))


def test_reading_says_why_there_is_nothing(tmp_path: Path, reference: dict[str, bytes]) -> None:
    store = FeatureStore.open(next((tmp_path / "reference").iterdir()))
    with pytest.raises(DataError, match=r"slide s4: no features: no_tissue \(glass\)"):
        store.read("s4")
    with pytest.raises(DataError, match="'s9' is not in the feature store"):
        store.read("s9")
    shard = store.path / "shards" / store.status("s6")["shard"]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match="features cannot be read"):
        store.read("s6")


def test_a_batch_of_another_slide_is_never_taken(tmp_path: Path, reference: dict[str, bytes]) -> None:
    store = FeatureStore.open(next((tmp_path / "reference").iterdir()))
    shards = store.path / "shards"
    shutil.copy(shards / store.status("s3")["shard"], shards / store.status("s0")["shard"])
    with pytest.raises(DataError, match="the shard holds another slide"):
        store.read("s0")


def test_attempts_are_counted_before_work_and_forgiven_after_a_power_cut(tmp_path: Path) -> None:
    staging = FeatureStore.create_or_open(tmp_path, SPEC).staging
    assert [staging.begin("aa", "plan") for _ in range(2)] == [1, 2]
    assert staging.begin("aa", "encode") == 1
    staging.end("aa", "encode")
    staging.retract_unfinished_attempts()
    assert staging.unfinished_attempts("aa", "plan") == 1
    assert staging.unfinished_attempts("aa", "encode") == 0
    staging.retract_unfinished_attempts()
    assert staging.begin("aa", "plan") == 1
    for key in ("aa", "aab", "aa", "aab"):
        staging.begin(key, "encode")
    staging.allow_one_more_attempt("aa")
    assert (staging.begin("aa", "encode"), staging.begin("aab", "encode")) == (2, 3)


def test_travels_to_other_processes(tmp_path: Path, reference: dict[str, bytes]) -> None:
    store = FeatureStore.open(next((tmp_path / "reference").iterdir()))
    expected = store.read("s1")[0]
    again = cloudpickle.loads(cloudpickle.dumps(store))
    np.testing.assert_array_equal(again.read("s1")[0], expected)


def test_shards_describe_themselves(tmp_path: Path, reference: dict[str, bytes]) -> None:
    store = FeatureStore.open(next((tmp_path / "reference").iterdir()))
    shard = MappedFile(store.path / "shards" / store.status("s1")["shard"])
    batch, about = shard.batch(1)
    assert json.loads(about["key"]) == slide_key("s1", "print-s1", None)
    assert json.loads(about["sha256"]) == "00"
    metadata = {k.decode(): v.decode() for k, v in batch.schema.metadata.items()}
    assert metadata["encoder_hash"] == "abc"
    assert metadata["encoding-version"] == ENCODING_VERSION
    assert [str(field.type) for field in batch.schema][:2] == ["int32", "int32"]


ARCHIVES = Path(__file__).parents[1] / "archives" / "feature-store"


@pytest.mark.parametrize("version", sorted(path.name for path in ARCHIVES.iterdir() if path.is_dir()))
def test_stores_of_old_releases_are_read(version: str, tmp_path: Path) -> None:
    shutil.copytree(ARCHIVES / version, tmp_path / version)
    store = FeatureStore.open(tmp_path / version)
    assert store.spec == SPEC
    assert store.index()["status"].tolist() == ["ok", "no_tissue", "ok"]
    with np.load(ARCHIVES / f"{version}.npz") as expected:
        for slide in ("s0", "s2"):
            np.testing.assert_array_equal(store.read(slide)[0], expected[slide])


def test_the_documented_way_of_reading_works(
    root: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (root / "docs/feature-store.md").read_text("utf-8"), re.DOTALL
    )
    monkeypatch.chdir(next((tmp_path / "reference").iterdir()))
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    np.testing.assert_array_equal(names["features"], arrays(slide_key("s0", "print-s0", None))[2])


def test_many_runs_stand_at_a_finished_store_one_writes(tmp_path: Path) -> None:
    with FeatureStore.create_or_open(tmp_path, SPEC) as store:
        keys = store.register(slides())
        for key in keys:
            finish(store, key)
        store.commit()
    with (
        FeatureStore.create_or_open(tmp_path, SPEC) as first,
        FeatureStore.create_or_open(tmp_path, SPEC) as second,
    ):
        assert first.register(slides()) == second.register(slides()) == keys
        second.commit()
        first.register(slides(path="moved"))
        with pytest.raises(DataError, match="another run is writing"):
            second.register(slides(8))
