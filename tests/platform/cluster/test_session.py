"""The choice of Ray, its token and its memory; and a session that leaves nothing behind.

Connecting to a cluster and its errors are tested in tests/test_job_submission.py, which starts a head.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from equipoise.platform.cluster import machine, session, tokens
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import JOB_VARIABLE, resolve_address, worker_environment
from equipoise.platform.errors import ResourceError

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    "address", ["auto", "local", "10.0.0.1:6379", "head:6379", "ray://head:10001", "[::1]:6379"]
)
def test_addresses(address: str) -> None:
    assert RayOptions(address=address).address == address


@pytest.mark.parametrize("address", ["", "head", "http://head:8265", "ray://head", "head:port"])
def test_addresses_refused(address: str) -> None:
    with pytest.raises(ValidationError, match=r"none of auto, local, HOST:PORT, ray://HOST:PORT"):
        RayOptions(address=address)


@pytest.mark.parametrize(
    "wrong", [{"cpus": 0}, {"gpus": 0.5}, {"gpus": -1}, {"object_store_mb": 50}, {"cpu": 2}]
)
def test_options_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RayOptions.model_validate(wrong)


def test_destination() -> None:
    auto, local, named = RayOptions(), RayOptions(address="local"), RayOptions(address="head:6379")
    assert resolve_address(auto, {}) == ("local", "local")
    assert resolve_address(local, {"RAY_ADDRESS": "other:6379"}) == ("local", "local")
    assert resolve_address(auto, {"RAY_ADDRESS": "other:6379"}) == ("cluster", "other:6379")
    assert resolve_address(named, {"RAY_ADDRESS": "other:6379"}) == ("cluster", "head:6379")
    job = {JOB_VARIABLE: "{}", "RAY_ADDRESS": "head:6379"}
    for options in (auto, local, RayOptions(address="other:6379")):
        assert resolve_address(options, job) == ("job", "head:6379")


def test_local_token(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    first, second = (tokens.local_authentication(home) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    # A configured token is used, and RAY_AUTH_MODE=disabled does not apply to a local Ray.
    configured = {**home, "RAY_AUTH_TOKEN": "mine", "RAY_AUTH_MODE": "disabled"}
    assert tokens.local_authentication(configured) == {"RAY_AUTH_MODE": "token"}


def test_cluster_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = {"HOME": str(tmp_path)}
    with pytest.raises(ResourceError, match="no token for this cluster") as caught:
        tokens.cluster_authentication(home, "head:6379")
    assert caught.value.where == "Ray at head:6379"
    assert "RAY_AUTH_TOKEN_PATH" in str(caught.value.fix)
    assert tokens.cluster_authentication({**home, "RAY_AUTH_TOKEN": "x"}, "head:6379") == {
        "RAY_AUTH_MODE": "token"
    }
    assert tokens.cluster_authentication({**home, "RAY_AUTH_MODE": "disabled"}, "head:6379") == {}
    assert "without a token" in caplog.text


def test_token_precedence(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert tokens.token_source(environ) is None
    default = tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("x")
    assert tokens.token_source(environ) == str(default)
    environ["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "absent")
    with pytest.raises(ResourceError, match="cannot be read"):
        tokens.token_source(environ)
    named = tmp_path / "named"
    named.write_text("y")
    environ["RAY_AUTH_TOKEN_PATH"] = str(named)
    assert tokens.token_source(environ) == str(named)
    assert tokens.token_source(environ | {"RAY_AUTH_TOKEN": "z"}) == "RAY_AUTH_TOKEN"
    assert tokens.token_source({"HOME": "/nowhere", "RAY_AUTH_TOKEN": "  "}) is None


@pytest.mark.parametrize(
    ("memory", "shared", "asked", "size", "word"),
    [
        (64 * GIB, 60 * GIB, None, 2 * GIB, None),  # the cap
        (4 * GIB, 4 * GIB, None, int(0.3 * 4 * GIB), None),  # 30 % of memory
        (64 * GIB, 60 * GIB, 300, 300 * MIB, None),  # as asked
        (64 * GIB, None, None, 2 * GIB, None),  # no /dev/shm on this system
        (64 * GIB, 1 * GIB, None, int(0.9 * GIB), "921 MiB instead of 2048 MiB"),
        (64 * GIB, 64 * MIB, None, 512 * MIB, "kept on disk"),  # Docker's default /dev/shm
        (0, 60 * GIB, None, 80 * MIB, None),  # never below what Ray accepts
    ],
)
def test_object_store(
    memory: int, shared: int | None, asked: int | None, size: int, word: str | None
) -> None:
    result, warning = machine.object_store_bytes(memory, shared, asked)
    assert result == size
    assert (word in warning) if word else warning is None  # type: ignore[operator]


def test_machine_is_measured() -> None:
    assert 2**28 < machine.memory_bytes() < 2**50
    assert 0 < machine.cpu_count() <= (os.cpu_count() or 1)


def test_worker_environment() -> None:
    assert worker_environment({}) == {"env_vars": {"OMP_NUM_THREADS": "1"}}
    # A local Ray's workers inherit what the user exported; workers of a cluster get it explicitly.
    assert worker_environment({"OMP_NUM_THREADS": "8"}) == {}
    assert worker_environment({"OMP_NUM_THREADS": "8"}, "head:6379") == {"env_vars": {"OMP_NUM_THREADS": "8"}}


def test_worker_environment_of_a_job() -> None:
    """What the job brought stays: Ray refuses a driver that sets the same variable again."""

    def job(runtime_env: dict[str, object] | None) -> dict[str, str]:
        return {JOB_VARIABLE: json.dumps({"runtime_env": runtime_env}), "OMP_NUM_THREADS": "1"}

    assert worker_environment(job(None), "auto") == {"env_vars": {"OMP_NUM_THREADS": "1"}}
    path = {"env_vars": {"PYTHONPATH": ".src"}}
    assert worker_environment(job(path), "auto") == {"env_vars": {"OMP_NUM_THREADS": "1"}}
    assert worker_environment(job({"env_vars": {"OMP_NUM_THREADS": "4"}}), "auto") == {}


def test_code_is_shipped_over_ray_client_only(root: Path) -> None:
    assert worker_environment({}, "ray://head:10001")["py_modules"] == [str(root / ".src" / "equipoise")]
    assert "py_modules" not in worker_environment({}, "head:6379")


def test_description_needs_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_is_open", lambda: False)
    with pytest.raises(ResourceError, match="no Ray session is open"):
        session.session_description()


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_nested_call_joins_and_leaves_open() -> None:
    import ray

    with session.ray_session(RayOptions(address="nowhere:1")) as inner:
        assert inner.where == "open"
    assert ray.is_initialized()
    result = session.session_description()
    assert result["ray"] == ray.__version__
    assert result["resources"]["CPU"] == 2.0
    assert result["resources"]["object_store_memory"] == 300 * MIB
    assert [node["CPU"] for node in result["nodes"]] == [2.0]
    assert result["job"] is None
    assert os.environ["RAY_AUTH_TOKEN"] not in json.dumps(result)


LIFE = """
import json, os, signal, sys, time
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session, session_description

