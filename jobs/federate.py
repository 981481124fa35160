"""``equipoise federate``: training across sites that keep their patients."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def federate(
    options: StudyOptions,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds, those that are done included.", min=1)
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Strategy: equipoise ls strategies.", metavar="NAME")
    ] = None,
) -> dict[str, Any]:
    """Federate the study's sites beside pooled, local and ensemble training; what is done is skipped."""
    from equipoise.platform import steps

    own: dict[str, Any] = {}
    if rounds is not None:
        own["federation.rounds"] = rounds
    if strategy is not None:
        own["federation.strategy"] = strategy
    study = options.study(own)
    if study.federation is None:  # a study without the section is federated by cohort, with the defaults
        study = options.study({"federation": {}} | own)
    if options.dry_run:
        return steps.perform(study, options.folder, ["federate", "report"], dry_run=True)
    folder = options.folder(study)
    extracted = folder.status()["steps"].get("extract", {}).get("status") == "done"
    before = [] if extracted else ["validate", "extract"]
    return steps.perform(study, lambda _: folder, [*before, "federate", "report"])


command = federate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("federate")
