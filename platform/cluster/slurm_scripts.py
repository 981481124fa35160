"""Batch scripts of SLURM for jobs of Equipoise.

On one node a job brings its own Ray. On several, ``ray symmetric-run`` starts one Ray over the nodes of the
allocation: every node runs the same line, the first becomes the head and runs the command when all have joined.

What the script takes care of:

* ``ray symmetric-run`` ends with ``ray stop`` on every node, which ends *every* Ray of the user there: nodes are
  exclusive.
* It starts neither where another Ray runs nor before all nodes are there, which takes minutes on a busy file system:
  it waits for them for ten minutes.
* The exit code of ``srun`` is the highest of all nodes, and a worker that could not start exits with 0: how the job
  ended is read from ``status.json`` of the run folder.
* A token is drawn for each job and passes through the environment, not through arguments, which every user can see.
* The port follows from the number of the job, so that two jobs on one network do not meet.
* The allocation may be taken back (preemption): the job is requeued, and the same command resumes.

A cross-validation may be an array, one task for each fold (:class:`FoldArray`). Tasks are jobs of their own that may
run at the same time, and a run folder has one writer: each has a run folder of its own, and a last job, which waits for
all of them, takes their folds into the run (:mod:`equipoise.platform.run.taken_folds`). A fold that its task could not
train is tried again there, so that its error is that of the run. Trials of a search are no array: each depends on those
before it, and stopping early compares them while they run; ``--nodes`` spreads them over one Ray.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.datasets.atomic_io import write_text
from equipoise.platform.errors import StudyError

MAX_NODES = 8
#: Seconds that ``ray symmetric-run`` waits for the nodes of the allocation.
NODES_TIMEOUT_S = 600
_NAME = re.compile(r"[\w.:/@%+,=-]+")
#: Forms of times and of memory that sbatch documents, with what to write.
_FORMS = {
    "--time": (re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"), "12:00:00 or 2-00:00:00"),
    "--mem": (re.compile(r"\d+[KMGT]?"), "64G"),
}
#: Options that the script sets itself.
_OURS = frozenset(
    ("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "requeue", "open-mode", "output",
     "time", "mem", "partition", "account", "array")
)  # fmt: skip


@dataclass(frozen=True)
class Allocation:
    """What a job asks SLURM for.

    Parameters
    ----------
    nodes
        1 to 8.
    cpus, gpus
        Of each node.
    time, memory, partition, account
        As ``sbatch`` takes them; None leaves the site's default.
    options
        Further options of ``sbatch``, ``name=value`` or ``name``.
    setup
        Lines that the script runs first on the node that runs it (``module load …``, ``source …/activate``).
    """

    nodes: int = 1
    cpus: int = 8
    gpus: int = 0
    time: str | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    options: Sequence[str] = field(default=())
    setup: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAX_NODES:
            raise StudyError(f"{self.nodes} nodes", where="--nodes", fix=f"ask for 1 to {MAX_NODES}")
        values = (self.time, self.memory, self.partition, self.account, *self.options)
        for value in values:
            if value is not None and not _NAME.fullmatch(value):
                raise StudyError(
                    f"{value!r} is no value of an sbatch option",
                    where="--slurm",
                    fix="use letters, digits and . : / @ % + , = - _",
                )
        for option, value in (("--time", self.time), ("--mem", self.memory)):
            form, example = _FORMS[option]
            if value is not None and not form.fullmatch(value):
                raise StudyError(
                    f"{value!r} is none that sbatch takes", where=option, fix=f"write for example {example}"
                )
        if ours := sorted(name for option in self.options if (name := option.partition("=")[0]) in _OURS):
            raise StudyError(
                f"the script sets {ours[0]} itself",
                where="--sbatch",
                fix="use the option of `equipoise submit`",
            )


@dataclass(frozen=True)
class FoldArray:
    """The folds of a cross-validation as the tasks of an array.

    Parameters
    ----------
    folds
        Their names, ``0-0`` and so on.
    root
        Each task's run folder is ``root/<fold>``.
    """

    folds: Sequence[str]
    root: Path

    @property
    def runs(self) -> list[Path]:
        """The run folders of all tasks."""
        return [self.root / name for name in self.folds]


@dataclass(frozen=True)
class Batch:
    """A batch script, and what it waits for.

    Parameters
    ----------
    script
        Where it is written.
    text
        What :func:`batch_script` gives.
    after
        ``afterok`` or ``afterany`` of the one before it: it starts when that has ended well, or in any way.
    """

    script: Path
    text: str
    after: str = ""


def batch_script(
    name: str,
    command: Sequence[str],
    allocation: Allocation,
    log_file: str,
    array: FoldArray | None = None,
) -> str:
    """The text of a batch script.

    Parameters
    ----------
    name
        Of the job, as ``squeue`` shows it.
    command
        What runs: program and arguments without an address of Ray; paths are absolute and on storage of all nodes.
    allocation
        What it asks for.
    log_file
        Where its output goes; ``%j`` is the number of the job, ``%A_%a`` that of the array and of the task.
    array
        Folds, each of which a task trains with this command and options of its own.

    >>> print(batch_script("msi", ["equipoise", "run"], Allocation(), "/runs/%j.log").splitlines()[-1])
    srun --nodes=1 --ntasks=1 equipoise run --address local --max-cpus "$SLURM_CPUS_PER_TASK"
    """
    lines = ["#!/bin/bash", "# Written by `equipoise submit --slurm`. Submitting it again resumes the run."]
    lines += [f"#SBATCH --{option}" for option in _sbatch_options(name, allocation, log_file)]
    lines += [f"#SBATCH --array=0-{len(array.folds) - 1}"] if array else []
    lines += [
        "",
        "set -uo pipefail",
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        *allocation.setup,
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
    ]
    words = shlex.join(command)
    if array:
        lines += [f"folds=({shlex.join(array.folds)})", 'fold="${folds[$SLURM_ARRAY_TASK_ID]}"']
        words += f' --out {shlex.quote(str(array.root))}/"$fold" --fold "$fold"'
    if allocation.nodes == 1:
        own = f'{words} --address local --max-cpus "$SLURM_CPUS_PER_TASK"'
        return "\n".join([*lines, "", f"srun --nodes=1 --ntasks=1 {own}"]) + "\n"
    lines += [
        f"export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={NODES_TIMEOUT_S} RAY_gcs_rpc_server_reconnect_timeout_s=20",
        "export RAY_AUTH_MODE=token",
        # The 256 bits never appear in an argument, a file or the log.
        "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
        "export RAY_AUTH_TOKEN",
        "",
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        # awk reads to the end: closing the pipe early would break srun's output.
        "ip=$(srun --nodes=1 --ntasks=1 --nodelist=\"${nodes[0]}\" hostname -I | awk 'NR==1{print $1}')",
        'head="$ip:$((20000 + SLURM_JOB_ID % 20000))"',
        'echo "head: ${nodes[0]} $head"',
        "",
        "# Only options that are valid on every node; no --kill-on-bad-exit, which would end the driver with a worker.",
        'srun ray symmetric-run --address "$head" --min-nodes "$SLURM_NNODES" --num-cpus "$SLURM_CPUS_PER_TASK" \\',
        f'    --disable-usage-stats -- {words} --address "$head"',
    ]
    return "\n".join(lines) + "\n"


def _sbatch_options(name: str, allocation: Allocation, log_file: str) -> list[str]:
    options = [
        f"job-name={name}",
        f"nodes={allocation.nodes}",
        "ntasks-per-node=1",
        f"cpus-per-task={allocation.cpus}",
    ]
    options += [f"gpus-per-node={allocation.gpus}"] if allocation.gpus else []
    options += ["exclusive"] if allocation.nodes > 1 else []
    options += ["requeue", "open-mode=append", f"output={log_file}"]
    for key, value in (
        ("time", allocation.time),
        ("mem", allocation.memory),
        ("partition", allocation.partition),
        ("account", allocation.account),
    ):
        options += [] if value is None else [f"{key}={value}"]
    return [*options, *allocation.options]


def write_scripts(batches: Sequence[Batch]) -> Path:
    """Write batch scripts, executable, and return what is to be called by hand; they hold paths, and no secret.

    Several have a ``submit.sh`` beside them, which submits them in order.
    """
    for batch in batches:
        _write_executable(batch.script, batch.text)
    if len(batches) == 1:
        return batches[0].script
    lines = [
        "#!/bin/bash",
        "# Written by `equipoise submit --slurm`: each job after the one before it.",
        "set -e",
    ]
    for batch in batches:
        words = [*sbatch(batch, "$number"), shlex.quote(str(batch.script))]
        lines += [f"number=$({' '.join(words)})", 'number="${number%%;*}"', 'echo "$number"']
    return _write_executable(batches[0].script.with_name("submit.sh"), "\n".join(lines) + "\n")


def _write_executable(path: Path, text: str) -> Path:
    write_text(path, text)
    path.chmod(0o755)
    return path


def sbatch(batch: Batch, before: str) -> list[str]:
    """The call of ``sbatch`` without the script; ``before`` is the number of the job that it waits for."""
    waits = [f"--dependency={batch.after}:{before}", "--kill-on-invalid-dep=yes"] if batch.after else []
    return ["sbatch", "--parsable", *waits]
