"""Jobs make the nodes that they need appear, work there, and let them go: autoscaling for real, without a cloud."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.ray_autoscaling import NODES, autoscaling_head
from tests.ray_head import Head, result_line

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def types(root: Path) -> dict[str, dict[str, Any]]:
    """Node types of cluster.yaml; their nodes get one CPU each, since all of them share this machine.

    The tiling pool may have one node: work for two is more than it will ever have, and no reason to start a GPU node.
    """
    import yaml

    file = yaml.safe_load((root / "cluster.yaml").read_text())
    kinds = {}
    for name, node in file["available_node_types"].items():
        resources = {
            key: min(amount, 1) if key == "CPU" else amount for key, amount in node["resources"].items()
        }
        limit = {file["head_node_type"]: 0, "tiling_cpu": 1}.get(name, 2)
        kinds[name] = {"resources": resources, "max_workers": limit, "labels": node.get("labels", {})}
    return kinds


@pytest.fixture(scope="module")
def head(types: dict[str, dict[str, Any]]) -> Iterator[Head]:
    workers = {name: node for name, node in types.items() if name != "head"}
    with autoscaling_head(types["head"]["resources"], workers) as started:
        yield started


@pytest.fixture(scope="module")
def watch(head: Head) -> Iterator[Path]:
    """A file with all nodes that the cluster had, and when each was last there."""
    stop, seen = head.folder / "stop", head.folder / "nodes.json"
    process = subprocess.Popen(
        [sys.executable, "-c", NODES, f"127.0.0.1:{head.port}", str(stop), str(seen)],
        env=head.environ(head.token),
    )
    yield seen
    stop.touch()
    process.wait(60)


def test_nodes_come_work_and_go(head: Head, watch: Path, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    subprocess.run(
        [sys.executable, "-m", "equipoise.jobs.synthesize", "--preset", "tiny", "--out", str(tiny)],
        check=True, capture_output=True,
    )  # fmt: skip

    def submit(*words: str) -> "subprocess.CompletedProcess[str]":
        address = f"http://127.0.0.1:{head.dashboard}"
        done = subprocess.run(
            [sys.executable, "-m", "equipoise.jobs.submit", *words, "--address", address],
            cwd=tiny, env=head.environ(head.token), capture_output=True, text=True, timeout=580,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert result_line(done.stderr)["code"] == 0
        return done

    submit("extract", "-o", str(tmp_path / "run"), "-s", "resources.workers=2")
    nodes = json.loads(watch.read_text())["nodes"]
    workers = [node for node in nodes.values() if "control" not in node["resources"]]
    assert workers, "a head without CPUs encodes no slide"
    assert len(nodes) - len(workers) == 1
    assert all(node["resources"]["CPU"] == 1 for node in workers)
    assert not any("GPU" in node["resources"] for node in workers), "the encoder needs none"
    assert {node["labels"].get("pool") for node in workers} == {"tiling"}
    [index] = (tiny / "features").glob("*/index.parquet") or (tmp_path / "run").glob("**/index.parquet")
    assert set(pd.read_parquet(index)["status"]) <= {"ok", "no_tissue"}

    submit("search", "-o", str(tmp_path / "run"), "--trials", "2", "-s", "search.scheduler=none")
    board = pd.read_parquet(next((tmp_path / "run" / "search").glob("trials.parquet")))
    assert len(board) == 2
    assert not any("GPU" in node["resources"] for node in json.loads(watch.read_text())["nodes"].values())

    # With nothing to do only the head stays.
    deadline = time.monotonic() + 120
    while True:
        state = json.loads(watch.read_text())
        alive = [node for node in state["nodes"].values() if node["last"] > state["now"] - 3]
        if len(alive) == 1:
            break
        assert time.monotonic() < deadline, alive
        time.sleep(0.5)
    assert "control" in alive[0]["resources"]
