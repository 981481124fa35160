"""What Ray costs an extraction, how fast the handcrafted encoder is, and how four nodes compare with one.

``overhead_vs_plain_loop``: CPU seconds of the whole process tree for an extraction with two workers on a Ray that is
up, divided by those of two plain loops side by side, each with half of the slides. A plain loop is one process and one
thread that opens the synthetic slides, finds the tissue, reads the same blocks, encodes them with the same encoder and
saves the features. Two processes on two hardware threads of one core take more CPU seconds than one alone, with or
without Ray. The start of the encoder actors, checksums and pictures of the slides, store and commits count for the
extraction alone; the start, some six CPU seconds, comes once, whatever the number of slides. All give the same
features, bit for bit.

``overhead_vs_single_loop``: the same against one plain loop that has the machine to itself.

``handcrafted_tiles_per_s``: tiles by wall time of the same extractions, from the first look at the slides to the
committed store; it means little on a busy machine, so ``handcrafted_tiles_per_cpu_s`` stands beside it: tiles per CPU
second of the process tree, times two.

``nodes_efficiency``: tiles per second on four nodes that Ray simulates on this machine, divided by four times those of
one node, with an encoder that sleeps a fixed time per batch. Each node gets the same number of slides and one encoder:
one node a quarter of the slides.
"""

import argparse
import json
import logging
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import pandas as pd

from benchmarks.tiles import MPP, PX, slide
from benchmarks.tree import _cpu as cpu_of
from benchmarks.tree import _title as title_of
from benchmarks.tree import _tree as tree_of
from equipoise.datasets.slides.grid import plan_tiles
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.slides.tiles import tile_blocks
from equipoise.datasets.slides.tissue import TissueParams, find_tissue
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.models.encoders.handcrafted import Handcrafted
from equipoise.models.encoders.protocol import Identity
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract

PARAMS = ExtractionParams.model_validate({"mpp": MPP, "tile_px": PX, "max_fail": 0.0})
NODES = 4


class Sleeper:
    """An encoder of fixed latency: it sleeps, and gives the mean colour."""

    dim = 3
    batch_size = 64
    hash = "sleeper"

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """``[B, H, W, 3]`` to ``[B, 3]``."""
        time.sleep(self._latency_s)
        return tiles[:, ::32, ::32].mean((1, 2)).astype(np.float16) / 255


class TreeCpu:
    """CPU seconds of this process and its descendants while the block runs, without the sampling itself."""

    def __init__(self, interval_s: float = 0.2) -> None:
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before: dict[int, float] = {}
        self._after: dict[int, float] = {}
        self._titles: dict[int, str] = {}
        self._sampling = 0.0

    @property
    def seconds(self) -> float:
        """The sum; a process that has ended counts with its last sample."""
        return sum(s - self._before.get(pid, 0.0) for pid, s in self._after.items()) - self._sampling

    def shares(self) -> dict[str, float]:
        """The seconds of encoder actors, planners, the driver, and of everything else that Ray runs."""
        seconds_of = dict.fromkeys(("encoders", "planners", "driver", "ray"), 0.0)
        for pid, seconds in self._after.items():
            title = self._titles.get(pid, "")
            who = "driver" if pid == os.getpid() else "ray"
            who = "encoders" if "MapWorker" in title else "planners" if "_plan" in title else who
            seconds_of[who] += seconds - self._before.get(pid, 0.0)
        seconds_of["driver"] -= self._sampling
        return {who: round(seconds, 1) for who, seconds in seconds_of.items()}

    def _sample(self) -> dict[int, float]:
        samples = {pid: cpu_of(pid) for pid in tree_of(os.getpid())}
        for pid in samples:  # a worker is called after its task while it has one
            title = title_of(pid)
            if title.startswith("ray::") and "IDLE" not in title:
                self._titles[pid] = title
        return {pid: seconds for pid, seconds in samples.items() if seconds}

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            self._after.update(self._sample())
            self._sampling = time.thread_time()

    def __enter__(self) -> "TreeCpu":
        self._before = self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._after.update(self._sample())


