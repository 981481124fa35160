"""``equipoise train``: cross-validation on the development cohorts."""

from typing import Annotated

import typer

from equipoise.jobs.options import FoldsFrom, StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def train(
    options: StudyOptions,
    fold: Annotated[
        list[str] | None, typer.Option("--fold", help="Train this fold only: 0-1. Repeatable.", metavar="R-K")
    ] = None,
    folds_from: FoldsFrom = None,
) -> JobResult:
    """Train every fold on the development cohorts; finished folds are skipped."""
    return options.run(options.study(), ["train"], only_folds=fold or (), folds_from=folds_from or ())


command = train

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("train")
