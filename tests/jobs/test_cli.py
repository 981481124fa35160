"""Both entry points, light imports, exit codes, the result line."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.jobs.cli import JOBS, module_of

HEAVY = ("torch", "ray", "sklearn", "lifelines", "scanpy")
STUDY = """\
version: 1
name: small
cohorts: [{name: A, role: develop, clinical: a.csv}]
tasks: [{name: MSI, type: binary, column: MSI, positive: MSI-H}]
"""


def call(
    *arguments: str, cwd: Path | None = None, module: str = "equipoise.jobs.cli"
) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=cwd, capture_output=True, text=True)


def result_of(output: str) -> dict:
    last = output.strip().splitlines()[-1]
    assert last.startswith("EQUIPOISE-RESULT ")
    return json.loads(last.removeprefix("EQUIPOISE-RESULT "))


def test_help_lists_every_job() -> None:
    shown = call("--help").stdout
    assert all(name in shown for name in JOBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ls"],
        ["ls", "models"],
        ["init", "-o", "new.yaml"],
        ["validate", "--config-only", "-c", "s.yaml"],
    ],
)
def test_light_commands_leave_heavy_packages_alone(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(STUDY)
    code = (
        "import sys, json\n"
        "from equipoise.jobs.cli import main\n"
        f"sys.argv = ['equipoise', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"print(json.dumps([code, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [0, []], done.stdout + done.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["ls", "splits"], 0), (["ls", "nothing"], 2)])
def test_a_library_that_aborts_in_its_destructor_changes_no_exit_code(
    arguments: list[str], code: int
) -> None:
    program = (
        "import atexit, ctypes, sys\n"
        "from equipoise.jobs.cli import main\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.__cxa_atexit(libc.abort, None, None)\n"  # as the destructor of a static C++ object
        f"sys.argv = ['equipoise', *{arguments!r}]\n"
        "import equipoise.jobs.ls\n"
        "run = equipoise.jobs.cli._app\n"
        "equipoise.jobs.cli._app = lambda jobs: (atexit.register(print, 'cleaned up'), run(jobs))[1]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("cleaned up\n"), "clean-up of Python libraries still runs"


@pytest.mark.parametrize("name", sorted(JOBS))
def test_every_job_has_both_doors(name: str) -> None:
    from importlib import import_module

    module = import_module(module_of(name))
    assert callable(module.command)
    assert f'run_module("{name}")' in Path(module.__file__).read_text()


def test_both_doors_give_the_same_answer(tmp_path: Path) -> None:
    first = call("ls", "splits", cwd=tmp_path)
    second = call("splits", cwd=tmp_path, module="equipoise.jobs.ls")
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout
    assert result_of(first.stderr)["status"] == "ok"


def test_ls_says_which_parameters_are_required_and_today_s_name_of_a_kind(tmp_path: Path) -> None:
    said = call("ls", "weightings", cwd=tmp_path).stdout
    assert "weights (required): task: weight" in said
    assert "Undefined" not in said
    earlier = call("ls", "site_rules", cwd=tmp_path)
    assert earlier.stdout.startswith("server_aggregations (")
    assert "site_rules are now called server_aggregations" in earlier.stderr


def test_study_errors_exit_with_2_and_say_so_in_the_result(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(STUDY.replace("role: develop", "role: develope"))
    done = call("validate", "-c", "s.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'develop'?" in done.stderr
    assert "Traceback" not in done.stderr
    result = result_of(done.stderr)
    assert (result["status"], result["code"], result["job"]) == ("failed", 2, "validate")


def test_data_errors_exit_with_3(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(STUDY)
    done = call("validate", "-c", "s.yaml", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "a.csv" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["validate", "--no-such-option"], "No such option: --no-such-option"),
        (["validate", "--seed", "much"], "Invalid value for '--seed'"),
        (["no-such-job"], "No such command 'no-such-job'."),
        (["leaderboard"], "Missing argument 'RUN...'."),
    ],
)
def test_usage_errors_end_like_other_errors(arguments: list[str], reason: str) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    result = result_of(done.stderr)
    assert (result["job"], result["status"], result["code"]) == (arguments[0], "failed", 2)
    assert reason in result["error"]


def test_standard_output_is_the_answer_alone() -> None:
    done = call("validate", "--json-schema")
    assert json.loads(done.stdout)["title"] == "Study"
    assert result_of(done.stderr)["status"] == "ok"


def test_init_writes_a_valid_study_and_does_not_overwrite(tmp_path: Path) -> None:
    for template in ("biomarker", "survival"):
        assert call("init", "--template", template, "-o", f"{template}.yaml", cwd=tmp_path).returncode == 0
        checked = call("validate", "--config-only", "-c", f"{template}.yaml", cwd=tmp_path)
        assert checked.returncode == 0, checked.stderr
    again = call("init", "-o", "biomarker.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "not overwritten" in again.stderr


def test_init_guesses_columns_from_tables(tmp_path: Path) -> None:
    tables = tmp_path / "hospital"
    (tables / "slides").mkdir(parents=True)
    (tables / "slides" / "p1.svs").touch()
    rows = "\n".join(
        f"p{i},{'MSI-H' if i % 4 == 0 else 'MSS'},{i * 1.5},{i * 3},{i % 2}" for i in range(1, 21)
    )
    (tables / "clini.csv").write_text(f"PATIENT,MSI status,LISS,OS_MONTHS,OS_EVENT\n{rows}\n")
    (tables / "slide_table.csv").write_text(
        "PATIENT,FILENAME\n" + "".join(f"p{i},p{i}.svs\n" for i in range(1, 21))
    )
    assert call("init", "--tables", "hospital", "-o", "study.yaml", cwd=tmp_path).returncode == 0
    from equipoise.platform.run.loading import load_study

    study = load_study(tmp_path / "study.yaml")
    assert study.main_task.column == "MSI status"
    assert study.main_task.positive == ["MSI-H"]
    assert [task.name for task in study.tasks] == ["MSI_status", "LISS"]
    assert study.cohorts[0].slides_dir == "hospital/slides"
    assert "column: OS_MONTHS, unit: months" in (tmp_path / "study.yaml").read_text()


def test_status_names_a_command_that_goes_on_and_the_steps_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        STUDY + "model: {kind: clinical}\ntables: {clinical: [{column: AGE, type: number}]}\n"
    )
    rows = "".join(f"p{i},{'MSI-H' if i % 3 == 0 else 'MSS'},{40 + i}\n" for i in range(24))
    (tmp_path / "a.csv").write_text("PATIENT,MSI,AGE\n" + rows)
    smoke = ("-s", "training.lr=0.01", "--smoke")
    done = call("validate", "-c", "s.yaml", "-o", "a run", *smoke, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = call("status", str(tmp_path / "a run")).stdout
    assert [line.split()[0] for line in said.splitlines()[1:6]] == [
        "validate", "extract", "train", "evaluate", "report",
    ]  # fmt: skip
    command = shlex.split(said.partition("next: ")[2].partition("   (")[0])
    assert command[:2] == ["equipoise", "run"]
    planned = call(*command[1:], "--dry-run", cwd=tmp_path.parent)
    assert planned.returncode == 0, planned.stderr
    assert "training: 2 folds x at most 1 epochs, at most about 0:00:0" in planned.stdout
    assert planned.stdout.endswith("steps: validate → extract → train → evaluate → report\n")


def test_status_of_something_else(tmp_path: Path) -> None:
    done = call("status", str(tmp_path))
    assert done.returncode == 2
    assert "not a run folder" in done.stderr
