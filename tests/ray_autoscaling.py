"""A private autoscaling cluster on this machine: its nodes are further raylets, started and ended by Ray's autoscaler.

Ray's ``FakeMultiNodeProvider`` stands in for the cloud; the autoscaler, its decisions and the nodes are real. Types of
nodes are given as in a cluster file. Ends what it started and nothing else: ``ray stop`` is never called.
"""

import contextlib
import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.ray_head import BIN, Head, end, free_ports

#: The fake provider knows no other name.
HEAD_TYPE = "ray.head.default"
_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip


@contextlib.contextmanager
def autoscaling_head(
    head: Mapping[str, int], workers: Mapping[str, Mapping[str, Any]], idle_minutes: float = 0.1
) -> Iterator[Head]:
    """A head with these resources, and ``workers``: node type → ``resources``, ``max_workers``, ``labels``."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    with tempfile.TemporaryDirectory(prefix="eqa", dir="/tmp", ignore_cleanup_errors=True) as name:
        started = Head(Path(name), secrets.token_hex(32))
        started.port, started.dashboard, started.client, agent = free_ports(4)
        config = {
            "cluster_name": "local",
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": f"127.0.0.1:{started.port}",
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "head_node_type": HEAD_TYPE,
            "upscaling_speed": 10.0,
            "auth": {},
            "file_mounts": {},
            "docker": {},
            "available_node_types": {
                **{kind: {"node_config": {}, "min_workers": 0, **node} for kind, node in workers.items()},
                HEAD_TYPE: {"resources": dict(head), "node_config": {}, "max_workers": 0},
            },
            "idle_timeout_minutes": idle_minutes,
            "max_workers": sum(node["max_workers"] for node in workers.values()),
            **{key: [] for key in _LISTS},
        }
        file = Path(name, "autoscaling.json")
        file.write_text(json.dumps(config))
        others = {key: amount for key, amount in head.items() if key not in ("CPU", "GPU")}
        arguments = [
            "--head",
            "--block",
            f"--port={started.port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={started.dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={started.client}",
            f"--num-cpus={head.get('CPU', 0)}",
            f"--resources={json.dumps(others)}",
            f"--object-store-memory={300 * 2**20}",
            f"--temp-dir={name}/t",
            f"--autoscaling-config={file}",
            "--disable-usage-stats",
        ]
        environ = started.environ(started.token) | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        log = started.folder / "head.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [str(BIN / "ray"), "start", *arguments],
                env=environ, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 240
            while not started.answers():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield started
        finally:
            end(process, started.folder)


NODES = """
import json, os, sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
seen, since = {}, time.monotonic()
while not os.path.exists(sys.argv[2]):
    for node in ray.nodes():
        if node["Alive"]:
            about = {"resources": node["Resources"], "labels": node["Labels"]}
            one = seen.setdefault(node["NodeID"], about)
            one["last"] = time.monotonic() - since
    with open(sys.argv[3] + ".new", "w") as file:
        json.dump({"now": time.monotonic() - since, "nodes": seen}, file)
    os.replace(sys.argv[3] + ".new", sys.argv[3])
    time.sleep(0.5)
"""
