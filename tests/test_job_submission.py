"""A private head with token authentication: jobs submitted to it, drivers connecting to it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ray_head import BIN, Head, free_ports, private_head, result_line

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A private head with two CPUs."""
    with private_head() as started:
        yield started


@pytest.mark.parametrize("token", ["", "wrong"])
def test_refused_without_the_token(head: Head, root: Path, token: str) -> None:
    command = [
        str(BIN / "ray"),
        "job",
        "submit",
        f"--address=http://127.0.0.1:{head.dashboard}",
        "--",
        "true",
    ]
    environ = head.environ(token or None)
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "authentication" in (done.stdout + done.stderr).lower()
    # The same without Ray's own client.
    request = urllib.request.Request(f"http://127.0.0.1:{head.dashboard}/api/jobs/")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code in (401, 403)


LOOK = """
import json, os, pathlib
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session, session_description

with ray_session(RayOptions(address="local")) as opened:
    import ray
    @ray.remote
    def look():
        import equipoise.api, equipoise.platform.registry as registry
        return registry.__file__, os.environ["OMP_NUM_THREADS"], ray.get_runtime_context().get_node_id()
    package, threads, node = ray.get(look.remote())
    output = session_description()
files = [p for p in pathlib.Path(".").rglob("*") if p.is_file() and not p.is_symlink()]
print("LOOKED " + json.dumps({
    "where": opened.where, "package": package, "threads": threads, "cwd": os.getcwd(),
    "nodes": len(output["nodes"]), "job": output["job"], "top": sorted(os.listdir(".")),
    "bytes": sum(p.stat().st_size for p in files),
}))
"""


def test_job_brings_its_code_and_no_data(head: Head, root: Path, tmp_path: Path) -> None:
    """The driver joins the job's cluster though it asks for a local Ray; workers run the submitted code."""
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    done = head.submit(root, "python", str(script))
    assert done.returncode == 0, done.stdout + done.stderr
    output = json.loads(
        next(li for li in done.stdout.splitlines() if "LOOKED " in li).partition("LOOKED ")[2]
    )
    assert output["where"] == "job"
    assert output["nodes"] == 1
    assert output["job"].startswith("raysubmit_")
    assert output["threads"] == "1"
    assert output["package"] == f"{output['cwd']}/.src/equipoise/platform/registry.py"
    assert str(head.folder) in output["cwd"], "the copy that the head unpacked, not the checkout"
    assert {".src", "platform", "pyproject.toml"} <= set(output["top"])
    assert not {".git", ".venv", "runs", "demo", "dist", "build"} & set(output["top"])
    assert output["bytes"] < 20e6


MODULE = """
import os, ray
import equipoise, equipoise.api
from equipoise.platform import registry

@ray.remote
def look():
    import equipoise.api, equipoise.platform.registry as registry
    return equipoise.api.__file__, registry.__file__
files = [*ray.get(look.remote()), equipoise.api.__file__, registry.__file__]
print("LOOKED " + equipoise.__version__ + " " + " ".join(files))
"""


def test_package_travels_as_a_module(head: Head, root: Path, tmp_path: Path) -> None:
    """``py_modules`` ships the package with what its links point to."""
    import equipoise

    script = tmp_path / "look.py"
    script.write_text(MODULE)
    shipped = json.dumps({"py_modules": [".src/equipoise"]})
    done = head.submit(root, "python", str(script), runtime_env=shipped)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "LOOKED " in line).partition("LOOKED ")[2]
    version, *files = line.split()
    assert version == equipoise.__version__
    assert len(files) == 4
    for file in files:
        assert str(head.folder) in file, "the copy that the head unpacked"
        assert "py_modules" in file


