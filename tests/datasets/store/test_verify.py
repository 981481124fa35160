"""A sound store has no problems; every kind of damage is reported with the slide."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.store import feature_store as store_module
from equipoise.datasets.store import shards as shard_module
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.maintenance import verify_store
from equipoise.datasets.store.shards import MappedFile

ARCHIVES = Path(__file__).parents[1] / "archives" / "feature-store"


def shard_of(path: Path, slide: str) -> Path:
    return path / "shards" / FeatureStore.open(path).status(slide)["shard"]


def test_a_sound_store(path: Path) -> None:
    assert verify_store(path) == []


@pytest.mark.parametrize("version", sorted(folder.name for folder in ARCHIVES.iterdir() if folder.is_dir()))
def test_stores_of_old_releases_are_sound(version: str, tmp_path: Path) -> None:
    shutil.copytree(ARCHIVES / version, tmp_path / version)
    assert verify_store(tmp_path / version) == []


def flip(path: Path) -> None:
    """One bit of the features of ``s1``, found by their bytes."""
    features = FeatureStore.open(path).read("s1")[0].tobytes()
    file = shard_of(path, "s1")
    content = bytearray(file.read_bytes())
    content[content.index(features) + len(features) // 2] ^= 1
    file.write_bytes(content)


def cut(path: Path) -> None:
    file = shard_of(path, "s0")
    file.write_bytes(file.read_bytes()[:-100])


def lose(path: Path) -> None:
    shard_of(path, "s4").unlink()


def swap(path: Path) -> None:
    shutil.copy(shard_of(path, "s2"), shard_of(path, "s4"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, ["s1: ", "batch 1: is not what was written: its digest differs"]),
        (cut, ["s0: ", "s1: ", "features cannot be read"]),
        (lose, ["s4: ", "features cannot be read"]),
        (swap, ["s4: ", "holds another slide"]),
    ],
)
def test_damage_is_named(path: Path, damage: Callable[[Path], None], says: list[str]) -> None:
    damage(path)
    problems = "\n".join(verify_store(path))
    assert all(word in problems for word in says), problems
    assert "s3" not in problems


def test_an_index_that_says_something_else(path: Path) -> None:
    with FeatureStore.open(path) as store:
        store.lock()
        row = next(row for row in store._index if row["slide"] == "s2")
        n, row["n"] = row["n"], row["n"] + 1
        store._index.save(path / "index.parquet")
    (problem,) = verify_store(path)
    assert f"has {n} tiles instead of {n + 1}" in problem


def test_a_renamed_shard_and_a_changed_specification(path: Path) -> None:
    text = (path / "store.json").read_text()
    (path / "store.json").write_text(text.replace('"abc"', '"abd"'))
    problems = verify_store(path)
    assert "store.json: the address" in problems[0]
    assert sum("made with another specification" in problem for problem in problems) == 4
    (path / "store.json").write_text("{")
    assert "damaged feature store" in verify_store(path)[0]


def test_the_digest_is_of_the_numbers(path: Path) -> None:
    row = FeatureStore.open(path).status("s0")
    batch, about = MappedFile(path / "shards" / row["shard"]).batch(row["batch"])
    assert len(about["digest"]) == 34
    assert batch.num_rows == row["n"]


def test_what_is_mapped_is_compared_with_its_digest_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def counted(batch: Any, about: dict[str, str], spec: Any) -> str | None:
        compared.append(about["slide"])
        return shard_module.batch_problem(batch, about, spec)

    monkeypatch.setattr(store_module, "batch_problem", counted)
    for _ in range(2):
        for reader in (FeatureStore.open(path), FeatureStore.open(path)):
            reader.read("s0")
            reader.read("s1")
    assert compared == ['"s0"', '"s1"']  # a shard, by the first of four readers
    flip(path)
    with pytest.raises(DataError, match="s1.* is not what was written") as damaged:
        FeatureStore.open(path).read("s0")
    assert shard_of(path, "s0").name in str(damaged.value)
    assert "store rebuild" in str(damaged.value)
    FeatureStore.open(path).read("s2")
