"""A small finished store, made without slides."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.slides.fingerprint import fingerprint
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec

SPEC = StoreSpec("handcrafted", "abc", dim=6, mpp=0.5, tile_px=224, tissue={"min_tissue": 0.25})


def finish(store: FeatureStore, key: str, record: bool = True) -> None:
    """Stage (and record) tiles that are a function of the slide's key."""
    rng = np.random.default_rng(int(key, 16))
    n = int(rng.integers(1, 30))
    x, y = rng.integers(0, 90_000, (2, n)).astype(np.int32)
    about = {"status": "ok", "n": n, "attempts": 1, "mpp": 0.2527, "tile_mpp": 0.5, "level0_px": 443.213}
    about |= {"width": 100_000, "height": 90_500}
    features = rng.normal(size=(n, SPEC.dim)).astype(np.float16)
    store.stage(key, x, y, features, {"slide": store.status(key)["slide"], **about})
    if record:
        store.record([{"key": key, **about}])


@pytest.fixture
def slides(tmp_path: Path) -> pd.DataFrame:
    """Five files and their table."""
    folder = tmp_path / "slides"
    folder.mkdir()
    paths = [folder / f"s{at}.svs" for at in range(5)]
    for path in paths:
        path.write_text(f"slide {path.stem}")
    table = pd.DataFrame({"slide": [p.stem for p in paths], "path": [str(p) for p in paths], "mpp": math.nan})
    return table.assign(fingerprint=[fingerprint(path) for path in paths])


@pytest.fixture
def make_store() -> Callable[[Path, pd.DataFrame], Path]:
    """``make(root, slides)`` writes a store of two slides a shard; slide ``s3`` has no tissue."""

    def make(root: Path, table: pd.DataFrame) -> Path:
        with FeatureStore.create_or_open(root, SPEC, shard_slides=2) as store:
            for key in store.pending(store.register(table)):
                if store.status(key)["slide"] == "s3":
                    store.record([{"key": key, "status": "no_tissue", "error": "glass", "attempts": 1}])
                else:
                    finish(store, key)
            store.commit()
        for row in store.rows():
            (store.path / "qc").mkdir(exist_ok=True)
            (store.path / "qc" / f"{row['key']}.jpg").write_text("a picture")
        return store.path

    return make


@pytest.fixture
def stage() -> Callable[[FeatureStore, str], None]:
    """``stage(store, key)``: finish a slide as a worker does, without the driver."""
    return lambda store, key: finish(store, key, record=False)


@pytest.fixture
def path(make_store: Callable[[Path, pd.DataFrame], Path], slides: pd.DataFrame, tmp_path: Path) -> Path:
    return make_store(tmp_path / "features", slides)
