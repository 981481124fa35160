"""``equipoise federate``: training across sites that keep their patients."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, local_path, study_job
from equipoise.jobs.outcome import JobResult, run_in_folder

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study


class Framework(StrEnum):
    """Software that connects hospitals."""

    nvflare = "nvflare"


@study_job
def federate(
    options: StudyOptions,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Total rounds, including finished ones.", min=1)
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Strategy: equipoise ls strategies.", metavar="NAME")
    ] = None,
    export: Annotated[
        Framework | None,
        typer.Option("--export", help="Write a job for hospitals to -o; nothing is trained."),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            help="At a site: write the study of an exported job and of the site's file (-c) to -o.",
            metavar="DIR",
        ),
    ] = None,
) -> JobResult:
    """Train across the study's sites, with pooled, local and ensemble baselines; finished parts are skipped."""
    if job is not None:
        if export is not None:
            from equipoise.platform.errors import StudyError

            raise StudyError(
                "--export makes a job of a study, and --job a site's study of a job",
                where="command line",
                fix="leave one of them out",
            )
        return _site_study(options, job)
    overrides: dict[str, Any] = {}
    if rounds is not None:
        overrides["federation.rounds"] = rounds
    if strategy is not None:
        overrides["federation.strategy"] = strategy
    study = options.study(overrides)
    if study.federation is None:  # a study without the section is federated by cohort, with the defaults
        study = options.study({"federation": {}} | overrides)
    if export is not None:
        return _exported(options, study)
    if options.dry_run:
        return options.run(study, ["federate", "report"])
    folder = options.folder(study)
    extracted = folder.status()["steps"].get("extract", {}).get("status") == "done"
    before = [] if extracted else ["validate", "extract"]
    return run_in_folder(study, folder, [*before, "federate", "report"])


def _exported(options: StudyOptions, study: "Study") -> JobResult:
    """Write an NVFlare job; standard output is the entry that server and sites have to allow."""
    from equipoise.platform.federation.nvflare.export import allow_list_line, export_job
    from equipoise.platform.federation.remote.job import remote_job

    made = remote_job(study)
    if options.dry_run:
        return JobResult({"study": study.name, "dry_run": True})
    folder = export_job(made, local_path(options.out or f"{study.name}-nvflare"))
    print(allow_list_line())
    return JobResult({"out": folder.resolve(), "study": made.name, "federation": made.identifier})


def _site_study(options: StudyOptions, job: str) -> JobResult:
    """Write the study with which a site checks its tables and extracts its features."""
    from pathlib import Path

    from equipoise.platform.run.federated_site import write_site_study

    out = write_site_study(Path(options.config), Path(job), local_path(options.out or "study.yaml"))
    return JobResult({"out": out.resolve()})


command = federate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("federate")
