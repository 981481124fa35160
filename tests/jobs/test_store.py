"""``equipoise store`` from the command line: output, exit codes, files that are kept."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec

SPEC = StoreSpec("handcrafted", "abc", dim=4, mpp=0.5, tile_px=224)


def call(*arguments: str | Path) -> tuple[int, str, dict]:
    """Exit code, everything printed, result."""
    command = [sys.executable, "-m", "equipoise.jobs.store", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1:]
    text = "".join(last).removeprefix("EQUIPOISE-RESULT ")
    return done.returncode, done.stdout + done.stderr, json.loads(text) if text.startswith("{") else {}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table = pd.DataFrame({"slide": ["a", "b"], "path": "/x.svs", "mpp": math.nan, "fingerprint": "f"})
    with FeatureStore.create_or_open(tmp_path / "features", SPEC) as store:
        for key in store.register(table):
            x = np.arange(5, dtype=np.int32)
            about = {"status": "ok", "n": 5, "mpp": 0.5, "level0_px": 224.0}
            store.stage(key, x, x, np.ones((5, 4), np.float16), {"slide": "s", **about})
            store.record([{"key": key, **about}])
        store.commit()
    return store.path


def test_ls_verify_and_gc(path: Path) -> None:
    code, text, result = call("ls", path.parent)
    assert (code, result["stores"]) == (0, 1)
    assert text.splitlines()[1].split()[:6] == ["handcrafted", "0.5", "224", "4", "2", "10"]
    assert call("verify", path.parent)[0] == 0
    (path / "shards" / ".x.1-2.tmp").write_text("half")
    assert call("gc", path.parent, "--dry-run")[2]["found"] == 1
    with FeatureStore.open(path) as store:
        store.lock()
        code, text, result = call("gc", path)
        assert (code, result["found"], result["left_alone"]) == (0, 0, 1)
        assert "another run is writing" in text
    code, text, result = call("gc", path)
    assert (code, result["removed"], result["bytes"]) == (0, 1, 4)
    assert not list(path.rglob("*.tmp"))
    (shard,) = (path / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-40])
    code, text, _ = call("verify", path.parent)
    assert code == 3
    assert "2 problems in 1 feature stores" in text
    assert ": a: 00000-" in text


def test_export_and_import(path: Path, tmp_path: Path) -> None:
    code, text, result = call("export", path, "--format", "trident", "--out", tmp_path / "h5")
    assert (code, result["files"]) == (0, 2), text
    arguments = ["--format", "trident", "--out", tmp_path / "taken", "--encoder", "handcrafted"]
    code, text, result = call("import", tmp_path / "h5", *arguments)
    assert (code, result["slides"], result["tiles"]) == (0, 2, 10), text
    (tmp_path / "h5" / "c.h5").write_text("no HDF5")
    code, text, _ = call("import", tmp_path / "h5", *arguments)
    assert code == 3
    assert "1 files could not be imported" in text


def test_what_is_missing_is_said(path: Path, tmp_path: Path) -> None:
    code, text, _ = call("import", tmp_path, "--format", "stamp")
    assert code == 2
    assert "`store import` needs --out and --encoder" in text
    assert call("ls", tmp_path / "nothing")[0] == 3
    code, text, _ = call("ls", "s3://bucket/features")
    assert code == 2
    assert "not on addresses" in text
    assert call("verify")[0] == 2