def handler(*_): ...
signal.signal(signal.SIGTERM, handler)
assert "ray" not in sys.modules
with ray_session(RayOptions(address="local", cpus=1, object_store_mb=100, dashboard=True)) as opened:
    import ray
    token = os.environ["RAY_AUTH_TOKEN"]
    output = session_description()
    mode = os.environ["RAY_AUTH_MODE"]
    pids = [p.process.pid for ps in ray._private.worker._global_node.all_processes.values() for p in ps]
    @ray.remote
    def threads():
        return os.environ["OMP_NUM_THREADS"], os.environ["RAY_AUTH_TOKEN"]
    worker = ray.get(threads.remote())
def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
deadline = time.monotonic() + 30  # killed processes need a moment on a busy machine
while any(map(alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.1)
print(json.dumps({
    "where": opened.where, "dashboard": opened.dashboard, "same": output["dashboard"] == opened.dashboard,
    "mode": mode, "token": len(token), "worker": worker == ("1", token),
    "left": sorted(n for n in os.environ if n.startswith("RAY_AUTH")), "open": ray.is_initialized(),
    "handler": signal.getsignal(signal.SIGTERM) is handler,
    "processes": len(pids), "alive": sum(map(alive, pids)),
}))
"""


@pytest.mark.cluster
def test_life_of_a_local_session(tmp_path: Path, root: Path) -> None:
    """Fresh token, dashboard on loopback; afterwards no process, variable or file at home is left."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ.pop("OMP_NUM_THREADS", None)
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIFE],
        cwd=tmp_path,
        env=environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout.splitlines()[-1])
    assert output.pop("dashboard").startswith("http://127.0.0.1:")
    assert output.pop("processes") > 3
    assert output == {
        "where": "local",
        "same": True,
        "mode": "token",
        "token": 64,
        "worker": True,
        "left": [],
        "open": False,
        "handler": True,
        "alive": 0,
    }
    assert list(home.iterdir()) == []
    assert "token authentication" not in done.stderr.lower()


def test_failed_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ValueError("no room\nand more")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(session, "_is_open", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = dict(os.environ)
    with (
        pytest.raises(ResourceError, match="Ray did not start: ValueError: no room") as caught,
        session.ray_session(),
    ):
        pass
    assert "doctor" in str(caught.value.fix)
    assert dict(os.environ) == before


@pytest.mark.parametrize("times", [1, 2])
def test_a_start_that_timed_out_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    import ray

    calls = []

    def start(**_: object) -> SimpleNamespace:
        calls.append(1)
        if len(calls) <= times:
            raise Exception("The current node timed out during startup.")
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(session, "_is_open", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if times == 1:
        with session.ray_session() as opened:
            assert opened.where == "local"
    else:
        with pytest.raises(ResourceError) as caught, session.ray_session():
            pass
        assert str(tmp_path / "ray" / "session_latest" / "logs") in str(caught.value.fix)
    assert len(calls) == 2
    assert "trying once more" in caplog.text
