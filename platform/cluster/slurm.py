"""Jobs of Equipoise in a SLURM allocation: the batch script, its submission, and how the job ended.

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
"""

import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.datasets.atomic_io import read_whole_json, write_text
from equipoise.platform.cluster.submission import Ended
from equipoise.platform.errors import ResourceError, StudyError

log = logging.getLogger("equipoise")

MAX_NODES = 8
#: Seconds that ``ray symmetric-run`` waits for the nodes of the allocation.
NODES_TIMEOUT_S = 600
_LOOK_S = 5.0
_NAME = re.compile(r"[\w.:/@%+,=-]+")
#: Forms of times and of memory that sbatch documents, with what to write.
_FORMS = {
    "--time": (re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"), "12:00:00 or 2-00:00:00"),
    "--mem": (re.compile(r"\d+[KMGT]?"), "64G"),
}
#: Options that the script sets itself.
_OURS = frozenset(
    ("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "requeue", "open-mode", "output",
     "time", "mem", "partition", "account")
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


def batch_script(name: str, command: Sequence[str], allocation: Allocation, log_file: str) -> str:
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
        Where its output goes; ``%j`` is the number of the job.

    >>> print(batch_script("msi", ["equipoise", "run"], Allocation(), "/runs/%j.log").splitlines()[-1])
    srun --nodes=1 --ntasks=1 equipoise run --address local --max-cpus "$SLURM_CPUS_PER_TASK"
    """
    lines = ["#!/bin/bash", "# Written by `equipoise submit --slurm`. Submitting it again resumes the run."]
    lines += [f"#SBATCH --{option}" for option in _sbatch_options(name, allocation, log_file)]
    lines += [
        "",
        "set -uo pipefail",
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        *allocation.setup,
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
    ]
    words = shlex.join(command)
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


def write_script(text: str, path: Path) -> Path:
    """Write a batch script, executable; it may hold paths, and no secret."""
    write_text(path, text)
    path.chmod(0o755)
    return path


def submit(script: Path) -> str:
    """Hand a script to ``sbatch`` and return the number of the job.

    Raises
    ------
    ResourceError
        If there is no ``sbatch`` here, or it refuses.
    """
    number = _call("sbatch", "--parsable", str(script)).strip().partition(";")[0]
    if not number.isdigit():
        raise ResourceError(
            f"sbatch answered {number[:80]!r}, no number of a job",
            where="sbatch",
            fix="look at `squeue --me`: the job may be there; sbatch has to understand --parsable",
        )
    return number


def state(number: str) -> str | None:
    """State of a job in the queue (``PENDING (Resources)``, ``RUNNING``); None when it has left the queue."""
    try:
        shown = _call("squeue", "--noheader", f"--jobs={number}", "--format=%T (%r)").strip()
    except ResourceError as error:
        if "Invalid job id" in str(error):  # what squeue says of a job that ended some time ago
            return None
        raise
    return shown.splitlines()[0] if shown else None


def cancel(number: str) -> None:
    """Take a job out of the queue, or end it."""
    _call("scancel", number)


def follow(number: str, log_file: Path, status_file: Path, write: Callable[[str], object]) -> Ended:
    """Write the log of a job as it grows, and return how it ended.

    Parameters
    ----------
    number
        Of the job.
    log_file
        Its log.
    status_file
        ``status.json`` of its run folder, whose content decides; without one the state that SLURM keeps does.
    write
        Gets each piece of the log.
    """
    before = _modified(status_file)
    position, said = _size(log_file), ""
    while (now := state(number)) is not None:
        if now != said:
            log.info("slurm job=%s state=%s", number, now)
            said = now
        position = _more(log_file, position, write)
        time.sleep(_LOOK_S)
    _more(log_file, position, write)
    return outcome(number, status_file, before)


def outcome(number: str, status_file: Path, before: float) -> Ended:
    """How a job ended: from ``status.json`` if it was written after ``before``, else from SLURM's accounting."""
    if _modified(status_file) > before:
        status = read_whole_json(status_file) or {}
        if isinstance(status.get("code"), int):
            return Ended(number, status["code"], str(status.get("error", "")).partition("\n")[0])
    kept = accounted(number)
    if kept == "COMPLETED":
        return Ended(number, 0)
    return Ended(number, 1, f"the job ended without a result ({kept or 'SLURM keeps no account'})", died=True)


def accounted(number: str) -> str:
    """State that SLURM's accounting keeps of a job; empty where there is none."""
    if shutil.which("sacct") is None:
        return ""
    try:
        lines = _call("sacct", "--noheader", "--allocations", f"--jobs={number}", "--format=State").split()
    except ResourceError:
        return ""
    return lines[0] if lines else ""


def describe(number: str) -> str:
    """One line about a job."""
    return state(number) or accounted(number) or "unknown: it has left the queue, and SLURM keeps no account"


def _call(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise ResourceError(
            f"there is no {program} on this machine",
            where="--slurm",
            fix="call it on a login node, or write the script with --write-only and submit it there",
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ResourceError(f"{program}: {said[-1]}", where="SLURM")
    return done.stdout


def _more(file: Path, position: int, write: Callable[[str], object]) -> int:
    """Write what a file holds after a position; the new position."""
    if _size(file) <= position:
        return position
    with file.open("rb") as opened:
        opened.seek(position)
        new = opened.read()
    write(new.decode("utf-8", "replace"))
    return position + len(new)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _modified(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0
