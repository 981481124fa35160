"""``equipoise submit --slurm`` on stand-ins for SLURM whose nodes are namespaces of their own network and processes.

What runs is the batch script that users get, ``ray symmetric-run`` and the job; only ``sbatch``, ``srun`` and the like
are stand-ins (``tests/slurm/bin``), and ``ray stop`` is written down instead of done. What they do not have is said in
``docs/clusters.md``: cgroups, time limits, preemption, modules.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from tests.ray_head import BIN, result_line

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = 2


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """Two nodes on a network of their own; the environment in which the stand-ins are found."""
    possible = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    if possible.returncode or shutil.which("ip") is None:
        pytest.skip("namespaces are refused here: " + possible.stderr.decode().strip())
    name = f"eq{os.getpid()}"
    with contextlib.ExitStack() as undo:
        room = Path(
            undo.enter_context(
                tempfile.TemporaryDirectory(prefix="eqs", dir="/tmp", ignore_cleanup_errors=True)
            )
        )
        for space in (f"{name}sw", *(f"{name}node{n}" for n in range(NODES))):
            ip("netns", "add", space)
            undo.callback(subprocess.run, ["ip", "netns", "del", space], capture_output=True)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", f"{name}sw", "link", "add", "br0", "type", "bridge")
        ip("-n", f"{name}sw", "link", "set", "br0", "up")
        for n in range(NODES):
            node, port = f"{name}node{n}", f"p{n}"
            ip("-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", f"{name}sw")
            ip("-n", f"{name}sw", "link", "set", port, "master", "br0", "up")
            ip("-n", node, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        stand_ins = Path(__file__).parents[1] / "slurm" / "bin"
        yield environ | {
            "PATH": f"{stand_ins}{os.pathsep}{environ['PATH']}",
            "HOME": str(room),
            "RAY_TMPDIR": str(room / "r"),
            "STAND_IN_ROOM": str(room),
            "STAND_IN_NAME": name,
            "STAND_IN_NODES": str(NODES),
            "STAND_IN_RAY": str(BIN / "ray"),
            "STAND_IN_BIN": str(stand_ins),
        }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny study, with the run of this machine in ``local``."""
    out = tmp_path_factory.mktemp("slurm") / "tiny"
    for words in (
        ["synthesize", "--preset", "tiny"],
        ["run", "-c", str(out / "study.yaml"), "--max-cpus", "2"],
    ):
        folder = out if words[0] == "synthesize" else out / "local"
        module = [sys.executable, "-m", f"equipoise.jobs.{words[0]}", *words[1:], "--out", str(folder)]
        subprocess.run(module, check=True, capture_output=True)
    return out


def submitted(environ: dict[str, str], folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "equipoise.jobs.submit", *words, "--slurm", "--cpus-per-node", "1"]
    command += [
        "--setup",
        'export PATH="$STAND_IN_BIN:$PATH"',
        "--setup",
        "export RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1",
    ]
    return subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def predictions(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "evaluation" / "predictions.parquet")


def test_two_nodes_give_what_this_machine_gives_and_a_killed_job_resumes(
    nodes: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["run", "-c", str(tiny / "study.yaml"), "-o", str(out), "-s", f"features.store={tmp_path}/store"]
    first = submitted(nodes, tmp_path, *words, "--nodes", "2", "--detach")
    number, log = first.communicate(timeout=120)
    assert first.returncode == 0, log
    log_file = out / "slurm" / f"run-{number.strip()}.log"
    deadline = time.monotonic() + 300
    while not (out / "manifest").exists():  # the driver is at work
        assert time.monotonic() < deadline, log_file.read_text()
        time.sleep(0.1)
    # The allocation is lost: every process of the job goes.
    stop = submitted(nodes, tmp_path, "stop", number.strip())
    assert stop.wait(60) == 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if nodes["STAND_IN_NAME"] in Path("/proc", pid, "cmdline").read_text(errors="replace"):
                os.kill(int(pid), signal.SIGKILL)
    again = submitted(nodes, tmp_path, *words, "--nodes", "2")
    _, log = again.communicate(timeout=500)
    assert again.returncode == 0, log + log_file.read_text()
    assert result_line(log)["code"] == 0
    whole = log_file.read_text() + log
    assert "head: node0 10.77.0.1:2" in whole
    assert len(Path(nodes["STAND_IN_ROOM"], "stopped").read_text().split()) >= 2, "every node ends its Ray"
    pd.testing.assert_frame_equal(predictions(out), predictions(tiny / "local"))
    assert "AUTH_TOKEN=" not in whole.replace("RAY_AUTH_TOKEN=$", "")


def test_folds_as_an_array_give_what_this_machine_gives(
    nodes: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    """Extraction, a task for each fold, and a job that takes the folds; one of them it has to train itself."""
    out = tmp_path / "run"
    words = ["run", "-c", str(tiny / "study.yaml"), "-o", str(out), "-s", f"features.store={tmp_path}/store"]
    spoilt = '[ "${SLURM_ARRAY_TASK_ID:-0}" != 1 ] || exit 7'  # the second task ends before it begins
    job = submitted(nodes, tmp_path, *words, "--array", "--setup", spoilt)
    numbers, log = job.communicate(timeout=500)
    assert job.returncode == 0, log
    _, folds, last = numbers.split()
    record = json.loads(Path(nodes["STAND_IN_ROOM"], f"job-{folds}.json").read_text())
    assert record["codes"][:2] == [0, 7]
    assert set(record["codes"][2:]) <= {0}
    names = sorted(path.name for path in (out / "folds").iterdir() if not path.name.startswith("."))
    said = (out / "slurm" / f"run-{last}.log").read_text()
    assert [name for name in names if f"fold={name} taken from" not in said] == [names[1]]
    assert f"{out}/slurm/folds/{names[1]} holds no trained fold" in said
    assert (out / "slurm" / f"folds-{folds}_0.log").exists()
    pd.testing.assert_frame_equal(predictions(out), predictions(tiny / "local"))
    for name in names:
        theirs = (tiny / "local" / "folds" / name / "preds.parquet").read_bytes()
        assert (out / "folds" / name / "preds.parquet").read_bytes() == theirs


def test_the_exit_code_is_that_of_the_job(nodes: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    """One node needs no ``symmetric-run``: the job brings its own Ray."""
    words = ["validate", "-c", str(tiny / "study.yaml"), "-o", str(tmp_path / "run")]
    failed = submitted(nodes, tmp_path, *words, "-s", "cohorts.0.clinical=absent.csv")
    _, log = failed.communicate(timeout=120)
    assert failed.returncode == 3, log
    assert "absent.csv" in log
    more = submitted(nodes, tmp_path, *words, "--nodes", "3")
    _, log = more.communicate(timeout=60)
    assert more.returncode == 4
    assert "node configuration is not available" in log
