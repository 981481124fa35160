"""``equipoise submit``: what is sent, what comes back, and what SLURM is asked for; the cluster is a private head."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from tests.ray_head import BIN, Head, private_head, result_line

from equipoise.jobs.submit import command_of
from equipoise.platform.cluster.slurm_scripts import Allocation, Batch, FoldArray, batch_script, write_scripts
from equipoise.platform.cluster.submission import _Log, ended, package, placement_of
from equipoise.platform.errors import StudyError

STUDY = """
version: 1
name: msi
cohorts: [{name: A, role: develop, clinical: a.csv, slides: b.csv, slides_dir: s}]
tasks: [{name: MSI, type: binary, column: MSI, positive: MSI, main: true}]
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def test_paths_become_absolute_and_the_run_folder_is_named(study: Path) -> None:
    command, out = command_of("run", ["-c", "study.yaml", "-s", "seed=3", "--smoke"])
    assert out == f"{study}/runs/msi"
    assert command.entrypoint == (
        f"python -m equipoise.jobs.run -c {study}/study.yaml -s seed=3 --smoke -o {study}/runs/msi"
    )
    command, out = command_of("search", ["--config=study.yaml", "--set", "name=other"])
    assert command.entrypoint.endswith(f"--config={study}/study.yaml --set name=other -o {study}/runs/other")
    command, out = command_of("synthesize", ["--preset", "tiny", "--out", "x y"])
    assert out is None
    assert command.entrypoint == f"python -m equipoise.jobs.synthesize --preset tiny --out '{study}/x y'"
    (study / "rna.csv").touch()
    command, _ = command_of(
        "predict", ["--model", "absent", "--tables", "rna=rna.csv", "--tables=cnv=rna.csv"]
    )
    assert command.arguments == (
        "--model", "absent", "--tables", f"rna={study}/rna.csv", f"--tables=cnv={study}/rna.csv",
    )  # fmt: skip
    assert command_of("import", ["."])[0].entrypoint == f"python -m equipoise.jobs.import_ {study}"


def test_a_broken_study_is_not_sent(study: Path) -> None:
    (study / "study.yaml").write_text(STUDY + "split: {}\n")
    with pytest.raises(StudyError, match="splits"):
        command_of("run", [])
    with pytest.raises(StudyError, match="Did you mean 'train'"):
        command_of("tran", [])


@pytest.mark.parametrize("pair", ["GPU", "=1", "GPU=-1", "GPU=much", "GPU=inf", "GPU=nan"])
def test_resources_of_the_driver_are_numbers(pair: str) -> None:
    with pytest.raises(StudyError, match="NAME=AMOUNT"):
        placement_of([pair], [])


def test_the_package_that_travels_is_this_one() -> None:
    assert (package() / "jobs" / "run.py").is_file()
    assert package().name == "equipoise"


def test_a_log_that_comes_again_is_written_once() -> None:
    written: list[str] = []
    seen = _Log(written.append)
    for piece in ("one\ntw", "o\n"):
        seen.piece(piece)
    seen.restart()  # the connection was lost
    for piece in ("one\n", "two\nthree\n"):
        seen.piece(piece)
    seen.all('one\ntwo\nthree\nEQUIPOISE-RESULT {"code": 3}\n')
    assert "".join(written) == 'one\ntwo\nthree\nEQUIPOISE-RESULT {"code": 3}\n'
    assert seen.result == 'EQUIPOISE-RESULT {"code": 3}'


@pytest.mark.parametrize(
    ("status", "code", "result", "expected"),
    [
        ("SUCCEEDED", 0, "EQUIPOISE-RESULT {}", (0, False)),
        ("FAILED", 3, "EQUIPOISE-RESULT {}", (3, False)),
        ("FAILED", 1, None, (1, True)),  # a driver that says nothing
        ("FAILED", -9, None, (1, True)),
        ("FAILED", None, None, (1, True)),
        ("STOPPED", None, None, (1, False)),
    ],
)
def test_what_a_job_ended_with(
    status: str, code: int | None, result: str | None, expected: tuple[int, bool]
) -> None:
    job = SimpleNamespace(
        submission_id="x", status=status, driver_exit_code=code, message="m\nn", error_type=None
    )
    how = ended(job, result)  # type: ignore[arg-type]
    assert (how.code, how.died) == expected