def main() -> None:
    """Run both parts, print a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=float, default=240.0, help="least CPU seconds of a plain loop")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds per batch on the simulated nodes")
    parser.add_argument("--slides", type=Path, help="folder that keeps the slides for another run")
    parser.add_argument("--only", choices=("overhead", "nodes"), help="one part; the results keep the other")
    parser.add_argument("--plain", nargs=2, type=Path, metavar=("SLIDES", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.plain:
        print(json.dumps(plain_loop(*arguments.plain)))
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        templates = [slide(name, arguments.slides or root / "templates") for name in ("40x", "20x")]
        figures: dict[str, object] = {}
        if arguments.only != "nodes":
            figures |= overhead(root, templates, arguments.rounds, arguments.work)
        if arguments.only != "overhead":
            figures |= nodes(root, templates[0], arguments.latency)
    for key, value in figures.items():
        print(f"{key:<28} {value}")
    figures |= {"load_before": round(load, 1), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    figures["versions"] = {name: version(name) for name in ("ray", "opencv-python-headless", "numpy")}
    results = Path(__file__).parent / "results" / "extraction.json"
    results.parent.mkdir(exist_ok=True)
    before = json.loads(results.read_text()) if arguments.only and results.exists() else {}
    results.write_text(json.dumps(before | figures, indent=2) + "\n")
    print(json.dumps(figures))


def table_of(templates: list[Path], copies: int, folder: Path) -> pd.DataFrame:
    """A slides table with ``copies`` slides per template: links with different names."""
    folder.mkdir(parents=True)
    paths = []
    for template in templates:
        for copy in range(copies):
            paths.append(folder / f"{template.parents[1].name}-{copy:03d}{template.suffix}")
            paths[-1].symlink_to(template)
    table = pd.DataFrame({"slide": [path.name for path in paths], "path": [str(path) for path in paths]})
    return table.assign(patient=table["slide"], cohort="synthetic", mpp=math.nan)


def overhead(root: Path, templates: list[Path], rounds: int, work_s: float) -> dict[str, object]:
    """One plain loop, two at once and the extraction, alternating."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session

    sample = table_of(templates, 1, root / "sample")
    once = plain(sample, root / "plain-sample", loops=1)
    copies = max(1, math.ceil(1.1 * work_s / once))
    table = table_of(templates, copies, root / "slides")
    singles: list[float] = []
    pairs: list[float] = []
    trees: list[float] = []
    walls: list[float] = []
    shares: list[dict[str, float]] = []
    with ray_session(RayOptions(address="local", cpus=2, object_store_mb=300, dashboard=False)):
        extract(sample, PARAMS, root / "warm")
        for turn in range(rounds):
            folder = root / f"plain-{turn}"
            if turn == 0:  # it takes the longest, and stands beside the ratio only
                singles.append(plain(table, root / "single", loops=1))
            pairs.append(plain(table, folder, loops=2))
            with TreeCpu() as tree:
                summary = extract(table, PARAMS, root / f"store-{turn}")
            trees.append(tree.seconds)
            shares.append(tree.shares())
            walls.append(summary.seconds)
            tiles = require_equal(table, folder, summary.store)
            print(
                f"round {turn}: one loop {singles[0]:.1f}, two loops {pairs[-1]:.1f}, extraction {trees[-1]:.1f} s "
                f"of CPU, {walls[-1]:.1f} s wall",
                flush=True,
            )
    return {
        "overhead_vs_plain_loop": round(
            statistics.median(t / p for t, p in zip(trees, pairs, strict=True)), 3
        ),
        "overhead_vs_single_loop": round(statistics.median(trees) / singles[0], 3),
        "handcrafted_tiles_per_s": round(tiles / statistics.median(walls)),
        "handcrafted_tiles_per_cpu_s": round(2 * tiles / statistics.median(trees)),
        "plain_cpu_s": round(singles[0], 1),
        "two_plain_cpu_s": round(statistics.median(pairs), 1),
        "extraction_cpu_s": round(statistics.median(trees), 1),
        "extraction_wall_s": round(statistics.median(walls), 1),
        "extraction_cpu_s_of": {
            who: round(statistics.median(share[who] for share in shares), 1) for who in shares[0]
        },
        "slides": len(table),
        "tiles": tiles,
    }


def plain(table: pd.DataFrame, folder: Path, loops: int) -> float:
    """Plain loops side by side in processes of their own, which know nothing of Ray; CPU seconds of all."""
    folder.mkdir()
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    for part in range(loops):
        slides = folder / f"slides-{part}.parquet"
        table.iloc[part::loops].to_parquet(slides)
        command = [sys.executable, "-m", "benchmarks.extraction", "--plain", str(slides), str(folder)]
        running.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
        )
    seconds = 0.0
    for process in running:
        answer, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors)
        seconds += json.loads(answer.splitlines()[-1])["cpu_s"]
    return seconds


def plain_loop(table: Path, folder: Path) -> dict[str, float]:
    """The simplest extraction, without resume and without a report: slide by slide, one thread."""
    slides = pd.read_parquet(table)
    encoder = Handcrafted()
    started = time.process_time()
    for row in slides.itertuples():
        with open_slide(str(row.path)) as reader:
            sampling = reader.sampling(MPP)
            tissue = find_tissue(reader, TissueParams())
            plan = plan_tiles(tissue, sampling, reader.level_dimensions, PX, PARAMS.min_tissue)
            features = np.zeros((len(plan), encoder.dim), np.float16)
            for indices in tile_blocks(reader, plan):
                pixels, problems = reader.read_many(plan.x[indices], plan.y[indices], plan.side, plan.px)
                if problems:
                    raise SystemExit(f"{row.slide}: {problems}")
                features[indices] = encoder(pixels)
        np.save(folder / f"{row.slide}.npy", features)
    return {"cpu_s": time.process_time() - started}


def require_equal(table: pd.DataFrame, folder: Path, store: Path) -> int:
    """Compare the features of both ways; returns their number."""
    opened = FeatureStore.open(store)
    tiles = 0
    for name in table["slide"]:
        features, _ = opened.read(name)
        if not np.array_equal(features, np.load(folder / f"{name}.npy")):
            raise SystemExit(f"{name}: the two ways give different features")
        tiles += len(features)
    return tiles


def nodes(root: Path, template: Path, latency_s: float, slides: int = 4) -> dict[str, object]:
    """One node, then four: the head of this cluster has no CPU."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150_000_000}
    )
    rates: dict[int, float] = {}
    try:
        for count in (1, NODES):
            for _ in range(count - len(rates)):
                cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
            latency = latency_s

            def make(_: ExtractionParams, latency: float = latency) -> Sleeper:
                return Sleeper(latency)

            def identify(_: ExtractionParams) -> Identity:
                return Identity(Sleeper.dim, Sleeper.hash, Sleeper.batch_size)

            table = table_of([template], slides * count, root / f"slides-of-{count}")
            summary = extract(table, PARAMS, root / f"nodes-{count}", make_encoder=make, identify=identify)
            rates[count] = summary.tiles / summary.seconds
            print(f"{count} nodes: {summary.tiles} tiles in {summary.seconds:.1f} s")
            ray.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {
        "nodes_efficiency": round(rates[NODES] / NODES / rates[1], 3),
        "tiles_per_s_by_nodes": {str(count): round(rate, 1) for count, rate in rates.items()},
        "latency_s": latency_s,
    }


if __name__ == "__main__":
    main()
