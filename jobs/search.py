"""``equipoise search``: balancing method, loss weights, architecture and optimisation settings of a study."""

import logging
from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult

log = logging.getLogger("equipoise")


@study_job
def search(
    options: StudyOptions,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Total trials, including finished ones.", min=1)
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Then evaluate the winner on patients that no trial has seen.")
    ] = False,
) -> JobResult:
    """Search on inner validation; finished trials are never repeated, unfinished ones resume."""
    overrides: dict[str, Any] = {} if trials is None else {"search.trials": trials}
    study = options.study(overrides)
    if study.search is None:  # a study without the section is searched with the defaults
        study = options.study({"search": {}} | overrides)
        assert study.search is not None
        log.info(
            "no search section in the study: %d trials over the default space (--trials N, --dry-run shows it)",
            study.search.trials,
        )
    if options.dry_run:
        from equipoise.platform.run.steps import describe_search

        print(describe_search(study))
        return JobResult({"study": study.name, "dry_run": True})
    return options.run(study, ["search"], measure_winner=test)


command = search

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("search")
