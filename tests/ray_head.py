"""A private head of Ray with token authentication, started the way a person would.

``ray start --head --block`` on free ports with its own token, home and temporary folder. It ends with its process
group; other Rays of the machine are left alone.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
RUNTIME_ENV = json.dumps({"env_vars": {"PYTHONPATH": ".src"}})


@dataclass
class Head:
    """A running head and how to reach it."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = 0
    dashboard: int = 0
    client: int = 0

    def environ(self, token: str | None) -> dict[str, str]:
        """Environment of a process that talks to the head with the given token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        kept |= {
            "HOME": str(self.folder),
            "PATH": f"{BIN}{os.pathsep}{kept['PATH']}",
            "RAY_AUTH_MODE": "token",
        }
        return kept if token is None else kept | {"RAY_AUTH_TOKEN": token}

    def submit(
        self, root: Path, *command: str, runtime_env: str = RUNTIME_ENV
    ) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` from the checkout; waits for the job's end."""
        submit = [str(BIN / "ray"), "job", "submit", f"--address=http://127.0.0.1:{self.dashboard}"]
        return subprocess.run(
            [*submit, "--working-dir=.", f"--runtime-env-json={runtime_env}", "--", *command],
            cwd=root,
            env=self.environ(self.token),
            capture_output=True,
            text=True,
            timeout=420,
        )

    def answers(self) -> bool:
        """Whether the dashboard takes jobs."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


@contextlib.contextmanager
def private_head() -> Iterator[Head]:
    """A private head with two CPUs."""
    with tempfile.TemporaryDirectory(prefix="eqh", dir="/tmp", ignore_cleanup_errors=True) as name:
        # A short folder: Ray's unix sockets lie below it.
        head = Head(Path(name))
        head.port, head.dashboard, head.client, agent = free_ports(4)
        arguments = [
            "--head",
            "--block",
            f"--port={head.port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={head.dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={head.client}",
            "--num-cpus=2",
            f"--object-store-memory={300 * 2**20}",
            f"--temp-dir={name}/t",
            "--disable-usage-stats",
        ]
        log = head.folder / "head.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [str(BIN / "ray"), "start", *arguments],
                env=head.environ(head.token),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + 180
            while not head.answers():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield head
        finally:
            end(process, head.folder)


def end(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """End the head's process group, and what else was started with its folder on the command line."""
    process.terminate()  # the command ends what it started
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            mine = f"{folder}/" in Path("/proc", pid, "cmdline").read_text(errors="replace")
            if mine or os.getpgid(int(pid)) == process.pid:
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
    process.wait(20)
    shutil.rmtree(folder / "t", ignore_errors=True)


def result_line(text: str) -> dict[str, Any]:
    """The last ``EQUIPOISE-RESULT`` of a log."""
    lines = [line for line in text.splitlines() if "EQUIPOISE-RESULT" in line]
    assert lines, text
    return json.loads(lines[-1].partition("EQUIPOISE-RESULT")[2])