class TestBatchScript:
    def script(self, **wanted: Any) -> str:
        command = ["equipoise", "run", "-c", "/a b/study.yaml"]
        return batch_script("msi", command, Allocation(**wanted), "/l/%j.log")

    @pytest.mark.parametrize("nodes", [1, 2, 8])
    def test_bash_reads_it(self, nodes: int) -> None:
        text = self.script(
            nodes=nodes, gpus=2, time="1-12:00:00", memory="64G", options=["qos=long"], setup=["true"]
        )
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
        assert "#SBATCH --gpus-per-node=2\n" in text
        assert "#SBATCH --qos=long\n" in text
        assert "'/a b/study.yaml'" in text

    def test_several_nodes_are_exclusive_and_have_a_token_that_is_no_argument(self) -> None:
        text = self.script(nodes=2)
        assert "#SBATCH --exclusive\n" in text
        assert "#SBATCH --requeue\n" in text
        joined = text.replace("\\\n", "")
        [line] = [line for line in joined.splitlines() if line.startswith("srun ray symmetric-run")]
        assert "TOKEN" not in line
        assert line.rstrip().endswith('--address "$head"'), "the command does not find the cluster by itself"
        assert not re.search(r"\s-K|--kill-on-bad-exit\s*=?1", line)
        [drawing] = [line for line in text.splitlines() if line.startswith("RAY_AUTH_TOKEN=")]
        shell = ["bash", "-c", f"{drawing}; echo $RAY_AUTH_TOKEN"]
        tokens = {subprocess.run(shell, capture_output=True, text=True).stdout.strip() for _ in range(2)}
        assert len(tokens) == 2
        assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)

    def test_one_node_needs_no_ray_of_its_own(self) -> None:
        text = self.script(nodes=1)
        assert "symmetric-run" not in text
        assert "--exclusive" not in text
        assert "--address local" in text

    def test_a_task_of_an_array_trains_one_fold_in_a_run_folder_of_its_own(self, tmp_path: Path) -> None:
        array = FoldArray(["0-0", "0-1", "1-0"], tmp_path / "r u n")
        text = batch_script("f", ["echo", "train"], Allocation(), "/l/%A_%a.log", array)
        assert "#SBATCH --array=0-2\n" in text
        (tmp_path / "srun").write_text('#!/bin/bash\nshift 2\nexec "$@"\n')
        (tmp_path / "srun").chmod(0o755)
        environ = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "4"}
        place = f"export PATH={tmp_path}:$PATH\n"
        head, line, rest = text.partition("set -uo pipefail\n")
        said = subprocess.run(
            ["bash"],
            input=head + line + place + rest,
            text=True,
            capture_output=True,
            env=environ,
            check=True,
        ).stdout
        assert said == f"train --out {tmp_path}/r u n/1-0 --fold 1-0 --address local --max-cpus 4\n"

    def test_scripts_that_wait_for_each_other_have_one_to_call(self, tmp_path: Path) -> None:
        first = Batch(tmp_path / "a b" / "folds.sbatch", "#!/bin/bash\n")
        second = Batch(tmp_path / "a b" / "run.sbatch", "#!/bin/bash\n", after="afterany")
        assert write_scripts([first]) == first.script
        by_hand = write_scripts([first, second])
        (tmp_path / "sbatch").write_text('#!/bin/bash\necho "$@" >> "$0.calls"; echo "17;cluster"\n')
        (tmp_path / "sbatch").chmod(0o755)
        environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        said = subprocess.run([by_hand], env=environ, capture_output=True, text=True, check=True).stdout
        assert said == "17\n17\n"
        assert (tmp_path / "sbatch.calls").read_text().splitlines() == [
            f"--parsable {first.script}",
            f"--parsable --dependency=afterany:17 --kill-on-invalid-dep=yes {second.script}",
        ]

    @pytest.mark.parametrize(
        "wanted",
        [
            {"nodes": 9}, {"nodes": 0}, {"time": "1h; rm"}, {"time": "tomorrow"}, {"memory": "much"},
            {"options": ["a\nb"]}, {"options": ["nodes=3"]},
        ],
    )  # fmt: skip
    def test_what_cannot_be_asked_for(self, wanted: dict[str, object]) -> None:
        with pytest.raises(StudyError):
            self.script(**wanted)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A private head with two CPUs."""
    with private_head() as started:
        yield started


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny study."""
    out = tmp_path_factory.mktemp("submitted") / "tiny"
    subprocess.run(
        [BIN / "python", "-m", "equipoise.jobs.synthesize", "--preset", "tiny", "--out", str(out)],
        check=True,
        capture_output=True,
    )
    return out


