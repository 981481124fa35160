"""``equipoise federate``: training across sites that keep their patients."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def federate(
    options: StudyOptions,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Total rounds, including finished ones.", min=1)
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Strategy: equipoise ls strategies.", metavar="NAME")
    ] = None,
) -> dict[str, Any]:
    """Train across the study's sites, with pooled, local and ensemble baselines; finished parts are skipped."""
    from equipoise.platform.run import steps

    overrides: dict[str, Any] = {}
    if rounds is not None:
        overrides["federation.rounds"] = rounds
    if strategy is not None:
        overrides["federation.strategy"] = strategy
    study = options.study(overrides)
    if study.federation is None:  # a study without the section is federated by cohort, with the defaults
        study = options.study({"federation": {}} | overrides)
    if options.dry_run:
        return steps.run_steps(study, options.folder, ["federate", "report"], dry_run=True)
    folder = options.folder(study)
    extracted = folder.status()["steps"].get("extract", {}).get("status") == "done"
    before = [] if extracted else ["validate", "extract"]
    return steps.run_steps(study, lambda _: folder, [*before, "federate", "report"])


command = federate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("federate")
