"""A Ray of three nodes on this machine whose nodes and workers can be killed: real processes of ``ray start``.

A head without CPUs and two nodes with one CPU each. Killing a node is SIGKILL for all its processes at once, as when a
machine is lost; another one is started in its place. Ends what it started and nothing else.
"""

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.tree import _title as title_of

RAY = Path(sys.executable).parent / "ray"
NODES = 2


class ChaosCluster:
    """Use as a context.

    Attributes
    ----------
    address
        ``HOST:PORT`` for drivers.
    environ
        Environment of drivers: mode and token.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="eqc", dir="/tmp")  # short: Ray's sockets lie below it
        token = secrets.token_hex(32)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environ = kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "OMP_NUM_THREADS": "1"}
        # So that a node that was lost is noticed within seconds, as its closed connection would on a real network.
        self.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        (self._port,) = _free_ports(1)
        self.address = f"127.0.0.1:{self._port}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._head: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ChaosCluster":
        self._head = self._start(
            "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={self._folder}/t", f"--object-store-memory={150 * 2**20}",
        )  # fmt: skip
        _until(self._answers, "the head")
        for count in range(NODES):  # one after the other: two at once take each other's ports
            self._add_node()
            self._wait_for(2 + count)
        return self

    def __exit__(self, *_: Any) -> None:
        for process in [*self._nodes, self._head]:
            if process is not None:
                _kill_group(process)
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):  # workers that outlived their node
            with contextlib.suppress(OSError):
                if f"{self._folder}/" in Path("/proc", str(pid), "cmdline").read_text(errors="replace"):
                    os.kill(pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", self._folder], check=False)

    def _wait_for(self, nodes: int) -> None:
        _until(lambda: self.alive() >= nodes, f"node {nodes}")

    def alive(self) -> int:
        """Living nodes, as the head sees them."""
        code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level=40); "
        code += "print(sum(node['Alive'] for node in ray.nodes()))"
        done = subprocess.run(
            [sys.executable, "-c", code, self.address], env=self.environ, capture_output=True, text=True
        )
        return int(done.stdout) if done.returncode == 0 else 0

    def kill_node(self, rng: random.Random) -> str:
        """Kill all processes of a node with work and start another; what was killed, empty if none had work."""
        busy = [at for at, node in enumerate(self._nodes) if list(_working(node.pid))]
        if not busy:
            return ""
        lost = self._nodes.pop(rng.choice(busy))
        doing = ", ".join(sorted({title for _, title in _working(lost.pid)}))
        _kill_group(lost)
        self._add_node()
        return f"node with {doing}"

    def kill_worker(self, rng: random.Random) -> str:
        """Kill a worker that works; what it did, empty if none works."""
        workers = [worker for node in self._nodes for worker in _working(node.pid)]
        if not workers:
            return ""
        pid, title = rng.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return title
        return ""

    def _add_node(self) -> None:
        (agent,) = _free_ports(1)
        self._nodes.append(
            self._start(
                f"--address={self.address}", "--num-cpus=1", f"--object-store-memory={100 * 2**20}",
                f"--dashboard-agent-listen-port={agent}",
            )
        )  # fmt: skip

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        log = open(f"{self._folder}/{len(self._nodes)}-{time.monotonic_ns()}.log", "wb")  # noqa: SIM115
        with log:
            return subprocess.Popen(
                [str(RAY), "start", "--block", "--disable-usage-stats", *arguments],
                env=self.environ, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), 1).close()
            return self.alive() >= 1
        return False


def _until(ready: Any, what: str, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come up within {seconds:.0f} s")
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for a node: its process group, and the workers, each of which is in a group of its own."""
    doomed = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _working(root: int) -> Iterator[tuple[int, str]]:
    """Workers of a node that do something of a job: process and what Ray calls it."""
    for pid in _descendants(root):
        title = title_of(pid)
        if title.startswith("ray::") and not title.startswith(
            ("ray::IDLE", "ray::_", "ray::Dashboard", "ray::Runtime")
        ):
            yield pid, title.removeprefix("ray::").split("(")[0].strip()
        elif title.startswith("ray::_fold"):
            yield pid, "fold"


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.append(child)
            waiting.append(child)
    return found
