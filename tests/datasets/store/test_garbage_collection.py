"""Leftovers are removed, finished work is recovered, what might be needed stays."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.fingerprint import fingerprint
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.maintenance import collect_garbage, verify_store

Make = Callable[[Path, pd.DataFrame], Path]


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def replaced(slides: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table after the file of a slide was replaced in place."""
    file = Path(slides.loc[slides["slide"] == name, "path"].iloc[0])
    file.write_text("scanned again")
    return slides.assign(fingerprint=[fingerprint(path) for path in slides["path"]])


def test_a_tidy_store_stays_as_it_is(path: Path) -> None:
    before = contents(path)
    assert collect_garbage(path) == []
    assert contents(path) == before


def test_leftovers_go(path: Path) -> None:
    before = contents(path)
    staging = path / "staging"
    (staging / "attempts").mkdir(parents=True)
    for name in (
        "staging/0123456789abcdef.arrow",
        "staging/.0123456789abcdef.arrow.1-2.tmp",
        "staging/attempts/0123456789abcdef.encode",
        "shards/.00000-11111111.arrow.1-2.tmp",
        ".index.parquet.1-2.tmp",
        "qc/0123456789abcdef.jpg",
    ):
        (path / name).write_text("left over")
    shard = next((path / "shards").glob("00000-*.arrow"))
    shutil.copy(shard, path / "shards" / "00000-00000000.arrow")  # as an interrupted commit leaves it
    littered = contents(path)
    result = collect_garbage(path, dry_run=True)
    assert contents(path) == littered
    assert len(result) == 7
    assert {leftover.bytes for leftover in result} == {9, shard.stat().st_size}
    assert collect_garbage(path) == result
    assert contents(path) == before


def test_finished_work_that_the_index_waits_for_is_taken_up(
    path: Path,
    slides: pd.DataFrame,
    make_store: Make,
    stage: Callable[[FeatureStore, str], None],
    tmp_path: Path,
) -> None:
    with FeatureStore.open(path) as store:
        key = store.register(slides)[1]
        store.reset(key)
        store.commit()
        stage(store, key)
    assert collect_garbage(path, dry_run=True) == []
    assert FeatureStore.open(path).status("s1")["status"] == "pending"
    assert collect_garbage(path) == []
    assert FeatureStore.open(path).status("s1")["status"] == "ok"
    assert contents(path) == contents(make_store(tmp_path / "other", slides))


def test_a_replaced_slide_goes_and_the_rest_is_the_store_without_it(
    path: Path, slides: pd.DataFrame, make_store: Make, tmp_path: Path
) -> None:
    old = slides["slide"].tolist().index("s1")
    new = replaced(slides, "s1")
    assert make_store(path.parent, new) == path
    before = FeatureStore.open(path)
    assert len(before.index()) == 6
    (slide, picture) = collect_garbage(path)
    assert slide.name.startswith("slide s1 (")
    assert "gone or was replaced" in slide.why
    assert picture.name.startswith("qc/")
    assert verify_store(path) == []
    order = [*[at for at in range(5) if at != old], old]  # the new version was registered last
    assert contents(path) == contents(make_store(tmp_path / "other", new.iloc[order]))


def test_versions_stay_while_their_files_or_no_files_are_there(
    path: Path, slides: pd.DataFrame, make_store: Make
) -> None:
    make_store(
        path.parent, slides.assign(mpp=[0.25] + [float("nan")] * 4)
    )  # the same file, another pixel size
    assert collect_garbage(path) == []
    new = replaced(slides, "s1")
    make_store(path.parent, new)
    for file in new["path"]:
        Path(file).rename(f"{file}.away")  # as if the share were not mounted
    before = contents(path)
    assert collect_garbage(path) == []
    assert contents(path) == before


def test_nothing_goes_that_the_index_does_not_account_for(path: Path) -> None:
    shard = next((path / "shards").glob("00001-*.arrow"))
    index, before = (path / "index.parquet").read_bytes(), contents(path)
    with FeatureStore.open(path) as store:
        store.remove([row["key"] for row in store.rows() if row["shard"] == shard.name])
        store._save_index()
    for damage, says in (
        (lambda: None, "holds 1 slides that the index does not name"),
        (lambda: (path / "index.parquet").unlink(), "the index is gone"),
        (lambda: (path / "index.parquet").write_bytes(index[:-9]), "damaged index"),
    ):
        damage()
        with pytest.raises(DataError, match=says) as refused:
            collect_garbage(path)
        assert "store rebuild" in str(refused.value)
        assert set(contents(path)) >= set(before) - {"index.parquet"}


def test_an_unreadable_shard_that_nobody_names_stays(path: Path) -> None:
    (path / "shards" / "00000-00000000.arrow").write_text("left over, or what?")
    with pytest.raises(DataError, match="features cannot be read"):
        collect_garbage(path)
    assert (path / "shards" / "00000-00000000.arrow").exists()


def test_a_store_in_use_is_left_alone(path: Path) -> None:
    (path / "qc" / "0123456789abcdef.jpg").write_text("left over")
    with FeatureStore.open(path) as store:
        store.lock()
        with pytest.raises(DataError, match="another run is writing"):
            collect_garbage(path)
    assert (path / "qc" / "0123456789abcdef.jpg").exists()
