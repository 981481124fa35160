"""Which stores there are, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec


@dataclass(frozen=True)
class StoreSummary:
    """A store in one line.

    Attributes
    ----------
    path
        Its folder.
    spec
        What made its features.
    slides, registered
        Slides with features, and slides in the index.
    tiles
        Of all slides with features.
    bytes
        Of all files of the folder.
    """

    path: Path
    spec: StoreSpec
    slides: int
    registered: int
    tiles: int
    bytes: int


def find_stores(root: str | Path) -> list[Path]:
    """The folder itself if it is a store, else all stores below it.

    Raises
    ------
    DataError
        If there is none.
    """
    root = Path(root)
    if (root / SPEC_FILE).exists():
        return [root]
    stores = sorted(file.parent for file in root.rglob(SPEC_FILE))
    if not stores:
        raise DataError(
            "no feature store here or below", where=str(root), fix="name the folder of features.store"
        )
    return stores


def summarise_store(path: Path) -> StoreSummary:
    """Count what a store holds.

    Raises
    ------
    DataError
        If specification or index are damaged or gone.
    """
    store = FeatureStore.open(path)
    spec, rows = store.spec, store.rows()
    done = [row for row in rows if row["status"] == "ok"]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return StoreSummary(path, spec, len(done), len(rows), sum(row["n"] for row in done), size)
