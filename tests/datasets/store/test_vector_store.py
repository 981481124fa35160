"""Vectors by key: what was written is read, blocks are whole, and other vectors are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import folder_at
from equipoise.datasets.store.vector_store import VectorStore

SPEC = {"encoder": "e", "fingerprint": "f", "dim": 3}


def store(path: Path, **changes: object) -> VectorStore:
    return VectorStore(folder_at(path), SPEC | changes)


def test_blocks_add_up_and_keep_every_bit(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    vectors[1] = np.nan
    first = store(tmp_path)
    assert first.read() == {}
    assert not list(tmp_path.iterdir())  # nothing appears before there are vectors
    first.write(["a", "b"], vectors[:2])
    store(tmp_path).write(["c", "d", "e"], vectors[2:])
    known = store(tmp_path).read()
    assert sorted(known) == list("abcde")
    np.testing.assert_array_equal(np.stack([known[key] for key in "abcde"]), vectors)
    store(tmp_path).write(["a", "b"], vectors[:2])
    assert len(list((tmp_path / "blocks").iterdir())) == 2


def test_partial_files_are_not_read(tmp_path: Path) -> None:
    store(tmp_path).write(["a"], np.ones((1, 3), np.float32))
    (tmp_path / "blocks" / ".b.parquet.1-2.tmp").write_bytes(b"PAR1")
    assert list(store(tmp_path).read()) == ["a"]


def test_a_store_at_an_address(tmp_path: Path) -> None:
    remote = VectorStore(folder_at(f"file://{tmp_path}/far"), SPEC)
    remote.write(["a"], np.full((1, 3), 2, np.float32))
    assert (tmp_path / "far" / "vectors.json").exists()
    np.testing.assert_array_equal(
        VectorStore(folder_at(f"file://{tmp_path}/far"), SPEC).read()["a"], [2, 2, 2]
    )


def test_what_is_refused(tmp_path: Path) -> None:
    first = store(tmp_path)
    with pytest.raises(ValueError, match=r"vectors are \[2, 3\], not \[2, 4\]"):
        first.write(["a", "b"], np.ones((2, 4), np.float32))
    first.write(["a"], np.ones((1, 3), np.float32))
    with pytest.raises(DataError, match="vectors of another encoder"):
        store(tmp_path, fingerprint="g")
    [block] = (tmp_path / "blocks").iterdir()
    block.write_bytes(block.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a block of vectors is damaged") as damaged:
        store(tmp_path).read()
    assert block.name in str(damaged.value)
    assert json.loads((tmp_path / "vectors.json").read_text()) == SPEC
