"""``equipoise submit``: a job on a cluster of Ray, or in an allocation of SLURM."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.datasets.remote.addresses import is_remote
from equipoise.jobs.options import plain_job
from equipoise.jobs.outcome import JobError, JobResult

if TYPE_CHECKING:
    from equipoise.platform.cluster.slurm_scripts import Allocation, Batch, FoldArray
    from equipoise.platform.cluster.submission import Cluster, Ended, JobCommand, Placement

#: Commands that are about this machine or about a finished run.
_NOT_SENT = ("submit", "status", "doctor")
#: Options of the job stand among those of this command.
CONTEXT_SETTINGS = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@plain_job
def submit(
    job: Annotated[
        str,
        typer.Argument(help="A job, or status or stop followed by the id of a submitted one.", metavar="JOB"),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the job, as without submit.", metavar="[OPTIONS]..."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Dashboard of a cluster: http://HOST:8265.", metavar="URL")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the package of the cluster's image; send no code.")
    ] = False,
    retries: Annotated[
        int, typer.Option("--retries", min=0, max=20, help="Times to submit again when the driver dies.")
    ] = 2,
    start_timeout: Annotated[
        float, typer.Option("--start-timeout", min=1, help="Seconds to wait for a place on the cluster.")
    ] = 600,
    driver_resource: Annotated[
        list[str] | None,
        typer.Option(
            "--driver-resource", help="What the driver asks for. Repeatable.", metavar="NAME=AMOUNT"
        ),
    ] = None,
    driver_label: Annotated[
        list[str] | None,
        typer.Option("--driver-label", help="Label of the driver's node. Repeatable.", metavar="KEY=VALUE"),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit to SLURM instead, with sbatch.")] = False,
    array: Annotated[
        bool, typer.Option("--array", help="SLURM: train and run: every fold is a task of a job array.")
    ] = False,
    nodes: Annotated[int, typer.Option("--nodes", help="SLURM: nodes, 1 to 8.")] = 1,
    cpus_per_node: Annotated[
        int, typer.Option("--cpus-per-node", min=1, help="SLURM: CPUs of each node.")
    ] = 8,
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", min=0, help="SLURM: GPUs of each node.")
    ] = 0,
    time: Annotated[str | None, typer.Option("--time", help="SLURM: time limit.")] = None,
    memory: Annotated[str | None, typer.Option("--mem", help="SLURM: memory of each node.")] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="SLURM: partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="SLURM: account.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", help="SLURM: another option of sbatch. Repeatable.", metavar="NAME[=VALUE]"),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option("--setup", help="SLURM: a line that the script runs first. Repeatable.", metavar="LINE"),
    ] = None,
    script: Annotated[
        str | None, typer.Option("--script", help="SLURM: where to write the script.", metavar="FILE")
    ] = None,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="SLURM: write the script, submit nothing.")
    ] = False,
) -> JobResult:
    """Run a job on a cluster: follow its log, end with its exit code; submitted again, it resumes."""
    from equipoise.platform.cluster.slurm_scripts import Allocation
    from equipoise.platform.cluster.submission import Cluster, placement_of
    from equipoise.platform.errors import StudyError

    given = list(arguments or [])
    if job in ("status", "stop"):
        return _about(job, given, None if slurm else Cluster(_address(address)))
    command, out = command_of(job, given)
    if slurm:
        allocation = Allocation(
            nodes, cpus_per_node, gpus_per_node, time, memory, partition, account, sbatch or (), setup or ()
        )
        batches = _batches(command, out, allocation, script, array)
        return _with_slurm(command, out, batches, write_only, detach)
    if array:
        raise StudyError("--array is for SLURM", where="--array", fix="add --slurm, or leave --array out")
    placement = placement_of(driver_resource or (), driver_label or ())
    return _with_ray(
        Cluster(_address(address)), command, out, placement, not installed, detach, retries, start_timeout
    )


def command_of(job: str, arguments: Sequence[str]) -> "tuple[JobCommand, str | None]":
    """The job as the cluster runs it, and its run folder (None for jobs without a study).

    Paths of study and folder become absolute: they lie on storage that the nodes of the cluster see. Addresses stay.
    """
    from equipoise.jobs.cli import JOBS, module_of
    from equipoise.platform.cluster.submission import JobCommand
    from equipoise.platform.errors import StudyError
    from equipoise.platform.registry import nearest

    known = [name for name in JOBS if name not in _NOT_SENT]
    if job not in known:
        raise StudyError(
            f"{job!r} is no job that can be submitted{nearest(job, known)}",
            where="equipoise submit",
            fix=f"one of {', '.join(known)}",
        )
    words = list(arguments)
    takes_study = "config" in signature(import_module(module_of(job)).command).parameters
    config = _make_absolute(words, "-c", "--config")
    out = _make_absolute(words, "-o", "--out")
    if not takes_study:
        return JobCommand(job, module_of(job), tuple(map(_absolute_if_here, words))), None
    from equipoise.platform.study.reading import parse_overrides, read_study

    if config is None:
        config = os.path.abspath("study.yaml")
        words += ["-c", config]
    study = read_study(config, parse_overrides(_values(words, "-s", "--set")))
    if out is None:
        out = os.path.abspath(os.path.join("runs", study.name))
        words += ["-o", out]
    return JobCommand(job, module_of(job), tuple(words)), out


def _with_ray(
    cluster: "Cluster",
    command: "JobCommand",
    out: str | None,
    placement: "Placement",
    ship: bool,
    detach: bool,
    retries: int,
    start_timeout: float,
) -> JobResult:
    import logging

    from equipoise.platform.cluster.submission import write_log

    log = logging.getLogger("equipoise")
    for left in range(retries, -1, -1):
        submission = cluster.submit(command, placement, ship, out)
        fields = {"of": command.name, "submission": submission, "address": cluster.address, "out": out}
        log.info("job=%s dashboard=%s/#/jobs/%s", submission, cluster.address, submission)
        if detach:
            print(submission)
            log.info("log: ray job logs --address %s --follow %s", cluster.address, submission)
            return JobResult(fields)
        try:
            cluster.wait_for_start(submission, placement, start_timeout)
            ended = cluster.follow(submission, write_log)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"\nthe job goes on; end it with: equipoise submit stop {submission} --address {cluster.address}\n"
            )
            raise
        if not ended.died or not left:
            break
        log.warning("%s; submitting it again, %d more times at most", ended.reason, left)
    print(submission)
    return _result(ended, fields)


def _batches(
    command: "JobCommand", out: str | None, allocation: "Allocation", script: str | None, array: bool
) -> "list[Batch]":
    """The batch script of a job; with ``array`` also those of its folds and, before them, of its extraction."""
    from equipoise.platform.cluster.slurm_scripts import Batch, FoldArray, batch_script
    from equipoise.platform.errors import StudyError

    folder = Path.cwd() if out is None or is_remote(out) else Path(out) / "slurm"
    path = Path(os.path.abspath(script)) if script else folder / f"{command.name}.sbatch"

    def batch(
        job: str, words: Sequence[str] = (), folds: "FoldArray | None" = None, after: str = ""
    ) -> Batch:
        place = path if job == command.name else path.with_name(f"{job}.sbatch")
        log_file = str(place.with_name(f"{place.stem}-{'%A_%a' if folds else '%j'}.log"))
        module = {"folds": "equipoise.jobs.train", "extract": "equipoise.jobs.extract"}.get(
            job, command.module
        )
        program = [sys.executable, "-m", module, *command.arguments, *words]
        return Batch(place, batch_script(f"equipoise-{job}", program, allocation, log_file, folds), after)

    if not array:
        return [batch(command.name)]
    if is_remote(str(out)):
        raise StudyError(
            "the tasks of an array write below the run folder, which is at an address",
            where="--array",
            fix="name a folder that all nodes mount with -o, or leave --array out",
        )
    names, extracts = _folds_to_train(command, Path(str(out)))
    if not names:
        return [batch(command.name)]
    folds = FoldArray(names, folder / "folds")
    taken = [word for run in folds.runs for word in ("--folds-from", str(run))]
    before = [batch("extract")] if extracts else []
    return [
        *before,
        batch("folds", (), folds, "afterok" if before else ""),
        batch(command.name, taken, after="afterany"),
    ]


def _folds_to_train(command: "JobCommand", out: Path) -> tuple[list[str], bool]:
    """Names of the folds that the run folder does not hold yet, and whether features are to be extracted first."""
    from equipoise.platform.errors import StudyError
    from equipoise.platform.run.context import RunContext
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.folds import folds_of
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.study.reading import parse_overrides
    from equipoise.platform.study.schema import smoke_overrides

    if command.name not in ("train", "run"):
        search = (
            "; trials of a search share one Ray: --nodes spreads them" if command.name == "search" else ""
        )
        raise StudyError(
            f"the tasks of an array are folds, and {command.name} trains none{search}",
            where="--array",
            fix="leave --array out, or submit train or run",
        )
    words = command.arguments
    config = _values(words, "-c", "--config")[-1]
    overrides = parse_overrides(_values(words, "-s", "--set"))
    study = load_study(config, overrides)
    if "--smoke" in words:
        study = load_study(config, overrides | smoke_overrides(study))
    context = RunContext(study, RunFolder(out))
    names = [f"{fold.repeat}-{fold.index}" for fold in folds_of(context, context.cohorts)]
    extracts = command.name == "run" and study.reads_slides and study.features.imported is None
    return [name for name in names if not (context.folder.folds / name).exists()], extracts


def _with_slurm(
    command: "JobCommand", out: str | None, batches: "Sequence[Batch]", write_only: bool, detach: bool
) -> JobResult:
    from equipoise.platform.cluster import slurm
    from equipoise.platform.cluster.slurm_scripts import write_scripts
    from equipoise.platform.cluster.submission import write_log

    by_hand = write_scripts(batches)
    last = batches[-1].script
    fields: dict[str, Any] = {"of": command.name, "script": by_hand, "out": out}
    if write_only:
        print(by_hand)
        return JobResult(fields)
    numbers = slurm.submit(batches)
    log_file = last.with_name(f"{last.stem}-{numbers[-1]}.log")
    fields |= {"submission": numbers[-1], "log": log_file}
    if len(numbers) > 1:
        fields["before"] = " ".join(numbers[:-1])
    print(*numbers, sep="\n")
    if detach:
        return JobResult(fields)
    return _result(slurm.follow(numbers[-1], log_file, partial(_status_of, out), write_log), fields)


def _status_of(out: str | None) -> dict[str, Any]:
    """``status.json`` of a run folder; empty where there is none yet, and for jobs without one."""
    from equipoise.platform.errors import StudyError
    from equipoise.platform.run.remote_folder import read_run_folder

    if out is None:
        return {}
    try:
        return read_run_folder(out).status()
    except StudyError:  # nothing is committed at the address
        return {}


def _about(what: str, ids: Sequence[str], cluster: "Cluster | None") -> JobResult:
    """``status ID`` and ``stop ID``, of Ray or, without a cluster, of SLURM."""
    from equipoise.platform.cluster import slurm
    from equipoise.platform.errors import StudyError

    if len(ids) != 1:
        raise StudyError("name one job by its id", where=f"equipoise submit {what}", fix=f"submit {what} ID")
    (submission,) = ids
    if cluster is None:
        if what == "stop":
            slurm.cancel(submission)
        print(f"{submission}: {slurm.describe(submission)}")
    else:
        if what == "stop":
            cluster.stop(submission)
        job = cluster.status(submission)
        print(f"{submission}: {job.status.lower()}: {job.entrypoint}")
        if job.message:
            print(job.message.strip().splitlines()[0])
    return JobResult({"submission": submission})


def _result(ended: "Ended", fields: dict[str, Any]) -> JobResult:
    """The result, or an error with the exit code of the job."""
    from equipoise.platform.errors import EquipoiseError

    result = JobResult(fields)
    if ended.code == 0:
        return result
    error = EquipoiseError(
        ended.reason or f"the job ended with exit code {ended.code}", where=ended.submission
    )
    error.exit_code = ended.code
    raise JobError(error, result)


def _address(given: str | None) -> str:
    """The dashboard: as given, else by Ray's variables."""
    from equipoise.platform.errors import StudyError

    for address in (given, *(os.environ.get(name) for name in _ADDRESS_VARIABLES)):
        if address and (given or address.startswith("http")):
            return address
    raise StudyError(
        "no address of a cluster",
        where="equipoise submit",
        fix="--address http://HOST:8265, or RAY_API_SERVER_ADDRESS; `equipoise run` works on this machine",
    )


def _make_absolute(words: list[str], *names: str) -> str | None:
    """Make the path that an option has absolute, in place; the value, None if the option is not given."""
    value = None
    for position, word in enumerate(words):
        name, equals, text = word.partition("=")
        if name not in names:
            continue
        if equals:
            value = _absolute(text)
            words[position] = f"{name}={value}"
        elif position + 1 < len(words):
            value = words[position + 1] = _absolute(words[position + 1])
    return value


def _absolute(path: str) -> str:
    """An absolute path; an address as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def _absolute_if_here(word: str) -> str:
    """A word that names a file or folder here as an absolute path, also behind ``=`` (``rna=table.csv``)."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{os.path.abspath(path)}" if path and os.path.exists(path) else word


def _values(words: Sequence[str], *names: str) -> list[str]:
    """Values of a repeatable option that are given as words of their own or after ``=``."""
    values = []
    for position, word in enumerate(words):
        name, equals, text = word.partition("=")
        if word in names and position + 1 < len(words):
            values.append(words[position + 1])
        elif name in names and equals:
            values.append(text)
    return values


command = submit

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("submit")
