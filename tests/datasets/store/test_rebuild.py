"""A lost or damaged index, or specification, is made again from the shards; damaged features are given up by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.maintenance import collect_garbage, verify_store
from equipoise.datasets.store.rebuild import rebuild_index

Make = Callable[[Path, pd.DataFrame], Path]
ARCHIVES = Path(__file__).parents[1] / "archives" / "feature-store"


def features(path: Path) -> dict[str, bytes]:
    """Slide → its numbers."""
    store = FeatureStore.open(path)
    done = [row["key"] for row in store.rows() if row["status"] == "ok"]
    return {store.status(key)["slide"]: b"".join(a.tobytes() for a in store.read(key)) for key in done}


@pytest.mark.parametrize("also_lost", [(), ("store.json",)])
def test_a_lost_index_costs_nothing_but_the_slides_without_features(
    path: Path, slides: pd.DataFrame, make_store: Make, also_lost: tuple[str, ...]
) -> None:
    before, rows = features(path), FeatureStore.open(path).rows()
    for name in ("index.parquet", *also_lost):
        (path / name).unlink()
    assert verify_store(path) != []
    result = rebuild_index(path)
    assert (result.slides, result.found, result.lost) == (4, 4, ())
    assert features(path) == before
    assert verify_store(path) == []
    assert collect_garbage(path, dry_run=True) == [  # s3 had a picture and no features
        leftover for leftover in collect_garbage(path, dry_run=True) if leftover.name.startswith("qc/")
    ]
    with FeatureStore.create_or_open(path.parent, FeatureStore.open(path).spec, shard_slides=2) as store:
        keys = store.register(slides)
        assert [store.status(key)["slide"] for key in store.pending(keys)] == ["s3"]
    make_store(path.parent, slides)
    again = {row["key"]: row for row in FeatureStore.open(path).rows()}
    for row in rows:  # everything but the position is as it was
        for name, value in row.items():
            assert name in ("shard", "batch") or again[row["key"]][name] == value or value != value, name


def test_a_store_without_index_is_not_written_to(path: Path, slides: pd.DataFrame, make_store: Make) -> None:
    (path / "index.parquet").unlink()
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(DataError, match="index is gone, but 3 shards are there"):
        make_store(path.parent, slides)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == files


def test_a_flipped_bit_in_the_index_is_noticed_or_changes_nothing(path: Path) -> None:
    index, before = path / "index.parquet", FeatureStore.open(path).rows()
    whole, numbers, noticed = index.read_bytes(), features(path), 0
    for at in range(0, len(whole), 97):
        content = bytearray(whole)
        content[at] ^= 16
        index.write_bytes(content)
        try:
            assert str(FeatureStore.open(path).rows()) == str(before)
        except DataError as error:
            noticed += "store rebuild" in str(error)
    assert noticed > 20
    index.write_bytes(whole[:-100])
    assert rebuild_index(path).lost == ()
    assert features(path) == numbers


def test_damaged_features_become_pending_and_the_others_stay(path: Path) -> None:
    before = features(path)
    store = FeatureStore.open(path)
    row = store.status("s1")
    numbers = store.read("s1")[0].tobytes()
    file = path / "shards" / row["shard"]
    content = bytearray(file.read_bytes())
    content[content.index(numbers) + 3] ^= 1
    file.write_bytes(content)
    result = rebuild_index(path)
    assert len(result.lost) == 1
    assert "s1" in result.lost[0]
    assert "digest differs" in result.lost[0]
    assert FeatureStore.open(path).status("s1")["status"] == "pending"
    assert FeatureStore.open(path).status("s3")["status"] == "no_tissue"
    assert features(path) == {name: value for name, value in before.items() if name != "s1"}
    assert verify_store(path) == []


def test_staged_slides_are_not_forgotten(
    path: Path, slides: pd.DataFrame, stage: Callable[[FeatureStore, str], None]
) -> None:
    before = features(path)
    with FeatureStore.open(path) as store:
        key = store.register(slides)[1]
        store.reset(key)
        store.commit()
        stage(store, key)
    (path / "index.parquet").unlink()
    assert rebuild_index(path).slides == 4
    assert features(path) == before
    assert not (path / "staging").exists()


def test_a_sound_store_stays_as_it_is(path: Path) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    result = rebuild_index(path)
    assert (result.slides, result.found, result.lost) == (4, 0, ())
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("version", sorted(folder.name for folder in ARCHIVES.iterdir() if folder.is_dir()))
def test_stores_of_old_releases_describe_themselves_too(version: str, tmp_path: Path) -> None:
    path = tmp_path / version
    shutil.copytree(ARCHIVES / version, path)
    before = FeatureStore.open(path)
    done = [row for row in before.rows() if row["status"] == "ok"]
    (path / "index.parquet").unlink()
    assert rebuild_index(path).slides == len(done) > 0
    after = FeatureStore.open(path)
    for row in done:
        for wanted, got in zip(before.read(row["key"]), after.read(row["key"]), strict=True):
            np.testing.assert_array_equal(wanted, got)
