"""``equipoise train``: cross-validation on the development cohorts."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def train(
    options: StudyOptions,
    fold: Annotated[
        list[str] | None, typer.Option("--fold", help="Train this fold only: 0-1. Repeatable.", metavar="R-K")
    ] = None,
) -> dict[str, Any]:
    """Train every fold on the development cohorts; finished folds are skipped."""
    from equipoise.platform.run import steps

    return steps.run_steps(
        options.study(), options.folder, ["train"], dry_run=options.dry_run, only_folds=fold or ()
    )


command = train

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("train")
