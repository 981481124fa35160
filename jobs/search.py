"""``equipoise search``: balancing method, loss weights, architecture and optimisation settings of a study."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def search(
    options: StudyOptions,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Total trials, including finished ones.", min=1)
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Then evaluate the winner on patients that no trial has seen.")
    ] = False,
) -> dict[str, Any]:
    """Search on inner validation; finished trials are never repeated, unfinished ones resume."""
    from equipoise.platform.run import steps

    overrides: dict[str, Any] = {} if trials is None else {"search.trials": trials}
    study = options.study(overrides)
    if study.search is None:  # a study without the section is searched with the defaults
        study = options.study({"search": {}} | overrides)
    if options.dry_run:
        print(steps.describe_search(study))
        return {"study": study.name, "dry_run": True}
    return steps.run_steps(study, options.folder, ["search"], measure_winner=test)


command = search

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("search")
