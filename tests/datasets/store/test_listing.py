"""Stores below a folder, counted."""

from pathlib import Path

import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.listing import find_stores, summarise_store


def test_a_store_and_a_folder_of_stores_are_found(path: Path, tmp_path: Path) -> None:
    assert find_stores(path) == find_stores(path.parent) == find_stores(tmp_path) == [path]
    with pytest.raises(DataError, match="no feature store here or below"):
        find_stores(path / "shards")


def test_what_is_in_it(path: Path) -> None:
    summary = summarise_store(path)
    assert (summary.slides, summary.registered) == (4, 5)
    assert (summary.spec.encoder, summary.spec.mpp, summary.spec.tile_px) == ("handcrafted", 0.5, 224)
    assert summary.bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert 4 <= summary.tiles <= 4 * 29
