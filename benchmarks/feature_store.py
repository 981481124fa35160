"""Reading features: the store against HDF5 and a Parquet list column, and the memory of a second reader.

Whole bags of 10,000 x 768 float16, random normal numbers (nearly incompressible, like real features), warm page cache,
CPU time of this process, the three ways in turn, medians. A read ends with a private array in memory, so that no way
has an advantage from bytes that it did not read:

- store: ``FeatureStore.read`` and a copy; the store is opened once, as a training run does;
- h5: one file per slide, contiguous, opened for every read, as in STAMP;
- list column: one Parquet file per slide, a fixed-size list of float16, pyarrow's default settings.

The second reader is a process that reads every page of a store of 1 GB that another process holds in memory:
its private memory (USS) afterwards less that before it opened the store.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import cast

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec

TILES, DIM = 10_000, 768
SPEC = StoreSpec("random", "none", dim=DIM, mpp=0.5, tile_px=224)

READER = """
import sys
from benchmarks.feature_store import memory_mb, read_all
before = memory_mb("Private")
held = read_all(sys.argv[1])
print(before, memory_mb("Private"), memory_mb("Pss:"), flush=True)
sys.stdin.readline()
"""


def main() -> None:
    """Print the figures and write them to the results folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="reads of every kind")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the store with two readers")
    parser.add_argument("--folder", default=None, help="where to write [a temporary folder]")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = reading(Path(folder), arguments.rounds) | sharing(Path(folder), arguments.gigabytes)
    figures |= {
        "bag": f"{TILES} x {DIM} float16",
        "rounds": arguments.rounds,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("numpy", "pyarrow", "h5py")}
        | {"python": platform.python_version()},
    }
    for key, value in figures.items():
        print(f"{key:<24} {value}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "feature_store.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def reading(root: Path, rounds: int, slides: int = 6) -> dict[str, float]:
    """CPU milliseconds per bag and the two ratios."""
    store = write_store(root / "small", slides)
    for at in range(slides):
        features, corners = store.read(f"s{at}")
        with h5py.File(root / f"s{at}.h5", "w") as file:
            file["feats"], file["coords"] = features, corners
        kind = pa.list_(pa.float16(), DIM)
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), type=kind)
        pq.write_table(pa.table({"features": column}), root / f"s{at}.parquet")

    def from_h5(slide: str) -> np.ndarray:
        with h5py.File(root / f"{slide}.h5") as file:
            return np.asarray(cast(h5py.Dataset, file["feats"])[()])

    def from_list_column(slide: str) -> np.ndarray:
        column = pq.read_table(root / f"{slide}.parquet")["features"].combine_chunks()
        return np.array(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, DIM)

    ways: dict[str, Callable[[str], np.ndarray]] = {
        "store": lambda slide: store.read(slide)[0].copy(),
        "h5": from_h5,
        "list_column": from_list_column,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-slides, rounds):  # the first turns warm up
        slide = f"s{turn % slides}"
        arrays = []
        for name, read in ways.items():
            started = time.process_time()
            arrays.append(read(slide))
            if turn >= 0:
                seconds[name].append(time.process_time() - started)
        assert all(array.dtype == np.float16 and np.array_equal(array, arrays[0]) for array in arrays)
    cpu = {name: median(values) for name, values in seconds.items()}
    return {
        "read_vs_h5": round(cpu["store"] / cpu["h5"], 3),
        "read_vs_list_column": round(cpu["list_column"] / cpu["store"], 1),
        **{f"{name}_cpu_ms": round(value * 1000, 2) for name, value in cpu.items()},
    }


def sharing(root: Path, gigabytes: float) -> dict[str, float]:
    """Private memory that a second reader of everything adds, in MB."""
    slides = math.ceil(gigabytes * 1e9 / (TILES * DIM * 2))
    path = write_store(root / "large", slides).path
    first, alone = _reader(path)
    second, beside = _reader(path)  # while the first holds everything
    for process in (first, second):
        process.communicate("\n")
    return {
        "store_mb": round(sum(file.stat().st_size for file in path.rglob("*.arrow")) / 1e6),
        "first_reader_extra_mb": round(alone["after"] - alone["before"], 1),
        "second_reader_extra_mb": round(beside["after"] - beside["before"], 1),
        "second_reader_pss_mb": round(beside["pss"], 1),
    }


def _reader(path: Path) -> tuple[subprocess.Popen[str], dict[str, float]]:
    """A process that has read everything and waits, with its memory before and after."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    before, after, pss = map(float, process.stdout.readline().split())
    return process, {"before": before, "after": after, "pss": pss}


def read_all(path: str) -> list[np.ndarray]:
    """The features of every slide, each page of them touched."""
    store = FeatureStore.open(path)
    held = [store.read(slide)[0] for slide in store.index()["slide"]]
    assert sum(int(features.reshape(-1).view(np.uint16)[::1024].sum()) for features in held) > 0
    return held


def memory_mb(kind: str) -> float:
    """Memory of this process in MB: ``Private`` (clean, dirty) or ``Pss:``, from /proc."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) * 1024 for line in lines if line.startswith(kind)) / 1e6


def write_store(root: Path, slides: int) -> FeatureStore:
    """A store of random bags ``s0``, ``s1``, …"""
    table = pd.DataFrame({"slide": [f"s{at}" for at in range(slides)], "path": "", "mpp": math.nan})
    rng = np.random.default_rng(0)
    corner = np.arange(TILES, dtype=np.int32)
    with FeatureStore.create_or_open(root, SPEC) as store:
        for key in store.register(table.assign(fingerprint="none")):
            features = rng.standard_normal((TILES, DIM), np.float32).astype(np.float16)
            store.stage(key, corner, corner, features, {"status": "ok", "n": TILES})
            store.record([{"key": key, "status": "ok", "n": TILES}])
        store.commit()
    return FeatureStore.open(store.path)


if __name__ == "__main__":
    main()