def equipoise_submit(
    head: Head, folder: Path, *words: str, token: str | None = "right"
) -> "subprocess.CompletedProcess[str]":
    """The command, from a folder that is no checkout."""
    return subprocess.run(
        [
            BIN / "python",
            "-m",
            "equipoise.jobs.submit",
            *words,
            "--address",
            f"http://127.0.0.1:{head.dashboard}",
        ],
        cwd=folder,
        env=head.environ(head.token if token == "right" else token),
        capture_output=True,
        text=True,
        timeout=500,
    )


def driver_of(out: Path, within: float) -> int:
    """The process of the driver that works on a run folder."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path("/proc", pid, "cmdline").read_text(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[1:3] == ["-m", "equipoise.jobs.run"] and str(out) in words:
                return int(pid)
        time.sleep(0.05)
    raise AssertionError(f"no driver works on {out}")


@pytest.mark.slow
@pytest.mark.cluster
def test_submitted_from_any_folder_followed_and_killed(head: Head, tiny: Path, tmp_path: Path) -> None:
    """Refused without the token; the exit code is the job's; a driver that is killed is sent again and resumes."""
    refused = equipoise_submit(head, tmp_path, "run", "-c", str(tiny / "study.yaml"), token="wrong")
    assert result_line(refused.stderr)["code"] == refused.returncode == 4
    assert "refuses the token" in refused.stderr

    whole = equipoise_submit(head, tiny, "run", "-o", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    said = result_line(whole.stderr)
    assert (said["job"], said["of"], said["code"]) == ("submit", "run", 0)
    assert whole.stdout.strip() == said["submission"]
    assert "step=train" in whole.stderr, "the log of the job"

    known = equipoise_submit(head, tmp_path, "status", said["submission"])
    assert known.returncode == 0
    assert "succeeded" in known.stdout
    assert equipoise_submit(head, tmp_path, "stop", "nobody").returncode == 2

    bad = equipoise_submit(
        head, tiny, "run", "-o", str(tmp_path / "bad"), "-s", "cohorts.0.clinical=absent.csv"
    )
    assert bad.returncode == 3, bad.stderr
    assert "absent.csv" in bad.stderr

    out = tmp_path / "killed"
    process = subprocess.Popen(
        [BIN / "python", "-m", "equipoise.jobs.submit", "run", "-c", str(tiny / "study.yaml"), "-o", str(out),
         "--address", f"http://127.0.0.1:{head.dashboard}"],
        cwd=tmp_path, env=head.environ(head.token), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    driver = driver_of(out, 120)
    while not (out / "manifest").exists():  # at work, and not yet done
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(driver, signal.SIGKILL)
    _, log = process.communicate(timeout=400)
    assert process.returncode == 0, log
    assert "the driver died" in log
    assert "submitting it again" in log
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(predictions(tmp_path / name)) for name in ("whole", "killed"))
    )


def predictions(run: Path) -> Path:
    """The predictions table of a run."""
    [file] = (run / "evaluation").glob("predictions.parquet")
    return file


@pytest.mark.slow
@pytest.mark.cluster
def test_what_no_node_has_is_given_up(head: Head, tiny: Path, tmp_path: Path) -> None:
    asked = ["--driver-resource", "GPU=64", "--start-timeout", "4"]
    done = equipoise_submit(head, tiny, "validate", "-o", str(tmp_path / "run"), *asked)
    assert done.returncode == 4, done.stderr
    assert "found no place in 4 s and is cancelled; its driver asks for GPU=64.0" in done.stderr
