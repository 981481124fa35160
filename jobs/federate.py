"""``equipoise federate``: training across sites that keep their patients."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult, run_in_folder


@study_job
def federate(
    options: StudyOptions,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Total rounds, including finished ones.", min=1)
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Strategy: equipoise ls strategies.", metavar="NAME")
    ] = None,
) -> JobResult:
    """Train across the study's sites, with pooled, local and ensemble baselines; finished parts are skipped."""
    overrides: dict[str, Any] = {}
    if rounds is not None:
        overrides["federation.rounds"] = rounds
    if strategy is not None:
        overrides["federation.strategy"] = strategy
    study = options.study(overrides)
    if study.federation is None:  # a study without the section is federated by cohort, with the defaults
        study = options.study({"federation": {}} | overrides)
    if options.dry_run:
        return options.run(study, ["federate", "report"])
    folder = options.folder(study)
    extracted = folder.status()["steps"].get("extract", {}).get("status") == "done"
    before = [] if extracted else ["validate", "extract"]
    return run_in_folder(study, folder, [*before, "federate", "report"])


command = federate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("federate")