@pytest.fixture(scope="module")
def tiny(head: Head, root: Path) -> Path:
    """The tiny study, written by a job, outside the checkout."""
    out = head.folder / "tiny"
    command = ["python", "-m", "equipoise.jobs.synthesize", "--preset", "tiny", "--out", str(out)]
    done = head.submit(root, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert result_line(done.stdout)["status"] == "ok"
    return out / "study.yaml"


def test_study_runs_as_a_job(head: Head, root: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = head.submit(root, "python", "-m", "equipoise.jobs.run", "--config", str(tiny), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert result_line(done.stdout)["status"] == "ok"
    assert (out / "report.html").stat().st_size > 10_000
    assert json.loads((out / "status.json").read_text())


def test_broken_study_fails_the_job(head: Head, root: Path, tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "study.yaml"
    broken.write_text(tiny.read_text() + "\nsplit: {scheme: kfold}\n")
    done = head.submit(root, "python", "-m", "equipoise.jobs.run", "--config", str(broken))
    assert done.returncode == 1
    assert "failed" in done.stdout
    output = result_line(done.stdout)
    assert (output["status"], output["code"]) == ("failed", 2)
    assert "not valid, 1 problem" in output["error"]
    assert "splits" in done.stdout, "the nearest section is named"


CONNECT = """
import json, os, sys
from equipoise.platform.errors import ResourceError
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session

def attempt(address, token):
    os.environ.pop("RAY_AUTH_TOKEN", None)
    if token:
        os.environ["RAY_AUTH_TOKEN"] = token
    try:
        with ray_session(RayOptions(address=address)) as opened:
            import ray
            @ray.remote
            def package():
                import equipoise.platform.registry as registry
                return registry.__file__
            file = ray.get(package.remote())
            return {"where": opened.where, "dashboard": opened.dashboard, "package": file}
    except ResourceError as error:
        return {"what": error.what, "where": error.where, "fix": error.fix}

good, gcs, client, closed = sys.argv[1:]
results = {"good": attempt(gcs, good), "wrong": attempt(gcs, "wrong"), "none": attempt(gcs, None)}
results["closed"] = attempt(closed, good)
for _ in range(3):  # Ray gives the process that serves a client 30 s to start; a busy machine misses that
    results["client"] = attempt("ray://" + client, good)
    if "package" in results["client"]:
        break
os.environ["RAY_ADDRESS"] = gcs
results["auto"] = attempt("auto", good)
del os.environ["RAY_ADDRESS"]

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
with ray_session(RayOptions(address=gcs)):  # pretend that the cluster runs another Ray
    key, space = b"CLUSTER_METADATA", b"cluster"
    before = _internal_kv_get(key, namespace=space)
    _internal_kv_put(key, json.dumps(json.loads(before) | {"ray_version": "2.59.0"}), namespace=space)
results["version"] = attempt(gcs, good)
from ray._raylet import GcsClient
import equipoise.platform.cluster.tokens as tokens
tokens.refresh()
GcsClient(address=gcs).internal_kv_put(key, before, True, space)
results["again"] = attempt(gcs, good)
print(json.dumps(results))
"""


def test_drivers_connect_or_are_told_why_not(head: Head, root: Path, tmp_path: Path) -> None:
    [closed] = free_ports(1)
    addresses = [f"127.0.0.1:{port}" for port in (head.port, head.client, closed)]
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, head.token, *addresses],
        cwd=tmp_path,
        env=head.environ(head.token),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    gcs = addresses[0]
    installed = str(root / ".src" / "equipoise" / "platform" / "registry.py")
    dashboard = f"http://127.0.0.1:{head.dashboard}"
    for name in ("good", "auto", "again"):
        assert results[name] == {"where": "cluster", "dashboard": dashboard, "package": installed}
    assert results["wrong"]["what"] == "the cluster refuses the token"
    assert results["none"]["what"] == "no token for this cluster"
    assert results["closed"]["what"].startswith("the cluster does not answer (ConnectionRefusedError")
    assert "another Ray or Python" in results["version"]["what"]
    assert "2.59.0" in results["version"]["what"]
    for name in ("wrong", "none", "version"):
        assert results[name]["where"] == f"Ray at {gcs}"
        assert results[name]["fix"]
    # Over ray:// the code travels: the worker runs the copy that the cluster unpacked.
    assert results["client"].get("package"), results["client"]
    assert results["client"]["package"].startswith(f"{head.folder}/")
