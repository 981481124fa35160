"""Options shared by every job that takes a study, declared once."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.platform.study import Study
    from equipoise.platform.workspace import RunFolder


class Resume(StrEnum):
    """What to do with an earlier run in the same folder."""

    auto = "auto"
    must = "must"
    never = "never"


class LogFormat(StrEnum):
    """How progress is written."""

    auto = "auto"
    rich = "rich"
    plain = "plain"
    json = "json"


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What every study job accepts; each field is one option of the command line."""

    config: Annotated[str, typer.Option("-c", "--config", help="Study file.", metavar="PATH")] = "study.yaml"
    set: Annotated[
        list[str] | None,
        typer.Option(
            "-s", "--set", help="Override one setting: training.lr=1e-4. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Run folder [runs/<name>].", metavar="DIR")
    ] = None
    resume: Annotated[Resume, typer.Option("--resume", help="Go on with an earlier run in the folder.")] = (
        Resume.auto
    )
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; do and write nothing.")] = False
    smoke: Annotated[bool, typer.Option("--smoke", help="Rehearse: 4 patients a site, 2 folds, 1 epoch.")] = (
        False
    )
    seed: Annotated[int | None, typer.Option("--seed", help="Override the seed of the study.")] = None
    address: Annotated[
        str | None, typer.Option("--address", help="Ray: auto, local or an address.", metavar="ADDRESS")
    ] = None
    max_cpus: Annotated[int | None, typer.Option("--max-cpus", help="CPUs a local Ray may use.")] = None
    max_gpus: Annotated[int | None, typer.Option("--max-gpus", help="GPUs a local Ray may use.")] = None
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="Progress output.")] = LogFormat.auto
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Debug messages and full tracebacks.")] = (
        False
    )

    def study(self, own: dict[str, Any] | None = None) -> "Study":
        """The study with all overrides of the command line; ``own`` are those of the job's own options."""
        from equipoise.platform.study import load_study, parse_overrides, smoke_overrides

        overrides = parse_overrides(self.set or [])
        given = {
            "seed": self.seed,
            "resources.address": self.address,
            "resources.cpus": self.max_cpus,
            "resources.gpus": self.max_gpus,
        }
        overrides |= {key: value for key, value in given.items() if value is not None} | (own or {})
        study = load_study(self.config, overrides)
        return load_study(self.config, overrides | smoke_overrides(study)) if self.smoke else study

    def folder(self, study: "Study") -> "RunFolder":
        """The run folder, checked against the study."""
        from equipoise.platform.workspace import RunFolder

        return RunFolder.open(study, self.out, self.resume.value)


def study_job(job: Callable[..., Any]) -> Callable[..., None]:
    """Turn ``job(options, *own)`` into a command that takes the shared options and its own.

    The command's signature is the fields of :class:`StudyOptions` followed by the job's own parameters; typer reads
    nothing but signatures.
    """
    from equipoise.jobs.outcome import ended

    fields = dataclasses.fields(StudyOptions)
    own = list(inspect.signature(job).parameters.values())[1:]
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in fields
    ]

    @functools.wraps(job)
    def command(**values: Any) -> None:
        options = StudyOptions(**{field.name: values.pop(field.name) for field in fields})
        ended(job.__name__, functools.partial(job, options, **values), options.log_format, options.verbose)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    del command.__wrapped__
    return command


def plain_job(job: Callable[..., Any]) -> Callable[..., None]:
    """Turn ``job(*own)`` into a command with the same ending as study jobs: exit code and result line."""
    from equipoise.jobs.outcome import ended

    @functools.wraps(job)
    def command(**values: Any) -> None:
        ended(job.__name__, functools.partial(job, **values), LogFormat.auto, False)

    return command
