"""Options shared by every job that takes a study, declared once."""

import dataclasses
import functools
import inspect
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.datasets.atomic_io import write_text
from equipoise.datasets.remote.addresses import is_remote
from equipoise.jobs.outcome import JobResult, LogFormat, run_and_exit, run_in_folder

if TYPE_CHECKING:
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.study.schema import Study


def local_path(out: str) -> Path:
    """The path of an output that is written to this machine.

    Raises
    ------
    StudyError
        If it is an address, which only run folders may have.
    """
    if is_remote(out):
        from equipoise.platform.errors import StudyError

        raise StudyError(
            f"{out} is an address, and this is no run folder", where="-o", fix="name a folder or a file"
        )
    return Path(out)


class Resume(StrEnum):
    """What to do with an earlier run in the same folder."""

    auto = "auto"
    must = "must"
    never = "never"


#: Options of commands that read single cells.
CellFile = Annotated[
    str, typer.Option("--reference", help="Single cells: .h5ad, a 10x folder or .h5.", metavar="FILE")
]
CellKind = Annotated[
    str, typer.Option("--kind", help="What the values are: auto, counts, tpm or log (log(1 + x)).")
]
CellBase = Annotated[
    float | None, typer.Option("--base", help="Base of the logarithm; default: the file's, else e.")
]
CellLayer = Annotated[str, typer.Option("--layer", help="auto, X, raw or the name of a layer.")]
CellGenes = Annotated[
    str | None, typer.Option("--gene-column", help="Column with gene names; default: the index.")
]

#: Of the commands that train a study's folds.
FoldsFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--folds-from", help="Take finished folds from another run of this study. Repeatable.", metavar="RUN"
    ),
]

#: How much is written to standard error, the same for every command.
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Warnings and errors only, no progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Debug messages and full tracebacks.")]


def _level(quiet: bool, verbose: bool) -> int:
    """Lowest level of messages that are shown."""
    return logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """The options that every study job accepts; each field is one option of the command line."""

    config: Annotated[str, typer.Option("-c", "--config", help="Study file.", metavar="PATH")] = "study.yaml"
    set: Annotated[
        list[str] | None,
        typer.Option(
            "-s", "--set", help="Override one setting: training.lr=1e-4. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="Run folder or s3:// address [runs/<name>].", metavar="DIR"),
    ] = None
    resume: Annotated[Resume, typer.Option("--resume", help="Resume an earlier run in the folder.")] = (
        Resume.auto
    )
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Subsample: 4 patients a site, 2 folds, 1 epoch.")
    ] = False
    seed: Annotated[int | None, typer.Option("--seed", help="Override the seed of the study.")] = None
    address: Annotated[
        str | None, typer.Option("--address", help="Ray: auto, local or an address.", metavar="ADDRESS")
    ] = None
    max_cpus: Annotated[int | None, typer.Option("--max-cpus", help="CPUs a local Ray may use.")] = None
    max_gpus: Annotated[int | None, typer.Option("--max-gpus", help="GPUs a local Ray may use.")] = None
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="Progress output.")] = LogFormat.auto
    quiet: Quiet = False
    verbose: Verbose = False

    def study(self, extra: dict[str, Any] | None = None) -> "Study":
        """The study with all overrides of the command line; ``extra`` are those of the job's own options."""
        from equipoise.platform.run.loading import load_study
        from equipoise.platform.study.reading import parse_overrides
        from equipoise.platform.study.schema import smoke_overrides

        overrides = parse_overrides(self.set or [])
        given = {
            "seed": self.seed,
            "resources.address": self.address,
            "resources.cpus": self.max_cpus,
            "resources.gpus": self.max_gpus,
        }
        overrides |= {key: value for key, value in given.items() if value is not None} | (extra or {})
        study = load_study(self.config, overrides)
        return load_study(self.config, overrides | smoke_overrides(study)) if self.smoke else study

    def folder(self, study: "Study") -> "RunFolder":
        """The run folder, checked against the study."""
        from equipoise.platform.run.remote_folder import open_run_folder

        return open_run_folder(study, self.out, self.resume.value)

    def run(self, study: "Study", steps: Sequence[str], **settings: Any) -> JobResult:
        """Run steps in the study's run folder, or print what they would do (``--dry-run``)."""
        if self.dry_run:
            from equipoise.platform.run.steps import describe_plan

            print(describe_plan(study, steps))
            return JobResult({"study": study.name, "dry_run": True})
        folder = self.folder(study)
        if folder.writer() is None:  # else the folder is another job's, and this one is refused
            write_text(folder.command_file, f"{self.command_line(folder)}\n")
        return run_in_folder(study, folder, steps, **settings)

    def command_line(self, folder: "RunFolder") -> str:
        """The command that does all steps of this study in this folder, wherever it is called."""
        words = ["equipoise", "run", "-c", os.path.abspath(self.config)]
        for setting in self.set or []:
            words += ["-s", setting]
        words += ["--smoke"] if self.smoke else []
        numbers = {"--seed": self.seed, "--address": self.address}
        numbers |= {"--max-cpus": self.max_cpus, "--max-gpus": self.max_gpus}
        for option, value in numbers.items():
            words += [] if value is None else [option, str(value)]
        return shlex.join([*words, "-o", folder.address])


def study_job(job: Callable[..., Any]) -> Callable[..., None]:
    """Turn ``job(options, *extra)`` into a command that takes the shared options and the job's own.

    The command's signature is the fields of :class:`StudyOptions` followed by the job's own parameters; typer reads
    nothing but signatures.
    """
    fields = dataclasses.fields(StudyOptions)
    extra = list(inspect.signature(job).parameters.values())[1:]
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in fields
    ]

    @functools.wraps(job)
    def command(**values: Any) -> None:
        options = StudyOptions(**{field.name: values.pop(field.name, field.default) for field in fields})
        level = _level(options.quiet, options.verbose)
        run_and_exit(job.__name__, functools.partial(job, options, **values), options.log_format, level)

    return _with_signature(command, [*extra, *shared])


def plain_job(job: Callable[..., Any]) -> Callable[..., None]:
    """Turn ``job(*extra)`` into a command that ends like study jobs: with an exit code and a result line."""

    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", Quiet), ("verbose", Verbose))
    ]

    @functools.wraps(job)
    def command(*, quiet: bool, verbose: bool, **values: Any) -> None:
        name = job.__name__.rstrip("_").replace("_", "-")
        run_and_exit(name, functools.partial(job, **values), LogFormat.auto, _level(quiet, verbose))

    return _with_signature(command, [*inspect.signature(job).parameters.values(), *shared])


def _with_signature(
    command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give a command the parameters that typer shall see."""
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # type: ignore[attr-defined]
    return command
