"""``equipoise train``: cross-validation on the development cohorts."""

from typing import Any

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def train(options: StudyOptions) -> dict[str, Any]:
    """Train every fold on the development cohorts; finished folds are skipped."""
    from equipoise.platform import steps

    return steps.perform(options.study(), options.folder, ["train"], dry_run=options.dry_run)


command = train

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("train")
